"""Read and check predictions tables, of this package or of any other model."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import pandas as pd

from covid_fastai.data.columns import choose_columns, usual_columns
from covid_fastai.data.derived_columns import DerivedColumns
from covid_fastai.data.problems import ProblemLog, count_kinds, no_row_left
from covid_fastai.data.projections import is_unstated
from covid_fastai.data.reach import Reach, is_url
from covid_fastai.data.tables import read_table
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.score_columns import PROBABILITY, add_class_columns
from covid_fastai.options import OnProblem, checked
from covid_fastai.pseudonyms import restore_paths
from covid_fastai.run_folder import RunFolder

__all__ = [
    "PROBABILITY",
    "PredictionOptions",
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
PredictionStatus = Literal["ok", "unreadable", "failed"]
STATUSES: tuple[PredictionStatus, ...] = get_args(PredictionStatus)
UNKNOWN_PATIENTS = "The patient of some images is unknown: each of these images counts as a separate patient."
ROW = "__row"  # the line in the file, until the rows are checked
SUM_TOLERANCE = 1e-3  # for probabilities rounded to three or four digits


class PredictionOptions(TypedDict, total=False):
    """How a predictions table is read: options of `read_predictions` that `evaluate` and `compare` pass on."""

    score_column: str | None
    path_column: str | None
    label_column: str | None
    patient_column: str | None
    split_column: str | None
    source_column: str | None
    view_column: str | None
    image_root: str | Path | None
    path_template: str | None
    join: str | Path | None
    on: str | None
    encoding: str | None
    on_problem: OnProblem


@checked
def read_predictions(
    source: str | Path | pd.DataFrame,
    *,
    split: str | None = None,
    every_split: bool = False,
    positive: str | None = None,
    score_column: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    source_column: str | None = None,
    view_column: str | None = None,
    image_root: str | Path | None = None,
    path_template: str | None = None,
    join: str | Path | None = None,
    on: str | None = None,
    encoding: str | None = None,
    on_problem: OnProblem = "error",
) -> pd.DataFrame:
    """Read a predictions table and check each of its rows.

    Args:
        source: A table with `label` and a column `p_<class>` for each class (0 to 1, sum 1), the negative class first;
            or a file of any format that `read_table` reads, or the folder of a run. Other systems' tables may have
            `prob_<class>`, `score_<class>` and the like, or one column with the probability of the positive class. The
            columns `path`, `patient`, `patient_known`, `split`, `fold`, `source`, `view` and `status` are optional, and
            may have the other usual names that `read_cohort` knows (`patient_id`, `Patient ID`). Without `patient`,
            each row counts as a separate patient; so does a row with an empty `patient` and a `patient_known` of False,
            or with a patient such as `unknown`.
        split: Only the rows of this split; None for a table whose labelled rows are of one split.
        every_split: Whether to return the rows of all splits.
        positive: The class that one score is the probability of, and that comes last of two in a table of
            `prob_<class>`; None to derive it from labels such as 0 and 1, or Normal.
        score_column: The column with the probability of the positive class; None to find it by its name.
        path_column: The column with the path; None, as for all columns, to find it by its usual names.
        label_column: The column with the label.
        patient_column: The column with the patient.
        split_column: The column with the split.
        source_column: The column with the hospital or collection.
        view_column: The column with the projection.
        image_root: The folder that paths are relative to, and must lie below; None to leave them as they are.
        path_template: The path made from columns of the row, as in `read_cohort`.
        join: Another table with further columns, such as labels, as in `read_cohort`.
        on: The key of `join`.
        encoding: The encoding of the file, where it is neither UTF-8 nor marked as UTF-16.
        on_problem: `"error"` raises for faulty rows, `"skip"` leaves them out and logs their number.

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
    if not isinstance(source, pd.DataFrame) and RunFolder(source).predictions.is_file():
        source = RunFolder(source).predictions
    name = "The table" if isinstance(source, pd.DataFrame) else str(source)
    given = {"path": path_column, "label": label_column, "patient": patient_column, "split": split_column}
    given |= {"source": source_column, "view": view_column}
    derived = DerivedColumns(path_column=path_column, path_template=path_template, join=join, on=on, encoding=encoding)
    given["path"] = derived.path_column
    known = [column for column in given.values() if column is not None]
    is_file = not isinstance(source, pd.DataFrame)
    table = (
        _read_file(Path(source), encoding=encoding, texts=known, score=score_column, on_problem=on_problem)
        if not isinstance(source, pd.DataFrame)
        else _number_rows(source)
    )
    if derived.given:
        problems = ProblemLog()
        table = _restore_numbers(derived.add(_as_texts(table), where=name), table)
        derived.finish(problems, where=name)
    table = _with_usual_names(table, given, name)
    if image_root is not None and "path" in table:
        table = _place_below(table, image_root, name, on_problem)
    if "label" in table:
        table = add_class_columns(table, score_column=score_column, positive=positive, where=name)
    columns = [str(column) for column in table if str(column).startswith(PROBABILITY)]
    if "label" not in table or len(columns) < 2:
        raise DataError(
            f"{name} has no {'column label' if 'label' not in table else 'two columns p_<class>'}; it has "
            f"{', '.join(str(column) for column in table if column != ROW) or 'none'}.",
            hint="Give one row per image: label, p_<negative class>, p_<positive class>, and patient if it is known; "
            "or name the columns with `label_column` and `score_column`.",
        )
    if table.empty:
        raise DataError(f"{name} has no rows.", hint="Give at least one prediction.")
    table = _complete_columns(table.reset_index(drop=True))
    if not every_split:
        table = _choose_split(table, split, name)
    numbers, table = table[ROW].tolist(), table.drop(columns=ROW)
    faults = list(_find_faults(table, columns, numbers))
    if faults and on_problem == "skip":
        logger.warning("%s: %d faulty rows are left out, such as row %d: %s.", name, len(faults), *_first(faults))
        faulty = {fault["row"] for fault in faults}
        table = table[[number not in faulty for number in numbers]].reset_index(drop=True)
        if table.empty:
            raise no_row_left(name, faults)
    elif faults:
        word = "line" if is_file else "row"
        listed = "; ".join(f"{word} {fault['row']}: {fault['reason']}" for fault in faults[:3])
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


def _with_usual_names(table: pd.DataFrame, given: Mapping[str, str | None], name: str) -> pd.DataFrame:
    """Return the table with added columns for roles that have a given or another usual name.

    A column of a role's own name gives way to a given one, and gets the suffix `_given`.
    """
    roles = [role for role in PREDICTION_ROLES if role not in table or given.get(role) not in (None, role)]
    # only columns that may be chosen are compared as text
    texts = {column for role in roles for column in (given.get(role), *usual_columns(table.columns, role))}
    compared = table.assign(**{str(column): _as_texts(table[[column]])[column] for column in table if column in texts})
    chosen = choose_columns(compared, given, where=name, required=(), roles=roles)
    columns = {role: table[column] for role, column in chosen.items() if column is not None}
    table = table.rename(columns={role: f"{role}_given" for role in columns if role in table})
    return table.assign(**columns)


def _place_below(table: pd.DataFrame, root: str | Path, name: str, on_problem: OnProblem) -> pd.DataFrame:
    """Return the rows with the paths of their files below a folder; addresses stay as they are, and none is opened."""
    names = table["path"].astype(str).tolist()
    paths = [os.path.join(root, path) if path and not is_url(path) else path for path in names]
    reach, problems, outside = Reach(root, paths), ProblemLog(), []
    for row, path in zip(table[ROW].tolist(), paths, strict=True):
        fault = None if not path or is_url(path) else reach.path_fault(path)
        outside.append(fault is not None)
        if fault is not None:  # guard: predictions_outside
            kind, reason, remedy = fault
            problems.add(kind, row=row, path=path, reason=reason, remedy=remedy)
    if on_problem == "error":
        problems.raise_errors(name)
    elif errors := problems.errors():
        logger.warning("%s: %d rows are left out: %s.", name, len(errors), count_kinds(errors))
    return table.assign(path=paths)[[not fault for fault in outside]]


def _as_texts(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(object).where(table.notna(), "").astype(str)


def _number_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of a table in memory with the numbers of its rows, from 1."""
    return table.assign(**{ROW: range(1, len(table) + 1)})


def _restore_numbers(texts: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return rows of text with columns of numbers as they were in the table that the rows come from."""
    return texts.assign(**{str(name): table[name] for name in table if name in texts})


def _first(faults: list[dict[str, Any]]) -> tuple[int, str]:
    return faults[0]["row"], faults[0]["reason"]


def _choose_split(table: pd.DataFrame, split: str | None, name: str) -> pd.DataFrame:
    """Return the rows of one split; raise if labelled rows are of several splits and none is chosen."""
    counts = table.loc[table["label"].ne(""), "split"].value_counts(sort=False)
    listed = ", ".join(f"{value or 'none'} {n}" for value, n in counts.items())
    if split is None and len(counts) > 1:
        raise DataError(
            f"{name} has labelled rows of several splits: {listed}.",
            hint=f"Give the rows of one split, or split={str(counts.index[-1])!r} to evaluate.",
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


def _read_file(
    path: Path, *, encoding: str | None, texts: Collection[str], score: str | None, on_problem: OnProblem
) -> pd.DataFrame:
    """Read a table; columns of which every value is a number, and no text such as 007, hold numbers."""
    problems = ProblemLog()
    known = {*texts, *([] if score is None else [score])}
    table = read_table(path, encoding=encoding, known=known, problems=problems)
    if on_problem == "error":
        problems.raise_errors(path)
    elif errors := problems.errors():
        logger.warning("%s: %d rows are left out: %s.", path, len(errors), count_kinds(errors))
    stay = {*PREDICTION_ROLES, "prediction", "status", "patient_known", *texts}
    values = {
        str(name): column if name in stay and not str(name).startswith(PROBABILITY) else _typed(column, name == "fold")
        for name, column in table.items()
    }
    return restore_paths(pd.DataFrame(values, index=table.index), path).assign(**{ROW: table.index})


def _typed(column: pd.Series, blank: bool) -> pd.Series:
    """Return a column of text as numbers or booleans, if all of its values are such; with `blank`, "" is missing."""
    texts = column.str.strip()
    stated = texts[texts != ""] if blank else texts
    if stated.empty or stated.str.fullmatch(r"[+-]?0\d.*").any():
        return column
    if stated.isin(["True", "False"]).all():
        return texts == "True"
    if stated.str.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?|[+-]?\d+|", case=False).all():  # decimal commas
        texts = texts.str.replace(",", ".")
    numbers = pd.to_numeric(texts.mask(texts == ""), errors="coerce")
    is_number = numbers.notna() | texts.str.casefold().isin(["nan", ""])
    return numbers if is_number.all() and (blank or (texts != "").all()) else column


def _complete_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with all columns of `predict`, in their order and with their types."""
    numbers = [f"row {number}" for number in range(1, len(table) + 1)] if "path" not in table else ""
    if "patient" not in table:
        table["patient_known"] = False
    defaults = {"path": numbers, "patient": "", "patient_known": True, "split": "valid", "fold": 0, "source": ""}
    for name, value in {**defaults, "view": "", "status": "ok"}.items():
        if name not in table:
            table[name] = value
    if table["patient_known"].dtype != bool:
        table["patient_known"] = table["patient_known"].map(_as_flag)
    for name in ("path", "label", "patient", "split", "source", "view", "status"):
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    table["status"] = table["status"].replace("", "ok")
    unknown = table["patient"].eq("") & table["patient_known"].eq(False)
    table["patient"] = table["patient"].mask(unknown, table["path"])
    for name in class_columns(table):
        table[PROBABILITY + name] = pd.to_numeric(table[PROBABILITY + name], errors="coerce").astype(float)
    unstated = table["patient"].map({text: bool(text) and is_unstated(text) for text in table["patient"].unique()})
    table["patient_known"] = table["patient_known"].mask(unstated.astype(bool), False)  # guard: unstated_patient
    table["patient"] = table["patient"].mask(unstated.astype(bool), table["path"])
    order = ["path", "label", "patient", "patient_known", "split", "source", "view", "fold"]
    order += [PROBABILITY + name for name in class_columns(table)]
    if "prediction" not in table:
        table["prediction"] = ""
    order += ["prediction", "status"]
    return table[[*order, *(name for name in table if name not in order)]]


def _as_flag(value: Any) -> Any:
    """Return a value of `patient_known` as bool if it is True or False, also as text; else return it unchanged."""
    return {"true": True, "false": False}.get(str(value).strip().casefold(), value)


def _find_faults(table: pd.DataFrame, columns: list[str], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the first fault of each faulty row."""
    classes = class_columns(table)
    p = table[columns].to_numpy(dtype=float)
    is_ok, known = table["status"].eq("ok").to_numpy(), table["patient_known"]
    with np.errstate(invalid="ignore"):
        outside, sums = ((p < 0) | (p > 1)).any(axis=1), p.sum(axis=1)
        faulty = {
            "status": ~table["status"].isin(STATUSES).to_numpy(),
            "label": ~table["label"].isin(["", *classes]).to_numpy(),
            "known": np.zeros(len(table), dtype=bool)
            if known.dtype == bool
            else np.array([not isinstance(value, bool | np.bool_) for value in known]),
            "patient": table["patient"].eq("").to_numpy(),
            "missing": is_ok & ~np.isfinite(p).all(axis=1),
            "range": is_ok & outside,
            "sum": is_ok & (np.abs(sums - 1) > SUM_TOLERANCE),
        }
    for position in np.flatnonzero(np.logical_or.reduce([*faulty.values()])).tolist():
        row = table.iloc[position]
        kind = next(name for name, rows in faulty.items() if rows[position])
        reason, remedy = {
            "status": (f"status {row['status']!r} is unknown", f"Choose one of {', '.join(STATUSES)}."),
            "label": (f"label {row['label']!r} has no column p_<class>", f"Classes: {', '.join(classes)}."),
            "known": (f"patient_known is {row['patient_known']!r}", "Give True or False."),
            "patient": ("patient is empty", "Give one, or set patient_known to False."),
            "missing": ("a probability is missing or not a number", "Give it, or the status 'failed'."),
            "range": ("a probability is not between 0 and 1", "Give probabilities, not logits or percent."),
            "sum": (f"the probabilities sum to {sums[position]:.4g}", "Give probabilities that sum to 1."),
        }[kind]
        yield {
            "row": numbers[position],
            "path": row["path"],
            "kind": "prediction",
            "severity": "error",
            "reason": reason,
            "remedy": remedy,
        }
