"""What a user names - files, folders, patterns, tables, addresses - as one stream of images in a fixed order."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from covid_fastai.data.image_facts import IMAGE_SUFFIXES
from covid_fastai.errors import DataError, UnavailableError

__all__ = ["RemoteFile", "is_address", "list_images", "openable"]

PATTERN = set("*?[")
COLUMN = "path"


def list_images(inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """List images one by one, so that a million of them need no more memory than one.

    Args:
        inputs: One or several of: an image file; a folder, whose images are taken with those of its folders, by name
            (files that end as an image does, and DICOM files without an ending); a pattern such as `"scans/**/*.png"`;
            a CSV with a column `path`, relative to the CSV's folder; or any of these as an address that fsspec knows
            (`"s3://bucket/scans"`).

    Yields:
        Paths and addresses, in the order of `inputs`. A file that was named is yielded even where it does not exist,
        so that it gets a row.

    Raises:
        DataError: A folder or pattern has no image, or a CSV no column `path`.
        UnavailableError: An address needs a package that is not installed, or its system does not answer.
    """
    several = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    for one in several:
        path = os.fspath(one)
        yield from _remote(path) if is_address(path) else _local(path)


def is_address(path: str) -> bool:
    """Say whether it is an address for fsspec rather than a path."""
    return "://" in path


def openable(path: str) -> Any:
    """Return what `Predictor` opens for a path or an address."""
    return RemoteFile(path) if is_address(path) else path


class RemoteFile:
    """A file behind an address, which is fetched when it is read; whatever goes wrong then is an `OSError`."""

    def __init__(self, address: str):
        self.name = address

    def read(self, size: int = -1) -> bytes:
        """Return its first `size` bytes, all where negative."""
        import fsspec

        try:
            with fsspec.open(self.name, "rb") as file:
                return file.read(size)
        except Exception as error:  # each store has kinds of its own
            raise OSError(f"{type(error).__name__}: {error}") from error


def _local(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        return _some(_walk(path), path)
    if path.lower().endswith(".csv"):
        return _rows(path)
    if PATTERN & set(path) and not os.path.lexists(path):
        return _some(sorted(found for found in glob.iglob(path, recursive=True) if os.path.isfile(found)), path)
    return iter([path])


def _some(paths: Iterable[str], where: str) -> Iterator[str]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        raise DataError(f"{where} holds no image.", hint=f"Endings: {', '.join(sorted(IMAGE_SUFFIXES))}.")


def _walk(folder: str) -> Iterator[str]:
    """Yield a folder's images by name, folder after folder; of one folder's names at a time there is a list."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.", hint="Check its permissions.") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith("."):
                yield from _walk(entry.path)
        elif _is_image(entry):
            yield entry.path


def _is_image(entry: os.DirEntry) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    if entry.name.startswith(".") or (suffix and not suffix[1:].isdigit()) or not entry.is_file():
        return False
    try:  # hospitals' DICOM files have no ending, or a number's
        with open(entry.path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _rows(path: str) -> Iterator[str]:
    """Yield the column `path` of a CSV, line by line."""
    folder = Path(path).parent
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if COLUMN not in (reader.fieldnames or []):
                found = ", ".join(reader.fieldnames or []) or "none"
                raise DataError(f"{path} has no column {COLUMN}; it has {found}.", hint="Name the files in it.")
            for row in reader:
                name = row[COLUMN] or ""
                yield name if is_address(name) else str(folder / name)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV: {error}.", hint="Save it as CSV in UTF-8.") from error


def _remote(address: str) -> Iterator[str]:
    try:
        import fsspec

        system, path = fsspec.url_to_fs(address)
        if PATTERN & set(path):
            return _some(map(system.unstrip_protocol, sorted(system.glob(path))), address)
        if not system.isdir(path):
            return iter([address])
        found = (name for name in sorted(system.find(path)) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
        return _some(map(system.unstrip_protocol, found), address)
    except ImportError as error:
        raise UnavailableError(
            f"{address} cannot be read: {error}.", hint="pip install 'covid_fastai[batch]' and the store's own package."
        ) from error
    except Exception as error:  # each store has kinds of its own
        raise UnavailableError(f"{address} cannot be read: {error}.", hint="Check the address.") from error
