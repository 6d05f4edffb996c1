"""Metrics as functions of unit weights, so that several models are compared on the same bootstrap resamples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from covid_fastai.evaluation.bootstrap import average_precision, calibration_gaps, roc_auc
from covid_fastai.evaluation.prediction_table import PROBABILITY

__all__ = [
    "LOWER_IS_BETTER",
    "SMALLEST_P",
    "WeightedMetric",
    "compute_in_blocks",
    "list_weighted_metrics",
    "probability_and_outcome",
]

LOWER_IS_BETTER = {"brier", "log_loss", "ece"}
SMALLEST_P = 1e-15  # clips log(0); close to the float64 epsilon, at which scikit-learn's log_loss clips
BLOCK = 5_000_000  # weights processed at a time, about 200 MB with intermediate results


@dataclass(frozen=True, eq=False)
class WeightedMetric:
    """A metric of n units as a function of their weights.

    Attributes:
        metric: The name, such as `"auc"`.
        of: The class; "" for all classes together, `"macro"` for the mean over the classes.
        compute: Maps weights `(d, n)` to the metric of each resample, `(d,)`.
        included: Whether each unit counts, bool `(n,)`.
        hit: For a proportion, whether each unit is in its numerator, 0 or 1 `(n,)`; else None.
        scores: For the AUC of one class, the score of each unit, `(n,)`; else None.
        of_class: For the AUC of one class, whether each unit is of the class, bool `(n,)`; else None.
        gaps: For the calibration error, maps weights `(d, n)` to the signed gap of each bin, `(d, bins)`; else None.
    """

    metric: str
    of: str
    compute: Callable[[np.ndarray], np.ndarray]
    included: np.ndarray
    hit: np.ndarray | None = None
    scores: np.ndarray | None = None
    of_class: np.ndarray | None = None
    gaps: Callable[[np.ndarray], np.ndarray] | None = None


def list_weighted_metrics(units: pd.DataFrame, classes: list[str], positive: str | None) -> list[WeightedMetric]:
    """Return the metrics of all classes together, and those of the positive class or of each class.

    Args:
        units: `Scores.table`, one row per unit: `label`, `predicted`, `p_<class>`.
        classes: The classes in their order.
        positive: The positive class; None with more than two classes.

    Returns:
        The metrics, in the order of the report.
    """
    truth = pd.Categorical(units["label"], categories=classes).codes
    predicted = pd.Categorical(units["predicted"], categories=classes).codes
    p = units[[PROBABILITY + name for name in classes]].to_numpy()
    all_units = np.ones(len(truth), dtype=bool)
    metrics = [_proportion("accuracy", "", truth == predicted, all_units)]
    metrics.append(
        WeightedMetric("balanced_accuracy", "", lambda w: _balanced_accuracy(w, truth, predicted), all_units)
    )
    by_class: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "auc": lambda w, k: roc_auc(p[:, k], truth == k, w),
        "average_precision": lambda w, k: average_precision(p[:, k], truth == k, w),
        "f1": lambda w, k: _f1(w, truth == k, predicted == k),
    }
    for k in [classes.index(positive)] if positive else range(len(classes)):
        name, of_class = classes[k], truth == k
        metrics.append(_proportion("sensitivity", name, predicted == k, of_class))
        metrics.append(_proportion("specificity", name, predicted != k, ~of_class))
        for metric, compute in by_class.items():
            ranking = {"scores": p[:, k], "of_class": of_class} if metric == "auc" else {}
            metrics.append(WeightedMetric(metric, name, lambda w, c=compute, k=k: c(w, k), all_units, **ranking))
    if positive is None:
        for metric, compute in by_class.items():
            macro = lambda w, c=compute: np.mean([c(w, k) for k in range(len(classes))], axis=0)  # noqa: E731
            metrics.append(WeightedMetric(metric, "macro", macro, all_units))
    # Brier score: of the positive class with two classes (0 to 1), else summed over the classes (0 to 2; Brier 1950)
    errors = (p - np.eye(len(classes))[truth]) ** 2
    errors = errors[:, classes.index(positive)] if positive else errors.sum(axis=1)
    losses = -np.log(np.clip(p[np.arange(len(truth)), truth], SMALLEST_P, 1))
    metrics.append(WeightedMetric("brier", "", lambda w: _mean(w, errors), all_units))
    metrics.append(WeightedMetric("log_loss", "", lambda w: _mean(w, losses), all_units))
    probability, outcome = probability_and_outcome(units, classes, positive)
    gaps = lambda w: calibration_gaps(probability, outcome, w)  # noqa: E731
    metrics.append(WeightedMetric("ece", "", lambda w: np.abs(gaps(w)).sum(axis=1), all_units, gaps=gaps))
    return metrics


def probability_and_outcome(
    units: pd.DataFrame, classes: list[str], positive: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities whose calibration is measured, and whether each predicted event occurred.

    Args:
        units: As in `list_weighted_metrics`.
        classes: The classes in their order.
        positive: The positive class, whose probability is returned; None for the greatest probability of each unit.

    Returns:
        Probabilities `(n,)`, and outcomes, 0 or 1 `(n,)`.
    """
    if positive:
        return units[PROBABILITY + positive].to_numpy(), (units["label"] == positive).to_numpy().astype(float)
    p = units[[PROBABILITY + name for name in classes]].to_numpy()
    truth = pd.Categorical(units["label"], categories=classes).codes
    return p.max(axis=1), (p.argmax(axis=1) == truth).astype(float)


def compute_in_blocks(compute: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Compute a metric of all resamples, block by block to limit memory.

    Args:
        compute: `WeightedMetric.compute`, or any function of weights `(d, n)` with one row per resample.
        weights: Counts `(d, n)`, as `resample_patients` returns them.

    Returns:
        `(d,)`, or as many rows `(d, ...)`.
    """
    blocks = np.array_split(weights, max(1, -(-weights.size // BLOCK)))  # -(-a // b) rounds up
    return np.concatenate([compute(block.astype(float)) for block in blocks])


def _proportion(metric: str, of: str, hit: np.ndarray, included: np.ndarray) -> WeightedMetric:
    """Return the fraction of the included units that are hits, as a weighted metric."""
    hit = hit.astype(float)
    return WeightedMetric(metric, of, lambda w: _mean(w[:, included], hit[included]), included, hit=hit)


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weighted mean of each resample, `(d,)`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ values / weights.sum(axis=1)


def _balanced_accuracy(weights: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the mean recall over the classes in the data, `(d,)`; NaN with one class only."""
    present = np.unique(truth)
    if len(present) < 2:
        return np.full(len(weights), np.nan)
    recalls = [_mean(weights[:, truth == k], (predicted[truth == k] == k).astype(float)) for k in present]
    return np.mean(recalls, axis=0)


def _f1(weights: np.ndarray, of_class: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of precision and sensitivity, `(d,)`; NaN without units of the class."""
    if not of_class.any():
        return np.full(len(weights), np.nan)
    true_positives = weights @ (of_class & predicted).astype(float)
    # F1 = 2 TP / (2 TP + FP + FN), whose denominator is the number of positives plus that of positive predictions
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * true_positives / (weights @ of_class.astype(float) + weights @ predicted.astype(float))
