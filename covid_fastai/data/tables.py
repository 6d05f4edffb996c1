"""From a CSV file to rows of text: encodings, separators and ragged lines, with the line that each row stands on."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pandas as pd

from covid_fastai.data.problems import ProblemLog
from covid_fastai.errors import DataError, UsageError

__all__ = ["as_rows", "check_encoding", "read_table"]

SEPARATORS = ",;\t|"
# UTF-32 before UTF-16, whose mark it begins with
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
NOT_TABLES = {
    b"PK\x03\x04": "an Excel workbook or a ZIP archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"%PDF": "a PDF",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
}


def read_table(path: str | Path, *, encoding: str | None = None, problems: ProblemLog) -> pd.DataFrame:
    """Read a CSV file as text, every value as it stands there.

    Nothing is turned into a number or a missing value: `001`, `NA` and `None` stay what they are. The separator is
    the one of comma, semicolon, tab and bar that the header has most of.

    Args:
        path: The file.
        encoding: Its encoding; None for what its byte order mark says, else UTF-8.
        problems: Gets a `ragged_row` error for each line with another number of values than the header; those lines
            are not in the table.

    Returns:
        One row a line, all values `str`, indexed by the line number that an editor shows (the header is line 1).

    Raises:
        DataError: The file is missing, empty, no table, or not in that encoding.
        UsageError: There is no such encoding.
    """
    path = Path(path)
    lines = io.StringIO(_read_text(path, encoding), newline="")
    separator, skipped = _separator(lines)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header, rows, numbers, before = None, [], [], 0
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:  # guard: open_quote
            line = reader.line_num + skipped
            raise DataError(
                f"{path}, line {line}: {error}.", hint="Look for an opening quotation mark that is never closed."
            ) from None
        if values is None:
            break
        line, before = before + 1 + skipped, reader.line_num  # a quoted value may run over several lines
        if not any(value.strip() for value in values):
            continue
        if header is None:
            header = _header(values, path)
            continue
        while len(values) > len(header) and not values[-1].strip():
            values.pop()  # spreadsheets pad lines with empty cells
        if len(values) != len(header):  # guard: ragged
            problems.add(
                "ragged_row",
                row=line,
                path=values[0],
                reason=f"line {line} has {len(values)} values, the header has {len(header)}",
                remedy=f"Put quotation marks around a value that contains {separator!r}, or complete the line.",
            )
            continue
        rows.append(values)  # guard: as_text
        numbers.append(line)
    if header is None:  # guard: no_header
        raise DataError(f"{path} is empty.", hint="Give a CSV with a header and a line an image.")
    return pd.DataFrame(rows, columns=header, index=pd.Index(numbers, dtype=int), dtype=str)


def as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table whose columns are named by texts, each as its values by column."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def check_encoding(encoding: str) -> None:
    """Raise unless there is such a text encoding.

    Args:
        encoding: Its name, such as `"cp1252"`.

    Raises:
        UsageError: There is none.
    """
    try:
        b" ".decode(encoding)
    except LookupError:
        raise UsageError(f"encoding={encoding!r} is not known.", hint="Try 'utf-8', 'cp1252' or 'utf-16'.") from None
    except UnicodeError:  # one byte is no text in it
        pass


def _read_text(path: Path, encoding: str | None) -> str:
    if encoding is not None:
        check_encoding(encoding)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Check the path and the rights.") from error
    start = raw[:64].lstrip().lower()
    for magic, what in NOT_TABLES.items():
        if start.startswith(magic.lower()):  # guard: no_table
            raise DataError(f"{path} is {what}.", hint="Give a CSV file; spreadsheets can save one.")
    if encoding is None:
        # guard: bom
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeError as error:  # guard: not_text
        line = raw[: getattr(error, "start", 0)].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not {encoding} text.",
            hint="Name the encoding: encoding='cp1252' for a file of Excel on Windows, 'latin-1' or 'utf-16'.",
        ) from None
    if "\0" in text:  # guard: nul_bytes
        raise DataError(f"{path} contains NUL bytes.", hint="Is it UTF-16? Then name it: encoding='utf-16-le'.")
    return text.removeprefix("\ufeff")  # the mark that encodings without "-sig" leave in the first column's name


def _separator(lines: io.StringIO) -> tuple[str, int]:
    """Return the separator and how many lines stand before the header; leave `lines` at the header."""
    first = lines.readline()
    # guard: excel_sep
    if match := re.fullmatch(r'"?sep=(.)"?\s*', first, flags=re.IGNORECASE):  # Excel's own way to say it
        return match[1], 1
    while first and not first.strip():
        first = lines.readline()
    lines.seek(0)
    unquoted = re.sub(r'"[^"]*"', "", first)
    # guard: separator
    return max(SEPARATORS, key=unquoted.count), 0  # the first of equals, so a comma where there is none


def _header(values: list[str], path: Path) -> list[str]:
    """Return the columns' names, stripped; nameless ones as pandas calls them."""
    names = [value.strip() or f"Unnamed: {number}" for number, value in enumerate(values)]
    double = [name for name, n in Counter(names).items() if n > 1]
    if double:  # guard: double_column
        raise DataError(f"{path} has the column {double[0]!r} twice.", hint="Rename one of them.")
    return names
