"""Find the header of a table: lines before it, a header that is missing, and columns by their position."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from covid_fastai.data.columns import is_usual_name
from covid_fastai.data.image_files import has_image_suffix
from covid_fastai.errors import DataError

__all__ = ["Header", "MOST", "find_header", "names_image", "position_of_images"]

logger = logging.getLogger("covid_fastai")

MOST_TITLES = 10  # lines before the header
MOST = 0.9  # fraction of the rows that decides what a column holds
FEW = 20  # distinct values of a column of classes
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}


@dataclass(frozen=True)
class Header:
    """The names of a table's columns.

    Attributes:
        names: Unique names, stripped; a column without a name is `Unnamed: <number>`.
        rows: The number of rows up to and including the header, which hold no data.
    """

    names: list[str]
    rows: int


def find_header(
    rows: Sequence[Sequence[str]],
    *,
    where: str,
    numbers: Sequence[int],
    known: Collection[str] = (),
    blank_separated: bool = False,
) -> Header:
    """Find the header among the first rows of a table.

    Rows of one value before a wider table are titles. The first row is data, and not a header, if it names an image,
    has a number where all other rows have one, or has a value that other rows repeat; unless it has a usual name of a
    column. Without a header, columns are named by what they hold as far as that is known, else `column 1`, `column 2`.

    Args:
        rows: The first rows with content; at least one.
        where: The table's name, for messages.
        numbers: The line of each row.
        known: Names of columns that the user has given, which a header has.
        blank_separated: Whether blanks separate the values, as in the lists of COVIDx.

    Raises:
        DataError: Two columns have the same name.
    """
    titles = _count_titles(rows, known)
    if titles:
        skipped = "; ".join(next(value for value in row if value.strip()).strip()[:60] for row in rows[:titles])
        logger.warning("%s: the lines before the header in line %d were skipped: %s.", where, numbers[titles], skipped)
    first, others = rows[titles], rows[titles + 1 :]
    if is_header(first, others, known):
        return Header(_column_names(first, where), titles + 1)
    names = _names_by_position(rows[titles:], blank_separated=blank_separated)
    listed = ", ".join(f"{name} = {number}" for number, name in enumerate(names, start=1))
    logger.warning(
        "%s has no header line; its columns by position: %s. A first line of names replaces them.", where, listed
    )
    return Header(names, titles)


def is_header(first: Sequence[str], others: Sequence[Sequence[str]], known: Collection[str]) -> bool:
    """Return whether the first row of a table holds names of columns rather than data.

    Args:
        first: The row.
        others: The rows that follow it.
        known: Names of columns that the user has given.
    """
    if any(map(names_image, first)):
        return False
    if any(is_usual_name(value) or value.strip() in known for value in first):
        return True
    if position_of_images(others) is not None:  # images begin below the first row
        return True
    for number, value in enumerate(first):
        column = [row[number].strip() for row in others if number < len(row) and row[number].strip()]
        if column and _is_number(value) and all(map(_is_number, column)):
            return False
        if value.strip() in column and list(first) not in [list(row) for row in others]:
            return False
    return True


def names_image(value: str) -> bool:
    """Return whether a value ends like the name of an image file.

    Args:
        value: A cell.
    """
    return has_image_suffix(value.strip())


def position_of_images(rows: Sequence[Sequence[str]]) -> int | None:
    """Return the position of the only column that names images in most rows; None if there is none, or several.

    Args:
        rows: Rows of data.
    """
    width = max(map(len, rows), default=0)
    counts = [sum(number < len(row) and names_image(row[number]) for row in rows) for number in range(width)]
    positions = [number for number, count in enumerate(counts) if count and count >= MOST * len(rows)]
    return positions[0] if len(positions) == 1 else None


def _count_titles(rows: Sequence[Sequence[str]], known: Collection[str]) -> int:
    """Return the number of rows of one value before a table of several columns."""
    filled = [[value for value in row if value.strip()] for row in rows]
    width = Counter(map(len, filled)).most_common(1)[0][0]
    for number, values in enumerate(filled[: MOST_TITLES + 1]):
        if len(values) > 1:
            named = any(is_usual_name(value) or value.strip() in known for value in values)
            return number if width > 1 or named else 0
        if names_image(values[0]) or is_usual_name(values[0]) or values[0].strip() in known:
            return 0
    return 0


def _names_by_position(rows: Sequence[Sequence[str]], *, blank_separated: bool) -> list[str]:
    width = Counter(map(len, rows)).most_common(1)[0][0]
    names = [f"column {number}" for number in range(1, width + 1)]
    path = position_of_images(rows)
    if path is None:
        return names
    names[path] = "path"
    columns = [[row[number].strip() for row in rows if number < len(row)] for number in range(width)]
    if width == 2:
        names[1 - path] = "label"
    elif path == 1 and width in (3, 4) and blank_separated and len(set(columns[2])) <= FEW:
        # the lists of COVIDx: patientid filename class source
        names = ["patientid", "filename", "class", "source"][:width]
        if _counts_rows(columns[0]):
            names[0] = "column 1"
        if width == 4 and {value.casefold() for value in columns[3]} <= SPLIT_WORDS:
            names[3] = "split"
    return names


def _counts_rows(values: Sequence[str]) -> bool:
    """Return whether values are consecutive numbers, which count rows and identify nobody."""
    numbers = [int(value) for value in values if value.isdecimal()]
    return len(numbers) == len(values) > 1 and all(b - a == 1 for a, b in zip(numbers, numbers[1:], strict=False))


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?", value.strip()) is not None


def _column_names(values: Sequence[str], where: str) -> list[str]:
    """Return the stripped column names; empty ones are named as in pandas."""
    names = [value.strip() or f"Unnamed: {number}" for number, value in enumerate(values)]
    duplicates = [name for name, n in Counter(names).items() if n > 1]
    if duplicates:  # guard: double_column
        raise DataError(f"{where} has the column {duplicates[0]!r} twice.", hint="Rename one of them.")
    return names
