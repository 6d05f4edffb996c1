"""The files of a table's rows: the folder that holds them, the rule that finds them, and what contradicts a row."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pandas as pd

from covid_fastai.data.class_folders import is_finer
from covid_fastai.data.file_locations import LocatedFiles, locate_files, split_path
from covid_fastai.data.image_files import is_masks_folder, is_visible
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.reach import is_share
from covid_fastai.data.split_names import SPLIT_FOLDERS, SPLITS
from covid_fastai.data.tasks import SPELLINGS, canonical_finding, fold_text

__all__ = ["contradictions", "locate_rows", "note_rule"]

logger = logging.getLogger("covid_fastai")


def locate_rows(names: list[str], base: Path, *, search_folders: bool) -> tuple[Path, LocatedFiles]:
    """Return the files of a table, and the folder that contains them: the CSV's or the only one in it that has all."""
    folder = _folder_of(names, base) if search_folders else base
    if folder != base:
        located = locate_files(names, folder, search=False)
        if not located.missing:
            logger.info("Images found in %s.", folder)
            return folder, located
    return base, locate_files(names, base, search=True)


def _folder_of(names: list[str], base: Path) -> Path:
    """Return the folder that file names are relative to: the CSV's folder, or the only folder in it with the files."""
    sample = [name for name in names if name][:20]

    def count_files(folder: Path) -> int:
        paths = [os.path.join(folder, name) for name in sample if "\0" not in name]
        return sum(os.path.exists(path) for path in paths if not is_share(path, folder))

    if not sample or count_files(base):
        return base
    children = [child for child in sorted(base.iterdir()) if child.is_dir() and is_visible(child.name)]
    matches = [child for child in children if not is_masks_folder(child.name) and count_files(child) * 2 >= len(sample)]
    return matches[0] if len(matches) == 1 else base


def contradictions(rows: pd.DataFrame, base: Path) -> list[str]:
    """Return for each row whether the folder in which its file was found contradicts its label or split; "" if not.

    A name such as `1.png` may be unique only because the folder of its own class is missing.
    """
    texts = []
    for name, path, finding, split in rows[["name", "path", "finding", "split"]].itertuples(index=False, name=None):
        folders = [*dict.fromkeys(os.path.relpath(path, base).split(os.sep)[:-1] if path else [])]
        stated, label, part = set(split_path(name)), canonical_finding(finding), SPLITS.get(fold_text(split))
        text = ""
        for folder in folders:
            other, other_part = canonical_finding(folder), SPLIT_FOLDERS.get(fold_text(folder))
            if folder in stated:
                continue
            if {label, other} <= set(SPELLINGS) and label != other and not is_finer(label, other):
                text = f"its label is {finding!r}, and the only file of its name is in the folder {folder!r}"
            elif part and other_part and part != other_part:
                text = f"its split is {split!r}, and the only file of its name is in the folder {folder!r}"
        texts.append(text)
    return texts


def note_rule(located: LocatedFiles, base: Path | None, problems: ProblemLog) -> None:
    """Record and log the rule by which files were found that are not where the table says."""
    if located.rule:
        logger.info("%s.", located.rule)
        remedy = "Nothing, if the example is right."
        problems.add("found_by_rule", path=str(base or ""), severity="note", reason=located.rule, remedy=remedy)
