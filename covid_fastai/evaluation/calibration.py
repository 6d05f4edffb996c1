"""Calibration of probabilities: cross-fitted temperature scaling and the reliability diagram."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from covid_fastai.errors import DataError
from covid_fastai.evaluation.bootstrap import BINS, cross_fit_folds, equal_mass_bins
from covid_fastai.evaluation.calibration_curve import calibration_curve
from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.metric_intervals import difference_interval
from covid_fastai.evaluation.metrics import Evaluation, as_evaluation, evaluate, score_units
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.resamples import Resamples
from covid_fastai.evaluation.weighted_metrics import (
    SMALLEST_P,
    list_weighted_metrics,
    probability_and_outcome,
)
from covid_fastai.figures import Figure
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Bins, NResamples, Seed, Temperature, check_option, checked
from covid_fastai.plotting import GREY, class_colours, draw_band

__all__ = [
    "Calibration",
    "apply_temperature",
    "calibrate",
    "fit_temperature",
    "plot_reliability",
    "reliability_table",
]

METRICS = ["brier", "log_loss", "ece"]
COLUMNS = ["metric", "when", "value", "low", "high", "n", "unit", "method"]
HIGHEST, LOWEST = 50.0, 0.02  # temperatures at which probabilities are nearly equal, and nearly 0 or 1


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(ResultDisplay):
    """The effect of temperature scaling, evaluated on patients that the temperature was not fitted on.

    Attributes:
        temperature: The temperature for later use, fitted on all available rows.
        folds: The temperature of each fold: `fold`, `temperature`, and the numbers of patients `fitted_on` and
            `evaluated`.
        table: `metric` (brier, log_loss, ece), `when` (before, after, difference: after minus before), `value`, `low`
            and `high` (95%), `n`, `unit`, `method`.
        before: The evaluation of the unscaled probabilities.
        after: The evaluation of the scaled probabilities, which are in `after.predictions`.
    """

    temperature: float
    folds: pd.DataFrame
    table: pd.DataFrame
    before: Evaluation
    after: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Return temperatures and metrics as plain values."""
        records = {"folds": self.folds.to_dict("records"), "table": self.table.to_dict("records")}
        return {"temperature": self.temperature, **records}

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield self.table.round(3)
        yield f"Temperature {self.temperature:.2f}; above 1 it makes the model less confident. {RESEARCH_USE}"


@checked
def calibrate(
    predictions: str | Path | pd.DataFrame,
    *,
    fitted_on: str | Path | pd.DataFrame | None = None,
    positive: str | None = None,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
) -> Calibration:
    """Scale probabilities by a temperature fitted on other patients, and evaluate them before and after.

    The method is temperature scaling (Guo et al., ICML 2017).

    Args:
        predictions: Out-of-fold predictions, with the model of each row in `fold`; or any predictions, with
            `fitted_on`.
        fitted_on: Predictions of other patients by the same model, such as an inner validation set; None to fit for
            each fold on the other folds.
        positive: As in `evaluate`.
        n_resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The calibration.

    Raises:
        UsageError: There is one fold only and no `fitted_on`, or an option has a value that is not allowed.
        DataError: A table is faulty, or the two tables have patients in common or different classes.

    Examples:
        >>> calibration = calibrate(predictions, n_resamples=200)
        >>> round(calibration.temperature, 1)
        0.9
    """
    table = read_predictions(predictions)
    other = None if fitted_on is None else read_predictions(fitted_on)
    if other is not None and class_columns(other) != class_columns(table):
        raise DataError(
            f"The tables have different classes: {', '.join(class_columns(table))} and "
            f"{', '.join(class_columns(other))}.",
            hint="Give predictions of the same model.",
        )
    scaled_folds, rows = [], []
    for fold, fit, evaluated in cross_fit_folds(table, other):
        temperature = fit_temperature(fit)
        counts = {"fitted_on": fit["patient"].nunique(), "evaluated": evaluated["patient"].nunique()}
        rows.append({"fold": fold, "temperature": temperature, **counts})
        scaled_folds.append(apply_temperature(evaluated, temperature))
    scaled = pd.concat(scaled_folds).sort_index()
    options = {"positive": positive, "n_resamples": n_resamples, "seed": seed}
    before, after = evaluate(table, **options), evaluate(scaled.assign(patient=table["patient"]), **options)
    return Calibration(
        temperature=fit_temperature(table if other is None else other),
        folds=pd.DataFrame(rows),
        table=pd.DataFrame(_compare_metrics(before, after, n_resamples=n_resamples, seed=seed), columns=COLUMNS),
        before=before,
        after=after,
    )


def fit_temperature(predictions: pd.DataFrame) -> float:
    """Fit the temperature that minimises the log loss of the patients' scores.

    The labels are smoothed as proposed by Platt (Advances in Large Margin Classifiers, 1999): with n patients of a
    class and k classes, the target probability of the class is (n + 1) / (n + k). Without smoothing, the temperature of
    a model that separates the classes perfectly would be 0.

    Args:
        predictions: What `read_predictions` returned; rows without a label or a prediction are ignored.

    Returns:
        The temperature, 0.02 to 50. Above 1 the model was overconfident; at 50 its probabilities carry no information.

    Raises:
        DataError: No row has both a label and a prediction.
    """
    classes = class_columns(predictions)
    rows = predictions[has_label_and_prediction(predictions)]
    if rows.empty:
        raise DataError("No row has both a label and a prediction.", hint="Give labelled predictions to fit on.")
    logits = _logits(rows)
    units, numbers = np.unique(rows["patient"] + "\0" + rows["label"], return_inverse=True)
    truth = np.zeros(len(units), dtype=int)
    truth[numbers] = pd.Categorical(rows["label"], categories=classes).codes
    images, counts = np.bincount(numbers), np.bincount(truth, minlength=len(classes))
    # (n + 1) / (n + k) for the true class, 1 / (n + k) for each other class
    target = (np.eye(len(classes))[truth] * counts[truth, None] + 1) / (counts[truth, None] + len(classes))

    def loss(log_temperature: float) -> float:
        """Return the mean cross-entropy of the patients, whose probabilities are the mean over their images."""
        scaled = _softmax(logits / np.exp(log_temperature))
        mean = np.stack([np.bincount(numbers, scaled[:, k]) / images for k in range(len(classes))], axis=1)
        return float(-(target * np.log(np.clip(mean, SMALLEST_P, 1))).sum(axis=1).mean())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def apply_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Return predictions with scaled probabilities: their logarithms are divided by the temperature.

    Args:
        predictions: A table with a column `p_<class>` for each class.
        temperature: The temperature, greater than 0; 1 changes nothing.

    Returns:
        A copy of the table with other probabilities. The most probable class does not change.

    Raises:
        UsageError: The temperature is not greater than 0.
    """
    temperature = check_option("temperature", temperature, Temperature)
    scaled = predictions.copy()
    columns = [PROBABILITY + name for name in class_columns(predictions)]
    scaled[columns] = _softmax(_logits(predictions) / temperature)
    return scaled


@checked
def reliability_table(source: Evaluation | pd.DataFrame | str | Path, *, bins: Bins = BINS) -> pd.DataFrame:
    """Compare predicted probabilities with observed frequencies, in bins of equal counts.

    Args:
        source: An evaluation, or predictions.
        bins: Number of bins, 2 or more.

    Returns:
        One row per bin: `probability` (mean predicted probability of the positive class, or with more than two classes
        of the predicted class), `fraction` (observed frequency of that class), `low` and `high` (95%, Wilson), `n`
        (patients).

    Raises:
        UsageError: `bins` is not allowed, or the evaluation has no predictions.
        DataError: The table is faulty.
    """
    result = as_evaluation(source)
    units = score_units(result.predictions, positive=result.positive, unit=result.unit).table
    probability, outcome = probability_and_outcome(units, result.classes, result.positive)
    table = pd.DataFrame({"bin": equal_mass_bins(probability, bins), "probability": probability, "fraction": outcome})
    by_bin = table.groupby("bin").agg(
        probability=("probability", "mean"), fraction=("fraction", "mean"), n=("fraction", "size")
    )
    bounds = [wilson(fraction, n) for fraction, n in zip(by_bin["fraction"], by_bin["n"], strict=True)]
    by_bin["low"], by_bin["high"] = np.transpose(bounds)
    return by_bin.reset_index(drop=True)[["probability", "fraction", "low", "high", "n"]]


@checked
def plot_reliability(source: Calibration | Evaluation | pd.DataFrame | str | Path, *, bins: Bins = BINS) -> Figure:
    """Plot a reliability diagram: observed frequency by predicted probability, above a histogram of the probabilities.

    The line with its 95% band is the smooth curve of `calibration_curve`, the points are those of `reliability_table`.

    Args:
        source: A calibration (before and after), an evaluation, or predictions.
        bins: Number of points, of equal counts of patients.

    Returns:
        The figure. The dotted line is perfect calibration, where 8 of 10 patients with a probability of 0.8 are of the
        class.

    Raises:
        UsageError: As in `reliability_table`.
        DataError: The table is faulty.

    Examples:
        >>> figure = plot_reliability(predictions, bins=5)
        >>> len(figure.axes)
        2
    """
    is_pair = isinstance(source, Calibration)
    results = {"before": source.before, "after": source.after} if is_pair else {"": as_evaluation(source)}
    colours = dict(zip(results, class_colours(["first", "second"]).values(), strict=False))
    figure = Figure(figsize=(4.8, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[3.4, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    for (name, result), marker, shift in zip(results.items(), "os", (-0.004, 0.004), strict=False):
        table, ece = reliability_table(result, bins=bins), result.row("ece")
        label = f"{name} ECE {format_estimate(ece['value'], ece['low'], ece['high'])}".strip()
        errors = np.abs(table[["low", "high"]].to_numpy().T - table["fraction"].to_numpy())
        style = {"fmt": marker, "color": colours[name], "markersize": 4, "elinewidth": 0.9, "capsize": 2}
        curve = calibration_curve(result).curve
        if len(curve):
            draw_band(axes, *(curve[column] for column in curve), colour=colours[name], label="")
        axes.errorbar(table["probability"] + shift * is_pair, table["fraction"], yerr=errors, label=label, **style)
        units = score_units(result.predictions, positive=result.positive, unit=result.unit).table
        probability, _ = probability_and_outcome(units, result.classes, result.positive)
        edges = np.linspace(0, 1, 21)
        counts.hist(probability, bins=edges, histtype="step", color=colours[name], lw=1.2)
    result = next(iter(results.values()))
    n = int(result.confusion.to_numpy().sum())
    axes.set(ylabel=f"fraction that is {result.positive or 'correct'}", ylim=(-0.03, 1.03), xlim=(-0.02, 1.02))
    axes.set_title(f"Reliability, n = {n} {result.unit}s in {bins} bins", fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    counts.set(xlabel=f"probability of {result.positive or 'the predicted class'}", ylabel=f"{result.unit}s")
    for panel in (axes, counts):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _compare_metrics(before: Evaluation, after: Evaluation, *, n_resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of `Calibration.table`; differences are of the same patients."""
    rows = []
    tables = [score_units(result.predictions, positive=result.positive).table for result in (before, after)]
    resamples = Resamples(tables[0]["patient"], tables[0]["label"], n_resamples, seed)
    metrics_before, metrics_after = (
        {metric.metric: metric for metric in list_weighted_metrics(units, before.classes, before.positive)}
        for units in tables
    )
    for name in METRICS:
        for when, result in (("before", before), ("after", after)):
            rows.append({**result.row(name), "when": when})
        values = before.value(name), after.value(name)
        low, high, method = difference_interval(metrics_after[name], metrics_before[name], values, None, resamples)
        bounds = {"value": values[1] - values[0], "low": low, "high": high}
        rows.append({**rows[-1], "when": "difference", **bounds, "method": method})
    return rows


def _logits(table: pd.DataFrame) -> np.ndarray:
    """Return log probabilities, `(n, k)`; they are logits, up to a constant that softmax cancels."""
    p = table[[PROBABILITY + name for name in class_columns(table)]].to_numpy(dtype=float)
    return np.log(np.clip(p, SMALLEST_P, 1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))  # the greatest exponent is 0: no overflow
    return exponentials / exponentials.sum(axis=1, keepdims=True)
