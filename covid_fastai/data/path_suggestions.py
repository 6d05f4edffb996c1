"""Which file was meant, where the one that was named is not there."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

__all__ = ["NearbyFiles"]

GUESSES = 50  # missing files that are compared by likeness: some 20 ms each in a folder of 5,000 names
LISTED = 200_000  # names that are looked through, so that a mistaken root does not have a whole disk read


class NearbyFiles:
    """Find the file that a missing one may be: another case, ending or folder, or a similar name.

    Folders are listed once, when they are first asked for.

    Args:
        root: The folder that is searched for the name, at any depth; None for none.
    """

    def __init__(self, root: str | Path | None):
        self._root = root
        self._folders: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self._below: dict[str, str] | None = None
        self._guesses = GUESSES

    def find(self, path: str) -> str:
        """Return the path that may be meant, "" where nothing is like it."""
        folder, name = os.path.split(path)
        parent, part = os.path.split(folder)
        other_part = {"train": "test", "test": "train"}.get(part)
        for place in [folder, *([os.path.join(parent, other_part)] if other_part else [])]:
            if match := self._same_but_case_or_ending(name, place):
                return os.path.join(place, match)
        unix = path.replace("\\", "/")
        if unix != path and os.path.isfile(unix):
            return unix
        return self._anywhere(name) or self._alike(name, folder)

    def _same_but_case_or_ending(self, name: str, folder: str) -> str:
        names, stems = self._names(folder)
        folded = name.casefold()
        return names.get(folded) or stems.get(os.path.splitext(folded)[0], "")

    def _anywhere(self, name: str) -> str:
        if self._below is None:
            self._below = {}
            for folder, _, names in os.walk(self._root) if self._root is not None else ():
                for known in names:
                    self._below.setdefault(known.casefold(), os.path.join(folder, known))
                if len(self._below) > LISTED:
                    break
        return self._below.get(name.casefold(), "")

    def _alike(self, name: str, folder: str) -> str:
        if self._guesses <= 0:
            return ""
        self._guesses -= 1
        names, _ = self._names(folder)
        near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.85)
        return os.path.join(folder, names[near[0]]) if near else ""

    def _names(self, folder: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the folder's names by their lower case, and by that without the ending."""
        if folder not in self._folders:
            try:
                names = {name.casefold(): name for name in os.listdir(folder)}
            except OSError:
                names = {}
            self._folders[folder] = names, {os.path.splitext(folded)[0]: name for folded, name in names.items()}
        return self._folders[folder]
