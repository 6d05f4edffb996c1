"""Training, validation and folds: by patient, stratified by label, seeded; the test set is never touched.

What the package's weights were trained on (`in_pretraining`), and the rest of its group, is in training in every split
and every fold. Validation is drawn from the unseen: of each class as many images as its share of all training images,
seen ones included, but no more than half of the unseen ones (or that share of them, where it is above a half), so that
training keeps patients of that class that are as new to the weights as those it is judged on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from covid_fastai.data.cohort import Cohort, as_cohort
from covid_fastai.errors import DataError, UsageError
from covid_fastai.options import Folds, Seed, ValidPct, checked

__all__ = ["fold_by_patient", "fold_cohort", "leaked_patients", "split_by_image", "split_by_patient"]

logger = logging.getLogger("covid_fastai")

MOST_OF_UNSEEN = 0.5  # of a class's unseen images go to validation, where weights have seen others of that class
DEALS = 50  # where groups hold several classes, one order of dealing can fail and another succeed


@checked
def split_by_patient(cohort: pd.DataFrame, *, valid_pct: ValidPct = 0.2, seed: Seed = 42) -> Cohort:
    """Split the training rows into training and validation, no patient on both sides.

    Whole groups (patients, joined where they share a picture) are dealt in random order, class by class from the
    rarest, so that each class has about the fraction `valid_pct` of its images in validation and at least one patient
    on either side; groups with an image in pretraining are not dealt, and are training. The result depends on the
    groups' names and the seed, not on the order of the rows.

    Args:
        cohort: What `read_cohort` returned. Its rows that are train or valid are split anew; test and excluded stay.
        valid_pct: Fraction of the images for validation, between 0 and 1.
        seed: 0 or more.

    Returns:
        A copy with new values in `split`.

    Raises:
        DataError: There is one class only, or a class has fewer than two patients, or than two unseen ones; `details`
            has the counts.
        UsageError: An option has a value that is not allowed.

    Examples:
        >>> split = split_by_patient(cohort, valid_pct=0.25, seed=0)
        >>> patients = split.groupby("split")["patient"].agg(set)
        >>> patients["train"] & patients["valid"]
        set()
    """
    cohort = _checked(cohort)
    rows = _training_rows(cohort)
    counts = _count_groups(rows, _classes(cohort), least=2, what="a training and a validation part")
    held_out = _valid_shares(rows, valid_pct=valid_pct).reindex(counts.columns)
    part = _deal(counts, shares=np.stack([1 - held_out, held_out]), seed=seed)
    split = cohort.with_facts(leaked_fraction=None)
    split.loc[rows.index, "split"] = np.where(rows["group"].map(part) == 1, "valid", "train")  # guard: by_group
    return split


@checked
def split_by_image(cohort: pd.DataFrame, *, valid_pct: ValidPct = 0.2, seed: Seed = 42) -> Cohort:
    """Split the training rows by image, as the article did: patients can stand on both sides.

    What is measured on such a split is too good by an unknown amount. It is here to show by how much. Seen images stay
    in training here too.

    Args:
        cohort: What `read_cohort` returned.
        valid_pct: Fraction of the images for validation, between 0 and 1.
        seed: 0 or more.

    Returns:
        A copy with new values in `split`; `facts.leaked_fraction` is the fraction of the validation patients who are
        in training too, 0 to 1, which is logged as a warning.

    Raises:
        DataError: There is one class only, or a class has fewer than two images, or than two unseen ones.
        UsageError: An option has a value that is not allowed.

    Examples:
        >>> split = split_by_image(cohort, valid_pct=0.25, seed=0)
        >>> 0 < split.facts.leaked_fraction <= 1
        True
    """
    cohort = _checked(cohort)
    rows = _training_rows(cohort).sort_values("path")
    unseen, classes = rows[~rows["in_pretraining"]], _classes(cohort)
    counts, kept_out = (
        part.groupby("label").size().reindex(classes, fill_value=0) for part in (unseen, rows[rows["in_pretraining"]])
    )
    _refuse(counts, kept_out, least=2, unit="image", what="a training and a validation part")
    held_out = _with_every_class(
        unseen, _draw_images(unseen, _valid_shares(rows, valid_pct=valid_pct), seed=seed), seed=seed
    )
    split = cohort.copy()
    split.loc[rows.index, "split"] = "train"
    split.loc[held_out, "split"] = "valid"
    leaked = leaked_patients(split[split["split"] != "test"])
    patients = split.loc[held_out, "patient"].nunique()
    logger.warning(
        "Split by image: %d of %d validation patients (%.0f %%) are in training too; figures on it are too good.",
        *(len(leaked), patients, 100 * len(leaked) / patients),
    )
    return split.with_facts(leaked_fraction=len(leaked) / patients)


@checked
def fold_by_patient(cohort: pd.DataFrame, *, folds: Folds = 5, seed: Seed = 42) -> Cohort:
    """Deal the training rows into folds for cross-validation, no patient in two of them.

    Args:
        cohort: What `read_cohort` returned. Rows that are valid go back to train first; test and excluded stay.
        folds: Their number, 2 or more.
        seed: 0 or more.

    Returns:
        A copy with the column `fold` (int): 0 to `folds - 1` in the training rows, -1 in all others, and in seen rows,
        which are training in every fold.

    Raises:
        DataError: There is one class only, or a class has fewer patients, or unseen ones, than folds; `details` has the
            counts.
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
    counts = _count_groups(rows, _classes(cohort), least=folds, what=f"{folds} folds")
    part = _deal(counts, shares=np.full((folds, counts.shape[1]), 1 / folds), seed=seed)
    folded = cohort.with_facts(leaked_fraction=None)
    folded["fold"] = -1
    folded.loc[rows.index, "split"] = "train"
    folded.loc[rows.index, "fold"] = rows["group"].map(part).fillna(-1).astype(int)
    return folded


def fold_cohort(cohort: pd.DataFrame, fold: int) -> Cohort:
    """Return the cohort of one fold: its rows are valid, those of the other folds, and the seen ones, train.

    Args:
        cohort: What `fold_by_patient` returned.
        fold: 0 to the number of folds less 1.

    Returns:
        A copy with new values in `split`.

    Raises:
        UsageError: The cohort has no folds, or not that one.
    """
    if "fold" not in cohort:
        raise UsageError("The cohort has no column fold.", hint="Make it with fold_by_patient.")
    dealt = cohort["fold"] >= 0
    if fold not in set(cohort.loc[dealt, "fold"]):
        raise UsageError(f"There is no fold {fold!r}.", hint=f"Folds: 0 to {cohort['fold'].max()}.")
    split = as_cohort(cohort).with_facts(leaked_fraction=None)
    split.loc[dealt, "split"] = np.where(cohort.loc[dealt, "fold"] == fold, "valid", "train")
    return split


def leaked_patients(cohort: pd.DataFrame) -> list[str]:
    """Return the patients of validation and test who are in training too, or share a picture with one who is.

    Args:
        cohort: With `split`, `patient` and, where pictures were compared, `group`.

    Returns:
        Their keys, sorted; none after `split_by_patient`.
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
        raise DataError("Rows of the cohort share an index.", hint="Call reset_index(drop=True) first.")
    return as_cohort(cohort)


def _training_rows(cohort: Cohort) -> pd.DataFrame:
    columns = ["path", "label", "patient", "group"]
    rows = pd.DataFrame(cohort).loc[cohort["split"].isin(["train", "valid"]), columns]
    rows["in_pretraining"] = rows["group"].isin(_seen_groups(cohort))
    if rows.empty:
        counts = ", ".join(f"{split} {n}" for split, n in cohort["split"].value_counts().items()) or "no row"
        raise DataError(f"There is no training row to split ({counts}).", hint="Check the task and the labels.")
    return rows


def _seen_groups(cohort: pd.DataFrame) -> set:
    """Return the groups with a seen image, on whatever side; none where the cohort does not say what was seen."""
    if "in_pretraining" not in cohort:  # guard: seen_groups
        return set()
    return set(cohort.loc[cohort["in_pretraining"], "group"])


def _classes(cohort: Cohort) -> list[str]:
    """Return the classes of the task, and any other label that the training rows have."""
    labels = cohort.loc[cohort["split"].isin(["train", "valid"]), "label"]
    return list(dict.fromkeys([*cohort.facts.classes, *sorted(labels.unique())]))


def _count_groups(rows: pd.DataFrame, classes: Sequence[str], *, least: int, what: str) -> pd.DataFrame:
    """Return the images by unseen group (rows, by name) and class; raise where a class has too few groups."""
    unseen, seen = (
        pd.crosstab(part["group"], part["label"]).reindex(columns=list(classes), fill_value=0)
        for part in (rows[~rows["in_pretraining"]], rows[rows["in_pretraining"]])
    )
    _refuse((unseen > 0).sum(), (seen > 0).sum(), least=least, unit="patient", what=what)
    return unseen


def _valid_shares(rows: pd.DataFrame, *, valid_pct: float) -> pd.Series:
    """Return the share of each class's unseen images that go to validation, as the module's first lines say."""
    unseen = (~rows["in_pretraining"]).groupby(rows["label"]).mean()
    return (valid_pct / unseen).clip(upper=max(valid_pct, MOST_OF_UNSEEN))


def _draw_images(unseen: pd.DataFrame, shares: pd.Series, *, seed: int) -> pd.Index:
    """Draw images for validation, stratified by class among the classes of one share."""
    drawn = []
    for share, rows in unseen.groupby(unseen["label"].map(shares)):
        classes = rows["label"].nunique()
        number = min(max(round(share * len(rows)), classes), len(rows) - classes)  # room for each class
        drawn += train_test_split(rows.index, test_size=number, stratify=rows["label"], random_state=int(seed))[1:]
    return drawn[0].append(drawn[1:])


def _refuse(counts: pd.Series, kept_out: pd.Series, *, least: int, unit: str, what: str) -> None:
    """Raise where there is one class only or a class has fewer than `least` units that the weights have not seen."""
    if kept_out.any() and (counts < least).any():
        whole = counts + kept_out
        if len(counts) >= 2 and (whole >= least).all():
            _refuse_guarded(counts, kept_out, least=least, unit=unit, what=what)
        counts = whole  # too few with the seen ones too: the guard is not the reason
    listed = ", ".join(f"{label!r} {n}" for label, n in counts.items())
    few = counts[counts < least]
    if len(counts) >= 2 and few.empty:  # guard: too_few
        return
    if (counts > 0).sum() < 2:
        message = f"There is one class only ({unit}s: {listed}): nothing can be told apart."
        few, hint = counts, "Check the task, and the labels of the data."
    else:
        names = " and ".join(map(repr, few.index))
        message = f"Too few {unit}s of {names} for {what} ({unit}s: {listed}; at least {least} of each are needed)."
        hint = f"Add {unit}s, or take fewer folds." if "folds" in what else f"Add {unit}s of that class."
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


def _refuse_guarded(counts: pd.Series, kept_out: pd.Series, *, least: int, unit: str, what: str) -> None:
    """Raise since the guard leaves too few; say how many it keeps out of evaluation."""
    few = counts[counts < least]
    names, guarded = " and ".join(map(repr, few.index)), kept_out.to_dict()
    listed = ", ".join(f"{label!r} {n} and {guarded[label]} kept out" for label, n in counts.items())
    hint = "To be judged on them, say exclude_pretraining_overlap=False, with weights=None or 'imagenet'"
    hint += ", or take fewer folds." if "folds" in what else "."
    details = [
        {
            "row": None,
            "path": "",
            "kind": "too_few",
            "severity": "error",
            "reason": f"{label!r} has {n} unseen {unit}{'' if n == 1 else 's'}, and {guarded[label]} kept out",
            "remedy": hint,
        }
        for label, n in few.items()
    ]
    raise DataError(
        f"Too few unseen {unit}s of {names} for {what}: what the package's weights have seen is trained on and never "
        f"evaluated on (unseen {unit}s: {listed}; at least {least} of each are needed).",
        hint=hint,
        details=details,
    )


def _deal(counts: pd.DataFrame, *, shares: np.ndarray, seed: int) -> pd.Series:
    """Deal groups to parts so that each part has about its share of each class, and each class is in each part.

    scikit-learn's StratifiedGroupKFold leaves a fold without a class in silence where the class has too few groups,
    takes a second for 6,000 images, and knows only parts of one size; this takes milliseconds, and is compared with
    it in the tests.

    Args:
        counts: Images by group and class.
        shares: The parts' shares of each class, `(parts, classes)`; those of a class sum to 1.
        seed: Decides the order in which groups are dealt.

    Returns:
        The number of the part of each group.

    Raises:
        DataError: No deal has each class in each part, since groups hold several classes.
    """
    images = counts.to_numpy()
    rarest_first = np.argsort(images.sum(axis=0), kind="stable")
    owed = shares * images.sum(axis=0)  # images that each part has yet to get, by class
    rng = np.random.default_rng(int(seed))
    missing: list[int] = []
    for attempt in range(DEALS):
        order = rng.permutation(rarest_first) if attempt else rarest_first
        part = _deal_once(images, owed.copy(), order, rng)
        missing = [
            label
            for label in rarest_first
            for number in range(len(shares))
            if not (part[images[:, label] > 0] == number).any() and not _move_one(images, part, label=label, to=number)
        ]
        if not missing:  # guard: every_side
            return pd.Series(part, index=counts.index)
    raise DataError(
        f"No split has {counts.columns[missing[0]]!r} on every side: its patients have images of other classes too.",
        hint="Add patients, or take fewer folds.",
    )


def _deal_once(images: np.ndarray, owed: np.ndarray, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a part for each group, class by class in that order; changes `owed`."""
    part = np.full(len(images), -1)
    for label in order:
        groups = np.flatnonzero((images[:, label] > 0) & (part < 0))
        for group in rng.permutation(groups):
            best = np.flatnonzero(owed[:, label] >= owed[:, label].max() - 1e-9)
            part[group] = best[np.argmax(owed[best].sum(axis=1))]  # of equals the one that is owed most in all
            owed[part[group]] -= images[group]
    return part


def _move_one(images: np.ndarray, part: np.ndarray, *, label: int, to: int) -> bool:
    """Give part `to` the smallest group with the class that its present part can spare, and say whether there is one;
    changes `part`."""
    has = images > 0
    groups = np.flatnonzero(has[:, label])
    for group in groups[np.argsort(images[groups].sum(axis=1), kind="stable")]:
        others = (part == part[group]) & (np.arange(len(part)) != group)
        if part[group] != to and (has[others].any(axis=0) >= has[group]).all():
            part[group] = to
            return True
    return False


def _with_every_class(rows: pd.DataFrame, held_out: pd.Index, *, seed: int) -> pd.Index:
    """Exchange images where a stratified draw, which rounds, has left a class out of one side."""
    rng = np.random.default_rng(int(seed))
    held = pd.Series(False, index=rows.index)
    held[held_out] = True
    for _, images in held.groupby(rows["label"], sort=True):
        if images.all() or not images.any():
            held[rng.choice(images.index)] = not images.all()
    return held.index[held]
