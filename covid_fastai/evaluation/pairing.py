"""Match several predictions tables by image, or else by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Unpack

import pandas as pd

from covid_fastai.data.pseudonymise import real_names
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    UNKNOWN_PATIENTS,
    PredictionOptions,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.runs import Run, read_run

__all__ = ["PairedPredictions", "pair_predictions", "pair_tables"]


@dataclass(frozen=True, eq=False)
class PairedPredictions:
    """Predictions of several models for the same patients.

    Attributes:
        tables: The rows of each model that have a label and a prediction. The patients and their labels are the same in
            all tables.
        same_folds: Whether each image has the same fold in all tables, and there are two folds or more.
        notes: Sentences on what was left out and how images were matched.
    """

    tables: dict[str, pd.DataFrame]
    same_folds: bool
    notes: list[str]


def pair_predictions(
    models: Sequence[str | Path | pd.DataFrame | Run],
    *,
    names: Sequence[str] | None = None,
    positive: str | None = None,
    split: str | None = None,
    **reading: Unpack[PredictionOptions],
) -> PairedPredictions:
    """Select the images, or else the patients, that all models have predicted.

    Images are matched by path, or by file name if no path is in all tables, as in folders that were moved. Tables
    without an image in common are matched by patient and label, and each model keeps its own images.

    Args:
        models: Tables or CSV files that `read_predictions` accepts, runs or their folders (their held-out patients).
        names: One name per model; None to derive them from files and folders.
        positive: The class that one score is the probability of, as in `read_predictions`.
        split: The split whose rows are matched; None for tables of one split, and for the held-out patients of runs.
        **reading: How tables are read, as in `read_predictions`.

    Returns:
        The matched tables, with notes on what was left out of each.

    Raises:
        UsageError: There are fewer than two models, or the names are not as many as the models and unique.
        DataError: A table is faulty, or the models have different classes, no image or patient in common, or different
            labels for the same image.
    """
    if len(models) < 2:
        raise UsageError("A comparison needs two models or more.", hint="Give a second one: a table or a run.")
    names = _derive_names(models) if names is None else [str(name) for name in names]
    if len(names) != len(models) or len(set(names)) < len(names):
        raise UsageError(f"names={names!r} for {len(models)} models.", hint="Give each model a unique name.")
    tables = {name: _read_table(model, positive, split, reading) for name, model in zip(names, models, strict=True)}
    return pair_tables(tables)


def pair_tables(tables: Mapping[str, pd.DataFrame]) -> PairedPredictions:
    """Select the images, or else the patients, of tables that have been read, as `pair_predictions` does.

    Args:
        tables: What `read_predictions` returned, by the names of the models.

    Returns:
        The matched tables, with notes on what was left out of each.

    Raises:
        DataError: As for `pair_predictions`.
    """
    names = list(tables)
    classes = class_columns(tables[names[0]])
    for name, table in tables.items():
        if set(class_columns(table)) != set(classes):
            raise DataError(
                f"{names[0]} has the classes {', '.join(classes)}, {name} has {', '.join(class_columns(table))}.",
                hint="Compare models of the same classes, or rename the columns p_<class> and the labels.",
            )
    columns = [PROBABILITY + name for name in classes]
    usable, notes = {}, []
    for name, table in tables.items():
        # the order of the classes is that of the first table
        table = table[_replace([str(column) for column in table], columns)]
        complete = has_label_and_prediction(table)
        if not complete.all():
            notes.append(f"{name}: {int((~complete).sum())} of {len(complete)} rows have no label or no prediction.")
        usable[name] = table[complete]
    keyed, method = _key_by_image(usable)
    if keyed is None:
        matched, matching_notes = _match_by_patient(usable)
    else:
        matched, matching_notes = _match_by_image(keyed)
        matching_notes = [*matching_notes, *([method] if method else [])]
    if not all(table["patient_known"].all() for table in matched.values()):
        notes.append(UNKNOWN_PATIENTS)
    return PairedPredictions(matched, keyed is not None and _same_folds(matched), [*notes, *matching_notes])


def _replace(names: Sequence[str], ordered: Sequence[str]) -> list[str]:
    """Return names with those of `ordered` in that order, at the places that they have together."""
    rest = iter(ordered)
    return [next(rest) if name in ordered else name for name in names]


def _derive_names(models: Sequence[str | Path | pd.DataFrame | Run]) -> list[str]:
    """Name models by file or folder, with the parent folder if that is not unique, else by number."""
    paths = [None if isinstance(m, pd.DataFrame) else Path(m.path if isinstance(m, Run) else m) for m in models]
    for parts in (1, 2):
        names = [
            f"model {number}" if path is None else "/".join(path.with_suffix("").resolve().parts[-parts:])
            for number, path in enumerate(paths, start=1)
        ]
        if len(set(names)) == len(names):
            return names
    return [f"model {number}" for number in range(1, len(paths) + 1)]


def _read_table(
    model: str | Path | pd.DataFrame | Run, positive: str | None, split: str | None, reading: PredictionOptions
) -> pd.DataFrame:
    """Read the predictions of a split; without one, those of a run are of its held-out patients."""
    if isinstance(model, (str, Path)) and Path(model).is_dir():
        model = read_run(model)
    if isinstance(model, Run):
        table = read_predictions(model.predictions, split=split or "valid")
        return real_names(table, model.folder.predictions)
    table = read_predictions(model, positive=positive, split=split, **reading)
    return table if isinstance(model, pd.DataFrame) else real_names(table, model)  # guard: paired_by_name


def _key_by_image(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame] | None, str]:
    """Add the column `image`, by which tables are matched, and return a note on it; None if no image is in all."""
    methods = {"": lambda path: path, "Images were matched by file name.": lambda path: PurePosixPath(path).name}
    for method, key in methods.items():
        keyed = {name: table.assign(image=table["path"].map(key)) for name, table in tables.items()}
        common = set.intersection(*(set(table["image"]) for table in keyed.values()))
        unique = all(table["image"].is_unique for table in keyed.values())
        if common and unique:
            return keyed, method
        if common and not method:
            repeated = next(name for name, table in keyed.items() if not table["image"].is_unique)
            path = keyed[repeated].loc[keyed[repeated]["image"].duplicated(), "path"].iloc[0]
            raise DataError(
                f"{repeated} has more than one prediction of {path}.",
                hint="Give one row per image, such as one run.",
            )
    return None, ""


def _match_by_image(keyed: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Select the images of all tables in one order, with the patients of the table that knows most of them."""
    names = list(keyed)
    common = sorted(set.intersection(*(set(table["image"]) for table in keyed.values())))
    tables = {name: table.set_index("image").loc[common].reset_index(drop=True) for name, table in keyed.items()}
    first = tables[names[0]]
    for name in names[1:]:
        differs = first["label"] != tables[name]["label"]
        if differs.any():
            conflicts = zip(
                first.loc[differs, "path"],
                first.loc[differs, "label"],
                tables[name].loc[differs, "label"],
                strict=True,
            )
            faults = [
                {"row": None, "path": path, "kind": "label", "reason": f"{names[0]}: {label}; {name}: {other_label}"}
                for path, label, other_label in conflicts
            ]
            raise DataError(
                f"{names[0]} and {name} have different labels for {len(faults)} images, such as "
                f"{faults[0]['path']} ({faults[0]['reason']}).",
                hint="Give both tables the same labels.",
                details=faults,
            )
    source = max(tables.values(), key=lambda table: table["patient_known"].sum())  # of equal ones the first
    patients = {name: source[name] for name in ("patient", "patient_known")}
    tables = {name: table.assign(**patients) for name, table in tables.items()}
    notes = [
        f"{name}: {len(table) - len(common)} of {len(table)} images are not in all tables and are left out."
        for name, table in keyed.items()
        if len(table) > len(common)
    ]
    return tables, notes


def _match_by_patient(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Select the patients of all tables; each table keeps its own images of them."""
    keys = {name: set(zip(table["patient"], table["label"], strict=True)) for name, table in tables.items()}
    common = set.intersection(*keys.values())
    if not common:
        raise DataError(
            f"{' and '.join(tables)} have no image and no patient with the same label in common.",
            hint="Give predictions of the same test set, with the columns path or patient.",
        )
    matched = {}
    for name, table in tables.items():
        in_common = [key in common for key in zip(table["patient"], table["label"], strict=True)]
        matched[name] = table[in_common].reset_index(drop=True)
    notes = ["No image is in all tables: they were matched by patient and label, each with its own images."]
    for name, patients in keys.items():
        if left_out := len(patients) - len(common):
            notes.append(f"{name}: {left_out} of {len(patients)} patients are not in all tables and are left out.")
    return matched, notes


def _same_folds(tables: dict[str, pd.DataFrame]) -> bool:
    folds = [table["fold"].astype(str).tolist() for table in tables.values()]
    return len(set(folds[0])) > 1 and all(other == folds[0] for other in folds[1:])
