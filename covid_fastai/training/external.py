"""External validation: a trained model on the images of hospitals that it has never seen, nothing chosen anew."""

from __future__ import annotations

import dataclasses
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.audit.baselines import predict_shortcuts
from covid_fastai.data.fingerprints import fingerprint_images
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.pretraining_overlap import (
    Manifest,
    mark_pretraining_overlap,
    package_manifests,
    patients_not_compared,
    read_manifest,
)
from covid_fastai.data.projections import is_unstated
from covid_fastai.data.tables import as_rows
from covid_fastai.data.tasks import Task, get_task
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import ResultDisplay, format_interval, format_metric
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import PROBABILITY, UNKNOWN_PATIENTS, class_columns
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import make_folder, write_json
from covid_fastai.model.bundle import load_model
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import NResamples, Seed, checked
from covid_fastai.reporting.documents import write_documents

__all__ = ["Validation", "judge_sources", "validate"]

logger = logging.getLogger("covid_fastai")

COLUMNS = ["images of", "comparison", "metric", "value", "low", "high", "n"]
SAME, CONFOUNDED, ONE_CLASS = "same source", "confounded: other source", "one class"
NOT_STATED = "source not stated"
FIGURES = ("auc", "sensitivity", "specificity")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Validation(ResultDisplay):
    """What a model is worth on other hospitals' images.

    Attributes:
        table: A row a metric: `images of` (the sources), `comparison` ("same source"; "source not stated", where images
            of both classes may come from different hospitals; "confounded: other source" where each class comes from a
            source of its own, so that a model may separate sources instead of findings; or "one class"), `metric`,
            `value`, `low` and `high` (95% interval), `n` patients.
        predictions: The predictions that it was made from.
        thumbnail: The same figures of a logistic regression on 16 x 16 thumbnails of the same training images, which
            sees next to nothing of a lung; empty where those images are gone.
        overlap: The rows that were taken out first: the model was trained on them, or on another image of the patient.
        threshold: The one that was frozen at training; None where there are more than two classes.
        unknown_patients: Whether some image names no patient and counts as one.
        not_compared: Images whose patient could not be compared with the training patients: a bare number, of which
            every hospital has its own, without a stated source. Their pictures were compared.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    thumbnail: pd.DataFrame
    overlap: pd.DataFrame
    threshold: float | None
    unknown_patients: bool
    not_compared: int = 0

    def summary(self) -> pd.DataFrame:
        """Return the figures as text."""
        shown = self.table[["images of", "comparison", "metric"]].copy()
        shown["value"] = [format_metric(value) for value in self.table["value"]]
        shown["95% interval"] = [format_interval(*bounds) for bounds in self.table[["low", "high"]].to_numpy()]
        if len(self.thumbnail):
            key = ["images of", "comparison", "metric"]
            beside = self.table[key].merge(self.thumbnail, how="left", on=key)["value"]
            shown["thumbnail"] = [format_metric(value) for value in beside]
        shown["n"] = [f"{n} patients" for n in self.table["n"]]
        return shown

    def notes(self) -> list[str]:
        """Return what has to be said beside the figures."""
        said = [
            f"{len(self.overlap)} images were taken out first: the model was trained on them, or on another image of "
            "their patient."
        ]
        if self.not_compared:
            said.append(
                f"The patients of {self.not_compared} images were not compared with the training patients: they are "
                "numbers without a stated source. Their pictures were compared."
            )
        if (self.table["comparison"] == NOT_STATED).any():
            said.append(
                "Source not stated: whether images of both classes come from one hospital is not known, so that "
                "confounding is not excluded. These metrics meet no condition of the verdict."
            )
        if (self.table["comparison"] == CONFOUNDED).any():
            said.append(
                "Confounded: each class comes from a source of its own. Whatever differs between the sources tells the "
                "class; these figures are no evidence for a finding, and are merged with no others."
            )
        if self.unknown_patients:
            said.append(UNKNOWN_PATIENTS)
        return [*said, RESEARCH_USE]

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.summary(), *self.notes())

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("table", "thumbnail")}
        fixed = {"overlap": len(self.overlap), "not_compared": self.not_compared, "threshold": self.threshold}
        return {**tables, "same_source": self.same_source(), **fixed}

    def same_source(self) -> list[dict[str, Any]]:
        """Return the AUC of each source with images of both classes: what the audit's verdict asks for.

        Returns:
            A dictionary a source: `source`, `value`, `low`, `high`, `n`, and `thumbnail`, the AUC of the thumbnail
            there (NaN where it could not be tried).
        """
        own, beside = (
            {row["images of"]: row for row in as_rows(table[table["comparison"].eq(SAME) & table["metric"].eq("auc")])}
            for table in (self.table, self.thumbnail)
        )
        return [
            {
                "source": source,
                **{name: row[name] for name in ("value", "low", "high", "n")},
                "thumbnail": beside[source]["value"] if source in beside else None,
            }
            for source, row in own.items()
        ]


@checked
def validate(
    model: str | Path | Run,
    data: str | Path | pd.DataFrame,
    *,
    labels: Mapping[str, str] | None = None,
    source: str | None = None,
    keep: bool = True,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
    **reading: Any,
) -> Validation:
    """Judge a run's model on other data, with its threshold as it was; images that it was trained on are out first.

    Figures are given by source: of one hospital's images of both classes as "same source"; where each class comes from
    sources of its own as "confounded", and never merged with others; else by class alone.

    Args:
        model: A run's folder, as `train_classifier` or `cross_validate` wrote it, or what `read_run` returned. The
            models of a cross-validation answer by the mean of their probabilities.
        data: As in `read_cohort`; every row whose label has a class is used, whatever split it names.
        labels: The model's class for labels that the data use and the task does not know, such as
            `{"positive": "COVID-19"}`; a label that is given the class "" is excluded.
        source: The hospital or collection that all images without a stated source come from; None where that is not
            known, and then images of both classes may come from different ones.
        keep: Write what was found into the run's folder, `external/<name of the data>-<six digits>.json`, for the
            verdict.
        n_resamples: Bootstrap draws, 100 or more.
        seed: Of the bootstrap.
        **reading: More options of `read_cohort`, such as `patient_column`.

    Returns:
        The validation.

    Raises:
        DataError: The folder is no run, does not say what its model was trained on, the data are faulty, or nothing is
            left after the overlap was taken out.
        UsageError: A label is given a class that the model does not have.
        ModelFormatError: The model cannot be used.
    """
    run = model if isinstance(model, Run) else read_run(model)
    task = _task(run, labels or {})
    folders = [run.folder.fold(number) for number in range(run.config.get("folds") or 0)] or [run.folder]
    learners = [load_model(folder.model) for folder in folders]  # before the data, which take longer to read
    manifests = _manifests(run, learners[0].facts.weights.name)
    cohort = read_cohort(data, task=task, exclude_pretraining_overlap=False, **reading)
    if source is not None:
        cohort = cohort.assign(source=cohort["source"].where(~cohort["source"].map(is_unstated), source))
    cohort = cohort[cohort["split"] != "excluded"]
    seen = _seen(cohort, manifests)
    rows = cohort[~seen].assign(split="valid")
    if rows.empty:
        raise DataError(
            "No image is left: the model was trained on all of them, or on other images of their patients.",
            hint="Validate on data of another hospital.",
        )
    logger.info("%d of %d images were trained on, or another of their patient: left out.", seen.sum(), len(cohort))
    predictions = _mean([predict(learn, rows) for learn in learners])
    threshold, positive = run.metrics.threshold, run.metrics.positive
    options = {"positive": positive, "threshold": threshold or 0.5, "n_resamples": n_resamples, "seed": seed}
    table, thumbnail = judge_sources(predictions, **options), _thumbnail(run, rows, options)
    unknown = not cohort.patients_known
    not_compared = int(patients_not_compared(rows).sum())
    found = Validation(table, predictions, thumbnail, cohort[seen], threshold, unknown, not_compared)
    if keep:
        name = "rows" if isinstance(data, pd.DataFrame) else _name(Path(data).resolve())
        folder = make_folder(run.folder.external)
        write_json(folder / f"{name}.json", found.to_dict())
        run.folder.log("validated", data=name, images=len(rows))
        write_documents(run)
    return found


def judge_sources(
    predictions: pd.DataFrame, *, positive: str | None, threshold: float = 0.5, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return figures by source, and say of each whether class and source are confounded in it.

    Args:
        predictions: A predictions table with `source`; images without a stated source are evaluated together.
        positive: The positive class; None where there are more than two.
        threshold: The positive class is predicted from this probability on.
        n_resamples: Bootstrap draws.
        seed: Of the bootstrap.

    Returns:
        `Validation.table`.
    """
    options = {"positive": positive, "threshold": threshold, "n_resamples": n_resamples, "seed": seed}
    stated = ~predictions["source"].map(is_unstated)
    predictions = predictions.assign(source=predictions["source"].where(stated, "unknown"))
    classes = predictions.groupby("source")["label"].agg(lambda labels: frozenset(labels))
    rows = []
    for source, found in classes.items():
        part = predictions[predictions["source"] == source].reset_index(drop=True)
        comparison = ONE_CLASS if len(found) == 1 else NOT_STATED if is_unstated(source) else SAME
        rows += _figures(evaluate(part, **options), str(source), comparison)
    single = classes[classes.map(len) == 1]
    if single.explode().nunique() > 1:
        part = predictions[predictions["source"].isin(single.index)].reset_index(drop=True)
        rows += _figures(evaluate(part, **options), " + ".join(single.index), CONFOUNDED)
    return pd.DataFrame(rows, columns=COLUMNS)


def _figures(result: Evaluation, source: str, comparison: str) -> list[dict[str, Any]]:
    wanted = FIGURES if result.positive else ("auc", "accuracy")
    rows = [result.row(metric) for metric in wanted]
    about = {"images of": source, "comparison": comparison}
    keep = ("metric", "value", "low", "high", "n")
    return [{**about, **{name: row[name] for name in keep}} for row in rows if row["value"] == row["value"]]


def _name(path: Path) -> str:
    """Return a name of a data set that no other has: its folder's, and six digits that stand for the whole path."""
    folder = path if path.is_dir() else path.parent
    return f"{folder.name}-{zlib.crc32(os.fsencode(path)) & 0xFFFFFF:06x}"


def _mean(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the predictions of several models as one: the mean of their probabilities."""
    mean, classes = tables[0].copy(), class_columns(tables[0])
    columns = [PROBABILITY + name for name in classes]
    mean[columns] = np.mean([table[columns].to_numpy() for table in tables], axis=0)
    lost = mean[columns].isna().any(axis=1)
    mean["status"] = mean["status"].mask(lost & mean["status"].eq("ok"), "failed")
    best = mean[columns].fillna(-1).to_numpy().argmax(axis=1)
    return mean.assign(prediction=np.where(lost, "", np.array(classes, dtype=object)[best]))


def _thumbnail(run: Run, rows: pd.DataFrame, options: Mapping[str, Any]) -> pd.DataFrame:
    """Judge the thumbnail baseline on the same rows; nothing where the training images are gone."""
    trained = run.cohort[run.cohort["split"] == "train"]
    there = trained["path"].map(os.path.isfile)
    if not there.all():
        logger.warning("%d training images are gone: there is no thumbnail to set beside the model.", (~there).sum())
        return pd.DataFrame(columns=COLUMNS)
    return judge_sources(predict_shortcuts(trained, rows, baselines=("thumbnail",))["thumbnail"], **options)


def _task(run: Run, labels: Mapping[str, str]) -> Task:
    """Return the run's task, which knows the data's own labels too and looks at every row."""
    task = get_task(run.config["config"]["task"])
    wrong = sorted(set(labels.values()) - {*task.classes, ""})
    if wrong:
        raise UsageError(f"The model has no class {wrong[0]!r}.", hint=f"Its classes: {', '.join(task.classes)}.")
    excluded = {name: "left out by request" for name, label in labels.items() if not label}
    known = {name: label for name, label in labels.items() if label}
    return dataclasses.replace(
        task,
        labels={**task.labels, **known},
        excluded={name: why for name, why in task.excluded.items() if name not in known} | excluded,
        excluded_sources={},
        official_test=True,
    )


def _manifests(run: Run, weights: str) -> list[Manifest]:
    """Return what the model, and the weights that it began from, were trained on."""
    file = run.folder.training_manifest
    if not file.is_file():
        raise DataError(f"{run.path} does not say what its model was trained on.", hint="Train it anew.")
    manifests = [read_manifest(file)]
    if weights == "cxr":
        manifests += [read_manifest(path) for path in package_manifests()]
    return manifests


def _seen(cohort: pd.DataFrame, manifests: Sequence[Manifest]) -> pd.Series:
    """Say of each row whether one of the manifests has its picture or its patient."""
    prints = fingerprint_images(cohort["path"])
    return mark_pretraining_overlap(cohort, pd.Series(prints["phash"].to_numpy(), index=cohort.index), manifests)
