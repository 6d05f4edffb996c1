"""The cohort: a table with one row an image and what belongs to it beside its rows, in memory and on disk."""

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
from covid_fastai.files import write_csv, write_json
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
FLAGS = ("patient_known", "in_pretraining")  # a text "False" in one of these would count as true
TAKES_PART = ("train", "valid", "test")
FORMAT = 1  # of the two files; a reader refuses any other
MISSING = "NA"  # in the file, where "" is a value of the column


class CohortInfo(BaseModel):
    """What belongs to a cohort beside its rows, as plain values that do not change.

    Attributes:
        classes: The task's classes, the negative one first. This order is the vocabulary of a model and the order of
            the columns `p_<class>` in its predictions.
        positive: The class that sensitivity refers to; None if the task has none, or if it is not known.
        task: The task's name; `""` where it is not known.
        data: What was read, a path or `"a table"`; `""` where it is not known.
        root: The folder that the images lie below; `""` where it is not known.
        problems: What was found in the data, one dictionary per problem with the keys `row`, `path`, `kind`,
            `severity`, `reason` and `remedy`.
        leaked_fraction: After a split by image, the fraction of the validation patients who are in training too, 0 to
            1; None after a split by patient.

    Raises:
        pydantic.ValidationError: A value has the wrong type, a class is named twice, or `positive` is no class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...]
    positive: str | None = None
    task: str = ""
    data: str = ""
    root: str = ""
    problems: tuple[dict[str, str | int | None], ...] = ()
    leaked_fraction: float | None = None

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} name a class twice")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive {self.positive!r} is none of the classes {list(self.classes)}")
        return self

    def problem_table(self) -> pd.DataFrame:
        """Return the problems as a table with the columns `row`, `path`, `kind`, `severity`, `reason`, `remedy`."""
        return pd.DataFrame(list(self.problems), columns=PROBLEM_COLUMNS)

    def to_json(self) -> str:
        """Return it as JSON, which `from_json` reads."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> CohortInfo:
        """Read what `to_json` returned.

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
                f"This is not a cohort's info: {_first_fault(error)}.", hint="Use to_json's text."
            ) from error


class Cohort(pd.DataFrame):
    """A table with one row an image that knows its task, its classes and what was found in the data.

    It is a `DataFrame`. Slices, copies, merges and concatenations of it, and its pickled copies, are cohorts
    with the same `facts`. The name is not `info`, since `DataFrame.info()` is pandas' own summary.

    `read_cohort` makes cohorts with these columns. Behind them stand the columns that the data came with, as they are:
    those of a CSV are text. Of the images that Cohen's collection describes there are also `sex` (text), `age` (years)
    and `day` (since onset or admission; both float, NaN where not known), where the data do not have them already.

    ```text
    path            text   the image's file, absolute
    label           text   a class of the task; "" where the row has none
    patient         text   the patient's key; the file's name where the patient is not known
    patient_known   bool   whether the data, or CoronaHack's file names, tell the patient
    group           text   one for all patients who share a picture: a split keeps it together
    split           text   train, valid, test or excluded
    source          text   hospital or collection, "unknown" where none is named
    view            text   projection: PA, AP, L (lateral); "" where it is not known
    finding         text   the label as the data have it, in this package's spelling
    note            text   why the row is excluded; "" for the others
    in_pretraining  bool   whether the package's weights have seen the image or another one of its group
    fold            int    after fold_by_patient: the row's fold, -1 for rows that are never held out
    ```

    Args:
        data: Rows, as for a `DataFrame`.
        *args: As for a `DataFrame`.
        facts: What belongs to the rows; None to take over that of `data`, where it is a cohort.
        **kwargs: As for a `DataFrame`.

    Example:
        >>> from covid_fastai import Cohort, CohortInfo
        >>> facts = CohortInfo(classes=("Normal", "COVID-19"), positive="COVID-19")
        >>> cohort = Cohort({"path": ["a.png", "b.png"], "label": ["Normal", "COVID-19"]}, facts=facts)
        >>> cohort[cohort["label"] == "Normal"].facts.positive
        'COVID-19'
    """

    _metadata = ["_facts"]  # pandas hands on what is named here, and pickles it
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
        """What belongs to the cohort beside its rows.

        Raises:
            DataError: Nothing is known: cohorts of different tasks were joined, or it was made by hand without facts.
        """
        if self._facts is None:
            raise DataError(
                "This cohort does not say what its classes are: cohorts of different tasks were joined, or it was made "
                "without facts.",
                hint="Name them: cohort.with_facts(classes=['Normal', 'COVID-19'], positive='COVID-19').",
            )
        return self._facts

    def with_facts(self, **changes: Any) -> Cohort:
        """Return a copy with other facts.

        Args:
            **changes: Fields of `CohortInfo`; the others stay. A cohort without facts needs `classes`.

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
            raise UsageError(f"with_facts: {_first_fault(error)}.", hint=f"The fields: {fields}.") from error
        copy = self.copy()
        copy._facts = facts
        return copy

    @property
    def patients_known(self) -> bool:
        """Whether every row that takes part names its patient, as a table without `patient_known` is taken to do."""
        if "patient_known" not in self:
            return True
        used = self["split"].isin(TAKES_PART) if "split" in self else slice(None)
        return bool(self.loc[used, "patient_known"].eq(True).all())


def as_cohort(table: pd.DataFrame) -> Cohort:
    """Return any table of rows as a cohort.

    Args:
        table: A cohort, or a plain table with `label`. The classes of a plain table are the labels of the rows whose
            `split` is not excluded, sorted; which of them is the positive one is not known.

    Returns:
        The cohort itself, or a copy of the plain table as one.

    Raises:
        DataError: There is no column `label`, `patient_known` or `in_pretraining` is not boolean, or the cohort has
            lost its facts.
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
        _ = table.facts  # raises where they are lost: sorted labels in their place could exchange the classes
        return table
    labels = table.loc[table["split"] != "excluded", "label"] if "split" in table else table["label"]
    classes = sorted({label for label in labels if isinstance(label, str)} - {""})
    return Cohort(table.copy(), facts=CohortInfo(classes=tuple(classes)))


def _join_facts(facts: Sequence[CohortInfo | None]) -> CohortInfo | None:
    """Return the facts of cohorts that were joined; None where they differ in task or classes, or one has none."""
    first = next(iter(facts), None)
    if first is None or all(other is first for other in facts):
        return first
    known = [one for one in facts if one is not None]
    same = ("task", "classes", "positive")
    # guard: other_task
    if len(known) < len(facts) or any(getattr(one, name) != getattr(first, name) for one in known for name in same):
        return None
    problems = {tuple(row.items()): row for one in known for row in one.problems}
    leaked = {one.leaked_fraction for one in known}
    return first.model_copy(
        update={
            "data": ", ".join(dict.fromkeys(one.data for one in known if one.data)),
            "root": _common_folder([one.root for one in known]),
            "problems": tuple(problems.values()),
            "leaked_fraction": leaked.pop() if len(leaked) == 1 else None,
        }
    )


def _common_folder(folders: Sequence[str]) -> str:
    try:
        return os.path.commonpath(folders) if all(folders) else ""
    except ValueError:  # on two drives
        return ""


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    text = fault["msg"].removeprefix("Value error, ")  # pydantic's, before a text of our own
    return f"{place}: {text}" if place else text


# on disk


class _Column(BaseModel):
    """How a column is written, so that it can be read back with its type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str  # as pandas names it; of a categorical column that of its categories
    holds: str = ""  # what an object column holds, as `pandas.api.types.infer_dtype` names it
    missing: str | None = None  # the text of a missing value; None where none is missing
    categories: list[str] | None = None
    ordered: bool = False


class _CohortFile(BaseModel):
    """What `cohort.json` holds."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    rows: int
    columns: list[_Column]
    info: CohortInfo


def save_cohort(cohort: pd.DataFrame, folder: str | Path) -> Path:
    """Write a cohort as `cohort.csv` (its rows) and `cohort.json` (their types, and its facts).

    Text, booleans, numbers, dates, categories and missing values are read back as they are; any other object, such as
    a list, is read back as its text. The index is not kept.

    Args:
        cohort: What `read_cohort` or a split returned.
        folder: Where to write; it must exist.

    Returns:
        The path of `cohort.csv`, which is written last: where it is, both files are.

    Raises:
        DataError: The cohort has lost its facts, or two columns have one name.
        ResourceError: The files cannot be written.
    """
    cohort, folder = as_cohort(cohort), Path(folder)
    names = [str(name) for name in cohort.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"The cohort has the column {twice!r} twice.", hint="Rename one of them.")
    texts, columns = {}, []
    for number, name in enumerate(names):
        texts[name], column = _write_column(name, cohort.iloc[:, number])
        columns.append(column.model_dump(exclude_defaults=True))
    facts = {"rows": len(cohort), "columns": columns, "info": json.loads(cohort.facts.to_json())}
    write_json(folder / COHORT_JSON, {"format": FORMAT, **facts})
    return write_csv(folder / COHORT_CSV, pd.DataFrame(texts, dtype=object))


def load_cohort(folder: str | Path) -> Cohort:
    """Read a cohort back from `cohort.csv` and `cohort.json`.

    Args:
        folder: The folder that `save_cohort` wrote into, such as a run's.

    Returns:
        The cohort, with its types, its facts and a RangeIndex.

    Raises:
        DataError: A file is missing or damaged, or the two do not belong together.
    """
    described, rows = Path(folder) / COHORT_JSON, Path(folder) / COHORT_CSV
    try:
        file = _CohortFile.model_validate_json(described.read_bytes())
        with open(rows, encoding="utf-8", newline="") as lines:
            header, *cells = csv.reader(lines, strict=True)
    except OSError as error:
        raise _unreadable(Path(error.filename), error.strerror or str(error)) from error
    except ValidationError as error:
        raise _unreadable(described, _first_fault(error)) from error
    except (csv.Error, ValueError) as error:  # a quotation mark that is never closed, no UTF-8, nothing at all
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
    return Cohort(pd.DataFrame(columns), facts=file.info)


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} cannot be read as a cohort: {reason}.",
        hint=f"Put back {COHORT_CSV} and {COHORT_JSON} as save_cohort wrote them, or begin a new run.",
    )


# What an object column can hold and be read back as: to text, and from it.
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
    """Return a column's cells as text, and how to read them back."""
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
    """Return values as text, None where one is missing; their dtype; and what they are, where it is object."""
    dtype, lacks, holds = values.dtype, values.isna(), ""
    if isinstance(dtype, pd.DatetimeTZDtype):
        texts = np.datetime_as_string(values.dt.tz_convert(None).to_numpy())
    elif isinstance(dtype, np.dtype) and dtype.kind == "M":
        texts = np.datetime_as_string(values.to_numpy())
    elif isinstance(dtype, np.dtype) and dtype.kind == "m":
        texts = values.to_numpy().astype("int64")
    elif dtype.kind in NUMBERS:
        texts = map(repr, values.tolist())  # the shortest text that is read as the same number
    elif isinstance(dtype, pd.StringDtype):
        texts = values
    else:
        holds = pd.api.types.infer_dtype(values, skipna=True)
        holds = holds if holds in OBJECTS else "string"
        texts = [None if gone else OBJECTS[holds][0](value) for value, gone in zip(values, lacks, strict=True)]
    texts = [None if gone else str(text) for text, gone in zip(texts, lacks, strict=True)]
    return texts, "object" if holds else str(dtype), holds


def _read_column(column: _Column, texts: Sequence[str]) -> pd.Series:
    """Return a column with its type."""
    if column.categories is None:
        return _from_text(column, [None if text == column.missing else text for text in texts])
    categories = pd.Index(_from_text(column, column.categories))
    places = {text: place for place, text in enumerate(column.categories)} | {column.missing: -1}
    codes = [places[text] for text in texts]
    return pd.Series(pd.Categorical.from_codes(codes, categories=categories, ordered=column.ordered))


def _from_text(column: _Column, texts: Sequence[str | None]) -> pd.Series:
    """Return values of the column's dtype from their texts, None where one is missing."""
    dtype = pd.api.types.pandas_dtype(column.dtype)
    if column.holds:
        read = OBJECTS[column.holds][1]
        return pd.Series([np.nan if text is None else read(text) for text in texts], dtype=object)
    if isinstance(dtype, pd.DatetimeTZDtype):
        moments = np.array([text or "NaT" for text in texts], dtype=f"datetime64[{dtype.unit}]")
        return pd.Series(pd.DatetimeIndex(moments).tz_localize("UTC").tz_convert(dtype.tz))
    if isinstance(dtype, np.dtype) and dtype.kind in "mM":
        read = int if dtype.kind == "m" else str
        return pd.Series(np.array(["NaT" if text is None else read(text) for text in texts], dtype=dtype))
    read = NUMBERS.get(dtype.kind, str)
    missing = pd.NA if isinstance(dtype, pd.api.extensions.ExtensionDtype) else np.nan
    return pd.Series([missing if text is None else read(text) for text in texts], dtype=dtype)
