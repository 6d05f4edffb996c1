"""A certainty below which a model gives no answer, chosen inside the folds for a stated share of errors."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.errors import UsageError
from covid_fastai.evidence.intervals import wilson
from covid_fastai.evidence.metrics import COLUMNS, RESEARCH_USE, summarise_figures
from covid_fastai.evidence.prediction_table import read_predictions
from covid_fastai.evidence.resampling import other_folds
from covid_fastai.evidence.selection import certain_units

__all__ = ["Abstention", "abstain_by_fold", "choose_certainty"]


@dataclass(frozen=True, eq=False)
class Abstention:
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
        rows = self.metrics[self.metrics["metric"] == metric]
        if rows.empty:
            raise UsageError(f"There is no figure {metric!r}.", hint="Figures: coverage, risk.")
        return float(rows["value"].iloc[0])

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
        answered = f"{coverage['value']:.3f} of {coverage['n']} patients were answered"
        came = f"{risk['value']:.3f} ({risk['low']:.3f} to {risk['high']:.3f}) of the answers were wrong"
        return f"{asked}{answered}, {came}.{' The risk was exceeded.' if risk['low'] > self.risk else ''}"

    def __repr__(self) -> str:
        return f"{summarise_figures(self.metrics).to_string(index=False)}\n{self.describe()} {RESEARCH_USE}"

    def _repr_html_(self) -> str:
        said = html.escape(f"{self.describe()} {RESEARCH_USE}")
        return f"{summarise_figures(self.metrics).to_html(index=False)}<p>{said}</p>"


def abstain_by_fold(
    predictions: str | Path | pd.DataFrame,
    *,
    risk: float = 0.05,
    uncertainty: str = "probability",
    positive: str | None = None,
    threshold: float = 0.5,
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
    table = table[table["status"].eq("ok") & table["label"].ne("")]
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


def choose_certainty(units: pd.DataFrame, *, risk: float) -> float | None:
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
    if not 0 < risk < 1:
        raise UsageError(f"risk={risk!r}.", hint="Give a share between 0 and 1, such as 0.05.")
    counts = units.groupby("certainty")["error"].agg(["sum", "size"]).iloc[::-1].cumsum()
    kept = np.flatnonzero((counts["sum"] + 1) / (counts["size"] + 1) <= risk + 1e-12)  # 1 / 20 is no more than 0.05
    if len(kept) == 0:
        return None
    last = kept[-1]
    lower = counts.index[min(last + 1, len(counts) - 1)]
    return float((counts.index[last] + lower) / 2)


def _figure(metric: str, hits: pd.Series) -> dict[str, Any]:
    """Return a row of `Abstention.metrics`."""
    n, share = len(hits), float(hits.mean()) if len(hits) else math.nan
    low, high = wilson(share, n) if n else (math.nan, math.nan)
    method = "Wilson" if n else "nobody is answered"
    return dict(zip(COLUMNS, (metric, "", share, low, high, n, "patient", method), strict=True))
