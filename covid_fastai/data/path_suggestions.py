"""Suggest an existing file for a path that is missing."""

from __future__ import annotations

import os
from pathlib import Path

from covid_fastai.data.archives import unpack_command
from covid_fastai.data.file_locations import FileIndex, FolderNames, Match, contradict, is_foreign

__all__ = ["NearbyFiles"]


class NearbyFiles:
    """Find the file that a missing path may mean: the same name with another case, Unicode form, suffix or folder.

    A name that is only similar is never suggested, because it may belong to another patient. The root is listed once,
    at the first path that its own folder does not explain.

    Args:
        root: The folder that is searched for the name, at any depth; None for no such search.
    """

    def __init__(self, root: str | Path | None):
        self._root = None if root is None else os.fspath(root)
        self._index = FileIndex(root)
        self._names = FolderNames(root)

    def find(self, path: str) -> str:
        """Return the suggested path; `""` if no file or several files match."""
        files = self.find_all(path)
        return files[0] if len(files) == 1 else ""

    def find_all(self, path: str) -> list[str]:
        """Return the files that a missing path may mean; several if the path does not say which."""
        return [match.path for match in self._matches(path)]

    def _matches(self, path: str) -> list[Match]:
        folder, name = os.path.split(path)
        parent, split = os.path.split(folder)
        other_split = {"train": "test", "test": "train"}.get(split)
        for place in [folder, *([os.path.join(parent, other_split)] if other_split else [])]:
            if match := self._names.match(os.path.join(place, name), any_suffix=True):
                return [match]
        unix = path.replace("\\", "/")
        if unix != path and os.path.isfile(unix):
            return [Match(unix, (), (), False, False)]
        inside = self._root is not None and path.startswith(os.path.join(self._root, ""))
        relative = path[len(os.path.join(str(self._root), "")) :] if inside else path
        matches = self._index.closest(relative) or self._index.other_suffix(relative)
        matches = [match for match in matches if not contradict(match.dropped, match.added)]
        if len(matches) > 1 and any(match.dropped for match in matches) and not is_foreign(relative):
            return []  # files of this name in other folders than the stated one
        return matches

    def remedy(self, path: str) -> str:
        """Return what to do about a missing path."""
        matches = self._matches(path)
        if len(matches) == 1:
            (match,) = matches
            place = os.path.join(str(self._root), *match.added)
            all_rows = f" If so for all rows, give image_root={place}." if match.dropped and match.added else ""
            return f"Did you mean {match.path}?{all_rows}"
        if archive := self._index.archive():
            return f"If it is in {os.path.basename(archive)}, unpack that: {unpack_command(archive)}"
        return "Add the file, correct its name, or give image_root."
