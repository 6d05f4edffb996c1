"""Suggest an existing file for a path that is missing."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

__all__ = ["NearbyFiles"]

LISTED = 200_000  # file names; limits the search if the root is, by mistake, a whole disk


class NearbyFiles:
    """Find the file that a missing path may mean: the same name with another case, Unicode form, suffix or folder.

    A name that is only similar is never suggested, because it may belong to another patient. Each folder is listed
    once, at its first use.

    Args:
        root: The folder that is searched for the name, at any depth; None for no such search.
    """

    def __init__(self, root: str | Path | None):
        self._root = root
        self._folders: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self._below: dict[str, str] | None = None

    def find(self, path: str) -> str:
        """Return the suggested path; `""` if no file or several files match."""
        folder, name = os.path.split(path)
        parent, split = os.path.split(folder)
        other_split = {"train": "test", "test": "train"}.get(split)
        for candidate in [folder, *([os.path.join(parent, other_split)] if other_split else [])]:
            if match := self._match_case_or_suffix(name, candidate):
                return os.path.join(candidate, match)
        unix = path.replace("\\", "/")
        if unix != path and os.path.isfile(unix):
            return unix
        return self._match_below_root(os.path.basename(unix))

    def _match_case_or_suffix(self, name: str, folder: str) -> str:
        names, stems = self._names(folder)
        folded = _fold(name)
        return names.get(folded) or stems.get(os.path.splitext(folded)[0], "")

    def _match_below_root(self, name: str) -> str:
        """Return the only file of that name below the root; its suffix may differ."""
        if self._below is None:
            self._below = {}
            for folder, _, names in os.walk(self._root) if self._root is not None else ():
                for known in names:
                    for key in {_fold(known), os.path.splitext(_fold(known))[0]}:
                        path = os.path.join(folder, known)
                        self._below[key] = path if self._below.get(key, path) == path else ""  # "": several files
                if len(self._below) > LISTED:
                    break
        folded = _fold(name)
        return self._below.get(folded) or self._below.get(os.path.splitext(folded)[0], "")

    def _names(self, folder: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the file names of a folder by their folded name, and by the folded name without suffix."""
        if folder not in self._folders:
            try:
                names = {_fold(name): name for name in os.listdir(folder)}
            except OSError:
                names = {}
            self._folders[folder] = names, {os.path.splitext(folded)[0]: name for folded, name in names.items()}
        return self._folders[folder]


def _fold(name: str) -> str:
    """Return a file name in the form for comparison: case-folded and in Unicode NFC."""
    return unicodedata.normalize("NFC", name).casefold()
