"""Pool a metric over several data sets, such as hospitals, by a random-effects meta-analysis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import t

from covid_fastai.evaluation.intervals import LEVEL, Z

__all__ = ["PooledEstimate", "pool_aucs", "pool_random_effects"]

EXTREME = 0.001  # and 1 - EXTREME stand for areas of 0 and 1, whose log odds are infinite
SMALLEST_ERROR = 0.001  # standard error of log odds; an interval without a width would outweigh all others
FEWEST_FOR_PREDICTION = 3  # data sets; the prediction interval has two degrees of freedom less than data sets


@dataclass(frozen=True)
class PooledEstimate:
    """The mean of a metric over data sets, and where a further data set is expected.

    Attributes:
        value: The mean.
        low: Lower bound of the 95% interval of the mean.
        high: Upper bound.
        predicted_low: Lower bound of the 95% prediction interval for a further data set; NaN with two data sets.
        predicted_high: Upper bound.
        tau: Standard deviation of the true values between the data sets, on the scale on which they were pooled.
        count: Number of data sets.
    """

    value: float
    low: float
    high: float
    predicted_low: float
    predicted_high: float
    tau: float
    count: int


def pool_random_effects(estimates: Sequence[float], variances: Sequence[float]) -> PooledEstimate:
    """Pool estimates by a random-effects meta-analysis, as proposed for prediction models (Debray et al., BMJ 2017).

    The variance between data sets is that of Paule and Mandel (1982). The interval of the mean is Hartung and Knapp's,
    never shorter than that of the plain method (Roever et al., BMC Medical Research Methodology 2015). The prediction
    interval is that of Higgins et al. (JRSS A 2009), with two degrees of freedom less than data sets.

    Args:
        estimates: One estimate per data set, two or more, on a scale on which its error is nearly normal.
        variances: The squared standard error of each estimate, above 0.

    Returns:
        The pooled estimate, on the same scale.
    """
    y, v = np.asarray(estimates, dtype=float), np.asarray(variances, dtype=float)
    count = len(y)

    def spread(tau2: float) -> float:
        """Return the weighted sum of squares about the mean; it has the expectation k - 1 at the true variance."""
        weights = 1 / (v + tau2)
        return float((weights * (y - np.average(y, weights=weights)) ** 2).sum())

    tau2 = 0.0
    if spread(0.0) > count - 1:
        upper = float(np.ptp(y)) ** 2 + 1e-12
        while spread(upper) > count - 1:
            upper *= 2
        tau2 = float(brentq(lambda value: spread(value) - (count - 1), 0.0, upper))
    weights = 1 / (v + tau2)
    mean = float(np.average(y, weights=weights))
    variance = max(1.0, spread(tau2) / (count - 1)) / float(weights.sum())
    half_width = float(t.ppf(0.5 + LEVEL / 2, count - 1)) * math.sqrt(variance)
    reach = math.nan
    if count >= FEWEST_FOR_PREDICTION:
        reach = float(t.ppf(0.5 + LEVEL / 2, count - 2)) * math.sqrt(tau2 + variance)
    return PooledEstimate(
        mean, mean - half_width, mean + half_width, mean - reach, mean + reach, math.sqrt(tau2), count
    )


def pool_aucs(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> PooledEstimate:
    """Pool areas under the ROC curve on the scale of log odds (Debray et al., BMJ 2017).

    Args:
        values: The area in each data set.
        lows: The lower bounds of their 95% intervals.
        highs: The upper bounds.

    Returns:
        The pooled area. Areas and bounds of 0 or 1 are taken as 0.001 or 0.999, whose log odds are finite, or as half
        of the distance of the other bound from 0 or 1, where that is shorter.
    """
    areas = np.array([values, lows, highs], dtype=float)
    from_the_ends = np.minimum(areas, 1 - areas)
    inside = np.where(from_the_ends > 0, from_the_ends / 2, 1).min(axis=0)
    extreme = np.clip(inside, 1e-12, EXTREME)
    estimates, lower, upper = logit(np.clip(areas, extreme, 1 - extreme))
    errors = np.maximum((upper - lower) / (2 * Z), SMALLEST_ERROR)
    pooled = pool_random_effects(estimates.tolist(), (errors**2).tolist())
    names = ("value", "low", "high", "predicted_low", "predicted_high")
    return replace(pooled, **{name: float(expit(getattr(pooled, name))) for name in names})
