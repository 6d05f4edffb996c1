"""Choose a threshold for a target sensitivity or specificity, and evaluate it on other patients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.bootstrap import cross_fit_folds
from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import clustered_proportion, wilson
from covid_fastai.evaluation.metrics import COLUMNS, find_row, score_units, summarise_metrics
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Fraction, checked

__all__ = [
    "OperatingPoint",
    "choose_threshold",
    "positive_scores",
    "thresholds_by_fold",
]

ROUNDING = 1e-9  # 0.9 * (9 + 1) may be 9.000000000000002, which must not be rounded up to 10


@dataclass(frozen=True, eq=False, repr=False)
class OperatingPoint(ResultDisplay):
    """Thresholds for a target sensitivity or specificity, and the values met on patients of the other folds.

    Attributes:
        positive: The class that is predicted at or above the threshold.
        target: The targeted metric, `"sensitivity"` or `"specificity"`.
        target_value: Its targeted value, 0 to 1.
        threshold: The threshold for later use, chosen on all available rows.
        folds: One row per fold: `fold`, `threshold`, the numbers of patients `chosen_on` and `evaluated`, and the
            `sensitivity` and `specificity` of the fold.
        metrics: Sensitivity and specificity of all folds together, in the columns of `Evaluation.metrics`.
        evaluated_on: `"other folds"`, `"other patients"`, or `"the same patients"`, whose estimate is optimistic.
    """

    positive: str
    target: str
    target_value: float
    threshold: float
    folds: pd.DataFrame
    metrics: pd.DataFrame
    evaluated_on: str

    def value(self, metric: str) -> float:
        """Return `"sensitivity"` or `"specificity"`."""
        return float(self.row(metric)["value"])

    def row(self, metric: str) -> dict[str, Any]:
        """Return the row of a metric in `metrics`.

        Raises:
            UsageError: There is no such metric.
        """
        return find_row(self.metrics, metric)

    @property
    def met(self) -> bool | None:
        """Whether the 95% interval includes the target or lies above it; None without a patient to evaluate."""
        high = self.row(self.target)["high"]
        return None if math.isnan(high) else bool(high >= self.target_value)

    def to_dict(self) -> dict[str, Any]:
        """Return thresholds and metrics as plain values."""
        names = ("positive", "target", "target_value", "threshold", "evaluated_on", "met")
        records = {"folds": self.folds.to_dict("records"), "metrics": self.metrics.to_dict("records")}
        return {**{name: getattr(self, name) for name in names}, **records}

    def summary(self) -> pd.DataFrame:
        """Return the metrics as formatted text: `metric`, `value`, `95% interval`, `n`."""
        return summarise_metrics(self.metrics)

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.summary(), f"{self.describe()} {RESEARCH_USE}")

    def describe(self) -> str:
        """Return the threshold, its target and the value met as text."""
        row = self.row(self.target)
        threshold = f"Threshold {self.threshold:.4g} for {self.positive}, for a target {self.target}"
        threshold = f"{threshold} of {self.target_value:g}."
        if math.isnan(row["value"]):
            return f"{threshold} There is no patient to evaluate it on."
        estimate = format_estimate(row["value"], row["low"], row["high"])
        patients = {"other folds": "folds that it was not chosen on", "other patients": "other patients"}
        if self.evaluated_on not in patients:
            reservation = "This estimate is optimistic: expect less on other patients."
            return f"{threshold} On the patients that it was chosen on, the {self.target} is {estimate}. {reservation}"
        reached = f"{threshold} On {patients[self.evaluated_on]}, the {self.target} is {estimate}."
        return reached if self.met else f"{reached} The target was not met."


@checked
def choose_threshold(
    predictions: str | Path | pd.DataFrame,
    *,
    sensitivity: Fraction | None = None,
    specificity: Fraction | None = None,
    positive: str | None = None,
) -> float:
    """Choose the threshold with the highest specificity that meets a target sensitivity, or the reverse.

    The score of a patient is the mean probability over their images. With n patients of the class and a target s, the
    threshold accepts the k highest of their scores, where k is s (n + 1) rounded up. A new patient of the class is then
    accepted with a probability of s or more (the quantile of split conformal prediction; Vovk et al. 2005). The plain
    quantile, k = s n, meets the target on these patients only. With fewer than s / (1 - s) patients, such as 9 for 0.9,
    all of them are accepted, and the target is not guaranteed for others. The threshold lies halfway to the next score,
    so that rounding changes no prediction.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        sensitivity: Target sensitivity, above 0 and up to 1; 0.9 if neither target is given.
        specificity: Target specificity, above 0 and up to 1.
        positive: The positive class; None for the last of two. With more classes it is evaluated against the rest.

    Returns:
        The lowest probability from which the positive class is predicted, 0 to 1, as `evaluate` and `save_model` take
        it.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, a class has no patient, or no threshold meets the target.

    Examples:
        >>> round(choose_threshold(predictions, sensitivity=0.9), 2)
        0.21
    """
    target, target_value = _select_target(sensitivity, specificity)
    units, positive = positive_scores(read_predictions(predictions), positive=positive)
    return _conformal_threshold(units, target, target_value, positive)


@checked
def thresholds_by_fold(
    predictions: str | Path | pd.DataFrame,
    *,
    sensitivity: Fraction | None = None,
    specificity: Fraction | None = None,
    positive: str | None = None,
    fitted_on: str | Path | pd.DataFrame | None = None,
    same_patients: bool = False,
) -> OperatingPoint:
    """Choose a threshold for each fold on the other folds, and evaluate it on the fold.

    Args:
        predictions: Out-of-fold predictions, with the model of each row in `fold`; or any predictions, with
            `fitted_on`.
        sensitivity: As in `choose_threshold`.
        specificity: As in `choose_threshold`.
        positive: As in `choose_threshold`.
        fitted_on: Predictions of other patients by the same model, such as an inner validation set, to choose on.
        same_patients: Whether to choose and evaluate on the same patients if there is one fold only and no `fitted_on`.
            The estimate is then optimistic; `OperatingPoint.evaluated_on` records it.

    Returns:
        The operating point: the thresholds, and sensitivity and specificity over all folds with Wilson's intervals.

    Raises:
        UsageError: There is one fold only and no `fitted_on`, or an option has a value that is not allowed.
        DataError: A table is faulty, the tables have patients in common, a class has no patient to choose on, or no
            threshold meets the target.

    Examples:
        >>> point = thresholds_by_fold(predictions, sensitivity=0.9)
        >>> point.folds[["fold", "threshold", "sensitivity"]].round(2)
           fold  threshold  sensitivity
        0     0       0.38         0.75
        1     1       0.11         1.00
        2     2       0.07         1.00
        >>> round(point.value("sensitivity"), 2)
        0.93
    """
    target, target_value = _select_target(sensitivity, specificity)
    table = read_predictions(predictions)
    table = table[has_label_and_prediction(table)]
    other = None if fitted_on is None else read_predictions(fitted_on)
    all_units, name = positive_scores(table if other is None else other, positive=positive)
    rows, units_by_fold = [], []
    in_sample = same_patients and other is None and table["fold"].nunique() == 1
    folds = [(table["fold"].iloc[0], table, table)] if in_sample else cross_fit_folds(table, other)
    for fold, fit, evaluated in folds:
        fit_units, _ = positive_scores(fit, positive=name)
        threshold = _conformal_threshold(fit_units, target, target_value, name)
        units, _ = positive_scores(evaluated, positive=name)
        units["correct"] = (units["score"] >= threshold) == units["of_class"]
        values = {metric: units.loc[included, "correct"].mean() for metric, included in _masks_by_metric(units)}
        counts = {"chosen_on": fit_units["patient"].nunique(), "evaluated": units["patient"].nunique()}
        rows.append({"fold": fold, "threshold": threshold, **counts, **values})
        units_by_fold.append(units)
    units = pd.concat(units_by_fold, ignore_index=True)
    metrics = [_proportion_row(metric, name, units[included]) for metric, included in _masks_by_metric(units)]
    return OperatingPoint(
        positive=name,
        target=target,
        target_value=target_value,
        threshold=_conformal_threshold(all_units, target, target_value, name),
        folds=pd.DataFrame(rows),
        metrics=pd.DataFrame(metrics, columns=COLUMNS),
        evaluated_on="the same patients" if in_sample else "other folds" if other is None else "other patients",
    )


def positive_scores(predictions: pd.DataFrame, *, positive: str | None = None) -> tuple[pd.DataFrame, str]:
    """Return one row per patient with the score of the positive class.

    Args:
        predictions: What `read_predictions` returned.
        positive: The positive class; None for the last of two.

    Returns:
        The table (`patient`, `label`, `images`, `score`, `of_class`), and the positive class.

    Raises:
        UsageError: There is no such class, or there are more than two classes and none is given.
        DataError: No row has both a label and a prediction.
    """
    classes = class_columns(predictions)
    positive = choose_positive(classes, positive, one_vs_rest=True)
    if positive is None:
        raise UsageError(
            f"There are {len(classes)} classes and positive is None.",
            hint=f"Give positive=, one of {', '.join(classes)}.",
        )
    units = score_units(predictions).table
    units = units.assign(score=units[PROBABILITY + positive], of_class=units["label"].eq(positive))
    return units[["patient", "label", "images", "score", "of_class"]], positive


def _select_target(sensitivity: float | None, specificity: float | None) -> tuple[str, float]:
    """Return the targeted metric and its value; a sensitivity of 0.9 if none is given."""
    if sensitivity is not None and specificity is not None:
        raise UsageError(
            f"sensitivity={sensitivity:g} and specificity={specificity:g} are mutually exclusive.",
            hint="Give one of them.",
        )
    if specificity is not None:
        return "specificity", float(specificity)
    return "sensitivity", 0.9 if sensitivity is None else float(sensitivity)


def _conformal_threshold(units: pd.DataFrame, target: str, target_value: float, positive: str) -> float:
    """Return the threshold for a target; see `choose_threshold`."""
    counts = units["of_class"].value_counts()
    if len(counts) < 2:
        raise DataError(
            f"A threshold needs patients of {positive} and other classes; all {len(units)} are of one kind.",
            hint="Give labelled predictions of both.",
        )
    scores, of_class = units["score"].to_numpy(), units["of_class"].to_numpy()
    if target == "sensitivity":
        positives = np.sort(scores[of_class])[::-1]
        lowest = positives[_conformal_count(target_value, len(positives)) - 1]  # the lowest score to accept
        below = scores[scores < lowest]
        return float((lowest + below.max()) / 2 if len(below) else lowest / 2)
    negatives = np.sort(scores[~of_class])
    highest = negatives[_conformal_count(target_value, len(negatives)) - 1]  # the highest score to reject
    above = scores[scores > highest]
    if highest >= 1:
        raise DataError(
            f"No threshold meets a specificity of {target_value:g}: patients of classes other than {positive} have a "
            "probability of 1.",
            hint="Lower the target, or give probabilities with more digits.",
        )
    return float((highest + above.min()) / 2 if len(above) else (highest + 1) / 2)


def _conformal_count(target_value: float, n: int) -> int:
    """Return how many of n patients have to be classified correctly: s (n + 1) rounded up, n at most."""
    return min(math.ceil(target_value * (n + 1) - ROUNDING), n)


def _masks_by_metric(units: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Return the units that each metric counts."""
    return [("sensitivity", units["of_class"]), ("specificity", ~units["of_class"])]


def _proportion_row(metric: str, positive: str, units: pd.DataFrame) -> dict[str, Any]:
    """Return a row of `OperatingPoint.metrics`."""
    n, low, high, method = len(units), math.nan, math.nan, "no unit"
    if n and units["patient"].is_unique:
        low, high, method = *wilson(units["correct"].mean(), n), "Wilson"
    elif n:  # a patient in several folds is a cluster
        correct = units["correct"].to_numpy().astype(float)
        low, high, method = *clustered_proportion(correct, units["patient"].to_numpy()), "Wilson, effective n"
    value = float(units["correct"].mean()) if n else math.nan
    return dict(zip(COLUMNS, (metric, positive, value, low, high, n, "patient", method), strict=True))
