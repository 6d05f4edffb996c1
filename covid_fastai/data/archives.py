"""Recognise archives that were given in place of a folder, and name the command that unpacks them."""

from __future__ import annotations

import gzip
import os
import shlex
import zipfile
import zlib

from covid_fastai.errors import DataError

__all__ = ["check_not_archive", "is_archive_name", "unpack_command"]

TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
ARCHIVE_SUFFIXES = (".zip", ".7z", ".rar", *TAR_SUFFIXES)
DOCUMENTS = {"[Content_Types].xml", "mimetype", "Index/Document.iwa"}  # a file in the ZIP of an office program
TAR_MARK = 257, b"ustar"  # where a tar file has its mark
PARTS = 512  # bytes of a tar file's first header


def is_archive_name(name: str) -> bool:
    """Return whether a file name has the suffix of an archive."""
    return name.casefold().endswith(ARCHIVE_SUFFIXES)


def check_not_archive(path: str | os.PathLike[str]) -> None:
    """Raise `DataError` if a file is an archive, with the command that unpacks it.

    Args:
        path: A file. Compressed tables and Excel workbooks, which are ZIP files, are no archives.

    Raises:
        DataError: It is a ZIP, tar, 7z or rar archive.
    """
    kind = _archive_kind(path)
    if kind:  # guard: archive
        raise DataError(
            f"{os.fspath(path)} is {kind}, not a folder or a table.",
            hint=f"Unpack it and give the new folder: {unpack_command(path)}",
        )


def unpack_command(path: str | os.PathLike[str]) -> str:
    """Return the command that unpacks an archive into a folder beside it, for a shell.

    Args:
        path: The archive.
    """
    path = os.fspath(path)
    suffix = next((suffix for suffix in sorted(ARCHIVE_SUFFIXES, key=len) if path.casefold().endswith(suffix)), "")
    folder = path[: len(path) - len(suffix)] if suffix else f"{path}-unpacked"
    kind = _archive_kind(path)
    archive, target = shlex.quote(path), shlex.quote(folder)
    if "7z" in kind or "RAR" in kind or suffix in (".7z", ".rar"):
        return f"7z x {archive} -o{target}"
    if "tar" in kind or suffix in TAR_SUFFIXES:
        return f"mkdir -p {target} && tar -xf {archive} -C {target}"
    return f"python -m zipfile -e {archive} {target}"


def _archive_kind(path: str | os.PathLike[str]) -> str:
    """Return the kind of an archive with its article; "" for any other file and for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(PARTS)
    except OSError:
        return ""
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return "a 7z archive"
    if head.startswith(b"Rar!\x1a\x07"):
        return "a RAR archive"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a ZIP archive" if _is_zip(path) else ""
    start, mark = TAR_MARK
    if head[start:].startswith(mark):
        return "a tar archive"
    is_tar_name = os.fspath(path).casefold().endswith(TAR_SUFFIXES)
    if head.startswith(b"\x1f\x8b"):
        return "a compressed tar archive" if is_tar_name or _holds_tar(path) else ""
    return (
        "a compressed tar archive"
        if is_tar_name and head.startswith((b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
        else ""
    )


def _is_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether a file that begins as a ZIP archive is one, and no workbook, document or NumPy file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return not DOCUMENTS & set(names) and not all(name.endswith(".npy") for name in names)
    except (OSError, zipfile.BadZipFile, ValueError):
        return os.fspath(path).casefold().endswith(".zip")  # cut off, or a part of several


def _holds_tar(path: str | os.PathLike[str]) -> bool:
    start, mark = TAR_MARK
    try:
        with gzip.open(path, "rb") as file:
            return file.read(PARTS)[start:].startswith(mark)
    except (OSError, EOFError, zlib.error):
        return False
