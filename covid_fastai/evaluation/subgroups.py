"""Figures by subgroup: projection, sex, age, hospital, or any other column that the data came with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import ResultDisplay, format_estimate
from covid_fastai.evaluation.intervals import auc_interval, wilson
from covid_fastai.evaluation.metrics import score_units
from covid_fastai.evaluation.prediction_table import (
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.weighted_metrics import list_weighted_metrics
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Probability, checked
from covid_fastai.plotting import class_colours

__all__ = ["AGE_BANDS", "FEWEST", "Subgroups", "evaluate_subgroups", "plot_subgroups"]

USUAL = ("view", "sex", "age_band", "source")
FEWEST = 10  # patients of a group; below it a figure would be read as more than chance
AGE_BANDS = {"0-17": 18, "18-39": 40, "40-59": 60, "60-79": 80, "80 and older": math.inf}  # years, up to but not with
FIGURES = ("auc", "sensitivity", "specificity")
COLUMNS = ["by", "group", "class", "images", "patients", "positives", "negatives"]
COLUMNS += [f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")] + ["note"]
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False, repr=False)
class Subgroups(ResultDisplay):
    """How well predictions agree with the labels in each part of the patients.

    Attributes:
        table: A row a group and class, that of all patients first: `by` (the column; "" for all), `group`, `class`,
            `images`, `patients`, `positives` and `negatives` (patients), `auc`, `sensitivity`, `specificity`, each with
            `_low` and `_high` (95%), and `note`, which says why a figure is NaN.
        notes: What could not be looked at.
    """

    table: pd.DataFrame
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows as plain values."""
        return {"table": self.table.to_dict("records"), "notes": self.notes}

    def summary(self) -> pd.DataFrame:
        """Return the rows as text, for tables."""
        rows = self.table.to_dict("records")
        shown = self.table[["by", "group", "class", "patients", "positives"]].copy()
        shown["by"] = shown["by"].replace("", "all")
        for name in FIGURES:
            shown[name] = [format_estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
        return shown.assign(note=self.table["note"])

    def _display_parts(self) -> Iterator[pd.DataFrame | str]:
        yield from (self.summary(), *self.notes, RESEARCH_USE)


@checked
def evaluate_subgroups(
    predictions: str | Path | pd.DataFrame,
    cohort: pd.DataFrame | None = None,
    *,
    by: Sequence[str] | None = None,
    positive: str | None = None,
    threshold: Probability = 0.5,
) -> Subgroups:
    """Judge predictions in each part of the patients, with the number of patients beside every figure.

    A model may do well on all patients and fail on a part of them (Oakden-Rayner et al., CHIL 2020), or do well on all
    because it tells the parts from each other. Groups of fewer than ten patients are counted and not judged. Many
    groups are many looks: one interval in twenty misses the truth by chance alone.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        cohort: More about the same images: a row an image, with `path` (else its file name) or `patient`. Its columns
            go before those of the predictions, except where they are empty.
        by: Columns of either table. `age_band` is made of the column `age` (years). None for those of view, sex,
            age_band and source that are there.
        positive: The class that sensitivity is about; None for the last of two. With more than two classes each has a
            row, against the rest.
        threshold: The positive class is predicted from this probability on; with more than two classes the most
            probable one is.

    Returns:
        The subgroups. A patient whose images belong to two groups, such as two projections, counts in both, with the
        images of each.

    Raises:
        UsageError: A column is not there, or an option has a value that is not allowed.
        DataError: The predictions are faulty, or the cohort has no row for them.

    Examples:
        >>> rows = predictions.assign(sex=["F" if patient < "p3" else "M" for patient in predictions["patient"]])
        >>> groups = evaluate_subgroups(rows, by=["sex"])
        >>> sorted(groups.table["group"].unique().tolist())
        ['F', 'M', 'all']
    """
    table = read_predictions(predictions)
    classes = class_columns(table)
    positive = choose_positive(classes, positive)
    facts, notes = _join(table, cohort)
    if "age" in facts and "age_band" not in facts:
        facts["age_band"] = _age_bands(facts["age"], notes)
    judged = has_label_and_prediction(table)
    options = {"classes": classes, "positive": positive, "threshold": threshold}
    rows = _rows("", "all", table[judged], **options)
    for column in _columns(facts, by, notes):
        values = _as_text(facts[column])
        order = list(AGE_BANDS) if column == "age_band" else []
        for group in sorted(values[judged].unique(), key=lambda name: (name == UNKNOWN, _place(name, order))):
            rows += _rows(column, group, table[judged & (values == group)], **options)
    return Subgroups(pd.DataFrame(rows, columns=COLUMNS), notes)


def plot_subgroups(subgroups: Subgroups, *, metric: str = "auc") -> Figure:
    """Plot one figure by subgroup with its interval and its patients; the shade is the interval of all.

    Args:
        subgroups: What `evaluate_subgroups` returned.
        metric: `"auc"`, `"sensitivity"` or `"specificity"`.

    Returns:
        The figure, a row a group; groups that are too small are named without a point.

    Raises:
        UsageError: There is no such figure.
    """
    if metric not in FIGURES:
        raise UsageError(f"There is no figure {metric!r}.", hint=f"Figures: {', '.join(FIGURES)}.")
    table = subgroups.table
    classes = list(dict.fromkeys(table["class"]))
    colours = class_colours(classes)
    groups = list(dict.fromkeys(zip(table["by"], table["group"], strict=True)))
    figure = Figure(figsize=(6.4, 1.1 + 0.3 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(classes):
        own = table[table["class"] == name].reset_index(drop=True)
        y = np.array([groups.index(key) for key in zip(own["by"], own["group"], strict=True)], dtype=float)
        y += 0.2 * (number - (len(classes) - 1) / 2)
        low, high = own[f"{metric}_low"], own[f"{metric}_high"]
        if math.isfinite(low[0]):
            axes.axvspan(low[0], high[0], color=colours[name], alpha=0.1, lw=0)
        axes.hlines(y, low, high, color=colours[name], lw=1.4)
        axes.plot(own[metric], y, "o", color=colours[name], markersize=4.5, label=name)
    first = table.drop_duplicates(["by", "group"]).to_dict("records")
    texts = [f"{_heading(row['by'], row['group'])}  ({row['patients']})" for row in first]
    if len(classes) == 1:
        texts = [f"{text[:-1]}, {row['positives']} {row['class']})" for text, row in zip(texts, first, strict=True)]
    axes.set(yticks=range(len(groups)), yticklabels=texts, ylim=(len(groups) - 0.4, -0.6), xlim=(-0.02, 1.02))
    axes.set_xlabel("AUC" if metric == "auc" else metric)
    axes.set_title("By subgroup (patients)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if len(classes) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _join(table: pd.DataFrame, cohort: pd.DataFrame | None) -> tuple[pd.DataFrame, list[str]]:
    """Return what is known about each prediction, by its row, and what is not."""
    if cohort is None:
        return table.copy(), []
    ways = []
    if "path" in cohort:
        names = cohort["path"].astype(str)
        ways += [("path", table["path"], names), ("path", table["path"].map(_name), names.map(_name))]
    if "patient" in cohort:
        ways.append(("patient", table["patient"], cohort["patient"].astype(str)))
    for kind, own, theirs in ways:
        found = own.isin(set(theirs))
        if not found.any() or (kind == "path" and theirs[theirs.isin(set(own))].duplicated().any()):
            continue  # file names that are in several folders say nothing
        facts, notes = table.copy(), []
        keyed = cohort.set_index(pd.Index(theirs.to_numpy(), name="key"))
        keyed = keyed[keyed.index.isin(set(own))]
        for column in keyed.columns.difference(["path", "label", "patient", "patient_known", "split", "fold"]):
            if kind == "patient" and keyed.groupby(level=0)[column].nunique().max() > 1:
                notes.append(f"{column} differs between images of a patient; the cohort names no image.")
                continue
            new = own.map(keyed[column].groupby(level=0).first())
            blank = new.isna() | new.astype(str).str.strip().eq("")
            facts[column] = new.where(~blank, table[column]) if column in table else new
        lost = int((~found).sum())
        return facts, [*notes, *([f"{lost} of {len(own)} predictions have no row in the cohort."] if lost else [])]
    raise DataError(
        "The cohort has no row for any prediction, or several for one.",
        hint="Give the table of the same images, with path or patient as in the predictions.",
    )


def _columns(facts: pd.DataFrame, by: Sequence[str] | None, notes: list[str]) -> list[str]:
    """Return the columns to group by; those that were not asked for by name may be missing."""
    if by is not None:
        missing = [name for name in by if name not in facts]
        if missing:
            known = ", ".join(str(name) for name in facts if name not in ("path", "label", "prediction", "status"))
            raise UsageError(f"There is no column {missing[0]!r}.", hint=f"Columns: {known}.")
        return list(by)
    there = [name for name in USUAL if name in facts and _as_text(facts[name]).ne(UNKNOWN).any()]
    if len(there) < len(USUAL):
        notes.append(f"Not known of these images: {', '.join(name for name in USUAL if name not in there)}.")
    return there


def _rows(
    by: str, group: str, rows: pd.DataFrame, *, classes: list[str], positive: str | None, threshold: float
) -> list[dict[str, Any]]:
    """Return the group's rows of `Subgroups.table`, one a class that is judged."""
    units = score_units(rows, positive=positive, threshold=threshold).table
    patients, few = units["patient"].nunique(), units["patient"].nunique() < FEWEST
    found = []
    for name in [positive] if positive else classes:
        of_class = (units["label"] == name).to_numpy()
        row = dict.fromkeys(COLUMNS, math.nan)
        row |= {"by": by, "group": group, "class": name, "images": len(rows), "patients": patients}
        row |= {"positives": int(of_class.sum()), "negatives": int((~of_class).sum()), "note": ""}
        if few:
            row["note"] = f"fewer than {FEWEST} patients: counted, not judged"
        elif of_class.all() or not of_class.any():
            row["note"] = f"no patient {'but' if of_class.all() else 'of'} {name}"
        measures = [] if few else list_weighted_metrics(units, classes, positive)
        for measure in measures:
            if measure.of != name or measure.metric not in FIGURES or not measure.included.any():
                continue
            value = float(measure.compute(np.ones((1, len(units))))[0])
            if not math.isfinite(value):
                continue
            if measure.hit is not None:
                bounds = wilson(value, int(measure.included.sum()))
            else:
                assert measure.scores is not None and measure.of_class is not None  # the AUC: no other is in FIGURES
                bounds = auc_interval(measure.scores, measure.of_class, units["patient"].to_numpy())[:2]
            names = (measure.metric, f"{measure.metric}_low", f"{measure.metric}_high")
            row |= dict(zip(names, (value, *bounds), strict=True))
        found.append(row)
    return found


def _age_bands(ages: pd.Series, notes: list[str]) -> pd.Series:
    """Return each age's band, "" where no age is given."""
    years = pd.to_numeric(ages, errors="coerce")
    years = years.where(years.between(0, 130))
    unread = years.isna() & ages.notna() & ages.astype(str).str.strip().ne("")
    if unread.any():
        notes.append(f"{int(unread.sum())} ages are no years, such as {ages[unread].iloc[0]!r}; they count as unknown.")
    bands = pd.cut(years, [0, *AGE_BANDS.values()], right=False, labels=list(AGE_BANDS))
    return bands.astype(object).where(bands.notna(), "")


def _as_text(values: pd.Series) -> pd.Series:
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    return text.where(text != "", UNKNOWN)


def _place(name: str, order: list[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _heading(by: str, group: str) -> str:
    return "all" if by == "" else f"{by.replace('_', ' ')}: {group}"
