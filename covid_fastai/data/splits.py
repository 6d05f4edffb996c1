"""Split a cohort into training and validation, or into folds: by patient, stratified by class, seeded.

The test set is not changed. Images of the weights' pretraining data (`in_pretraining`), and all other images of their
groups, are in training in every split and every fold. The validation images are sampled from the remaining images. Each
class contributes the fraction `valid_pct` of all its images, pretraining data included, but at most half of its images
outside the pretraining data (or `valid_pct` of them, where `valid_pct` is above 0.5). Training then keeps patients of
that class who are as new to the weights as the patients in validation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from covid_fastai.data.cohort import Cohort, as_cohort
from covid_fastai.data.metadata import IN_PRETRAINING
from covid_fastai.data.official_splits import find_fold_column, read_fold_numbers
from covid_fastai.errors import DataError, UsageError
from covid_fastai.options import Folds, Seed, ValidPct, checked

__all__ = ["fold_by_patient", "fold_cohort", "fold_officially", "leaked_patients", "split_by_image"]
__all__ += ["split_by_patient", "split_officially"]

logger = logging.getLogger("covid_fastai")

MAX_VALID_FRACTION = 0.5  # of a class's images outside the pretraining data, where other images of the class are in it
MAX_ATTEMPTS = 50  # where groups have images of several classes, one order of assignment can fail, another succeed


@checked
def split_by_patient(cohort: pd.DataFrame, *, valid_pct: ValidPct = 0.2, seed: Seed = 42) -> Cohort:
    """Split the training rows into training and validation, no patient on both sides.

    Whole groups (patients, merged where they share an image) are assigned in random order, class by class from the
    rarest. Each class has about the fraction `valid_pct` of its images in validation and at least one patient on each
    side. Groups with an image in the pretraining data stay in training. The result depends on the names of the groups
    and on the seed, not on the order of the rows.

    Args:
        cohort: What `read_cohort` returned. Train and valid rows are split again, which is logged if the data have a
            validation part of their own (`split_officially` keeps it); test and excluded rows do not change.
        valid_pct: Fraction of the images for validation, between 0 and 1.
        seed: 0 or more.

    Returns:
        A copy with new values in `split`.

    Raises:
        DataError: There is only one class, or a class has fewer than two patients, or fewer than two outside the
            pretraining data; `details` has the counts.
        UsageError: An option has a value that is not allowed.

    Examples:
        >>> split = split_by_patient(cohort, valid_pct=0.25, seed=0)
        >>> patients = split.groupby("split")["patient"].agg(set)
        >>> patients["train"] & patients["valid"]
        set()
    """
    cohort = _checked(cohort)
    rows = _training_rows(cohort)
    _log_resplit(cohort)
    counts = _count_groups(rows, _classes(cohort), minimum=2, purpose="a training and a validation set")
    valid = _valid_fractions(rows, valid_pct=valid_pct).reindex(counts.columns)
    subset = _assign_groups(counts, fractions=np.stack([1 - valid, valid]), seed=seed)
    split = cohort.with_facts(leaked_fraction=None)
    split.loc[rows.index, "split"] = np.where(rows["group"].map(subset) == 1, "valid", "train")  # guard: by_group
    return split


@checked
def split_by_image(cohort: pd.DataFrame, *, valid_pct: ValidPct = 0.2, seed: Seed = 42) -> Cohort:
    """Split the training rows by image, as the article did: a patient can be on both sides.

    Metrics on such a split are too optimistic by an unknown amount. The function exists to show how large the effect
    is. Images of the pretraining data stay in training here too.

    Args:
        cohort: What `read_cohort` returned.
        valid_pct: Fraction of the images for validation, between 0 and 1.
        seed: 0 or more.

    Returns:
        A copy with new values in `split`. `facts.leaked_fraction` is the fraction of the validation patients who are
        in training too, 0 to 1; it is also logged as a warning.

    Raises:
        DataError: There is only one class, or a class has fewer than two images, or fewer than two outside the
            pretraining data.
        UsageError: An option has a value that is not allowed.

    Examples:
        >>> split = split_by_image(cohort, valid_pct=0.25, seed=0)
        >>> 0 < split.facts.leaked_fraction <= 1
        True
    """
    cohort = _checked(cohort)
    rows = _training_rows(cohort).sort_values("path")
    classes, available, pretraining = _classes(cohort), rows[~rows["in_pretraining"]], rows[rows["in_pretraining"]]
    counts, in_pretraining = (
        images.groupby("label").size().reindex(classes, fill_value=0) for images in (available, pretraining)
    )
    _check_counts(counts, in_pretraining, minimum=2, unit="image", purpose="a training and a validation set")
    sampled = _sample_images(available, _valid_fractions(rows, valid_pct=valid_pct), seed=seed)
    held_out = _with_every_class(available, sampled, seed=seed)
    split = cohort.copy()
    split.loc[rows.index, "split"] = "train"
    split.loc[held_out, "split"] = "valid"
    leaked = leaked_patients(split[split["split"] != "test"])
    patients = split.loc[held_out, "patient"].nunique()
    logger.warning(
        "Split by image: %d of %d validation patients (%.0f %%) are in training too; metrics on it are too optimistic.",
        *(len(leaked), patients, 100 * len(leaked) / patients),
    )
    return split.with_facts(leaked_fraction=len(leaked) / patients)


def split_officially(cohort: pd.DataFrame) -> Cohort:
    """Keep the validation part of the data, with no patient on both sides.

    Training images of a patient in the validation part are excluded, as are validation images of the pretraining data.

    Args:
        cohort: What `read_cohort` returned.

    Returns:
        A copy with new values in `split` and `note`; the numbers of images that were excluded are logged.

    Raises:
        DataError: The data have no validation part of their own, or one of the two parts has not all classes.

    Examples:
        >>> split = split_officially(cohort)
        >>> leaked_patients(split[split["split"] != "test"])
        []
    """
    cohort = _checked(cohort)
    hint = "Set split='patient', which selects a validation part by patient."
    if not (cohort["split"] == "valid").any():
        raise DataError("The data have no validation part of their own: no row of the split is named valid.", hint=hint)
    split = cohort.with_facts(leaked_fraction=None)
    split["note"] = split["note"] if "note" in split else ""
    pretrained = (split["split"] == "valid") & split["group"].isin(_pretraining_groups(split))
    split.loc[pretrained, ["split", "note"]] = ["excluded", IN_PRETRAINING]
    held_out = set(split.loc[split["split"] == "valid", "group"])
    both = (split["split"] == "train") & split["group"].isin(held_out)
    split.loc[both, ["split", "note"]] = ["excluded", "its patient is in the validation part"]  # guard: valid_patient
    if pretrained.any() or both.any():
        logger.warning(
            "Official split: %d training images are excluded because their patient is in the validation part, and %d "
            "validation images because they are in the pretraining data of the package's weights.",
            *(both.sum(), pretrained.sum()),
        )
    for part in ("train", "valid"):
        counts = split.loc[split["split"] == part, "label"].value_counts().reindex(_classes(cohort), fill_value=0)
        if (counts == 0).any():
            listed = ", ".join(f"{label!r} {n}" for label, n in counts.items())
            raise DataError(f"The {part} part of the official split has not all classes (images: {listed}).", hint=hint)
    return split


@checked
def fold_by_patient(cohort: pd.DataFrame, *, folds: Folds = 5, seed: Seed = 42) -> Cohort:
    """Assign the training rows to cross-validation folds, no patient in two of them.

    Args:
        cohort: What `read_cohort` returned. Valid rows become train first, which is logged; test and excluded
            rows do not change.
        folds: Number of folds, 2 or more.
        seed: 0 or more.

    Returns:
        A copy with the column `fold` (int): 0 to `folds - 1` in the training rows, -1 in all other rows and in rows of
        the pretraining data, which are training in every fold.

    Raises:
        DataError: There is only one class, or a class has fewer patients, or fewer outside the pretraining data, than
            folds; `details` has the counts.
        UsageError: An option has a value that is not allowed.

    Examples:
        >>> folded = fold_by_patient(cohort, folds=3, seed=0)
        >>> sorted(folded.loc[folded["split"] == "train", "fold"].unique().tolist())
        [0, 1, 2]
        >>> int(folded[folded["fold"] >= 0].groupby("patient")["fold"].nunique().max())
        1
    """
    cohort = _checked(cohort)
    rows = _training_rows(cohort)
    _log_resplit(cohort)
    counts = _count_groups(rows, _classes(cohort), minimum=folds, purpose=f"{folds} folds")
    subset = _assign_groups(counts, fractions=np.full((folds, counts.shape[1]), 1 / folds), seed=seed)
    folded = cohort.with_facts(leaked_fraction=None)
    folded["fold"] = -1
    folded.loc[rows.index, "split"] = "train"
    folded.loc[rows.index, "fold"] = rows["group"].map(subset).fillna(-1).astype(int)
    return folded


@checked
def fold_officially(cohort: pd.DataFrame, *, folds: Folds) -> Cohort:
    """Assign the training rows to the cross-validation folds that a column of the data states.

    Args:
        cohort: What `read_cohort` returned, with a column of fold numbers such as `fold` or `kfold`.
        folds: Number of folds, as in the data.

    Returns:
        As `fold_by_patient`.

    Raises:
        DataError: There is no such column, a patient is in several folds, or a fold has not all classes.
        UsageError: The data have another number of folds.
    """
    cohort = _checked(cohort)
    rows, by_patient = _training_rows(cohort), "Set split='patient', which makes folds by patient."
    column = find_fold_column(cohort.loc[rows.index])
    if column is None:
        raise DataError("The data have no column of fold numbers, such as fold or kfold.", hint=by_patient)
    numbers = read_fold_numbers(cohort.loc[rows.index, column])
    if (count := numbers[numbers >= 0].nunique()) != folds:
        raise UsageError(f"folds={folds}, and the column {column!r} holds {count} folds.", hint=f"Set folds={count}.")
    if (numbers < 0).any():
        line = rows.loc[numbers < 0, "path"].iloc[0]
        raise DataError(f"{line} has no fold number in the column {column!r}.", hint=by_patient)
    shared = numbers.groupby(rows["group"]).nunique() > 1
    if shared.any():  # guard: patient_in_two_folds
        raise DataError(
            f"{shared.sum()} patients are in several folds of the column {column!r}, such as {shared.idxmax()!r}.",
            hint=by_patient,
        )
    available = ~rows["in_pretraining"]
    counts = pd.crosstab(numbers[available], rows.loc[available, "label"])
    counts = counts.reindex(index=range(folds), columns=_classes(cohort), fill_value=0)
    if (counts == 0).to_numpy().any():
        raise DataError(f"A fold of the column {column!r} has not all classes.", hint=by_patient)
    folded = cohort.with_facts(leaked_fraction=None)
    folded["fold"] = -1
    folded.loc[rows.index, "split"] = "train"
    folded.loc[rows.index[available], "fold"] = numbers[available]
    folded["fold"] = folded["fold"].astype(int)
    return folded


def fold_cohort(cohort: pd.DataFrame, fold: int) -> Cohort:
    """Return the cohort of one fold: its rows are valid; those of the other folds and of the
    pretraining data are train.

    Args:
        cohort: What `fold_by_patient` returned.
        fold: 0 to the number of folds minus 1.

    Returns:
        A copy with new values in `split`.

    Raises:
        UsageError: The cohort has no folds, or no fold of that number.
    """
    if "fold" not in cohort:
        raise UsageError("The cohort has no column fold.", hint="Call fold_by_patient first.")
    in_a_fold = cohort["fold"] >= 0
    if fold not in set(cohort.loc[in_a_fold, "fold"]):
        raise UsageError(f"There is no fold {fold!r}.", hint=f"Folds: 0 to {cohort['fold'].max()}.")
    split = as_cohort(cohort).with_facts(leaked_fraction=None)
    split.loc[in_a_fold, "split"] = np.where(cohort.loc[in_a_fold, "fold"] == fold, "valid", "train")
    return split


def leaked_patients(cohort: pd.DataFrame) -> list[str]:
    """Return the patients of validation and test who are in training too, or share an image with one who is.

    Args:
        cohort: With `split`, `patient` and, where images were compared, `group`.

    Returns:
        The patients, sorted; an empty list after `split_by_patient`.
    """
    unit = "group" if "group" in cohort else "patient"
    trained = set(cohort.loc[cohort["split"] == "train", unit])
    held_out = cohort[cohort["split"].isin(["valid", "test"])]
    return sorted(held_out.loc[held_out[unit].isin(trained), "patient"].unique())


def _checked(cohort: pd.DataFrame) -> Cohort:
    missing = [name for name in ("path", "label", "patient", "group", "split") if name not in cohort]
    if missing:
        raise DataError(f"The cohort has no column {', '.join(missing)}.", hint="Make it with read_cohort.")
    if not cohort.index.is_unique:
        raise DataError("Several rows of the cohort have the same index.", hint="Call reset_index(drop=True) first.")
    return as_cohort(cohort)


def _training_rows(cohort: Cohort) -> pd.DataFrame:
    columns = ["path", "label", "patient", "group"]
    rows = pd.DataFrame(cohort).loc[cohort["split"].isin(["train", "valid"]), columns]
    rows["in_pretraining"] = rows["group"].isin(_pretraining_groups(cohort))
    if rows.empty:
        counts = ", ".join(f"{split} {n}" for split, n in cohort["split"].value_counts().items()) or "no row"
        raise DataError(f"There is no training row to split ({counts}).", hint="Check the task and the labels.")
    return rows


def _log_resplit(cohort: pd.DataFrame) -> None:
    """Say that the data's own validation part is not kept."""
    if n := int((cohort["split"] == "valid").sum()):
        logger.warning(
            "%d images of the validation part are divided anew, together with the training images, so that no patient "
            "is on both sides. split='official' keeps the validation part of the data.",
            n,
        )


def _pretraining_groups(cohort: pd.DataFrame) -> set:
    """Return the groups with an image in the pretraining data; an empty set without the column `in_pretraining`."""
    if "in_pretraining" not in cohort:  # guard: pretraining_groups
        return set()
    return set(cohort.loc[cohort["in_pretraining"], "group"])


def _classes(cohort: Cohort) -> list[str]:
    """Return the classes of the task, and any other label that the training rows have."""
    labels = cohort.loc[cohort["split"].isin(["train", "valid"]), "label"]
    return list(dict.fromkeys([*cohort.facts.classes, *sorted(labels.unique())]))


def _count_groups(rows: pd.DataFrame, classes: Sequence[str], *, minimum: int, purpose: str) -> pd.DataFrame:
    """Count the images by group (rows) and class, without pretraining data; raise where a class has too few groups."""
    available, pretraining = (
        pd.crosstab(images["group"], images["label"]).reindex(columns=list(classes), fill_value=0)
        for images in (rows[~rows["in_pretraining"]], rows[rows["in_pretraining"]])
    )
    _check_counts((available > 0).sum(), (pretraining > 0).sum(), minimum=minimum, unit="patient", purpose=purpose)
    return available


def _valid_fractions(rows: pd.DataFrame, *, valid_pct: float) -> pd.Series:
    """Return the validation fraction of each class's images outside the pretraining data (see the module)."""
    available = (~rows["in_pretraining"]).groupby(rows["label"]).mean()
    return (valid_pct / available).clip(upper=max(valid_pct, MAX_VALID_FRACTION))


def _sample_images(available: pd.DataFrame, fractions: pd.Series, *, seed: int) -> pd.Index:
    """Sample images for validation, stratified by class among the classes with the same fraction."""
    sampled = []
    for fraction, rows in available.groupby(available["label"].map(fractions)):
        classes = rows["label"].nunique()
        number = min(max(round(fraction * len(rows)), classes), len(rows) - classes)  # room for each class
        sampled += train_test_split(rows.index, test_size=number, stratify=rows["label"], random_state=int(seed))[1:]
    return sampled[0].append(sampled[1:])


def _check_counts(counts: pd.Series, in_pretraining: pd.Series, *, minimum: int, unit: str, purpose: str) -> None:
    """Raise if there is only one class, or a class has fewer than `minimum` units outside the pretraining data."""
    if in_pretraining.any() and (counts < minimum).any():
        totals = counts + in_pretraining
        if len(counts) >= 2 and (totals >= minimum).all():
            raise _too_few_outside_pretraining(counts, in_pretraining, minimum=minimum, unit=unit, purpose=purpose)
        counts = totals  # too few even with the pretraining data: its exclusion is not the reason
    listed = ", ".join(f"{label!r} {n}" for label, n in counts.items())
    few = counts[counts < minimum]
    if len(counts) >= 2 and few.empty:  # guard: too_few
        return
    if (counts > 0).sum() < 2:
        message = f"There is only one class ({unit}s: {listed}); a classifier needs two."
        few, hint = counts, "Check the task, and the labels of the data."
    else:
        names = " and ".join(map(repr, few.index))
        message = (
            f"Too few {unit}s of {names} for {purpose} ({unit}s: {listed}; at least {minimum} of each are needed)."
        )
        hint = f"Add {unit}s, or choose fewer folds." if "folds" in purpose else f"Add {unit}s of that class."
    details = [
        {
            "row": None,
            "path": "",
            "kind": "too_few",
            "severity": "error",
            "reason": f"{label!r} has {n} {unit}{'' if n == 1 else 's'}",
            "remedy": hint,
        }
        for label, n in few.items()
    ]
    raise DataError(message, hint=hint, details=details)


def _too_few_outside_pretraining(
    counts: pd.Series, in_pretraining: pd.Series, *, minimum: int, unit: str, purpose: str
) -> DataError:
    """Return the error that too few units are outside the pretraining data, with the number that are in it."""
    few = counts[counts < minimum]
    names, overlap = " and ".join(map(repr, few.index)), in_pretraining.to_dict()
    listed = ", ".join(f"{label!r} {n}, and {overlap[label]} in it" for label, n in counts.items())
    hint = "To evaluate on them, set exclude_pretraining_overlap=False, with weights=None or 'imagenet'"
    hint += ", or choose fewer folds." if "folds" in purpose else "."
    details = [
        {
            "row": None,
            "path": "",
            "kind": "too_few",
            "severity": "error",
            "reason": f"{label!r} has {n} {unit}{'' if n == 1 else 's'} outside the pretraining data, "
            f"and {overlap[label]} in it",
            "remedy": hint,
        }
        for label, n in few.items()
    ]
    return DataError(
        f"Too few {unit}s of {names} for {purpose} are outside the pretraining data of the package's weights, which is "
        f"never evaluated on ({unit}s outside it: {listed}; at least {minimum} of each are needed).",
        hint=hint,
        details=details,
    )


def _assign_groups(counts: pd.DataFrame, *, fractions: np.ndarray, seed: int) -> pd.Series:
    """Assign groups to subsets such that each subset has about its fraction of each class, and every class.

    scikit-learn's StratifiedGroupKFold can return a fold without a class, and no warning, where the class has too few
    groups; it takes a second for 6,000 images and makes only subsets of equal size. This function takes milliseconds;
    the tests compare the two.

    Args:
        counts: Images by group and class.
        fractions: The fraction of each class for each subset, `(subsets, classes)`; those of a class sum to 1.
        seed: Decides the order in which groups are assigned.

    Returns:
        The number of the subset of each group.

    Raises:
        DataError: No assignment with every class in every subset was found, because groups have images of several
            classes.
    """
    images = counts.to_numpy()
    rarest_first = np.argsort(images.sum(axis=0), kind="stable")
    missing_images = fractions * images.sum(axis=0)  # that each subset has yet to receive, by class
    rng = np.random.default_rng(int(seed))
    absent: list[int] = []
    for attempt in range(MAX_ATTEMPTS):
        order = rng.permutation(rarest_first) if attempt else rarest_first
        subset = _assign_in_order(images, missing_images.copy(), order, rng)
        absent = [
            label
            for label in rarest_first
            for number in range(len(fractions))
            if not (subset[images[:, label] > 0] == number).any()
            and not _move_group(images, subset, label=label, to=number)
        ]
        if not absent:  # guard: every_side
            return pd.Series(subset, index=counts.index)
    raise DataError(
        f"No split with {counts.columns[absent[0]]!r} in every subset was found: its patients have images of other "
        "classes too.",
        hint="Add patients, or choose fewer folds.",
    )


def _assign_in_order(
    images: np.ndarray, missing_images: np.ndarray, order: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the subset of each group, assigned class by class in that order; changes `missing_images`.

    A group goes to the subset that misses most images of the class; among equals, to the one that misses most in total.
    """
    subset = np.full(len(images), -1)
    for label in order:
        groups = np.flatnonzero((images[:, label] > 0) & (subset < 0))
        for group in rng.permutation(groups):
            missing = missing_images[:, label]
            largest = np.flatnonzero(missing >= missing.max() - 1e-9)  # the margin is for rounding errors
            subset[group] = largest[np.argmax(missing_images[largest].sum(axis=1))]
            missing_images[subset[group]] -= images[group]
    return subset


def _move_group(images: np.ndarray, subset: np.ndarray, *, label: int, to: int) -> bool:
    """Move the smallest possible group with the class to the subset `to`, and return whether there is one.

    A group can move if its present subset keeps every class without it. Changes `subset`.
    """
    has = images > 0
    groups = np.flatnonzero(has[:, label])
    for group in groups[np.argsort(images[groups].sum(axis=1), kind="stable")]:
        others = (subset == subset[group]) & (np.arange(len(subset)) != group)
        if subset[group] != to and (has[others].any(axis=0) >= has[group]).all():
            subset[group] = to
            return True
    return False


def _with_every_class(rows: pd.DataFrame, held_out: pd.Index, *, seed: int) -> pd.Index:
    """Move an image where a stratified sample, which rounds, has left a class out of one side."""
    rng = np.random.default_rng(int(seed))
    held = pd.Series(False, index=rows.index)
    held[held_out] = True
    for _, images in held.groupby(rows["label"], sort=True):
        if images.all() or not images.any():
            held[rng.choice(images.index)] = not images.all()
    return held.index[held]
