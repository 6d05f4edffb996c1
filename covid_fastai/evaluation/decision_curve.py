"""Predictive values at a given prevalence, and decision curves (net benefit)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.intervals import ratio_interval, wilson
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.thresholds import OperatingPoint, positive_scores
from covid_fastai.figures import Figure
from covid_fastai.options import OpenFraction, check_option, checked
from covid_fastai.plotting import class_colours, draw_band

__all__ = ["decision_curve", "net_benefit", "plot_decision_curve", "predictive_values"]

GRID = tuple(np.round(np.arange(0.01, 1.0, 0.01), 2).tolist())


def predictive_values(
    result: Evaluation | OperatingPoint | str | Path | pd.DataFrame,
    *,
    prevalences: Sequence[float] = (0.01, 0.05, 0.2),
    positive: str | None = None,
) -> pd.DataFrame:
    """Compute positive and negative predictive values at given prevalences.

    The prevalence in the data is that of their collection, not of a clinic, and so are predictive values computed from
    the data directly. Here they are computed from sensitivity and specificity by Bayes' rule, which assumes that both
    are the same in the patients of interest. At a given prevalence, the predictive values depend on the likelihood
    ratios only (Mercaldo, Lau and Zhou, Statistics in Medicine 2007). Their intervals are those of the likelihood
    ratios by the score method (Koopman 1984), which is valid for a count of 0 too.

    Args:
        result: An evaluation or operating point; or predictions, which are evaluated at a threshold of 0.5.
        prevalences: Fractions of patients of the positive class, above 0 and below 1.
        positive: The positive class; None for that of `result`.

    Returns:
        One row per prevalence and metric: `prevalence`, `metric` (ppv, npv), `value`, `low`, `high`, `n` (patients),
        `method`. Values are NaN if a class has no patient, or no patient has that predicted class.

    Raises:
        UsageError: A prevalence is not allowed, the metrics count images, or there are more than two classes and none
            is given.
        DataError: The table is faulty.

    Examples:
        >>> values = predictive_values(predictions, prevalences=[0.05])
        >>> values[["metric", "prevalence", "value"]].round(2)
          metric  prevalence  value
        0    ppv        0.05   0.23
        1    npv        0.05   0.98
    """
    prevalences = [check_option("prevalences", value, OpenFraction) for value in prevalences]
    result = result if isinstance(result, (Evaluation, OperatingPoint)) else evaluate(result, n_resamples=100)
    metrics = ("sensitivity", "specificity")
    if isinstance(result, OperatingPoint):
        sensitivity, specificity = (result.row(metric) for metric in metrics)
    elif of := positive or result.positive:
        sensitivity, specificity = (result.row(metric, of=of) for metric in metrics)
    else:
        raise UsageError(
            "There are more than two classes and positive is None.",
            hint=f"Give positive=, one of {', '.join(result.classes)}.",
        )
    if sensitivity["unit"] != "patient":
        raise UsageError("The metrics count images, not patients.", hint="Evaluate with unit='patient'.")
    positives, negatives = int(sensitivity["n"]), int(specificity["n"])
    rows = []
    for prevalence in prevalences:
        for metric in ("ppv", "npv"):
            value = low = high = math.nan
            if positives and negatives:
                true_positives = round(sensitivity["value"] * positives)
                true_negatives = round(specificity["value"] * negatives)
                # patients of the class, and others, with the predicted class that the predictive value refers to
                counts = (true_positives, positives, negatives - true_negatives, negatives)
                if metric == "npv":
                    counts = (positives - true_positives, positives, true_negatives, negatives)
                prior_odds = prevalence / (1 - prevalence)
                # Bayes' rule: posterior odds = prior odds times likelihood ratio
                low, high = (_predictive_value(prior_odds * ratio, metric) for ratio in ratio_interval(*counts))
                low, high = min(low, high), max(low, high)
                numerator, denominator = counts[0] / positives, counts[2] / negatives
                if numerator or denominator:
                    odds = prior_odds * numerator / denominator if denominator else math.inf
                    value = _predictive_value(odds, metric)
            method = "score, likelihood ratio" if positives and negatives else "no unit of some class"
            row = {"prevalence": prevalence, "metric": metric, "value": value, "low": low, "high": high}
            rows.append({**row, "n": positives + negatives, "method": method})
    return pd.DataFrame(rows)


@checked
def decision_curve(
    predictions: str | Path | pd.DataFrame,
    *,
    thresholds: Sequence[float] = GRID,
    prevalence: OpenFraction | None = None,
    positive: str | None = None,
) -> pd.DataFrame:
    """Compute the net benefit of acting on predicted probabilities (Vickers and Elkin, Medical Decision Making 2006).

    To act at a probability of t or more is to consider one missed patient as harmful as (1 - t) / t unnecessary
    actions. The net benefit is the fraction of true positives minus the fraction of false positives times t / (1 - t).
    A net benefit of 0.05 equals 5 true positives per 100 patients without a false positive. A model is useful only at
    thresholds where its net benefit exceeds that of acting on all patients, and 0, that of acting on none. The
    probabilities need to be calibrated; see `calibrate`.

    The interval combines two Wilson intervals (method of variance estimates recovery; Zou, Huang and Zhang,
    Computational Statistics & Data Analysis 2009), so that it has a width if a rate is 0 or 1. At a given prevalence
    they are those of the true and of the false positive rate. With the prevalence of the data, which is an estimate
    too, they are those of the fractions of true and of false positives among all patients, which are correlated.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        thresholds: Lowest probabilities to act on, above 0 and below 1.
        prevalence: The prevalence of the class where the model would be used; None for that in the data, which usually
            differs.
        positive: The positive class; None for the last of two.

    Returns:
        One row per threshold: `threshold`, `net_benefit` with `low` and `high` (95%),
        `treat_all`, `treat_none`, and `gain` (over the better of these two) with `gain_low` and `gain_high`. The
        columns `positive`, `prevalence` and `n` (patients) are the same in each row.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, or one class has no patient.

    Examples:
        >>> curve = decision_curve(predictions, thresholds=[0.1, 0.5])
        >>> curve[["threshold", "net_benefit", "treat_all"]].round(2)
           threshold  net_benefit  treat_all
        0        0.1         0.41       0.41
        1        0.5         0.27      -0.07
    """
    thresholds = [check_option("thresholds", value, OpenFraction) for value in thresholds]
    if not thresholds:
        raise UsageError("thresholds is empty.", hint="Give one or more probabilities.")
    units, positive = positive_scores(read_predictions(predictions), positive=positive)
    of_class = units["of_class"].to_numpy()
    if of_class.all() or not of_class.any():
        raise DataError(
            f"Net benefit needs patients of {positive} and other classes; all {len(units)} are of one kind.",
            hint="Give labelled predictions of both.",
        )
    grid = np.sort(np.asarray(thresholds, dtype=float))
    curve = net_benefit(units["score"].to_numpy(), of_class, grid, prevalence)
    prevalence = float(of_class.mean()) if prevalence is None else float(prevalence)
    return curve.assign(positive=positive, prevalence=prevalence, n=len(units))


def net_benefit(
    scores: np.ndarray, of_class: np.ndarray, thresholds: np.ndarray, prevalence: float | None
) -> pd.DataFrame:
    """Compute the net benefit at each threshold, and its gain over acting on all patients or on none.

    Args:
        scores: The probability of the class, `(n,)`.
        of_class: Whether each patient is of the class, bool `(n,)`; one or more of each kind.
        thresholds: Lowest probabilities to act on, `(thresholds,)`.
        prevalence: As in `decision_curve`.

    Returns:
        As `decision_curve`, without `positive`, `prevalence` and `n`.
    """
    odds = thresholds / (1 - thresholds)  # the harm of a false positive in units of the benefit of a true positive
    positives, negatives = int(of_class.sum()), int((~of_class).sum())
    # those whose score is the threshold or more are acted on
    true, false = (
        len(kind) - np.searchsorted(np.sort(kind), thresholds) for kind in (scores[of_class], scores[~of_class])
    )
    if prevalence is None:
        n = positives + negatives
        prevalence = positives / n
        value, low, high = _difference_of_fractions(true, false, n, odds)
        # acting on all minus the model: its false negatives count 1, its true negatives minus the odds
        loss, loss_low, loss_high = _difference_of_fractions(positives - true, negatives - false, n, odds)
    else:
        prevalence = float(prevalence)
        cost = (1 - prevalence) * odds  # of a false positive rate of 1
        true_rate, true_low, true_high = _rates_with_bounds(true, positives)
        false_rate, false_low, false_high = _rates_with_bounds(false, negatives)
        value = prevalence * true_rate - cost * false_rate
        # the bounds of a difference of independent rates: root of the sum of squared distances to their own bounds
        low = value - np.hypot(prevalence * (true_rate - true_low), cost * (false_high - false_rate))
        high = value + np.hypot(prevalence * (true_high - true_rate), cost * (false_rate - false_low))
        loss, loss_low, loss_high = (prevalence - cost - each for each in (value, high, low))
    treat_all = prevalence - (1 - prevalence) * odds
    curve = pd.DataFrame({"threshold": thresholds, "net_benefit": value, "low": low, "high": high})
    curve = curve.assign(treat_all=treat_all, treat_none=0.0)
    is_all = treat_all > 0  # the better of acting on all and acting on none
    gain = {"gain": (value, -loss), "gain_low": (low, -loss_high), "gain_high": (high, -loss_low)}
    return curve.assign(**{name: np.where(is_all, over_all, over_none) for name, (over_none, over_all) in gain.items()})


def plot_decision_curve(curves: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """Plot net benefit by threshold with its 95% band, together with acting on all patients and on none.

    Args:
        curves: What `decision_curve` returned, or a dictionary of model names and such curves of the same patients.

    Returns:
        The figure.

    Raises:
        UsageError: The curves have different positive classes or prevalences, so that they cannot be compared.
    """
    named_curves = {"model": curves} if isinstance(curves, pd.DataFrame) else dict(curves)
    first_rows = [curve.iloc[0] for curve in named_curves.values()]
    settings = {(row["positive"], round(row["prevalence"], 9)) for row in first_rows}
    if len(settings) > 1:
        listed = ", ".join(f"{positive} at {prevalence:.3g}" for positive, prevalence in sorted(settings))
        raise UsageError(
            f"The curves have different positive classes or prevalences: {listed}.",
            hint="Give the same positive and prevalence to decision_curve.",
        )
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour in zip(named_curves.items(), class_colours(list(named_curves)).values(), strict=True):
        lines = (curve[column] for column in ("threshold", "net_benefit", "low", "high"))
        draw_band(axes, *lines, colour=colour, label=name)
    curve, row = next(iter(named_curves.values())), first_rows[0]
    axes.plot(curve["threshold"], curve["treat_all"], color="#555555", lw=1, ls="--", label="act on all")
    axes.axhline(0, color="#555555", lw=1, label="act on none")
    top = max(float(curve["high"].max()) for curve in named_curves.values())
    axes.set(xlim=(0, 1), ylim=(-0.25 * top - 0.01, 1.08 * max(top, row["prevalence"])))
    axes.set(xlabel=f"threshold probability of {row['positive']}", ylabel="net benefit")
    title = f"Decision curve, n = {row['n']} patients, prevalence {100 * row['prevalence']:.3g}%"
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _rates_with_bounds(counts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rate at each threshold and its Wilson bounds, `(thresholds,)` each.

    Args:
        counts: The number of patients at each threshold.
        n: The number of which they are a fraction.
    """
    rates = counts / n
    low, high = np.transpose([wilson(rate, n) for rate in rates])
    return rates, low, high


def _difference_of_fractions(
    first: np.ndarray, second: np.ndarray, n: int, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fraction of one kind of patients minus a factor times that of another kind, with its bounds.

    Args:
        first: The number of patients of one kind at each threshold, `(thresholds,)`.
        second: The number of patients of the other kind; nobody is of both.
        n: The number of all patients.
        factor: The factor of the second fraction at each threshold, `(thresholds,)`.
    """
    (p, p_low, p_high), (q, q_low, q_high) = _rates_with_bounds(first, n), _rates_with_bounds(second, n)
    # the counts are multinomial: a patient of one kind is not of the other
    product = np.maximum((1 - p) * (1 - q), 1e-12)
    correlation = np.where((p < 1) & (q < 1), -np.sqrt(p * q / product), 0.0).clip(-1, 0)
    distances = ((p - p_low, factor * (q_high - q)), (p_high - p, factor * (q - q_low)))
    reach = [np.sqrt(np.maximum(a**2 + b**2 - 2 * correlation * a * b, 0)) for a, b in distances]
    value = p - factor * q
    return value, value - reach[0], value + reach[1]


def _predictive_value(odds: float, metric: str) -> float:
    """Return the predictive value from the posterior odds of the class.

    Args:
        odds: Odds of the class given a positive prediction (ppv) or a negative one (npv).
        metric: `"ppv"` or `"npv"`.
    """
    if metric == "npv":
        return 1 / (1 + odds)
    return odds / (1 + odds) if math.isfinite(odds) else 1.0
