"""Bootstrap draws of patients, and curves under weights: all draws at once, as arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = [
    "average_precision",
    "calibration_error",
    "equal_mass_bins",
    "patient_draws",
    "precision_at",
    "roc_auc",
    "sensitivity_at",
]

BINS = 10  # of the expected calibration error


def patient_draws(patients: pd.Series, labels: pd.Series, *, draws: int, seed: int) -> np.ndarray:
    """Draw patients with replacement, class by class, and say how often each unit is drawn.

    All units of a patient are drawn together. Patients with the same labels are a stratum, so that each draw has as
    many patients of each class as the data.

    Args:
        patients: The patient of each unit, `(n,)`.
        labels: The true class of each unit, `(n,)`.
        draws: How many draws.
        seed: Of the random numbers.

    Returns:
        Counts, uint16 `(draws, n)`.
    """
    codes, names = pd.factorize(patients, sort=True)
    strata = pd.Series(np.asarray(labels)).groupby(codes).agg(lambda values: "\0".join(sorted(set(values))))
    rng = np.random.default_rng(seed)
    counts = np.zeros((draws, len(names)), dtype=np.uint16)
    for _, members in sorted(strata.groupby(strata).groups.items()):
        members = np.asarray(members)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
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


def calibration_error(p: np.ndarray, hit: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the expected calibration error in each draw, over bins of equal counts (Nguyen and O'Connor, EMNLP 2015).

    It is the mean over the bins, by their weight, of the distance between the mean probability and the share that came
    true. The bins are those of the data, in each draw.

    Args:
        p: Probabilities, `(n,)`.
        hit: Whether they came true, 0 or 1, `(n,)`.
        weights: `(d, n)`.
        bins: How many.

    Returns:
        `(d,)`, 0 to 1.
    """
    number = equal_mass_bins(p, bins)
    gaps = np.zeros((len(p), int(number.max()) + 1))
    gaps[np.arange(len(p)), number] = p - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)
