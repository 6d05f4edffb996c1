"""The cohort: a table with one row per image and the facts about it, in memory and on disk."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from covid_fastai.data.problems import PROBLEM_COLUMNS
from covid_fastai.errors import DataError, UsageError
from covid_fastai.files import unescape_cell, write_csv, write_json
from covid_fastai.pseudonyms import restore_paths
from covid_fastai.run_folder import RunFolder

__all__ = [
    "COHORT_COLUMNS",
    "COHORT_CSV",
    "COHORT_JSON",
    "Cohort",
    "CohortInfo",
    "as_cohort",
    "load_cohort",
    "save_cohort",
]

COHORT_COLUMNS = ["path", "label", "patient", "patient_known", "group", "split", "source", "view", "finding", "note"]
COHORT_COLUMNS += ["in_pretraining"]
COHORT_CSV, COHORT_JSON = RunFolder.cohort, RunFolder.cohort_info
FLAGS = ("patient_known", "in_pretraining")  # as text, "False" would count as true
USED_SPLITS = ("train", "valid", "test")
FORMAT = 1  # of the two files; other formats raise an error
MISSING = "NA"  # the text of a missing value, if "" is a value of the column


class CohortInfo(BaseModel):
    """The facts about a cohort, as immutable plain values.

    Attributes:
        classes: The task's classes, the negative one first. This order is the vocabulary of a model and the order of
            the columns `p_<class>` in its predictions.
        positive: The class that sensitivity refers to; None if the task has none, or if it is not known.
        task: The task's name; `""` if it is not known.
        data: The data that were read, a path or `"a table"`; `""` if they are not known.
        root: The folder that contains the images; `""` if it is not known.
        problems: The problems of the data, one dictionary per problem with the keys `row`, `path`, `kind`,
            `severity`, `reason` and `remedy`.
        leaked_fraction: After a split by image, the fraction of the validation patients who are in training too, 0 to
            1; None after a split by patient.
        left_out: The columns of the data that the run which saved the cohort has left out.

    Raises:
        pydantic.ValidationError: A value has the wrong type, a class is repeated, or `positive` is not a class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...]
    positive: str | None = None
    task: str = ""
    data: str = ""
    root: str = ""
    problems: tuple[dict[str, str | int | None], ...] = ()
    leaked_fraction: float | None = None
    left_out: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} repeat a class")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive {self.positive!r} is not one of the classes {list(self.classes)}")
        return self

    def problem_table(self) -> pd.DataFrame:
        """Return the problems as a table with the columns `row`, `path`, `kind`, `severity`, `reason`, `remedy`."""
        return pd.DataFrame(list(self.problems), columns=PROBLEM_COLUMNS)

    def to_json(self) -> str:
        """Return the facts as JSON, which `from_json` reads."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> CohortInfo:
        """Read the JSON of `to_json`.

        Args:
            text: The JSON.

        Returns:
            An equal object.

        Raises:
            DataError: The text is not JSON, or a value is missing, unknown or of the wrong type.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(
                f"This is not a cohort's info: {_first_fault(error)}.", hint="Use the text of to_json."
            ) from error


class Cohort(pd.DataFrame):
    """A table with one row per image, and its task, its classes and the problems of its data.

    It is a `DataFrame`. Slices, copies, merges and concatenations of it, and its pickled copies, are cohorts
    with the same `facts`. The name is not `info`, because `DataFrame.info()` is pandas' summary.

    `read_cohort` makes cohorts with these columns. The columns of the data follow unchanged: those of a CSV are
    text. If there are images of Cohen's collection, the columns `sex` (text), `age` (years) and `day` (since onset or
    admission; both float, NaN if not known) are added, unless the data have them.

    ```text
    path            text   the image's file, absolute
    label           text   a class of the task; "" if the row has none
    patient         text   the patient; the file name if the patient is not known
    patient_known   bool   whether the patient is in the data, or in CoronaHack's file names
    group           text   the same for all patients who share an image; a split keeps a group together
    split           text   train, valid, test or excluded
    source          text   hospital or collection, "unknown" if none is stated
    view            text   projection: PA, AP, L (lateral); "" if it is not known
    finding         text   the label of the data, in this package's spelling
    note            text   the reason of an exclusion; "" for other rows
    in_pretraining  bool   whether an image of the group is in the pretraining data of the package's weights
    lung_quality    text   with check_lungs: fine, cut off, one lung, none found, implausible or unreadable; "" for
                           excluded rows; with lung_area and the box lung_left, lung_top, lung_right, lung_bottom
    fold            int    after fold_by_patient: the row's fold, -1 for rows that are never held out
    ```

    Args:
        data: Rows, as for a `DataFrame`.
        *args: As for a `DataFrame`.
        facts: The facts about the rows; None to keep those of `data`, if it is a cohort.
        **kwargs: As for a `DataFrame`.

    Examples:
        >>> from covid_fastai import Cohort, CohortInfo
        >>> facts = CohortInfo(classes=("Normal", "COVID-19"), positive="COVID-19")
        >>> cohort = Cohort({"path": ["a.png", "b.png"], "label": ["Normal", "COVID-19"]}, facts=facts)
        >>> cohort[cohort["label"] == "Normal"].facts.positive
        'COVID-19'
    """

    _metadata = ["_facts"]  # pandas copies and pickles the attributes named here
    _facts: CohortInfo | None = None

    if TYPE_CHECKING:  # pandas' stubs describe the constructor here, without `facts`

        def __new__(cls, data: Any = None, *args: Any, facts: CohortInfo | None = None, **kwargs: Any) -> Self: ...  # noqa: D102

    def __init__(self, data: Any = None, *args: Any, facts: CohortInfo | None = None, **kwargs: Any):
        super().__init__(data, *args, **kwargs)  # pyright: ignore[reportCallIssue]: the stubs have __new__ only
        if facts is None and isinstance(data, Cohort):
            facts = data._facts
        self._facts = facts

    @property
    def _constructor(self) -> type[Cohort]:
        return Cohort

    def __finalize__(self, other: Any, method: str | None = None, **kwargs: Any) -> Self:
        super().__finalize__(other, method=method, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]: no stub
        if not isinstance(other, pd.DataFrame | pd.Series):  # pandas' record of a concat or merge
            tables = getattr(other, "input_objs", None) or getattr(other, "objs", None)  # pandas 3, pandas 2
            tables = tables or [getattr(other, side, None) for side in ("left", "right")]
            self._facts = _join_facts([table._facts for table in tables if isinstance(table, Cohort)])
        return self

    @property
    def facts(self) -> CohortInfo:
        """The facts about the cohort.

        Raises:
            DataError: There are none: cohorts of different tasks were joined, or the cohort was made without facts.
        """
        if self._facts is None:
            raise DataError(
                "The classes of this cohort are not known: cohorts of different tasks were joined, or it was made "
                "without facts.",
                hint="Set them: cohort.with_facts(classes=['Normal', 'COVID-19'], positive='COVID-19').",
            )
        return self._facts

    def with_facts(self, **changes: Any) -> Cohort:
        """Return a copy with other facts.

        Args:
            **changes: Fields of `CohortInfo`; the others do not change. A cohort without facts needs `classes`.

        Returns:
            The copy.

        Raises:
            UsageError: A field does not exist or its value is not allowed.
        """
        known = {} if self._facts is None else dict(self._facts)
        try:
            facts = CohortInfo.model_validate({**known, **changes})
        except ValidationError as error:
            fields = ", ".join(CohortInfo.model_fields)
            raise UsageError(f"with_facts: {_first_fault(error)}.", hint=f"Fields: {fields}.") from error
        copy = self.copy()
        copy._facts = facts
        return copy

    @property
    def left_out(self) -> tuple[str, ...]:
        """The columns of the data that the run which saved the cohort has left out; empty without facts."""
        return () if self._facts is None else self._facts.left_out

    @property
    def patients_known(self) -> bool:
        """Whether the patient of every row that is not excluded is known; True without the column `patient_known`."""
        if "patient_known" not in self:
            return True
        used = self["split"].isin(USED_SPLITS) if "split" in self else slice(None)
        return bool(self.loc[used, "patient_known"].eq(True).all())


def as_cohort(table: pd.DataFrame) -> Cohort:
    """Return any table of rows as a cohort.

    Args:
        table: A cohort, or a plain table with `label`. The classes of a plain table are the labels of the rows whose
            `split` is not excluded, sorted; the positive class is not known.

    Returns:
        The cohort itself, or a copy of the plain table as one.

    Raises:
        DataError: There is no column `label`, `patient_known` or `in_pretraining` is not boolean, or the cohort has
            no facts.
    """
    if "label" not in table:
        raise DataError(
            f"The cohort has no column label; it has {', '.join(map(str, table.columns)) or 'none'}.",
            hint="Make it with read_cohort.",
        )
    for name in FLAGS:
        if name in table and len(table) and not pd.api.types.is_bool_dtype(table[name]):  # guard: flags
            raise DataError(
                f"The column {name} of the cohort is not boolean; it holds {table[name].iloc[0]!r}.",
                hint="load_cohort and read_run restore types. Convert it: "
                f"cohort['{name}'] = cohort['{name}'].astype(str).isin(['True', '1', '1.0']).",
            )
    if isinstance(table, Cohort):
        _ = table.facts  # raises without facts: sorted labels could change the order of the classes
        return table
    labels = table.loc[table["split"] != "excluded", "label"] if "split" in table else table["label"]
    classes = sorted({label for label in labels if isinstance(label, str)} - {""})
    return Cohort(table.copy(), facts=CohortInfo(classes=tuple(classes)))


def _join_facts(facts: Sequence[CohortInfo | None]) -> CohortInfo | None:
    """Return the facts of cohorts that were joined; None if they differ in task or classes, or one has no facts."""
    first = next(iter(facts), None)
    if first is None or all(other is first for other in facts):
        return first
    known = [info for info in facts if info is not None]
    same = ("task", "classes", "positive")
    # guard: other_task
    if len(known) < len(facts) or any(getattr(info, name) != getattr(first, name) for info in known for name in same):
        return None
    problems = {tuple(row.items()): row for info in known for row in info.problems}
    leaked = {info.leaked_fraction for info in known}
    return first.model_copy(
        update={
            "data": ", ".join(dict.fromkeys(info.data for info in known if info.data)),
            "root": _common_folder([info.root for info in known]),
            "problems": tuple(problems.values()),
            "leaked_fraction": leaked.pop() if len(leaked) == 1 else None,
        }
    )


def _common_folder(folders: Sequence[str]) -> str:
    try:
        return os.path.commonpath(folders) if all(folders) else ""
    except ValueError:  # on different drives
        return ""


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(name) for name in fault["loc"])
    text = fault["msg"].removeprefix("Value error, ")  # pydantic's prefix of a validator's message
    return f"{field}: {text}" if field else text


# on disk


class _Column(BaseModel):
    """How a column is written, to restore its type when it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str  # pandas' name; for a categorical column, of its categories
    holds: str = ""  # the type of an object column, from `pandas.api.types.infer_dtype`
    missing: str | None = None  # the text of a missing value; None if no value is missing
    categories: list[str] | None = None
    ordered: bool = False


class _CohortFile(BaseModel):
    """The contents of `cohort.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    rows: int
    columns: list[_Column]
    info: CohortInfo


def save_cohort(cohort: pd.DataFrame, folder: str | Path) -> Path:
    """Write a cohort as `cohort.csv` (its rows) and `cohort.json` (their types, and its facts).

    Text, booleans, numbers, dates, categories and missing values are restored by `load_cohort`; any other object, such
    as a list, becomes text. The index is not saved.

    Args:
        cohort: The result of `read_cohort` or a split.
        folder: An existing folder.

    Returns:
        The path of `cohort.csv`, which is written last: if it exists, both files do.

    Raises:
        DataError: The cohort has no facts, or two columns have the same name.
        ResourceError: The files cannot be written.
    """
    cohort, folder = as_cohort(cohort), Path(folder)
    names = [str(name) for name in cohort.columns]
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise DataError(f"The cohort has the column {duplicate!r} twice.", hint="Rename one of them.")
    texts, columns = {}, []
    for number, name in enumerate(names):
        texts[name], column = _write_column(name, cohort.iloc[:, number])
        columns.append(column.model_dump(exclude_defaults=True))
    facts = {"rows": len(cohort), "columns": columns, "info": json.loads(cohort.facts.to_json())}
    write_json(folder / COHORT_JSON, {"format": FORMAT, **facts})
    return write_csv(folder / COHORT_CSV, pd.DataFrame(texts, dtype=object))


def load_cohort(folder: str | Path) -> Cohort:
    """Read a cohort from `cohort.csv` and `cohort.json`.

    Args:
        folder: The folder that `save_cohort` wrote to, such as a run's.

    Returns:
        The cohort, with its types, its facts and a RangeIndex.

    Raises:
        DataError: A file is missing or damaged, or the two do not match.
    """
    described, rows = Path(folder) / COHORT_JSON, Path(folder) / COHORT_CSV
    try:
        file = _CohortFile.model_validate_json(described.read_bytes())
        with open(rows, encoding="utf-8", newline="") as lines:
            header, *cells = ([*map(unescape_cell, row)] for row in csv.reader(lines, strict=True))
    except OSError as error:
        raise _unreadable(Path(error.filename), error.strerror or str(error)) from error
    except ValidationError as error:
        raise _unreadable(described, _first_fault(error)) from error
    except (csv.Error, ValueError) as error:  # an unclosed quotation mark, not UTF-8, or an empty file
        raise _unreadable(rows, str(error)) from error
    names = [column.name for column in file.columns]
    if header != names:
        raise _unreadable(rows, f"its columns are {', '.join(header)}; {COHORT_JSON} names {', '.join(names)}")
    if len(cells) != file.rows:
        raise _unreadable(rows, f"it has {len(cells)} rows; {COHORT_JSON} names {file.rows}")
    for number, row in enumerate(cells, start=1):
        if len(row) != len(names):  # guard: short_row
            raise _unreadable(rows, f"row {number} has {len(row)} values, the header has {len(names)}")
    columns = {}
    for column, texts in zip(file.columns, zip(*cells, strict=True) if cells else [()] * len(names), strict=True):
        try:
            columns[column.name] = _read_column(column, texts)
        except (ValueError, TypeError, KeyError) as error:
            raise _unreadable(rows, f"the column {column.name!r} is not {column.dtype}: {error}") from error
    return Cohort(restore_paths(pd.DataFrame(columns), rows), facts=file.info)


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} cannot be read as a cohort: {reason}.",
        hint=f"Restore {COHORT_CSV} and {COHORT_JSON} as save_cohort wrote them, or start a new run.",
    )


# The types of an object column that can be restored: functions to text and from text.
OBJECTS: dict[str, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    "string": (str, str),
    "boolean": (str, {"True": True, "False": False}.__getitem__),
    "integer": (str, int),
    "date": (date.isoformat, date.fromisoformat),
}
NUMBERS: dict[str, Callable[[str], Any]] = {  # by the kind of a dtype
    "b": {"True": True, "False": False}.__getitem__,
    **dict.fromkeys("iu", int),
    "f": float,
}


def _write_column(name: str, values: pd.Series) -> tuple[list[str], _Column]:
    """Return the cells of a column as text, and the description that restores them."""
    fields: dict[str, Any] = {}
    if isinstance(values.dtype, pd.CategoricalDtype):
        categories, dtype, holds = _to_text(values.cat.categories.to_series())
        texts = [None if code < 0 else categories[code] for code in values.cat.codes]
        fields = {"categories": categories, "ordered": bool(values.cat.ordered)}
    else:
        texts, dtype, holds = _to_text(values)
    token = MISSING if "" in texts else ""
    while token and token in texts:
        token = f"<{token}>"
    if None in texts:
        fields["missing"] = token
    return [token if text is None else text for text in texts], _Column(name=name, dtype=dtype, holds=holds, **fields)


def _to_text(values: pd.Series) -> tuple[list[str | None], str, str]:
    """Return values as text (None for missing ones), their dtype and, for an object column, their type."""
    dtype, is_missing, holds = values.dtype, values.isna(), ""
    if isinstance(dtype, pd.DatetimeTZDtype):
        texts = np.datetime_as_string(values.dt.tz_convert(None).to_numpy())
    elif isinstance(dtype, np.dtype) and dtype.kind == "M":
        texts = np.datetime_as_string(values.to_numpy())
    elif isinstance(dtype, np.dtype) and dtype.kind == "m":
        texts = values.to_numpy().astype("int64")
    elif dtype.kind in NUMBERS:
        texts = map(repr, values.tolist())  # the shortest text of the same number
    elif isinstance(dtype, pd.StringDtype):
        texts = values
    else:
        holds = pd.api.types.infer_dtype(values, skipna=True)
        holds = holds if holds in OBJECTS else "string"
        texts = [
            None if missing else OBJECTS[holds][0](value) for value, missing in zip(values, is_missing, strict=True)
        ]
    texts = [None if missing else str(text) for text, missing in zip(texts, is_missing, strict=True)]
    return texts, "object" if holds else str(dtype), holds


def _read_column(column: _Column, texts: Sequence[str]) -> pd.Series:
    """Return a column with its type."""
    if column.categories is None:
        return _from_text(column, [None if text == column.missing else text for text in texts])
    categories = pd.Index(_from_text(column, column.categories))
    code_of = {text: code for code, text in enumerate(column.categories)} | {column.missing: -1}
    codes = [code_of[text] for text in texts]
    return pd.Series(pd.Categorical.from_codes(codes, categories=categories, ordered=column.ordered))


def _from_text(column: _Column, texts: Sequence[str | None]) -> pd.Series:
    """Return values of the column's dtype from their texts; None is a missing value."""
    dtype = pd.api.types.pandas_dtype(column.dtype)
    if column.holds:
        read = OBJECTS[column.holds][1]
        return pd.Series([np.nan if text is None else read(text) for text in texts], dtype=object)
    if isinstance(dtype, pd.DatetimeTZDtype):
        times = np.array([text or "NaT" for text in texts], dtype=f"datetime64[{dtype.unit}]")
        return pd.Series(pd.DatetimeIndex(times).tz_localize("UTC").tz_convert(dtype.tz))
    if isinstance(dtype, np.dtype) and dtype.kind in "mM":
        read = int if dtype.kind == "m" else str
        return pd.Series(np.array(["NaT" if text is None else read(text) for text in texts], dtype=dtype))
    read = NUMBERS.get(dtype.kind, str)
    missing = pd.NA if isinstance(dtype, pd.api.extensions.ExtensionDtype) else np.nan
    return pd.Series([missing if text is None else read(text) for text in texts], dtype=dtype)
