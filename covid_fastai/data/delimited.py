"""Read text with separated values as rows, with the line numbers that an editor shows."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from covid_fastai.data.columns import is_usual_name
from covid_fastai.data.headers import MOST, names_image, position_of_images
from covid_fastai.data.table_formats import COMPRESSION_ERRORS, damaged, first_bytes, open_table
from covid_fastai.errors import DataError, UsageError
from covid_fastai.files import unescape_cell

__all__ = ["BLANK", "DelimitedText", "check_encoding"]

SEPARATORS = ",;\t|"
BLANK = " "  # one or more blanks or tabs
LONGEST_LINE = 10_000_000  # characters; a row of a thousand columns has some ten thousand
SAMPLE = 200  # lines that show the separator
# UTF-32 before UTF-16: the UTF-32 mark starts with the UTF-16 mark
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


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


class DelimitedText:
    """The rows of a text file with separated values, read one by one.

    The separator is the one of comma, semicolon, tab and bar that the first line has; of several, the one that divides
    most lines into the same number of values. Without any of them, blanks separate the values if all lines have
    equally many.

    Args:
        file: The bytes of the file.
        path: The file, for messages, and for a second look at it if it is not text.
        encoding: Its encoding; None for the encoding of its byte order mark, or UTF-8 without one.
        known: Names of columns that the user has given.

    Attributes:
        separator: The separator, or `BLANK`.

    Raises:
        DataError: The file has another encoding.
        UsageError: There is no such encoding.
    """

    def __init__(self, file: BinaryIO, path: Path, *, encoding: str | None = None, known: Collection[str] = ()):
        if encoding is None:
            # guard: bom
            head = first_bytes(file)
            encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")
        else:
            check_encoding(encoding)
        self.path, self.encoding = path, encoding
        self._lines = self._decode(file)
        sample = list(islice(self._lines, SAMPLE))
        # guard: excel_sep
        declared = re.fullmatch(r'"?sep=(.)"?\s*', sample[0], flags=re.IGNORECASE) if sample else None  # Excel's own
        self._skipped = 1 if declared else 0
        self._lines = chain(sample[self._skipped :], self._lines)
        self.separator = declared[1] if declared else _choose_separator(sample, known, path.parent)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line number and the values of each row with content.

        Raises:
            DataError: A quotation mark is not closed, or the text has NUL bytes or bytes of another encoding.
        """
        if self.separator == BLANK:
            yield from self._split_at_blanks()
            return
        reader = csv.reader(self._lines, delimiter=self.separator, strict=True)
        lines_read = 0
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:  # guard: open_quote
                line = reader.line_num + self._skipped
                raise DataError(
                    f"{self.path}, line {line}: {error}.",
                    hint="Check for an opening quotation mark without a closing one.",
                ) from None
            if values is None:
                return
            line, lines_read = lines_read + 1 + self._skipped, reader.line_num  # a quoted value can span several lines
            if (values and values[0].strip()) or any(value.strip() for value in values):  # the first is faster
                # an apostrophe stands before what a spreadsheet would run, here and in other programs' tables
                yield line, [unescape_cell(value) if "'" in value else value for value in values]

    def _split_at_blanks(self) -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(self._lines, start=1 + self._skipped):
            values = _split_line(line)
            if values:
                yield number, values

    def _decode(self, file: BinaryIO) -> Iterator[str]:
        try:
            with io.TextIOWrapper(file, encoding=self.encoding, newline="") as text:
                # a compressed file of a few KB can have a line of gigabytes
                for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), "")):
                    if len(line) == LONGEST_LINE:  # guard: long_line
                        raise DataError(
                            f"{self.path}, line {number + 1}: it has {LONGEST_LINE:,} characters or more.",
                            hint="Check that the file is a table with one row per image.",
                        )
                    if "\0" in line:  # guard: nul_bytes
                        raise DataError(
                            f"{self.path} contains NUL bytes.",
                            hint="If it is UTF-16, set encoding='utf-16-le' or 'utf-16-be'; else it is no table.",
                        )
                    # encodings without "-sig" leave the byte order mark in the text
                    yield line.removeprefix("\ufeff") if number == 0 else line
        except UnicodeError:  # guard: not_text
            raise DataError(
                f"{self.path}, line {self._undecodable_line()}: not {self.encoding} text.",
                hint="Set the encoding: encoding='cp1252' for a file from Excel on Windows, 'latin-1' or 'utf-16'.",
            ) from None
        except (OSError, *COMPRESSION_ERRORS) as error:
            raise damaged(self.path, error) from None

    def _undecodable_line(self) -> int:
        """Return the line with the first byte that the encoding does not have."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        line = 1
        with open_table(self.path) as table:
            while chunk := table.file.read(1 << 16):
                try:
                    line += decoder.decode(chunk).count("\n")
                except UnicodeError as error:
                    valid = getattr(error, "object", chunk)[: getattr(error, "start", 0)]
                    return line + codecs.decode(valid, self.encoding, "ignore").count("\n")
        return line  # the last line, which ends in the middle of a character


def _split_line(line: str) -> list[str]:
    """Return the values of a line that are separated by blanks; quotation marks keep blanks in a value."""
    if '"' not in line:
        return line.split()
    parts = line.strip().split('"')
    outside = (len(parts) - 1) % 2  # of the quotation marks, as seen from the end of the line
    parts[outside::2] = [re.sub(r"\s+", " ", part) for part in parts[outside::2]]
    return next(csv.reader(['"'.join(parts)], delimiter=" "))


def _choose_separator(sample: Sequence[str], known: Collection[str], folder: Path) -> str:
    lines = [line for line in sample if line.strip()]
    if not lines:
        return ","
    widths = {separator: [len(row) for row in _parse(lines, separator)] for separator in SEPARATORS}
    unquoted = re.sub(r'"[^"]*"', "", lines[0])
    # guard: separator
    counts = {separator: unquoted.count(separator) for separator in SEPARATORS}
    present = [separator for separator in SEPARATORS if counts[separator]]
    if present:
        return max(present, key=lambda separator: (_same(widths[separator], widths[separator][0]), counts[separator]))
    if lines[1:] and not is_usual_name(lines[0]) and lines[0].strip() not in known and not names_image(lines[0]):
        # a title without separators above the table
        rest = {separator: widths[separator][1:] or [1] for separator in SEPARATORS}  # a value can span all lines
        common = {separator: Counter(rest[separator]).most_common(1)[0][0] for separator in SEPARATORS}
        best = max(
            SEPARATORS, key=lambda separator: _same(widths[separator], common[separator]) * (common[separator] > 1)
        )
        if common[best] > 1:
            return best
    return BLANK if _is_blank_separated(lines, known, folder) else ","


def _parse(lines: Sequence[str], separator: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(lines, delimiter=separator) if row]
    except csv.Error:  # a value of more than 128 KB
        return [line.split(separator) for line in lines]


def _same(widths: Sequence[int], width: int) -> float:
    """Return the fraction of rows of that width."""
    return sum(other == width for other in widths) / max(1, len(widths))


def _is_blank_separated(lines: Sequence[str], known: Collection[str], folder: Path) -> bool:
    """Return whether blanks separate values; they can also belong to the names in a list of one column."""
    rows = [_split_line(line) for line in lines]
    width = len(rows[0])
    if width < 2 or _same([len(row) for row in rows], width) < MOST:
        return False
    if is_usual_name(lines[0]) or lines[0].strip() in known:  # a header such as "Image Index"
        return False
    if sum(map(is_usual_name, rows[0])) > 1 or any(name in known for name in rows[0]):
        return True
    position = position_of_images(rows if names_image(rows[0][-1]) or any(map(names_image, rows[0])) else rows[1:])
    if position == width - 1:  # "scan 1.png" is a name, or "1.png" the image of the patient "scan"
        return any(os.path.isfile(folder / row[-1]) for row in rows[:20])
    return True
