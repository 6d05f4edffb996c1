"""What answers are worth: predictive values at a stated prevalence, and the net benefit of acting on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.intervals import ratio_interval, wilson
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.thresholds import OperatingPoint, positive_scores
from covid_fastai.options import OpenFraction, check_option, checked
from covid_fastai.plotting import class_colours, draw_band

__all__ = ["decision_curve", "plot_decision_curve", "predictive_values"]

GRID = tuple(np.round(np.arange(0.01, 1.0, 0.01), 2).tolist())


def predictive_values(
    result: Evaluation | OperatingPoint | str | Path | pd.DataFrame,
    *,
    prevalences: Sequence[float] = (0.01, 0.05, 0.2),
    positive: str | None = None,
) -> pd.DataFrame:
    """Compute what a positive and a negative answer are worth where the class is as frequent as stated.

    The predictive values in the data themselves say little: classes were collected, not met. Sensitivity and
    specificity are taken as they are, which is right only where patients are alike. The intervals are those of the
    likelihood ratios, on which alone the values depend (Mercaldo, Lau and Zhou, Statistics in Medicine 2007), by the
    score method (Koopman 1984), which also holds where a count is 0.

    Args:
        result: An evaluation or operating point; or predictions, judged at 0.5.
        prevalences: Shares of patients of the class, above 0 and below 1.
        positive: The class; None for the one that the figures are about.

    Returns:
        A row a figure: `prevalence`, `metric` (ppv, npv), `value`, `low`, `high`, `n` (patients), `method`. NaN where a
        class has no patient, or nobody gets that answer.

    Raises:
        UsageError: A prevalence is not allowed, the figures count images, or the class is not named.
        DataError: The table is faulty.
    """
    prevalences = [check_option("prevalences", value, OpenFraction) for value in prevalences]
    result = result if isinstance(result, (Evaluation, OperatingPoint)) else evaluate(result, n_resamples=100)
    metrics = ("sensitivity", "specificity")
    if isinstance(result, OperatingPoint):
        sides = [result.row(metric) for metric in metrics]
    elif of := positive or result.positive:
        sides = [result.row(metric, of=of) for metric in metrics]
    else:
        raise UsageError("There are more than two classes.", hint=f"Name the positive: {', '.join(result.classes)}.")
    if sides[0]["unit"] != "patient":
        raise UsageError("The figures count images.", hint="Judge patients: unit='patient'.")
    positives, negatives = (int(side["n"]) for side in sides)
    rows = []
    for prevalence in prevalences:
        for metric in ("ppv", "npv"):
            value = low = high = math.nan
            if positives and negatives:
                found, spared = (round(side["value"] * side["n"]) for side in sides)
                counts = (found, positives, negatives - spared, negatives)
                if metric == "npv":
                    counts = (positives - found, positives, spared, negatives)
                odds = prevalence / (1 - prevalence)
                low, high = (_share(odds * ratio, metric) for ratio in ratio_interval(*counts))
                low, high = min(low, high), max(low, high)
                hits, alarms = counts[0] / positives, counts[2] / negatives
                if hits or alarms:
                    value = _share(odds * hits / alarms if alarms else math.inf, metric)
            method = "score, likelihood ratio" if positives and negatives else "no unit of some class"
            figure = {"prevalence": prevalence, "metric": metric, "value": value, "low": low, "high": high}
            rows.append({**figure, "n": positives + negatives, "method": method})
    return pd.DataFrame(rows)


@checked
def decision_curve(
    predictions: str | Path | pd.DataFrame,
    *,
    thresholds: Sequence[float] = GRID,
    prevalence: OpenFraction | None = None,
    positive: str | None = None,
) -> pd.DataFrame:
    """Compute the net benefit of acting on a model's probabilities (Vickers and Elkin, Medical Decision Making 2006).

    Who acts from a probability of t on holds a missed patient to be as bad as (1 - t) / t needless actions. The net
    benefit is the share of patients found less the share acted on needlessly, at that rate: 0.05 is worth as much as
    finding 5 more of 100 patients with no needless action. A model is of use only where its curve lies above that of
    acting on everybody and above 0, acting on nobody. Probabilities have to be calibrated for it: see `calibrate`.

    The interval joins Wilson's of both shares (the method of variance estimates recovery; Zou, Huang and Zhang,
    Computational Statistics & Data Analysis 2009), so that it has a width where a share is 0 or 1, which a bootstrap's
    has not.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        thresholds: Probabilities to act from, above 0 and below 1.
        prevalence: The share of patients of the class where the model would be used; None for that in the data, which
            is seldom the same.
        positive: The class; None for the last of two.

    Returns:
        A row a threshold: `threshold`, `net_benefit` with `low` and `high` (95%, given the prevalence), `treat_all`,
        `treat_none`, `gain` (over the better of the two) with `gain_low` and `gain_high`; and, the same in each row,
        `positive`, `prevalence` and `n` (patients).

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, or one class has no patient.
    """
    thresholds = [check_option("thresholds", value, OpenFraction) for value in thresholds]
    if not thresholds:
        raise UsageError("There are no thresholds.", hint="Give one or more probabilities.")
    units, positive = positive_scores(read_predictions(predictions), positive=positive)
    of_class = units["of_class"].to_numpy()
    if of_class.all() or not of_class.any():
        raise DataError(
            f"Net benefit needs patients of {positive} and others; there are {len(units)} of one kind.",
            hint="Give labelled predictions of both.",
        )
    frequent = float(of_class.mean()) if prevalence is None else float(prevalence)
    grid = np.sort(np.asarray(thresholds, dtype=float))
    acted_on = units["score"].to_numpy()[:, None] >= grid
    found, found_low, found_high = _shares(acted_on[of_class])
    needless, needless_low, needless_high = _shares(acted_on[~of_class])
    cost = (1 - frequent) * grid / (1 - grid)
    value, treat_all = frequent * found - cost * needless, frequent - cost
    low = value - np.hypot(frequent * (found - found_low), cost * (needless_high - needless))
    high = value + np.hypot(frequent * (found_high - found), cost * (needless - needless_low))
    best = np.maximum(treat_all, 0)
    curve = pd.DataFrame({"threshold": grid, "net_benefit": value, "low": low, "high": high})
    curve = curve.assign(treat_all=treat_all, treat_none=0.0)
    curve = curve.assign(gain=value - best, gain_low=low - best, gain_high=high - best)
    return curve.assign(positive=positive, prevalence=frequent, n=len(units))


def plot_decision_curve(curves: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """Plot net benefit by the probability to act from, with its band, beside acting on everybody and on nobody.

    Args:
        curves: What `decision_curve` returned, or such curves of the same patients by the models' names.

    Returns:
        The figure.

    Raises:
        UsageError: The curves are of different prevalences, so that they cannot be compared.
    """
    shown = {"model": curves} if isinstance(curves, pd.DataFrame) else dict(curves)
    facts = [curve.iloc[0] for curve in shown.values()]
    if len({(fact["positive"], round(fact["prevalence"], 9)) for fact in facts}) > 1:
        raise UsageError("The curves are of different classes or prevalences.", hint="Give the same to decision_curve.")
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour in zip(shown.items(), class_colours(list(shown)).values(), strict=True):
        lines = (curve[column] for column in ("threshold", "net_benefit", "low", "high"))
        draw_band(axes, *lines, colour=colour, label=name)
    first = next(iter(shown.values()))
    axes.plot(first["threshold"], first["treat_all"], color="#555555", lw=1, ls="--", label="act on everybody")
    axes.axhline(0, color="#555555", lw=1, label="act on nobody")
    top = max(float(curve["high"].max()) for curve in shown.values())
    axes.set(xlim=(0, 1), ylim=(-0.25 * top - 0.01, 1.08 * max(top, facts[0]["prevalence"])))
    axes.set(xlabel=f"probability of {facts[0]['positive']} to act from", ylabel="net benefit")
    title = f"Decision curve, n = {facts[0]['n']} patients, prevalence {100 * facts[0]['prevalence']:.3g}%"
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _shares(hit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each column's share and Wilson's bounds of it."""
    shares = hit.mean(axis=0)
    low, high = np.transpose([wilson(share, len(hit)) for share in shares])
    return shares, low, high


def _share(odds: float, metric: str) -> float:
    """Return PPV from the odds of the class given a positive answer, or NPV from those given a negative one."""
    if metric == "npv":
        return 1 / (1 + odds)
    return odds / (1 + odds) if math.isfinite(odds) else 1.0
