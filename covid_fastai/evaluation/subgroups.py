"""Evaluate predictions by subgroup: projection, sex, age, hospital, or any other column of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.data.cohort import Cohort
from covid_fastai.data.left_out_columns import explain_left_out
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
from covid_fastai.figures import Figure
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Probability, checked
from covid_fastai.plotting import class_colours

__all__ = ["AGE_BANDS", "FEWEST", "Subgroups", "evaluate_subgroups", "plot_subgroups"]

DEFAULT_COLUMNS = ("view", "sex", "age_band", "source")
FEWEST = 10  # patients of a group; with fewer, a metric would be mostly chance
AGE_BANDS = {
    "0-17": 18,
    "18-39": 40,
    "40-59": 60,
    "60-79": 80,
    "80 and older": math.inf,
}  # upper limit in years, exclusive
METRICS = ("auc", "sensitivity", "specificity")
COLUMNS = ["by", "group", "class", "images", "patients", "positives", "negatives"]
COLUMNS += [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")] + ["note"]
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False, repr=False)
class Subgroups(ResultDisplay):
    """How well predictions agree with the labels in each subgroup of patients.

    Attributes:
        table: One row per group and class, the row of all patients first: `by` (the column; "" for all), `group`,
            `class`, `images`, `patients`, `positives` and `negatives` (patients), `auc`, `sensitivity`, `specificity`,
            each with `_low` and `_high` (95%), and `note`, the reason if a metric is NaN.
        notes: Sentences on columns and images that could not be evaluated.
    """

    table: pd.DataFrame
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows as plain values."""
        return {"table": self.table.to_dict("records"), "notes": self.notes}

    def summary(self) -> pd.DataFrame:
        """Return the rows as formatted text."""
        rows = self.table.to_dict("records")
        summary = self.table[["by", "group", "class", "patients", "positives"]].copy()
        summary["by"] = summary["by"].replace("", "all")
        for name in METRICS:
            summary[name] = [format_estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
        return summary.assign(note=self.table["note"])

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
    """Evaluate predictions in each subgroup of patients, with its number of patients.

    A model may perform well on all patients and fail in a subgroup (Oakden-Rayner et al., CHIL 2020). It may also
    perform well on all patients because it recognises the subgroup rather than the disease. Groups of fewer than ten
    patients are counted and not evaluated. Intervals are not corrected for the number of groups: one in twenty misses
    the truth by chance.

    Args:
        predictions: What `predict` returned, or any table or CSV that `read_predictions` accepts.
        cohort: Further columns of the same images, one row per image, matched by `path`, by its file name, or by
            `patient`. Its values replace those of the predictions unless they are empty.
        by: Columns of either table to group by. `age_band` is derived from the column `age` (years). None for those of
            view, sex, age_band and source that have values.
        positive: The positive class, to which sensitivity refers; None for the last of two. With more than two classes
            each class has a row and is evaluated against the rest.
        threshold: The positive class is predicted if its probability is at least this. With more than two classes the
            most probable class is predicted.

    Returns:
        The subgroups. A patient with images in two groups, such as two projections, counts in both, with the images of
        each.

    Raises:
        UsageError: A column is missing, or an option has a value that is not allowed.
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
    joined, notes = _join_cohort(table, cohort)
    if "age" in joined and "age_band" not in joined:
        joined["age_band"] = _age_bands(joined["age"], notes)
    evaluated = has_label_and_prediction(table)
    options = {"classes": classes, "positive": positive, "threshold": threshold}
    rows = _evaluate_group("", "all", table[evaluated], **options)
    left_out = cohort.left_out if isinstance(cohort, Cohort) else ()
    for column in _group_columns(joined, by, notes, left_out):
        values = _as_group_names(joined[column])
        order = list(AGE_BANDS) if column == "age_band" else []
        for group in sorted(values[evaluated].unique(), key=lambda name: (name == UNKNOWN, _sort_key(name, order))):
            rows += _evaluate_group(column, group, table[evaluated & (values == group)], **options)
    return Subgroups(pd.DataFrame(rows, columns=COLUMNS), notes)


def plot_subgroups(subgroups: Subgroups, *, metric: str = "auc") -> Figure:
    """Plot a metric by subgroup with its interval and number of patients; the interval of all patients is shaded.

    Args:
        subgroups: What `evaluate_subgroups` returned.
        metric: `"auc"`, `"sensitivity"` or `"specificity"`.

    Returns:
        The figure, with one row per group; groups that are too small have no point.

    Raises:
        UsageError: There is no such metric.
    """
    if metric not in METRICS:
        raise UsageError(f"There is no metric {metric!r}.", hint=f"Metrics: {', '.join(METRICS)}.")
    table = subgroups.table
    classes = list(dict.fromkeys(table["class"]))
    colours = class_colours(classes)
    groups = list(dict.fromkeys(zip(table["by"], table["group"], strict=True)))
    figure = Figure(figsize=(6.4, 1.1 + 0.3 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(classes):
        rows = table[table["class"] == name].reset_index(drop=True)
        y = np.array([groups.index(key) for key in zip(rows["by"], rows["group"], strict=True)], dtype=float)
        y += 0.2 * (number - (len(classes) - 1) / 2)
        low, high = rows[f"{metric}_low"], rows[f"{metric}_high"]
        if math.isfinite(low[0]):
            axes.axvspan(low[0], high[0], color=colours[name], alpha=0.1, lw=0)
        axes.hlines(y, low, high, color=colours[name], lw=1.4)
        axes.plot(rows[metric], y, "o", color=colours[name], markersize=4.5, label=name)
    group_rows = table.drop_duplicates(["by", "group"]).to_dict("records")
    labels = [f"{_group_label(row['by'], row['group'])}  ({row['patients']})" for row in group_rows]
    if len(classes) == 1:
        labels = [
            f"{label[:-1]}, {row['positives']} {row['class']})" for label, row in zip(labels, group_rows, strict=True)
        ]
    axes.set(yticks=range(len(groups)), yticklabels=labels, ylim=(len(groups) - 0.4, -0.6), xlim=(-0.02, 1.02))
    axes.set_xlabel("AUC" if metric == "auc" else metric)
    axes.set_title("By subgroup (patients)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if len(classes) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _join_cohort(table: pd.DataFrame, cohort: pd.DataFrame | None) -> tuple[pd.DataFrame, list[str]]:
    """Return the predictions with the columns of the cohort, and notes on what is missing."""
    if cohort is None:
        return table.copy(), []
    keys = []
    if "path" in cohort:
        paths = cohort["path"].astype(str)
        keys += [("path", table["path"], paths), ("path", table["path"].map(_file_name), paths.map(_file_name))]
    if "patient" in cohort:
        keys.append(("patient", table["patient"], cohort["patient"].astype(str)))
    for kind, table_key, cohort_key in keys:
        matched = table_key.isin(set(cohort_key))
        is_repeated = cohort_key[cohort_key.isin(set(table_key))].duplicated().any()
        if not matched.any() or (kind == "path" and is_repeated):
            continue  # a file name in several folders does not identify an image
        joined, notes = table.copy(), []
        keyed = cohort.set_index(pd.Index(cohort_key.to_numpy(), name="key"))
        keyed = keyed[keyed.index.isin(set(table_key))]
        for column in keyed.columns.difference(["path", "label", "patient", "patient_known", "split", "fold"]):
            if kind == "patient" and keyed.groupby(level=0)[column].nunique().max() > 1:
                notes.append(f"{column} differs between images of a patient, and the cohort has no paths to match.")
                continue
            values = table_key.map(keyed[column].groupby(level=0).first())
            empty = values.isna() | values.astype(str).str.strip().eq("")
            joined[column] = values.where(~empty, table[column]) if column in table else values
        if n_unmatched := int((~matched).sum()):
            notes.append(f"{n_unmatched} of {len(table_key)} predictions have no row in the cohort.")
        return joined, notes
    raise DataError(
        "The cohort has no row for any prediction, or several rows for one.",
        hint="Give the table of the same images, with path or patient as in the predictions.",
    )


def _group_columns(
    joined: pd.DataFrame, by: Sequence[str] | None, notes: list[str], left_out: Sequence[str]
) -> list[str]:
    """Return the columns to group by; default columns may be missing, which is noted."""
    if by is not None:
        missing = [name for name in by if name not in joined]
        if missing:
            known = ", ".join(str(name) for name in joined if name not in ("path", "label", "prediction", "status"))
            reason = explain_left_out(missing[0], left_out)
            raise UsageError(f"There is no column {missing[0]!r}.", hint=f"{reason} Columns: {known}.".strip())
        return list(by)
    columns = [name for name in DEFAULT_COLUMNS if name in joined and _as_group_names(joined[name]).ne(UNKNOWN).any()]
    if len(columns) < len(DEFAULT_COLUMNS):
        unknown = ", ".join(name for name in DEFAULT_COLUMNS if name not in columns)
        notes.append(f"Unknown for these images: {unknown}.")
    return columns


def _evaluate_group(
    by: str, group: str, images: pd.DataFrame, *, classes: list[str], positive: str | None, threshold: float
) -> list[dict[str, Any]]:
    """Return the rows of `Subgroups.table` for a group, one per evaluated class."""
    units = score_units(images, positive=positive, threshold=threshold).table
    n_patients = units["patient"].nunique()
    is_small = n_patients < FEWEST
    rows = []
    for name in [positive] if positive else classes:
        of_class = (units["label"] == name).to_numpy()
        row = dict.fromkeys(COLUMNS, math.nan)
        row |= {"by": by, "group": group, "class": name, "images": len(images), "patients": n_patients}
        row |= {"positives": int(of_class.sum()), "negatives": int((~of_class).sum()), "note": ""}
        if is_small:
            row["note"] = f"fewer than {FEWEST} patients: counted, not evaluated"
        elif of_class.all() or not of_class.any():
            row["note"] = f"no patient {'but' if of_class.all() else 'of'} {name}"
        metrics = [] if is_small else list_weighted_metrics(units, classes, positive)
        for metric in metrics:
            if metric.of != name or metric.metric not in METRICS or not metric.included.any():
                continue
            value = float(metric.compute(np.ones((1, len(units))))[0])
            if not math.isfinite(value):
                continue
            if metric.hit is not None:
                bounds = wilson(value, int(metric.included.sum()))
            else:
                assert metric.scores is not None and metric.of_class is not None  # METRICS has no other but the AUC
                bounds = auc_interval(metric.scores, metric.of_class, strata=metric.strata)[:2]
            columns = (metric.metric, f"{metric.metric}_low", f"{metric.metric}_high")
            row |= dict(zip(columns, (value, *bounds), strict=True))
        rows.append(row)
    return rows


def _age_bands(ages: pd.Series, notes: list[str]) -> pd.Series:
    """Return the band of each age; "" if the age is unknown or not a number of years from 0 to 130."""
    years = pd.to_numeric(ages, errors="coerce")
    years = years.where(years.between(0, 130))
    invalid = years.isna() & ages.notna() & ages.astype(str).str.strip().ne("")
    if invalid.any():
        example = ages[invalid].iloc[0]
        notes.append(f"{int(invalid.sum())} ages are not a number of years, such as {example!r}, and count as unknown.")
    bands = pd.cut(years, [0, *AGE_BANDS.values()], right=False, labels=list(AGE_BANDS))
    return bands.astype(object).where(bands.notna(), "")


def _as_group_names(values: pd.Series) -> pd.Series:
    """Return values as text; `unknown` if they are missing or empty."""
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    return text.where(text != "", UNKNOWN)


def _sort_key(name: str, order: list[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _file_name(path: str) -> str:
    return PurePosixPath(path).name


def _group_label(by: str, group: str) -> str:
    return "all" if by == "" else f"{by.replace('_', ' ')}: {group}"
