"""A threshold for a stated sensitivity or specificity, chosen inside the folds, and what it comes to elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.bootstrap import other_folds
from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import clustered_proportion, wilson
from covid_fastai.evaluation.metrics import COLUMNS, find_row, score_units, summarise_figures
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

ROUNDING = 1e-9  # 0.9 * 10 is a little more than 9


@dataclass(frozen=True, eq=False, repr=False)
class OperatingPoint(ResultDisplay):
    """Thresholds for a promise, and what they came to on patients that they were not chosen on.

    Attributes:
        positive: The class that is predicted from the threshold on.
        promise: `"sensitivity"` or `"specificity"`.
        promised: Its value, 0 to 1.
        threshold: For later use, chosen on all rows that might be chosen on.
        folds: `fold`, `threshold`, `chosen_on` and `judged` (patients), `sensitivity`, `specificity` of the fold.
        metrics: Sensitivity and specificity of all folds together, in the columns of `Evaluation.metrics`.
        judged_on: `"other folds"`, `"other patients"`, or `"the same patients"`, which flatters.
    """

    positive: str
    promise: str
    promised: float
    threshold: float
    folds: pd.DataFrame
    metrics: pd.DataFrame
    judged_on: str

    def value(self, metric: str) -> float:
        """Return `"sensitivity"` or `"specificity"`."""
        return float(self.row(metric)["value"])

    def row(self, metric: str) -> dict[str, Any]:
        """Return one figure's row of `metrics`.

        Raises:
            UsageError: There is no such figure.
        """
        return find_row(self.metrics, metric)

    @property
    def kept(self) -> bool | None:
        """Whether the interval holds what was promised, or lies above it; None where no patient tells."""
        high = self.row(self.promise)["high"]
        return None if math.isnan(high) else bool(high >= self.promised)

    def to_dict(self) -> dict[str, Any]:
        """Return thresholds and figures as plain values."""
        names = ("positive", "promise", "promised", "threshold", "judged_on", "kept")
        records = {"folds": self.folds.to_dict("records"), "metrics": self.metrics.to_dict("records")}
        return {**{name: getattr(self, name) for name in names}, **records}

    def summary(self) -> pd.DataFrame:
        """Return the figures as text, for tables: `figure`, `value`, `95% interval`, `n`."""
        return summarise_figures(self.metrics)

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.summary(), f"{self.describe()} {RESEARCH_USE}")

    def describe(self) -> str:
        """Return what was promised and what came, as a sentence or two."""
        row = self.row(self.promise)
        text = f"{self.positive} from {self.threshold:.4g} on, for a {self.promise} of {self.promised:g}: "
        if math.isnan(row["value"]):
            return f"{text}no patient to judge it on."
        came = f"{format_estimate(row['value'], row['low'], row['high'])} came"
        where = {"other folds": "on the folds that it was not chosen on", "other patients": "on other patients"}
        if self.judged_on not in where:
            return f"{text}{came} on the same patients that it was chosen on; expect less of others."
        return f"{text}{came} {where[self.judged_on]}.{'' if self.kept else ' The promise was not kept.'}"


@checked
def choose_threshold(
    predictions: str | Path | pd.DataFrame,
    *,
    sensitivity: Fraction | None = None,
    specificity: Fraction | None = None,
    positive: str | None = None,
) -> float:
    """Choose the threshold that keeps a promised sensitivity (or specificity) and loses least of the other.

    A patient's score is the mean probability over their images. With n patients of the class and a promise s the
    threshold lets the k best of them through, k = s (n + 1) rounded up: a new patient then falls on the right side with
    a probability of s or more (the quantile of split conformal prediction; Vovk et al. 2005). The plain quantile, k =
    s n, keeps it on these patients only. With fewer than s / (1 - s) patients, such as 9 for 0.9, all of them have to
    pass and no promise holds for others. The threshold lies halfway to the next score, so that rounding moves nobody.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        sensitivity: The share of the class's patients that shall be found, above 0 to 1; 0.9 if neither is given.
        specificity: The share of the others that shall not be, above 0 to 1.
        positive: The class; None for the last of two. With more classes it is judged against the rest.

    Returns:
        The probability from which the positive class is predicted, 0 to 1, as `evaluate` and `save_model` take it.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, a class has no patient, or no threshold keeps the promise.
    """
    promise, promised = _promise(sensitivity, specificity)
    units, positive = positive_scores(read_predictions(predictions), positive=positive)
    return _choose(units, promise, promised, positive)


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
    """Choose a threshold for each fold on the others, and judge it on the fold: what a promise comes to.

    Args:
        predictions: Out-of-fold predictions, whose `fold` says which model made them; or any, with `fitted_on`.
        sensitivity: As in `choose_threshold`.
        specificity: As in `choose_threshold`.
        positive: As in `choose_threshold`.
        fitted_on: Predictions of other patients by the same model, such as an inner validation set, to choose on.
        same_patients: Where there is one fold only and nothing else to choose on, choose and judge on the same
            patients, which flatters; the result says so.

    Returns:
        The operating point: the thresholds, and sensitivity and specificity over all folds with Wilson's intervals.

    Raises:
        UsageError: There is one fold only and no `fitted_on`, or an option has a value that is not allowed.
        DataError: A table is faulty, tables share patients, a class has no patient to choose on, or no threshold keeps
            the promise.
    """
    promise, promised = _promise(sensitivity, specificity)
    table = read_predictions(predictions)
    table = table[has_label_and_prediction(table)]
    other = None if fitted_on is None else read_predictions(fitted_on)
    chosen_on, name = positive_scores(table if other is None else other, positive=positive)
    rows, parts = [], []
    alone = same_patients and other is None and table["fold"].nunique() == 1
    for fold, fit, judged in [(table["fold"].iloc[0], table, table)] if alone else other_folds(table, other):
        chosen, _ = positive_scores(fit, positive=name)
        threshold = _choose(chosen, promise, promised, name)
        units, _ = positive_scores(judged, positive=name)
        units["right"] = (units["score"] >= threshold) == units["of_class"]
        shares = {key: units.loc[among, "right"].mean() for key, among in _sides(units)}
        counts = {"chosen_on": chosen["patient"].nunique(), "judged": units["patient"].nunique()}
        rows.append({"fold": fold, "threshold": threshold, **counts, **shares})
        parts.append(units)
    units = pd.concat(parts, ignore_index=True)
    figures = [_figure(key, name, units[among]) for key, among in _sides(units)]
    return OperatingPoint(
        positive=name,
        promise=promise,
        promised=promised,
        threshold=_choose(chosen_on, promise, promised, name),
        folds=pd.DataFrame(rows),
        metrics=pd.DataFrame(figures, columns=COLUMNS),
        judged_on="the same patients" if alone else "other folds" if other is None else "other patients",
    )


def positive_scores(predictions: pd.DataFrame, *, positive: str | None = None) -> tuple[pd.DataFrame, str]:
    """Return one row a patient with the score of the positive class.

    Args:
        predictions: What `read_predictions` returned.
        positive: The class; None for the last of two.

    Returns:
        The table (`patient`, `label`, `images`, `score`, `of_class`), and the class.

    Raises:
        UsageError: There is no such class, or there are more than two and none is named.
        DataError: No row has both a label and a prediction.
    """
    classes = class_columns(predictions)
    positive = choose_positive(classes, positive, one_vs_rest=True)
    if positive is None:
        raise UsageError(f"There are {len(classes)} classes.", hint=f"Give positive=, one of {', '.join(classes)}.")
    units = score_units(predictions).table
    units = units.assign(score=units[PROBABILITY + positive], of_class=units["label"].eq(positive))
    return units[["patient", "label", "images", "score", "of_class"]], positive


def _promise(sensitivity: float | None, specificity: float | None) -> tuple[str, float]:
    if sensitivity is not None and specificity is not None:
        raise UsageError("Both sensitivity and specificity are promised.", hint="Give one of them.")
    promise = "specificity" if specificity is not None else "sensitivity"
    promised = specificity if specificity is not None else 0.9 if sensitivity is None else sensitivity
    return promise, float(promised)


def _choose(units: pd.DataFrame, promise: str, promised: float, positive: str) -> float:
    """Return the threshold; a specificity is a sensitivity seen from the other side."""
    counts = units["of_class"].value_counts()
    if len(counts) < 2:
        raise DataError(
            f"A threshold needs patients of {positive} and others; there are {len(units)} of one kind.",
            hint="Give labelled predictions of both.",
        )
    scores, wanted = units["score"].to_numpy(), units["of_class"].to_numpy()
    if promise == "sensitivity":
        own = np.sort(scores[wanted])[::-1]
        last = own[_count(promised, len(own)) - 1]  # the lowest that shall pass
        below = scores[scores < last]
        return float((last + below.max()) / 2 if len(below) else last / 2)
    others = np.sort(scores[~wanted])
    last = others[_count(promised, len(others)) - 1]  # the highest that shall not pass
    above = scores[scores > last]
    if last >= 1:
        raise DataError(
            f"No threshold keeps a specificity of {promised:g}: others than {positive} have a probability of 1.",
            hint="Promise less, or give probabilities with more digits.",
        )
    return float((last + above.min()) / 2 if len(above) else (last + 1) / 2)


def _count(promised: float, n: int) -> int:
    return min(math.ceil(promised * (n + 1) - ROUNDING), n)


def _sides(units: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    return [("sensitivity", units["of_class"]), ("specificity", ~units["of_class"])]


def _figure(metric: str, positive: str, units: pd.DataFrame) -> dict[str, Any]:
    """Return a row of `OperatingPoint.metrics`."""
    n, low, high, method = len(units), math.nan, math.nan, "no unit"
    if n and units["patient"].is_unique:
        low, high, method = *wilson(units["right"].mean(), n), "Wilson"
    elif n:
        hit = units["right"].to_numpy().astype(float)
        low, high, method = *clustered_proportion(hit, units["patient"].to_numpy()), "Wilson, effective n"
    value = float(units["right"].mean()) if n else math.nan
    return dict(zip(COLUMNS, (metric, positive, value, low, high, n, "patient", method), strict=True))
