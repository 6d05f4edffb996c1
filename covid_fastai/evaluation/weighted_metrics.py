"""Figures as functions of how often each unit is drawn, so that several models are judged by the same draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from covid_fastai.evaluation.bootstrap import average_precision, calibration_gaps, roc_auc
from covid_fastai.evaluation.prediction_table import PROBABILITY

__all__ = ["LOWER_IS_BETTER", "Measure", "SMALLEST_P", "compute_in_blocks", "confidence", "list_measures"]

LOWER_IS_BETTER = {"brier", "log_loss", "ece"}
SMALLEST_P = 1e-15  # scikit-learn's clip in log_loss has the size of a float's rounding; this is near it
BLOCK = 5_000_000  # weights that are worked on at a time: some 200 MB


@dataclass(frozen=True, eq=False)
class Measure:
    """A figure of n units.

    Attributes:
        metric: Its name, such as `"auc"`.
        of: The class; "" for all classes together, `"macro"` for their plain mean.
        compute: From weights `(d, n)` to the figure in each draw, `(d,)`.
        among: Which units it counts, bool `(n,)`.
        hit: Of a proportion, whether each unit is counted in it, 0 or 1 `(n,)`; else None.
        scores: Of the AUC of one class, the score of each unit, `(n,)`; else None.
        of_class: Of the AUC of one class, which units are of it, bool `(n,)`; else None.
        gaps: Of the calibration error, from weights `(d, n)` to the signed gap of each bin, `(d, bins)`; else None.
    """

    metric: str
    of: str
    compute: Callable[[np.ndarray], np.ndarray]
    among: np.ndarray
    hit: np.ndarray | None = None
    scores: np.ndarray | None = None
    of_class: np.ndarray | None = None
    gaps: Callable[[np.ndarray], np.ndarray] | None = None


def list_measures(units: pd.DataFrame, classes: list[str], positive: str | None) -> list[Measure]:
    """Return the figures of all classes together, and those of the positive class or of each one.

    Args:
        units: `Scores.table`: `label`, `predicted`, `p_<class>`, a row a unit.
        classes: The classes in their order.
        positive: The positive class; None where there are more than two.

    Returns:
        The figures, in the order of the report.
    """
    truth = pd.Categorical(units["label"], categories=classes).codes
    predicted = pd.Categorical(units["predicted"], categories=classes).codes
    p = units[[PROBABILITY + name for name in classes]].to_numpy()
    everyone = np.ones(len(truth), dtype=bool)
    found = [_proportion("accuracy", "", truth == predicted, everyone)]
    found.append(Measure("balanced_accuracy", "", lambda w: _balanced_accuracy(w, truth, predicted), everyone))
    one_each: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "auc": lambda w, k: roc_auc(p[:, k], truth == k, w),
        "average_precision": lambda w, k: average_precision(p[:, k], truth == k, w),
        "f1": lambda w, k: _f1(w, truth == k, predicted == k),
    }
    for k in [classes.index(positive)] if positive else range(len(classes)):
        name, of_class = classes[k], truth == k
        found.append(_proportion("sensitivity", name, predicted == k, of_class))
        found.append(_proportion("specificity", name, predicted != k, ~of_class))
        for metric, compute in one_each.items():
            ranked = {"scores": p[:, k], "of_class": of_class} if metric == "auc" else {}
            found.append(Measure(metric, name, lambda w, c=compute, k=k: c(w, k), everyone, **ranked))
    if positive is None:
        for metric, compute in one_each.items():
            macro = lambda w, c=compute: np.mean([c(w, k) for k in range(len(classes))], axis=0)  # noqa: E731
            found.append(Measure(metric, "macro", macro, everyone))
    errors = (p - np.eye(len(classes))[truth]) ** 2
    errors = errors[:, classes.index(positive)] if positive else errors.sum(axis=1)
    losses = -np.log(np.clip(p[np.arange(len(truth)), truth], SMALLEST_P, 1))
    found.append(Measure("brier", "", lambda w: _mean(w, errors), everyone))
    found.append(Measure("log_loss", "", lambda w: _mean(w, losses), everyone))
    given, right = confidence(units, classes, positive)
    gaps = lambda w: calibration_gaps(given, right, w)  # noqa: E731
    found.append(Measure("ece", "", lambda w: np.abs(gaps(w)).sum(axis=1), everyone, gaps=gaps))
    return found


def confidence(units: pd.DataFrame, classes: list[str], positive: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability that calibration is about, and whether it came true.

    Args:
        units: As in `list_measures`.
        classes: The classes in their order.
        positive: The positive class, whose probability it is; None for the greatest probability of each unit.

    Returns:
        The probabilities `(n,)`, and 0 or 1 `(n,)`.
    """
    if positive:
        return units[PROBABILITY + positive].to_numpy(), (units["label"] == positive).to_numpy().astype(float)
    p = units[[PROBABILITY + name for name in classes]].to_numpy()
    truth = pd.Categorical(units["label"], categories=classes).codes
    return p.max(axis=1), (p.argmax(axis=1) == truth).astype(float)


def compute_in_blocks(compute: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Compute a figure in all draws, block by block, so that memory stays small.

    Args:
        compute: `Measure.compute`.
        weights: Counts `(d, n)`, as `patient_draws` returns them.

    Returns:
        `(d,)`, or as many rows `(d, ...)`.
    """
    blocks = np.array_split(weights, max(1, -(-weights.size // BLOCK)))
    return np.concatenate([compute(block.astype(float)) for block in blocks])


def _proportion(metric: str, of: str, hit: np.ndarray, among: np.ndarray) -> Measure:
    hit = hit.astype(float)
    return Measure(metric, of, lambda w: _mean(w[:, among], hit[among]), among, hit=hit)


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weighted mean in each draw, `(d,)`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ values / weights.sum(axis=1)


def _balanced_accuracy(weights: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the mean over the classes that are there of the share that is recognised, `(d,)`."""
    present = np.unique(truth)
    if len(present) < 2:
        return np.full(len(weights), np.nan)
    shares = [_mean(weights[:, truth == k], (predicted[truth == k] == k).astype(float)) for k in present]
    return np.mean(shares, axis=0)


def _f1(weights: np.ndarray, of_class: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of precision and sensitivity, `(d,)`; NaN without units of the class."""
    if not of_class.any():
        return np.full(len(weights), np.nan)
    both = weights @ (of_class & said).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * both / (weights @ of_class.astype(float) + weights @ said.astype(float))
