"""Add the columns of another table to the rows that have the same key."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from covid_fastai.data.columns import suggest_column
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.tables import as_rows, read_table
from covid_fastai.errors import DataError

__all__ = ["TableJoin"]

logger = logging.getLogger("covid_fastai")


@dataclass
class TableJoin:
    """Another table whose columns are added to rows by a key. Each row of the data has one partner at most.

    Columns of both tables have the name and the values of the data; those of the other table get the suffix `_joined`.

    Args:
        path: The other table.
        on: The key: a column of both tables, `LEFT=RIGHT` for a column of the data and one of the other table, or
            several of them with commas between.
        encoding: The encoding of the other table, if it is not the one of its byte order mark or UTF-8.

    Raises:
        DataError: The other table cannot be read or has no such column.
    """

    path: Path
    on: str
    encoding: str | None = None
    _rows: int = 0
    _without: int = 0
    _example: tuple[str, int] | None = None
    _used: set[tuple[str, ...]] = field(default_factory=set)
    _differing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        pairs = [pair.split("=", 1) for pair in self.on.split(",")]
        right = [pair[-1].strip() for pair in pairs]
        known = [self.on, *right]
        self.other = self._read(known)
        if self.on in self.other:  # a name that contains = or a comma
            pairs, right = [[self.on]], [self.on]
        self.left = [pair[0].strip() for pair in pairs]
        self.right = right
        for column in right:
            _check_column(self.other, column, str(self.path))
        self.other = self.other.assign(**{name: self.other[name].str.strip() for name in right})
        self.other = self.other[(self.other[right] != "").all(axis=1)]
        self._position = {key: number for number, key in enumerate(_keys(self.other, right))}  # the last of each key
        self._check_unique = self.other.duplicated(right, keep=False).any()

    def _read(self, known: list[str]) -> pd.DataFrame:
        problems = ProblemLog()
        try:
            table = read_table(self.path, known=known, problems=problems)
        except DataError:
            if self.encoding is None:
                raise
            problems = ProblemLog()
            table = read_table(self.path, encoding=self.encoding, known=known, problems=problems)
        problems.raise_errors(self.path)  # a row that is left out would look like one that is not there
        return table

    def add_columns(self, table: pd.DataFrame, *, where: str) -> pd.DataFrame:
        """Return rows of the data with the columns of the other table, `""` for rows without a partner.

        Args:
            table: Rows, values of text; may be a part of the data.
            where: The name of the data, for messages.

        Raises:
            DataError: The data have no such column, or a key has several partners that differ.
        """
        for column in self.left:
            _check_column(table, column, where)
        stripped = pd.DataFrame({name: table[name].str.strip() for name in self.left})
        keys = list(_keys(stripped, self.left))
        if self._check_unique:
            self._refuse_ambiguous(set(keys))
        positions = [self._position.get(key, -1) for key in keys]
        self._count(table, keys, positions)
        columns = {}
        for name in map(str, self.other):
            if name in self.right and self.left[self.right.index(name)] == name:
                continue
            values = self.other[name].tolist()
            joined = [values[position] if position >= 0 else "" for position in positions]
            columns[self._name_of(name, joined, table)] = joined
        return pd.concat([table, pd.DataFrame(columns, index=table.index, dtype=str)], axis=1)

    def report(self, problems: ProblemLog, *, where: str) -> None:
        """Record, and log, how many rows have no partner; to be called after all rows.

        Args:
            problems: Receives a `no_partner` warning, if there are such rows.
            where: The name of the data.

        Raises:
            DataError: No row has a partner.
        """
        key = ", ".join(self.left)
        unused = len(set(self._position) - self._used)
        if self._differing:
            names = ", ".join(map(repr, sorted(self._differing)))
            logger.warning(
                "%s and %s both have %s, with different values: those of %s are used, the others have the suffix "
                "_joined.",
                *(where, self.path, names, where),
            )
        logger.info(
            "%s joined on %s: %d of %d rows have a partner; %d keys of it are not used.",
            *(self.path, self.on, self._rows - self._without, self._rows, unused),
        )
        if self._example is None:
            return
        value, line = self._example
        if self._without == self._rows:  # guard: nothing_joined
            others = [key[0] for key in list(self._position)[:1]]
            raise DataError(
                f"No row of {where} has a partner in {self.path}: {key} is for example {value!r} (line {line}), "
                f"{', '.join(self.right)} in the other table {' '.join(map(repr, others)) or 'always empty'}.",
                hint="Give the columns with the same values: on='LEFT=RIGHT'.",
            )
        problems.add(
            "no_partner",
            severity="warning",
            reason=f"{self._without} of {self._rows} rows have no partner in {self.path}, such as {key} {value!r} "
            f"(line {line}); its columns are empty there",
            remedy="Add the rows to the other table, or check the key.",
        )
        logger.warning("%s: %d of %d rows have no partner in %s.", where, self._without, self._rows, self.path)

    def _count(self, table: pd.DataFrame, keys: list[tuple[str, ...]], positions: list[int]) -> None:
        self._rows += len(keys)
        self._used.update(key for key, position in zip(keys, positions, strict=True) if position >= 0)
        without = [number for number, position in enumerate(positions) if position < 0]
        self._without += len(without)
        if without and self._example is None:
            self._example = ", ".join(keys[without[0]]), table.index.tolist()[without[0]]

    def _name_of(self, name: str, joined: list[str], table: pd.DataFrame) -> str:
        """Return the name of a joined column, and note a column of both tables whose values differ."""
        if name not in table:
            return name
        if any(b and a.strip() != b.strip() for a, b in zip(table[name], joined, strict=True)):
            self._differing.add(name)
        while name in table:
            name += "_joined"
        return name

    def _refuse_ambiguous(self, keys: set[tuple[str, ...]]) -> None:
        """Raise if a key of the data has several partners that differ in any column."""
        repeated = self.other[self.other.duplicated(self.right, keep=False)].drop_duplicates()
        lines: dict[tuple[str, ...], list[int]] = {}
        for key, line in zip(_keys(repeated, self.right), repeated.index.tolist(), strict=True):
            lines.setdefault(key, []).append(line)
        for key, found in lines.items():
            if len(found) > 1 and key in keys:  # guard: ambiguous_key
                first, second = as_rows(repeated.loc[found[:2]])
                name = next(name for name in first if first[name] != second[name])
                raise DataError(
                    f"{self.path} has {len(found)} different rows for {', '.join(self.right)} {', '.join(key)!r}, such "
                    f"as lines {found[0]} and {found[1]} ({name} {first[name]!r} and {second[name]!r}).",
                    hint="Keep one row per key, or join on a key that identifies rows.",
                )


def _keys(table: pd.DataFrame, columns: list[str]) -> zip[tuple[str, ...]]:
    return zip(*(table[name] for name in columns), strict=True)


def _check_column(table: pd.DataFrame, column: str, where: str) -> None:
    if column not in table:
        raise DataError(f"{where} has no column {column!r} to join on.", hint=suggest_column(column, table, where))
