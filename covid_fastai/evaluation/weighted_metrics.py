"""Metrics as functions of unit weights, so that several models are compared on the same bootstrap resamples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.evaluation.bootstrap import (
    average_precision,
    calibration_gaps,
    equal_mass_bins,
    roc_auc,
    roc_auc_within,
)
from covid_fastai.evaluation.influence import (
    auc_influence,
    average_precision_influence,
    f1_influence,
    mean_influence,
)
from covid_fastai.evaluation.prediction_table import PROBABILITY

__all__ = [
    "LOWER_IS_BETTER",
    "SMALLEST_P",
    "WeightedMetric",
    "compute_in_blocks",
    "list_weighted_metrics",
    "probability_and_outcome",
]

MACRO = ("auc", "auc_pooled", "average_precision", "f1")  # metrics whose mean over the classes is reported
LOWER_IS_BETTER = {"brier", "log_loss", "ece"}
SMALLEST_P = 1e-15  # clips log(0); close to the float64 epsilon, at which scikit-learn's log_loss clips
BLOCK = 5_000_000  # weights processed at a time, about 200 MB with intermediate results


@dataclass(frozen=True, eq=False)
class Jaccard:
    """The units of a class, or predicted as such, and those of them that are both.

    Attributes:
        hit: Whether each unit is a true positive, 0 or 1 `(n,)`.
        included: Whether each unit is of the class or predicted as such, bool `(n,)`.
    """

    hit: np.ndarray
    included: np.ndarray


@dataclass(frozen=True, eq=False)
class WeightedMetric:
    """A metric of n units as a function of their weights.

    Attributes:
        metric: The name, such as `"auc"`.
        of: The class; "" for all classes together, `"macro"` for the mean over the classes.
        compute: Maps weights `(d, n)` to the metric of each resample, `(d,)`.
        included: Whether each unit counts, bool `(n,)`.
        influence: Returns the derivative of a finite metric by the weight of each unit, at equal weights, `(n,)`; None
            for the calibration error, which has none.
        hit: For a proportion, whether each unit is in its numerator, 0 or 1 `(n,)`; else None.
        jaccard: For F1, the proportion TP / (TP + FP + FN), of which it is a function; else None.
        parts: For a mean over classes, the metric of each class; else empty.
        scores: For a ranking metric of one class, the score of each unit, `(n,)`; else None.
        of_class: For a ranking metric of one class, whether each unit is of the class, bool `(n,)`; else None.
        strata: For an AUC within folds, the fold of each unit, `(n,)`; else None.
        losses: For a mean loss, the loss of each unit if each class were the true one, `(n, classes)`; else None.
        probabilities: For a mean loss, the probabilities of the classes, `(n, classes)`; else None.
        truth: For a mean loss, the number of the true class of each unit, `(n,)`; else None.
        gaps: For the calibration error, maps weights `(d, n)` to the signed gap of each bin, `(d, bins)`; else None.
        gap_terms: For the calibration error, the bin and the gap of each unit, `(n,)` each; else None.
        bins: For the calibration error, the number of units, the sum of the probabilities and the number of events of
            each bin, `(bins,)` each; else None.
    """

    metric: str
    of: str
    compute: Callable[[np.ndarray], np.ndarray]
    included: np.ndarray
    influence: Callable[[], np.ndarray] | None
    hit: np.ndarray | None = None
    jaccard: Jaccard | None = None
    parts: tuple[WeightedMetric, ...] = ()
    scores: np.ndarray | None = None
    of_class: np.ndarray | None = None
    strata: np.ndarray | None = None
    losses: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    truth: np.ndarray | None = None
    gaps: Callable[[np.ndarray], np.ndarray] | None = None
    gap_terms: tuple[np.ndarray, np.ndarray] | None = None
    bins: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


def list_weighted_metrics(units: pd.DataFrame, classes: list[str], positive: str | None) -> list[WeightedMetric]:
    """Return the metrics of all classes together, and those of the positive class or of each class.

    Args:
        units: `Scores.table`, one row per unit: `label`, `predicted`, `p_<class>`, and `fold` if there are several. The
            AUC is then computed within folds, followed by `auc_pooled`, that of all folds together.
        classes: The classes in their order.
        positive: The positive class; None with more than two classes.

    Returns:
        The metrics, in the order of the report.
    """
    truth = pd.Categorical(units["label"], categories=classes).codes
    predicted = pd.Categorical(units["predicted"], categories=classes).codes
    p = units[[PROBABILITY + name for name in classes]].to_numpy()
    all_units = np.ones(len(truth), dtype=bool)
    metrics = [_proportion("accuracy", "", truth == predicted, all_units), _balanced_accuracy(truth, predicted)]
    folds = units["fold"].astype(str).to_numpy() if "fold" in units else None
    by_class = [
        _metrics_of_class(k, classes[k], p, truth, predicted, folds)
        for k in ([classes.index(positive)] if positive else range(len(classes)))
    ]
    metrics += [metric for of_class in by_class for metric in of_class]
    if positive is None:
        for metric in MACRO:
            of_classes = [each for of_class in by_class for each in of_class if each.metric == metric]
            if len(of_classes) == len(classes):
                metrics.append(_mean_of_classes(metric, "macro", of_classes))
    # Brier score: of the positive class with two classes (0 to 1), else summed over the classes (0 to 2; Brier 1950)
    squares = (p[:, None, :] - np.eye(len(classes))) ** 2  # (n, true class, class)
    errors = squares[:, :, classes.index(positive)] if positive else squares.sum(axis=2)
    losses = -np.log(np.clip(p, SMALLEST_P, 1))
    for metric, if_true in (("brier", errors), ("log_loss", losses)):
        observed = if_true[np.arange(len(truth)), truth]
        about: dict[str, Any] = {"losses": if_true, "probabilities": p, "truth": truth}
        compute, influence = lambda w, x=observed: _mean(w, x), lambda x=observed: mean_influence(x, all_units)
        metrics.append(WeightedMetric(metric, "", compute, all_units, influence, **about))
    probability, outcome = probability_and_outcome(units, classes, positive)
    metrics.append(_calibration_error(probability, outcome, all_units))
    return metrics


def _metrics_of_class(
    k: int, name: str, p: np.ndarray, truth: np.ndarray, predicted: np.ndarray, folds: np.ndarray | None
) -> list[WeightedMetric]:
    """Return the metrics of one class against the others, in the order of the report."""
    of_class, called, everyone = truth == k, predicted == k, np.ones(len(truth), dtype=bool)
    ranking: dict[str, Any] = {"scores": p[:, k], "of_class": of_class}
    either = Jaccard((of_class & called).astype(float), of_class | called)
    return [
        _proportion("sensitivity", name, called, of_class),
        _proportion("specificity", name, ~called, ~of_class),
        *_aucs(name, p[:, k], of_class, folds),
        WeightedMetric(
            "average_precision",
            name,
            lambda w: average_precision(p[:, k], of_class, w),
            everyone,
            lambda: average_precision_influence(p[:, k], of_class),
            **ranking,
        ),
        WeightedMetric(
            "f1",
            name,
            lambda w: _f1(w, of_class, called),
            everyone,
            lambda: f1_influence(of_class, called),
            jaccard=either,
        ),
    ]


def _aucs(name: str, scores: np.ndarray, of_class: np.ndarray, folds: np.ndarray | None) -> list[WeightedMetric]:
    """Return the AUC; with folds that within folds and that of all folds together."""
    everyone = np.ones(len(scores), dtype=bool)
    ranking: dict[str, Any] = {"scores": scores, "of_class": of_class}
    pooled = (lambda w: roc_auc(scores, of_class, w), everyone, lambda: auc_influence(scores, of_class))
    # folds of one patient each have no pair to order: their AUC is the pooled one
    if folds is None or not any(0 < of_class[folds == fold].mean() < 1 for fold in np.unique(folds)):
        return [WeightedMetric("auc", name, *pooled, **ranking)]
    within = (
        lambda w: roc_auc_within(scores, of_class, folds, w),
        everyone,
        lambda: auc_influence(scores, of_class, folds),
    )
    return [
        WeightedMetric("auc", name, *within, **ranking, strata=folds),
        WeightedMetric("auc_pooled", name, *pooled, **ranking),
    ]


def _mean_of_classes(metric: str, of: str, parts: list[WeightedMetric]) -> WeightedMetric:
    """Return the mean of a metric over the classes."""
    everyone = np.ones(len(parts[0].included), dtype=bool)
    return WeightedMetric(
        metric,
        of,
        lambda w: np.mean([part.compute(w) for part in parts], axis=0),
        everyone,
        lambda: np.mean([part.influence() for part in parts if part.influence is not None], axis=0),
        parts=tuple(parts),
    )


def _balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> WeightedMetric:
    """Return the mean recall over the classes in the data; NaN with one class only."""
    present = np.unique(truth)
    recalls = [_proportion("sensitivity", "", predicted == k, truth == k) for k in present]
    if len(present) < 2:
        everyone = np.ones(len(truth), dtype=bool)
        undefined = (lambda w: np.full(len(w), np.nan), everyone, lambda: np.full(len(truth), np.nan))
        return WeightedMetric("balanced_accuracy", "", *undefined)
    return _mean_of_classes("balanced_accuracy", "", recalls)


def _calibration_error(probability: np.ndarray, outcome: np.ndarray, everyone: np.ndarray) -> WeightedMetric:
    """Return the expected calibration error."""
    gaps = lambda w: calibration_gaps(probability, outcome, w)  # noqa: E731
    number = equal_mass_bins(probability) if len(probability) else np.zeros(0, dtype=int)
    sums = (np.bincount(number).astype(float), np.bincount(number, probability), np.bincount(number, outcome))
    terms = (number, probability - outcome)
    return WeightedMetric(
        "ece",
        "",
        lambda w: np.abs(gaps(w)).sum(axis=1),
        everyone,
        None,
        gaps=gaps,
        gap_terms=terms,
        bins=sums,
    )


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
    compute, influence = lambda w: _mean(w[:, included], hit[included]), lambda: mean_influence(hit, included)
    return WeightedMetric(metric, of, compute, included, influence, hit=hit)


def _mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weighted mean of each resample, `(d,)`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ values / weights.sum(axis=1)


def _f1(weights: np.ndarray, of_class: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of precision and sensitivity, `(d,)`; NaN without units of the class."""
    if not of_class.any():
        return np.full(len(weights), np.nan)
    true_positives = weights @ (of_class & predicted).astype(float)
    # F1 = 2 TP / (2 TP + FP + FN), whose denominator is the number of positives plus that of positive predictions
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * true_positives / (weights @ of_class.astype(float) + weights @ predicted.astype(float))
