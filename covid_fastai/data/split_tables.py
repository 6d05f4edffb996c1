"""Tables of one split each in a folder, such as `train.csv` and `valid.csv`, read as one table."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.split_names import SPLITS
from covid_fastai.data.tables import read_table
from covid_fastai.data.tasks import fold_text

__all__ = ["find_split_tables", "read_split_tables"]

logger = logging.getLogger("covid_fastai")


def find_split_tables(tables: Sequence[Path]) -> dict[Path, str]:
    """Return the tables of a folder whose names differ in a word of a split alone, and the part of each.

    Args:
        tables: All tables of the folder.

    Returns:
        The part of each table; empty unless there is one of the training part and another, and no table beside them.
    """
    parts: dict[Path, str] = {}
    others = set()
    for table in tables:
        words = re.split(r"([-_. ]+)", table.stem)
        known = [number for number, word in enumerate(words) if SPLITS.get(fold_text(word), "excluded") != "excluded"]
        if len(known) != 1:
            return {}
        parts[table] = SPLITS[fold_text(words[known[0]])]
        others.add("".join([*words[: known[0]], "*", *words[known[0] + 1 :], *table.suffixes]).casefold())
    complete = "train" in parts.values() and len(set(parts.values())) == len(parts) > 1
    return parts if complete and len(others) == 1 else {}


def read_split_tables(
    parts: dict[Path, str], *, encoding: str | None, known: Sequence[str], problems: ProblemLog
) -> pd.DataFrame | None:
    """Read the tables of a split as one, with the part of each row in the column `split`.

    Args:
        parts: Result of `find_split_tables`.
        encoding: As in `read_table`.
        known: As in `read_table`.
        problems: Receives the problems of lines.

    Returns:
        The rows, indexed by their lines; None if the tables have other columns, or a column `split` of their own.
    """
    tables = {file: read_table(file, encoding=encoding, known=known, problems=problems) for file in parts}
    columns = [list(table.columns) for table in tables.values()]
    if any(names != columns[0] for names in columns) or "split" in columns[0]:
        return None
    logger.info(
        "The tables of the official split are read together: %s.",
        ", ".join(f"{file.name} ({parts[file]}, {len(table):,} rows)" for file, table in tables.items()),
    )
    return pd.concat([table.assign(split=parts[file]) for file, table in tables.items()])
