"""Find the files that the rows of a table name, where the table was made for another place or program."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from covid_fastai.data.image_files import FolderReader, has_image_suffix, stem_of
from covid_fastai.data.reach import is_share
from covid_fastai.data.split_names import SPLIT_FOLDERS
from covid_fastai.data.tasks import SPELLINGS, canonical_finding, fold_text
from covid_fastai.errors import DataError

__all__ = [
    "FileIndex",
    "FolderNames",
    "LocatedFiles",
    "Match",
    "contradict",
    "fold_name",
    "is_foreign",
    "locate_files",
    "split_path",
]

logger = logging.getLogger("covid_fastai")

LISTED = 2_000_000  # files; limits the search if the root is, by mistake, a whole disk
DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])|\\\\[^\\/]+")  # `D:\`, `\\server`
# Folders that hold images and say nothing of them, so that a table made elsewhere may lack them.
CONTAINERS = {"images", "image", "img", "imgs", "pictures", "files", "data", "dataset", "scans", "xrays", "radiographs"}
CONTAINERS |= {"png", "jpg", "jpeg", "dicom", "dcm", "all", "cxr"}
NUMBERED = re.compile(r"(images?|imgs?|files|part|batch|chunk|volume)?\d+")  # `images_001`, `part2`, `0`


@dataclass(frozen=True)
class Match:
    """A file that a path of a table may mean.

    Attributes:
        path: The file.
        dropped: The folders at the start of the table's path that the file's path does not have.
        added: The folders at the start of the file's path, below the root, that the table's path does not have.
        exact: Whether the rest of both is spelled alike, apart from a suffix that the table omits.
        has_suffix: Whether the file has a suffix that the table omits.
    """

    path: str
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    exact: bool
    has_suffix: bool


@dataclass(frozen=True)
class LocatedFiles:
    """The files of the rows of a table.

    Attributes:
        paths: The absolute path of each name, `""` for an empty name. A file that was not found has the path that the
            table states.
        missing: The number of names whose file was not found.
        rule: How files were found that are not where the table says, with their number and an example; `""` if there
            are none.
    """

    paths: list[str]
    missing: int = 0
    rule: str = ""


class FileIndex:
    """The image files below a folder, by their names; the folder is listed once, at the first use.

    Names are compared without regard to case and Unicode form. A name without the suffix of an image also stands for
    the image of that name with any suffix.

    Args:
        root: The folder; None for no files.
    """

    def __init__(self, root: str | Path | None):
        self._root = None if root is None else os.fspath(root)
        self._files: dict[str, list[str]] | None = None
        self._reader = FolderReader()

    def closest(self, path: str) -> list[Match]:
        """Return the files that share the file name and the most folders with a path.

        Args:
            path: Relative to the root, or absolute on any machine.

        Returns:
            One match; several if the path does not say which of them it means; none if there is no such file.
        """
        parts = split_path(path)
        if not parts or self._root is None:
            return []
        best: list[tuple[int, bool, Match]] = []
        folded, with_suffix = fold_name(parts[-1]), has_image_suffix(parts[-1])
        for relative in self._by_name().get(_key(parts[-1]), ()):
            folders = relative.split(os.sep)
            if with_suffix and folded != fold_name(folders[-1]):
                continue  # a name with a suffix stands for a file with that suffix
            best.append(self._compare(parts, folders, relative))
        if not best:
            return []
        most = max((shared, exact) for shared, exact, _ in best)
        return [match for shared, exact, match in best if (shared, exact) == most]

    def count(self, name: str) -> int:
        """Return the number of files of a name, without regard to its suffix."""
        return len(self._by_name().get(_key(name), ()))

    def archive(self) -> str:
        """Return an archive below the root that is not unpacked; `""` if there is none."""
        entries = self._reader.left_out.get("archive")
        return entries.examples[0] if entries else ""

    def other_suffix(self, path: str) -> list[Match]:
        """Return the files that differ from a path only in the suffix, as `closest` does."""
        return self.closest(stem_of(path)) if has_image_suffix(path) else []

    def _compare(self, parts: list[str], folders: list[str], relative: str) -> tuple[int, bool, Match]:
        """Return the number of shared folders, whether they are spelled alike, and the match."""
        shared, exact = 0, parts[-1] in (folders[-1], stem_of(folders[-1]))
        for ours, theirs in zip(parts[-2::-1], folders[-2::-1], strict=False):
            if fold_name(ours) != fold_name(theirs):
                break
            shared, exact = shared + 1, exact and ours == theirs
        dropped = tuple(parts[: len(parts) - 1 - shared])
        added = tuple(folders[: len(folders) - 1 - shared])
        has_suffix = fold_name(parts[-1]) != fold_name(folders[-1])
        return shared, exact, Match(os.path.join(str(self._root), relative), dropped, added, exact, has_suffix)

    def _by_name(self) -> dict[str, list[str]]:
        """Return the paths relative to the root by the key of their names."""
        if self._files is None:
            self._files = {}
            root = str(self._root)
            start, number = len(os.path.join(root, "")), 0
            try:
                for number, path in enumerate(self._reader.images(root)):
                    relative = path[start:]
                    self._files.setdefault(_key(os.path.basename(relative)), []).append(relative)
                    if number == LISTED:
                        raise DataError(f"{root} holds more than {LISTED:,} images.", hint="Give image_root.")
            except DataError as error:  # a name that is unique in a part of the files may not be so in all
                logger.warning("Missing files are not searched below %s: %s", root, error)
                self._files = {}
        return self._files


def locate_files(names: Sequence[str], base: str | Path, *, search: bool) -> LocatedFiles:
    """Find the file of each name: where the table says, or for all rows by one rule.

    A name may lack the suffix, or differ in case, Unicode form or separators. With `search`, the files of all rows may
    also lie in other folders below `base` (a name that is there once), or the names may begin with the folders of
    another machine. A folder in the table is never ignored for some of the rows, and no name stands for two files.

    Args:
        names: Paths as the table has them, relative to `base` or absolute.
        base: The folder.
        search: Whether `base` is searched at any depth.

    Returns:
        One path per name.
    """
    base = os.fspath(base)
    # `a.png` and `./a.png` are one file
    stated = {name: os.path.normpath(os.path.join(base, name)) if name else "" for name in names}  # guard: one_spelling
    folders = FolderNames(os.path.abspath(base))
    missing = [name for name, path in stated.items() if name and "\0" not in name and not folders.holds(path)]
    if not missing:
        return LocatedFiles([stated[name] for name in names])
    matches: dict[str, Match] = {}
    for name in missing:
        if match := folders.match(stated[name]):
            matches[name] = match
    rest = {name: None for name in missing if name not in matches}
    if rest and search:
        present = [name for name in stated if name and name not in rest]
        matches |= _search(list(rest), present, Path(base))
    uses = Counter([*stated.values(), *(match.path for match in matches.values())])
    # a file that another name states or means as well is not taken: one of the two means another file
    matches = {name: match for name, match in matches.items() if uses[match.path] == 1}  # guard: two_names
    paths = [matches[name].path if name in matches else stated[name] for name in names]
    rule = _describe(matches, len([name for name in stated if name]), base) if matches else ""
    return LocatedFiles(paths, len(missing) - len(matches), rule)


def split_path(path: str) -> list[str]:
    """Return the parts of a path of any system, without drive and root.

    Args:
        path: Such as `D:\\data\\x.png`, `/mnt/data/x.png` or `data/x.png`.
    """
    path = DRIVE.sub("", path, count=1) if DRIVE.match(path) else path
    parts: list[str] = []
    for part in re.split(r"[\\/]", path):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return parts


def fold_name(name: str) -> str:
    """Return a file name in the form for comparison: case-folded and in Unicode NFC."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _key(name: str) -> str:
    return fold_name(stem_of(name))


class FolderNames:
    """The names in folders; each folder is listed once.

    Args:
        base: The folder of the data. Folders on other machines are not listed unless it is there as well.
    """

    def __init__(self, base: str | os.PathLike[str] | None) -> None:
        self._base = os.fspath(base or "")
        self._names: dict[str, set[str]] = {}
        self._keys: dict[str, dict[str, list[str]]] = {}

    def holds(self, path: str) -> bool:
        """Return whether the folder of a path has an entry of its name."""
        folder, _, name = path.rpartition(os.sep)  # of a normalised path, in a third of the time of os.path.split
        names = self._names.get(folder)
        return name in (self._in(folder) if names is None else names)

    def match(self, path: str, *, any_suffix: bool = False) -> Match | None:
        """Return the only file in a folder whose name differs from a missing one in spelling or an omitted suffix.

        Args:
            path: The missing path.
            any_suffix: Whether its suffix may also differ.
        """
        folder, _, name = path.rpartition(os.sep)
        if folder not in self._keys:
            keys = self._keys.setdefault(folder, {})
            for other in sorted(self._in(folder)):
                for key in {fold_name(other), _key(other)}:
                    keys.setdefault(key, []).append(other)
        with_suffix = has_image_suffix(name)
        others = self._keys[folder].get(fold_name(name), [])
        others = [other for other in others if not with_suffix or fold_name(other) == fold_name(name)]
        if not others and any_suffix:
            others = [other for other in self._keys[folder].get(_key(name), []) if has_image_suffix(other)]
        if len(others) != 1:
            return None
        (other,) = others
        exact = name in (other, stem_of(other))
        return Match(os.path.join(folder, other), (), (), exact, fold_name(other) != fold_name(name))

    def _in(self, folder: str) -> set[str]:
        if folder not in self._names and is_share(folder, self._base):  # guard: share_listed
            self._names[folder] = set()
        elif folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder or os.sep))
            except OSError:
                self._names[folder] = set()
        return self._names[folder]


def _search(missing: list[str], present: list[str], base: Path) -> dict[str, Match]:
    """Return the files below a folder that missing names stand for by one rule; an empty mapping if there is none."""
    index = FileIndex(base)
    unique = {name: matches[0] for name in missing if len(matches := index.closest(name)) == 1}
    if not unique:
        return {}
    shared = os.path.commonprefix([split_path(name)[:-1] for name in missing])  # of lists, part by part
    counts = Counter(match.dropped for match in unique.values() if list(match.dropped) == shared[: len(match.dropped)])
    if not counts:  # guard: varying_folder
        return {}
    dropped = counts.most_common(1)[0][0]
    chosen = {name: match for name, match in unique.items() if match.dropped == dropped}
    if present:  # guard: mixed_places
        # some files are where the table says: the others must all be elsewhere, with names that no other file has
        foreign = bool(dropped) and all(is_foreign(name) for name in missing)
        if not foreign and (dropped or len(chosen) < len(missing)):
            return {}
        if not foreign and any(index.count(split_path(name)[-1]) != 1 for name in present):
            return {}
    if dropped and not all(
        _may_replace(dropped, match.added, base) for match in chosen.values()
    ):  # guard: other_folder
        return {}
    return chosen


def is_foreign(name: str) -> bool:
    """Return whether a path is absolute, on any system."""
    return name.startswith(("/", "\\")) or DRIVE.match(name) is not None


def _may_replace(dropped: tuple[str, ...], added: tuple[str, ...], base: Path) -> bool:
    """Return whether folders of a table may stand for other ones below a folder.

    The table's folders may be absent, and others may be there that repeat their names or say nothing of the images
    (`images`, `images_001`). `COVID` does not stand for `Normal`, and `patient1` not for `patient2`.
    """
    known = {fold_name(part) for part in dropped}
    if any(fold_name(part) not in known and not _is_container(part) for part in added):
        return False
    return not contradict(dropped, added or (base.name,))


def contradict(dropped: tuple[str, ...], added: tuple[str, ...]) -> bool:
    """Return whether two lists of folders, at the end of a table's and of a file's path, are of different images.

    They are if they name different findings or parts of a split, or if they end alike with another number.
    """
    if not dropped or not added:
        return False
    last, place = fold_name(dropped[-1]), fold_name(added[-1])
    if last != place and re.sub(r"\d+", "#", last) == re.sub(r"\d+", "#", place):
        return True
    for meaning in (_split, _finding):
        ours, theirs = ({meaning(part) for part in parts} - {""} for parts in (dropped, added))
        if ours and theirs and ours != theirs:
            return True
    return False


def _is_container(part: str) -> bool:
    folded = fold_text(part)
    return folded in CONTAINERS or NUMBERED.fullmatch(folded) is not None


def _split(part: str) -> str:
    return SPLIT_FOLDERS.get(fold_text(part), "")


def _finding(part: str) -> str:
    finding = canonical_finding(part)
    return finding if finding in SPELLINGS else ""


def _describe(matches: dict[str, Match], total: int, base: str | Path) -> str:
    """Return the rule by which files were found, with their number and an example."""
    ways = []
    dropped = next((match.dropped for match in matches.values() if match.dropped), ())
    if dropped:
        ways.append(f"without the table's folder {'/'.join(dropped)!r}")
    if any(match.added for match in matches.values()):
        ways.append("in other folders")
    if any(match.has_suffix for match in matches.values()):
        ways.append("with the suffix that the table omits")
    if any(not match.exact for match in matches.values()):
        ways.append("in another letter case or Unicode form")
    ways = ways or ["with other separators"]
    name, match = max(matches.items(), key=lambda item: (len(item[1].dropped), len(item[1].added), item[1].has_suffix))
    example = os.path.relpath(match.path, base)
    return f"{len(matches):,} of {total:,} files were found {' and '.join(ways)}: {name!r} is {example}"
