"""Read a folder with one folder per class, alone or within the folders of a split."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from covid_fastai.data.archives import is_archive_name
from covid_fastai.data.image_files import (
    FolderReader,
    contains,
    has_image_suffix,
    is_folder,
    is_link,
    is_masks_folder,
    is_visible,
    scan_folder,
)
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.tasks import Task, canonical_finding
from covid_fastai.errors import DataError

__all__ = ["ClassFolder", "find_class_folders", "is_finer", "nearby_class_folders", "read_class_folders"]

logger = logging.getLogger("covid_fastai")

DEPTH = 6  # folders that are entered in search of class folders
# Kermany's file names: `person1_bacteria_2.jpeg`; the folder is PNEUMONIA for both.
KERMANY = re.compile(r"person\d+_(bacteria|virus)_\d+(?:_\d+)?", re.IGNORECASE)
# What the folder of a finding may contain as a finer one.
FINER = {"virus": {"COVID-19", "SARS"}, "bacteria": {"Streptococcus"}}
FINER["pneumonia"] = {"virus", "bacteria", "ARDS"} | FINER["virus"] | FINER["bacteria"]
REMEDIES = {
    "broken_link": "Restore the files that they lead to, or remove them.",
    "archive": "If they contain images of the data, unpack them.",
    "loop": "Remove them.",
    "no_class": "Move them into the folder of their class, if they belong to the data.",
}
SUSPICIOUS = {"broken_link", "archive", "loop"}
NOTHING = "Nothing, if they do not belong to the data."


@dataclass(frozen=True)
class ClassFolder:
    """A folder of the images of one class.

    Attributes:
        path: The folder.
        split: The name of the folder of its split; "" without one.
    """

    path: Path
    split: str = ""


def find_class_folders(root: Path, *, task: Task, is_split: Callable[[str], bool]) -> list[ClassFolder]:
    """Find the folders of the classes in a folder, in the folders of a split or in a lone inner folder.

    Args:
        root: The folder.
        task: Knows the names of classes.
        is_split: Whether the name of a folder is that of a split, such as `train`.

    Returns:
        The class folders; an empty list if no folder is named as a finding of the task. Of the folders beside one of
        that name, all that hold files are class folders.
    """
    folder = root
    for _ in range(DEPTH):
        folders = _folders_in(folder)
        known = [child for child in _folders_in(folder, empty=True) if _is_known(task, child.name)]
        if known:
            return [ClassFolder(child) for child in sorted({*folders, *known})]
        splits = [child for child in folders if is_split(child.name)]
        if splits:
            return _class_folders_of_splits(splits, task)
        if len(folders) != 1:
            snapshots = _snapshots(folder)
            if len(snapshots) != 1:
                return []
            folders = snapshots
        folder = folders[0]
    return []


def _class_folders_of_splits(splits: list[Path], task: Task) -> list[ClassFolder]:
    """Return the class folders in `train/`, `test/` and the like; a lone inner folder, as `train/train`, is entered."""
    found = []
    for split in splits:
        folders = _folders_in(split)
        while len(folders) == 1 and not _is_known(task, folders[0].name) and _folders_in(folders[0]):
            folders = _folders_in(folders[0])
        found += [ClassFolder(child, split.name) for child in folders]
    return found if any(_is_known(task, item.path.name) for item in found) else []


def nearby_class_folders(root: Path, *, task: Task, is_split: Callable[[str], bool]) -> list[Path]:
    """Return the folders directly in a folder that could be given in its place, as they have class folders."""
    return [child for child in _folders_in(root) if find_class_folders(child, task=task, is_split=is_split)]


def read_class_folders(
    root: Path, folders: list[ClassFolder], *, task: Task, is_split: Callable[[str], bool], problems: ProblemLog
) -> pd.DataFrame:
    """Read the images of class folders, at any depth.

    The finding of an image is the name of its class folder. A folder below it with the name of a finer finding, as in
    `PNEUMONIA/virus/`, replaces it, and so do Kermany's file names where the task separates bacteria and viruses.

    Args:
        root: The folder that names are relative to.
        folders: Result of `find_class_folders`.
        task: Knows the names of findings.
        is_split: As in `find_class_folders`.
        problems: Receives one note for each kind of entry that was left out.

    Returns:
        One row per image: `row` (None), `name` (relative to `root`), `path`, `finding`, `split` (the folder's name, ""
        without one) and `conflict` ("" unless its folders name two classes).
    """
    reader = FolderReader(item.path for item in folders)
    splits_within = _all_hold_splits(folders, is_split)
    rows, refined = [], 0
    for item in folders:
        for path in reader.images(item.path):
            inner = os.path.relpath(path, item.path).split(os.sep)[:-1]
            split = inner[0] if splits_within and inner else item.split
            finding, conflict = _finding(item.path.name, inner, task)
            finer = _kermany_finding(finding, os.path.basename(path), task)
            refined += finer != finding
            row = {"row": None, "name": os.path.relpath(path, root), "path": reader.same_file.get(path, path)}
            rows.append({**row, "finding": finer, "split": split, "conflict": conflict})
    if refined:
        logger.info("Bacteria or virus of %d images: from Kermany's file names.", refined)
    _leave_out_others(root, folders, reader)
    note_left_out(reader, root, problems)
    return pd.DataFrame(rows, columns=["row", "name", "path", "finding", "split", "conflict"])


def is_finer(one: str, other: str) -> bool:
    """Return whether one of two findings, in their usual spelling, is a finer form of the other."""
    return one in FINER.get(other, ()) or other in FINER.get(one, ())


def note_left_out(reader: FolderReader, root: Path, problems: ProblemLog) -> None:
    """Record what a listing left out, one problem per kind, and log it."""
    for kind, clause in reader.summary(root).items():
        if kind != "hidden":
            severity = "warning" if kind in SUSPICIOUS else "note"
            problems.add(kind, path=str(root), severity=severity, reason=clause, remedy=REMEDIES.get(kind, NOTHING))
    reader.log_left_out(root)


def _finding(outer: str, inner: list[str], task: Task) -> tuple[str, str]:
    """Return the finding of an image in nested folders, and the contradiction of their names ("" for none)."""
    finding = outer
    for name in inner:
        if not _is_known(task, name) or canonical_finding(name) == canonical_finding(finding):
            continue
        if canonical_finding(name) in FINER.get(canonical_finding(finding), ()):
            finding = name
        elif (task.class_of(name) or name) != (task.class_of(finding) or finding):  # guard: nested_class
            return finding, f"its folders name {finding!r} and {name!r}"
    return finding, ""


def _kermany_finding(finding: str, name: str, task: Task) -> str:
    """Return bacteria or virus from Kermany's file names, if the task separates them and the folder does not."""
    if canonical_finding(finding) != "pneumonia" or task.class_of(finding):
        return finding
    match = KERMANY.fullmatch(os.path.splitext(name)[0])
    agent = match[1].casefold() if match else ""
    return agent if agent and task.class_of(agent) else finding


def _is_known(task: Task, name: str) -> bool:
    """Return whether the task names a finding; "all others", which fits the name of any folder, does not count."""
    return task.match(name).rank > 1


def _all_hold_splits(folders: list[ClassFolder], is_split: Callable[[str], bool]) -> bool:
    """Return whether every class folder holds the folders of a split, and no other, as in `Normal/train/`."""
    inner = [_folders_in(item.path) for item in folders if not item.split]
    return bool(inner) and all(children and all(is_split(child.name) for child in children) for children in inner)


def _folders_in(folder: Path, *, empty: bool = False) -> list[Path]:
    """Return the visible folders in a folder, without folders of masks, and without those that hold no file."""
    real = os.path.realpath(folder)
    children = []
    for entry in scan_folder(str(folder)):
        if not is_visible(entry.name) or not is_folder(entry) or is_masks_folder(entry.name):
            continue
        if is_link(entry) and contains(os.path.realpath(entry.path), real):
            continue  # a link to a folder that it lies in
        if empty or _holds_file(entry.path):
            children.append(folder / entry.name)
    return children


def _holds_file(folder: str) -> bool:
    """Return whether a folder has a visible file at any depth, apart from what links lead to."""
    folders = [os.path.realpath(folder)]  # os.walk calls itself, which Python limits to a thousand folders
    while folders:
        try:
            entries = scan_folder(folders.pop())
        except DataError:  # counted as without a file, as what cannot be listed
            continue
        if any(is_visible(entry.name) and not is_folder(entry) for entry in entries):
            return True
        folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return False


def _snapshots(folder: Path) -> list[Path]:
    """Return the snapshots of a folder in the Hugging Face cache, whose files are links into `blobs`."""
    names = {entry.name for entry in scan_folder(str(folder))}
    return _folders_in(folder / "snapshots") if {"blobs", "snapshots"} <= names else []


def _leave_out_others(root: Path, folders: list[ClassFolder], reader: FolderReader) -> None:
    """Count the images outside the class folders, whose class is not known, and the folders without a file."""
    classes = {item.path for item in folders}
    parents = {root, *(parent for item in folders for parent in item.path.parents if root in parent.parents)}
    for parent in sorted(parents):
        for entry in scan_folder(str(parent)):
            path = Path(entry.path)
            if not is_visible(entry.name) or path in classes or path in parents:
                continue
            if is_folder(entry):
                _leave_out_folder(entry, parent, reader)
            elif has_image_suffix(entry.name):
                reader.leave_out("no_class", entry.path)
            elif is_archive_name(entry.name):
                reader.leave_out("archive", entry.path)
            elif is_link(entry) and not os.path.exists(entry.path):
                reader.leave_out("broken_link", entry.path)


def _leave_out_folder(entry: os.DirEntry, parent: Path, reader: FolderReader) -> None:
    """Count the images of a folder beside the class folders or beside the folders of a split."""
    if is_link(entry) and contains(os.path.realpath(entry.path), os.path.realpath(parent)):
        reader.leave_out("loop", entry.path)
    elif is_masks_folder(entry.name):
        reader.leave_out_masks(entry.path)
    elif not _holds_file(entry.path):
        reader.leave_out("empty_folder", entry.path)
    else:
        images = list(FolderReader().images(entry.path))
        kind = "copy" if images and _is_copy(Path(entry.path), parent, images) else "no_class"
        if images:
            reader.leave_out(kind, *images)


def _is_copy(folder: Path, original: Path, images: list[str]) -> bool:
    """Return whether every image of a folder is also, with the same size, at the same place of another folder.

    Kaggle's archive of Kermany's images holds `chest_xray/train` and its copy `chest_xray/chest_xray/train`.
    """
    try:
        return all(
            os.path.getsize(path) == os.path.getsize(original / os.path.relpath(path, folder)) for path in images
        )
    except OSError:  # there is no such file
        return False
