"""Evaluate a predictions table: every metric by patient, with its n and 95% interval."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from covid_fastai.data.phantom import are_synthetic
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import ResultDisplay, format_interval, format_metric, format_metric_name
from covid_fastai.evaluation.metric_intervals import metric_interval
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    PredictionOptions,
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.resamples import Resamples
from covid_fastai.evaluation.weighted_metrics import (
    LOWER_IS_BETTER,
    SMALLEST_P,
    WeightedMetric,
    list_weighted_metrics,
)
from covid_fastai.notices import DRAWINGS, RESEARCH_USE
from covid_fastai.options import NResamples, Probability, Seed, Unit, checked

__all__ = [
    "Evaluation",
    "LOWER_IS_BETTER",
    "SMALLEST_P",
    "Scores",
    "as_evaluation",
    "evaluate",
    "evaluate_table",
    "find_row",
    "score_units",
    "summarise_metrics",
    "summarise_repeats",
]

DIGITS = 12  # of a patient's mean probability
SHOWN = 5  # patients that a note names
FOLD_OFFSET = 0.02  # difference between the AUC within folds and the pooled one from which it is remarked
COLUMNS = ["metric", "class", "value", "low", "high", "n", "unit", "method"]


@dataclass(frozen=True, eq=False)
class Scores:
    """The units that are evaluated, patients or images, with their true class and probabilities.

    Attributes:
        table: One row per unit: `patient`, `label`, `images` (number), `p_<class>` (mean over the images), `predicted`;
            with images as units also `path`, and `fold` if there are several folds and each unit is in one of them.
        unit: `"patient"` or `"image"`.
        two_labels: The patients with images of two classes or more, each of which is counted once.
    """

    table: pd.DataFrame
    unit: str
    two_labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(ResultDisplay):
    """How well predictions agree with the labels.

    Attributes:
        metrics: One row per metric: `metric`, `class` ("" for all classes together, "macro" for the mean over the
            classes), `value`, `low` and `high` (95% interval; NaN if it cannot be computed), `n`, `unit` (what n
            counts), `method`.
        classes: The classes, the negative one first.
        positive: The positive class, to which sensitivity refers; None with more than two classes.
        threshold: The lowest probability of the positive class from which it is predicted; None with more than two
            classes.
        confusion: Counts of units, true class by row, predicted class by column.
        unit: What is counted, `"patient"` or `"image"`.
        n_images: Number of images that were evaluated.
        n_failed: Number of images without a prediction, which are not evaluated.
        n_unlabelled: Number of images without a label, which are not evaluated.
        patients_known: Whether the patient of each evaluated image is known; an image without one counts as a separate
            patient.
        two_labels: The patients with images of two classes or more. Each counts once, with the images of the last of
            their classes; empty if images are counted.
        predictions: The predictions table; empty if only the metrics were read from a file.
    """

    metrics: pd.DataFrame
    classes: list[str]
    positive: str | None
    threshold: float | None
    confusion: pd.DataFrame
    unit: str
    n_images: int
    n_failed: int
    n_unlabelled: int
    patients_known: bool
    two_labels: Sequence[str] = ()
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)

    def value(self, metric: str, of: str | None = None) -> float:
        """Return the value of a metric.

        Args:
            metric: A name in `metrics["metric"]`.
            of: The class; None for the metric of all classes together, else that of the positive class, else the mean
                over the classes.

        Raises:
            UsageError: There is no such metric.
        """
        return float(self.row(metric, of)["value"])

    def row(self, metric: str, of: str | None = None) -> dict[str, Any]:
        """Return the row of a metric in `metrics`; see `value`."""
        rows = self.metrics[self.metrics["metric"] == metric]
        candidates = [of] if of is not None else ["", self.positive, "macro"]
        for name in candidates:
            rows_of_class = rows[rows["class"] == name]
            if len(rows_of_class):
                return as_rows(rows_of_class)[0]
        known = ", ".join(dict.fromkeys(self.metrics["metric"]))
        raise UsageError(f"There is no metric {metric!r}" + (f" of {of!r}." if of else "."), hint=f"Metrics: {known}.")

    def summary(self) -> pd.DataFrame:
        """Return the metrics as formatted text: `metric`, `value`, `95% interval`, `n`."""
        return summarise_metrics(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as plain values, without the predictions."""
        names = ("classes", "positive", "threshold", "unit", "n_images", "n_failed", "n_unlabelled", "patients_known")
        return {
            **{name: getattr(self, name) for name in names},
            "two_labels": list(self.two_labels),
            "confusion": self.confusion.to_numpy().tolist(),
            "metrics": self.metrics.to_dict("records"),
            "synthetic": self.is_synthetic,
        }

    @property
    def is_synthetic(self) -> bool:
        """Whether all images are drawings that this package generated; False if their paths are not known."""
        return "path" in self.predictions and are_synthetic(self.predictions["path"])

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], predictions: pd.DataFrame | None = None) -> Evaluation:
        """Create an evaluation from what `to_dict` returned, with its predictions if they are available."""
        fields = dict(fields)
        fields.pop("synthetic", None)  # the predictions say it
        metrics = pd.DataFrame(fields.pop("metrics"), columns=COLUMNS)
        for name in ("value", "low", "high"):
            metrics[name] = metrics[name].astype(float)  # NaN is null in JSON
        confusion = pd.DataFrame(fields.pop("confusion"), index=fields["classes"], columns=fields["classes"])
        return cls(
            metrics=metrics,
            confusion=confusion.rename_axis(index="true", columns="predicted"),
            predictions=pd.DataFrame() if predictions is None else predictions,
            **fields,
        )

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        if self.is_synthetic:
            yield DRAWINGS
        yield self.summary()
        failed = f" {self.n_failed} images without a prediction are not counted." if self.n_failed else ""
        yield " ".join([f"{self.n_images} images.{failed}", *self.notes(), RESEARCH_USE])

    def notes(self) -> list[str]:
        """Return what has to be known about patients and folds to read the metrics, in sentences."""
        notes = []
        if self.two_labels:
            listed = ", ".join(self.two_labels[:SHOWN]) + (" ..." if len(self.two_labels) > SHOWN else "")
            notes.append(
                f"{len(self.two_labels)} patients have images of two classes or more ({listed}). Each counts once, "
                "with the images of the last of these classes."
            )
        if self.metrics["metric"].eq("auc_pooled").any():
            within, pooled = self.value("auc"), self.value("auc_pooled")
            notes.append(
                "The AUC compares patients within each fold. Its interval does not include the variation between "
                "training sets and seeds."
            )
            if abs(within - pooled) >= FOLD_OFFSET:
                notes.append(
                    f"With the folds pooled it is {format_metric(pooled)} instead of {format_metric(within)}: the "
                    "scores of the folds' models are on different scales, so that one threshold has another effect in "
                    "each fold."
                )
        return notes


@checked
def evaluate(
    predictions: str | Path | pd.DataFrame,
    *,
    positive: str | None = None,
    threshold: Probability = 0.5,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
    unit: Unit = "patient",
    split: str | None = None,
    **reading: Unpack[PredictionOptions],
) -> Evaluation:
    """Evaluate a predictions table and return every metric with its n and 95% interval.

    The probabilities of a patient are the mean over their images; a patient with images of two classes counts once,
    with the images of the later class, and is named. With several folds, the AUC compares patients within each fold,
    since the scores of different models need not be on one scale; `auc_pooled` compares all of them.

    Proportions of patients (accuracy, sensitivity, specificity) have Wilson's score interval (JASA 1927), and F1 is a
    function of such a proportion. The AUC has DeLong's interval on the scale of log odds, the average precision
    Boyd's, and the Brier score and log loss Student's t on the log scale. Balanced accuracy and means over classes
    combine the intervals of the classes. The interval of the calibration error inverts a test. If images are counted,
    the patients are clusters: proportions, AUC and losses have a variance between patients, and the calibration error
    that of a bootstrap which resamples patients class by class, with all their images. With more than 20,000 patients
    or images, the limits of the bootstrap for large samples take the place of resamples (`Resamples`).
    `benchmarks/coverage.md` tells how often the intervals include the truth.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        positive: The positive class, to which sensitivity refers; None for the last of two. With more than two classes
            each class is evaluated against the rest, and `"macro"` is the mean over the classes.
        threshold: The positive class is predicted if its probability is at least this, 0 to 1. With more than two
            classes the most probable class is predicted.
        n_resamples: Number of bootstrap resamples, 100 or more.
        seed: Seed of the bootstrap.
        unit: `"patient"`, or `"image"` to count images; the bootstrap still resamples whole patients.
        split: The split whose rows are evaluated, such as `"test"`; None for a table of one split.
        **reading: How the table is read, as in `read_predictions`: `score_column` and `label_column` for one score with
            labels such as 0 and 1, other columns, `join`, `encoding`, `on_problem`.

    Returns:
        The evaluation. Metrics that cannot be computed, such as the AUC of one class, are NaN.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, has labelled rows of several splits, or no row has both a label and a
            prediction.

    Examples:
        >>> result = evaluate(predictions, threshold=0.5)
        >>> round(result.value("auc"), 2)
        0.83
        >>> row = result.row("sensitivity")
        >>> f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), n = {row['n']}"
        '0.71 (0.53 to 0.85), n = 28'
    """
    table = read_predictions(predictions, split=split, positive=positive, **reading)
    options = {"threshold": threshold, "n_resamples": n_resamples, "seed": seed, "unit": unit}
    return evaluate_table(table, positive=positive, **options)


def evaluate_table(
    table: pd.DataFrame,
    *,
    positive: str | None = None,
    threshold: float = 0.5,
    n_resamples: int = 2000,
    seed: int = 0,
    unit: str = "patient",
    metrics: Collection[str] | None = None,
    scores: Scores | None = None,
) -> Evaluation:
    """Evaluate a table that has been read and checked, as `evaluate` does.

    Args:
        table: What `read_predictions` returned.
        positive: As in `evaluate`.
        threshold: As in `evaluate`.
        n_resamples: As in `evaluate`.
        seed: As in `evaluate`.
        unit: As in `evaluate`.
        metrics: The metrics that are needed, such as `{"auc"}`; None for all of them.
        scores: What `score_units` returned for the table with these options; None to compute it.

    Returns:
        The evaluation.
    """
    classes = class_columns(table)
    positive = choose_positive(classes, positive)
    scores = score_units(table, positive=positive, threshold=threshold, unit=unit) if scores is None else scores
    units = scores.table
    confusion = pd.crosstab(units["label"], units["predicted"]).reindex(classes, fill_value=0)
    confusion = confusion.reindex(columns=classes, fill_value=0)
    resamples = Resamples(units["patient"], units["label"], n_resamples, seed)
    rows = [
        _metric_row(metric, units, resamples, unit=unit)
        for metric in list_weighted_metrics(units, classes, positive)
        if metrics is None or metric.metric in metrics
    ]
    evaluated = has_label_and_prediction(table)
    return Evaluation(
        metrics=pd.DataFrame(rows, columns=COLUMNS),
        classes=classes,
        positive=positive,
        threshold=threshold if positive else None,
        confusion=confusion.rename_axis(index="true", columns="predicted"),
        unit=unit,
        n_images=int(units["images"].sum()),
        n_failed=int(table["status"].ne("ok").sum()),
        n_unlabelled=int(table["label"].eq("").sum()),
        patients_known=bool(table.loc[evaluated, "patient_known"].all()),
        two_labels=scores.two_labels,
        predictions=table,
    )


def as_evaluation(source: Evaluation | pd.DataFrame | str | Path) -> Evaluation:
    """Return an evaluation with its predictions; evaluate the source if it is a predictions table.

    Args:
        source: An evaluation, or predictions.

    Raises:
        UsageError: The evaluation has metrics only, no predictions.
    """
    result = source if isinstance(source, Evaluation) else evaluate(source)
    if result.predictions.empty:
        raise UsageError(
            "This evaluation has metrics only, no predictions.", hint="Read it with read_run, or evaluate the table."
        )
    return result


def score_units(
    table: pd.DataFrame, *, positive: str | None = None, threshold: float = 0.5, unit: str = "patient"
) -> Scores:
    """Return one row per patient or image, with the mean probabilities and the class predicted from them.

    Args:
        table: What `read_predictions` returned.
        positive: The positive class of two; None to predict the most probable class.
        threshold: The positive class is predicted if its probability is at least this.
        unit: `"patient"` or `"image"`.

    Returns:
        The scores.

    Raises:
        DataError: No row has both a label and a prediction.
    """
    classes = class_columns(table)
    columns = [PROBABILITY + name for name in classes]
    evaluated = table[has_label_and_prediction(table)]
    if evaluated.empty:
        raise DataError(
            "No row has both a label and a prediction.",
            hint="Give the true labels in the column label; rows with a status other than 'ok' have no prediction.",
        )
    two_labels: tuple[str, ...] = ()
    if unit == "patient":
        order = pd.Series(pd.Categorical(evaluated["label"], categories=classes).codes, index=evaluated.index)
        last = order.groupby(evaluated["patient"]).transform("max")
        two_labels = tuple(sorted(evaluated.loc[order != last, "patient"].unique()))  # guard: two_labels
        evaluated = evaluated[order == last]
        groups = evaluated.groupby("patient", sort=True)
        # rounded, since the mean of equal probabilities may differ by a float's rounding, which would break ties
        units = groups[columns].mean().round(DIGITS).assign(label=groups["label"].first(), images=groups.size())
        folds = groups["fold"].agg(["first", "nunique"])
        units = units.assign(fold=folds["first"]).reset_index()
        in_one_fold = folds["nunique"].le(1).all()
    else:
        units = evaluated[["path", "patient", "label", "fold", *columns]].assign(images=1).reset_index(drop=True)
        in_one_fold = True
    if not in_one_fold or units["fold"].nunique() < 2:
        units = units.drop(columns="fold")
    if positive is None:
        units["predicted"] = np.array(classes, dtype=object)[units[columns].to_numpy().argmax(axis=1)]
    else:
        negative = next(name for name in classes if name != positive)
        units["predicted"] = np.where(units[PROBABILITY + positive] >= threshold, positive, negative)
    return Scores(units, unit, two_labels)


def find_row(metrics: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return the first row of a metric.

    Args:
        metrics: One row per metric, with the column `metric`.
        metric: The name of the metric.

    Raises:
        UsageError: There is no such metric.
    """
    rows = metrics[metrics["metric"] == metric]
    if rows.empty:
        raise UsageError(f"There is no metric {metric!r}.", hint=f"Metrics: {', '.join(metrics['metric'])}.")
    return as_rows(rows)[0]


def summarise_metrics(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return metrics as formatted text.

    Args:
        metrics: Rows in the columns of `Evaluation.metrics`.

    Returns:
        `metric`, `value`, `95% interval`, `n`.
    """
    return pd.DataFrame(
        {
            "metric": [format_metric_name(row["metric"], row["class"]) for row in metrics.to_dict("records")],
            "value": [format_metric(value) for value in metrics["value"]],
            "95% interval": [
                format_interval(low, high) for low, high in zip(metrics["low"], metrics["high"], strict=True)
            ],
            "n": [f"{n} {unit}s" for n, unit in zip(metrics["n"], metrics["unit"], strict=True)],
        }
    )


def summarise_repeats(repeats: pd.DataFrame) -> pd.DataFrame:
    """Return how much metrics change from repeat to repeat of a cross-validation, as formatted text.

    Args:
        repeats: The rows of `Evaluation.metrics` of each repeat, with a column `repeat`.

    Returns:
        `metric`, `mean`, `standard deviation` (between repeats), `lowest`, `highest`, `repeats` (those with a value).
    """
    rows = []
    for (metric, of), values in repeats.groupby(["metric", "class"], sort=False, dropna=False)["value"]:
        numbers = {"mean": values.mean(), "standard deviation": values.std()}
        numbers |= {"lowest": values.min(), "highest": values.max()}
        texts = {name: format_metric(value) for name, value in numbers.items()}
        rows.append({"metric": format_metric_name(str(metric), str(of)), **texts, "repeats": int(values.count())})
    return pd.DataFrame(rows)


def _metric_row(metric: WeightedMetric, units: pd.DataFrame, resamples: Resamples, *, unit: str) -> dict[str, Any]:
    """Return a row of `Evaluation.metrics`: the metric with the interval that suits it."""
    n = int(metric.included.sum())
    equal_weights = np.ones((1, len(units)))  # the data themselves: each unit once
    value = float(metric.compute(equal_weights)[0]) if n else math.nan
    low = high = math.nan
    if n == 0:
        method = "no unit"
    elif not math.isfinite(value):
        method = "no unit of some class"
    else:
        clusters = None if unit == "patient" else units["patient"].to_numpy()
        low, high, method = metric_interval(metric, value, clusters, resamples)
    return dict(zip(COLUMNS, (metric.metric, metric.of, value, low, high, n, unit, method), strict=True))
