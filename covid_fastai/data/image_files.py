"""List the image files below folders. Training, prediction, the audit and the checks use this one list."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

from covid_fastai.data.archives import is_archive_name, unpack_command
from covid_fastai.data.image_facts import SUFFIXES
from covid_fastai.errors import DataError

__all__ = [
    "FolderReader",
    "IMAGE_SUFFIXES",
    "LeftOut",
    "contains",
    "folders_below",
    "has_image_suffix",
    "is_folder",
    "is_link",
    "is_masks_folder",
    "is_path_visible",
    "is_visible",
    "scan_folder",
    "stem_of",
    "suffix_of",
]

logger = logging.getLogger("covid_fastai")

# GIF is listed so that it raises an error, with its reason, in place of being left out
IMAGE_SUFFIXES = frozenset({suffix for suffixes in SUFFIXES.values() for suffix in suffixes} | {".gif"})
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "dicomdir"}
# of macOS archives, Windows, Synology (whose @eaDir holds thumbnails) and Linux
SYSTEM_FOLDERS = {"__macosx", "$recycle.bin", "system volume information", "@eadir", "#recycle", "lost+found"}
MASK_WORDS = {"mask", "masks"}
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")  # of "lung masks", "lung_masks" and "leftMask"
MASK_FILE = re.compile(r"[-_ ](lung|lungs|lung_)?masks?$", re.IGNORECASE)
EXAMPLES = 3
DEPTH = 200  # folders in one another; more is a mistake, and would exceed what Python can call
# The first bytes of the formats, for files without a suffix; DICOM has DICM at byte 128 (DICOM PS3.10, section 7.1).
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")
HEAD = 132  # bytes

# What one and several entries of each kind are called, in the order of the summary.
DESCRIPTIONS = {
    "broken_link": ("link to nothing", "links to nothing"),
    "masks": ("mask", "masks"),
    "not_an_image": ("file without an image suffix", "files without an image suffix"),
    "archive": ("archive that is not unpacked", "archives that are not unpacked"),
    "repeated": ("link to an image that is listed already", "links to images that are listed already"),
    "loop": ("link to a folder that it lies in", "links to a folder that they lie in"),
    "copy": ("image of a folder that repeats another", "images of folders that repeat others, file by file"),
    "no_class": ("image outside the class folders", "images outside the class folders"),
    "empty_folder": ("folder without a file", "folders without a file"),
    "hidden": ("hidden or system file", "hidden or system files"),
}
UNIMPORTANT = {"not_an_image", "empty_folder", "hidden"}


@dataclass
class LeftOut:
    """Entries of one kind that a listing left out.

    Attributes:
        count: Their number.
        examples: The paths of the first of them.
        suffixes: The number of files of each suffix.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)
    suffixes: Counter = field(default_factory=Counter)

    def describe(self, kind: str, root: str | os.PathLike[str]) -> str:
        """Return a clause such as `3 masks were left out: COVID/masks/1.png, ...`."""
        names = [os.path.relpath(path, root) for path in self.examples]
        names = [name if not name.startswith("..") else path for name, path in zip(names, self.examples, strict=True)]
        more = ", ..." if self.count > len(names) else ""
        counts = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in self.suffixes.most_common(6))
        counts = f" ({counts})" if kind == "not_an_image" and len(self.suffixes) > 1 else ""
        several = self.count != 1
        left_out = f"{DESCRIPTIONS[kind][several]}{counts} {'were' if several else 'was'} left out"
        described = f"{self.count:,} {left_out}: {', '.join(names)}{more}"
        if kind == "archive":
            described += f". Unpack {'each' if several else 'it'}: {unpack_command(self.examples[0])}"
        return described


class FolderReader:
    """List the images below folders, and count what is left out.

    Listed are files with the suffix of an image, and files without a suffix, or with a number as a suffix, that begin
    as an image does: DICOM files from a hospital often have no suffix, or the last number of a UID as one. Left out
    are hidden files and those of the operating system, masks (folders named so, and `x_mask.png` beside `x.png`), and
    all other files.

    Links are followed. A file that is reached twice is listed once, and a link to a folder that contains it is not
    followed.

    Args:
        folders: All folders that will be listed, if a file must not count for two of them. The path of a file that is
            reached a second time from another folder is in `same_file`.

    Attributes:
        left_out: What was left out, by the kinds of `DESCRIPTIONS`.
        same_file: The first listed path of a file, by each further path of it.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]] = ()):
        self.left_out: dict[str, LeftOut] = {}
        self.same_file: dict[str, str] = {}
        self._places = {os.path.realpath(folder): os.fspath(folder) for folder in folders}
        self._reached: dict[str, tuple[str, str]] = {}  # by the real path of a linked file: the folder, the first path
        self._real_folder = cache(os.path.realpath)  # many links lead to one folder

    def images(self, folder: str | os.PathLike[str]) -> Iterator[str]:
        """Yield the images below a folder, sorted by name, with the names of one folder at a time in memory.

        Args:
            folder: The folder; its own name and the names above it do not matter.

        Yields:
            Paths that begin with `folder`. A link to nothing is listed, so that it can be reported.

        Raises:
            DataError: A folder cannot be listed.
        """
        root = os.fspath(folder)
        real = os.path.realpath(root)
        yield from self._walk(root, real, root=(root, real), linked=False, folders=set(), depth=0)

    def _walk(
        self, folder: str, real: str, *, root: tuple[str, str], linked: bool, folders: set[str], depth: int
    ) -> Iterator[str]:
        """Yield the images of a folder whose real path is known.

        Args:
            folder: The path to list.
            real: Its real path.
            root: The path and the real path of the folder that is being listed.
            linked: Whether a link leads to this folder.
            folders: The real paths of the folders that were reached by links.
            depth: The number of folders between this one and the root.
        """
        _check_depth(root[0], folder, depth)
        entries = scan_folder(folder)
        names = {entry.name for entry in entries}
        for entry in entries:
            if not is_visible(entry.name):
                self.leave_out("hidden", entry.path)
            elif is_folder(entry):
                by_link = linked or is_link(entry)
                inner = os.path.realpath(entry.path) if by_link else os.path.join(real, entry.name)
                if by_link and contains(inner, real):  # guard: link_loop
                    self.leave_out("loop", entry.path)
                elif by_link and (inner in folders or self._is_listed(inner, root[1])):
                    self.leave_out("repeated", entry.path)
                elif is_masks_folder(entry.name):  # guard: masks_folder
                    self.leave_out_masks(entry.path)
                else:
                    folders |= {inner} if by_link else set()
                    yield from self._walk(
                        entry.path, inner, root=root, linked=by_link, folders=folders, depth=depth + 1
                    )
            elif not _is_image(entry.path):
                self.leave_out(_kind_of_other(entry), entry.path)
            elif _is_mask_of(entry.name, names):
                self.leave_out("masks", entry.path)
            elif not (linked or entry.is_symlink()) or self._is_new(entry, real, root):
                yield entry.path
        if not entries:
            self.leave_out("empty_folder", folder)

    def _is_new(self, entry: os.DirEntry, parent: str, root: tuple[str, str]) -> bool:
        """Return whether a linked file is to be listed: it is not listed yet, or in another folder only."""
        real = self._real_path(entry, parent)
        if self._is_listed(real, root[1]):
            self.leave_out("repeated", entry.path)
            return False
        place = next((place for place in self._places if self._is_listed(real, place)), None)
        if place is not None:
            self.same_file[entry.path] = os.path.join(self._places[place], os.path.relpath(real, place))
            return True
        folder, first = self._reached.setdefault(real, (root[0], entry.path))
        if first == entry.path:
            return True
        if folder == root[0]:
            self.leave_out("repeated", entry.path)
            return False
        self.same_file[entry.path] = first
        return True

    def _real_path(self, entry: os.DirEntry, parent: str) -> str:
        """Return the real path of a file in a folder whose real path is known."""
        if not entry.is_symlink():
            return os.path.join(parent, entry.name)
        folder, name = os.path.split(os.path.join(parent, os.readlink(entry.path)))
        path = os.path.join(self._real_folder(folder), name)
        return os.path.realpath(path) if os.path.islink(path) or name in ("", ".", "..") else path

    def _is_listed(self, real: str, root: str) -> bool:
        """Return whether a real path is in a folder and is listed there, apart from any link."""
        if not contains(root, real) or real == root:
            return real == root
        if not is_path_visible(os.path.relpath(real, root)) or not os.path.exists(real):
            return False
        return not is_masks_folder(os.path.basename(real)) if os.path.isdir(real) else _is_image(real)

    def leave_out_masks(self, folder: str) -> None:
        """Count the images in a folder of masks as left out."""
        reader = FolderReader()
        for path in reader.images(folder):
            self.leave_out("masks", path)
        for kind, entries in reader.left_out.items():
            self.leave_out(kind, *entries.examples, count=entries.count)

    def leave_out(self, kind: str, *paths: str, count: int | None = None) -> None:
        """Count entries as left out.

        Args:
            kind: A key of `DESCRIPTIONS`.
            *paths: The entries, or examples of them.
            count: Their number; None for that of `paths`.
        """
        entries = self.left_out.setdefault(kind, LeftOut())
        entries.count += len(paths) if count is None else count
        entries.examples += paths[: EXAMPLES - len(entries.examples)]
        entries.suffixes.update(suffix_of(path) for path in paths)

    def summary(self, root: str | os.PathLike[str]) -> dict[str, str]:
        """Return one clause for each kind of entry that was left out; examples are relative to `root`."""
        return {kind: self.left_out[kind].describe(kind, root) for kind in DESCRIPTIONS if kind in self.left_out}

    def log_left_out(self, root: str | os.PathLike[str]) -> None:
        """Log what was left out: images, and what may hide some, as warnings."""
        for kind, clause in self.summary(root).items():
            logger.log(logging.INFO if kind in UNIMPORTANT else logging.WARNING, "%s: %s.", os.fspath(root), clause)


def scan_folder(folder: str) -> list[os.DirEntry]:
    """Return the entries of a folder, sorted by name.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:  # guard: unlistable
        raise DataError(f"{folder} cannot be listed: {error.strerror}.", hint="Check its permissions.") from error


def folders_below(folder: str) -> Iterator[str]:
    """Yield a folder and all visible folders below it, each once; links are followed after all other folders.

    Args:
        folder: The folder.

    Raises:
        DataError: A folder cannot be listed, or they are nested too deep.
    """
    reached: set[str] = set()
    waiting, links = deque([(folder, os.path.realpath(folder), 0)]), deque[tuple[str, str, int]]()
    while waiting or links:
        current, real, depth = (waiting or links).popleft()
        if real in reached or not os.path.isdir(current):
            continue
        _check_depth(folder, current, depth)
        reached.add(real)
        yield current
        for entry in scan_folder(current):
            if entry.name.startswith(".") or not is_folder(entry):
                continue
            if is_link(entry):
                links.append((entry.path, os.path.realpath(entry.path), depth + 1))
            else:
                waiting.append((entry.path, os.path.join(real, entry.name), depth + 1))


def _check_depth(root: str, folder: str, depth: int) -> None:
    if depth > DEPTH:  # guard: deep_folders
        start = os.path.relpath(folder, root)[:80]
        raise DataError(
            f"{root} has folders that are nested more than {DEPTH} deep, such as {start}...",
            hint="Give a folder with the images, or move them up.",
        )


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden nor the operating system's own."""
    return not name.startswith(".") and name.casefold() not in SYSTEM_FILES | SYSTEM_FOLDERS  # guard: system_files


def is_path_visible(path: str) -> bool:
    """Return whether a relative path has no hidden part and lies in no folder of masks."""
    *folders, name = path.replace(os.sep, "/").split("/")
    return is_visible(name) and all(is_visible(folder) and not is_masks_folder(folder) for folder in folders)


def is_masks_folder(name: str) -> bool:
    """Return whether the name of a folder says that it holds masks, such as `masks`, `lung masks` or `leftMask`."""
    words = [word.casefold() for word in WORDS.findall(name)]
    return bool(words) and bool(MASK_WORDS & {words[0], words[-1]})


def has_image_suffix(name: str) -> bool:
    """Return whether a file name has the suffix of an image, in any case."""
    return suffix_of(name) in IMAGE_SUFFIXES


def suffix_of(name: str) -> str:
    """Return the suffix of a file name in lower case, with its dot."""
    base = name[name.rfind(os.sep) + 1 :]  # os.path.splitext takes three times as long, and folders hold many files
    dot = base.rfind(".")
    return base[dot:].lower() if dot > 0 else ""


def stem_of(name: str) -> str:
    """Return a file name without the suffix of an image; other suffixes stay, as in `1.2.840.113`."""
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix in IMAGE_SUFFIXES else name


def _is_mask_of(name: str, names: set[str]) -> bool:
    """Return whether a file is named as the mask of an image beside it: `x_mask.png` and `x.png`."""
    stem, suffix = os.path.splitext(name)
    image = MASK_FILE.sub("", stem)
    return image != stem and any(image + other in names for other in {suffix, *IMAGE_SUFFIXES})


def _is_image(path: str) -> bool:
    """Return whether a file is an image, by its suffix or, without one, by its first bytes."""
    suffix = suffix_of(path)
    if suffix in IMAGE_SUFFIXES:
        return True
    if (suffix and not suffix[1:].isdigit()) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return head[128:] == b"DICM" or head.startswith(MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:  # guard: link_to_itself
        return False


def _kind_of_other(entry: os.DirEntry) -> str:
    """Return the kind of a file that is no image."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "broken_link"
    return "archive" if is_archive_name(entry.name) else "not_an_image"


def is_link(entry: os.DirEntry) -> bool:
    """Return whether an entry of a folder is a link."""
    # a junction is a link to a folder on Windows, known from Python 3.12 on
    return entry.is_symlink() or getattr(entry, "is_junction", lambda: False)()


def contains(folder: str, path: str) -> bool:
    """Return whether a path is a folder or below it, by the names alone."""
    return path == folder or path.startswith(os.path.join(folder, ""))
