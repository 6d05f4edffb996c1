"""Which file was meant, where the one that was named is not there."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

__all__ = ["NearbyFiles"]

LISTED = 200_000  # names that are looked through, so that a mistaken root does not have a whole disk read


class NearbyFiles:
    """Find the file that a missing one may be: the same name in another case, Unicode form, ending or folder.

    A name that is only similar is never proposed: it may be another patient's. Folders are listed once, when they are
    first asked for.

    Args:
        root: The folder that is searched for the name, at any depth; None for none.
    """

    def __init__(self, root: str | Path | None):
        self._root = root
        self._folders: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self._below: dict[str, str] | None = None

    def find(self, path: str) -> str:
        """Return the path that may be meant, `""` where there is none, or where several files have that name."""
        folder, name = os.path.split(path)
        parent, part = os.path.split(folder)
        other_part = {"train": "test", "test": "train"}.get(part)
        for place in [folder, *([os.path.join(parent, other_part)] if other_part else [])]:
            if match := self._same_but_case_or_ending(name, place):
                return os.path.join(place, match)
        unix = path.replace("\\", "/")
        if unix != path and os.path.isfile(unix):
            return unix
        return self._anywhere(os.path.basename(unix))

    def _same_but_case_or_ending(self, name: str, folder: str) -> str:
        names, stems = self._names(folder)
        folded = _fold(name)
        return names.get(folded) or stems.get(os.path.splitext(folded)[0], "")

    def _anywhere(self, name: str) -> str:
        """Return the only file of that name below the root; its ending may be another one."""
        if self._below is None:
            self._below = {}
            for folder, _, names in os.walk(self._root) if self._root is not None else ():
                for known in names:
                    for key in {_fold(known), os.path.splitext(_fold(known))[0]}:
                        path = os.path.join(folder, known)
                        self._below[key] = path if self._below.get(key, path) == path else ""  # "": several have it
                if len(self._below) > LISTED:
                    break
        folded = _fold(name)
        return self._below.get(folded) or self._below.get(os.path.splitext(folded)[0], "")

    def _names(self, folder: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the folder's names by their lower case, and by that without the ending."""
        if folder not in self._folders:
            try:
                names = {_fold(name): name for name in os.listdir(folder)}
            except OSError:
                names = {}
            self._folders[folder] = names, {os.path.splitext(folded)[0]: name for folded, name in names.items()}
        return self._folders[folder]


def _fold(name: str) -> str:
    """Return a file name as names are compared: without regard to case and Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()
