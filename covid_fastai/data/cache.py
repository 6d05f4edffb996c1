"""Cache of results computed from image files: images at the model's input size, fingerprints, features of the audit.

A result is found by the sha256 of the image file. The same content is therefore found under any name and in any folder,
and a changed file has a new result. The results of one kind are packed into a few files (`packed_records`), which
several processes can use at once. The cache contains no names of files or patients, but it contains images: only its
owner can read and write it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from covid_fastai.data.image_facts import MAX_BYTES
from covid_fastai.data.images import Source, open_square
from covid_fastai.data.packed_records import PackedRecords, list_segments
from covid_fastai.errors import ImageError, ResourceError, UsageError

__all__ = ["Cache", "cache_folder", "cached_square", "default_cache", "keep", "square_pixels"]

logger = logging.getLogger("covid_fastai")

VARIABLE = "COVID_FASTAI_CACHE"  # a folder, or "off"
OPENER = 2  # increase with every change to the output of open_image
LIMIT_VARIABLE = "COVID_FASTAI_CACHE_GB"  # maximum size, 1e9 bytes
SWEEP_EVERY = 256 << 20  # bytes that a process writes between two checks of the size of the cache


def cache_folder() -> Path | None:
    """Return the cache folder: `COVID_FASTAI_CACHE`, else the system's folder for caches; None if the cache is off."""
    named = os.environ.get(VARIABLE, "")
    if named.strip().lower() in ("off", "0", "no", "false"):
        return None
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "covid_fastai"


@dataclass
class Cache:
    """Store bytes by the content of an image file; a result that cannot be written or read counts as missing.

    Args:
        folder: The folder of the results; created with the first one.
        limit: Maximum size, bytes, beyond which the least recently used results are removed; None for half of the space
            that is free when the process begins to write, results that are there included.
    """

    folder: Path
    limit: int | None = None
    _keys: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict, repr=False)
    _records: dict[str, PackedRecords] = field(default_factory=dict, repr=False)
    _written: int | None = field(default=None, repr=False)  # bytes since the last sweep; None before the first
    _works: bool = field(default=True, repr=False)

    def known_key(self, path: str | os.PathLike) -> str:
        """Return the key of a file that this process has read and that has not changed since; else an empty string."""
        known = self._keys.get(os.fspath(path))
        return known[1] if known is not None and known[0] == _identity(path) else ""  # guard: cache_key

    def learn_key(self, path: str | os.PathLike, content: bytes) -> str:
        """Return the sha256 of a file's bytes, and store it for `known_key`."""
        key = hashlib.sha256(content).hexdigest()
        self._keys[os.fspath(path)] = (_identity(path), key)
        return key

    def read(self, kind: str, key: str) -> bytes | None:
        """Return the bytes stored under a key; None if there are none or they are damaged."""
        if self._is_foreign():
            return None
        return self._of_kind(kind).read(bytes.fromhex(key))

    def write(self, kind: str, key: str, content: bytes) -> None:
        """Store bytes under a key; a cache that is full or cannot be written is logged once and raises nothing."""
        if not self._works or self._is_foreign():
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # guard: cache_private
            (self.folder / kind).mkdir(mode=0o700, exist_ok=True)  # the user's own folder may have another mode
            if self._written is None or self._written >= SWEEP_EVERY:
                self._written = 0
                self._make_room()
                if not self._works:
                    return
            self._of_kind(kind).write(bytes.fromhex(key), content)
        except OSError as error:
            self._stop(  # guard: cache_works
                error.strerror or str(error), remedy=f"Set {VARIABLE} to another folder, or to off."
            )
            return
        self._written += len(content)

    def contents(self) -> dict[str, tuple[int, int]]:
        """Return the number of results of each kind and their total bytes."""
        totals: dict[str, tuple[int, int]] = {}
        for folder in self._kind_folders():
            segments = list_segments(folder)
            if segments:
                totals[folder.name] = sum(s.records for s in segments), sum(s.size for s in segments)
        return totals

    def clear(self) -> None:
        """Remove all results.

        Raises:
            ResourceError: A file cannot be removed.
        """
        for records in self._records.values():
            records.close()
        self._records.clear()
        try:
            for folder in self._kind_folders():
                shutil.rmtree(folder)  # never files of the user
        except OSError as error:
            raise ResourceError(f"{error.filename} cannot be removed: {error.strerror}.") from error

    def size_limit(self) -> int:
        """Return the maximum size of the cache, bytes."""
        if self.limit is None:
            parent = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            self.limit = (self._size() + shutil.disk_usage(parent).free) // 2
        return self.limit

    def _of_kind(self, kind: str) -> PackedRecords:
        if kind not in self._records:
            self._records.setdefault(kind, PackedRecords(self.folder / kind))  # another thread may have been first
        return self._records[kind]

    def _kind_folders(self) -> list[Path]:
        children = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [child for child in children if child.is_dir() and child.name.partition("-")[0] in KINDS]

    def _size(self) -> int:
        return sum(segment.size for folder in self._kind_folders() for segment in list_segments(folder))

    def _make_room(self) -> None:
        """Remove the least recently used results, but none that this process uses.

        If that is too little, no more results are written, which is logged.
        """
        segments = [segment for folder in self._kind_folders() for segment in list_segments(folder)]
        in_use = set().union(*(records.segments_in_use() for records in self._records.values()))
        excess = sum(segment.size for segment in segments) + SWEEP_EVERY - self.size_limit()
        for segment in sorted(segments, key=lambda segment: segment.last_used):
            if excess <= 0:
                return
            if segment.index not in in_use and segment.remove():
                excess -= segment.size
        if excess > 0:  # guard: cache_full
            self._stop(
                f"it may have {self.size_limit() / 1e9:.1f} GB, and all of it is in use. The other images are decoded "
                "again in each epoch",
                remedy=f"Set {LIMIT_VARIABLE} to a larger number, or {VARIABLE} to a folder on a larger disk.",
            )

    def _is_foreign(self) -> bool:
        """Return whether another user owns or can change the folder, and could have exchanged the images."""
        if not hasattr(os, "geteuid"):
            return False
        try:
            status = os.stat(self.folder)
        except OSError:
            return False
        if status.st_uid in (os.geteuid(), 0) and not status.st_mode & stat.S_IWOTH:  # guard: cache_owner
            return False
        self._stop(
            "another user owns it or can write to it", remedy=f"Set {VARIABLE} to a folder of your own, or to off."
        )
        return True

    def _stop(self, reason: str, *, remedy: str) -> None:
        """Write no more results, and log the reason once."""
        if self._works:
            self._works = False
            logger.warning("Decoded images are no longer added to the cache %s: %s. %s", self.folder, reason, remedy)


def _identity(path: str | os.PathLike) -> tuple[int, ...]:
    """Return size, times of change, inode and device of a file, of which one differs after a change of its content."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


KINDS = ("features", "grey", "lungs", "prints")  # prefixes of the names of its folders

_caches: dict[Path, Cache] = {}  # one per folder, since a cache stores the keys of the files it has read


def default_cache() -> Cache | None:
    """Return the cache of `cache_folder`; None if it is off.

    Raises:
        UsageError: `COVID_FASTAI_CACHE_GB` is not a positive number.
    """
    folder = cache_folder()
    if folder is None:
        return None
    if folder not in _caches:
        _caches.setdefault(folder, Cache(folder, _named_limit()))
    return _caches[folder]


def _named_limit() -> int | None:
    """Return the maximum size from the environment, bytes; None if none is given."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    try:
        gigabytes = float(text) if text else None
    except ValueError:
        gigabytes = -1.0
    if gigabytes is None:
        return None
    if not 0 < gigabytes < math.inf:
        raise UsageError(f"{LIMIT_VARIABLE}={text!r} is not a positive number.", hint="Give gigabytes, such as 20.")
    return int(gigabytes * 1e9)


def cached_square(path: str | os.PathLike, image_size: int) -> Image.Image:
    """Return the result of `open_square` for a file, from the cache if possible.

    Args:
        path: The file.
        image_size: Side of the square, pixels.

    Returns:
        An image of mode `"L"`, `(image_size, image_size)`.

    Raises:
        ImageError: As for `open_image`; errors are not cached.
    """
    return Image.fromarray(square_pixels(path, image_size))


def square_pixels(path: str | os.PathLike, image_size: int) -> np.ndarray:
    """Return the pixels of `cached_square`, `(image_size, image_size)` uint8, which must not be changed."""

    def square(source: Source) -> bytes:
        return open_square(source, image_size).tobytes()

    content = keep(path, f"grey-{OPENER}-{image_size}", square)
    return np.frombuffer(content, dtype=np.uint8).reshape(image_size, image_size)


def keep(path: str | os.PathLike, kind: str, make: Callable[[Source], bytes]) -> bytes:
    """Return a result computed from a file's content, from the cache if possible.

    Args:
        path: The file.
        kind: Name of the result, with the version of the code that computes it; begins with one of `KINDS`.
        make: Computes the result from the file's bytes, and from nothing else (such as its name).

    Returns:
        What `make` returned, in this call or an earlier one.

    Raises:
        ImageError: As `make` raises it, with the file's name; errors are not cached.
    """
    if not _is_readable(path):
        return make(path)  # raises an error that names the fault
    cache = default_cache()
    key = cache.known_key(path) if cache is not None else ""
    cached = cache.read(kind, key) if cache is not None and key else None
    if cached is not None:
        return cached
    content = Path(path).read_bytes()  # read once for hash and decoder: the file may change between two reads
    if cache is not None:
        key = cache.learn_key(path, content)
        if (cached := cache.read(kind, key)) is not None:
            return cached
    try:
        result = make(content)
    except ImageError:
        return make(path)  # raises the error again, with the file's name
    if cache is not None:
        cache.write(kind, key, result)
    return result


def _is_readable(path: str | os.PathLike) -> bool:
    """Return whether a path is a regular file that is readable and not too large."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES and os.access(path, os.R_OK)
