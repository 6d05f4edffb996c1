"""Calibration slope, intercept, and the smooth calibration curve with its band."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import Z
from covid_fastai.evaluation.metrics import Evaluation, as_evaluation, find_row, score_units
from covid_fastai.evaluation.prediction_table import choose_positive, class_columns, read_predictions
from covid_fastai.evaluation.weighted_metrics import probability_and_outcome
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import checked

__all__ = ["CalibrationCurve", "calibration_curve"]

SMALLEST = 1e-6  # clips probabilities of 0 and 1, whose log odds are infinite
KNOTS = (0.1, 0.5, 0.9)  # quantiles of the log odds (Harrell, Regression Modeling Strategies, 2015, table 2.3)
POINTS = 101  # probabilities of the curve
FEWEST = 20  # patients of either outcome; with fewer, a bent curve would follow chance
ITERATIONS, TOLERANCE = 100, 1e-9
COLUMNS = ["metric", "value", "low", "high", "n", "method"]


@dataclass(frozen=True, eq=False, repr=False)
class CalibrationCurve(ResultDisplay):
    """How observed frequencies depend on predicted probabilities.

    Attributes:
        metrics: `slope` (1 if well calibrated; below 1 the probabilities are too extreme) and `intercept` (0 if well
            calibrated; below 0 they are too high on average), with `value`, `low`, `high` (95%), `n` (patients) and
            `method`. NaN if the probabilities separate the outcomes, or one outcome is missing.
        curve: `probability`, and the frequency that is expected there, `fraction` with `low` and `high` (95%,
            pointwise), over the range of the data; empty if it cannot be estimated.
        event: The event: the positive class, or "correct" for the predicted class of more than two.
    """

    metrics: pd.DataFrame
    curve: pd.DataFrame
    event: str

    def value(self, metric: str) -> float:
        """Return the value of `"slope"` or `"intercept"`.

        Raises:
            UsageError: There is no such metric.
        """
        return float(find_row(self.metrics, metric)["value"])

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics and the curve as plain values."""
        return {
            "event": self.event,
            "metrics": self.metrics.to_dict("records"),
            "curve": self.curve.to_dict("records"),
        }

    def describe(self) -> str:
        """Return slope and intercept as text."""
        rows = self.metrics.to_dict("records")
        return ", ".join(f"{row['metric']} {format_estimate(row['value'], row['low'], row['high'])}" for row in rows)

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield self.metrics.round(3)
        yield f"Calibration of the probability of {self.event}. {RESEARCH_USE}"


@checked
def calibration_curve(source: Evaluation | pd.DataFrame | str | Path) -> CalibrationCurve:
    """Estimate calibration slope and intercept, and a smooth calibration curve (Van Calster et al., BMC Medicine 2019).

    The slope is that of a logistic regression of the outcome on the log odds of the predicted probability. The
    intercept is that of a regression with the slope fixed at 1 (calibration in the large). The curve is a logistic
    regression on a restricted cubic spline of the log odds with three knots; with fewer than 20 patients of either
    outcome it is the straight line of the slope. Intervals are Wald's on the scale of log odds.

    Args:
        source: An evaluation, or predictions.

    Returns:
        The calibration curve.

    Raises:
        UsageError: The evaluation has no predictions.
        DataError: The table is faulty.

    Examples:
        >>> fit = calibration_curve(predictions)
        >>> fit.metrics["metric"].tolist()
        ['slope', 'intercept']
    """
    if isinstance(source, Evaluation):
        result = as_evaluation(source)
        table, positive, unit = result.predictions, result.positive, result.unit
    else:  # no other metric is needed
        table, unit = read_predictions(source), "patient"
        positive = choose_positive(class_columns(table), None)
    units = score_units(table, positive=positive, unit=unit).table
    probability, outcome = probability_and_outcome(units, class_columns(table), positive)
    log_odds = logit(np.clip(probability, SMALLEST, 1 - SMALLEST))
    ones, n = np.ones(len(log_odds)), len(log_odds)
    slope = _fit_logistic(np.stack([ones, log_odds], axis=1), outcome)
    intercept = _fit_logistic(ones[:, None], outcome, offset=log_odds)
    rows = [_metric_row("slope", slope, 1, n), _metric_row("intercept", intercept, 0, n)]
    return CalibrationCurve(
        pd.DataFrame(rows, columns=COLUMNS), _draw_curve(log_odds, outcome, slope), positive or "correct"
    )


def _metric_row(name: str, fit: tuple[np.ndarray, np.ndarray] | None, place: int, n: int) -> dict[str, Any]:
    """Return a row of `CalibrationCurve.metrics`."""
    if fit is None:
        values = (math.nan, math.nan, math.nan, n, "not estimable: the outcomes are separated or all equal")
        return dict(zip(COLUMNS, (name, *values), strict=True))
    value, reach = float(fit[0][place]), Z * math.sqrt(float(fit[1][place, place]))
    return dict(zip(COLUMNS, (name, value, value - reach, value + reach, n, "Wald, logistic regression"), strict=True))


def _draw_curve(log_odds: np.ndarray, outcome: np.ndarray, line: tuple[np.ndarray, np.ndarray] | None) -> pd.DataFrame:
    """Return `CalibrationCurve.curve`."""
    knots = np.quantile(log_odds, KNOTS)
    grid = np.linspace(expit(log_odds.min()), expit(log_odds.max()), POINTS)
    fit, design = line, _basis(logit(grid), None)
    is_enough = min(outcome.sum(), (1 - outcome).sum()) >= FEWEST
    if is_enough and len(np.unique(knots)) == len(knots):
        bent = _fit_logistic(_basis(log_odds, knots), outcome)
        if bent is not None:
            fit, design = bent, _basis(logit(grid), knots)
    if fit is None:
        return pd.DataFrame(columns=["probability", "fraction", "low", "high"], dtype=float)
    centre = design @ fit[0]
    reach = Z * np.sqrt(np.einsum("ij,jk,ik->i", design, fit[1], design))
    bounds = {"fraction": expit(centre), "low": expit(centre - reach), "high": expit(centre + reach)}
    return pd.DataFrame({"probability": grid, **bounds})


def _basis(x: np.ndarray, knots: np.ndarray | None) -> np.ndarray:
    """Return the columns of a restricted cubic spline with three knots, which is linear beyond them; a line without."""
    if knots is None:
        return np.stack([np.ones(len(x)), x], axis=1)
    first, middle, last = knots
    # Harrell's formula 2.25: the cubic and quadratic terms cancel beyond the last knot
    cubes = [np.maximum(x - knot, 0) ** 3 for knot in knots]
    bend = cubes[0] - cubes[1] * (last - first) / (last - middle) + cubes[2] * (middle - first) / (last - middle)
    return np.stack([np.ones(len(x)), x, bend / (last - first) ** 2], axis=1)


def _fit_logistic(
    x: np.ndarray, y: np.ndarray, *, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Fit a logistic regression by Newton's method.

    Args:
        x: The design matrix, `(n, k)`.
        y: The outcomes, 0 or 1 `(n,)`.
        offset: Added to the linear predictor, `(n,)`; None for 0.

    Returns:
        The coefficients `(k,)` and their covariance `(k, k)`; None if the maximum is not finite, as with separated
        outcomes.
    """
    shift = np.zeros(len(y)) if offset is None else offset
    coefficients = np.zeros(x.shape[1])

    def log_likelihood(values: np.ndarray) -> float:
        """Return the log likelihood at some coefficients."""
        predictor = x @ values + shift
        return float((y * predictor - np.logaddexp(0, predictor)).sum())

    for _ in range(ITERATIONS):
        p = expit(x @ coefficients + shift)
        information = x.T @ (x * (p * (1 - p))[:, None])
        if np.linalg.cond(information) > 1e12:
            return None
        step = np.linalg.solve(information, x.T @ (y - p))
        while (
            log_likelihood(coefficients + step) < log_likelihood(coefficients) - TOLERANCE
            and np.abs(step).max() > TOLERANCE
        ):
            step = step / 2  # Newton's step may overshoot
        coefficients = coefficients + step
        if np.abs(step).max() < TOLERANCE:
            return coefficients, np.linalg.inv(information)
    return None
