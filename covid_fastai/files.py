"""Writing files so that a crash loses nothing, and run folders that only one process can own."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import platform
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from covid_fastai.errors import ResourceError

__all__ = [
    "ASIDE",
    "atomic_write",
    "claim_folder",
    "make_folder",
    "new_run_folder",
    "restore_folder",
    "to_plain",
    "unfinished_prefix",
]
__all__ += ["utc_now", "write_csv", "write_json"]

LOCK_FILE, OWNER_FILE = ".lock", ".owner"  # in a claimed folder: the lock, and who holds it
PART_SUFFIX = ".part"
ASIDE = "-old"  # the end of the name of a folder that has stepped aside


def utc_now() -> str:
    """Return the time now in UTC as ISO 8601 with seconds, e.g. `2026-11-23T20:41:15Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # guard: utc


@contextmanager
def atomic_write(path: str | Path, *, mode: str = "w") -> Iterator[IO]:
    """Open a file that appears under its name only once it is whole.

    The text or bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed over
    `path`; when anything fails on the way, the file that stood there before stays as it was.

    Args:
        path: Where the finished file shall stand; its folder must exist.
        mode: `"w"` for UTF-8 text, `"wb"` for bytes.

    Yields:
        The open temporary file.

    Raises:
        ResourceError: The folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    try:
        # guard: flushed
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=PART_SUFFIX)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror}.", hint="Choose an existing folder that you may write to."
        ) from error
    try:
        with os.fdopen(descriptor, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)  # mkstemp makes it 0600, which other users of a shared folder could not read
        os.replace(part, path)
    except BaseException as error:
        Path(part).unlink(missing_ok=True)  # guard: unlink_part
        if isinstance(error, OSError):
            raise ResourceError(
                f"{path} could not be written: {error.strerror or error}.",
                hint="Free some space or choose another folder; what stood there before is untouched.",
            ) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's own entry, so that the rename survives a power cut (POSIX only)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restore_folder(folder: str | Path) -> None:
    """Bring a folder back that was stepping aside for a newer one when its process was killed.

    No system has two folders change places in one step: between the two renames of `save_model` there is none of that
    name. What stepped aside is then the last good one.
    """
    folder = Path(folder)
    if not folder.parent.is_dir() or folder.exists():
        return
    aside = sorted(folder.parent.glob(f"{glob.escape(unfinished_prefix(folder))}*{ASIDE}"), key=os.path.getmtime)
    if aside:  # guard: restore_folder
        try:
            os.rename(aside[-1], folder)
        except OSError:
            return  # another process was faster, or nothing may be written here: the caller says what is missing


def unfinished_prefix(folder: Path) -> str:
    """Return how the folders begin that are written beside a folder until they are whole."""
    return f".{folder.name[:60]}.unfinished-"


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; NaN and infinities become null, paths become strings."""
    with atomic_write(path) as file:
        json.dump(to_plain(value), file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return Path(path)


def to_plain(value: Any) -> Any:
    """Return `value` as what JSON can hold: NaN and infinities become None, paths text, numpy's numbers Python's."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_csv(path: str | Path, table) -> Path:
    """Write a pandas table as CSV without its index, atomically."""
    # pandas puts no quotation marks around a carriage return, at which readers end a line
    odd = any("\r" in str(name) for name in table)
    odd = odd or any(table[name].map(lambda value: isinstance(value, str) and "\r" in value).any() for name in table)
    with atomic_write(path) as file:
        table.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL)
    return Path(path)


def make_folder(folder: str | Path, *, hint: str = "Name a folder that you may write to.") -> Path:
    """Make a folder, and those above it, where they are not there yet.

    Args:
        folder: The folder.
        hint: What to do where it cannot be made.

    Returns:
        The folder's path.

    Raises:
        ResourceError: It cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # guard: read_only
        raise ResourceError(f"{folder} cannot be made: {error.strerror}.", hint=hint) from error
    return folder


def new_run_folder(out: str | Path | None, *, task: str, root: str | Path = "runs") -> Path:
    """Make a folder for one run and return it.

    Args:
        out: The folder to make; None for `<root>/<UTC time>-<task>-<4 letters>`.
        task: The task's name, for the folder's name.
        root: Where unnamed runs are collected.

    Raises:
        ResourceError: `out` already holds something, or cannot be made.
    """
    if out is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        letters = "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz") for _ in range(4))
        out = Path(root) / f"{stamp}-{task}-{letters}"
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):  # guard: holds_something
        raise ResourceError(
            f"{out} already holds something.", hint="Name a new folder, or resume the run that lies there."
        )
    return make_folder(out)


@contextmanager
def claim_folder(folder: str | Path) -> Iterator[Path]:
    """Own a folder for the time of a `with` block; a second process is refused.

    The claim is an operating-system lock on `<folder>/.lock`, so it ends with the process, however that ends. The
    lock file itself may stay behind: it means nothing unless a process holds it.

    Args:
        folder: An existing folder.

    Yields:
        The folder's path.

    Raises:
        ResourceError: Another process owns the folder, or it cannot be written to. The error names the owner.
    """
    folder = Path(folder)
    lock, owner = FileLock(folder / LOCK_FILE, timeout=0), folder / OWNER_FILE
    try:
        lock.acquire()
    except Timeout as error:  # guard: claimed
        raise ResourceError(
            f"{folder} is in use by {_read_owner(owner)}.", hint="Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}.", hint="Choose a folder that you may write to."
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node() or 'this machine'}", encoding="utf-8")
        for part in folder.rglob(f".*{PART_SUFFIX}"):  # what a killed process left half-written
            part.unlink(missing_ok=True)
        yield folder
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _read_owner(path: Path) -> str:
    """Return who owns a folder; not kept in the lock file, which Windows lets nobody read while it is locked."""
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:  # the owner has not written it yet, or has just removed it
        return "another process"
