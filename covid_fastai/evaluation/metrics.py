"""Figures with their n and 95% interval, by patient, from a predictions table alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.bootstrap import patient_draws
from covid_fastai.evaluation.formatting import ResultDisplay, format_interval, format_metric, format_metric_name
from covid_fastai.evaluation.intervals import (
    auc_interval,
    calibration_interval,
    clustered_proportion,
    percentiles,
    wilson,
)
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.weighted_metrics import (
    LOWER_IS_BETTER,
    SMALLEST_P,
    Measure,
    compute_in_blocks,
    list_measures,
)
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import NResamples, Probability, Seed, Unit, checked

__all__ = [
    "Evaluation",
    "LOWER_IS_BETTER",
    "SMALLEST_P",
    "Scores",
    "as_evaluation",
    "evaluate",
    "find_row",
    "score_units",
    "summarise_figures",
]

COLUMNS = ["metric", "class", "value", "low", "high", "n", "unit", "method"]


@dataclass(frozen=True, eq=False)
class Scores:
    """What is counted: a row a patient (or image), with its true class and its probabilities.

    Attributes:
        table: `patient`, `label`, `images`, `p_<class>` (mean over the images), `predicted`.
        unit: `"patient"` or `"image"`.
    """

    table: pd.DataFrame
    unit: str


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(ResultDisplay):
    """How well predictions agree with the labels.

    Attributes:
        metrics: A row a figure: `metric`, `class` ("" for all classes together, "macro" for their plain mean), `value`,
            `low` and `high` (95% interval; NaN where none can be given), `n`, `unit` (what n counts), `method`.
        classes: The classes, the negative one first.
        positive: The class that sensitivity is about; None where there are more than two.
        threshold: The probability of the positive class from which it is predicted; None where there are more than two.
        confusion: Counts of units, true class by row, predicted class by column.
        unit: What is counted, `"patient"` or `"image"`.
        n_images: Images that were judged.
        n_failed: Images without a prediction, which no figure counts.
        n_unlabelled: Images without a label, which no figure counts.
        patients_known: Whether each image that counts names its patient; one that does not is a patient of its own.
        predictions: The table that was judged; empty where only the figures were read back.
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
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)

    def value(self, metric: str, of: str | None = None) -> float:
        """Return one figure.

        Args:
            metric: A name in `metrics["metric"]`.
            of: The class; None for the figure of all classes, else the positive class's, else the mean of all.

        Raises:
            UsageError: There is no such figure.
        """
        return float(self.row(metric, of)["value"])

    def row(self, metric: str, of: str | None = None) -> dict[str, Any]:
        """Return one figure's row of `metrics`; see `value`."""
        rows = self.metrics[self.metrics["metric"] == metric]
        wanted = [of] if of is not None else ["", self.positive, "macro"]
        for name in wanted:
            found = rows[rows["class"] == name]
            if len(found):
                return as_rows(found)[0]
        known = ", ".join(dict.fromkeys(self.metrics["metric"]))
        raise UsageError(f"There is no figure {metric!r}" + (f" of {of!r}." if of else "."), hint=f"Figures: {known}.")

    def summary(self) -> pd.DataFrame:
        """Return the figures as text, for tables: `figure`, `value`, `95% interval`, `n`."""
        return summarise_figures(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, without the predictions."""
        names = ("classes", "positive", "threshold", "unit", "n_images", "n_failed", "n_unlabelled", "patients_known")
        return {
            **{name: getattr(self, name) for name in names},
            "confusion": self.confusion.to_numpy().tolist(),
            "metrics": self.metrics.to_dict("records"),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], predictions: pd.DataFrame | None = None) -> Evaluation:
        """Make an evaluation from what `to_dict` returned, and from its predictions where they are at hand."""
        fields = dict(fields)
        metrics = pd.DataFrame(fields.pop("metrics"), columns=COLUMNS)
        for name in ("value", "low", "high"):
            metrics[name] = metrics[name].astype(float)  # JSON has null where a figure has NaN
        confusion = pd.DataFrame(fields.pop("confusion"), index=fields["classes"], columns=fields["classes"])
        return cls(
            metrics=metrics,
            confusion=confusion.rename_axis(index="true", columns="predicted"),
            predictions=pd.DataFrame() if predictions is None else predictions,
            **fields,
        )

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield self.summary()
        lost = f" {self.n_failed} images without a prediction are not counted." if self.n_failed else ""
        yield f"{self.n_images} images.{lost} {RESEARCH_USE}"


@checked
def evaluate(
    predictions: str | Path | pd.DataFrame,
    *,
    positive: str | None = None,
    threshold: Probability = 0.5,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
    unit: Unit = "patient",
) -> Evaluation:
    """Judge a predictions table: every figure with its n and 95% interval.

    A patient's probabilities are the mean over their images (a patient with images of two classes counts once with
    each). Proportions of patients (accuracy, sensitivity, specificity) carry Wilson's score interval (JASA 1927), the
    other figures the percentiles of a bootstrap that draws patients class by class, with all their images. Where no
    draw differs, as with an AUC of 1, the bootstrap says nothing; the bound is then Wilson's for the smallest class.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        positive: The class that sensitivity is about; None for the last of two. With more classes each is judged
            against the rest, and `"macro"` is the plain mean over the classes.
        threshold: The positive class is predicted from this probability on, 0 to 1; with more than two classes the most
            probable one is.
        n_resamples: Bootstrap draws, 100 or more.
        seed: Of the bootstrap.
        unit: `"patient"`, or `"image"` to count images; their intervals still draw whole patients.

    Returns:
        The evaluation. Figures that cannot be computed, such as the AUC of one class alone, are NaN.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, or no row has both a label and a prediction.
    """
    table = read_predictions(predictions)
    classes = class_columns(table)
    positive = choose_positive(classes, positive)
    scores = score_units(table, positive=positive, threshold=threshold, unit=unit)
    units = scores.table
    confusion = pd.crosstab(units["label"], units["predicted"]).reindex(classes, fill_value=0)
    confusion = confusion.reindex(columns=classes, fill_value=0)
    weights = patient_draws(units["patient"], units["label"], n_resamples=n_resamples, seed=seed)
    rows = [_row(measure, units, weights, unit=unit) for measure in list_measures(units, classes, positive)]
    judged = has_label_and_prediction(table)
    return Evaluation(
        metrics=pd.DataFrame(rows, columns=COLUMNS),
        classes=classes,
        positive=positive,
        threshold=threshold if positive else None,
        confusion=confusion.rename_axis(index="true", columns="predicted"),
        unit=unit,
        n_images=int(judged.sum()),
        n_failed=int(table["status"].ne("ok").sum()),
        n_unlabelled=int(table["label"].eq("").sum()),
        patients_known=bool(table.loc[judged, "patient_known"].all()),
        predictions=table,
    )


def as_evaluation(source: Evaluation | pd.DataFrame | str | Path) -> Evaluation:
    """Return an evaluation that holds its predictions.

    Args:
        source: An evaluation, or predictions.

    Raises:
        UsageError: The evaluation holds metrics only.
    """
    result = source if isinstance(source, Evaluation) else evaluate(source)
    if result.predictions.empty:
        raise UsageError("This evaluation holds metrics only.", hint="Read it with read_run, or evaluate the table.")
    return result


def score_units(
    table: pd.DataFrame, *, positive: str | None = None, threshold: float = 0.5, unit: str = "patient"
) -> Scores:
    """Return one row a patient (or image) with its mean probabilities and the class that is predicted from them.

    Args:
        table: What `read_predictions` returned.
        positive: The positive class of two; None to predict the most probable one.
        threshold: The positive class is predicted from this probability on.
        unit: `"patient"` or `"image"`.

    Returns:
        The scores.

    Raises:
        DataError: No row has both a label and a prediction.
    """
    classes = class_columns(table)
    columns = [PROBABILITY + name for name in classes]
    judged = table[has_label_and_prediction(table)]
    if judged.empty:
        raise DataError(
            "No row has both a label and a prediction.",
            hint="Give the true labels in the column label; rows whose status is not 'ok' have no prediction.",
        )
    if unit == "patient":
        groups = judged.groupby(["patient", "label"], sort=True)
        units = groups[columns].mean().assign(images=groups.size()).reset_index()
    else:
        units = judged[["path", "patient", "label", *columns]].assign(images=1).reset_index(drop=True)
    if positive is None:
        units["predicted"] = np.array(classes, dtype=object)[units[columns].to_numpy().argmax(axis=1)]
    else:
        negative = next(name for name in classes if name != positive)
        units["predicted"] = np.where(units[PROBABILITY + positive] >= threshold, positive, negative)
    return Scores(units, unit)


def find_row(metrics: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return the first row of a metric.

    Args:
        metrics: A row a metric, with the column `metric`.
        metric: The name.

    Raises:
        UsageError: There is no such metric.
    """
    rows = metrics[metrics["metric"] == metric]
    if rows.empty:
        raise UsageError(f"There is no figure {metric!r}.", hint=f"Figures: {', '.join(metrics['metric'])}.")
    return as_rows(rows)[0]


def summarise_figures(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return figures as text, for tables.

    Args:
        metrics: Rows as those of `Evaluation.metrics`.

    Returns:
        `figure`, `value`, `95% interval`, `n`.
    """
    return pd.DataFrame(
        {
            "figure": [format_metric_name(row["metric"], row["class"]) for row in metrics.to_dict("records")],
            "value": [format_metric(value) for value in metrics["value"]],
            "95% interval": [
                format_interval(low, high) for low, high in zip(metrics["low"], metrics["high"], strict=True)
            ],
            "n": [f"{n} {unit}s" for n, unit in zip(metrics["n"], metrics["unit"], strict=True)],
        }
    )


def _row(measure: Measure, units: pd.DataFrame, weights: np.ndarray, *, unit: str) -> dict[str, Any]:
    """Return a row of `Evaluation.metrics`: the figure, and the interval that suits it."""
    n = int(measure.among.sum())
    value = float(measure.compute(np.ones((1, len(units))))[0]) if n else math.nan
    low = high = math.nan
    if n == 0:
        method = "no unit"
    elif not math.isfinite(value):
        method = "no unit of some class"
    elif measure.hit is not None:
        hit, patients = measure.hit[measure.among], units["patient"].to_numpy()[measure.among]
        low, high = wilson(value, n) if unit == "patient" else clustered_proportion(hit, patients)
        method = "Wilson" if unit == "patient" else "Wilson, effective n"
    elif measure.scores is not None and measure.of_class is not None:
        low, high, method = auc_interval(measure.scores, measure.of_class, units["patient"].to_numpy())
    elif measure.gaps is not None:
        gaps = measure.gaps(np.ones((1, len(units))))[0]
        low, high = calibration_interval(gaps, compute_in_blocks(measure.gaps, weights))
        method = "bootstrap, inverted"
    else:
        low, high, method = _drawn(measure, value, units, weights)
    return dict(zip(COLUMNS, (measure.metric, measure.of, value, low, high, n, unit, method), strict=True))


def _drawn(measure: Measure, value: float, units: pd.DataFrame, weights: np.ndarray) -> tuple[float, float, str]:
    """Return the percentiles of a figure's bootstrap, and what they are."""
    drawn = compute_in_blocks(measure.compute, weights)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and np.ptp(drawn) > 1e-9:  # wider than a float's rounding
        low, high = percentiles(drawn)
        return min(low, value), max(high, value), "bootstrap"
    if measure.metric not in LOWER_IS_BETTER and value in (0.0, 1.0):
        smallest = int(units["label"].value_counts().min())
        return *wilson(value, smallest), f"Wilson, n={smallest} (no draw differs)"
    return math.nan, math.nan, "no draw differs"
