"""Read a CSV file into rows of text with their line numbers; handles encodings, separators and ragged lines."""

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
# UTF-32 before UTF-16: the UTF-32 mark starts with the UTF-16 mark
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
    """Read a CSV file as text, with every value unchanged.

    No value becomes a number or a missing value: `001`, `NA` and `None` stay text. The separator is the most frequent
    of comma, semicolon, tab and bar in the header.

    Args:
        path: The file.
        encoding: Its encoding; None for the encoding of its byte order mark, or UTF-8 without one.
        problems: Receives a `ragged_row` error for each line whose number of values differs from the header's; those
            lines are not in the table.

    Returns:
        One row per line, all values `str`, indexed by the line number in an editor (the header is line 1).

    Raises:
        DataError: The file is missing or empty, is not a table, or has another encoding.
        UsageError: There is no such encoding.
    """
    path = Path(path)
    lines = io.StringIO(_read_text(path, encoding), newline="")
    separator, skipped = _separator(lines)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header, rows, numbers, lines_read = None, [], [], 0
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:  # guard: open_quote
            line = reader.line_num + skipped
            raise DataError(
                f"{path}, line {line}: {error}.", hint="Check for an opening quotation mark without a closing one."
            ) from None
        if values is None:
            break
        line, lines_read = lines_read + 1 + skipped, reader.line_num  # a quoted value can span several lines
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
                remedy=f"Quote values that contain {separator!r}, or complete the line.",
            )
            continue
        rows.append(values)  # guard: as_text
        numbers.append(line)
    if header is None:  # guard: no_header
        raise DataError(f"{path} is empty.", hint="Give a CSV with a header and one line per image.")
    return pd.DataFrame(rows, columns=header, index=pd.Index(numbers, dtype=int), dtype=str)


def as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries by column name, with a type that checkers know."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def check_encoding(encoding: str) -> None:
    """Raise `UsageError` for an unknown text encoding.

    Args:
        encoding: Its name, such as `"cp1252"`.

    Raises:
        UsageError: Python has no encoding of that name.
    """
    try:
        b" ".decode(encoding)
    except LookupError:
        raise UsageError(f"encoding={encoding!r} is not known.", hint="Try 'utf-8', 'cp1252' or 'utf-16'.") from None
    except UnicodeError:  # the encoding exists; one byte is not valid in it
        pass


def _read_text(path: Path, encoding: str | None) -> str:
    if encoding is not None:
        check_encoding(encoding)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the path and the permissions."
        ) from error
    start = raw[:64].lstrip().lower()
    for magic, file_type in NOT_TABLES.items():
        if start.startswith(magic.lower()):  # guard: no_table
            raise DataError(f"{path} is {file_type}.", hint="Give a CSV file; spreadsheets can save one.")
    if encoding is None:
        # guard: bom
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeError as error:  # guard: not_text
        line = raw[: getattr(error, "start", 0)].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not {encoding} text.",
            hint="Set the encoding: encoding='cp1252' for a file from Excel on Windows, 'latin-1' or 'utf-16'.",
        ) from None
    if "\0" in text:  # guard: nul_bytes
        raise DataError(f"{path} contains NUL bytes.", hint="If it is UTF-16, set encoding='utf-16-le'.")
    return text.removeprefix("\ufeff")  # encodings without "-sig" leave the byte order mark in the text


def _separator(lines: io.StringIO) -> tuple[str, int]:
    """Return the separator and the number of lines before the header, and move `lines` to the header."""
    first = lines.readline()
    # guard: excel_sep
    if match := re.fullmatch(r'"?sep=(.)"?\s*', first, flags=re.IGNORECASE):  # Excel's own separator line
        return match[1], 1
    while first and not first.strip():
        first = lines.readline()
    lines.seek(0)
    unquoted = re.sub(r'"[^"]*"', "", first)
    # guard: separator
    return max(SEPARATORS, key=unquoted.count), 0  # a comma if the header has no separator


def _header(values: list[str], path: Path) -> list[str]:
    """Return the stripped column names; empty ones are named as in pandas."""
    names = [value.strip() or f"Unnamed: {number}" for number, value in enumerate(values)]
    duplicates = [name for name, n in Counter(names).items() if n > 1]
    if duplicates:  # guard: double_column
        raise DataError(f"{path} has the column {duplicates[0]!r} twice.", hint="Rename one of them.")
    return names
