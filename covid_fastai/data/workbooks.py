"""Read a sheet of an Excel workbook as rows of text, with the row numbers that a spreadsheet program shows."""

from __future__ import annotations

import datetime
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from covid_fastai.data.problems import ProblemLog
from covid_fastai.errors import DataError, UnavailableError

__all__ = ["number_text", "read_workbook", "time_text"]

logger = logging.getLogger("covid_fastai")

EXACT = 10**15  # Excel keeps 15 digits of a number
CHUNK = 1 << 20  # bytes
LARGEST = 1 << 30  # bytes of an unpacked workbook; a million rows of ten columns have half of that
LAST_ROW, LAST_COLUMN = 1 << 20, 1 << 14  # of a sheet
LAST_EXACT = 2**53  # the integers below it are exact as float


def read_workbook(file: BinaryIO, path: Path, *, problems: ProblemLog) -> Iterator[tuple[int, list[str]]]:
    """Read the only visible sheet with content of an .xlsx workbook.

    Whole numbers have no decimal point, and the leading zeros that a format such as `000` shows. Dates are
    `YYYY-MM-DD`, with the time if it is not midnight. Cells that are merged over several rows have the value of the
    first of them in each row.

    Args:
        file: The workbook, seekable.
        path: Its name, for messages.
        problems: Receives a warning for each column with numbers of more than 15 digits, which Excel has rounded.

    Yields:
        The row number and the cells as text, without empty cells at the end; no empty rows.

    Raises:
        DataError: The workbook is damaged, several sheets have content, or a formula has no stored value.
        UnavailableError: openpyxl is not installed.
    """
    try:
        import openpyxl
    except ImportError:
        raise UnavailableError(
            f"{path} is an Excel workbook, which needs the package openpyxl.",
            hint="pip install 'covid_fastai[tables]', or save the sheet as CSV.",
        ) from None
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > LARGEST:  # guard: workbook_size
            raise DataError(f"{path} unpacks to {size:,} bytes.", hint=f"Save it as CSV; {LARGEST:,} are allowed.")
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheet = _only_sheet(workbook, path)
        merged = _inspect_sheet(file, sheet._worksheet_path, path=path, title=sheet.title)
        yield from _fill_merged(_rows(sheet, problems, path), merged)
    except DataError:
        raise
    except Exception as error:  # a damaged workbook makes openpyxl raise nearly anything, also in its last row
        raise DataError(
            f"{path} cannot be read as an Excel workbook: {error}.", hint="Save it again as .xlsx."
        ) from error


def number_text(value: float) -> str:
    """Return a number as the shortest text that stands for it, without a decimal point if it is whole.

    Args:
        value: A finite number.
    """
    return str(int(value)) if value == int(value) and abs(value) < LAST_EXACT else repr(value)


def time_text(value: datetime.date | datetime.time | datetime.timedelta) -> str:
    """Return a date as `YYYY-MM-DD`, with the time of day if it is not midnight; a time or duration in ISO style.

    Args:
        value: A date, a date with a time, a time of day or a duration.
    """
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time() and value.tzinfo is None
        return value.date().isoformat() if midnight else value.isoformat(sep=" ")
    return str(value) if isinstance(value, datetime.timedelta) else value.isoformat()


def _only_sheet(workbook: Any, path: Path) -> Any:
    """Return the only visible sheet that has content."""
    visible = [sheet for sheet in workbook.worksheets if sheet.sheet_state == "visible"]
    for sheet in visible:
        sheet.reset_dimensions()  # some programs write a wrong size, which would cut rows off
    filled = [sheet for sheet in visible if any(map(_filled, _cells_of_rows(sheet, path, values_only=True)))]
    if len(filled) > 1:  # guard: several_sheets
        titles = ", ".join(repr(sheet.title) for sheet in filled)
        raise DataError(
            f"{path} has {len(filled)} sheets with content: {titles}.",
            hint="Save the one to use as a file of its own: open it, and save it as CSV.",
        )
    if not filled:
        raise DataError(f"{path} is empty.", hint="Give a table with a header and one row per image.")
    hidden = [sheet.title for sheet in workbook.worksheets if sheet not in visible]
    if hidden or len(visible) > 1:
        logger.info("%s: the sheet %r is read; others are empty or hidden.", path, filled[0].title)
    return filled[0]


def _cells_of_rows(sheet: Any, path: Path, *, values_only: bool) -> Iterator[Sequence[Any]]:
    """Yield the cells of each row; openpyxl adds the rows that are missing before a row, whatever its number."""
    for number, cells in enumerate(sheet.iter_rows(max_row=LAST_ROW + 1, values_only=values_only), start=1):
        if number > LAST_ROW:  # guard: workbook_rows
            raise DataError(f"{path} has a row beyond row {LAST_ROW:,}.", hint="Save it again as .xlsx, or as CSV.")
        yield cells


def _filled(row: Sequence[Any]) -> bool:
    return any(value is not None and str(value).strip() for value in row)


def _rows(sheet: Any, problems: ProblemLog, path: Path) -> Iterator[tuple[int, list[str]]]:
    rounded: set[int] = set()
    for number, cells in enumerate(_cells_of_rows(sheet, path, values_only=False), start=1):
        values = [_cell_text(cell) for cell in cells]
        for column, cell in enumerate(cells):
            value = cell.value
            if type(value) in (int, float) and abs(value) >= EXACT and column not in rounded:  # guard: rounded_number
                rounded.add(column)
                problems.add(
                    "rounded_number",
                    row=number,
                    path=values[0],
                    severity="warning",
                    reason=f"{cell.coordinate} of {path.name} holds a number of more than 15 digits, {values[column]}, "
                    "whose last digits Excel does not keep: different identifiers may have become equal",
                    remedy="Take the column from the original data, as text.",
                )
        yield number, values


def _cell_text(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        temporal = (datetime.date, datetime.time, datetime.timedelta)
        return time_text(value) if isinstance(value, temporal) else str(value)
    text = number_text(value)
    shown = str(cell.number_format)
    # a format such as 000 shows the number 7 as 007, and so do the names of the files
    return text.zfill(len(shown)) if value == int(value) and re.fullmatch("0{2,}", shown) else text


def _inspect_sheet(file: BinaryIO, part: str, *, path: Path, title: str) -> dict[int, dict[int, int]]:
    """Check the formulas of a sheet, and return its merged cells: by their first row, the last row of each column."""
    ranges: list[tuple[str, ...]] = []
    formulas, tail = False, b""
    with zipfile.ZipFile(file) as archive:
        with archive.open(part.lstrip("/")) as stream:
            while chunk := stream.read(CHUNK):
                text = tail + chunk
                formulas = formulas or re.search(rb"<f[ />]", text) is not None
                matches = list(re.finditer(rb'<mergeCell ref="([A-Z]+)(\d+):([A-Z]+)(\d+)"', text))
                ranges += [tuple(group.decode() for group in match.groups()) for match in matches]
                tail = text[max(len(text) - 64, matches[-1].end() if matches else 0) :]
        if formulas:
            _check_formulas(archive.read(part.lstrip("/")), path=path, title=title)
    merged: dict[int, dict[int, int]] = {}
    for left, top, _, bottom in ranges:
        column = _column_number(left)
        if column >= LAST_COLUMN or int(bottom) > LAST_ROW:  # guard: merged_range
            raise DataError(f"{path} has merged cells outside of a sheet.", hint="Save it again as .xlsx, or as CSV.")
        if int(bottom) > int(top):
            merged.setdefault(int(top), {})[column] = int(bottom)
    if merged:
        logger.info("%s: cells that are merged over several rows have the value of the first in each row.", path)
    return merged


def _check_formulas(text: bytes, *, path: Path, title: str) -> None:
    """Raise if a formula has no stored value, as in a workbook that a program wrote and nobody opened."""
    for match in re.finditer(rb"<c ([^<>]*)><f[^<>]*(?:/>|>[^<]*</f>)(?:<v ?/>|<v></v>)?</c>", text):
        if b't="str"' not in match[1]:
            cell = re.search(rb'r="([A-Z]+\d+)"', match[1])
            name = cell[1].decode() if cell else "a cell"
            raise DataError(
                f"{path}, sheet {title!r}: the formula in {name} has no stored value.",
                hint="Open the workbook in a spreadsheet program and save it, or replace formulas with their values.",
            )


def _column_number(letters: str) -> int:
    """Return the position of a column, 0 for A."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _fill_merged(
    rows: Iterator[tuple[int, list[str]]], merged: dict[int, dict[int, int]]
) -> Iterator[tuple[int, list[str]]]:
    shown: dict[int, tuple[int, str]] = {}  # by the column: the last row that has this text
    for number, values in rows:
        for column, (last, text) in list(shown.items()):
            if number > last:
                del shown[column]
            else:
                values += [""] * (column + 1 - len(values))
                values[column] = text
        for column, last in merged.get(number, {}).items():
            shown[column] = last, values[column] if column < len(values) else ""
        while values and not values[-1].strip():
            values.pop()
        if values:
            yield number, values
