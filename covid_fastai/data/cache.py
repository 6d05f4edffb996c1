"""Cache of results computed from image files: images at the model's input size, fingerprints.

Each entry is a file whose name is the sha256 of the image file. The same content is therefore found under any name and
in any folder, and a changed file has a new entry. An entry is written to a temporary file, which is then renamed, and
has a checksum. Several processes can therefore use one cache, also on a network drive, and an interrupted write is
never read. The cache contains no names of files or patients, but it contains images: only its owner can read it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from covid_fastai.data.image_facts import MAX_BYTES
from covid_fastai.data.images import Source, open_square
from covid_fastai.errors import ImageError, ResourceError

__all__ = ["Cache", "cache_folder", "cached_square", "default_cache", "keep"]

logger = logging.getLogger("covid_fastai")

VARIABLE = "COVID_FASTAI_CACHE"  # a folder, or "off"
OPENER = 1  # increase with every change to the output of open_image
LIMIT = 2 << 30  # bytes: 30,000 images of 256 pixels
CHECKSUM = 4  # bytes
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
    """Store bytes by the content of an image file; an entry that cannot be written or read counts as missing.

    Args:
        folder: The folder of the entries; created with the first entry.
        limit: Maximum size, bytes; beyond it the least recently used entries are removed.
    """

    folder: Path
    limit: int = LIMIT
    _keys: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict, repr=False)
    _touched: set[Path] = field(default_factory=set, repr=False)
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
        """Return the bytes stored under a key; None if there is no entry or it is damaged."""
        path = self._entry_path(kind, key)
        try:
            whole = path.read_bytes()
        except OSError:
            return None
        content, checksum = whole[:-CHECKSUM], whole[-CHECKSUM:]
        # guard: cache_checksum
        if len(whole) < CHECKSUM or zlib.crc32(content).to_bytes(CHECKSUM, "little") != checksum:
            return None
        self._touch(path)
        return content

    def write(self, kind: str, key: str, content: bytes) -> None:
        """Store bytes under a key; a full disk or a read-only folder is logged once and raises nothing."""
        if not self._works:
            return
        path = self._entry_path(kind, key)
        try:
            self._make_room()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # guard: cache_private
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content + zlib.crc32(content).to_bytes(CHECKSUM, "little"))
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._works = False  # guard: cache_works
            logger.warning(
                "Decoded images are not cached in %s: %s. Set %s to a writable folder, or to off.",
                self.folder,
                error.strerror or error,
                VARIABLE,
            )
            return
        self._touched.add(path)
        self._written = (self._written or 0) + len(content) + CHECKSUM

    def contents(self) -> dict[str, tuple[int, int]]:
        """Return the number of entries of each kind and their total bytes."""
        totals: dict[str, tuple[int, int]] = {}
        for _, size, path in self._entries():
            kind = path.relative_to(self.folder).parts[0]
            number, total = totals.get(kind, (0, 0))
            totals[kind] = (number + 1, total + size)
        return totals

    def clear(self) -> None:
        """Remove all entries.

        Raises:
            ResourceError: An entry cannot be removed.
        """
        self._touched.clear()
        try:
            for child in self.folder.iterdir() if self.folder.is_dir() else ():
                if child.is_dir() and child.name.partition("-")[0] in KINDS:  # never files of the user
                    shutil.rmtree(child)
        except OSError as error:
            raise ResourceError(f"{error.filename} cannot be removed: {error.strerror}.") from error

    def _entry_path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / key[2:]

    def _touch(self, path: Path) -> None:
        """Update the time of use of an entry, once per process."""
        if path not in self._touched:
            self._touched.add(path)
            try:
                os.utime(path)
            except OSError:
                pass  # this process does not sweep a read-only cache either

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return time of use, bytes and path of each entry and of each incomplete file of a killed process."""
        entries = []
        for kind in KINDS:
            for path in self.folder.glob(f"{kind}-*/??/*"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # removed by another process
                entries.append((status.st_mtime, status.st_size, path))
        return entries

    def _make_room(self) -> None:
        """Remove the least recently used entries, before the first write and then after each `SWEEP_EVERY` bytes."""
        if self._written is not None and self._written < SWEEP_EVERY:
            return
        self._written = 0
        entries = sorted(self._entries())
        excess = sum(size for _, size, _ in entries) + SWEEP_EVERY - self.limit
        for _, size, path in entries:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size


def _identity(path: str | os.PathLike) -> tuple[int, ...]:
    """Return size, time of change, inode and device of a file, which differ after a change of its content."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


KINDS = ("grey", "prints")  # prefixes of the names of its folders

_caches: dict[Path, Cache] = {}  # one per folder, since a cache stores the keys of the files it has read


def default_cache() -> Cache | None:
    """Return the cache of `cache_folder`; None if it is off."""
    folder = cache_folder()
    return None if folder is None else _caches.setdefault(folder, Cache(folder))


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

    def square(source: Source) -> bytes:
        return open_square(source, image_size).tobytes()

    return Image.frombytes("L", (image_size, image_size), keep(path, f"grey-{OPENER}-{image_size}", square))


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
