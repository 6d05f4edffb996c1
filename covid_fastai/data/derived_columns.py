"""Add columns to the rows of data: those of another table, and the path that a template makes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from covid_fastai.config import check_row_options
from covid_fastai.data.joins import TableJoin
from covid_fastai.data.path_templates import fill_template
from covid_fastai.data.problems import ProblemLog

__all__ = ["DerivedColumns"]

PATH = "path"


class DerivedColumns:
    """The columns that options add to the rows of a table, which may come in parts.

    Args:
        path_column: The column with the path, None if it is not named.
        path_template: A template of `fill_template` that makes the path, or None.
        join: The other table of a `TableJoin`, or None.
        on: The key of the join, or None.
        encoding: The encoding of the other table, if it is not the one of its byte order mark or UTF-8.

    Attributes:
        path_column: The column with the path, None if it is to be found by its name.
        given: The names of the options that add columns.

    Raises:
        DataError: The other table cannot be read.
        UsageError: Options exclude each other, or one needs another.
    """

    def __init__(
        self,
        *,
        path_column: str | None = None,
        path_template: str | None = None,
        join: str | Path | None = None,
        on: str | None = None,
        encoding: str | None = None,
    ):
        check_row_options(path_column=path_column, path_template=path_template, join=join, on=on)
        self.path_column = path_column
        self.given: list[str] = []
        if path_template is not None:
            self.path_column, self.given = PATH, ["path_template"]
        self._template = path_template
        self._join = None
        if join is not None and on is not None:
            self.given.append("join")
            self._join = TableJoin(Path(join).expanduser(), on, encoding)

    def add(self, table: pd.DataFrame, *, where: str) -> pd.DataFrame:
        """Return rows with the added columns; a column `path` of the data becomes `path_given` beside a template.

        Args:
            table: The rows, values of text.
            where: The name of the data, for messages.

        Raises:
            DataError: As in `TableJoin.add_columns`.
            UsageError: As in `fill_template`.
        """
        if self._join is not None:
            table = self._join.add_columns(table, where=where)
        if self._template is None:
            return table
        paths = fill_template(self._template, table, where=where)
        table = table.rename(columns={PATH: f"{PATH}_given"})
        return table.assign(**{PATH: pd.Series(paths, index=table.index, dtype=str)})

    def finish(self, problems: ProblemLog, *, where: str) -> None:
        """Record the rows without a partner, after all rows.

        Args:
            problems: Receives the warning.
            where: The name of the data.

        Raises:
            DataError: No row has a partner.
        """
        if self._join is not None:
            self._join.report(problems, where=where)
