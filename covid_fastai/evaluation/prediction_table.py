"""Read and check predictions tables, of this package or of any other model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from covid_fastai.data.columns import choose_columns
from covid_fastai.errors import DataError, UsageError

__all__ = [
    "PROBABILITY",
    "PredictionStatus",
    "STATUSES",
    "UNKNOWN_PATIENTS",
    "choose_positive",
    "class_columns",
    "has_label_and_prediction",
    "read_predictions",
]

logger = logging.getLogger("covid_fastai")

PREDICTION_ROLES = ("path", "label", "patient", "split", "source", "view")
PROBABILITY = "p_"  # prefix of a class name: the column of its probability
PredictionStatus = Literal["ok", "unreadable", "failed"]
STATUSES: tuple[PredictionStatus, ...] = get_args(PredictionStatus)
UNKNOWN_PATIENTS = "The patient of some images is unknown: each of these images counts as a separate patient."
SUM_TOLERANCE = 1e-3  # for probabilities rounded to three or four digits


def read_predictions(
    source: str | Path | pd.DataFrame, *, split: str | None = None, every_split: bool = False
) -> pd.DataFrame:
    """Read a predictions table and check each of its rows.

    Args:
        source: A CSV file or a table with `label` and a column `p_<class>` for each class (0 to 1, sum 1), the negative
            class first. The columns `path`, `patient`, `patient_known`, `split`, `fold`, `source`, `view` and `status`
            are optional, and may have the other usual names that `read_cohort` knows (`patient_id`, `Patient ID`).
            Without `patient`, each row counts as a separate patient; so does a row with an empty `patient` and a
            `patient_known` of False.
        split: Only the rows of this split; None for a table whose labelled rows are of one split.
        every_split: Whether to return the rows of all splits.

    Returns:
        The table with all columns of `predict` and a RangeIndex.

    Raises:
        DataError: A column is missing, rows are faulty (`details` has one dictionary for each faulty row), or labelled
            rows are of several splits and `split` is None, since training and test patients are not evaluated together.
        UsageError: No row has this split.

    Examples:
        >>> table = read_predictions(predictions)
        >>> table[["patient", "label", "prediction", "status"]].head(2)
          patient     label prediction status
        0      p0  COVID-19   COVID-19     ok
        1      p0  COVID-19   COVID-19     ok
    """
    name = "The table" if isinstance(source, pd.DataFrame) else str(source)
    table = source.copy() if isinstance(source, pd.DataFrame) else _read_csv(Path(source))
    table = _with_usual_names(table, name)
    columns = [str(column) for column in table if str(column).startswith(PROBABILITY)]
    if "label" not in table or len(columns) < 2:
        raise DataError(
            f"{name} has no {'column label' if 'label' not in table else 'two columns p_<class>'}; it has "
            f"{', '.join(map(str, table.columns)) or 'none'}.",
            hint="Give one row per image: label, p_<negative class>, p_<positive class>, and patient if it is known.",
        )
    if table.empty:
        raise DataError(f"{name} has no rows.", hint="Give at least one prediction.")
    table = _complete_columns(table.reset_index(drop=True))
    if not every_split:
        table = _choose_split(table, split, name)
    faults = list(_find_faults(table, columns))
    if faults:
        listed = "; ".join(f"row {fault['row']}: {fault['reason']}" for fault in faults[:3])
        raise DataError(
            f"{name} has {len(faults)} faulty row{'s' if len(faults) > 1 else ''}: {listed}.",
            hint="Correct them; give rows without a prediction the status 'failed' and no probability.",
            details=faults,
        )
    failed = table["status"] != "ok"
    table.loc[failed, columns] = np.nan
    most_probable = table[columns].fillna(-1).to_numpy(dtype=float).argmax(axis=1)
    table["prediction"] = np.where(failed, "", np.array(class_columns(table), dtype=object)[most_probable])
    return table


def _with_usual_names(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the table with added columns for roles that have another usual name."""
    absent = [role for role in PREDICTION_ROLES if role not in table]
    texts = table.astype(object).where(table.notna(), "").astype(str)
    columns = choose_columns(texts, {}, where=name, required=(), roles=absent)
    return table.assign(**{role: table[column] for role, column in columns.items() if column is not None})


def _choose_split(table: pd.DataFrame, split: str | None, name: str) -> pd.DataFrame:
    """Return the rows of one split; raise if labelled rows are of several splits and none is chosen."""
    counts = table.loc[table["label"].ne(""), "split"].value_counts(sort=False)
    listed = ", ".join(f"{value or 'none'} {n}" for value, n in counts.items())
    if split is None and len(counts) > 1:
        raise DataError(
            f"{name} has labelled rows of several splits: {listed}.",
            hint=f"Give the rows of one split, or split={str(counts.index[-1])!r} (--split) to evaluate.",
        )
    if split is None:
        return table
    rows = table[table["split"] == split].reset_index(drop=True)
    if rows.empty:
        raise UsageError(f"{name} has no row of the split {split!r}.", hint=f"Its splits: {listed or 'none'}.")
    return rows


def class_columns(table: pd.DataFrame) -> list[str]:
    """Return the classes of a predictions table, in the order of their columns `p_<class>`."""
    return [str(column).removeprefix(PROBABILITY) for column in table if str(column).startswith(PROBABILITY)]


def has_label_and_prediction(table: pd.DataFrame) -> pd.Series:
    """Return whether each row of a predictions table has a label and a prediction, so that it can be evaluated."""
    return table["status"].eq("ok") & table["label"].ne("")


def choose_positive(classes: Sequence[str], positive: str | None, *, one_vs_rest: bool = False) -> str | None:
    """Return the positive class, to which sensitivity refers.

    Args:
        classes: All classes, the negative one first.
        positive: The positive class; None for the last of two.
        one_vs_rest: Whether to return `positive` with more than two classes too.

    Returns:
        The class. With more than two classes it is None, unless `one_vs_rest` is True and `positive` is given.

    Raises:
        UsageError: `positive` is not one of the classes.
    """
    if positive is not None and positive not in classes:
        raise UsageError(f"positive={positive!r} is not a class.", hint=f"Classes: {', '.join(classes)}.")
    if len(classes) > 2:
        return positive if one_vs_rest else None
    return positive or classes[-1]


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV; columns of text are read as text, so that a patient "007" stays as it is."""
    types = dict.fromkeys(("path", "label", "patient", "split", "source", "view", "prediction", "status"), str)
    try:
        return pd.read_csv(path, dtype=types, keep_default_na=False, na_values={"fold": [""]}, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path} cannot be read as CSV: {error}.", hint="Give a CSV with a header.") from error


def _complete_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with all columns of `predict`, in their order and with their types."""
    numbers = pd.Series(range(1, len(table) + 1), index=table.index).map("row {}".format)
    if "patient" not in table:
        table["patient_known"] = False
    defaults = {"path": numbers, "patient": "", "patient_known": True, "split": "valid", "fold": 0, "source": ""}
    for name, value in {**defaults, "view": "", "status": "ok"}.items():
        if name not in table:
            table[name] = value
    table["patient_known"] = table["patient_known"].map(_as_flag)
    for name in ("path", "label", "patient", "split", "source", "view", "status"):
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    table["status"] = table["status"].replace("", "ok")
    unknown = table["patient"].eq("") & table["patient_known"].eq(False)
    table["patient"] = table["patient"].mask(unknown, table["path"])
    for name in class_columns(table):
        table[PROBABILITY + name] = pd.to_numeric(table[PROBABILITY + name], errors="coerce").astype(float)
    order = ["path", "label", "patient", "patient_known", "split", "source", "view", "fold"]
    order += [PROBABILITY + name for name in class_columns(table)]
    if "prediction" not in table:
        table["prediction"] = ""
    order += ["prediction", "status"]
    return table[[*order, *(name for name in table if name not in order)]]


def _as_flag(value: Any) -> Any:
    """Return a value of `patient_known` as bool if it is True or False, also as text; else return it unchanged."""
    return {"true": True, "false": False}.get(str(value).strip().casefold(), value)


def _find_faults(table: pd.DataFrame, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the first fault of each faulty row; rows are numbered from 1."""
    classes = class_columns(table)
    values = table[columns].to_numpy(dtype=float)
    for number, (row, p) in enumerate(zip(table.to_dict("records"), values, strict=True), start=1):
        reason = remedy = ""
        if row["status"] not in STATUSES:
            reason, remedy = f"status {row['status']!r} is unknown", f"Choose one of {', '.join(STATUSES)}."
        elif row["label"] not in ("", *classes):
            reason, remedy = f"label {row['label']!r} has no column p_<class>", f"Classes: {', '.join(classes)}."
        elif not isinstance(row["patient_known"], bool):
            reason, remedy = f"patient_known is {row['patient_known']!r}", "Give True or False."
        elif row["patient"] == "":
            reason, remedy = "patient is empty", "Give one, or set patient_known to False."
        elif row["status"] == "ok" and not np.isfinite(p).all():
            reason, remedy = "a probability is missing or not a number", "Give it, or the status 'failed'."
        elif row["status"] == "ok" and ((p < 0).any() or (p > 1).any()):
            reason, remedy = "a probability is not between 0 and 1", "Give probabilities, not logits or percent."
        elif row["status"] == "ok" and abs(p.sum() - 1) > SUM_TOLERANCE:
            reason, remedy = f"the probabilities sum to {p.sum():.4g}", "Give probabilities that sum to 1."
        if reason:
            yield {
                "row": number,
                "path": row["path"],
                "kind": "prediction",
                "severity": "error",
                "reason": reason,
                "remedy": remedy,
            }
