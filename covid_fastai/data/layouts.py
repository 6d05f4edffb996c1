"""Where rows and images lie: CoronaHack, any CSV, a folder a class, or a table in memory, read into one shape."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.tables import read_table
from covid_fastai.data.tasks import Task, canonical_finding, fold_text
from covid_fastai.errors import DataError, UsageError

__all__ = ["ROLES", "Rows", "find_data", "read_rows"]

logger = logging.getLogger("covid_fastai")

# The columns that a cohort is made from, and how data sets name them; the first that is there is taken.
ROLES = {
    "path": ("path", "x_ray_image_name", "image", "filename", "file", "image_path", "file_path", "image_name", "img"),
    "label": ("label", "labels", "class", "finding", "diagnosis", "target"),
    "patient": ("patient", "patient_id", "subject", "subject_id"),
    "split": ("dataset_type", "split", "subset", "partition"),
    "source": ("source", "hospital", "site", "institution"),
    "view": ("view", "projection", "view_position"),
    "modality": ("modality",),
}
CORONAHACK_CSV = "Chest_xray_Corona_Metadata.csv"
CORONAHACK_COLUMNS = ("X_ray_image_name", "Label", "Dataset_type")
CORONAHACK_IMAGES = "Coronahack-Chest-XRay-Dataset"  # Kaggle's archive has a folder of this name within itself
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm"}  # some to be refused aloud
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    "excluded": "excluded",
}


@dataclass
class Rows:
    """Hold what was read, before it is judged.

    Args:
        table: One row an image, text, "" unknown: `row` (line or None), `name` (as written), `path` (absolute, not
            yet checked), `finding`, `patient`, `split` (as written), `source`, `view`, `modality`, `conflict` (how a
            row contradicts itself).
        extras: The columns that the data came with, same index.
        root: The folder below which the images lie; None where paths are absolute and nobody named one.
        data: What was read.
        coronahack: Whether these are CoronaHack's rows or folders, whose file names tell the patient.
    """

    table: pd.DataFrame
    extras: pd.DataFrame
    root: Path | None
    data: str
    coronahack: bool = False


def read_rows(
    data: str | Path | pd.DataFrame,
    *,
    task: Task,
    columns: Mapping[str, str | None],
    image_root: str | Path | None,
    encoding: str | None,
    problems: ProblemLog,
) -> Rows:
    """Read rows from whatever `data` is.

    Args:
        data: CoronaHack's folder or CSV, another CSV, a folder a class, or a table.
        task: Tells whether the folders' names are classes.
        columns: The column of each role in `ROLES`, None to look for its usual names.
        image_root: The folder that names are relative to.
        encoding: The CSV's encoding, None to find out.
        problems: Gets what is wrong with lines and folders.

    Raises:
        DataError: Nothing there can be read as rows of images.
        UsageError: `data` is of another kind, or an option does not go with it.
    """
    if isinstance(data, pd.DataFrame):
        return _from_frame(data, columns=columns, image_root=image_root)
    path = find_data(data)
    if path.is_dir():
        found = _coronahack_csv(path)
        if found is None:
            return _from_folders(path, task=task, columns=columns, image_root=image_root, problems=problems)
        path = found
    table = read_table(path, encoding=encoding, problems=problems)
    if table.empty and not problems.rows:
        raise DataError(f"{path} has a header and no rows.", hint="Give a line an image.")
    return _from_table(table, path=path, columns=columns, image_root=image_root)


def find_data(data: str | os.PathLike) -> Path:
    """Return the path of a data set that is there.

    Args:
        data: A folder or a file.

    Raises:
        DataError: There is nothing of that name; the hint says what may be meant.
        UsageError: It is no path.
    """
    if not isinstance(data, (str, os.PathLike)):
        raise UsageError(f"data is a {type(data).__name__}.", hint="Give a folder, a CSV's path or a DataFrame.")
    path = Path(data).expanduser()
    if not path.exists():
        near = difflib.get_close_matches(path.name, _names_in(path.parent), n=1)
        hint = f"Did you mean {path.parent / near[0]}?" if near else f"There is no such name in {path.parent}."
        raise DataError(f"{path} is not there.", hint=hint)
    return path


def _coronahack_csv(folder: Path) -> Path | None:
    """Return CoronaHack's CSV in the folder or in one directly below it (an archive unpacked into its own name)."""
    for place in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
        for name in _names_in(place):
            if name.casefold() == CORONAHACK_CSV.casefold():
                return place / name
    return None


def _from_table(
    table: pd.DataFrame, *, path: Path, columns: Mapping[str, str | None], image_root: str | Path | None
) -> Rows:
    coronahack = all(name in table for name in CORONAHACK_COLUMNS)
    coronahack = coronahack and columns["path"] is None and columns["label"] is None
    chosen = _choose_columns(table, columns, where=str(path))
    rows = _shape(table, chosen)
    base = _existing_folder(image_root) or path.resolve().parent
    if coronahack:
        rows["finding"], rows["conflict"] = _coronahack_findings(table)
        base, in_parts = _coronahack_images(base)
        folders = [SPLITS.get(fold_text(text), "") if in_parts else "" for text in rows["split"]]
        relative = [os.path.join(folder, name) for folder, name in zip(folders, rows["name"], strict=True)]
    else:
        base = base if image_root is not None else _folder_of(rows["name"], base)
        relative = rows["name"]
    rows["path"] = [_absolute(base, path) if name else "" for path, name in zip(relative, rows["name"], strict=True)]
    return Rows(rows.reset_index(drop=True), _extras(table, chosen), base, str(path), coronahack=coronahack)


def _from_frame(frame: pd.DataFrame, *, columns: Mapping[str, str | None], image_root: str | Path | None) -> Rows:
    if frame.empty:
        raise DataError("The table has no rows.", hint="Give a row an image.")
    frame = pd.DataFrame(frame)  # a cohort's rows are read anew, without its facts
    table = frame.astype(object).where(frame.notna(), "").map(_text)
    table.columns = [str(name) for name in frame.columns]
    double = table.columns[table.columns.duplicated()]
    if len(double):
        raise DataError(f"The table has the column {double[0]!r} twice.", hint="Rename one of them.")
    table.index = pd.RangeIndex(2, len(table) + 2)  # the lines that the rows would stand on in a CSV
    chosen = _choose_columns(table, columns, where="The table")
    rows = _shape(table, chosen)
    base = _existing_folder(image_root)
    rows["path"] = [_absolute(base or Path.cwd(), name) if name else "" for name in rows["name"]]
    extras = _extras(table, chosen)
    for number, name in enumerate(table.columns):
        if name in extras:
            values = frame.iloc[:, number].to_numpy()  # numbers stay numbers
            extras[name] = [_text(value) if isinstance(value, str) else value for value in values]
    return Rows(rows.reset_index(drop=True), extras, base, "a table")


def _text(value: object) -> str:
    """Return a value as text that can be written as UTF-8: what is no text becomes U+FFFD, which checks refuse."""
    return str(value).encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _absolute(base: Path, name: str) -> str:
    """Return the one spelling of a file's path, so that `a.png` and `./a.png` are seen to be the same file."""
    return os.path.normpath(os.path.join(base, name))  # guard: one_spelling


def _shape(table: pd.DataFrame, chosen: Mapping[str, str | None]) -> pd.DataFrame:
    """Return the roles' columns under the names of `Rows`, stripped; `row` is the line."""
    rows = pd.DataFrame({"row": table.index.astype(object)}, index=table.index)
    for role, name in {"name": "path", "finding": "label", **{r: r for r in list(ROLES)[2:]}}.items():
        column = chosen[name]
        rows[role] = "" if column is None else table[column].str.strip()
    return rows.assign(conflict="")


def _extras(table: pd.DataFrame, chosen: Mapping[str, str | None]) -> pd.DataFrame:
    """Return the columns that came with the data, but for those that are columns of a cohort under the same name."""
    ours = [column for role, column in chosen.items() if column == role and role != "modality"]
    return table.drop(columns=ours).reset_index(drop=True)


def _choose_columns(table: pd.DataFrame, columns: Mapping[str, str | None], *, where: str) -> dict[str, str | None]:
    """Return the column of each role: the one that was named, else the first usual name that is there."""
    folded = {fold_text(name): name for name in reversed(table.columns)}
    listed = f"Its columns: {', '.join(map(repr, table.columns))}."
    chosen: dict[str, str | None] = {}
    for role, guesses in ROLES.items():
        column = columns.get(role)
        if column is not None and column not in table:
            near = folded.get(fold_text(column)) or next(
                iter(difflib.get_close_matches(column, table.columns, n=1)), None
            )
            meant = f"Did you mean {near!r}? " if near else ""
            raise DataError(f"{where} has no column {column!r} ({role}_column).", hint=f"{meant}{listed}")
        chosen[role] = column or next((folded[g] for g in map(fold_text, guesses) if g in folded), None)
        if chosen[role] is None and role in ("path", "label"):  # guard: no_label
            what = "the image's file" if role == "path" else "the label"
            raise DataError(
                f"{where}: which column is {what}?", hint=f"Say it with {role}_column (--{role}-column). {listed}"
            )
    guessed = [f"{role} = {name!r}" for role, name in chosen.items() if name is not None and columns.get(role) is None]
    if guessed:
        logger.info("Columns of %s taken by their names: %s.", where, ", ".join(guessed))
    return chosen


def _coronahack_findings(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return the most exact finding of each row (the second category, else the first, else the label), and a text
    where its parts contradict each other."""
    empty = pd.Series("", index=table.index)
    label = table["Label"].str.strip().map(canonical_finding)
    kind, agent = (table.get(f"Label_{n}_Virus_category", empty).str.strip().map(canonical_finding) for n in (1, 2))
    category = agent.where(agent != "", kind)
    finding = category.where((label == "pneumonia") & (category != ""), label)
    contradicts = (label == "Normal") & (category != "")  # guard: contradicts
    return finding, ("Label is 'Normal' and its category '" + category + "'").where(contradicts, "")


def _coronahack_images(folder: Path) -> tuple[Path, bool]:
    """Return the folder that holds the images, and whether they lie in train/ and test/ below it."""
    outer = folder / CORONAHACK_IMAGES
    for base in (outer / CORONAHACK_IMAGES, outer, folder):
        if (base / "train").is_dir() or (base / "test").is_dir():
            return base, True
    return next((base for base in (outer / CORONAHACK_IMAGES, outer) if base.is_dir()), folder), False


def _folder_of(names: pd.Series, base: Path) -> Path:
    """Return the folder that names are relative to: the CSV's own, or the only one below it where they are."""
    sample = [name for name in names if name][:20]

    def hits(folder: Path) -> int:
        return sum(os.path.exists(os.path.join(folder, name)) for name in sample if "\0" not in name)

    if not sample or hits(base):
        return base
    holding = [child for child in sorted(base.iterdir()) if child.is_dir() and hits(child) * 2 >= len(sample)]
    if len(holding) == 1:
        logger.info("Images found in %s.", holding[0])
        return holding[0]
    return base


def _existing_folder(folder: str | Path | None) -> Path | None:
    if folder is None:
        return None
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise DataError(f"image_root {folder} is no folder.", hint="Name the folder that the images' names start from.")
    return path


def _from_folders(
    root: Path,
    *,
    task: Task,
    columns: Mapping[str, str | None],
    image_root: str | Path | None,
    problems: ProblemLog,
) -> Rows:
    """Read a folder a class, or such folders within train/ and test/."""
    given = [f"{role}_column" for role, name in columns.items() if name is not None]
    given += ["image_root"] if image_root is not None else []
    if given:
        raise UsageError(
            f"{root} is a folder, to which {', '.join(given)} does not apply.", hint="Give the CSV's path."
        )
    root = root.resolve()
    parts = {child: SPLITS.get(fold_text(child.name)) for child in _folders_in(root)}
    if parts and all(parts.values()):  # train/Normal/..., test/Normal/...
        places = [(child, part, inner) for child, part in parts.items() for inner in _folders_in(child)]
    else:
        places = [(root, "", child) for child in parts]
    if not any(task.class_of(place.name) or task.reason_excluded(place.name) for _, _, place in places):
        tables = [name for name in _names_in(root) if name.casefold().endswith((".csv", ".tsv"))]
        found = ", ".join(sorted({place.name for _, _, place in places})[:8]) or "none"
        known = ", ".join(task.known_findings())
        hint = f"Give the path of {tables[0]}." if tables else f"Name folders as the task's findings: {known}."
        raise DataError(
            f"{root} is neither CoronaHack (no {CORONAHACK_CSV}) nor a folder a class (folders: {found}).", hint=hint
        )
    for place in (root, *{place.parent: None for _, _, place in places if place.parent != root}):
        _note_strays(place, problems)
    rows = []
    for _, part, place in places:
        for path in _images_in(place, problems):
            path = _text(path)
            name = os.path.relpath(path, root)
            rows.append({"row": None, "name": name, "path": path, "finding": place.name, "split": part})
    if not rows:
        raise DataError(f"The folders in {root} hold no images.", hint=f"Endings: {', '.join(sorted(IMAGE_SUFFIXES))}.")
    table = pd.DataFrame(rows).assign(patient="", source="", view="", modality="", conflict="")
    return Rows(table, pd.DataFrame(index=table.index), root, str(root))


def _note_strays(folder: Path, problems: ProblemLog) -> None:
    """Name images that lie beside the classes' folders: nothing says what they show."""
    strays = [name for name in _names_in(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    strays = [name for name in strays if not (folder / name).is_dir()]
    what = "images beside the classes' folders"
    remedy = "Move them into the folder of their class, if they are of the data."
    _note_unread(strays, folder, problems, kind="no_class", what=what, remedy=remedy)


def _images_in(folder: Path, problems: ProblemLog) -> list[str]:
    """Return the images of a class's folder, or of `images` within it; name what else is there as a note."""
    paths, others = [], []
    for place in (folder, folder / "images"):  # the COVID-19 Radiography Database keeps masks beside images
        for name in _names_in(place):
            path = os.path.join(place, name)
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not os.path.isdir(path):
                paths.append(path)
            elif path != str(folder / "images"):
                others.append(name)
    what = "files or folders without an image's ending"
    remedy = "Nothing, if they are none of the data."
    _note_unread(others, folder, problems, kind="not_an_image", what=what, remedy=remedy)
    return paths


def _note_unread(names: list[str], folder: Path, problems: ProblemLog, *, kind: str, what: str, remedy: str) -> None:
    """Note the files of a folder that were not read, the first five by name."""
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        reason = f"{len(names)} {what} were not read: {shown}"
        problems.add(kind, path=str(folder), severity="note", reason=reason, remedy=remedy)


def _folders_in(folder: Path) -> list[Path]:
    return [folder / name for name in _names_in(folder) if (folder / name).is_dir()]


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder but hidden ones, sorted; none where there is no such folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
