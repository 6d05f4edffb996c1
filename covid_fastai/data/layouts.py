"""Read rows in any layout into one table: CoronaHack, any CSV, one folder per class, or a table in memory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from covid_fastai.data.archives import check_not_archive, is_archive_name, unpack_command
from covid_fastai.data.class_folders import (
    ClassFolder,
    find_class_folders,
    nearby_class_folders,
    read_class_folders,
)
from covid_fastai.data.columns import ROLES, choose_columns
from covid_fastai.data.derived_columns import DerivedColumns
from covid_fastai.data.file_locations import locate_files
from covid_fastai.data.image_files import IMAGE_SUFFIXES, is_folder, is_visible, scan_folder
from covid_fastai.data.problems import ProblemLog, printable
from covid_fastai.data.row_files import contradictions, locate_rows, note_rule
from covid_fastai.data.split_names import SPLITS
from covid_fastai.data.split_tables import find_split_tables, read_split_tables
from covid_fastai.data.table_formats import has_table_suffix
from covid_fastai.data.tables import read_table
from covid_fastai.data.tasks import Task, canonical_finding, fold_text
from covid_fastai.errors import DataError, UsageError
from covid_fastai.files import similar_path
from covid_fastai.run_folder import RunFolder

__all__ = ["Rows", "find_data", "find_image_root", "holds_runs_only", "read_rows"]

logger = logging.getLogger("covid_fastai")

CORONAHACK_CSV = "Chest_xray_Corona_Metadata.csv"
CORONAHACK_COLUMNS = ("X_ray_image_name", "Label", "Dataset_type")
CORONAHACK_IMAGES = (
    "Coronahack-Chest-XRay-Dataset"  # Kaggle's archive has a folder of this name in a folder of this name
)


@dataclass(frozen=True)
class RecipeData:
    """The data that a recipe reads: a table that was read from one file or several, or a folder.

    Attributes:
        path: The first file, whose folder the names of images are relative to; without a table the folder.
        table: The rows, text, indexed by their lines; None for a folder.
        several: Whether the rows are from several files, which are then no lists of the split.
        problems: The problems of the lines.
    """

    path: Path
    table: pd.DataFrame | None = None
    several: bool = False
    problems: ProblemLog = field(default_factory=ProblemLog)


@dataclass
class Rows:
    """Rows as read, before they are checked.

    Args:
        table: One row per image, text, "" for unknown: `row` (line or None), `name` (as written), `path` (absolute, not
            yet checked), `finding`, `patient`, `split` (as written), `source`, `view`, `modality`, `conflict` (the
            contradiction within a row).
        extras: The columns of the data, same index.
        root: The folder that contains the images; None for a table without `image_root`.
        data: The name of the data.
        coronahack: Whether these are CoronaHack's rows or folders, whose file names contain the patient.
        file: The file of the table, beside which lists of an official split may be; None for data without one.
    """

    table: pd.DataFrame
    extras: pd.DataFrame
    root: Path | None
    data: str
    coronahack: bool = False
    file: Path | None = None


def read_rows(
    data: str | Path | pd.DataFrame | RecipeData,
    *,
    task: Task,
    columns: Mapping[str, str | None],
    label_columns: Sequence[str] | None = None,
    derived: DerivedColumns,
    image_root: str | Path | None,
    encoding: str | None,
    problems: ProblemLog,
) -> Rows:
    """Read the rows of a data set in any layout.

    Args:
        data: CoronaHack's folder or CSV, another CSV, a folder with one folder per class, or a table, in memory or
            read from files.
        task: Decides whether the folders' names are classes.
        columns: The column of each role in `ROLES`, None to find it by its usual names.
        label_columns: The columns that hold one finding each, in place of a column with the label.
        derived: The columns that are added to the rows of a table.
        image_root: The folder that names are relative to.
        encoding: The CSV's encoding, None to detect it.
        problems: Receives the problems of lines and folders.

    Raises:
        DataError: The data cannot be read as rows of images.
        UsageError: `data` has another type, or an option does not apply to it.
    """
    if isinstance(data, pd.DataFrame):
        return _from_frame(
            data,
            columns=columns,
            label_columns=label_columns,
            derived=derived,
            image_root=image_root,
            problems=problems,
        )
    find_image_root(image_root)  # before a long table is read
    known = [name for name in columns.values() if name is not None]
    if isinstance(data, RecipeData):
        problems.rows += data.problems.rows
        path, table, several = data.path, data.table, data.several
    else:
        path, table, several = find_data(data), None, False
    if table is None and path.is_dir():
        csv = _coronahack_csv(path)
        if csv is None:
            folders = find_class_folders(path.resolve(), task=task, is_split=_is_split)
            if folders:
                _check_no_table_options(
                    path, columns=columns, label_columns=label_columns, derived=derived, image_root=image_root
                )
                return _from_folders(path.resolve(), folders, task=task, problems=problems)
            _refuse_runs(path)
            path = _enter_lone_folders(path)
            parts = find_split_tables(_tables_in(path))
            table = read_split_tables(parts, encoding=encoding, known=known, problems=problems) if parts else None
            several = table is not None
            csv = next(iter(parts)) if several else _only_table(path, task)
        path = csv
    if table is None:
        table = read_table(path, encoding=encoding, known=known, problems=problems)
    if table.empty and not problems.rows:
        raise DataError(f"{path} has a header and no rows.", hint="Give one line per image.")
    table = derived.add(table, where=str(path))
    derived.finish(problems, where=str(path))
    rows = _from_table(
        table, path=path, columns=columns, label_columns=label_columns, image_root=image_root, problems=problems
    )
    rows.file = None if several else path
    return rows


def find_data(data: str | os.PathLike | None) -> Path:
    """Return the path of an existing data set.

    Args:
        data: A folder or a file.

    Raises:
        DataError: The path does not exist, and the hint suggests another; or it is an archive.
        UsageError: `data` is not a path, or None.
    """
    if data is None:
        raise UsageError("No data were given.", hint="Name a folder or CSV, or resume a run.")
    if not isinstance(data, (str, os.PathLike)):
        raise UsageError(f"data is a {type(data).__name__}.", hint="Give a folder, a CSV's path or a DataFrame.")
    path = Path(data).expanduser()
    if not path.exists():
        near = similar_path(path)
        hint = (
            f"Did you mean {near}?"
            if near
            else f"Check its path: {path.parent.resolve()} has no file or folder of a similar name."
        )
        raise DataError(f"{path} does not exist.", hint=hint)
    if printable(str(path.resolve())) != str(path.resolve()):  # guard: root_name
        raise DataError(
            f"The name of {printable(str(path))} is not valid text in the encoding of file names "
            f"({sys.getfilesystemencoding()}).",
            hint="Rename it, or set PYTHONUTF8=1 if its name is UTF-8.",
        )
    if path.is_file():
        check_not_archive(path)
    elif RunFolder(path).is_run() or _is_model(path) or holds_runs_only(path):
        _refuse_runs(path)
    return path


def holds_runs_only(folder: Path) -> bool:
    """Return whether a folder holds runs and no data, but for the drawings that `demo` writes beside its run."""
    folders = [path for name in _names_in(folder) if (path := folder / name).is_dir()]
    if not any(RunFolder(path).is_run() for path in folders) or _tables_in(folder):
        return False
    from covid_fastai.data.phantom import SETTINGS  # imports scipy

    return all(RunFolder(path).is_run() or (path / SETTINGS).is_file() for path in folders)


def _coronahack_csv(folder: Path) -> Path | None:
    """Return CoronaHack's CSV in the folder or in one of its folders, as an archive is often unpacked."""
    for parent in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        for name in _names_in(parent):
            if name.casefold() == CORONAHACK_CSV.casefold():
                return parent / name
    return None


def _from_table(
    table: pd.DataFrame,
    *,
    path: Path,
    columns: Mapping[str, str | None],
    label_columns: Sequence[str] | None,
    image_root: str | Path | None,
    problems: ProblemLog,
) -> Rows:
    coronahack = all(name in table for name in CORONAHACK_COLUMNS)
    coronahack = coronahack and columns["path"] is None and columns["label"] is None and not label_columns
    chosen = _choose_columns(table, columns, label_columns, where=str(path))
    rows = _role_columns(table, chosen)
    base = find_image_root(image_root) or path.resolve().parent
    if coronahack:
        rows["finding"], rows["conflict"] = _coronahack_findings(table)
        base, has_splits = _coronahack_images(base)
        folders = [SPLITS.get(fold_text(text), "") if has_splits else "" for text in rows["split"]]
        relative = [os.path.join(folder, name) for folder, name in zip(folders, rows["name"], strict=True)]
        relative = [path if name else "" for path, name in zip(relative, rows["name"], strict=True)]
        located = locate_files(relative, base, search=False)
    else:
        origin = base
        base, located = locate_rows(rows["name"].tolist(), origin, search_folders=image_root is None)
        if located.rule or base != origin:
            rows["conflict"] = contradictions(rows.assign(path=located.paths), origin)  # guard: found_contradicts
    rows["path"] = located.paths
    note_rule(located, base, problems)
    return Rows(rows.reset_index(drop=True), _extras(table, chosen), base, str(path), coronahack)


def _from_frame(
    frame: pd.DataFrame,
    *,
    columns: Mapping[str, str | None],
    label_columns: Sequence[str] | None,
    derived: DerivedColumns,
    image_root: str | Path | None,
    problems: ProblemLog,
) -> Rows:
    if frame.empty:
        raise DataError("The table has no rows.", hint="Give one row per image.")
    frame = pd.DataFrame(frame)  # the rows of a cohort are read again, without its facts
    table = frame.astype(object).where(frame.notna(), "").map(_text)
    table.columns = [str(name) for name in frame.columns]
    duplicates = table.columns[table.columns.duplicated()]
    if len(duplicates):
        raise DataError(f"The table has the column {duplicates[0]!r} twice.", hint="Rename one of them.")
    table.index = pd.RangeIndex(2, len(table) + 2)  # the line numbers of the rows in a CSV
    table = derived.add(table, where="The table")
    derived.finish(problems, where="The table")
    chosen = _choose_columns(table, columns, label_columns, where="The table")
    rows = _role_columns(table, chosen)
    base = find_image_root(image_root)
    located = locate_files(rows["name"].tolist(), base or Path.cwd(), search=base is not None)
    rows["path"] = located.paths
    note_rule(located, base, problems)
    extras = _extras(table, chosen)
    for number, name in enumerate(table.columns[: len(frame.columns)]):
        if name in extras:
            values = frame.iloc[:, number].to_numpy()  # numbers stay numbers
            extras[name] = [_text(value) if isinstance(value, str) else value for value in values]
    return Rows(rows.reset_index(drop=True), extras, base, "a table")


def _choose_columns(
    table: pd.DataFrame, columns: Mapping[str, str | None], label_columns: Sequence[str] | None, *, where: str
) -> dict[str, str | None]:
    """Return the column of each role; with `label_columns`, no column has the label."""
    if not label_columns:
        return choose_columns(table, columns, where=where)
    if columns["label"] is not None:
        raise UsageError(
            f"label_column={columns['label']!r} and label_columns={list(label_columns)} are mutually exclusive.",
            hint="Give label_columns for columns of 1, 0, -1 and blank, label_column for the names of labels.",
        )
    roles = [role for role in ROLES if role != "label"]
    return choose_columns(table, columns, where=where, required=("path",), roles=roles) | {"label": None}


def _text(value: object) -> str:
    """Return a value as text that UTF-8 can encode; invalid characters become U+FFFD, which `RowChecker` rejects."""
    return str(value).encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _role_columns(table: pd.DataFrame, chosen: Mapping[str, str | None]) -> pd.DataFrame:
    """Return the columns of the roles under the names of `Rows.table`, stripped; `row` is the line."""
    rows = pd.DataFrame({"row": table.index.astype(object)}, index=table.index)
    for role, name in {"name": "path", "finding": "label", **{r: r for r in list(ROLES)[2:]}}.items():
        column = chosen[name]
        rows[role] = "" if column is None else table[column].str.strip()
    return rows.assign(conflict="")


def _extras(table: pd.DataFrame, chosen: Mapping[str, str | None]) -> pd.DataFrame:
    """Return the columns of the data, without those that become cohort columns of the same name."""
    roles = [column for role, column in chosen.items() if column == role and role != "modality"]
    return table.drop(columns=roles).reset_index(drop=True)


def _coronahack_findings(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the most specific finding of each row, and its contradiction, `""` where there is none.

    The finding is the second category of the virus, else the first category, else the label.
    """
    empty = pd.Series("", index=table.index)
    label = table["Label"].str.strip().map(canonical_finding)
    kind, agent = (table.get(f"Label_{n}_Virus_category", empty).str.strip().map(canonical_finding) for n in (1, 2))
    category = agent.where(agent != "", kind)
    finding = category.where((label == "pneumonia") & (category != ""), label)
    contradicts = (label == "Normal") & (category != "")  # guard: contradicts
    return finding, ("Label is 'Normal' and its category '" + category + "'").where(contradicts, "")


def _coronahack_images(folder: Path) -> tuple[Path, bool]:
    """Return the folder that holds the images, and whether it is divided into train/ and test/."""
    outer = folder / CORONAHACK_IMAGES
    for base in (outer / CORONAHACK_IMAGES, outer, folder):
        if (base / "train").is_dir() or (base / "test").is_dir():
            return base, True
    return next((base for base in (outer / CORONAHACK_IMAGES, outer) if base.is_dir()), folder), False


def find_image_root(folder: str | Path | None) -> Path | None:
    """Return the folder that file names are relative to; None if it was not given.

    Args:
        folder: `image_root`.

    Raises:
        DataError: It is not a folder.
    """
    if folder is None:
        return None
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise DataError(
            f"image_root={folder} is not a folder.", hint="Give the folder that the file names are relative to."
        )
    return path


def _check_no_table_options(
    root: Path,
    *,
    columns: Mapping[str, str | None],
    label_columns: Sequence[str] | None,
    derived: DerivedColumns,
    image_root: str | Path | None,
) -> None:
    given = [f"{role}_column" for role, name in columns.items() if name is not None]
    given += ["label_columns"] if label_columns else []
    given = derived.given + [name for name in given if name != "path_column" or "path_template" not in derived.given]
    given += ["image_root"] if image_root is not None else []
    if given:
        raise UsageError(
            f"{root} is a folder, to which {', '.join(given)} does not apply.", hint="Give the CSV's path."
        )


def _from_folders(root: Path, folders: list[ClassFolder], *, task: Task, problems: ProblemLog) -> Rows:
    """Read a folder with one folder per class, or with such folders in train/ and test/."""
    table = read_class_folders(root, folders, task=task, is_split=_is_split, problems=problems)
    if table.empty:
        raise DataError(
            f"The folders in {root} have no images.", hint=f"Suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    for column in ("name", "path"):
        table[column] = table[column].map(_text)
    table = table.assign(patient="", source="", view="", modality="")
    return Rows(table, pd.DataFrame(index=table.index), root, str(root))


def _is_split(name: str) -> bool:
    return fold_text(name) in SPLITS


def _only_table(root: Path, task: Task) -> Path:
    """Return the only table in a folder without class folders.

    Raises:
        DataError: There is no table or there are several; the hint names what could be given in place of the folder.
    """
    entries = [entry for entry in scan_folder(str(root)) if is_visible(entry.name)]
    if not os.listdir(root):
        raise DataError(f"The folder {root} is empty.", hint="Give a table, or a folder with images or tables.")
    names = ", ".join([entry.name for entry in entries if is_folder(entry)][:8]) or "none"
    tables = list(map(str, _tables_in(root)))
    archives = [entry.path for entry in entries if is_archive_name(entry.name)]
    inner = nearby_class_folders(root, task=task, is_split=_is_split)
    if len(tables) == 1 and not inner:
        logger.info("%s: its only table is read: %s.", root, os.path.basename(tables[0]))
        return Path(tables[0])
    if inner:
        hint = f"Give one of its folders that has one: {', '.join(map(str, inner[:4]))}."
    elif tables:
        hint = f"Give the path of {' or '.join(tables[:6])}."
    elif archives:
        hint = f"Unpack its archives, such as: {unpack_command(archives[0])}"
    else:
        hint = f"Name folders as the task's findings: {', '.join(task.known_findings())}."
    raise DataError(
        f"{root} is neither CoronaHack (no {CORONAHACK_CSV}) nor has it a folder per class (folders: {names}).",
        hint=hint,
    )


def _is_model(folder: Path) -> bool:
    run = RunFolder(folder.parent)
    return run.is_run() and folder.name == run.model.name


def _refuse_runs(folder: Path) -> None:
    """Raise `DataError` if a folder is that of a run, or holds those of runs."""
    if RunFolder(folder).is_run() or _is_model(folder):
        what = f"model of the run {folder.parent}" if _is_model(folder) else "folder of a run"
        raise DataError(
            f"{folder} is the {what}, not data.",
            hint="Give the data that it was trained on, or use the run with audit, validate, predict, export or serve.",
        )
    inside = [path for path in sorted(folder.iterdir()) if RunFolder(path).is_run()]
    if inside:
        raise DataError(
            f"{folder} holds the folders of runs, not data.",
            hint="Give the data that they were trained on, or one of the runs to audit, validate, predict, export or "
            f"serve, such as {inside[0]}.",
        )


def _tables_in(root: Path) -> list[Path]:
    """Return the visible tables in a folder, known by their names."""
    return [Path(entry.path) for entry in scan_folder(str(root)) if _is_table(entry)]


def _enter_lone_folders(folder: Path) -> Path:
    """Return the folder that holds the tables: an archive often unpacks to a folder that has one folder only."""
    inner = folder
    while not _tables_in(inner):
        entries = [entry for entry in scan_folder(str(inner)) if is_visible(entry.name)]
        if len(entries) != 1 or not is_folder(entries[0]):
            return folder
        inner = Path(entries[0].path)
    return inner


def _is_table(entry: os.DirEntry) -> bool:
    return is_visible(entry.name) and has_table_suffix(entry.name) and os.path.isfile(entry.path)


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder without hidden ones, sorted; an empty list if it cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
