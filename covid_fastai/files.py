"""Write files atomically, and make folders that only one process can own."""

from __future__ import annotations

import csv
import difflib
import errno
import glob
import json
import math
import os
import platform
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from covid_fastai.errors import ResourceError
from covid_fastai.pseudonyms import find_key, hide_names, restore_paths

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CLAIM_FILES",
    "LOCK_FILE",
    "OWNER",
    "OWNER_FILE",
    "REPLACED_SUFFIX",
    "atomic_write",
    "check_new_folder",
    "check_target",
    "claim_folder",
    "dump_csv",
    "escape_cell",
    "is_unfinished",
    "make_folder",
    "make_unfinished_folder",
    "new_run_folder",
    "read_csv",
    "restore_folder",
    "similar_path",
    "to_plain",
    "unescape_cell",
    "unfinished_prefix",
    "utc_now",
    "write_csv",
    "write_json",
]

# in a claimed folder: the lock, and the process that holds it
CLAIM_FILES = LOCK_FILE, OWNER_FILE = ".lock", ".owner"
OWNER = "process "  # begins the text of the second
PART_SUFFIX = ".part"
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.part", re.DOTALL)  # the name of an unfinished file
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
# What spreadsheets take for a formula or a command, also in full width and after what they skip; a sign alone is none.
SKIPPED = r"[^\S\t\r\n]|[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
FORMULA = re.compile(rf"(?:{SKIPPED})*+[=+\-@\uff1d\uff0b\uff0d\uff20]")
INNER_FORMULA = re.compile(rf'(?:"|{SKIPPED})*+[=+\-@\uff1d\uff0b\uff0d\uff20]')
# A spreadsheet may begin a new cell there, whatever stands in quotation marks: where the comma is the decimal sign, its
# separator is ;
CELL_ENDS = re.compile(r"([;\t\r\n])")
SUSPECT = r"^[^0-9A-Za-z/_.(]|[;\t\r\n]"  # of a text that is looked at; no formula begins with any of these
SUSPECT_TEXT = re.compile(SUSPECT)
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NUMBER_KINDS = frozenset("biufcmM")  # of dtypes: numbers, booleans and times
REPLACED_SUFFIX = "-old"  # ends the name of a folder that was moved away to make room for a newer one


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601 with seconds, such as `2026-11-23T20:41:15Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # guard: utc


@contextmanager
def atomic_write(path: str | Path, *, mode: str = "w", new: bool = False) -> Iterator[IO]:
    """Open a file that appears under its name only once it is complete.

    The content goes to a temporary file in the same folder, which is flushed to the disk and then renamed to `path`.
    If anything fails before that, an existing file at `path` stays unchanged.

    Args:
        path: The file to write; its folder must exist.
        mode: `"w"` for UTF-8 text, `"wb"` for bytes. What UTF-8 does not have, as in a file name of other bytes, is
            written as an escape.
        new: Whether `path` must not exist when the file is complete, so that nothing of somebody else is replaced.

    Yields:
        The open temporary file.

    Raises:
        ResourceError: The folder cannot be written to, the disk is full, or with `new` the file exists.
    """
    path = Path(path)
    encoding, errors, newline = (None, None, None) if "b" in mode else ("utf-8", "backslashreplace", "")
    try:
        # guard: flushed
        descriptor, part = _open_part(path)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror}.", hint="Choose an existing folder that you may write to."
        ) from error
    try:
        opened = mode if "b" in mode else "w+"  # text is read again, to hide names
        with os.fdopen(descriptor, opened, encoding=encoding, errors=errors, newline=newline) as file:
            yield file
            if "b" not in mode and (key := find_key(path)) is not None:
                _hide_names(file, key)  # guard: hidden_names
            file.flush()
            os.fsync(file.fileno())
        if (kept := _mode_of(path)) is not None:
            os.chmod(part, kept)  # a file that was made private stays so; guard: kept_mode
        if new and os.path.lexists(path):  # guard: still_new
            raise ResourceError(
                f"{path} was written by another program in the meantime.", hint="Move it away, and run this again."
            )
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


def _hide_names(file: IO[str], key: Path) -> None:
    """Replace the content of an open text file of a pseudonymised run by what may be shared."""
    file.seek(0)
    text = hide_names(file.read(), key)
    file.seek(0)
    file.truncate()
    file.write(text)


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a file that is there; None for a new one, or a link, which is replaced."""
    return path.stat().st_mode & 0o777 if path.is_file() and not path.is_symlink() else None


def _open_part(path: Path) -> tuple[int, str]:
    """Create the temporary file of a file, with the permissions that the umask gives every new file.

    That of a file which only some may read is never readable for more.
    """
    kept = _mode_of(path)
    mode = 0o666 if kept is None else kept | 0o600  # guard: part_mode
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        part = os.path.join(path.parent, f".{path.name[:60]}.{secrets.token_hex(4)}{PART_SUFFIX}")
        try:
            return os.open(part, flags, mode), part  # guard: umask
        except FileExistsError:
            continue


def is_unfinished(path: Path) -> bool:
    """Return whether a file is the temporary file of `atomic_write`, which a process that was killed leaves behind."""
    return UNFINISHED.fullmatch(path.name) is not None and not path.is_dir()


def make_unfinished_folder(folder: Path) -> Path:
    """Create the temporary folder of a folder, next to it, with the permissions that the umask gives every new folder.

    Args:
        folder: The folder that it will be renamed to; its parent exists.
    """
    while True:
        unfinished = folder.with_name(f"{unfinished_prefix(folder)}{secrets.token_hex(4)}")
        try:
            unfinished.mkdir()
            return unfinished
        except FileExistsError:
            continue


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


def similar_path(path: str | Path) -> Path | None:
    """Return the file or folder that a missing path may mean, beside it: with a similar name, or one that begins so.

    Args:
        path: A path that does not exist.
    """
    path = Path(path)
    try:
        names = sorted(name for name in os.listdir(path.parent) if not name.startswith("."))
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    near += [name for name in names if path.name and name.startswith(path.name)]
    return path.parent / near[0] if near else None


def unfinished_prefix(folder: Path) -> str:
    """Return the start of the names of temporary folders, which lie next to `folder` until they are complete."""
    return f".{folder.name[:60]}.unfinished-"


def check_target(path: str | Path) -> None:
    """Raise for a file that cannot be written, before the work whose result it holds.

    Args:
        path: The file, which may exist.

    Raises:
        ResourceError: It is a folder, or its folder does not exist or may not be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ResourceError(f"{path} is a folder, not a file to write.", hint="Add the name of the file.")
    if not path.parent.is_dir():
        raise ResourceError(f"{path} cannot be written: there is no folder {path.parent}.", hint="Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise ResourceError(f"{path} cannot be written.", hint="Name a folder that you may write to.")


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


def write_csv(path: str | Path, table: pd.DataFrame) -> Path:
    """Write a pandas table as CSV without its index, atomically; `read_csv` reads it back equal."""
    with atomic_write(path) as file:
        dump_csv(file, table)
    return Path(path)


def dump_csv(file: IO[str], table: pd.DataFrame) -> None:
    """Write a table as CSV into an open file, with texts that a spreadsheet would run made harmless.

    Args:
        file: The file, open for text without translation of newlines.
        table: The table; its index is not written.
    """
    import pandas as pd

    columns = {number: _safe_column(table.iloc[:, number]) for number in range(table.shape[1])}
    names = [escape_cell(str(name)) for name in table.columns]
    # pandas does not quote a field with a carriage return, although readers end the line there; and a reader may take
    # another separator for that of the table if the names of its columns have one
    is_unclear = any(re.search(r"[\r;\t|]", name) for name in names) or any(map(_has_return, columns.values()))
    quoting = csv.QUOTE_NONNUMERIC if is_unclear else csv.QUOTE_MINIMAL
    safe = pd.DataFrame(columns, index=table.index)
    safe.to_csv(file, index=False, header=names, quoting=quoting, lineterminator="\n")


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """Read a CSV that `write_csv` wrote, with its texts as they were.

    Args:
        path: The file.
        **options: Those of `pandas.read_csv`.
    """
    import pandas as pd

    table = pd.read_csv(path, **options)
    table.columns = [unescape_cell(str(name)) for name in table.columns]
    for number, dtype in enumerate(table.dtypes):
        if dtype.kind not in NUMBER_KINDS:
            values = table.iloc[:, number].tolist()
            if any(isinstance(value, str) and "'" in value for value in values):
                texts = [unescape_cell(value) if isinstance(value, str) else value for value in values]
                table.isetitem(number, pd.Series(texts, index=table.index, dtype=dtype))
    return restore_paths(table, path)


def escape_cell(text: str) -> str:
    """Return a text that no spreadsheet runs as a formula: with an apostrophe before what begins like one.

    A number stays a number. Rules of OWASP, "CSV Injection", which also names the separators of other countries.

    Args:
        text: The content of a cell.
    """
    if SUSPECT_TEXT.search(text) is None:
        return text
    return "".join(f"'{part}" if runs else part for part, runs in _parts_of_cell(text))  # guard: formula_cells


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` made harmless."""
    if "'" not in text:
        return text
    return "".join(part[1:] if runs and part.startswith("'") else part for part, runs in _parts_of_cell(text))


def _parts_of_cell(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a cell and the separators between them, and whether a spreadsheet may run a part.

    Apostrophes at the start of a part do not count, so that it is the same part with one more of them.
    """
    first, *others = CELL_ENDS.split(text)
    whole = text.lstrip("'")
    bare = first.lstrip("'")
    start = FORMULA.match(bare)
    is_formula = start is not None and start.end() < len(whole) and NUMBER.fullmatch(whole) is None
    yield first, is_formula or (not bare and whole[:1] in ("\t", "\r", "\n"))
    for number, part in enumerate(others):
        bare = part.lstrip("'")
        # guard: inner_cells
        runs = number % 2 == 1 and INNER_FORMULA.match(bare) is not None and NUMBER.fullmatch(bare) is None
        yield part, runs


def _safe_column(column: pd.Series) -> pd.Series:
    """Return a column as it is written."""
    if column.dtype.kind in NUMBER_KINDS:
        return column
    if column.dtype == "str" and not column.str.contains(SUSPECT, regex=True).fillna(False).any():
        return column
    texts = [escape_cell(value) if isinstance(value, str) else value for value in column.tolist()]
    return type(column)(texts, index=column.index, dtype=object)


def _has_return(column: pd.Series) -> bool:
    """Return whether a text of a column has a carriage return."""
    if column.dtype == "str":
        return bool(column.str.contains("\r", regex=False).fillna(False).any())
    if column.dtype.kind in NUMBER_KINDS:
        return False
    return any(isinstance(value, str) and "\r" in value for value in column)


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
    check_new_folder(out)
    return make_folder(out)


def check_new_folder(out: str | Path) -> None:
    """Raise for a folder that holds something, before anything is made for a run.

    Args:
        out: The folder of a new run.

    Raises:
        ResourceError: It is not empty, or a file.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):  # guard: holds_something
        raise ResourceError(
            f"{out} exists and is not empty.", hint="Name a new folder, or resume the run that it contains."
        )


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
    except (OSError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or error.errno in NO_LOCKS:  # guard: no_locks
            raise ResourceError(
                f"The file system of {folder} has no locks, so that two processes could write there at once.",
                hint="Choose a folder on another disk, such as a local one, and copy the result.",
            ) from error
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}.", hint="Choose a folder that you may write to."
        ) from error
    try:
        with atomic_write(owner) as file:  # a link of that name is replaced, not followed; guard: owner_link
            file.write(f"{OWNER}{os.getpid()} on {platform.node() or 'this machine'}")
        for part in folder.rglob(f".*{PART_SUFFIX}"):  # incomplete files of a process that was killed
            if is_unfinished(part):
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
