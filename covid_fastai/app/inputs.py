"""List the images in files, folders, glob patterns, CSVs and remote stores, in a fixed order."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from covid_fastai.app.table_inputs import TableOptions, images_of_table, is_table
from covid_fastai.data.archives import check_not_archive
from covid_fastai.data.image_files import (
    IMAGE_SUFFIXES,
    FolderReader,
    folders_below,
    has_image_suffix,
    is_path_visible,
)
from covid_fastai.data.reach import is_chained, is_url
from covid_fastai.errors import DataError, UnavailableError, UsageError
from covid_fastai.options import OnProblem, check_option

__all__ = ["RemoteFile", "list_images", "openable"]

PATTERN_CHARACTERS = set("*?[")


def list_images(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **reading: Unpack[TableOptions]
) -> Iterator[str]:
    """List images one by one, so that the memory needed does not grow with their number.

    Args:
        inputs: One or more of the following: an image file; a folder, which is searched recursively as in training:
            for files with the suffix of an image and images without a suffix, but not for masks; a glob pattern such
            as `"scans/**/*.png"`; a table that `read_table` reads (CSV, Excel, Parquet ...), whose paths are relative
            to its folder and lie below it; the fsspec URL of a file, folder or pattern, such as `"s3://bucket/scans"`.
        **reading: How tables are read: `path_column`, `image_root`, `path_template`, `join`, `on`, `encoding` and
            `on_problem`, as in `read_cohort`; and `allow_protocol`, the protocols that addresses in their rows may
            have, such as `["s3"]`, none by default.

    Yields:
        Paths and URLs, in the order of `inputs`, and sorted by name within a folder or pattern. A single file is
        yielded even if it does not exist, so that it gets a row.

    Raises:
        DataError: A folder or pattern contains no image, an input is an archive, or a table or its rows are faulty.
        UsageError: An option is not allowed, or no input is a table to which it applies.
        UnavailableError: A URL needs a package that is not installed, or its store cannot be reached.
    """
    texts = [os.fspath(path) for path in ([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)]
    given = {name: value for name, value in reading.items() if value is not None}
    if "on_problem" in given:
        check_option("on_problem", given["on_problem"], OnProblem)
    names = [name for name in given if name != "on_problem"]
    if names and not any(not is_url(text) and is_table(text) for text in texts):
        raise UsageError(
            f"{', '.join(names)} applies to tables, and no input is a table.", hint="Give a table, or omit the option."
        )
    for text in texts:
        yield from _list_remote(text) if is_url(text) else _list_local(text, given)


def openable(path: str) -> Any:
    """Return an object that `Predictor` can open for a path or a URL."""
    return RemoteFile(path) if is_url(path) else path


class RemoteFile:
    """A file at an fsspec URL, downloaded when it is read. Every error of the store becomes an `OSError`.

    A name in a store can contain `::`, which fsspec would take for a second address.
    """

    def __init__(self, url: str):
        self.name = url

    def read(self, size: int = -1) -> bytes:
        """Return the first `size` bytes, or all of them if `size` is negative."""
        import fsspec

        if is_chained(self.name):  # guard: chained_file
            raise OSError("an address that contains :: is not read")
        try:
            store, path = fsspec.url_to_fs(self.name)
            with store.open(path, "rb") as file:
                return file.read(size)
        except Exception as error:  # each store raises its own types
            raise OSError(f"{type(error).__name__}: {error}") from error


def _list_local(path: str, reading: dict[str, Any]) -> Iterator[str]:
    if os.path.isdir(path):
        return _list_folder(path)
    if os.path.isfile(path):
        check_not_archive(path)
    if is_table(path):
        return images_of_table(path, **reading)
    if PATTERN_CHARACTERS & set(path) and not os.path.lexists(path):
        return _not_empty(_list_pattern(path), path)
    return iter([path])


def _list_folder(folder: str) -> Iterator[str]:
    reader = FolderReader()
    yield from _not_empty(reader.images(folder), folder, reader)
    reader.log_left_out(folder)


def _list_pattern(pattern: str) -> Iterator[str]:
    """Yield the files of a pattern, without hidden ones and masks in folders that the pattern does not name."""
    parts = Path(pattern).parts
    fixed = Path(*itertools.takewhile(lambda part: not PATTERN_CHARACTERS & set(part), parts))
    reader = FolderReader()
    listed: dict[str, str] = {}  # by the real path
    for path in filter(os.path.isfile, _matches(pattern)):
        if not is_path_visible(os.path.relpath(path, fixed)):
            reader.leave_out("masks", path)
        elif listed.setdefault(os.path.realpath(path), path) != path:  # guard: repeated_match
            reader.leave_out("repeated", path)
    yield from sorted(listed.values())
    reader.log_left_out(fixed)


def _matches(pattern: str) -> Iterator[str]:
    """Yield what a glob pattern matches, for `**` in each folder once (Python's glob follows loops of links)."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    for base in glob.iglob(os.path.join(*parts[:at])) if at else ["."]:
        for folder in folders_below(base):
            inner = os.path.join(glob.escape(folder), *rest)
            yield from _matches(os.path.normpath(inner) if base == "." else inner)


def _not_empty(paths: Iterable[str], source: str, reader: FolderReader | None = None) -> Iterator[str]:
    """Yield the paths, and raise a DataError if there are none."""
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty and os.path.isdir(source) and not os.listdir(source):
        raise DataError(f"The folder {source} is empty.", hint="Give an image, or a folder or pattern of images.")
    if empty:
        left_out = "; ".join(reader.summary(source).values()) if reader is not None else ""
        raise DataError(
            f"{source} contains no image{f': {left_out}' if left_out else ''}.",
            hint=f"Images have the suffix {', '.join(sorted(IMAGE_SUFFIXES))}.",
        )


def _listed(names: Iterable[str], folder: str) -> Iterator[str]:
    """Yield the images among the names of a store, by their names alone, and log what is left out."""
    reader = FolderReader()
    for name in names:
        if not is_path_visible(os.path.relpath(name, folder)):
            reader.leave_out("masks", name)
        elif has_image_suffix(name):
            yield name
        else:
            reader.leave_out("not_an_image", name)
    reader.log_left_out(folder)


def _list_remote(url: str) -> Iterator[str]:
    if is_chained(url):
        raise UsageError(f"{url} is made of several addresses (::), which are not read.", hint="Name the file itself.")
    try:
        import fsspec

        store, path = fsspec.url_to_fs(url)
        if PATTERN_CHARACTERS & set(path):
            return _not_empty(map(store.unstrip_protocol, sorted(store.glob(path))), url)
        if not store.isdir(path):
            return iter([url])
        return _not_empty(map(store.unstrip_protocol, _listed(sorted(store.find(path)), path)), url)
    except ImportError as error:
        raise UnavailableError(
            f"{url} cannot be read: {error}.", hint="pip install 'covid_fastai[batch]' and the package of the store."
        ) from error
    except Exception as error:  # each store raises its own types
        raise UnavailableError(f"{url} cannot be read: {error}.", hint="Check the URL.") from error
