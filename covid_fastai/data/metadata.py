"""From a data set to one tidy, checked table: the cohort, a row an image."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from covid_fastai.data.checks import RowChecker
from covid_fastai.data.cohort import COHORT_COLUMNS, Cohort, CohortInfo, as_cohort
from covid_fastai.data.fingerprints import join_groups
from covid_fastai.data.layouts import SPLITS, Rows, read_rows
from covid_fastai.data.patients import image_facts, patient_key, source_of_patient
from covid_fastai.data.pretraining_overlap import Manifest, mark_pretraining_overlap, package_manifests, read_manifest
from covid_fastai.data.problems import ProblemLog, count_kinds, printable
from covid_fastai.data.projections import is_unstated, not_frontal, not_radiograph, read_projection
from covid_fastai.data.tasks import Task, canonical_finding, fold_text, get_task
from covid_fastai.errors import DataError, UsageError
from covid_fastai.options import CheckImages, NegativesPerPositive, OnProblem, Seed, Switch, WorkerCount, checked

__all__ = ["check_positive", "read_cohort", "summarise_cohort"]

logger = logging.getLogger("covid_fastai")

FACTS = ["sex", "age", "day"]
SHARED_NAMES = (
    r"(IM|NORMAL2)-\d+$"  # patients of Kermany's Normal images; OsiriX and Horos export other people's so named
)
KERMANYS_NAMES = r"(?i)person\d+_(bacteria|virus)_\d+"
SEEN = "seen by the package's weights"  # the note of a row of the official TEST that is excluded for it


@checked
def read_cohort(
    data: str | Path | pd.DataFrame,
    *,
    task: str | Task = "covid",
    image_root: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    source_column: str | None = None,
    view_column: str | None = None,
    encoding: str | None = None,
    negatives_per_positive: NegativesPerPositive | None = None,
    seed: Seed = 42,
    on_problem: OnProblem = "error",
    check_images: CheckImages = True,
    exclude_pretraining_overlap: Switch = True,
    workers: WorkerCount | None = None,
) -> Cohort:
    """Read a data set into a cohort, and check every row of it before anything is learnt from it.

    Nothing is dropped in silence: rows that take no part stay in the cohort, with `split` excluded and the reason in
    `note`, and rows that are faulty are in `facts.problems`. Images of Cohen's collection that are not COVID-19
    are excluded in every task, as a negative control: a classifier that calls them COVID-19 has learnt the source.

    Args:
        data: CoronaHack's folder as Kaggle lays it out, or its CSV; any other CSV; a folder with a folder a class
            (or with such folders in train/ and test/); or a DataFrame.
        task: `"covid"`, `"pneumonia"`, `"etiology"`, or a `Task`.
        image_root: The folder that the names in a CSV start from; None for the CSV's own, or the one it brings.
        path_column: The column with the image's file; like all columns looked for by its usual names where None.
        label_column: The column with the label.
        patient_column: The column with the patient. Where there is none, CoronaHack's file names tell the patient;
            any other image is its own patient, and `patient_known` is False. So it is where the data have a column
            `patient_known` that says so, as a cohort has.
        split_column: The column with train or test. What is called valid counts as train.
        source_column: The column with the hospital or collection.
        view_column: The column with the projection (PA, AP, L ...).
        encoding: The CSV's encoding, where it is neither UTF-8 nor marked as UTF-16.
        negatives_per_positive: Images of the negative class that are drawn for each image of the positive one, both
            of the training rows; the rest is excluded as "not drawn". Images are drawn, not patients, as in the
            article, those first that the package's weights have not seen. None for all.
        seed: Seed of that draw, which does not depend on the order of the rows.
        on_problem: `"error"` raises when rows are faulty, `"skip"` leaves those out.
        check_images: Whether to open every image, which finds unreadable ones and pictures that are there twice; or how
            many, a random sample, which says how many are unreadable and finds copies within it only. The search for
            copies compares every two pictures: 6,000 take three seconds, 100,000 a quarter of an hour.
        exclude_pretraining_overlap: Whether to keep the images that the package's own weights were trained on out of
            evaluation, whatever weights are chosen, so that all are compared on the same images. Such an image, and any
            other of its patient, is `in_pretraining`: a split leaves it in training, and in the official TEST it is
            excluded. Without opened images, names and
            patients alone are compared. False looks for nothing, and is for weights from elsewhere, or none.
        workers: Threads that open images; None for a number that fits the machine.

    Returns:
        One row an image, with a RangeIndex, the columns that `Cohort` lists and all columns that the data came with;
        one whose name is taken has `_given` behind it. `split` is train, test or excluded; `in_pretraining` is False in
        all rows with `exclude_pretraining_overlap=False`. `facts` has task, classes, positive class and problems.

    Raises:
        DataError: The data cannot be read, or rows are faulty; `details` has a dictionary a fault, all of them.
        ModelFormatError: The list of what the package's weights have seen is damaged.
        UsageError: An option has a value that is not allowed.

    Examples:
        >>> cohort = read_cohort(data, task="covid")
        >>> cohort["split"].value_counts().to_dict()
        {'train': 41, 'excluded': 16}
        >>> cohort.facts.classes, cohort.facts.positive
        (('Normal', 'COVID-19'), 'COVID-19')
        >>> read_cohort(data, seed=2**40)
        Traceback (most recent call last):
        covid_fastai.errors.UsageError: seed=1099511627776 is not a whole number from 0 to 4294967295. ...
    """
    task = get_task(task)
    if negatives_per_positive is not None:
        check_positive(task)
    manifests = [read_manifest(file) for file in package_manifests()] if exclude_pretraining_overlap else []
    problems = ProblemLog()
    columns = {"path": path_column, "label": label_column, "patient": patient_column}
    columns |= {"split": split_column, "source": source_column, "view": view_column}
    rows = read_rows(data, task=task, columns=columns, image_root=image_root, encoding=encoding, problems=problems)
    table = _identify(rows)
    table = _place(table, task, problems)
    table, duplicates = _check(
        table, task, rows.root, problems, check_images=check_images, seed=seed, guarded=bool(manifests), workers=workers
    )
    if on_problem == "error":  # guard: raise_errors
        problems.raise_errors(rows.data)
    if table.empty:
        raise DataError(f"{rows.data}: no row is left.", hint="See the details.", details=problems.errors())
    table["group"] = join_groups(table["patient"], duplicates)
    table["in_pretraining"] = _mark_seen(table, manifests)
    table = _keep_seen_apart(table, problems)
    table = _keep_test_apart(table, problems)
    if negatives_per_positive is not None:
        table = _draw_negatives(table, task, ratio=negatives_per_positive, seed=seed)
    cohort = Cohort(_assemble(table, rows.extras), facts=_facts(table, task, rows, problems))
    _log_cohort(cohort)
    return cohort


def summarise_cohort(cohort: pd.DataFrame) -> pd.DataFrame:
    """Count a cohort's images and patients by split, label and, for rows excluded, reason.

    Args:
        cohort: What `read_cohort` returned, split or not.

    Returns:
        A tidy table with `split` (train, valid, test, excluded), `label` (for a row without a class of the task its
        finding), `note`, `images` and `patients`, in the order of the splits and classes.

    Examples:
        >>> summarise_cohort(cohort)[["split", "label", "patients"]].head(3)
           split     label  patients
        0  train    Normal         9
        1  train  COVID-19        13
        2  valid    Normal         5
    """
    cohort = as_cohort(cohort)
    label = cohort["label"].where(cohort["label"] != "", cohort["finding"])
    order = {name: number for number, name in enumerate(["train", "valid", "test", "excluded"])}
    classes = {name: number for number, name in enumerate(cohort.facts.classes)}
    counts = (
        pd.DataFrame(cohort)
        .assign(label=label)
        .groupby(["split", "label", "note"], sort=True)["patient"]
        .agg(images="size", patients="nunique")
        .reset_index()
    )
    ranks = counts.assign(
        split=counts["split"].map(order).fillna(len(order)), label=counts["label"].map(classes).fillna(len(classes))
    )
    return counts.loc[ranks.sort_values(["split", "label"], kind="stable").index].reset_index(drop=True)


def check_positive(task: Task) -> None:
    """Raise unless negatives can be drawn for the positives of a task.

    Args:
        task: The task.

    Raises:
        UsageError: It has no positive class, or more than two classes.
    """
    if task.positive is None or len(task.classes) != 2:
        raise UsageError(
            f"negatives_per_positive needs a task of two classes, one of them positive; {task.name!r} is none.",
            hint="Leave it out, or use balance= in training.",
        )


def _identify(rows: Rows) -> pd.DataFrame:
    """Return the rows with patient and source: from the columns, else from the names of CoronaHack's files."""
    table = rows.table.copy()
    base = table["name"].map(lambda name: os.path.basename(str(name).replace("\\", "/")))
    key = base.map(patient_key).fillna("")
    key = key.mask(key.str.match(SHARED_NAMES) & ~_has_kermanys_names(base, rows), "")
    for column in ("patient", "source"):
        table[column] = table[column].map({text: "" if is_unstated(text) else text for text in table[column].unique()})
    given = table["patient"] != ""
    if "patient_known" in rows.extras:  # a cohort that was written and read again: its file names stand for patients
        given &= rows.extras["patient_known"].astype(str).str.casefold() != "false"
    table["patient_known"] = given | (key != "")
    alone = base.where(~base.duplicated(keep=False), table["name"].map(os.path.normpath))  # COVID/1.png, Normal/1.png
    table["patient"] = table["patient"].where(given, key.where(key != "", alone))
    table["patient"] = _patients_of_sources(table["patient"], table["source"].where(given, ""))
    by_name = key.map(source_of_patient)
    table["source"] = table["source"].where(table["source"] != "", by_name)
    return _join_facts(table, base.where(table["source"].map(fold_text) == "cohen", ""))


def _has_kermanys_names(base: pd.Series, rows: Rows) -> pd.Series:
    """Say of each file name that other programs write, too, such as `IM-0001-0001`, whether it is Kermany's here.

    It is in CoronaHack's own layout, and where names of the data that nobody else writes (`person1_virus_6`) are
    Kermany's; a name that several files have is not.
    """
    known = rows.coronahack or bool(base.str.match(KERMANYS_NAMES).any())
    return pd.Series(known, index=base.index) & ~base.duplicated(keep=False)


def _patients_of_sources(patient: pd.Series, source: pd.Series) -> pd.Series:
    """Return patients such that one number in two sources is two patients: `<source>/<patient>` for such a number."""
    if source[source != ""].nunique() < 2:
        return patient
    sources = source.mask(source == "").groupby(patient).transform("nunique")
    return patient.where((sources < 2) | (source == ""), source + "/" + patient)


def _join_facts(table: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    """Add what Cohen's collection publishes: its finding, the view where none is given, sex, age and day."""
    facts = image_facts(names)
    table["cohen_finding"] = facts["finding"]
    table["view"] = table["view"].map({text: read_projection(text) for text in table["view"].unique()})
    table["view"] = table["view"].where(table["view"] != "", facts["view"].map(read_projection))
    if (facts["finding"] != "").any():
        table[FACTS] = facts[FACTS]
    return table


def _place(table: pd.DataFrame, task: Task, problems: ProblemLog) -> pd.DataFrame:
    """Give each row its class and its split, and the reason where it is excluded; the last reason stands."""
    classes, reasons = (
        {text: find(text) or "" for text in table["finding"].unique()} for find in (task.class_of, task.reason_excluded)
    )
    table["label"], table["note"] = table["finding"].map(classes), table["finding"].map(reasons)
    table["finding"] = table["finding"].map(canonical_finding)
    if task.frontal_only:
        unfit = table["modality"].map({text: not_radiograph(text) for text in table["modality"].unique()})
        view = table["view"].map({text: not_frontal(text) for text in table["view"].unique()})
        table["note"] = table["note"].where(table["note"] != "", unfit.where(unfit != "", view))  # guard: lateral
    for name, reason in task.excluded_sources.items():
        table.loc[table["source"].map(fold_text) == fold_text(name), "note"] = reason
    negative_control = ~table["cohen_finding"].isin(["", "COVID-19"])
    table.loc[negative_control, "note"] = (
        "negative control: Cohen's collection, not COVID-19 (" + table["cohen_finding"] + ")"
    )
    return _place_in_split(table, task, problems)


def _place_in_split(table: pd.DataFrame, task: Task, problems: ProblemLog) -> pd.DataFrame:
    given = table["split"].map(lambda text: SPLITS.get(fold_text(text), "" if text else "train"))
    for index in table.index[given == ""]:
        row = table.loc[index]
        problems.add(
            "unknown_split",
            row=row["row"],
            path=row["path"] or row["name"],
            reason=f"it belongs to {row['split']!r}",
            remedy="Call it train or test.",
        )
    if (n := int((given == "valid").sum())) > 0:
        problems.add(
            "valid_is_train",
            severity="note",
            reason=f"{n} rows are called valid; they count as train",
            remedy="Nothing: split_by_patient draws the validation part, with no patient on both sides.",
        )
    table["unknown_split"] = given == ""
    table.loc[(given == "excluded") & (table["note"] == ""), "note"] = "excluded in the data"
    test = (given == "test") & (table["note"] == "")
    absent = [name for name in task.classes if name not in set(table.loc[test, "label"])]
    if test.any() and absent and not task.official_test:
        table.loc[test, "note"] = f"official TEST: holds no {' and no '.join(absent)}"
    table["split"] = given.replace({"valid": "train", "": "train"}).mask(table["note"] != "", "excluded")
    return table


def _check(
    table: pd.DataFrame,
    task: Task,
    root: Path | None,
    problems: ProblemLog,
    *,
    check_images: bool | int,
    seed: int,
    guarded: bool,
    workers: int | None,
) -> tuple[pd.DataFrame, pd.Series]:
    """Check all rows, and return those that can be used, with the groups of equal pictures."""
    checker = RowChecker(table, problems)
    checker.check_labels(task)
    checker.check_files(root)
    checker.check_repeats()
    most = len(table) if check_images is True else int(check_images)
    if most:
        duplicates = checker.check_images(workers=workers, most=most, seed=seed)
        table = table.assign(phash=checker.phash)
    else:
        duplicates = pd.Series(range(len(table)), index=table.index)
    if most < len(table):
        opened = f"{most:,} of {len(table):,} images were opened" if most else "no image was opened"
        beyond = " among the others" if most else ""
        also = "; what the package's weights have seen was looked for by name and patient only" if guarded else ""
        problems.add(
            "not_opened",
            severity="note",
            reason=f"{opened}: unreadable ones and copies were not looked for{beyond}{also}",
            remedy="Say check_images=True.",
        )
    # guard: faulty_rows
    kept = table.drop(index=[*(checker.faulty | checker.repeated | set(table.index[table["unknown_split"]]))])
    return kept, duplicates[kept.index]


def _mark_seen(table: pd.DataFrame, manifests: Sequence[Manifest]) -> pd.Series:
    """Say of each row whether the weights have seen a picture of its group: it, a copy, or another of its patient."""
    seen = mark_pretraining_overlap(table, table.get("phash"), manifests)
    return table["group"].isin(set(table.loc[seen, "group"]))


def _keep_seen_apart(table: pd.DataFrame, problems: ProblemLog) -> pd.DataFrame:
    """Put test images excluded that the weights have seen, before the training images of tested patients are."""
    tested = table["in_pretraining"] & (table["split"] == "test")
    trained = int((table["in_pretraining"] & (table["split"] == "train")).sum())
    if trained or tested.any():
        excluded = f"; {int(tested.sum())} of the official TEST are excluded" if tested.any() else ""
        problems.add(
            "in_pretraining",
            severity="note",
            reason=f"{trained} training images are of patients whom the package's weights have seen: they are trained "
            f"on and never evaluated on{excluded}",
            remedy="Nothing; exclude_pretraining_overlap=False evaluates them, with weights=None or 'imagenet'.",
        )
    table.loc[tested, ["split", "note"]] = ["excluded", SEEN]
    return table


def _keep_test_apart(table: pd.DataFrame, problems: ProblemLog) -> pd.DataFrame:
    """Put training images excluded whose patient, or whose picture, is in the test set too."""
    tested = set(table.loc[table["split"] == "test", "group"])
    both = (table["split"] == "train") & table["group"].isin(tested)
    for index in table.index[both]:
        row = table.loc[index]
        problems.add(
            "train_and_test",
            row=row["row"],
            path=row["path"],
            severity="warning",
            reason=f"patient {row['patient']} is in the test set too; this training image is excluded",
            remedy="Keep all images of a patient on one side.",
        )
    table.loc[both, ["split", "note"]] = ["excluded", "its patient is in the test set"]  # guard: tested_patient
    return table


def _draw_negatives(table: pd.DataFrame, task: Task, *, ratio: float, seed: int) -> pd.DataFrame:
    """Draw images of the negative class among the training rows, the unseen first; names and seed decide the order."""
    train = table[table["split"] == "train"]
    positives = int((train["label"] == task.positive).sum())
    negatives = train[train["label"] != task.positive].sort_values("path")
    wanted = max(1, round(ratio * positives))
    if positives == 0:
        raise DataError(
            f"There is no {task.positive!r} image to draw {ratio:g} of the negative class for.",
            hint="Leave out negatives_per_positive, or check the labels.",
        )
    if wanted > len(negatives):
        logger.warning("negatives_per_positive=%g asks for %d images; there are %d.", ratio, wanted, len(negatives))
        return table
    order = np.random.default_rng(seed).permutation(len(negatives))
    order = order[np.argsort(negatives["in_pretraining"].to_numpy()[order], kind="stable")]  # the unseen first
    table.loc[negatives.index[order[wanted:]], ["split", "note"]] = ["excluded", "not drawn"]
    return table


def _assemble(table: pd.DataFrame, extras: pd.DataFrame) -> pd.DataFrame:
    """Put the columns in their order; what the data came with under a name of ours gets `_given` behind it."""
    ours = table[[*COHORT_COLUMNS, *(name for name in FACTS if name in table and name not in extras)]]
    names: dict[str, str] = {}
    for name in extras.columns.intersection(ours.columns):
        names[name] = f"{name}_given"
        while names[name] in extras:  # a cohort that was written and read again
            names[name] += "_given"
    theirs = extras.loc[table.index].rename(columns=names)
    return pd.concat([ours, theirs], axis=1).reset_index(drop=True)


def _facts(table: pd.DataFrame, task: Task, rows: Rows, problems: ProblemLog) -> CohortInfo:
    root = rows.root or os.path.commonpath([os.path.dirname(path) for path in table["path"]])
    return CohortInfo(
        classes=task.classes,
        positive=task.positive,
        task=task.name,
        data=printable(rows.data),
        root=printable(str(root)),
        problems=tuple(problems.rows),
    )


def _log_cohort(cohort: Cohort) -> None:
    counts = summarise_cohort(cohort)
    for split, part in counts.groupby("split", sort=False):
        what = "note" if split == "excluded" else "label"
        sums = part.groupby(what, sort=False)["images"].sum()
        logger.info("%s: %s.", str(split).capitalize(), "; ".join(f"{name} {n}" for name, n in sums.items()))
    if cohort["in_pretraining"].any():
        logger.info(
            "Seen by the package's weights, they or another image of their patient: %d images. Never evaluated on.",
            int(cohort["in_pretraining"].sum()),
        )
    serious = [row for row in cohort.facts.problems if row["severity"] != "note"]
    if serious:
        logger.warning("Problems: %s.", count_kinds(serious))
    if not cohort.patients_known:
        logger.warning(
            "Not every image's patient is known; an image without one counts as a patient of its own. That the same "
            "patient is trained on and tested on cannot be excluded. Is there a column for patient_column?"
        )
