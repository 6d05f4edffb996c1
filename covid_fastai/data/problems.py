"""What is wrong with rows: one record a fault, with file, row, reason and remedy."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from covid_fastai.errors import DataError

__all__ = ["PROBLEM_COLUMNS", "ProblemLog", "SEVERITIES"]

PROBLEM_COLUMNS = ["row", "path", "kind", "severity", "reason", "remedy"]
SEVERITIES = ("error", "warning", "note")  # an error keeps a row from being used; a note is only worth knowing
SHOWN = 8  # kinds of fault that stand in the message itself; every row is in its details


class ProblemLog:
    """Collect the faults of a whole data set before anything is raised.

    Attributes:
        rows: The problems so far, as dictionaries with the keys `PROBLEM_COLUMNS`.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self, kind: str, *, reason: str, remedy: str, row: int | None = None, path: str = "", severity: str = "error"
    ) -> None:
        """Record one problem.

        Args:
            kind: One word, e.g. `missing_file`.
            reason: What is wrong.
            remedy: What to do about it.
            row: Line in the CSV, None where there is none.
            path: The image.
            severity: One of `SEVERITIES`.
        """
        row = None if row is None else int(row)
        values = (row, printable(path), kind, severity, printable(reason), printable(remedy))
        self.rows.append(dict(zip(PROBLEM_COLUMNS, values, strict=True)))

    def errors(self) -> list[dict[str, Any]]:
        """Return the problems that keep a row from being used, by row."""
        rows = [row for row in self.rows if row["severity"] == "error"]
        return sorted(rows, key=lambda row: (row["row"] is None, row["row"] or 0, row["path"]))

    def raise_errors(self, data: str | Path) -> None:
        """Raise one `DataError` that holds all errors; do nothing where there are none."""
        errors = self.errors()
        if not errors:
            return
        alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in errors:
            alike.setdefault((row["kind"], row["reason"]), []).append(row)
        lines = [f"  {_where(rows)}{rows[0]['reason']}. {rows[0]['remedy']}" for rows in list(alike.values())[:SHOWN]]
        lines += ["  ..."] if len(alike) > SHOWN else []
        faults = "1 fault" if len(errors) == 1 else f"{len(errors)} faults"
        raise DataError(
            "\n".join([f"{data} has {faults}: {count_kinds(errors)}.", *lines, ""]),
            hint='Mend them, or say on_problem="skip" to leave those rows out and have them listed.',
            details=errors,
        )


def count_kinds(rows: list[dict[str, Any]]) -> str:
    """Return the problems' kinds in words, e.g. `2 unreadable, 1 missing file`."""
    counts = Counter(row["kind"] for row in rows)
    return ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in counts.most_common())


def printable(text: str) -> str:
    """Return `text` with what cannot be written as UTF-8 escaped: file names may hold any bytes."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _where(rows: list[dict[str, Any]]) -> str:
    """Name the first of rows with the same fault, and say how many more there are."""
    first, more = rows[0], f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    parts = [f"line {first['row']}" if first["row"] is not None else "", os.path.basename(first["path"])]
    return ", ".join(part for part in parts if part) + more + ": "
