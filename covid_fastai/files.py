"""Write files atomically, and make folders that only one process can own."""

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
    "REPLACED_SUFFIX",
    "atomic_write",
    "claim_folder",
    "make_folder",
    "new_run_folder",
    "restore_folder",
    "to_plain",
    "unfinished_prefix",
]
__all__ += ["utc_now", "write_csv", "write_json"]

LOCK_FILE, OWNER_FILE = ".lock", ".owner"  # in a claimed folder: the lock, and the process that holds it
PART_SUFFIX = ".part"
REPLACED_SUFFIX = "-old"  # ends the name of a folder that was moved away to make room for a newer one


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601 with seconds, such as `2026-11-23T20:41:15Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # guard: utc


@contextmanager
def atomic_write(path: str | Path, *, mode: str = "w") -> Iterator[IO]:
    """Open a file that appears under its name only once it is complete.

    The content goes to a temporary file in the same folder, which is flushed to the disk and then renamed to `path`.
    If anything fails before that, an existing file at `path` stays unchanged.

    Args:
        path: The file to write; its folder must exist.
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
                hint="Free some space or choose another folder; a file that was there before is unchanged.",
            ) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's directory entry, so that the rename survives a power failure (POSIX only)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restore_folder(folder: str | Path) -> None:
    """Restore a folder that was being replaced when the process was killed.

    Two folders cannot be swapped in one step: between the two renames of `save_model` no folder has the final name.
    The folder that was moved away is then the last complete one, and gets its name back.
    """
    folder = Path(folder)
    if not folder.parent.is_dir() or folder.exists():
        return
    pattern = f"{glob.escape(unfinished_prefix(folder))}*{REPLACED_SUFFIX}"
    replaced = sorted(folder.parent.glob(pattern), key=os.path.getmtime)
    if replaced:  # guard: restore_folder
        try:
            os.rename(replaced[-1], folder)
        except OSError:
            return  # another process was faster, or the disk is read-only: the caller reports what is missing


def unfinished_prefix(folder: Path) -> str:
    """Return the start of the names of temporary folders, which lie next to `folder` until they are complete."""
    return f".{folder.name[:60]}.unfinished-"


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; NaN and infinity become null, paths become strings."""
    with atomic_write(path) as file:
        json.dump(to_plain(value), file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return Path(path)


def to_plain(value: Any) -> Any:
    """Convert `value` to JSON types: NaN and infinity become None, paths strings, NumPy numbers Python numbers."""
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
    # pandas does not quote a field with a carriage return, although readers end the line there
    has_return = any("\r" in str(name) for name in table)
    has_return = has_return or any(
        table[name].map(lambda value: isinstance(value, str) and "\r" in value).any() for name in table
    )
    with atomic_write(path) as file:
        table.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC if has_return else csv.QUOTE_MINIMAL)
    return Path(path)


def make_folder(folder: str | Path, *, hint: str = "Name a folder that you may write to.") -> Path:
    """Create a folder and its parents if they do not exist yet.

    Args:
        folder: The folder.
        hint: The hint of the error if the folder cannot be created.

    Returns:
        The folder's path.

    Raises:
        ResourceError: The folder cannot be created.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # guard: read_only
        raise ResourceError(f"The folder {folder} cannot be created: {error.strerror}.", hint=hint) from error
    return folder


def new_run_folder(out: str | Path | None, *, task: str, root: str | Path = "runs") -> Path:
    """Create the folder of a run and return it.

    Args:
        out: The folder to create; None for `<root>/<UTC time>-<task>-<4 letters>`.
        task: The task's name, for the folder's name.
        root: The parent folder of runs without a name.

    Raises:
        ResourceError: `out` is not empty, or cannot be created.
    """
    if out is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        letters = "".join(secrets.choice("abcdefghjkmnpqrstuvwxyz") for _ in range(4))
        out = Path(root) / f"{stamp}-{task}-{letters}"
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):  # guard: holds_something
        raise ResourceError(
            f"{out} exists and is not empty.", hint="Name a new folder, or resume the run that it contains."
        )
    return make_folder(out)


@contextmanager
def claim_folder(folder: str | Path) -> Iterator[Path]:
    """Own a folder during a `with` block; a second process gets an error.

    The claim is an operating-system lock on `<folder>/.lock`, so it ends with the process even if that is killed. The
    lock file may remain; it has no effect unless a process holds the lock.

    Args:
        folder: An existing folder.

    Yields:
        The folder's path.

    Raises:
        ResourceError: Another process owns the folder (the message names it), or the folder cannot be written to.
    """
    folder = Path(folder)
    lock, owner = FileLock(folder / LOCK_FILE, timeout=0), folder / OWNER_FILE
    try:
        lock.acquire()
    except Timeout as error:  # guard: claimed
        raise ResourceError(
            f"{folder} is in use by {_read_owner(owner)}.", hint="Wait until it ends, or choose another folder."
        ) from error
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}.", hint="Choose a folder that you may write to."
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {platform.node() or 'this machine'}", encoding="utf-8")
        for part in folder.rglob(f".*{PART_SUFFIX}"):  # incomplete files of a process that was killed
            part.unlink(missing_ok=True)
        yield folder
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _read_owner(path: Path) -> str:
    """Return which process owns a folder; it has its own file since Windows does not let others read a locked file."""
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:  # the owner has not written the file yet, or has just removed it
        return "another process"
