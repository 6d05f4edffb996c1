"""Selective prediction: how often the answers are wrong when only the most certain ones are given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.bootstrap import other_folds, patient_draws
from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate, format_metric
from covid_fastai.evaluation.intervals import percentiles, wilson
from covid_fastai.evaluation.metrics import COLUMNS, find_row, score_units, summarise_figures
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.weighted_metrics import compute_in_blocks
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

SHARES = (0.8, 0.9, 1.0)
CURVE = ["coverage", "certainty", "answered", "errors", "risk", "low", "high"]
POINTS = ["fraction", "coverage", "certainty", "answered", "accuracy", "low", "high"]


@dataclass(frozen=True, eq=False, repr=False)
class RiskCoverage(ResultDisplay):
    """What leaving the least certain answers out is worth.

    Attributes:
        curve: A row a certainty, the greatest first: `coverage` (share of the patients that are at least so certain),
            `certainty`, `answered` (patients), `errors` among them, `risk` (their share) with `low` and `high` (95%,
            Wilson).
        points: `accuracy` with `low` and `high` where the most certain `share` (0.8, 0.9, 1) is answered; patients of
            the same certainty are answered together, so that `coverage` may be more.
        metrics: `aurc` (area under the curve: the mean risk over all coverages), `error_rate` (the same of answers in
            random order), `gain` (what certainty saves: error rate less area), each `value`, `low`, `high`, `n`.
        uncertainty: What certainty was taken from, `"probability"` or `"spread"`.
    """

    curve: pd.DataFrame
    points: pd.DataFrame
    metrics: pd.DataFrame
    uncertainty: str

    def value(self, metric: str) -> float:
        """Return `"aurc"`, `"error_rate"` or `"gain"`.

        Raises:
            UsageError: There is no such figure.
        """
        return float(find_row(self.metrics, metric)["value"])

    def to_dict(self) -> dict[str, Any]:
        """Return curve, points and figures as plain values."""
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
    """Compute the risk-coverage curve (El-Yaniv and Wiener, JMLR 2010): the error rate by the share that is answered.

    A model that knows when it does not know has a curve that falls to the left. All patients here were labelled; what
    becomes of those that a model leaves to others is not in the curve.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        uncertainty: `"probability"`: certain is who lies far from the threshold, or with more than two classes whose
            most probable class is very probable. `"spread"`: certain is whose predictions by the members of an
            ensemble, or of augmented copies, agree; the table has a column `spread`, 0 or more, such as their standard
            deviation.
        positive: The class that is predicted from the threshold on; None for the last of two.
        threshold: The probability from which it is predicted, 0 to 1.
        n_resamples: Bootstrap draws of patients, 100 or more, for the interval of the area.
        seed: Of the bootstrap.

    Returns:
        The curve and its area. A patient's certainty is that of the mean over their images, a spread the mean spread.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: The table is faulty, or a spread is missing or negative.
    """
    table = read_predictions(predictions)
    units = certain_units(table, uncertainty=uncertainty, positive=positive, threshold=threshold)
    certainty, error = units["certainty"].to_numpy(), units["error"].to_numpy()
    order, ends = _order(certainty)
    answered, errors = ends + 1, np.cumsum(error[order])[ends].astype(int)
    low, high = np.transpose([wilson(e / n, n) for e, n in zip(errors, answered, strict=True)])
    columns = (answered / len(units), certainty[order][ends], answered, errors, errors / answered, low, high)
    curve = pd.DataFrame(dict(zip(CURVE, columns, strict=True)))
    weights = patient_draws(units["patient"], units["label"], n_resamples=n_resamples, seed=seed)
    return RiskCoverage(curve, _points(curve), _metrics(certainty, error, weights), uncertainty)


@checked
def certain_units(
    predictions: pd.DataFrame,
    *,
    uncertainty: Uncertainty = "probability",
    positive: str | None = None,
    threshold: Probability = 0.5,
) -> pd.DataFrame:
    """Return one row a patient with how certain its answer is, and whether it is wrong.

    Args:
        predictions: What `read_predictions` returned.
        uncertainty: As in `risk_coverage`.
        positive: As in `risk_coverage`.
        threshold: As in `risk_coverage`.

    Returns:
        `patient`, `label`, `predicted`, `certainty` and `error` (0 or 1). By probability the certainty is the distance
        to the threshold by the greatest one on that side, 0 to 1, or the greatest probability; by spread it is the
        spread's negative.

    Raises:
        UsageError: An option has a value that is not allowed.
        DataError: No row has both a label and a prediction, or a spread is missing or negative.
    """
    classes = class_columns(predictions)
    positive = choose_positive(classes, positive)
    units = score_units(predictions, positive=positive, threshold=threshold).table
    if uncertainty == "spread":
        certainty = -_spreads(predictions, units)
    elif positive is None:
        certainty = units[[PROBABILITY + name for name in classes]].max(axis=1).to_numpy()
    else:
        p = units[PROBABILITY + positive].to_numpy()
        room = np.where(p >= threshold, 1 - threshold, threshold)  # on the answer's side of the threshold
        certainty = np.divide(np.abs(p - threshold), room, out=np.ones(len(p)), where=room > 0)
    error = units["predicted"].ne(units["label"]).astype(float)
    return units[["patient", "label", "predicted"]].assign(certainty=certainty, error=error)


def plot_risk_coverage(curves: RiskCoverage | Mapping[str, RiskCoverage]) -> Figure:
    """Plot the share of wrong answers by the share of patients that is answered, with its interval.

    Args:
        curves: What `risk_coverage` returned, or such curves by a name each.

    Returns:
        The figure; the dotted line is the error rate if everybody is answered.
    """
    shown = {"": curves} if isinstance(curves, RiskCoverage) else dict(curves)
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.subplots()
    top = 0.05
    for (name, found), colour in zip(shown.items(), class_colours(list(shown)).values(), strict=True):
        curve, area = found.curve, found.metrics.iloc[0]
        text = format_estimate(area["value"], area["low"], area["high"])
        label = f"{name or 'by ' + found.uncertainty}: area {text}"
        lines = (curve[column] for column in ("coverage", "risk", "low", "high"))
        draw_band(axes, *lines, colour=colour, label=label)
        axes.axhline(found.value("error_rate"), color=colour, lw=0.8, ls=":")
        axes.plot(found.points["coverage"], 1 - found.points["accuracy"], "o", color=colour, markersize=4)
        later = curve["coverage"] >= min(0.2, curve["coverage"].iloc[-1])  # of a few patients nothing is known
        top = max(top, 1.1 * float(curve.loc[later, "high"].max()))
    first = next(iter(shown.values()))
    axes.set(xlim=(0, 1.01), ylim=(-0.005, min(top, 1.0)), xlabel="coverage: share of patients answered")
    axes.set(ylabel="risk: share of answers that are wrong")
    axes.set_title(f"Selective prediction, n = {first.metrics['n'].iloc[0]} patients", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _spreads(predictions: pd.DataFrame, units: pd.DataFrame) -> np.ndarray:
    """Return each patient's mean spread, in the order of `units`."""
    if "spread" not in predictions:
        raise UsageError(
            "The table has no column 'spread'.", hint="Give one, such as the standard deviation over an ensemble."
        )
    judged = predictions[has_label_and_prediction(predictions)]
    spread = pd.to_numeric(judged["spread"], errors="coerce")
    if not (spread >= 0).all():
        bad = judged.loc[~(spread >= 0), "path"]
        raise DataError(f"{len(bad)} rows have no spread of 0 or more, such as {bad.iloc[0]}.", hint="Give it for all.")
    means = spread.groupby([judged["patient"], judged["label"]]).mean()
    return means.loc[list(zip(units["patient"], units["label"], strict=True))].to_numpy(dtype=float)


def _order(certainty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order from the most certain on, and where in it each tie ends."""
    order = np.argsort(-certainty, kind="stable")
    return order, np.flatnonzero(np.append(np.diff(certainty[order]) != 0, True))


def _points(curve: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy at each of SHARES: that of the first certainty which reaches it."""
    rows = []
    for share in SHARES:
        found = curve[curve["coverage"] >= share - 1e-9].iloc[0]
        bounds = (1 - found["risk"], 1 - found["high"], 1 - found["low"])
        rows.append((share, found["coverage"], found["certainty"], int(found["answered"]), *bounds))
    return pd.DataFrame(rows, columns=POINTS)


def _metrics(certainty: np.ndarray, error: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """Return area, error rate and their difference, with intervals."""
    order, ends = _order(certainty)

    def compute(drawn: np.ndarray) -> np.ndarray:
        """Each patient's certainty is a threshold; the area is the mean risk over them (Geifman et al., ICLR 2019)."""
        wrong = np.cumsum(drawn[:, order] * error[order], axis=1)[:, ends]
        answered = np.cumsum(drawn[:, order], axis=1)[:, ends]
        risk = np.divide(wrong, answered, out=np.zeros_like(wrong), where=answered > 0)
        area = (np.diff(answered, axis=1, prepend=0) * risk).sum(axis=1) / answered[:, -1]
        return np.stack([area, risk[:, -1], risk[:, -1] - area], axis=1)

    value, drawn = compute(np.ones((1, len(error))))[0], compute_in_blocks(compute, weights)
    rows, n = [], len(error)
    for number, name in enumerate(("aurc", "error_rate", "gain")):
        low, high, method = math.nan, math.nan, "no draw differs"
        if name == "error_rate":
            low, high, method = *wilson(value[number], n), "Wilson"
        elif np.ptp(drawn[:, number]) > 1e-9:
            low, high = percentiles(drawn[:, number])
            low, high, method = min(low, value[number]), max(high, value[number]), "bootstrap"
        rows.append({"metric": name, "value": float(value[number]), "low": low, "high": high, "n": n, "method": method})
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False, repr=False)
class Abstention(ResultDisplay):
    """Which certainty an answer needs for a stated risk, and what that came to on other patients.

    Attributes:
        risk: The share of wrong answers that was asked for.
        certainty: For later use, chosen on all rows that might be chosen on: answers that are less certain are not
            given. None if no certainty is enough.
        uncertainty: What certainty was taken from, `"probability"` or `"spread"`.
        folds: `fold`, `certainty` (NaN if none is enough), `chosen_on`, `judged`, `answered` (patients), `errors`.
        metrics: `coverage` and `risk` of all folds together, in the columns of `Evaluation.metrics`.
    """

    risk: float
    certainty: float | None
    uncertainty: str
    folds: pd.DataFrame
    metrics: pd.DataFrame

    def value(self, metric: str) -> float:
        """Return `"coverage"` or `"risk"`; a risk is NaN where nobody is answered.

        Raises:
            UsageError: There is no such figure.
        """
        return float(find_row(self.metrics, metric)["value"])

    def to_dict(self) -> dict[str, Any]:
        """Return certainties and figures as plain values."""
        names = ("risk", "certainty", "uncertainty")
        tables = {name: getattr(self, name).to_dict("records") for name in ("folds", "metrics")}
        return {**{name: getattr(self, name) for name in names}, **tables}

    def describe(self) -> str:
        """Return what was asked for and what came, as a sentence or two."""
        coverage, risk = self.metrics.to_dict("records")
        asked = f"For a risk of {self.risk:g}: "
        if coverage["value"] == 0:
            return f"{asked}no certainty is enough on the patients that it was to be chosen on; nobody is answered."
        answered = f"{format_metric(coverage['value'])} of {coverage['n']} patients were answered"
        came = f"{format_estimate(risk['value'], risk['low'], risk['high'])} of the answers were wrong"
        return f"{asked}{answered}, {came}.{' The risk was exceeded.' if risk['low'] > self.risk else ''}"

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (summarise_figures(self.metrics), f"{self.describe()} {RESEARCH_USE}")


@checked
def abstain_by_fold(
    predictions: str | Path | pd.DataFrame,
    *,
    risk: OpenFraction = 0.05,
    uncertainty: Uncertainty = "probability",
    positive: str | None = None,
    threshold: Probability = 0.5,
    fitted_on: str | Path | pd.DataFrame | None = None,
) -> Abstention:
    """Choose for each fold on the others which answers to leave out, and judge what is left.

    Args:
        predictions: Out-of-fold predictions, whose `fold` says which model made them; or any, with `fitted_on`.
        risk: The share of the given answers that may be wrong, above 0 and below 1.
        uncertainty: As in `risk_coverage`.
        positive: As in `risk_coverage`.
        threshold: As in `risk_coverage`.
        fitted_on: Predictions of other patients by the same model, such as an inner validation set, to choose on.

    Returns:
        The certainties, and coverage and risk over all folds with Wilson's intervals.

    Raises:
        UsageError: There is one fold only and no `fitted_on`, or an option has a value that is not allowed.
        DataError: A table is faulty, or tables share patients.
    """
    table = read_predictions(predictions)
    table = table[has_label_and_prediction(table)]
    other = None if fitted_on is None else read_predictions(fitted_on)
    options = {"uncertainty": uncertainty, "positive": positive, "threshold": threshold}
    certainty = choose_certainty(certain_units(table if other is None else other, **options), risk=risk)
    rows, parts = [], []
    for fold, fit, judged in other_folds(table, other):
        chosen, units = certain_units(fit, **options), certain_units(judged, **options)
        cut = choose_certainty(chosen, risk=risk)
        units["answered"] = False if cut is None else units["certainty"] >= cut
        given = units[units["answered"]]
        row = {"fold": fold, "certainty": math.nan if cut is None else cut, "chosen_on": chosen["patient"].nunique()}
        rows.append({**row, "judged": len(units), "answered": len(given), "errors": int(given["error"].sum())})
        parts.append(units)
    units = pd.concat(parts, ignore_index=True)
    figures = [_figure("coverage", units["answered"]), _figure("risk", units.loc[units["answered"], "error"])]
    metrics = pd.DataFrame(figures, columns=COLUMNS)
    return Abstention(float(risk), certainty, uncertainty, pd.DataFrame(rows), metrics)


@checked
def choose_certainty(units: pd.DataFrame, *, risk: OpenFraction) -> float | None:
    """Choose the certainty that leaves most patients an answer and keeps the share of wrong ones.

    One error more than there was is counted, (errors + 1) / (answered + 1), so that a few patients without an error
    promise nothing: a risk of 0.05 needs 19 answers or more.

    Args:
        units: What `certain_units` returned.
        risk: The share of the given answers that may be wrong, above 0 and below 1.

    Returns:
        The certainty from which an answer is given, halfway to the next lower one; None if no certainty is enough.

    Raises:
        UsageError: The risk is not allowed.
    """
    counts = units.groupby("certainty")["error"].agg(["sum", "size"]).iloc[::-1].cumsum()
    kept = np.flatnonzero((counts["sum"] + 1) / (counts["size"] + 1) <= risk + 1e-12)  # 1 / 20 is no more than 0.05
    if len(kept) == 0:
        return None
    last = kept[-1]
    levels = counts.index.to_numpy(dtype=float)
    return float((levels[last] + levels[min(last + 1, len(levels) - 1)]) / 2)


def _figure(metric: str, hits: pd.Series) -> dict[str, Any]:
    """Return a row of `Abstention.metrics`."""
    n, share = len(hits), float(hits.mean()) if len(hits) else math.nan
    low, high = wilson(share, n) if n else (math.nan, math.nan)
    method = "Wilson" if n else "nobody is answered"
    return dict(zip(COLUMNS, (metric, "", share, low, high, n, "patient", method), strict=True))
