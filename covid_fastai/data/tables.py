"""Read any table as text with row numbers: separated values, Excel, Parquet and Feather, also compressed."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import pandas as pd

from covid_fastai.data.arrow_tables import read_arrow
from covid_fastai.data.delimited import BLANK, DelimitedText, check_encoding
from covid_fastai.data.headers import find_header
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.table_formats import OpenTable, open_table
from covid_fastai.data.workbooks import read_workbook
from covid_fastai.errors import DataError

__all__ = ["as_rows", "iterate_table", "read_table"]

SAMPLE = 200  # rows that show whether there is a header
ALL = 2**62  # rows: the whole table in one part


def read_table(
    path: str | Path, *, encoding: str | None = None, known: Collection[str] = (), problems: ProblemLog
) -> pd.DataFrame:
    """Read a table as text, with every value unchanged.

    The format is recognised by the content: text with commas, semicolons, tabs, bars or blanks between the values, an
    Excel workbook (.xlsx), Parquet or Feather, each also compressed (gzip, bzip2, xz, zstd). No value becomes a
    number or a missing value: `001`, `NA` and `None` stay text. Only an apostrophe before what a spreadsheet would run
    as a formula is taken away from text, as `write_csv` put it there. A list without a header has columns by position.

    Args:
        path: The file.
        encoding: The encoding of text; None for that of its byte order mark, or UTF-8 without one.
        known: Names of columns that the user has given, which show that the first line is a header.
        problems: Receives a `ragged_row` error for each row whose number of values differs from the header's; those
            rows are not in the table.

    Returns:
        One row per line, all values `str`, indexed by the line in an editor or the row in a spreadsheet (a header
        in the first line is 1); for Parquet and Feather by the number of the row, from 1.

    Raises:
        DataError: The file is missing, empty or damaged, is not a table that can be read, or has another encoding.
        UnavailableError: The format needs the extra `tables`.
        UsageError: There is no such encoding.
    """
    with closing(iterate_table(path, encoding=encoding, known=known, problems=problems, rows=ALL)) as parts:
        return next(parts)


def iterate_table(
    path: str | Path,
    *,
    encoding: str | None = None,
    known: Collection[str] = (),
    problems: ProblemLog,
    rows: int,
) -> Generator[pd.DataFrame]:
    """Read a table in parts, so that the memory needed does not grow with its size.

    Args:
        path: The file.
        encoding: As in `read_table`.
        known: As in `read_table`.
        problems: As in `read_table`.
        rows: The number of rows of a part, 1 or more.

    Yields:
        The parts, at least one; each as `read_table` returns the whole.

    Raises:
        DataError: As in `read_table`.
        UnavailableError: As in `read_table`.
        UsageError: As in `read_table`.
    """
    if encoding is not None:
        check_encoding(encoding)
    path = Path(path)
    with open_table(path) as table:
        if table.reader in ("parquet", "feather"):
            first = 1
            for columns in read_arrow(table.file, path, reader=table.reader, rows=min(rows, 1 << 30)):
                size = len(next(iter(columns.values()), []))
                yield pd.DataFrame(columns, index=pd.RangeIndex(first, first + size), dtype=str)
                first += size
        else:
            yield from _iterate_rows(table, path, encoding=encoding, known=known, problems=problems, rows=rows)


def as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries by column name, with a type that checkers know."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def _iterate_rows(
    table: OpenTable,
    path: Path,
    *,
    encoding: str | None,
    known: Collection[str],
    problems: ProblemLog,
    rows: int,
) -> Iterator[pd.DataFrame]:
    """Yield the parts of a table whose rows are read one by one."""
    is_text = table.reader == "text"
    text = DelimitedText(table.file, path, encoding=encoding, known=known) if is_text else None
    source = read_workbook(table.file, path, problems=problems) if text is None else iter(text)
    sample = list(islice(source, SAMPLE))
    if not sample:  # guard: no_header
        raise DataError(f"{path} is empty.", hint="Give a table with a header and one row per image.")
    header = find_header(
        [values for _, values in sample],
        where=str(path),
        numbers=[number for number, _ in sample],
        known=known,
        blank_separated=text is not None and text.separator == BLANK,
    )
    width = len(header.names)
    remedy = "Empty the cells beside the table, or give their column a name."
    if text is not None:
        name = "blanks" if text.separator == BLANK else repr(text.separator)
        remedy = f"Quote values that contain {name}, or complete the line."
    values_of_rows: list[list[str]] = []
    numbers: list[int] = []
    yielded = False
    for number, values in chain(sample[header.rows :], source):
        while len(values) > width and not values[-1].strip():
            values.pop()  # spreadsheets pad lines with empty cells
        if text is None:
            values += [""] * (width - len(values))
        if len(values) != width:  # guard: ragged
            problems.add(
                "ragged_row",
                row=number,
                path=values[0],
                reason=f"line {number} has {len(values)} values, the header has {width}",
                remedy=remedy,
            )
            continue
        values_of_rows.append(values)  # guard: as_text
        numbers.append(number)
        if len(numbers) == rows:
            yield _as_table(values_of_rows, header.names, numbers)
            values_of_rows, numbers, yielded = [], [], True
    if numbers or not yielded:
        yield _as_table(values_of_rows, header.names, numbers)


def _as_table(rows: list[list[str]], names: list[str], numbers: list[int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=names, index=pd.Index(numbers, dtype=int), dtype=str)
