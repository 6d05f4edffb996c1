"""Read a data set into a cohort: one tidy, checked table with a row for each image."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from covid_fastai.data.checks import RowChecker
from covid_fastai.data.cohort import COHORT_COLUMNS, Cohort, CohortInfo, as_cohort
from covid_fastai.data.custom_tasks import make_task
from covid_fastai.data.derived_columns import DerivedColumns
from covid_fastai.data.dicom_rows import apply_headers
from covid_fastai.data.fingerprints import join_groups
from covid_fastai.data.labels import assign_labels, note_labels
from covid_fastai.data.layouts import Rows, read_rows
from covid_fastai.data.lung_tables import STORED, add_lungs
from covid_fastai.data.official_splits import read_official_split
from covid_fastai.data.patient_ids import join_patients, patients_from_paths, patients_of_pattern
from covid_fastai.data.patients import image_facts, patient_key, source_of_patient
from covid_fastai.data.pretraining_overlap import Manifest, mark_pretraining_overlap, read_package_manifests
from covid_fastai.data.problems import ProblemLog, count_kinds, no_row_left, printable
from covid_fastai.data.projections import (
    is_unstated,
    not_frontal,
    not_radiograph,
    read_projection,
    read_views,
    view_of_name,
)
from covid_fastai.data.readers import settle_readers
from covid_fastai.data.recipe_tables import apply_recipe
from covid_fastai.data.recipes import suggest_recipe
from covid_fastai.data.tasks import Task, fold_text
from covid_fastai.errors import DataError, UsageError
from covid_fastai.options import (
    CheckImages,
    ClassNames,
    ColumnNames,
    LabelClasses,
    NegativesPerPositive,
    OnProblem,
    PatientPattern,
    Readers,
    Seed,
    Switch,
    UncertainLabels,
    WorkerCount,
    checked,
)

__all__ = ["check_positive", "read_cohort", "summarise_cohort"]

logger = logging.getLogger("covid_fastai")

FACTS = ["sex", "age", "day"]
TRAINING = ("train", "valid")  # the parts that a split of this package may divide anew
# Names of the patients of Kermany's Normal images; OsiriX and Horos give the same names to exported images.
SHARED_NAMES = r"(IM|NORMAL2)-\d+$"
KERMANY_NAMES = r"(?i)person\d+_(bacteria|virus)_\d+"
IN_PRETRAINING = "in the pretraining data of the package's weights"  # the note of an excluded row of the official TEST


@checked
def read_cohort(
    data: str | Path | pd.DataFrame,
    *,
    recipe: str | None = None,
    task: str | Task = "covid",
    labels: LabelClasses | None = None,
    classes: ClassNames | None = None,
    positive: str | None = None,
    label_columns: ColumnNames | None = None,
    uncertain: UncertainLabels = "exclude",
    readers: Readers = "error",
    image_root: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    patient_pattern: PatientPattern | None = None,
    split_column: str | None = None,
    source_column: str | None = None,
    view_column: str | None = None,
    path_template: str | None = None,
    join: str | Path | None = None,
    on: str | None = None,
    encoding: str | None = None,
    negatives_per_positive: NegativesPerPositive | None = None,
    seed: Seed = 42,
    on_problem: OnProblem = "error",
    check_images: CheckImages = True,
    check_lungs: Switch = False,
    exclude_pretraining_overlap: Switch = True,
    workers: WorkerCount | None = None,
) -> Cohort:
    """Read a data set into a cohort, and check every row of it before training.

    No row is dropped without a record: rows that are not used stay in the cohort, with `split` excluded and the reason
    in `note`, and faulty rows are listed in `facts.problems`. Images of Cohen's collection that are not COVID-19 are
    excluded in every task, as a negative control: a classifier that predicts COVID-19 for them has learnt the source.

    Args:
        data: CoronaHack's folder as Kaggle lays it out, or its CSV; any other table (CSV, Excel, Parquet ..., as
            `covid_fastai.data.tables.read_table` reads them); a folder with one folder per class (or with such folders
            in train/ and test/), or with one table per split; or a DataFrame.
        recipe: The name of a public data set, whose files and columns are then known; `list_recipes` lists them.
            Options that are given replace those of the recipe.
        task: `"covid"`, `"pneumonia"`, `"etiology"`, or a `Task`.
        labels: The class of labels of the data that the task does not know, such as `{"Lung_Opacity": "COVID-19"}`; an
            empty class excludes the label. `*` and `?` are wildcards. `data.custom_tasks.make_task` describes the task
            of `labels`, `classes`, `positive` and `label_columns`.
        classes: The classes of a task of your own, the negative one first.
        positive: The positive class. Without `classes`, the task separates it from images without a finding.
        label_columns: The columns with one finding each: 1 (also 1.0, True, yes), 0, -1 for uncertain, or blank for not
            mentioned. An image is of the class whose column is 1.
        uncertain: What -1 and blank mean where they decide the class: `"exclude"` excludes the image, `"positive"` and
            `"negative"` count -1 as 1 or as 0, and blank as 0.
        readers: How rows of one image with different labels are settled: `"error"` reports them, `"agreement"` excludes
            the image, `"majority"` takes the most frequent label and excludes ties. Rows with equal labels are one row.
        image_root: The folder that the file names in a CSV are relative to; None for the folder of the CSV.
        path_column: The column with the image's file; None, as for all columns, to find it by its usual names.
        label_column: The column with the label.
        patient_column: The column with the patient. Where it states none, the patient is read from the path: by
            `patient_pattern`, by the forms of CheXpert, BIDS and MIMIC-CXR where all paths have one, or from
            CoronaHack's file names. Any other image counts as a patient of its own, and `patient_known` is False. A
            column `patient_known` of the data, such as a cohort has, is respected.
        patient_pattern: A regular expression for the paths as the data write them; its first group is the patient, and
            several groups are joined by "/".
        split_column: The column with train, valid or test. None to find the official split in columns such as `split`
            and `is_valid`, in lists such as `test_list.txt` beside the table, and in folders of the paths.
        source_column: The column with the hospital or collection.
        view_column: The column with the projection (PA, AP, L ...); None for all columns that usually state it.
        path_template: The file of each image, made from columns of its row, such as
            `"files/p{subject_id:.2}/p{subject_id}/s{study_id}/{dicom_id}.jpg"`; in place of `path_column`.
        join: Another table, whose columns are added to the rows by the key `on`. Each row has one partner at most; rows
            without one are counted. A column of both tables keeps the values of the data.
        on: The key of `join`: a column of both tables, or `"LEFT=RIGHT"` for one of the data and one of the other
            table; several with commas between.
        encoding: The encoding of the table, where it is neither UTF-8 nor marked as UTF-16.
        negatives_per_positive: Images of the negative class that are sampled for each image of the positive class,
            both of the training rows; the rest is excluded as "not drawn". Images are sampled, not patients, as in the
            article; images outside the pretraining data of the package's weights come first. None for all.
        seed: Seed of that sample, which does not depend on the order of the rows.
        on_problem: `"error"` raises when rows are faulty, `"skip"` drops them.
        check_images: Whether to open every image, which finds unreadable files and duplicate images, and reads the view
            from DICOM headers where the data state none (a header of another view, modality or part of the body
            excludes the image, as text that is burned in does); or the size of a random sample, which estimates the
            number of unreadable files and finds duplicates and headers within the sample only. The search for
            duplicates compares every two images; among 6,000 radiographs it takes about half a minute of a core.
        check_lungs: Whether to segment the lungs of every image that is used, about 15 ms of a core each, and to add
            the columns `lung_quality`, `lung_area`, `lung_left`, `lung_top`, `lung_right` and `lung_bottom`
            (`measure_lungs` describes them). `data.lung_tables.count_lungs` counts them by class and source.
        exclude_pretraining_overlap: Whether to exclude the images that the package's own weights were trained on from
            evaluation. This holds for any choice of weights, so that all are compared on the same images. Such an
            image, and any other image of its patient, is `in_pretraining`: a split keeps it in training, and in the
            official TEST it is excluded. If no image is opened, only names and patients are compared. False marks no
            image; use it with other weights, or none.
        workers: Threads that open images; None for a number that fits the machine.

    Returns:
        One row per image, with a RangeIndex, the columns that `Cohort` lists and all columns of the data; a column of
        the data whose name is taken gets the suffix `_given`. `split` is train, valid (the data's own), test or
        excluded. `in_pretraining` is False in all rows with `exclude_pretraining_overlap=False`. `facts` has the
        task, its classes, the positive class and the problems.

    Raises:
        DataError: The data cannot be read, or rows are faulty; `details` has one dictionary for each fault.
        ModelFormatError: The manifest of the pretraining data is damaged.
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
    if recipe is not None:
        given = {name: value for name, value in locals().items() if name not in ("data", "recipe")}
        recipe_data, options = apply_recipe(recipe, data, given)
        return read_cohort(cast(Any, recipe_data), **options)
    task = make_task(task, labels=labels, classes=classes, positive=positive, label_columns=label_columns)
    if negatives_per_positive is not None:
        check_positive(task)
    manifests = read_package_manifests() if exclude_pretraining_overlap else []
    problems = ProblemLog()
    derived = DerivedColumns(path_column=path_column, path_template=path_template, join=join, on=on, encoding=encoding)
    columns = {"path": derived.path_column, "label": label_column, "patient": patient_column}
    columns |= {"split": split_column, "source": source_column, "view": view_column}
    with suggest_recipe(data):
        rows = read_rows(
            data,
            task=task,
            columns=columns,
            label_columns=label_columns,
            derived=derived,
            image_root=image_root,
            encoding=encoding,
            problems=problems,
        )
    rows.table["view"] = read_views(rows.table["view"], rows.extras if view_column is None else rows.extras[[]])
    table = _identify(rows, patient_pattern, problems)
    table = assign_labels(table, rows.extras, task, label_columns=label_columns, positive=positive, uncertain=uncertain)
    if labels or classes or positive or label_columns:
        note_labels(table, task, problems, label_columns=label_columns, uncertain=uncertain)
    table = _exclude(table, task)
    table = settle_readers(table, readers)
    table = _assign_split(table, rows, task, problems, split_column=split_column)
    table, duplicates = _check(
        table,
        task,
        rows.root,
        problems,
        check_images=check_images,
        seed=seed,
        compare_pretraining=bool(manifests),
        workers=workers,
    )
    if on_problem == "error":
        with suggest_recipe(data):
            problems.raise_errors(rows.data)  # guard: raise_errors
    if table.empty:
        raise no_row_left(rows.data, problems.errors())
    table["group"] = join_groups(table["patient"], duplicates)
    table["in_pretraining"] = _mark_pretraining(table, manifests)
    table = _exclude_pretraining_from_test(table, problems)
    table = _exclude_test_patients_from_training(table, problems)
    if negatives_per_positive is not None:
        table = _sample_negatives(table, task, ratio=negatives_per_positive, seed=seed)
    if check_lungs:
        table = add_lungs(table, workers=workers)
    cohort = Cohort(_order_columns(table, rows.extras), facts=_cohort_info(table, task, rows, problems))
    _log_cohort(cohort)
    return cohort


def summarise_cohort(cohort: pd.DataFrame) -> pd.DataFrame:
    """Count a cohort's images and patients by split, label and, for excluded rows, reason.

    Args:
        cohort: What `read_cohort` returned, split or not.

    Returns:
        A tidy table with `split` (train, valid, test, excluded), `label` (for a row without a class of the task the
        finding, or "other findings" beyond the 20 most frequent), `note`, `images` and `patients`, in the order of the
        splits and classes.

    Examples:
        >>> summarise_cohort(cohort)[["split", "label", "patients"]].head(3)
           split     label  patients
        0  train    Normal         9
        1  train  COVID-19        13
        2  valid    Normal         5
    """
    cohort = as_cohort(cohort)
    findings = cohort.loc[cohort["label"] == "", "finding"]
    frequent = set(findings.value_counts().index[:20])  # lists of labels have hundreds of combinations
    label = cohort["label"].copy()
    label[findings.index] = findings.where(findings.isin(frequent), "other findings")
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
    """Raise unless negative images can be sampled in proportion to the positive images of a task.

    Args:
        task: The task.

    Raises:
        UsageError: It has no positive class, or more than two classes.
    """
    if task.positive is None or len(task.classes) != 2:
        raise UsageError(
            f"negatives_per_positive needs a task of two classes, one of them positive; {task.name!r} is not one.",
            hint="Omit it, or use balance= in training.",
        )


def _identify(rows: Rows, pattern: str | None, problems: ProblemLog) -> pd.DataFrame:
    """Return the rows with patient and source: from the columns, else from the paths and CoronaHack's file names."""
    table = rows.table.copy()
    base = table["name"].map(lambda name: os.path.basename(str(name).replace("\\", "/")))
    key = base.map(patient_key).fillna("")
    key = key.mask(key.str.match(SHARED_NAMES) & ~_has_kermany_names(base, rows), "")
    for column in ("patient", "source"):
        table[column] = table[column].map({text: "" if is_unstated(text) else text for text in table[column].unique()})
    given = table["patient"] != ""
    if "patient_known" in rows.extras:  # a cohort that was saved: file names stand for unknown patients
        given &= rows.extras["patient_known"].astype(str).str.casefold() != "false"
    named = patients_of_pattern(table["name"], pattern, problems) if pattern else patients_from_paths(table["name"])
    table["patient"] = join_patients(table["patient"].where(given, ""), named, problems)
    given = table["patient"] != ""
    table["patient_known"] = given | (key != "")
    # The file name; with its folder where several files have the same name (COVID/1.png, Normal/1.png).
    own_name = base.where(~base.duplicated(keep=False), table["name"].map(os.path.normpath))
    table["patient"] = table["patient"].where(given, key.where(key != "", own_name))
    table["patient"] = _patients_of_sources(table["patient"], table["source"].where(given, ""))
    by_name = key.map(source_of_patient)
    table["source"] = table["source"].where(table["source"] != "", by_name)
    return _join_facts(table, base.where(table["source"].map(fold_text) == "cohen", ""))


def _has_kermany_names(base: pd.Series, rows: Rows) -> pd.Series:
    """Return for each file name whether a name that other programs also write, such as `IM-0001-0001`, is Kermany's.

    It is in CoronaHack's own layout, and in data with names that only Kermany's files have (`person1_virus_6`). A name
    of several files is not.
    """
    known = rows.coronahack or bool(base.str.match(KERMANY_NAMES).any())
    return pd.Series(known, index=base.index) & ~base.duplicated(keep=False)


def _patients_of_sources(patient: pd.Series, source: pd.Series) -> pd.Series:
    """Return the patients, as `<source>/<patient>` where several sources use the same patient number."""
    if source[source != ""].nunique() < 2:
        return patient
    sources = source.mask(source == "").groupby(patient).transform("nunique")
    return patient.where((sources < 2) | (source == ""), source + "/" + patient)


def _join_facts(table: pd.DataFrame, names: pd.Series) -> pd.DataFrame:
    """Add finding, sex, age and day from Cohen's collection, and the view where the data state none."""
    facts = image_facts(names)
    table["cohen_finding"] = facts["finding"]
    table["view"] = table["view"].where(table["view"] != "", facts["view"].map(read_projection))
    table["view"] = table["view"].where(table["view"] != "", table["name"].map(view_of_name))
    if (facts["finding"] != "").any():
        table[FACTS] = facts[FACTS]
    return table


def _exclude(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Add the reasons of exclusions beside the label; later reasons replace earlier ones."""
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
    return table


def _assign_split(
    table: pd.DataFrame, rows: Rows, task: Task, problems: ProblemLog, *, split_column: str | None
) -> pd.DataFrame:
    """Assign each row its part of the official split; without one, every row is in training."""
    official = read_official_split(table, rows.extras, file=rows.file, column=split_column, problems=problems)
    table["unknown_split"], given = official["unknown"], official["split"]
    note = official["note"].mask((given == "excluded") & (official["note"] == ""), "excluded in the data")
    table["note"] = table["note"].where(table["note"] != "", note)
    test = (given == "test") & (table["note"] == "")
    absent = [name for name in task.classes if name not in set(table.loc[test, "label"])]
    if test.any() and absent and not task.official_test:
        table.loc[test, "note"] = f"official TEST: holds no {' and no '.join(absent)}"
    table["split"] = given.mask(table["note"] != "", "excluded")
    return table


def _check(
    table: pd.DataFrame,
    task: Task,
    root: Path | None,
    problems: ProblemLog,
    *,
    check_images: bool | int,
    seed: int,
    compare_pretraining: bool,
    workers: int | None,
) -> tuple[pd.DataFrame, pd.Series]:
    """Check all rows, and return the usable rows with the groups of duplicate images."""
    checker = RowChecker(table, problems)
    checker.check_labels(task)
    checker.check_files(root)
    checker.check_repeats()
    limit = len(table) if check_images is True else int(check_images)
    if limit:
        duplicates = checker.check_images(workers=workers, most=limit, seed=seed)
        table = apply_headers(
            table.assign(hashes=checker.hashes, keypoints=checker.keypoints),
            checker.headers,
            frontal_only=task.frontal_only,
            report=checker.report,
        )
    else:
        duplicates = pd.Series(range(len(table)), index=table.index)
    if limit < len(table):
        opened = f"{limit:,} of {len(table):,} images were opened" if limit else "no image was opened"
        others = " among the others" if limit else ""
        comparison = "; the pretraining data were compared by name and patient only" if compare_pretraining else ""
        problems.add(
            "not_opened",
            severity="note",
            reason=f"{opened}: there was no search for unreadable files and duplicates, and no DICOM header was "
            f"read{others}{comparison}",
            remedy="Set check_images=True.",
        )
    # guard: faulty_rows
    usable = table.drop(index=[*(checker.faulty | checker.repeated | set(table.index[table["unknown_split"]]))])
    return usable, duplicates[usable.index]


def _mark_pretraining(table: pd.DataFrame, manifests: Sequence[Manifest]) -> pd.Series:
    """Return for each row whether any image of its group is in the pretraining data."""
    overlap = mark_pretraining_overlap(table, table.get("hashes"), manifests, keypoints=table.get("keypoints"))
    return table["group"].isin(set(table.loc[overlap, "group"]))


def _exclude_pretraining_from_test(table: pd.DataFrame, problems: ProblemLog) -> pd.DataFrame:
    """Exclude test images of the pretraining data. Must run before `_exclude_test_patients_from_training`."""
    tested = table["in_pretraining"] & (table["split"] == "test")
    trained = int((table["in_pretraining"] & table["split"].isin(TRAINING)).sum())
    if trained or tested.any():
        excluded = f"; {int(tested.sum())} images of the official TEST are excluded" if tested.any() else ""
        problems.add(
            "in_pretraining",
            severity="note",
            reason=f"{trained} training images are of patients in the pretraining data of the package's weights: they "
            f"are used for training and never for evaluation{excluded}",
            remedy="Nothing; exclude_pretraining_overlap=False evaluates them, with weights=None or 'imagenet'.",
        )
    table.loc[tested, ["split", "note"]] = ["excluded", IN_PRETRAINING]
    return table


def _exclude_test_patients_from_training(table: pd.DataFrame, problems: ProblemLog) -> pd.DataFrame:
    """Exclude training images whose patient, or a duplicate of which, is in the test set."""
    tested = set(table.loc[table["split"] == "test", "group"])
    both = table["split"].isin(TRAINING) & table["group"].isin(tested)
    for index in table.index[both]:
        row = table.loc[index]
        problems.add(
            "train_and_test",
            row=row["row"],
            path=row["path"],
            severity="warning",
            reason=f"patient {row['patient']} is in the test set too; this training image is excluded",
            remedy="Assign all images of a patient to one split.",
        )
    table.loc[both, ["split", "note"]] = ["excluded", "its patient is in the test set"]  # guard: tested_patient
    return table


def _sample_negatives(table: pd.DataFrame, task: Task, *, ratio: float, seed: int) -> pd.DataFrame:
    """Sample images of the negative class among the training rows; those outside the pretraining data come first."""
    train = table[table["split"].isin(TRAINING)]
    positives = int((train["label"] == task.positive).sum())
    negatives = train[train["label"] != task.positive].sort_values("path")
    wanted = max(1, round(ratio * positives))
    if positives == 0:
        raise DataError(
            f"There is no {task.positive!r} image, so negatives_per_positive={ratio:g} cannot be applied.",
            hint="Omit negatives_per_positive, or check the labels.",
        )
    if wanted > len(negatives):
        logger.warning(
            "negatives_per_positive=%g needs %d images; there are %d, and all are used.", ratio, wanted, len(negatives)
        )
        return table
    order = np.random.default_rng(seed).permutation(len(negatives))
    order = order[np.argsort(negatives["in_pretraining"].to_numpy()[order], kind="stable")]
    table.loc[negatives.index[order[wanted:]], ["split", "note"]] = ["excluded", "not drawn"]
    return table


def _order_columns(table: pd.DataFrame, extras: pd.DataFrame) -> pd.DataFrame:
    """Order the columns; a column of the data that has the name of a cohort column gets the suffix `_given`."""
    lungs = [name for name in STORED if name in table]
    cohort_columns = table[[*COHORT_COLUMNS, *lungs, *(name for name in FACTS if name in table and name not in extras)]]
    names: dict[str, str] = {}
    for name in extras.columns.intersection(cohort_columns.columns):
        names[name] = f"{name}_given"
        while names[name] in extras:  # a cohort that was saved and read again
            names[name] += "_given"
    given_columns = extras.loc[table.index].rename(columns=names)
    return pd.concat([cohort_columns, given_columns], axis=1).reset_index(drop=True)


def _cohort_info(table: pd.DataFrame, task: Task, rows: Rows, problems: ProblemLog) -> CohortInfo:
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
    is_split = cohort["split"].isin(["valid", "test"]).any()  # rows without a split are called train
    for split, rows in counts.groupby("split", sort=False):
        column = "note" if split == "excluded" else "label"
        sums = rows.groupby(column, sort=False)["images"].sum()
        title = str(split).capitalize() if is_split or split == "excluded" else "Images"
        logger.info("%s: %s.", title, "; ".join(f"{n} {name}" for name, n in sums.items()))
    if cohort["in_pretraining"].any():
        logger.info(
            "In the pretraining data of the package's weights, directly or by patient: %d images. Never evaluated on.",
            int(cohort["in_pretraining"].sum()),
        )
    serious = [row for row in cohort.facts.problems if row["severity"] != "note"]
    if serious:
        logger.warning("Problems: %s.", count_kinds(serious))
    if not cohort.patients_known:
        logger.warning(
            "The patient of some images is not known; each of these images counts as a patient of its own. The same "
            "patient may be in training and in test. Set patient_column if the data have such a column, or "
            "patient_pattern if the paths name the patient."
        )
