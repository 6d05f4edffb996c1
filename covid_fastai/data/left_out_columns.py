"""The columns of the data that a run has left out of its `cohort.csv`, and the option that keeps one."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from covid_fastai.data.cohort import COHORT_CSV, COHORT_JSON

__all__ = ["explain_left_out", "left_out_of"]


def explain_left_out(column: str, left_out: Collection[str]) -> str:
    """Return the hint for a column that a run has left out; "" for any other column.

    Args:
        column: The column that is missing.
        left_out: `facts.left_out` of the run's cohort.
    """
    if column not in left_out:
        return ""
    return f"The run left it out: train with keep_columns={[column]!r}, or read the data themselves."


def left_out_of(table: str | Path) -> tuple[str, ...]:
    """Return the columns that a run left out, if a table is its `cohort.csv`; empty for any other table."""
    described = Path(table).with_name(COHORT_JSON) if Path(table).name == COHORT_CSV else None
    if described is None or not described.is_file():
        return ()
    try:
        return tuple(json.loads(described.read_text(encoding="utf-8"))["info"].get("left_out", ()))
    except (OSError, ValueError, KeyError, AttributeError):
        return ()  # a file of another program, of which nothing is known
