"""Record the problems of rows: one record per problem, with file, row, reason and remedy."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from covid_fastai.errors import DataError

__all__ = ["CONTROLS", "PROBLEM_COLUMNS", "ProblemLog", "SEVERITIES", "count_kinds", "no_row_left", "printable"]
__all__ += ["visible"]

PROBLEM_COLUMNS = ["row", "path", "kind", "severity", "reason", "remedy"]
SEVERITIES = ("error", "warning", "note")  # a row with an error is not used; a note is for information
# What a terminal obeys (C0 and C1), and what turns the text around it: line separators, marks of the direction.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SHOWN = 8  # faults in the message; the details have all of them


class ProblemLog:
    """Collect the problems of a whole data set before an error is raised.

    Attributes:
        rows: The problems so far, as dictionaries with the keys `PROBLEM_COLUMNS`.
        hints: Remedies of many errors at once, for the message.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.hints: list[str] = []

    def add(
        self, kind: str, *, reason: str, remedy: str, row: int | None = None, path: str = "", severity: str = "error"
    ) -> None:
        """Record one problem.

        Args:
            kind: One word, e.g. `missing_file`.
            reason: What is wrong.
            remedy: What to do.
            row: Line in the CSV; None for data without lines.
            path: The image.
            severity: One of `SEVERITIES`.
        """
        row = None if row is None else int(row)
        values = (row, printable(path), kind, severity, visible(reason), visible(remedy))
        self.rows.append(dict(zip(PROBLEM_COLUMNS, values, strict=True)))

    def errors(self) -> list[dict[str, Any]]:
        """Return the problems with the severity `error`, sorted by row."""
        rows = [row for row in self.rows if row["severity"] == "error"]
        return sorted(rows, key=lambda row: (row["row"] is None, row["row"] or 0, row["path"]))

    def raise_errors(self, data: str | Path) -> None:
        """Raise one `DataError` with all errors in its details; do nothing if there are none."""
        errors = self.errors()
        if not errors:
            return
        faults = "1 fault" if len(errors) == 1 else f"{len(errors)} faults"
        raise DataError(
            "\n".join([f"{data} has {faults}: {count_kinds(errors)}.", *_list_faults(errors), ""]),
            hint=" ".join(['Fix them, or set on_problem="skip" to leave out those rows and list them.', *self.hints]),
            details=errors,
        )


def no_row_left(data: str | Path, errors: list[dict[str, Any]]) -> DataError:
    """Return the error for data of which every row is left out, with the first reasons.

    Args:
        data: The name of the data.
        errors: The faulty rows, as in `DataError.details`.
    """
    lines = [f"{data}: no row is left, since all of them have a fault: {count_kinds(errors)}.", *_list_faults(errors)]
    return DataError("\n".join([*lines, ""]), hint="Fix the rows.", details=errors)


def _list_faults(errors: list[dict[str, Any]]) -> list[str]:
    """Return a line for each of the first faults of different kinds or reasons."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in errors:
        groups.setdefault((row["kind"], row["reason"]), []).append(row)
    lines = [f"  {_where(rows)}{rows[0]['reason']}. {rows[0]['remedy']}" for rows in list(groups.values())[:SHOWN]]
    return lines + (["  ..."] if len(groups) > SHOWN else [])


def count_kinds(rows: list[dict[str, Any]]) -> str:
    """Return the number of problems of each kind as text, e.g. `2 unreadable, 1 missing file`."""
    counts = Counter(row["kind"] for row in rows)
    return ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in counts.most_common())


def printable(text: str) -> str:
    """Return `text` with escapes for everything that UTF-8 cannot encode; file names can have any bytes."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str, *, lines: bool = False) -> str:
    """Return a text with escapes for all that a terminal obeys or hides: a file name can have any characters.

    Args:
        text: A name, or text that contains names.
        lines: Whether newlines and tabs stay, as in text of several lines.
    """
    return CONTROLS.sub(lambda found: _escape(found[0], lines), printable(text))  # guard: control_characters


def _escape(character: str, lines: bool) -> str:
    return character if lines and character in "\n\t" else character.encode("unicode_escape").decode()


def _where(rows: list[dict[str, Any]]) -> str:
    """Return the line and file of the first of the rows with the same fault, and the number of further rows."""
    first, more = rows[0], f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    parts = [f"line {first['row']}" if first["row"] is not None else "", visible(os.path.basename(first["path"]))]
    return ", ".join(part for part in parts if part) + more + ": "
