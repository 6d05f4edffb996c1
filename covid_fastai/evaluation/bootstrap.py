"""Bootstrap draws of patients, and curves under weights, all draws at once; folds to fit on and to judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.prediction_table import has_label_and_prediction

__all__ = [
    "average_precision",
    "calibration_gaps",
    "equal_mass_bins",
    "other_folds",
    "patient_draws",
    "precision_at",
    "roc_auc",
    "sensitivity_at",
]

BINS = 10  # of the expected calibration error


def patient_draws(patients: pd.Series, labels: pd.Series, *, n_resamples: int, seed: int) -> np.ndarray:
    """Draw patients with replacement, class by class, and say how often each unit is drawn.

    All units of a patient are drawn together. Patients with the same labels are a stratum, so that each draw has as
    many patients of each class as the data.

    Args:
        patients: The patient of each unit, `(n,)`.
        labels: The true class of each unit, `(n,)`.
        n_resamples: How many draws.
        seed: Of the random numbers.

    Returns:
        Counts, uint16 `(n_resamples, n)`.
    """
    codes, names = pd.factorize(patients, sort=True)
    strata = pd.Series(np.asarray(labels)).groupby(codes).agg(lambda values: "\0".join(sorted(set(values))))
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(names)), dtype=np.uint16)
    for _, members in sorted(strata.groupby(strata).groups.items()):
        members = np.asarray(members)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_resamples)
    return counts[:, codes]


def _cumulated(scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of true and of false positives at each distinct score from the highest on, `(d, t)` both."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last unit of each tie
    drawn = weights[:, order]
    true = np.cumsum(drawn * of_class[order], axis=1)[:, ends]
    return true, np.cumsum(drawn, axis=1)[:, ends] - true


def roc_auc(scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve in each draw; ties count half.

    Args:
        scores: `(n,)`.
        of_class: Which units are of the class, bool `(n,)`.
        weights: `(d, n)`.

    Returns:
        `(d,)`; NaN where one side is not there.
    """
    true, false = _cumulated(scores, of_class, weights)
    true, false = np.pad(true, ((0, 0), (1, 0))), np.pad(false, ((0, 0), (1, 0)))
    area = (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return area / (true[:, -1] * false[:, -1])


def average_precision(scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the average precision in each draw: precision summed over the steps of recall, without interpolation.

    Args:
        scores: `(n,)`.
        of_class: Which units are of the class, bool `(n,)`.
        weights: `(d, n)`.

    Returns:
        `(d,)`; NaN where the class is not there.
    """
    true, false = _cumulated(scores, of_class, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(true / (true + false))  # before the first unit that is drawn there is no step
        return (np.diff(np.pad(true, ((0, 0), (1, 0))), axis=1) * precision).sum(axis=1) / true[:, -1]


def sensitivity_at(grid: np.ndarray, scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ROC curves' sensitivity at given false positive rates, `(d, len(grid))`, linear between the points."""
    true, false = _cumulated(scores, of_class, weights)
    curves = []
    for hits, alarms in zip(true, false, strict=True):
        rates, found = np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1])
        last = np.append(np.diff(rates) > 0, True)  # where the curve rises straight up, its top counts
        curves.append(np.interp(grid, rates[last], found[last]))
    return np.array(curves)


def precision_at(grid: np.ndarray, scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the precision at given sensitivities, `(d, len(grid))`: that of the first threshold that reaches them."""
    true, false = _cumulated(scores, of_class, weights)
    curves = []
    for hits, alarms in zip(true, false, strict=True):
        drawn = hits + alarms > 0
        hits, alarms = hits[drawn], alarms[drawn]
        reached = np.searchsorted(hits / hits[-1], grid - 1e-12, side="left")  # 1e-12: a float's rounding
        curves.append((hits / (hits + alarms))[np.minimum(reached, len(hits) - 1)])
    return np.array(curves)


def equal_mass_bins(p: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Sort probabilities into bins of equal counts; equal probabilities share a bin, so that counts may differ.

    The edges are scikit-learn's, `calibration_curve(..., strategy="quantile")`.

    Args:
        p: `(n,)`.
        bins: How many, 1 or more.

    Returns:
        The number of each one's bin, from 0 on, `(n,)`; bins that are empty have no number.
    """
    edges = np.percentile(p, np.linspace(0, 100, bins + 1))
    return np.unique(np.searchsorted(edges[1:-1], p), return_inverse=True)[1]


def calibration_gaps(p: np.ndarray, hit: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return how far each bin's mean probability lies above the share that came true, times the bin's share of units.

    The bins are those of the data, in each draw.

    Args:
        p: Probabilities, `(n,)`.
        hit: Whether they came true, 0 or 1, `(n,)`.
        weights: `(d, n)`.
        bins: How many, of equal counts.

    Returns:
        `(d, bins)`. The sum of the absolute values is the expected calibration error (ECE; Nguyen and O'Connor, EMNLP
        2015).
    """
    number = equal_mass_bins(p, bins)
    gaps = np.zeros((len(p), int(number.max()) + 1))
    gaps[np.arange(len(p)), number] = p - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ gaps / weights.sum(axis=1, keepdims=True)


def other_folds(
    judged: pd.DataFrame, fitted_on: pd.DataFrame | None = None
) -> Iterator[tuple[Any, pd.DataFrame, pd.DataFrame]]:
    """Yield what is fitted on which rows and judged on which others, never a patient in both.

    Args:
        judged: What `read_predictions` returned.
        fitted_on: The same of other patients, such as an inner validation set; None to fit for each fold of `judged` on
            its other folds.

    Yields:
        The fold ("" where `fitted_on` was given), its labelled rows to fit on, and its rows to judge.

    Raises:
        UsageError: There is one fold only, and nothing else to fit on.
        DataError: Tables share a patient, or the rows to fit on are of one class.
    """
    if fitted_on is not None:
        named = (set(table.loc[table["patient_known"], "patient"]) for table in (judged, fitted_on))
        if both := sorted(set.intersection(*named)):
            raise DataError(
                f"{len(both)} patients are in both tables, such as {both[0]}.",
                hint="What is judged must not be fitted on: give predictions of other patients.",
            )
        yield "", _two_classes(fitted_on, "the rows to fit on"), judged
        return
    folds = sorted(judged["fold"].unique())
    if len(folds) < 2:
        raise UsageError(
            f"All rows are of fold {folds[0]}: there are no others to fit on.",
            hint="Give out-of-fold predictions (cross_validate), or fitted_on=, predictions of other patients.",
        )
    for fold in folds:
        own = judged["fold"] == fold
        rest = judged[~own & ~judged["patient"].isin(judged.loc[own, "patient"])]
        yield fold, _two_classes(rest, f"the folds other than {fold}"), judged[own]


def _two_classes(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return the rows with a label and a prediction, of two classes at least."""
    rows = table[has_label_and_prediction(table)]
    if rows["label"].nunique() < 2:
        found = ", ".join(rows["label"].unique()) or "none"
        raise DataError(f"{what.capitalize()} have one class only: {found}.", hint="Give labelled rows of each class.")
    return rows
