"""Influence values: how a metric changes with the weight of each unit, which gives variances without resamples."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

__all__ = ["auc_influence", "average_precision_influence", "f1_influence", "gap_influence", "mean_influence"]


def mean_influence(values: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Compute the influence of each unit on a mean over the included units, such as a proportion.

    Args:
        values: The value of each unit, `(n,)`.
        included: Whether each unit counts, bool `(n,)`.

    Returns:
        The derivative of the mean by the weight of each unit, where all weights are 1, `(n,)`.
    """
    return np.where(included, values - values[included].mean(), 0.0) / included.sum()


def auc_influence(scores: np.ndarray, of_class: np.ndarray, strata: np.ndarray | None = None) -> np.ndarray:
    """Compute the influence of each unit on an area under the ROC curve; with strata, on that within them.

    Args:
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.
        strata: The stratum of each unit, such as its fold, `(n,)`; None for one.

    Returns:
        As `mean_influence`.
    """
    codes = np.zeros(len(scores), dtype=int) if strata is None else np.unique(strata, return_inverse=True)[1]
    ordered = np.zeros(len(scores))  # pairs of each unit that are in order; ties count half
    pairs = np.zeros(len(scores))
    for code in range(int(codes.max()) + 1):
        units = np.flatnonzero(codes == code)
        positives = of_class[units]
        ranks = rankdata(scores[units])
        own = np.empty(len(units))
        for kind in (positives, ~positives):
            own[kind] = rankdata(scores[units[kind]])
        below = ranks - own  # units of the other kind with a lower score
        ordered[units] = np.where(positives, below, positives.sum() - below)
        pairs[units] = np.where(positives, (~positives).sum(), positives.sum())
    total = pairs[of_class].sum()
    return (ordered - ordered[of_class].sum() / total * pairs) / total


def average_precision_influence(scores: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """Compute the influence of each unit on an average precision.

    A unit counts as a positive with its own precision, and it changes the precision at all scores up to its own.

    Args:
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.

    Returns:
        As `mean_influence`.
    """
    _, group = np.unique(-scores, return_inverse=True)  # the highest score first
    positives = np.bincount(group, of_class)
    true, called = np.cumsum(positives), np.cumsum(np.bincount(group))
    precision, total = true / called, true[-1]
    average = (positives * precision).sum() / total
    # sums over the scores up to that of the unit
    gain = np.cumsum((positives / called)[::-1])[::-1]
    loss = np.cumsum((positives * precision / called)[::-1])[::-1]
    return (of_class * (precision[group] - average + gain[group]) - loss[group]) / total


def f1_influence(of_class: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute the influence of each unit on an F1 score.

    Args:
        of_class: Whether each unit is of the class, bool `(n,)`.
        predicted: Whether each unit is predicted as the class, bool `(n,)`.

    Returns:
        As `mean_influence`.
    """
    called = of_class.astype(float) + predicted
    value = 2 * (of_class & predicted).sum() / called.sum()
    return (2.0 * (of_class & predicted) - value * called) / called.sum()


def gap_influence(bins: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Compute the influence of each unit on the signed gap of each calibration bin.

    Their absolute values, whose sum is the calibration error, have no derivative where a gap is 0.

    Args:
        bins: The bin of each unit, `(n,)`.
        terms: The probability of each unit minus its outcome, `(n,)`.

    Returns:
        `(n, bins)`.
    """
    n = len(bins)
    influences = -np.tile(np.bincount(bins, terms) / n, (n, 1))
    influences[np.arange(n), bins] += terms
    return influences / n
