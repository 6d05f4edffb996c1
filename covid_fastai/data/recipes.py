"""Recipes: the settings with which well-known public data sets are read as they are unpacked.

`recipes.toml` holds them. A recipe names files and columns; it guesses nothing. Where a file that it needs is missing,
an error says which, what it holds and where it comes from.
"""

from __future__ import annotations

import difflib
import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.data.layouts import holds_runs_only
from covid_fastai.errors import DataError, UsageError

__all__ = ["Recipe", "RecipeJoin", "RecipeTable", "get_recipe", "list_recipes", "recognise_recipe", "suggest_recipe"]

DEPTH = 2  # folders below the named one in which a data set is recognised, as archives unpack into folders of their own
FEW = 20  # folders; one that holds more is a collection of patients or studies, and no unpacked archive


@dataclass(frozen=True)
class RecipeTable:
    """A table with one row for each image, or for each box, in a recipe.

    Attributes:
        file: The pattern of the file.
        split: The part of the official split that all rows belong to; "" if the table does not stand for one.
        folder: The folder that the names of the images are relative to; "" for that of the table.
        columns: The names of the columns of a list without a header.
        rename: The names of columns that mean something else than theirs, such as RSNA's `patientId`, an image.
        remove: The ending that is removed from the values of a column.
        append: The ending that is appended to the values of a column.
        optional: Whether the data may lack it.
    """

    file: str
    split: str = ""
    folder: str = ""
    columns: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    remove: Mapping[str, str] = field(default_factory=dict)
    append: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class RecipeJoin:
    """A table whose columns are added by a key.

    Attributes:
        file: The pattern of the file.
        on: The key column, or `LEFT=RIGHT`.
    """

    file: str
    on: str


@dataclass(frozen=True)
class Recipe:
    """How a public data set is read.

    Attributes:
        name: The name for `recipe=` and `--recipe`.
        title: The name of the data set.
        signature: Patterns of files that together identify the data set.
        files: What the files that it needs hold, by pattern.
        source: Where the data come from.
        citation: The publication.
        terms: The terms of use, in one sentence; the source has the binding ones.
        notes: What a user has to know about the data.
        options: Options of `read_cohort`.
        example: Options that a user adds, such as a finding.
        tables: The tables with one row for each image, which are read one after the other; empty for folders.
        joins: The tables that are joined to them by a key.
        folder: For data without a table: the pattern of the folder to read; "" for the data set's own.
        finding: Whether the user has to name the classes, as the data have many findings.
    """

    name: str
    title: str
    signature: tuple[str, ...]
    files: Mapping[str, str]
    source: str
    citation: str
    terms: str
    notes: str
    options: Mapping[str, Any] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[RecipeTable, ...] = ()
    joins: tuple[RecipeJoin, ...] = ()
    folder: str = ""
    finding: bool = False

    def command(self, data: str | Path, *, verb: str = "train") -> str:
        """Return the command that reads the data set.

        Args:
            data: Its folder.
            verb: train, check or explore.
        """
        words = ["covid-fastai", verb, str(data), "--recipe", self.name]
        for name, value in self.example.items():
            if verb == "train" or name != "split":
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)

    def find_root(self, data: str | Path) -> Path | None:
        """Return the folder of the data set: the named one, that of the named file, or one within; None if it is none.

        Args:
            data: A folder, or a file of the data set.
        """
        path = Path(data).expanduser()
        if path.is_file():
            path = path.parent
        return next((folder for folder in _folders(path) if self._is_signed(folder)), None)

    def _is_signed(self, folder: Path) -> bool:
        return all(_exists(folder, pattern) for pattern in self.signature)

    def require(self, data: str | Path) -> Path:
        """Return the folder of the data set, which has all files that the recipe needs.

        Args:
            data: As in `find_root`.

        Raises:
            DataError: A file is missing.
        """
        path = Path(data).expanduser()
        if not path.exists():
            raise DataError(f"{data} does not exist.", hint=f"{self.title} comes from {self.source}.")
        root = self.find_root(path) or (path.parent if path.is_file() else path)
        missing = {pattern: content for pattern, content in self.files.items() if not _exists(root, pattern)}
        if missing:  # guard: recipe_files
            listed = "; ".join(f"{pattern.replace('|', ' or ')} ({content})" for pattern, content in missing.items())
            raise DataError(
                f"{root} lacks what the recipe {self.name} needs: {listed}.",
                hint=f"{self.title} comes from {self.source}. Name the folder that it was unpacked into.",
            )
        if self.find_root(path) is None:
            raise DataError(
                f"{root} is not {self.title}: it lacks {self._first_unsigned(root)}.",
                hint=f"{self.title} comes from {self.source}. Without a recipe, name the columns of the data.",
            )
        return root

    def _first_unsigned(self, root: Path) -> str:
        return next(pattern for pattern in self.signature if not _exists(root, pattern)).replace("|", " or ")


def get_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Args:
        name: A name that `list_recipes` has.

    Raises:
        UsageError: There is no such recipe.
    """
    recipes = _read_recipes()
    if name not in recipes:
        near = difflib.get_close_matches(str(name).casefold(), recipes, n=1, cutoff=0.4)
        meant = f"Did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"There is no recipe {name!r}.", hint=f"{meant}Recipes: {', '.join(recipes)}.")
    return recipes[name]


def list_recipes() -> pd.DataFrame:
    """List the public data sets that have a recipe.

    Returns:
        One row per recipe: `recipe` (the name for `recipe=` and `--recipe`), `title`, `command` (to train on its
        folder), `files` (that it needs), `source`, `citation`, `terms` and `notes`.

    Examples:
        >>> list_recipes().set_index("recipe").loc["nih-chestxray14", "command"]
        'covid-fastai train FOLDER --recipe nih-chestxray14 --positive Pneumonia'
    """
    rows = []
    for recipe in _read_recipes().values():
        needed = "; ".join(f"{pattern.replace('|', ' or ')}: {content}" for pattern, content in recipe.files.items())
        row = {"recipe": recipe.name, "title": recipe.title, "command": recipe.command("FOLDER"), "files": needed}
        rows.append(row | {name: getattr(recipe, name) for name in ("source", "citation", "terms", "notes")})
    return pd.DataFrame(rows)


def recognise_recipe(data: object) -> Recipe | None:
    """Return the recipe of the data set in a folder, None if it is no known one or could be several.

    Args:
        data: A folder or a file; anything else is no known data set.
    """
    if not isinstance(data, str | Path) or not Path(data).expanduser().exists():
        return None
    if holds_runs_only(Path(data).expanduser()):  # the drawings of `demo` beside its run have a known layout
        return None
    found = [recipe for recipe in _read_recipes().values() if recipe.find_root(data) is not None]
    return found[0] if len(found) == 1 else None


@contextmanager
def suggest_recipe(data: object) -> Iterator[None]:
    """Add the recipe of a known data set to the hint of an error that was raised while it was read.

    Args:
        data: What was read.
    """
    try:
        yield
    except DataError as error:
        recipe = recognise_recipe(data)
        if recipe is None:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in {"recipe": recipe.name, **recipe.example}.items())
        known = f"This is {recipe.title}. It is read with {given}."
        raise DataError(error.message, hint=f"{known}\n{error.hint}".strip(), details=error.details) from error


def find_files(root: Path, pattern: str) -> list[Path]:
    """Return the files and folders that a pattern matches: those of its first alternative that matches any.

    Args:
        root: The folder.
        pattern: Shell patterns relative to it, separated by `|`.
    """
    for alternative in pattern.split("|"):
        if matches := sorted(root.glob(alternative)):
            return matches
    return []


def _exists(root: Path, pattern: str) -> bool:
    return any(next(root.glob(alternative), None) is not None for alternative in pattern.split("|"))


def _folders(path: Path) -> Iterator[Path]:
    """Yield a folder and those within it, the outer ones first, without hidden ones."""
    level = [path] if path.is_dir() else []
    for depth in range(DEPTH + 1):
        yield from level
        if depth < DEPTH:
            level = [child for folder in level for child in _visible_folders(folder)]


def _visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder if they are few, sorted."""
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")):
                    names.append(entry.name)
                if len(names) > FEW:
                    return []
    except OSError:  # not readable, so that no data set can be read from it
        return []
    return [folder / name for name in sorted(names)]


@lru_cache(maxsize=1)
def _read_recipes() -> dict[str, Recipe]:
    entries = tomllib.loads((package_files("covid_fastai.data") / "recipes.toml").read_text(encoding="utf-8"))
    return {name: _make_recipe(name, entry) for name, entry in entries.items()}


def _make_recipe(name: str, entry: dict[str, Any]) -> Recipe:
    tables = tuple(RecipeTable(**_frozen_values(table)) for table in entry.pop("tables", []))
    joins = tuple(RecipeJoin(**table) for table in entry.pop("joins", []))
    options = _frozen_values(entry.pop("options", {}))
    return Recipe(name=name, options=options, tables=tables, joins=joins, **_frozen_values(entry))


def _frozen_values(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
