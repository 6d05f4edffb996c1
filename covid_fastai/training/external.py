"""External validation: evaluate a trained model on other hospitals' images, with its threshold unchanged."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from covid_fastai.audit.audit import audit_run
from covid_fastai.audit.baselines import predict_shortcuts
from covid_fastai.config import TrainConfig
from covid_fastai.data.cached_regions import count_whole, measure_crops, name_whole
from covid_fastai.data.custom_tasks import make_task
from covid_fastai.data.fingerprints import fingerprint_images, has_copy
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.pretraining_overlap import (
    Manifest,
    mark_pretraining_overlap,
    patients_not_compared,
    read_manifest,
    read_package_manifests,
)
from covid_fastai.data.projections import fold_source, is_unstated
from covid_fastai.data.pseudonymise import check_key, number_data, patient_manifest
from covid_fastai.data.recipe_tables import task_of_config
from covid_fastai.data.tables import as_rows
from covid_fastai.data.tasks import Task
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.comparison import compare
from covid_fastai.evaluation.formatting import ResultDisplay, format_interval, format_metric
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    UNKNOWN_PATIENTS,
    class_columns,
    has_label_and_prediction,
)
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import make_folder, write_json
from covid_fastai.model.bundle import load_model
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import LabelClasses, NResamples, Seed, checked
from covid_fastai.reporting.documents import write_documents
from covid_fastai.reporting.report import render_report

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = ["Validation", "evaluate_sources", "validate"]

logger = logging.getLogger("covid_fastai")

COLUMNS = ["images of", "comparison", "metric", "value", "low", "high", "n"]
SAME, CONFOUNDED, ONE_CLASS = "same source", "each class from another source", "one class"
NOT_STATED, TRAINED = "source not stated", "source of the training"
DIFFERENCES = ["images of", "difference", "low", "high"]
METRICS = ("auc", "sensitivity", "specificity")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Validation(ResultDisplay):
    """The external validation of a model: its metrics on other hospitals' images.

    Attributes:
        table: One row per metric: `images of` (the sources), `comparison` ("same source"; "source of the training" if
            the model was trained on images of this source, which is no other hospital; "source not stated" if images
            of both classes may come from different hospitals; "each class from another source", so that the model
            may separate the sources and not the findings; or "one class"), `metric`, `value`, `low` and `high` (95%
            interval), `n` patients.
        predictions: The predictions table that the metrics were computed from.
        thumbnail: The same metrics for a logistic regression on 16 x 16 thumbnails of the same training images, which
            show almost nothing of the lungs; empty if those images are missing.
        differences: The AUC of the model minus that of the thumbnail on the same patients, one row per source with both
            classes: `images of`, `difference`, `low` and `high` (95%, paired); empty if those images are missing.
        overlap: The excluded rows: the model was trained on them, or on another image of the patient.
        threshold: The threshold chosen at training; None for more than two classes.
        unknown_patients: Whether an image has no patient identifier; each such image counts as one patient.
        not_compared: Number of images whose patients could not be compared with the training patients: their
            identifiers are numbers without a stated source, which other hospitals use too. The images were compared.
        hashed_only: Number of training images whose files are gone. Copies of them are recognised by their hashes and
            keypoints, but not all of those that are cropped or turned.
        whole_images: For a model that sees crops to the lungs: for each class the number of images in which the lungs
            were not found, so that the model saw them whole, and the number of all; empty for other models.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    thumbnail: pd.DataFrame
    differences: pd.DataFrame
    overlap: pd.DataFrame
    threshold: float | None
    unknown_patients: bool
    not_compared: int = 0
    hashed_only: int = 0
    whole_images: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def summary(self) -> pd.DataFrame:
        """Return the metrics as text."""
        shown = self.table[["images of", "comparison", "metric"]].copy()
        shown["value"] = [format_metric(value) for value in self.table["value"]]
        shown["95% interval"] = [format_interval(*bounds) for bounds in self.table[["low", "high"]].to_numpy()]
        if len(self.thumbnail):
            key = ["images of", "comparison", "metric"]
            baseline = self.table[key].merge(self.thumbnail, how="left", on=key)["value"]
            shown["thumbnail"] = [format_metric(value) for value in baseline]
        shown["n"] = [f"{n} patients" for n in self.table["n"]]
        return shown

    def notes(self) -> list[str]:
        """Return the notes on the metrics, one sentence or more each."""
        excluded = len(self.overlap)
        notes = [
            f"{excluded} images were excluded: the model was trained on them, or on another image of their patient."
            if excluded
            else "No image had to be excluded: the model was trained on none of them, and on none of their patients."
        ]
        if self.not_compared:
            notes.append(
                f"The patients of {self.not_compared} images were not compared with the training patients: their "
                "identifiers are numbers without a stated source. The images were compared."
            )
        if self.hashed_only:
            notes.append(
                f"{self.hashed_only} training images are no longer there. Not all cropped or turned copies of them are "
                "recognised."
            )
        if self.whole_images:
            notes.append(
                f"The model sees whole images where the lungs were not found: {name_whole(self.whole_images)}. If "
                "this is more frequent in one class, it is a shortcut."
            )
        if (self.table["comparison"] == TRAINED).any():
            notes.append(
                "Source of the training: the model was trained on images of this source, which is no other hospital. "
                "These metrics meet no condition of the verdict."
            )
        if (self.table["comparison"] == NOT_STATED).any():
            notes.append(
                "Source not stated: whether images of both classes come from one hospital is not known, so that "
                "confounding is not excluded. These metrics meet no condition of the verdict."
            )
        if (self.table["comparison"] == CONFOUNDED).any():
            notes.append(
                "Each class from another source: any difference between the sources separates the "
                "classes, so these metrics are no evidence for a finding. They are not pooled with others."
            )
        if self.unknown_patients:
            notes.append(UNKNOWN_PATIENTS)
        return [*notes, RESEARCH_USE]

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.summary(), *self.notes())

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as values that JSON can hold."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("table", "thumbnail")}
        facts = {"overlap": len(self.overlap), "not_compared": self.not_compared, "threshold": self.threshold}
        facts["whole_images"] = {label: list(counts) for label, counts in self.whole_images.items()}
        same, unknown = self.same_source(), self.not_stated()
        return {**tables, "same_source": same, "not_stated": unknown, **facts}

    def same_source(self) -> list[dict[str, Any]]:
        """Return the AUC in each source that has images of both classes, as the audit's verdict requires it.

        Returns:
            One dictionary per source: `source`, `value`, `low`, `high`, `n`, `thumbnail` (the AUC of the thumbnail
            baseline), and the paired `difference` to it with `difference_low` and `difference_high` (these four are
            None if the thumbnail could not be evaluated).
        """
        return self._results_by_source(SAME)

    def not_stated(self) -> list[dict[str, Any]]:
        """Return such results for images of both classes whose source is not stated; they decide nothing."""
        return self._results_by_source(NOT_STATED)

    def _results_by_source(self, comparison: str) -> list[dict[str, Any]]:
        model, thumbnail = (
            as_rows(table[table["comparison"].eq(comparison) & table["metric"].eq("auc")])
            for table in (self.table, self.thumbnail)
        )
        thumbnails = {row["images of"]: row["value"] for row in thumbnail}
        differences = {row["images of"]: row for row in as_rows(self.differences)}
        results = []
        for row in model:
            source = row["images of"]
            paired = differences.get(source, {})
            bounds = {f"difference_{bound}": paired.get(bound) for bound in ("low", "high")}
            results.append(
                {
                    "source": source,
                    **{name: row[name] for name in ("value", "low", "high", "n")},
                    "thumbnail": thumbnails.get(source),
                    "difference": paired.get("difference"),
                    **bounds,
                }
            )
        return results


@checked
def validate(
    model: str | Path | Run,
    data: str | Path | pd.DataFrame,
    *,
    labels: LabelClasses | None = None,
    source: str | None = None,
    exported: str | Path | None = None,
    keep: bool = True,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
    **reading: Any,
) -> Validation:
    """Evaluate a run's model on other data with its threshold unchanged, without images that it was trained on.

    Metrics are computed by source. A source with images of both classes is a "same source" comparison, or a "source of
    the training", which is no other hospital, if the model was trained on images of this source. Images of both classes
    without a stated source are "source not stated". Sources that have one class each are compared together as
    "confounded", and never pooled with others.

    Args:
        model: A run's folder, as `train_classifier` or `cross_validate` wrote it, or the result of `read_run`. For a
            cross-validation, the probabilities of its models are averaged.
        data: As in `read_cohort`; every row whose label has a class is used, whatever its split.
        labels: The model's class for labels of the data that the task does not know, such as
            `{"positive": "COVID-19"}`, as in `read_cohort`; a label with the class "" is excluded.
        source: The hospital or collection of all images without a stated source; None if it is unknown, so that
            images of both classes may come from different ones.
        exported: The folder of an export of the run's model (`export_model`), which is evaluated with its own threshold
            and temperature; None for the model of the run with the run's threshold.
        keep: Write the result into the run's folder, as `external/<name of the data>-<six digits>.json`, and update
            the run's verdict, documents and report.
        n_resamples: Number of bootstrap resamples, 100 or more.
        seed: Seed of the bootstrap.
        **reading: More options of `read_cohort`, such as `patient_column`. `positive` says that 1 in a column of 0 and
            1 means the positive class, and must be that of the model.

    Returns:
        The validation.

    Raises:
        DataError: The folder is not a run, or has no manifest of its training images; the data are faulty; or no image
            remains without overlap.
        UsageError: A label is mapped to a class that the model does not have, or `exported` is not an export of this
            run's model.
        ModelFormatError: The model cannot be used.
    """
    run = model if isinstance(model, Run) else read_run(model)
    task = _task(run, labels, reading.get("positive"))
    folders = [run.folder.fold(number) for number in range(run.config.get("folds") or 0)] or [run.folder]
    # before the data, which take longer to read
    learners = [load_model(folder.model) for folder in folders] if exported is None else [_load_export(run, exported)]
    manifests = _manifests(run, learners[0].facts.weights.name)
    cohort = read_cohort(data, task=task, exclude_pretraining_overlap=False, **reading)
    if source is not None:
        cohort = cohort.assign(source=cohort["source"].where(~cohort["source"].map(is_unstated), source))
    cohort = cohort[cohort["split"] != "excluded"]
    overlap, hashed_only = _find_overlap(run, cohort, manifests)
    rows = cohort[~overlap].assign(split="valid")
    if rows.empty:
        raise DataError(
            "No image remains: the model was trained on all of them, or on other images of their patients.",
            hint="Validate on data of another hospital.",
        )
    logger.info(
        "%d of %d images were excluded: the model was trained on them, or on another image of their patient.",
        overlap.sum(),
        len(cohort),
    )
    predictions = _mean_predictions([predict(learn, rows) for learn in learners])
    threshold, positive = run.metrics.threshold, run.metrics.positive
    if exported is not None and learners[0].facts.bundle.threshold is not None:
        threshold = learners[0].facts.bundle.threshold
    options = {"positive": positive, "threshold": threshold or 0.5, "n_resamples": n_resamples, "seed": seed}
    options["training_sources"] = set(run.cohort.loc[run.cohort["split"].isin(["train", "valid"]), "source"])
    table, thumbnail = evaluate_sources(predictions, **options), _predict_thumbnail(run, rows)
    baseline, differences = pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=DIFFERENCES)
    if thumbnail is not None:
        baseline = evaluate_sources(thumbnail, **options)
        differences = _compare_sources(predictions, thumbnail, options)
    unknown = not cohort.patients_known
    not_compared = int(patients_not_compared(rows).sum())
    counts: dict[str, Any] = {"not_compared": not_compared, "hashed_only": hashed_only}
    bundle = learners[0].facts.bundle
    if bundle.region != "frame":  # guard: external_crops
        crops = measure_crops(rows["path"], image_size=bundle.image_size, region=bundle.region)
        counts["whole_images"] = count_whole(crops, rows["label"])
    validation = Validation(table, predictions, baseline, differences, cohort[overlap], threshold, unknown, **counts)
    if keep:
        name = "rows" if isinstance(data, pd.DataFrame) else _stored_name(run, Path(data).resolve())
        folder = make_folder(run.folder.external)
        write_json(folder / f"{name}.json", validation.to_dict())
        run.folder.log("validated", data=name, images=len(rows))
        _update_run(run)
    return validation


def _update_run(run: Run) -> None:
    """Judge the run again with its external results, and write its documents and its report again."""
    if run.folder.audit.is_file():
        try:
            audit_run(run.path)
        except DataError as error:  # the images of the training may be gone; the report says that its verdict is older
            logger.warning("The verdict does not include these results yet. %s", error)
    write_documents(run)
    if run.folder.report.is_file():
        render_report(run.path)


def evaluate_sources(
    predictions: pd.DataFrame,
    *,
    positive: str | None,
    threshold: float = 0.5,
    n_resamples: int = 2000,
    seed: int = 0,
    training_sources: Collection[str] = (),
) -> pd.DataFrame:
    """Compute the metrics by source, and state for each whether class and source are confounded.

    Args:
        predictions: A predictions table with `source`; images without a stated source are evaluated together.
        positive: The positive class; None for more than two classes.
        threshold: The positive class is predicted at this probability or above.
        n_resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
        training_sources: The sources of the images that the model was trained on.

    Returns:
        `Validation.table`.
    """
    options = {"positive": positive, "threshold": threshold, "n_resamples": n_resamples, "seed": seed}
    predictions, known = _with_named_sources(predictions), set(map(fold_source, training_sources))
    classes = predictions.groupby("source")["label"].agg(lambda labels: frozenset(labels))
    rows = []
    for source, source_classes in classes.items():
        group = predictions[predictions["source"] == source].reset_index(drop=True)
        comparison = TRAINED if fold_source(source) in known else SAME  # guard: training_source
        comparison = ONE_CLASS if len(source_classes) == 1 else NOT_STATED if is_unstated(source) else comparison
        rows += _metric_rows(evaluate(group, **options), str(source), comparison)
    single = classes[classes.map(len) == 1]
    if single.explode().nunique() > 1:
        group = predictions[predictions["source"].isin(single.index)].reset_index(drop=True)
        rows += _metric_rows(evaluate(group, **options), " + ".join(single.index), CONFOUNDED)
    return pd.DataFrame(rows, columns=COLUMNS)


def _with_named_sources(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return predictions whose source is "unknown" where none is stated."""
    stated = ~predictions["source"].map(is_unstated)
    return predictions.assign(source=predictions["source"].where(stated, "unknown"))


def _metric_rows(result: Evaluation, source: str, comparison: str) -> list[dict[str, Any]]:
    """Return the rows of `Validation.table` for one comparison; a metric that cannot be computed (NaN) has no row."""
    rows = [result.row(metric) for metric in (METRICS if result.positive else ("auc", "accuracy"))]
    group = {"images of": source, "comparison": comparison}
    columns = ("metric", "value", "low", "high", "n")
    return [{**group, **{name: row[name] for name in columns}} for row in rows if row["value"] == row["value"]]


def _stored_name(run: Run, path: Path) -> str:
    """Return the name of a data set in a run; in a pseudonymised run it is a number."""
    return number_data(run.folder, str(path)) if run.is_pseudonymised else _unique_name(path)


def _unique_name(path: Path) -> str:
    """Return a unique name of a data set: the name of its folder, and six hexadecimal digits of a hash of its path."""
    folder = path if path.is_dir() else path.parent
    return f"{folder.name}-{zlib.crc32(os.fsencode(path)) & 0xFFFFFF:06x}"


def _mean_predictions(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average the probabilities of several models into one predictions table."""
    mean, classes = tables[0].copy(), class_columns(tables[0])
    columns = [PROBABILITY + name for name in classes]
    mean[columns] = np.mean([table[columns].to_numpy() for table in tables], axis=0)
    missing = mean[columns].isna().any(axis=1)  # a NaN of any model gives a NaN mean
    mean["status"] = mean["status"].mask(missing & mean["status"].eq("ok"), "failed")
    most_probable = mean[columns].fillna(-1).to_numpy().argmax(axis=1)
    return mean.assign(prediction=np.where(missing, "", np.array(classes, dtype=object)[most_probable]))


def _predict_thumbnail(run: Run, rows: pd.DataFrame) -> pd.DataFrame | None:
    """Predict the same rows with the thumbnail baseline; None if training images are missing."""
    trained = run.cohort[run.cohort["split"] == "train"]
    exists = trained["path"].map(os.path.isfile)
    if not exists.all():
        logger.warning("%d training images are missing: the thumbnail baseline is not computed.", (~exists).sum())
        return None
    return predict_shortcuts(trained, rows, baselines=("thumbnail",))["thumbnail"]


def _compare_sources(model: pd.DataFrame, thumbnail: pd.DataFrame, options: Mapping[str, Any]) -> pd.DataFrame:
    """Return `Validation.differences`: the model minus the thumbnail within each source of both classes."""
    options = {name: options[name] for name in ("positive", "n_resamples", "seed")}
    # a class without a readable image in either table has no AUC to compare
    both = [table[has_label_and_prediction(table)] for table in (thumbnail, model)]
    rows = []
    for source, group in _with_named_sources(both[1]).groupby("source"):
        others = both[0][both[0]["path"].isin(group["path"])].reset_index(drop=True)
        if others["label"].nunique() < 2 or group["label"].nunique() < 2:
            continue
        row = compare(others, group.reset_index(drop=True), names=["thumbnail", "model"], **options).row("auc")
        rows.append({"images of": source, **{name: row[name] for name in DIFFERENCES[1:]}})
    return pd.DataFrame(rows, columns=DIFFERENCES)


def _task(run: Run, labels: dict[str, str] | None, positive: str | None) -> Task:
    """Return the run's task with the given labels added, and without exclusions by source."""
    config = TrainConfig.from_dict(run.config["config"])
    task = task_of_config(config)
    unknown = sorted(set((labels or {}).values()) - {*task.classes, ""})
    if unknown:
        raise UsageError(f"The model has no class {unknown[0]!r}.", hint=f"Its classes: {', '.join(task.classes)}.")
    if positive not in (None, task.positive):
        raise UsageError(
            f"positive={positive!r} is not the positive class of the model, {task.positive!r}.", hint="Omit it."
        )
    return dataclasses.replace(make_task(task, labels=labels), excluded_sources={}, official_test=True)


def _load_export(run: Run, exported: str | Path) -> Learner:
    """Load an export of a run's model; the manifest of the training images shows that it is of this run."""
    if run.config.get("folds"):
        raise UsageError(
            f"{run.path} is a cross-validation, whose models are evaluated together.",
            hint="Leave out `exported`, or give the run of one model.",
        )
    learn = load_model(exported)
    manifest = run.folder.training_manifest
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
    if learn.facts.bundle.training_manifest != digest:  # guard: foreign_export
        raise UsageError(
            f"{exported} is not an export of the model of {run.path}: their training images differ.",
            hint="Give the run that the model was exported from.",
        )
    return learn


def _manifests(run: Run, weights: str) -> list[Manifest]:
    """Return the manifests of the images that the model and its initial weights were trained on."""
    file = run.folder.training_manifest
    if not file.is_file():
        raise DataError(
            f"The run {run.path} has no manifest of the images that its model was trained on.", hint="Train it again."
        )
    if run.is_pseudonymised:
        check_key(run.folder)  # the hashes of the patients are there
    manifests = [read_manifest(path) for path in (file, patient_manifest(run.folder)) if path.is_file()]
    if weights == "cxr":
        manifests += read_package_manifests()
    return manifests


def _find_overlap(run: Run, cohort: pd.DataFrame, manifests: Sequence[Manifest]) -> tuple[pd.Series, int]:
    """Find the rows that the model was trained on.

    A manifest contains the patients, the hashes and the keypoints of the training images. More of the cropped and
    turned copies are found by the search of `read_cohort`, with the pixels of the training images that are still there.

    Returns:
        Whether the model was trained on the image of a row or on its patient, and the number of training images that
        were compared by their hashes and keypoints only.
    """
    prints = fingerprint_images(cohort["path"]).set_axis(cohort.index)
    overlap = mark_pretraining_overlap(cohort, prints["hashes"], manifests, keypoints=prints["keypoints"])
    trained = run.cohort.loc[run.cohort["split"] == "train", "path"]
    there = trained[trained.map(os.path.isfile)]
    copied = has_copy(prints[~overlap], fingerprint_images(there))  # guard: training_copies
    return overlap | copied.reindex(overlap.index, fill_value=False), len(trained) - len(there)
