"""List the images that a table names, with the options by which data are read for training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict, cast

import pandas as pd

from covid_fastai.data.columns import choose_columns
from covid_fastai.data.derived_columns import DerivedColumns
from covid_fastai.data.file_locations import locate_files
from covid_fastai.data.image_files import has_image_suffix, suffix_of
from covid_fastai.data.problems import ProblemLog, count_kinds, no_row_left
from covid_fastai.data.reach import Reach, check_protocols, is_url
from covid_fastai.data.table_formats import has_table_suffix, looks_like_table
from covid_fastai.data.tables import iterate_table
from covid_fastai.errors import DataError
from covid_fastai.options import OnProblem

__all__ = ["TableOptions", "images_of_table", "is_table"]

logger = logging.getLogger("covid_fastai")

PART = 50_000  # rows in memory at a time
SEARCHED = 4 * PART  # rows; files of larger tables are not searched for in other folders, which needs all names at once
# tables that are not read: naming their format is more use than an unreadable image
OTHER_TABLES = {".txt", ".xls", ".xlsb", ".ods", ".json", ".jsonl", ".pkl", ".dta", ".sas7bdat", ".sav", ".sqlite"}


class TableOptions(TypedDict, total=False):
    """How the tables among the inputs are read; all but `allow_protocol` are options of `read_cohort`."""

    path_column: str | None
    image_root: str | Path | None
    path_template: str | None
    join: str | Path | None
    on: str | None
    encoding: str | None
    on_problem: OnProblem
    allow_protocol: Iterable[str] | None


def is_table(path: str) -> bool:
    """Return whether an input is a table: by its name, or by its content if it has no image's suffix.

    Args:
        path: A path.
    """
    if has_image_suffix(path):
        return False
    if has_table_suffix(path):
        return True
    return os.path.isfile(path) and (suffix_of(path) in OTHER_TABLES or looks_like_table(path))


def images_of_table(
    path: str,
    *,
    path_column: str | None = None,
    image_root: str | Path | None = None,
    path_template: str | None = None,
    join: str | Path | None = None,
    on: str | None = None,
    encoding: str | None = None,
    on_problem: OnProblem = "error",
    allow_protocol: Iterable[str] | None = None,
) -> Iterator[str]:
    """Yield the image of each row of a table. Every row is checked before the first is yielded.

    Args:
        path: The table, of any format that `read_table` reads.
        path_column: The column with the path; None to find it by its usual names.
        image_root: The folder that paths are relative to, and that contains all files; None for the table's.
        path_template: As in `read_cohort`.
        join: As in `read_cohort`.
        on: As in `read_cohort`.
        encoding: As in `read_cohort`.
        on_problem: `"error"` raises for faulty rows, `"skip"` leaves them out and logs their number.
        allow_protocol: The protocols that addresses in the rows may have, such as `["s3"]`; None for no addresses.

    Yields:
        Paths, and URLs as they are.

    Raises:
        DataError: The table cannot be read, has no rows, or rows are faulty.
        UsageError: Options exclude each other, or one needs another.
    """
    base = Path(path).parent if image_root is None else Path(image_root).expanduser()
    if image_root is not None and not base.is_dir():
        raise DataError(f"image_root={base} is not a folder.", hint="Give the folder that the paths are relative to.")
    protocols = check_protocols(allow_protocol)
    problems, kept, rows = ProblemLog(), [], 0

    def read(log: ProblemLog) -> Iterator[pd.Series]:
        derived = DerivedColumns(
            path_column=path_column, path_template=path_template, join=join, on=on, encoding=encoding
        )
        yield from _names_of_parts(path, derived, encoding=encoding, problems=log)

    def reachable(names: pd.Series, paths: list[str], log: ProblemLog) -> list[str]:
        return _reachable(names, paths, Reach(base, paths, protocols=protocols), log)

    for part in read(problems):
        rows += len(part)
        kept.append(part)
        if rows > SEARCHED:  # no file is searched for, so that each has the folder that the table says
            for names in kept:
                reachable(names, [os.path.normpath(base / name) for name in names], problems)
            kept = []
    names = pd.concat(kept) if kept else pd.Series(dtype=str)
    images = reachable(names, _locate(names.tolist(), base, path, search=True), problems)
    if on_problem == "error":
        problems.raise_errors(path)
    if errors := problems.errors():
        logger.warning("%s: %d rows are left out: %s.", path, len(errors), count_kinds(errors))
    if not rows:
        raise DataError(f"{path} has no row that names an image.", hint="Give one line per image.")
    if rows <= SEARCHED:
        if not images:
            raise no_row_left(path, errors)
        yield from images
        return
    for part in read(ProblemLog()):
        yield from reachable(part, _locate(part.tolist(), base, path, search=False), ProblemLog())


def _names_of_parts(
    path: str, derived: DerivedColumns, *, encoding: str | None, problems: ProblemLog
) -> Iterator[pd.Series]:
    """Yield the names in the rows of each part of a table, by the row's number; a row without one is a problem."""
    column = derived.path_column
    known = [] if column is None else [column]
    for part in iterate_table(path, encoding=encoding, known=known, problems=problems, rows=PART):
        table = derived.add(part, where=path)
        if column is None:
            column = choose_columns(table, {}, where=path, required=("path",), roles=("path",))["path"]
        elif column not in table:
            choose_columns(table, {"path": column}, where=path, roles=("path",))
        yield _stated(table[column].str.strip(), problems)
    derived.finish(problems, where=path)


def _stated(names: pd.Series, problems: ProblemLog) -> pd.Series:
    for row in names.index[names == ""]:
        remedy = "Name its image, or remove the row."
        problems.add("empty_name", row=row, reason="it names no file", remedy=remedy)
    return names[names != ""]


def _locate(names: list[str], base: Path, path: str, *, search: bool) -> list[str]:
    """Return the paths of names, found as in training where they are not where the table says, and URLs as they are."""
    local = [name for name in names if not is_url(name)]
    located = locate_files(local, base, search=search)
    if located.rule:
        logger.warning("%s: %s.", path, located.rule)
    paths = iter(located.paths)
    return [name if is_url(name) else next(paths) for name in names]


def _reachable(names: pd.Series, paths: list[str], reach: Reach, problems: ProblemLog) -> list[str]:
    """Return the paths and URLs that rows may name; any other is a problem of its row."""
    allowed = []
    for (row, name), path in zip(names.items(), paths, strict=True):
        fault = reach.url_fault(name) if is_url(name) else reach.path_fault(path)
        if fault is None:
            allowed.append(path)
        else:
            kind, reason, remedy = fault
            problems.add(kind, row=cast(int, row), path=path, reason=reason, remedy=remedy)
    return allowed
