"""Which files the rows of a table may name: those below one folder, and addresses of allowed protocols."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from covid_fastai.errors import UsageError

__all__ = ["Reach", "check_protocols", "is_chained", "is_share", "is_url", "protocol_of"]

# Protocols of fsspec that read local files, or whose address leads to another one.
INDIRECT = {"file", "local", "asynclocal", "git", "dvc", "reference", "dir", "generic", "async_wrapper", "asyncwrapper"}
INDIRECT |= {"cached", "blockcache", "filecache", "simplecache", "zip", "tar", "libarchive"}

Fault = tuple[str, str, str]  # kind, reason and remedy


def is_url(path: str) -> bool:
    """Return whether a text is an fsspec URL rather than a path."""
    return "://" in path


def is_chained(url: str) -> bool:
    """Return whether a URL is made of several, such as `simplecache::https://...`; fsspec opens all of them."""
    return "::" in url


def protocol_of(url: str) -> str:
    """Return the protocol of a URL in lower case."""
    return url.partition("://")[0].strip().lower()


def is_share(path: str, base: str | Path, *, flavour: Any = os.path) -> bool:
    r"""Return whether a path is on another machine or device than a folder, such as `\\server\share\a.png` on Windows.

    Even a look at such a file sends the user's name and hashed password to that machine.

    Args:
        path: A path.
        base: The folder.
        flavour: The module of paths, such as `ntpath`.
    """
    drive, home = (flavour.splitdrive(os.fspath(name))[0].replace("\\", "/").lower() for name in (path, base))
    return drive.startswith("//") and drive != home


def check_protocols(names: Iterable[str] | str | None) -> frozenset[str]:
    """Return the protocols that a table's rows may use.

    Args:
        names: Such as `["s3"]`; None for none.

    Raises:
        UsageError: A name is no protocol, or its addresses lead to local files or to other addresses.
    """
    texts = [names] if isinstance(names, str) else [*(names or ())]
    for text in texts:
        if not isinstance(text, str) or not text.replace("_", "").replace("+", "").isalnum() or not text.isascii():
            raise UsageError(
                f"allow_protocol={text!r} is not the name of a protocol.", hint="Give a name such as s3, gs or https."
            )
        if text.lower() in INDIRECT:  # guard: indirect_protocol
            raise UsageError(
                f"allow_protocol={text!r} would let rows name any local file, or any other address.",
                hint="Name local files by their paths, below the table's folder or `image_root`.",
            )
    return frozenset(text.lower() for text in texts)


class Reach:
    """Decide whether the rows of a table may name a file. Nothing is opened before this is known.

    A file lies below the root if its path does, or its real path. A link below the root may lead anywhere, since
    whoever made the folder chose its target.

    Args:
        root: The folder; None if every path is allowed, as in a table that the caller made in memory.
        paths: The paths of all rows, for the remedy.
        protocols: What `check_protocols` returned.
    """

    def __init__(self, root: str | Path | None, paths: Iterable[str] = (), *, protocols: frozenset[str] = frozenset()):
        self._protocols = protocols
        self._common = cache(lambda: _common_folder(path for path in paths if not is_share(path, self._root or "")))
        self._root = None if root is None else os.path.join(os.path.abspath(root), "")
        self._real_root = None if root is None else os.path.join(os.path.realpath(root), "")
        self._real_folder = cache(os.path.realpath)  # a folder holds many files, and resolving a path reads the disk

    def url_fault(self, url: str) -> Fault | None:
        """Return kind, reason and remedy if a row must not name this URL; else None."""
        if is_chained(url):  # guard: chained
            return "address", "its address is made of several (::), which are not read", "Name the file itself."
        protocol = protocol_of(url)
        if protocol in INDIRECT:
            return "address", f"addresses of {protocol!r} are not read from tables", "Name the file by its path."
        if protocol not in self._protocols:  # guard: protocol
            remedy = f"If rows may read from there, set allow_protocol={protocol!r}."
            return "address", f"its address has the protocol {protocol!r}, which is not allowed", remedy
        return None

    def path_fault(self, path: str) -> Fault | None:
        """Return kind, reason and remedy if a row must not name this path, as it will be opened; else None."""
        if self._is_outside(os.path.abspath(path)):  # guard: outside
            folder = repr(self._common()) if self._common() else "a folder that contains all of them"
            remedy = f"Name files in that folder, or give image_root={folder}."
            return "outside_root", f"it lies outside of {self._root}", remedy
        return None

    def _is_outside(self, path: str) -> bool:
        if self._root is None or path.startswith(self._root):
            return False
        if is_share(path, self._root):  # guard: share
            return True
        folder, name = os.path.split(path)
        try:
            return not _real_path(self._real_folder(folder), name).startswith(str(self._real_root))
        except ValueError:  # a NUL, or text that is no name of a file
            return True


def _common_folder(paths: Iterable[str]) -> str:
    """Return the folder that contains all absolute paths; `""` if it is a root or does not exist."""
    try:
        folder = os.path.commonpath({os.path.dirname(path) for path in paths if os.path.isabs(path)})
    except ValueError:  # none, or several drives
        return ""
    return folder if folder != os.path.dirname(folder) and os.path.isdir(folder) else ""


def _real_path(folder: str, name: str) -> str:
    """Return the real path of a file, given the real path of its folder."""
    path = os.path.join(folder, name)
    return os.path.realpath(path) if os.path.islink(path) or name in ("", ".", "..") else path
