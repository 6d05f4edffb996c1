"""The same images, or else the same patients, in several tables of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    UNKNOWN_PATIENTS,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.runs import Run, read_run

__all__ = ["Paired", "pair_predictions"]


@dataclass(frozen=True, eq=False)
class Paired:
    """What several models have all judged.

    Attributes:
        tables: By model: the rows with a label and a prediction, of the same patients with the same labels in all.
        same_folds: Whether each image is of the same fold in all tables, and there are two folds or more.
        notes: What was left out, and how images were matched, a sentence each.
    """

    tables: dict[str, pd.DataFrame]
    same_folds: bool
    notes: list[str]


def pair_predictions(
    models: Sequence[str | Path | pd.DataFrame | Run], *, names: Sequence[str] | None = None
) -> Paired:
    """Keep what all models have judged.

    Images are the same where their paths are, else (in folders that were moved) where their file names are. Tables
    without an image in common are matched by patient and label, each model with its own images.

    Args:
        models: Tables or CSV files that `read_predictions` accepts, runs or their folders (their held-out patients).
        names: A name each; None for the files' and folders' own.

    Returns:
        The tables, and what was left out of each.

    Raises:
        UsageError: There are fewer than two models, or names are too few or twice the same.
        DataError: A table is faulty, the models have different classes, nothing in common, or different labels for the
            same image.
    """
    if len(models) < 2:
        raise UsageError(f"{len(models)} models to compare.", hint="Give two or more.")
    names = _names(models) if names is None else [str(name) for name in names]
    if len(names) != len(models) or len(set(names)) < len(names):
        raise UsageError(f"names={names!r} for {len(models)} models.", hint="Give each a name of its own.")
    read = {name: _read(model) for name, model in zip(names, models, strict=True)}
    classes = class_columns(read[names[0]])
    for name, table in read.items():
        if set(class_columns(table)) != set(classes):
            raise DataError(
                f"{names[0]} has the classes {', '.join(classes)}, {name} has {', '.join(class_columns(table))}.",
                hint="Compare models of the same classes, or rename the columns p_<class> and the labels.",
            )
    columns = [PROBABILITY + name for name in classes]
    usable, notes = {}, []
    for name, table in read.items():
        rest = table.drop(columns=columns)
        table = pd.concat([rest, table[columns]], axis=1)  # the classes in the first table's order
        kept = has_label_and_prediction(table)
        if not kept.all():
            notes.append(f"{name}: {int((~kept).sum())} of {len(kept)} rows have no label or no prediction.")
        usable[name] = table[kept]
    keyed, how = _keyed(usable)
    if keyed is None:
        tables, more = _by_patient(usable)
    else:
        tables, more = _by_image(keyed)
        more = [*more, *([how] if how else [])]
    if not all(table["patient_known"].all() for table in tables.values()):
        notes.append(UNKNOWN_PATIENTS)
    return Paired(tables, keyed is not None and _same_folds(tables), [*notes, *more])


def _names(models: Sequence[str | Path | pd.DataFrame | Run]) -> list[str]:
    """Name models by file or folder, with the folder above where that is not enough, else by number."""
    paths = [None if isinstance(m, pd.DataFrame) else Path(m.path if isinstance(m, Run) else m) for m in models]
    for parts in (1, 2):
        found = [
            f"model {number}" if path is None else "/".join(path.with_suffix("").resolve().parts[-parts:])
            for number, path in enumerate(paths, start=1)
        ]
        if len(set(found)) == len(found):
            return found
    return [f"model {number}" for number in range(1, len(paths) + 1)]


def _read(model: str | Path | pd.DataFrame | Run) -> pd.DataFrame:
    """Read a table; of a run the held-out patients."""
    if isinstance(model, (str, Path)) and Path(model).is_dir():
        model = read_run(model)
    if not isinstance(model, Run):
        return read_predictions(model)
    table = model.predictions
    return table[table["split"] == "valid"].reset_index(drop=True)


def _keyed(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame] | None, str]:
    """Index the tables by image; None where no image is in all of them."""
    ways = {"": lambda path: path, "Images were matched by file name.": lambda path: PurePosixPath(path).name}
    for how, key in ways.items():
        keyed = {name: table.assign(image=table["path"].map(key)) for name, table in tables.items()}
        common = set.intersection(*(set(table["image"]) for table in keyed.values()))
        unique = all(table["image"].is_unique for table in keyed.values())
        if common and unique:
            return keyed, how
        if common and not how:
            twice = next(name for name, table in keyed.items() if not table["image"].is_unique)
            path = keyed[twice].loc[keyed[twice]["image"].duplicated(), "path"].iloc[0]
            raise DataError(
                f"{twice} has more than one prediction of {path}.", hint="Give one row an image, such as one repeat."
            )
    return None, ""


def _by_image(keyed: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Keep the images of all tables, in one order, with the patients of the table that names most of them."""
    names = list(keyed)
    common = sorted(set.intersection(*(set(table["image"]) for table in keyed.values())))
    tables = {name: table.set_index("image").loc[common].reset_index(drop=True) for name, table in keyed.items()}
    first = tables[names[0]]
    for name in names[1:]:
        other = first["label"] != tables[name]["label"]
        if other.any():
            rows = [
                {"row": None, "path": path, "kind": "label", "reason": f"{names[0]}: {here}; {name}: {there}"}
                for path, here, there in zip(
                    first.loc[other, "path"], first.loc[other, "label"], tables[name].loc[other, "label"], strict=True
                )
            ]
            raise DataError(
                f"{names[0]} and {name} have different labels for {int(other.sum())} images, such as "
                f"{rows[0]['path']} ({rows[0]['reason']}).",
                hint="Judge both against the same labels.",
                details=rows,
            )
    source = max(tables.values(), key=lambda table: table["patient_known"].sum())  # the first of equals
    patients = {name: source[name] for name in ("patient", "patient_known")}
    tables = {name: table.assign(**patients) for name, table in tables.items()}
    notes = [
        f"{name}: {len(table) - len(common)} of {len(table)} images are not in all tables and are left out."
        for name, table in keyed.items()
        if len(table) > len(common)
    ]
    return tables, notes


def _by_patient(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Keep the patients of all tables, each with the images that its table has of them."""
    keys = {name: set(zip(table["patient"], table["label"], strict=True)) for name, table in tables.items()}
    common = set.intersection(*keys.values())
    if not common:
        raise DataError(
            f"{' and '.join(tables)} have no image and no patient with the same label in common.",
            hint="Give predictions of the same test set, with the columns path or patient.",
        )
    kept = {}
    for name, table in tables.items():
        wanted = [key in common for key in zip(table["patient"], table["label"], strict=True)]
        kept[name] = table[wanted].reset_index(drop=True)
    notes = ["No image is in all tables: they were matched by patient and label, each with its own images."]
    for name, own in keys.items():
        if len(own) > len(common):
            notes.append(f"{name}: {len(own) - len(common)} of {len(own)} patients are not in all tables; left out.")
    return kept, notes


def _same_folds(tables: dict[str, pd.DataFrame]) -> bool:
    folds = [table["fold"].astype(str).tolist() for table in tables.values()]
    return len(set(folds[0])) > 1 and all(other == folds[0] for other in folds[1:])
