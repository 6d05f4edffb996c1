"""Read the tables of a recipe into one, and give its options to `read_cohort`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.config import TrainConfig
from covid_fastai.data.custom_tasks import DEFAULT, make_task
from covid_fastai.data.joins import TableJoin
from covid_fastai.data.layouts import RecipeData
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.recipes import Recipe, RecipeTable, find_files, get_recipe
from covid_fastai.data.tables import read_table
from covid_fastai.data.tasks import Task, get_task
from covid_fastai.errors import DataError, UsageError

__all__ = ["apply_recipe", "task_of_config"]

logger = logging.getLogger("covid_fastai")

CLASSES = ("task", "classes", "positive")  # options that decide the classes
EXCLUSIVE = {
    "path_column": "path_template",
    "label_column": "label_columns",
}  # the one that is given replaces the other
EXCLUSIVE |= {other: name for name, other in EXCLUSIVE.items()}


def apply_recipe(name: str, data: object, options: Mapping[str, Any]) -> tuple[RecipeData, dict[str, Any]]:
    """Return the data that a recipe reads, and its options with those that were given.

    Args:
        name: The recipe.
        data: The folder of the data set, or a file in it.
        options: The options of `read_cohort` that were given, with their defaults.

    Returns:
        The data, and all options. An option that was given counts, and classes that were given
        replace those of the recipe.

    Raises:
        DataError: A file that the recipe needs is missing, or two files fit it.
        UsageError: `data` is a table, or the recipe needs classes and none were given.
    """
    recipe = get_recipe(name)
    if not isinstance(data, str | Path):
        raise UsageError(f"recipe={name!r} reads a folder, and data is a {type(data).__name__}.", hint="Omit recipe.")
    merged = _merge(recipe, options)
    if recipe.finding and all(merged[option] in (None, DEFAULT) for option in (*CLASSES, "labels")):
        raise UsageError(
            f"{recipe.title} has many findings, and no class was named.",
            hint=f"Such as positive='Pneumonia', or `classes`. {recipe.notes}",
        )
    root = recipe.require(data).resolve()
    logger.info("Recipe %s: %s. %s", recipe.name, recipe.title, recipe.notes)
    if not recipe.tables:
        return RecipeData(_one_file(root, recipe.folder) if recipe.folder else root), merged
    problems = ProblemLog()
    table = _read_tables(recipe, root, options["encoding"], problems)
    return RecipeData(_one_file(root, recipe.tables[0].file), table, len(recipe.tables) > 1, problems), merged


def task_of_config(config: TrainConfig) -> Task:
    """Return the task that a training's options make, with those of its recipe.

    Args:
        config: The options.

    Raises:
        UsageError: The options contradict each other, or there is no such recipe.
    """
    options = dict(config)
    if config.recipe is not None:
        options = _merge(get_recipe(config.recipe), options)
    return make_task(**{name: options[name] for name in inspect.signature(make_task).parameters})


def _merge(recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given, and the recipe's where none was given."""
    merged, theirs = dict(options), dict(recipe.options)
    labels = theirs.pop("labels", {})
    given = [name for name in CLASSES if options[name] not in (None, DEFAULT)]
    if given:
        theirs = {name: value for name, value in theirs.items() if name not in CLASSES}
    theirs = {name: value for name, value in theirs.items() if options.get(EXCLUSIVE.get(name, "")) is None}
    merged |= {name: value for name, value in theirs.items() if options[name] in (None, DEFAULT)}
    classes = _known_classes(merged) if given else None
    kept = {label: name for label, name in labels.items() if classes is None or name in classes}
    own = options["labels"] or {}
    merged["labels"] = {**kept, **own} or None
    if own and "classes" in theirs:  # classes whose labels were all given another meaning are gone, new ones are last
        replaced = set(labels.values()) - {name for label, name in labels.items() if label not in own}
        names = [name for name in theirs["classes"] if name not in replaced or name in own.values()]
        merged["classes"] = tuple(dict.fromkeys([*names, *filter(None, own.values())]))
    return merged


def _known_classes(options: Mapping[str, Any]) -> set[str]:
    """Return the classes that the options name, to which labels of the recipe can belong."""
    return {*(options["classes"] or ()), *(() if options["task"] == DEFAULT else get_task(options["task"]).classes)}


def _read_tables(recipe: Recipe, root: Path, encoding: str | None, problems: ProblemLog) -> pd.DataFrame:
    tables = []
    for part in recipe.tables:
        if part.optional and not find_files(root, part.file):
            continue
        table = _read(part, root, encoding, problems)
        if part.folder:
            column = recipe.options["path_column"]
            table[column] = part.folder + "/" + table[column]
        tables.append(table)
    joined = pd.concat(tables).fillna("")
    where = str(_one_file(root, recipe.tables[0].file))
    for part in recipe.joins:
        other = TableJoin(_one_file(root, part.file), part.on, encoding)
        joined = other.add_columns(joined, where=where)
        other.report(problems, where=where)
    return joined


def _read(part: RecipeTable, root: Path, encoding: str | None, problems: ProblemLog) -> pd.DataFrame:
    file = _one_file(root, part.file)
    table = read_table(file, encoding=encoding, known=part.columns, problems=problems)
    if part.columns and len(table.columns) != len(part.columns):
        raise DataError(
            f"{file} has {len(table.columns)} columns, and {len(part.columns)} are published: "
            f"{', '.join(part.columns)}.",
            hint="Restore the file, or read it without a recipe.",
        )
    if part.columns:
        table.columns = list(part.columns)
    table = table.rename(columns=part.rename)
    for column, ending in part.remove.items():
        table[column] = table[column].str.removesuffix(ending)
    for column, ending in part.append.items():
        table[column] = table[column] + ending
    if part.split:
        table["split"] = part.split
    return table


def _one_file(root: Path, pattern: str) -> Path:
    """Return the file that a pattern matches.

    Raises:
        DataError: Several files match.
    """
    matches = find_files(root, pattern)
    if len(matches) != 1:
        listed = ", ".join(path.name for path in matches)
        raise DataError(f"{root} has {len(matches)} files for {pattern}: {listed}.", hint="Keep one of them there.")
    return matches[0]
