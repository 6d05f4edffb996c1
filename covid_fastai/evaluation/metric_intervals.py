"""The 95% interval that suits each metric, and that of the difference of two models' metrics on the same units.

`python -m benchmarks.coverage` measures how often they include the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from scipy.stats import t

from covid_fastai.evaluation.intervals import (
    LEVEL,
    Z,
    auc_difference,
    auc_interval,
    calibration_interval,
    clustered_proportion,
    corrected_phi,
    newcombe_difference,
    recover_difference,
    wilson,
)
from covid_fastai.evaluation.resamples import Resamples, correlate
from covid_fastai.evaluation.weighted_metrics import SMALLEST_P, WeightedMetric

__all__ = [
    "average_precision_interval",
    "bernoulli_calibration_interval",
    "combine_intervals",
    "difference_interval",
    "loss_interval",
    "metric_interval",
]

AUCS = ("auc", "auc_pooled")
Interval = tuple[float, float]
FACTORS = np.linspace(0, 3, 61)  # of the observed calibration gaps: true gaps up to three times as large are tested
N_SAMPLES = 600  # of the outcomes, for each factor
LONGEST = 300.0  # log units; exp of more than 709 overflows


def metric_interval(
    metric: WeightedMetric, value: float, clusters: np.ndarray | None, resamples: Resamples, *, seed: int = 0
) -> tuple[float, float, str]:
    """Compute the interval of a metric, by the method that suits it.

    Args:
        metric: The metric.
        value: Its value; finite.
        clusters: The cluster of each unit, such as the patient of an image, `(n,)`; None if units are independent.
        resamples: Bootstrap resamples of the units.
        seed: Seed of the random numbers of the calibration error's interval.

    Returns:
        The lower and the upper bound, and the name of the method.
    """
    if metric.hit is not None:
        return _proportion_interval(metric.hit, metric.included, value, clusters)
    if metric.jaccard is not None:  # F1 = 2 J / (1 + J), with J = TP / (TP + FP + FN)
        included = metric.jaccard.included
        if not included.any():
            return math.nan, math.nan, "no unit of some class"
        low, high, method = _proportion_interval(metric.jaccard.hit, included, value / (2 - value), clusters)
        return 2 * low / (1 + low), 2 * high / (1 + high), f"{method}, transformed"
    if metric.parts:
        parts = [(float(part.compute(np.ones((1, len(part.included))))[0]), part) for part in metric.parts]
        bounds = [metric_interval(part, estimate, clusters, resamples)[:2] for estimate, part in parts]
        correlation = np.eye(len(parts))  # recalls of different classes are of different units
        if metric.metric != "balanced_accuracy":
            correlation = resamples.correlate(metric.parts)
        low, high = combine_intervals([estimate for estimate, _ in parts], bounds, correlation)
        return low, high, "recovered from the classes"
    if metric.metric in AUCS:
        assert metric.scores is not None and metric.of_class is not None
        return auc_interval(metric.scores, metric.of_class, clusters, metric.strata)
    if metric.metric == "average_precision":
        assert metric.of_class is not None
        members = np.flatnonzero(metric.of_class)
        positives = len(members) if clusters is None else len(np.unique(clusters[members]))
        return *average_precision_interval(value, positives), "log odds, number of positives"
    if metric.losses is not None:
        return *loss_interval(metric, clusters), "t, log scale"
    assert metric.gaps is not None and metric.bins is not None
    if clusters is not None:  # the outcomes of a patient's images are not independent: whole patients are resampled
        gaps = metric.gaps(np.ones((1, len(metric.included))))[0]
        method = "bootstrap, inverted" if resamples.are_drawn else "normal noise of patients, inverted"
        return *calibration_interval(gaps, resamples.resample_gaps([metric])[0]), method
    return *bernoulli_calibration_interval(*metric.bins, seed=seed), "Bernoulli noise, inverted"


def difference_interval(
    metric: WeightedMetric,
    reference: WeightedMetric,
    values: tuple[float, float],
    clusters: np.ndarray | None,
    resamples: Resamples,
) -> tuple[float, float, str]:
    """Compute the interval of a metric minus the reference's on the same units.

    Differences of proportions have Newcombe's method 10, those of AUCs DeLong's covariance. All others combine the
    intervals of both metrics with their correlation (MOVER; Zou and Donner 2008): that of the units' losses for a mean
    loss, that of the bootstrap resamples for other metrics.

    Args:
        metric: The metric of the model.
        reference: The same metric of the reference.
        values: The values of the reference and of the model; finite.
        clusters: As in `metric_interval`.
        resamples: As in `metric_interval`.

    Returns:
        The lower and the upper bound, and the name of the method.
    """
    if metric.hit is not None:
        return *newcombe_difference(*_paired_hits(metric, reference)), "Newcombe, paired"
    if metric.metric == "balanced_accuracy":
        recalls = [_paired_hits(*pair) for pair in zip(metric.parts, reference.parts, strict=True)]
        estimates = [float(first.mean() - second.mean()) for first, second in recalls]
        bounds = [newcombe_difference(first, second) for first, second in recalls]
        low, high = combine_intervals(estimates, bounds, np.eye(len(recalls)))  # each class has its own units
        return low, high, "Newcombe, by class"
    if metric.metric in AUCS and metric.scores is not None and reference.scores is not None:
        assert metric.of_class is not None
        return auc_difference(metric.scores, reference.scores, metric.of_class, clusters, metric.strata)
    # the same classes for these units do not make two models the same: their F1s may differ for other patients
    if metric.jaccard is None and _is_same(metric, reference):
        return 0.0, 0.0, "the same predictions"
    first = metric_interval(metric, values[1], clusters, resamples)[:2]
    second = metric_interval(reference, values[0], clusters, resamples)[:2]
    if metric.losses is not None and reference.losses is not None:
        units = np.arange(len(metric.losses))
        correlations = correlate([losses[units, metric.truth] for losses in (metric.losses, reference.losses)])
    else:
        correlations = resamples.correlate([metric, reference])
    correlation = float(correlations[0, 1])
    if metric.jaccard is not None and reference.jaccard is not None:
        # few units differ: resamples have them all alike too often
        union = metric.jaccard.included | reference.jaccard.included
        correlation = min(correlation, corrected_phi(metric.jaccard.hit[union], reference.jaccard.hit[union]))
    below, above = recover_difference(
        (values[1] - first[0], first[1] - values[1]), (values[0] - second[0], second[1] - values[0]), correlation
    )
    difference = values[1] - values[0]
    return difference - below, difference + above, "recovered, paired"


def combine_intervals(
    estimates: Sequence[float], bounds: Sequence[Interval], correlation: np.ndarray
) -> tuple[float, float]:
    """Compute the interval of the mean of estimates from their own intervals (MOVER; Zou and Donner 2008).

    Args:
        estimates: The estimates, `(k,)`.
        bounds: The interval of each.
        correlation: Their correlations, `(k, k)`; the identity if they are of different units.

    Returns:
        The lower and the upper bound.
    """
    values, (lows, highs) = np.asarray(estimates, dtype=float), np.transpose(bounds)
    below, above = values - lows, highs - values
    # max: rounding may make the quadratic form slightly negative
    reach = [math.sqrt(max(float(side @ correlation @ side), 0.0)) / len(values) for side in (below, above)]
    return float(values.mean() - reach[0]), float(values.mean() + reach[1])


def average_precision_interval(value: float, positives: int) -> tuple[float, float]:
    """Compute the interval of an average precision on the scale of log odds (Boyd, Eng and Page, ECML 2013).

    The variance is that of a proportion of the positive units. Half a positive unit is added to both sides of the
    proportion, as Anscombe's correction does, so that the interval has a width at 0 and 1.

    Args:
        value: The average precision, 0 to 1.
        positives: Number of independent units of the class.

    Returns:
        The lower and the upper bound, which include the value.
    """
    centre = (value * positives + 0.5) / (positives + 1)
    reach = Z / math.sqrt(positives * centre * (1 - centre))
    low, high = (float(expit(logit(centre) + sign * reach)) for sign in (-1, 1))
    return min(low, value), max(high, value)


def loss_interval(metric: WeightedMetric, clusters: np.ndarray | None = None) -> tuple[float, float]:
    """Compute the interval of a mean loss, such as a Brier score or a log loss, by Student's t on the log scale.

    A few large losses carry most of the mean, and small samples often have none of them, so that the observed variance
    is too small. It is compared with the variance that the units' own probabilities imply after recalibration by a
    temperature, whose labels are smoothed (Platt 1999), and the greater of both counts. The centre is the geometric
    mean of the observed and the implied loss.

    Args:
        metric: With `losses` and `truth`.
        clusters: As in `metric_interval`.

    Returns:
        The lower and the upper bound, which include the observed mean.
    """
    losses, truth = metric.losses, metric.truth
    assert losses is not None and truth is not None and metric.probabilities is not None
    n = len(truth)
    observed = losses[np.arange(n), truth]
    mean = float(observed.mean())
    codes = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    count = int(codes.max()) + 1
    if count < 2:
        return math.nan, math.nan
    sums = np.bincount(codes, observed - mean)
    variance = float((sums**2).sum()) * count / (count - 1) / n**2
    implied_probabilities = _recalibrate(metric.probabilities, truth)
    implied = (implied_probabilities * losses).sum(axis=1)
    noise = (implied_probabilities * losses**2).sum(axis=1) - implied**2
    variance = max(variance, (float(noise.mean()) + float(implied.var(ddof=1))) / count)
    if mean == 0 and variance == 0:
        return 0.0, 0.0
    centre = math.sqrt(max(mean, SMALLEST_P) * max(float(implied.mean()), SMALLEST_P))
    reach = min(float(t.ppf(0.5 + LEVEL / 2, count - 1)) * math.sqrt(variance) / centre, LONGEST)
    low, high = centre * math.exp(-reach), centre * math.exp(reach)
    return min(low, mean), max(min(high, float(losses.max())), mean)


def bernoulli_calibration_interval(
    sizes: np.ndarray, predicted: np.ndarray, events: np.ndarray, *, seed: int = 0
) -> tuple[float, float]:
    """Compute the interval of an expected calibration error (ECE) by inverting a test with Bernoulli noise.

    Given the probabilities, the outcomes alone are random (Broecker and Smith, Weather and Forecasting 2007). A true
    error is in the interval if the observed error lies in the middle 95% of the samples that it would give. The true
    gaps are taken as the observed gaps times a common factor, 0 for a calibrated model.

    Args:
        sizes: Number of units of each bin, `(bins,)`.
        predicted: Sum of their probabilities.
        events: Number of their events.
        seed: Seed of the samples.

    Returns:
        The lower and the upper bound, which include the observed error.
    """
    n, rng = float(sizes.sum()), np.random.default_rng(seed)
    error, probability = float(np.abs(predicted - events).sum()) / n, predicted / sizes
    # the true probability of each bin for each factor, (factors, bins)
    true = np.clip(probability - FACTORS[:, None] * (predicted - events) / sizes, 0, 1)
    # the samples of one probability follow each other, (factors, bins, samples): NumPy then prepares each only once
    counts, probabilities = sizes.astype(int)[:, None], true[:, :, None]
    samples = rng.binomial(counts, probabilities, size=(*true.shape, N_SAMPLES))
    errors = np.sort(np.abs(predicted[:, None] - samples).sum(axis=1) / n, axis=1).T  # (samples, factors)
    tail = int((1 - LEVEL) / 2 * N_SAMPLES)
    # 1e-12: a float's rounding
    accepted = (errors[tail] - 1e-12 <= error) & (error <= errors[-1 - tail] + 1e-12)
    true_errors = (np.abs(probability - true) * sizes).sum(axis=1)[accepted] / n
    # the observed error is smaller than noise alone would give: a calibrated model is not excluded
    if len(true_errors) == 0:
        return 0.0, error
    return min(float(true_errors.min()), error), max(float(true_errors.max()), error)


def _proportion_interval(
    hit: np.ndarray, included: np.ndarray, value: float, clusters: np.ndarray | None
) -> tuple[float, float, str]:
    if clusters is None:
        return *wilson(value, int(included.sum())), "Wilson"
    return *clustered_proportion(hit[included], clusters[included]), "Wilson, effective n"


def _paired_hits(metric: WeightedMetric, reference: WeightedMetric) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each counted unit is in the numerator of either metric, 0 or 1."""
    assert metric.hit is not None and reference.hit is not None
    return metric.hit[metric.included], reference.hit[metric.included]


def _is_same(metric: WeightedMetric, reference: WeightedMetric) -> bool:
    """Return whether two metrics are computed from the same values of the units."""
    if metric.parts:
        return all(_is_same(*pair) for pair in zip(metric.parts, reference.parts, strict=True))
    if metric.jaccard is not None and reference.jaccard is not None:
        pairs = [(getattr(metric.jaccard, name), getattr(reference.jaccard, name)) for name in ("hit", "included")]
    elif metric.bins is not None and reference.bins is not None:
        pairs = list(zip(metric.bins, reference.bins, strict=True))
    else:
        pairs = [(metric.scores, reference.scores), (metric.losses, reference.losses)]
    return all(np.array_equal(first, second) for first, second in pairs if first is not None and second is not None)


def _recalibrate(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return probabilities after temperature scaling fitted on smoothed labels, `(n, k)`."""
    logits = np.log(np.clip(probabilities, SMALLEST_P, 1))
    n_classes = logits.shape[1]
    counts = np.bincount(truth, minlength=n_classes)
    # (m + 1) / (m + k) for the true class of m units, 1 / (m + k) for each other class
    target = (np.eye(n_classes)[truth] * counts[truth, None] + 1) / (counts[truth, None] + n_classes)

    def loss(log_temperature: float) -> float:
        """Return the mean cross-entropy at a temperature."""
        return float(-(target * log_softmax(logits / math.exp(log_temperature), axis=1)).sum(axis=1).mean())

    bounds = (math.log(0.02), math.log(50.0))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return softmax(logits / math.exp(best.x), axis=1)
