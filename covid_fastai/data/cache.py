"""What was computed from an image file, kept for the next time: pictures at the model's size, fingerprints.

A file an entry, under the sha256 of the image file: the same picture is found under any name, in any folder, and a
changed file is another one. An entry is written beside its place and renamed, and carries a checksum: two processes
may share a cache, on a network drive too, and of one that is killed nothing is left that is read. No name of a file or
of a patient is in it, but pictures are: only its owner may read it.
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
OPENER = 1  # to be counted up with every change of what open_image makes of a file
LIMIT = 2 << 30  # bytes: 30,000 images of 256 pixels
CHECKSUM = 4  # bytes
SWEEP_EVERY = 256 << 20  # bytes that a process writes before it looks again whether the cache is too large


def cache_folder() -> Path | None:
    """Return the folder of the cache: `COVID_FASTAI_CACHE`, else the system's place for caches; None if it is off."""
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
    """Keep bytes by the content of an image file; what cannot be kept or read is as if it had never been kept.

    Args:
        folder: Where; made when something is kept.
        limit: Bytes that it may take; beyond it the entries that were used longest ago go.
    """

    folder: Path
    limit: int = LIMIT
    _keys: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict, repr=False)
    _touched: set[Path] = field(default_factory=set, repr=False)
    _written: int | None = field(default=None, repr=False)  # bytes since the last sweep; None before the first
    _works: bool = field(default=True, repr=False)

    def known_key(self, path: str | os.PathLike) -> str:
        """Return the key of a file that this process has seen, and that has not changed since; else nothing."""
        known = self._keys.get(os.fspath(path))
        return known[1] if known is not None and known[0] == _identity(path) else ""  # guard: cache_key

    def learn_key(self, path: str | os.PathLike, content: bytes) -> str:
        """Return the sha256 of a file's bytes, and remember it."""
        key = hashlib.sha256(content).hexdigest()
        self._keys[os.fspath(path)] = (_identity(path), key)
        return key

    def read(self, kind: str, key: str) -> bytes | None:
        """Return what is kept under a key, None where nothing is, or something that is damaged."""
        path = self._place(kind, key)
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
        """Keep bytes under a key; a full disk or a folder that cannot be written is said once, and stops nothing."""
        if not self._works:
            return
        path = self._place(kind, key)
        try:
            self._make_room()
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # guard: cache_private
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content + zlib.crc32(content).to_bytes(CHECKSUM, "little"))
                os.replace(part, path)
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._works = False  # guard: cache_works
            logger.warning(
                "Decoded images are not kept: %s: %s. Set %s to a folder that can be written, or to off.",
                self.folder,
                error.strerror or error,
                VARIABLE,
            )
            return
        self._touched.add(path)
        self._written = (self._written or 0) + len(content) + CHECKSUM

    def contents(self) -> dict[str, tuple[int, int]]:
        """Return how many entries there are of each kind, and their bytes."""
        found: dict[str, tuple[int, int]] = {}
        for _, size, path in self._entries():
            kind = path.relative_to(self.folder).parts[0]
            number, total = found.get(kind, (0, 0))
            found[kind] = (number + 1, total + size)
        return found

    def clear(self) -> None:
        """Remove all that it holds.

        Raises:
            ResourceError: Something cannot be removed.
        """
        self._touched.clear()
        try:
            for child in self.folder.iterdir() if self.folder.is_dir() else ():
                if child.is_dir() and child.name.partition("-")[0] in KINDS:  # nothing that a user may have put there
                    shutil.rmtree(child)
        except OSError as error:
            raise ResourceError(f"{error.filename} cannot be removed: {error.strerror}.") from error

    def _place(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / key[2:]

    def _touch(self, path: Path) -> None:
        """Say that an entry is in use, once a process."""
        if path not in self._touched:
            self._touched.add(path)
            try:
                os.utime(path)
            except OSError:
                pass  # a cache that may only be read is never swept by this process either

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return time of use, bytes and path of each entry, and of what a killed process left half-written."""
        entries = []
        for kind in KINDS:
            for path in self.folder.glob(f"{kind}-*/??/*"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # another process sweeps too
                entries.append((status.st_mtime, status.st_size, path))
        return entries

    def _make_room(self) -> None:
        """Remove what was used longest ago, at the first writing and then after each `SWEEP_EVERY` bytes."""
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
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev


KINDS = ("grey", "prints")  # the beginnings of what its folders are called

_caches: dict[Path, Cache] = {}  # one a folder: it remembers which files it has seen


def default_cache() -> Cache | None:
    """Return the cache of `cache_folder`, None where it is off."""
    folder = cache_folder()
    return None if folder is None else _caches.setdefault(folder, Cache(folder))


def cached_square(path: str | os.PathLike, image_size: int) -> Image.Image:
    """Return what `open_square` returns of a file, from the cache where it is there.

    Args:
        path: The file.
        image_size: Side of the square, pixels.

    Returns:
        An image of mode `"L"`, `(image_size, image_size)`.

    Raises:
        ImageError: As for `open_image`; what cannot be read is tried anew each time.
    """

    def square(source: Source) -> bytes:
        return open_square(source, image_size).tobytes()

    return Image.frombytes("L", (image_size, image_size), keep(path, f"grey-{OPENER}-{image_size}", square))


def keep(path: str | os.PathLike, kind: str, make: Callable[[Source], bytes]) -> bytes:
    """Return what is made of a file's content, from the cache where it is there.

    Args:
        path: The file.
        kind: What is made, with the number of the code that makes it; begins with one of `KINDS`.
        make: Takes the file's bytes. It depends on nothing else, a name least of all.

    Returns:
        What `make` returned, now or formerly.

    Raises:
        ImageError: As `make` raises it, with the file's name; what cannot be read is tried anew each time.
    """
    if not _is_readable(path):
        return make(path)  # which says what is wrong
    cache = default_cache()
    key = cache.known_key(path) if cache is not None else ""
    kept = cache.read(kind, key) if cache is not None and key else None
    if kept is not None:
        return kept
    content = Path(path).read_bytes()  # hashed and decoded from one reading: the file may be changed in between
    if cache is not None:
        key = cache.learn_key(path, content)
        if (kept := cache.read(kind, key)) is not None:
            return kept
    try:
        made = make(content)
    except ImageError:
        return make(path)  # raises again, with the name
    if cache is not None:
        cache.write(kind, key, made)
    return made


def _is_readable(path: str | os.PathLike) -> bool:
    """Say whether a path is that of a regular file that is not too large, which the user may read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BYTES and os.access(path, os.R_OK)
