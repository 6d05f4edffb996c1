"""Whether probabilities come true: temperature scaling inside the folds, and the reliability plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from covid_fastai.errors import DataError
from covid_fastai.evaluation.bootstrap import BINS, equal_mass_bins, other_folds, patient_draws
from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import percentiles, wilson
from covid_fastai.evaluation.metrics import Evaluation, as_evaluation, evaluate, score_units
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.weighted_metrics import SMALLEST_P, compute_in_blocks, confidence, list_measures
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Bins, NResamples, Seed, Temperature, check_option, checked
from covid_fastai.plotting import GREY, class_colours

__all__ = [
    "Calibration",
    "apply_temperature",
    "calibrate",
    "fit_temperature",
    "plot_reliability",
    "reliability_table",
]

FIGURES = ["brier", "log_loss", "ece"]
COLUMNS = ["metric", "when", "value", "low", "high", "n", "unit", "method"]
HIGHEST, LOWEST = 50.0, 0.02  # temperatures: all classes alike, all certain


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(ResultDisplay):
    """What temperature scaling does to probabilities, judged on patients that it was not fitted on.

    Attributes:
        temperature: For later use, fitted on all rows that might be fitted on.
        folds: `fold`, `temperature`, `fitted_on` and `judged` (patients): with which temperature each fold was scaled.
        table: `metric` (brier, log_loss, ece), `when` (before, after, difference: after less before), `value`, `low`
            and `high` (95%), `n`, `unit`, `method`.
        before: The evaluation of the probabilities as they were.
        after: The evaluation of the scaled ones; `after.predictions` holds them.
    """

    temperature: float
    folds: pd.DataFrame
    table: pd.DataFrame
    before: Evaluation
    after: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Return temperatures and figures as plain values."""
        records = {"folds": self.folds.to_dict("records"), "table": self.table.to_dict("records")}
        return {"temperature": self.temperature, **records}

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield self.table.round(3)
        yield f"Temperature {self.temperature:.2f}; above 1 it makes the model less certain. {RESEARCH_USE}"


@checked
def calibrate(
    predictions: str | Path | pd.DataFrame,
    *,
    fitted_on: str | Path | pd.DataFrame | None = None,
    positive: str | None = None,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
) -> Calibration:
    """Scale probabilities by a temperature (Guo et al., ICML 2017) that was fitted on other patients, and judge both.

    Args:
        predictions: Out-of-fold predictions, whose `fold` says which model made them; or any, with `fitted_on`.
        fitted_on: Predictions of other patients by the same model, such as an inner validation set; None to fit for
            each fold on the other folds.
        positive: As in `evaluate`.
        n_resamples: Bootstrap draws.
        seed: Of the bootstrap.

    Returns:
        The calibration.

    Raises:
        UsageError: There is one fold only and no `fitted_on`, or an option has a value that is not allowed.
        DataError: A table is faulty, or the two share patients or differ in their classes.
    """
    table = read_predictions(predictions)
    other = None if fitted_on is None else read_predictions(fitted_on)
    if other is not None and class_columns(other) != class_columns(table):
        raise DataError(
            f"The tables have different classes: {', '.join(class_columns(table))} and "
            f"{', '.join(class_columns(other))}.",
            hint="Give predictions of the same model.",
        )
    parts, rows = [], []
    for fold, fit, judged in other_folds(table, other):
        temperature = fit_temperature(fit)
        counts = {"fitted_on": fit["patient"].nunique(), "judged": judged["patient"].nunique()}
        rows.append({"fold": fold, "temperature": temperature, **counts})
        parts.append(apply_temperature(judged, temperature))
    scaled = pd.concat(parts).sort_index()
    options = {"positive": positive, "n_resamples": n_resamples, "seed": seed}
    before, after = evaluate(table, **options), evaluate(scaled.assign(patient=table["patient"]), **options)
    return Calibration(
        temperature=fit_temperature(table if other is None else other),
        folds=pd.DataFrame(rows),
        table=pd.DataFrame(_figures(before, after, n_resamples=n_resamples, seed=seed), columns=COLUMNS),
        before=before,
        after=after,
    )


def fit_temperature(predictions: pd.DataFrame) -> float:
    """Find the temperature with the smallest log loss of the patients' scores.

    The labels are taken with Platt's allowance (Advances in Large Margin Classifiers, 1999): with n patients of a class
    and k classes it counts for (n + 1) / (n + k) of them, so that classes which the model tells apart without an error
    do not call for boundless certainty.

    Args:
        predictions: What `read_predictions` returned; rows without a label or a prediction do not count.

    Returns:
        The temperature, 0.02 to 50. Above 1 the model was too certain; 50 says that its probabilities tell nothing.

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
    target = (np.eye(len(classes))[truth] * counts[truth, None] + 1) / (counts[truth, None] + len(classes))

    def loss(log_temperature: float) -> float:
        scaled = _softmax(logits / np.exp(log_temperature))
        mean = np.stack([np.bincount(numbers, scaled[:, k]) / images for k in range(len(classes))], axis=1)
        return float(-(target * np.log(np.clip(mean, SMALLEST_P, 1))).sum(axis=1).mean())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def apply_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Return predictions with their probabilities scaled: the logits are divided by the temperature.

    Args:
        predictions: With a column `p_<class>` for each class.
        temperature: Greater than 0; 1 changes nothing.

    Returns:
        The table, else as it was; the most probable class stays the same.

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
    """Compare the probability that was given with the share that came true, in bins of equal counts.

    Args:
        source: An evaluation, or predictions.
        bins: How many, 2 or more.

    Returns:
        A row a bin: `probability` (mean; of the positive class, with more than two classes of the one predicted),
        `share` (that came true), `low` and `high` (95%, Wilson), `n` (patients).

    Raises:
        UsageError: `bins` is not allowed, or the evaluation holds no predictions.
        DataError: The table is faulty.
    """
    result = as_evaluation(source)
    units = score_units(result.predictions, positive=result.positive, unit=result.unit).table
    given, hit = confidence(units, result.classes, result.positive)
    table = pd.DataFrame({"bin": equal_mass_bins(given, bins), "probability": given, "fraction": hit})
    found = table.groupby("bin").agg(
        probability=("probability", "mean"), fraction=("fraction", "mean"), n=("fraction", "size")
    )
    bounds = [wilson(fraction, n) for fraction, n in zip(found["fraction"], found["n"], strict=True)]
    found["low"], found["high"] = np.transpose(bounds)
    return found.reset_index(drop=True)[["probability", "fraction", "low", "high", "n"]]


@checked
def plot_reliability(source: Calibration | Evaluation | pd.DataFrame | str | Path, *, bins: Bins = BINS) -> Figure:
    """Plot the share that came true by the probability that was given, with intervals, and how many got which.

    Args:
        source: A calibration (before and after), an evaluation, or predictions.
        bins: Points, of equal counts of patients.

    Returns:
        The figure. On the dotted line a probability of 0.8 comes true for 8 of 10 patients.

    Raises:
        UsageError: As in `reliability_table`.
        DataError: The table is faulty.
    """
    both = isinstance(source, Calibration)
    shown = {"before": source.before, "after": source.after} if both else {"": as_evaluation(source)}
    colours = dict(zip(shown, class_colours(["first", "second"]).values(), strict=False))
    figure = Figure(figsize=(4.8, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[3.4, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    for (name, result), marker, shift in zip(shown.items(), "os", (-0.004, 0.004), strict=False):
        table, ece = reliability_table(result, bins=bins), result.row("ece")
        label = f"{name} ECE {format_estimate(ece['value'], ece['low'], ece['high'])}".strip()
        spread = np.abs(table[["low", "high"]].to_numpy().T - table["fraction"].to_numpy())
        style = {"fmt": marker, "color": colours[name], "markersize": 4, "elinewidth": 0.9, "capsize": 2}
        axes.errorbar(table["probability"] + shift * both, table["fraction"], yerr=spread, label=label, **style)
        units = score_units(result.predictions, positive=result.positive, unit=result.unit).table
        given, _ = confidence(units, result.classes, result.positive)
        edges = np.linspace(0, 1, 21)
        counts.hist(given, bins=edges, histtype="step", color=colours[name], lw=1.2)
    result = next(iter(shown.values()))
    what = result.positive or "the true class" if result.positive else "the predicted class"
    n = int(result.confusion.to_numpy().sum())
    axes.set(ylabel=f"share that was {result.positive or 'right'}", ylim=(-0.03, 1.03), xlim=(-0.02, 1.02))
    axes.set_title(f"Reliability, n = {n} {result.unit}s in {bins} bins", fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    counts.set(xlabel=f"probability of {what}", ylabel=f"{result.unit}s")
    for panel in (axes, counts):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _figures(before: Evaluation, after: Evaluation, *, n_resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of `Calibration.table`; the differences are of the same draws."""
    rows = []
    tables = [score_units(result.predictions, positive=result.positive).table for result in (before, after)]
    weights = patient_draws(tables[0]["patient"], tables[0]["label"], n_resamples=n_resamples, seed=seed)
    measures = [{m.metric: m for m in list_measures(units, before.classes, before.positive)} for units in tables]
    for metric in FIGURES:
        for when, result in (("before", before), ("after", after)):
            rows.append({**result.row(metric), "when": when})
        first, second = (compute_in_blocks(found[metric].compute, weights) for found in measures)
        low, high = percentiles(second - first)
        value = after.value(metric) - before.value(metric)
        rows.append({**rows[-1], "when": "difference", "value": value, "low": low, "high": high, "method": "bootstrap"})
    return rows


def _logits(table: pd.DataFrame) -> np.ndarray:
    """Return log probabilities, `(n, k)`."""
    p = table[[PROBABILITY + name for name in class_columns(table)]].to_numpy(dtype=float)
    return np.log(np.clip(p, SMALLEST_P, 1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
