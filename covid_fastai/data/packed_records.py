"""Records by key, packed into a few append-only files that several processes can write and read at once.

A folder has segments. Each segment is a pair of files: `<id>.records` has the contents one after the other, and
`<id>.index` has a fixed-size entry for each. A process appends to a segment of its own, which it holds with a lock, and
writes the content before its entry. A process that is killed, a full disk or two writers therefore leave at most an
incomplete tail, which is never read: each entry has a checksum of key and content.
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

__all__ = ["KEY_BYTES", "PackedRecords", "Segment", "list_segments"]

KEY_BYTES = 32  # a sha256
SEGMENT_BYTES = 256 << 20  # the unit of eviction; a full segment is closed and another one begun
ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("offset", "<u8"), ("size", "<u4"), ("checksum", "<u4")])
INDEX, RECORDS, LOCK = ".index", ".records", ".lock"


def _checksum(key: bytes, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(key))


@dataclass(frozen=True)
class Segment:
    """A segment on the disk.

    Attributes:
        index: Path of its index file.
        last_used: When a process last read from it or wrote to it, seconds since the epoch.
        size: Bytes of both files.
        records: Number of entries.
    """

    index: Path
    last_used: float
    size: int
    records: int

    def remove(self) -> bool:
        """Remove the segment unless a process writes to it, and return whether it was removed.

        Raises:
            OSError: A file cannot be removed.
        """
        lock = FileLock(self.index.with_suffix(LOCK), timeout=0)
        try:
            with lock:
                self.index.unlink(missing_ok=True)  # first, so that no process learns of the records
                self.index.with_suffix(RECORDS).unlink(missing_ok=True)
        except Timeout:
            return False
        self.index.with_suffix(LOCK).unlink(missing_ok=True)
        return True


def list_segments(folder: Path) -> list[Segment]:
    """Return the segments in a folder, the least recently used one first."""
    segments = []
    for index in folder.glob(f"*{INDEX}"):
        try:
            entries = index.stat()
            size = entries.st_size + index.with_suffix(RECORDS).stat().st_size
        except FileNotFoundError:
            continue  # removed by another process
        segments.append(Segment(index, entries.st_mtime, size, entries.st_size // ENTRY.itemsize))
    return sorted(segments, key=lambda segment: segment.last_used)


class _Reader:
    """The entries of one segment that this process knows, and its open file of contents."""

    def __init__(self, index: Path):
        self.index = index
        self.used = False  # whether the time of use has been updated
        self._file = os.open(index.with_suffix(RECORDS), os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        self._lock = threading.Lock()

    def new_entries(self, known: int) -> np.ndarray:
        """Return the complete entries after the first `known` ones."""
        with open(self.index, "rb") as file:
            file.seek(known * ENTRY.itemsize)
            content = file.read()
        return np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], dtype=ENTRY)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes at a position, fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._file, size, offset)
        with self._lock:  # Windows
            os.lseek(self._file, offset, os.SEEK_SET)
            return os.read(self._file, size)

    def touch(self) -> None:
        """Update the time of use, once per process."""
        if not self.used:
            self.used = True
            try:
                os.utime(self.index)
            except OSError:
                pass  # a read-only cache is not swept by this process either


class _Writer:
    """A segment that this process appends to, under a lock that ends with the process."""

    def __init__(self, index: Path, lock: FileLock):
        self.index, self.process, self._lock = index, os.getpid(), lock
        self._records = _open_to_append(index.with_suffix(RECORDS))
        self._index = _open_to_append(index)
        entries = os.fstat(self._index).st_size
        if torn := entries % ENTRY.itemsize:  # of a process that was killed; guard: torn_entry
            os.ftruncate(self._index, entries - torn)

    def append(self, key: bytes, content: bytes) -> np.ndarray:
        """Write a record, and return its entry."""
        entry = np.array([(key, self.size(), len(content), _checksum(key, content))], dtype=ENTRY)
        _write_all(self._records, content)
        _write_all(self._index, entry.tobytes())
        return entry

    def size(self) -> int:
        """Return the bytes of all contents."""
        return os.fstat(self._records).st_size

    def close(self) -> None:
        os.close(self._records)
        os.close(self._index)
        self._lock.release()


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


class PackedRecords:
    """The records of one folder; every process and thread that uses the folder can read and write at any time.

    Args:
        folder: The folder; created with the first record.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._readers: list[_Reader] = []
        self._known: list[int] = []  # entries read from each segment
        self._names: dict[Path, int] = {}  # position of each segment in `_readers`
        self._places: dict[bytes, tuple[int, int, int, int]] = {}  # segment, offset, size, checksum
        self._writer: _Writer | None = None
        self._of_parent: list[_Writer] = []  # a forked process must not release its parent's lock
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def read(self, key: bytes) -> bytes | None:
        """Return the content of a key; None if there is no record or it is damaged."""
        place = self._places.get(key)
        if place is None:
            self._refresh()
            place = self._places.get(key)
            if place is None:
                return None
        segment, offset, size, checksum = place
        reader = self._readers[segment]
        try:
            content = reader.read(offset, size)
        except OSError:
            content = b""
        if len(content) != size or _checksum(key, content) != checksum:  # guard: cache_checksum
            with self._lock:
                self._places.pop(key, None)
            return None
        reader.touch()
        return content

    def write(self, key: bytes, content: bytes) -> None:
        """Append a record.

        Raises:
            OSError: The disk is full or the folder cannot be written. Earlier records remain readable.
        """
        with self._lock:
            writer = self._claim()
            try:
                entry = writer.append(key, content)
            except OSError:
                self.close()  # its tail is incomplete; a later record begins after it
                raise
            segment = self._open(writer.index)
            self._add(segment, entry)
            self._readers[segment].touch()

    def close(self) -> None:
        """Release the segment that this process writes to; the next record claims one again."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def segments_in_use(self) -> set[Path]:
        """Return the index files of the segments that this process has read or written."""
        return {reader.index for reader in self._readers if reader.used}

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        if self._writer is not None:
            self._of_parent.append(self._writer)
            self._writer = None

    def _claim(self) -> _Writer:
        """Return the segment to append to: this process' own, an unfinished one that nobody writes to, or a new one."""
        if self._writer is not None and self._writer.size() < SEGMENT_BYTES:
            return self._writer
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        for index in self._candidates():
            lock = FileLock(index.with_suffix(LOCK), timeout=0, mode=0o600, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                continue
            self._writer = _Writer(index, lock)
            segment = self._open(index)
            self._add(segment, self._readers[segment].new_entries(self._known[segment]))
            return self._writer
        raise OSError(f"no segment of {self.folder} can be locked")

    def _candidates(self) -> Iterator[Path]:
        for segment in reversed(list_segments(self.folder)):
            if segment.size < SEGMENT_BYTES:
                yield segment.index
        yield self.folder / f"{secrets.token_hex(8)}{INDEX}"

    def _refresh(self) -> None:
        """Learn the records that other processes have written since the last call."""
        with self._lock:
            try:
                names = sorted(entry.name for entry in os.scandir(self.folder) if entry.name.endswith(INDEX))
            except OSError:
                return
            for name in names:
                try:
                    segment = self._open(self.folder / name)
                    self._add(segment, self._readers[segment].new_entries(self._known[segment]))
                except OSError:
                    continue  # removed by another process, or not readable

    def _open(self, index: Path) -> int:
        """Return the position of a segment in the list of readers."""
        if index not in self._names:
            self._readers.append(_Reader(index))
            self._known.append(0)
            self._names[index] = len(self._readers) - 1
        return self._names[index]

    def _add(self, segment: int, entries: np.ndarray) -> None:
        for key, offset, size, checksum in entries.tolist():
            self._places[bytes(key)] = (segment, offset, size, checksum)
        self._known[segment] += len(entries)
