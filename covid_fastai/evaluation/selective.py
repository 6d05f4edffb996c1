"""Selective prediction: risk-coverage curves, and abstention from uncertain predictions for a target risk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.bootstrap import (
    LARGEST_DRAWN,
    cross_fit_folds,
    resample_by_score,
    resample_patients,
)
from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate, format_metric
from covid_fastai.evaluation.intervals import percentile_interval, wilson
from covid_fastai.evaluation.metrics import COLUMNS, find_row, score_units, summarise_metrics
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.weighted_metrics import compute_in_blocks
from covid_fastai.figures import Figure
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import NResamples, OpenFraction, Probability, Seed, Uncertainty, checked
from covid_fastai.plotting import class_colours, draw_band

__all__ = [
    "Abstention",
    "RiskCoverage",
    "abstain_by_fold",
    "certain_units",
    "choose_certainty",
    "plot_risk_coverage",
    "risk_coverage",
]

COVERAGES = (0.8, 0.9, 1.0)
MOST_ROWS = 2000  # of the curve of many patients
TESTS = 10  # numbers of answers that are tested for a target risk
CONFIDENCE = 0.95  # of the guarantee of a target risk
CURVE = ["coverage", "certainty", "answered", "errors", "risk", "low", "high"]
POINTS = ["fraction", "coverage", "certainty", "answered", "accuracy", "low", "high"]


@dataclass(frozen=True, eq=False, repr=False)
class RiskCoverage(ResultDisplay):
    """The error rate of the most certain predictions, as a function of the fraction of patients that they cover.

    Attributes:
        curve: One row per certainty, the highest first: `coverage` (fraction of patients with at least this certainty),
            `certainty`, `answered` (number of these patients), `errors` among them, `risk` (their error rate) with
            `low` and `high` (95%, Wilson). Of more than 20,000 certainties, some 2,000 rows at equal steps of coverage.
        points: `accuracy` with `low` and `high` if the most certain `fraction` of patients (0.8, 0.9, 1) is answered.
            Patients with equal certainty are answered together, so that `coverage` may be higher than `fraction`.
        metrics: `aurc` (area under the curve: the mean risk over all coverages), `error_rate` (of all patients; the
            expected area if certainty were random) and `gain` (error rate minus area), with `value`, `low`, `high`,
            `n`.
        uncertainty: The source of the certainty, `"probability"` or `"spread"`.
    """

    curve: pd.DataFrame
    points: pd.DataFrame
    metrics: pd.DataFrame
    uncertainty: str

    def value(self, metric: str) -> float:
        """Return the value of `"aurc"`, `"error_rate"` or `"gain"`.

        Raises:
            UsageError: There is no such metric.
        """
        return float(find_row(self.metrics, metric)["value"])

    def to_dict(self) -> dict[str, Any]:
        """Return curve, points and metrics as plain values."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("curve", "points", "metrics")}
        return {"uncertainty": self.uncertainty, **tables}

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.points.round(3), self.metrics.round(3))
        yield f"Certainty by {self.uncertainty}; n = {self.metrics['n'].iloc[0]} patients. {RESEARCH_USE}"


@checked
def risk_coverage(
    predictions: str | Path | pd.DataFrame,
    *,
    uncertainty: Uncertainty = "probability",
    positive: str | None = None,
    threshold: Probability = 0.5,
    n_resamples: NResamples = 2000,
    seed: Seed = 0,
) -> RiskCoverage:
    """Compute the risk-coverage curve (El-Yaniv and Wiener, JMLR 2010): error rate by fraction of patients answered.

    If certainty is informative, the risk decreases with the coverage. The curve does not include the errors of whoever
    reads the images of the patients that are not answered.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        uncertainty: `"probability"`: certainty is the distance of the probability to the threshold, or with more than
            two classes the greatest probability. `"spread"`: certainty is the agreement of an ensemble or of augmented
            copies; the table needs a column `spread`, 0 or more, such as the standard deviation of their probabilities.
        positive: The class that is predicted at or above the threshold; None for the last of two.
        threshold: The lowest probability from which it is predicted, 0 to 1.
        n_resamples: Number of bootstrap resamples of patients, 100 or more, for the interval of the area.
        seed: Seed of the bootstrap.

    Returns:
        The curve and its area. The certainty of a patient is that of the mean probabilities over their images, or minus
        the mean of `spread` over their images.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, or a spread is missing or negative.

    Examples:
        >>> curve = risk_coverage(predictions, n_resamples=200)
        >>> curve.points[["coverage", "accuracy"]].round(2)
           coverage  accuracy
        0       0.8      0.83
        1       0.9      0.81
        2       1.0      0.80
    """
    table = read_predictions(predictions)
    units = certain_units(table, uncertainty=uncertainty, positive=positive, threshold=threshold)
    certainty, error = units["certainty"].to_numpy(), units["error"].to_numpy()
    order, ends = _sort_by_certainty(certainty)
    ends = _thin_out(ends)
    answered, errors = ends + 1, np.cumsum(error[order])[ends].astype(int)
    low, high = np.transpose([wilson(e / n, n) for e, n in zip(errors, answered, strict=True)])
    columns = (answered / len(units), certainty[order][ends], answered, errors, errors / answered, low, high)
    curve = pd.DataFrame(dict(zip(CURVE, columns, strict=True)))
    metrics = _risk_coverage_metrics(units, n_resamples=n_resamples, seed=seed)
    return RiskCoverage(curve, _accuracy_at_coverages(curve), metrics, uncertainty)


@checked
def certain_units(
    predictions: pd.DataFrame,
    *,
    uncertainty: Uncertainty = "probability",
    positive: str | None = None,
    threshold: Probability = 0.5,
) -> pd.DataFrame:
    """Return one row per patient with the certainty of its prediction, and whether the prediction is wrong.

    Args:
        predictions: What `read_predictions` returned.
        uncertainty: As in `risk_coverage`.
        positive: As in `risk_coverage`.
        threshold: As in `risk_coverage`.

    Returns:
        `patient`, `label`, `predicted`, `certainty` and `error` (0 or 1). With `"probability"` the certainty is the
        distance to the threshold divided by the greatest possible distance on that side, 0 to 1; with more than two
        classes it is the greatest probability. With `"spread"` it is minus the spread.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: No row has both a label and a prediction, or a spread is missing or negative.
    """
    classes = class_columns(predictions)
    positive = choose_positive(classes, positive)
    units = score_units(predictions, positive=positive, threshold=threshold).table
    if uncertainty == "spread":
        certainty = -_mean_spread(predictions, units)
    elif positive is None:
        certainty = units[[PROBABILITY + name for name in classes]].max(axis=1).to_numpy()
    else:
        p = units[PROBABILITY + positive].to_numpy()
        greatest = np.where(p >= threshold, 1 - threshold, threshold)  # distance on this side of the threshold
        certainty = np.divide(np.abs(p - threshold), greatest, out=np.ones(len(p)), where=greatest > 0)
    error = units["predicted"].ne(units["label"]).astype(float)
    return units[["patient", "label", "predicted"]].assign(certainty=certainty, error=error)


def plot_risk_coverage(curves: RiskCoverage | Mapping[str, RiskCoverage]) -> Figure:
    """Plot the error rate of the answered patients by their fraction, with its 95% band.

    Args:
        curves: What `risk_coverage` returned, or a dictionary of names and such curves.

    Returns:
        The figure. The dotted line is the error rate if all patients are answered.
    """
    named_curves = {"": curves} if isinstance(curves, RiskCoverage) else dict(curves)
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.subplots()
    top = 0.05
    colours = class_colours(list(named_curves)).values()
    for (name, result), colour in zip(named_curves.items(), colours, strict=True):
        curve, area = result.curve, result.metrics.iloc[0]
        text = format_estimate(area["value"], area["low"], area["high"])
        label = f"{name or 'by ' + result.uncertainty}: area {text}"
        lines = (curve[column] for column in ("coverage", "risk", "low", "high"))
        draw_band(axes, *lines, colour=colour, label=label)
        axes.axhline(result.value("error_rate"), color=colour, lw=0.8, ls=":")
        axes.plot(result.points["coverage"], 1 - result.points["accuracy"], "o", color=colour, markersize=4)
        # below a coverage of 0.2 the bounds of a few patients would stretch the axis
        plotted = curve["coverage"] >= min(0.2, curve["coverage"].iloc[-1])
        top = max(top, 1.1 * float(curve.loc[plotted, "high"].max()))
    first = next(iter(named_curves.values()))
    axes.set(xlim=(0, 1.01), ylim=(-0.005, min(top, 1.0)), xlabel="coverage: fraction of patients answered")
    axes.set(ylabel="risk: error rate of the answered patients")
    axes.set_title(f"Selective prediction, n = {first.metrics['n'].iloc[0]} patients", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _mean_spread(predictions: pd.DataFrame, units: pd.DataFrame) -> np.ndarray:
    """Return the mean of `spread` over the images of each patient, in the order of `units`."""
    if "spread" not in predictions:
        raise UsageError(
            "The table has no column 'spread'.", hint="Give one, such as the standard deviation over an ensemble."
        )
    evaluated = predictions[has_label_and_prediction(predictions)]
    spread = pd.to_numeric(evaluated["spread"], errors="coerce")
    if not (spread >= 0).all():
        invalid = evaluated.loc[~(spread >= 0), "path"]
        raise DataError(
            f"{len(invalid)} rows have no spread of 0 or more, such as {invalid.iloc[0]}.",
            hint="Give a spread of 0 or more in each row.",
        )
    means = spread.groupby([evaluated["patient"], evaluated["label"]]).mean()
    return means.loc[list(zip(units["patient"], units["label"], strict=True))].to_numpy(dtype=float)


def _sort_by_certainty(certainty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of decreasing certainty, and the position of the last unit of each tie in it."""
    order = np.argsort(-certainty, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(certainty[order]) != 0, True))


def _thin_out(ends: np.ndarray) -> np.ndarray:
    """Return the positions of the rows of a curve: all, or of many those at equal steps and at COVERAGES."""
    if len(ends) <= LARGEST_DRAWN:
        return ends
    n = ends[-1] + 1
    coverages = np.union1d(np.linspace(1 / n, 1, MOST_ROWS), COVERAGES)
    # 1e-9: a float's rounding, as in `_accuracy_at_coverages`
    rows = np.searchsorted((ends + 1) / n, coverages - 1e-9)
    return ends[np.unique(rows)]


def _accuracy_at_coverages(curve: pd.DataFrame) -> pd.DataFrame:
    """Return `RiskCoverage.points`: the accuracy at the highest certainty that reaches each of COVERAGES."""
    rows = []
    for coverage in COVERAGES:
        point = curve[curve["coverage"] >= coverage - 1e-9].iloc[0]  # 1e-9: a float's rounding
        bounds = (1 - point["risk"], 1 - point["high"], 1 - point["low"])
        rows.append((coverage, point["coverage"], point["certainty"], int(point["answered"]), *bounds))
    return pd.DataFrame(rows, columns=POINTS)


def _risk_coverage_metrics(units: pd.DataFrame, *, n_resamples: int, seed: int) -> pd.DataFrame:
    """Return the area, the error rate and their difference, with intervals."""
    certainty, error = units["certainty"].to_numpy(), units["error"].to_numpy()
    value = _areas(certainty, error, np.ones((1, len(error))))[0]
    options = {"n_resamples": n_resamples, "seed": seed}
    if len(units) <= LARGEST_DRAWN:
        weights = resample_patients(units["patient"], units["label"], **options)
        resampled = compute_in_blocks(lambda block: _areas(certainty, error, block), weights)
    else:
        order, wrong, counts = resample_by_score(certainty, error > 0, units["patient"], units["label"], **options)
        resampled = compute_in_blocks(lambda block: _areas(order, wrong, block), counts)
        # the area of the groups differs slightly from that of the units
        resampled += value - _areas(order, wrong, counts.mean(axis=0, keepdims=True))[0]
    rows, n = [], len(error)
    for number, name in enumerate(("aurc", "error_rate", "gain")):
        low, high, method = math.nan, math.nan, "all resamples equal"
        if name == "error_rate":
            low, high, method = *wilson(value[number], n), "Wilson"
        elif np.ptp(resampled[:, number]) > 1e-9:  # differences up to this are a float's rounding
            low, high = percentile_interval(resampled[:, number])
            low, high, method = min(low, value[number]), max(high, value[number]), "bootstrap"
        rows.append({"metric": name, "value": float(value[number]), "low": low, "high": high, "n": n, "method": method})
    return pd.DataFrame(rows)


def _areas(certainty: np.ndarray, error: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return area, error rate and gain of each resample, `(d, 3)`.

    Each patient's certainty is a threshold, and the area is the mean of their risks (Geifman et al., ICLR 2019).
    """
    order, ends = _sort_by_certainty(certainty)
    wrong = np.cumsum(weights[:, order] * error[order], axis=1)[:, ends]
    answered = np.cumsum(weights[:, order], axis=1)[:, ends]
    risk = np.divide(wrong, answered, out=np.zeros_like(wrong), where=answered > 0)
    area = (np.diff(answered, axis=1, prepend=0) * risk).sum(axis=1) / answered[:, -1]
    return np.stack([area, risk[:, -1], risk[:, -1] - area], axis=1)


@dataclass(frozen=True, eq=False, repr=False)
class Abstention(ResultDisplay):
    """The lowest certainty that meets a target risk, and the risk met on patients of the other folds.

    Attributes:
        risk: The target: the highest fraction of answers that may be wrong.
        confidence: The probability with which the certainty of a fold meets the target on new patients.
        certainty: The certainty for later use, chosen on all available rows; less certain predictions are withheld.
            None if no certainty meets the target.
        uncertainty: The source of the certainty, `"probability"` or `"spread"`.
        folds: One row per fold: `fold`, `certainty` (NaN if none meets the target), the numbers of patients
            `chosen_on`, `evaluated` and `answered`, and the `errors` among the answered.
        metrics: `coverage` and `risk` of all folds together, in the columns of `Evaluation.metrics`.
    """

    risk: float
    confidence: float
    certainty: float | None
    uncertainty: str
    folds: pd.DataFrame
    metrics: pd.DataFrame

    def value(self, metric: str) -> float:
        """Return the value of `"coverage"` or `"risk"`; the risk is NaN if no patient is answered.

        Raises:
            UsageError: There is no such metric.
        """
        return float(find_row(self.metrics, metric)["value"])

    def to_dict(self) -> dict[str, Any]:
        """Return certainties and metrics as plain values."""
        names = ("risk", "confidence", "certainty", "uncertainty")
        tables = {name: getattr(self, name).to_dict("records") for name in ("folds", "metrics")}
        return {**{name: getattr(self, name) for name in names}, **tables}

    def describe(self) -> str:
        """Return the target risk, and the coverage and risk met, as text."""
        coverage, risk = self.metrics.to_dict("records")
        target = f"Target risk {self.risk:g} at a confidence of {self.confidence:g}: "
        if coverage["value"] == 0:
            return f"{target}no certainty meets it on the patients to choose on, so that no patient is answered."
        answered = f"a fraction of {format_metric(coverage['value'])} of {coverage['n']} patients is answered"
        wrong = f"a fraction of {format_estimate(risk['value'], risk['low'], risk['high'])} of these answers is wrong"
        exceeded = " The target was not met." if risk["low"] > self.risk else ""
        return f"{target}{answered}, and {wrong}.{exceeded}"

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (summarise_metrics(self.metrics), f"{self.describe()} {RESEARCH_USE}")


@checked
def abstain_by_fold(
    predictions: str | Path | pd.DataFrame,
    *,
    risk: OpenFraction = 0.05,
    confidence: OpenFraction = CONFIDENCE,
    uncertainty: Uncertainty = "probability",
    positive: str | None = None,
    threshold: Probability = 0.5,
    fitted_on: str | Path | pd.DataFrame | None = None,
) -> Abstention:
    """Choose for each fold, on the other folds, the certainty that an answer needs, and evaluate it on the fold.

    Args:
        predictions: Out-of-fold predictions, with the model of each row in `fold`; or any predictions, with
            `fitted_on`.
        risk: Target risk: the fraction of answers that may be wrong, above 0 and below 1.
        confidence: The probability with which new patients meet the target; see `choose_certainty`.
        uncertainty: As in `risk_coverage`.
        positive: As in `risk_coverage`.
        threshold: As in `risk_coverage`.
        fitted_on: Predictions of other patients by the same model, such as an inner validation set, to choose on.

    Returns:
        The certainties, and coverage and risk over all folds with Wilson's intervals.

    Raises:
        UsageError: There is one fold only and no `fitted_on`, or an option has a value that is not allowed.
        DataError: A table is faulty, or the tables have patients in common.

    Examples:
        >>> rule = abstain_by_fold(predictions, risk=0.4)
        >>> rule.value("risk") < 0.4 < rule.value("coverage")
        True
    """
    table = read_predictions(predictions)
    table = table[has_label_and_prediction(table)]
    other = None if fitted_on is None else read_predictions(fitted_on)
    options = {"uncertainty": uncertainty, "positive": positive, "threshold": threshold}
    certainty = choose_certainty(
        certain_units(table if other is None else other, **options), risk=risk, confidence=confidence
    )
    rows, units_by_fold = [], []
    for fold, fit, evaluated in cross_fit_folds(table, other):
        fit_units, units = certain_units(fit, **options), certain_units(evaluated, **options)
        lowest = choose_certainty(fit_units, risk=risk, confidence=confidence)
        units["answered"] = False if lowest is None else units["certainty"] >= lowest
        answered = units[units["answered"]]
        row = {"fold": fold, "certainty": math.nan if lowest is None else lowest}
        counts = {"chosen_on": fit_units["patient"].nunique(), "evaluated": len(units), "answered": len(answered)}
        rows.append({**row, **counts, "errors": int(answered["error"].sum())})
        units_by_fold.append(units)
    units = pd.concat(units_by_fold, ignore_index=True)
    coverage, risk_met = units["answered"], units.loc[units["answered"], "error"]
    metrics = [_fraction_row("coverage", coverage), _fraction_row("risk", risk_met)]
    return Abstention(
        float(risk),
        float(confidence),
        certainty,
        uncertainty,
        pd.DataFrame(rows),
        pd.DataFrame(metrics, columns=COLUMNS),
    )


@checked
def choose_certainty(units: pd.DataFrame, *, risk: OpenFraction, confidence: OpenFraction = CONFIDENCE) -> float | None:
    """Choose the lowest certainty whose risk is guaranteed to meet a target.

    The method is Learn then Test (Angelopoulos et al., Annals of Applied Statistics 2025). Ten numbers of answers are
    tested, from the fewest that could pass to all patients, each with an exact binomial test at a tenth of 1 -
    `confidence` (Bonferroni). On new patients like these, the risk therefore exceeds the target with a probability of
    1 - `confidence` at most. A target of 0.05 at 95% needs 104 answers without an error.

    Args:
        units: What `certain_units` returned; one row per patient.
        risk: Target risk: the fraction of answers that may be wrong, above 0 and below 1.
        confidence: The probability with which new patients meet the target, above 0 and below 1.

    Returns:
        The lowest certainty of an answer; None if no certainty meets the target.

    Raises:
        UsageError: An option has a value that is not allowed.
    """
    level = (1 - confidence) / TESTS
    # the fewest answers without an error that could pass: (1 - risk)^n = level
    fewest = math.ceil(math.log(level) / math.log(1 - risk))
    if len(units) < fewest:
        return None
    certainty = np.sort(units["certainty"].to_numpy())[::-1]
    for number in np.linspace(len(units), fewest, TESTS).round().astype(int):  # all patients first
        lowest = float(certainty[number - 1])
        answered = units[units["certainty"] >= lowest]
        if binom.cdf(int(answered["error"].sum()), len(answered), risk) <= level:  # guard: guaranteed_risk
            return lowest
    return None


def _fraction_row(metric: str, hits: pd.Series) -> dict[str, Any]:
    """Return a row of `Abstention.metrics`."""
    n, fraction = len(hits), float(hits.mean()) if len(hits) else math.nan
    low, high = wilson(fraction, n) if n else (math.nan, math.nan)
    method = "Wilson" if n else "no patient is answered"
    return dict(zip(COLUMNS, (metric, "", fraction, low, high, n, "patient", method), strict=True))
