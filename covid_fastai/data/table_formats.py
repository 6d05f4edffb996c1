"""Recognise the format of a table by its content, remove its compression, and name formats that are not read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from covid_fastai.data.archives import unpack_command
from covid_fastai.errors import CovidFastaiError, DataError, UnavailableError

__all__ = [
    "COMPRESSION_ERRORS",
    "OpenTable",
    "Reader",
    "damaged",
    "first_bytes",
    "has_table_suffix",
    "looks_like_table",
    "open_table",
]

Reader = Literal["text", "workbook", "parquet", "feather"]

HEAD = 4096  # bytes that show the format
TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet", ".feather")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
LARGEST = 1 << 30  # bytes of what is unpacked in memory
# Text that is unpacked while it is read: tables shrink to a tenth, and a few KB can hold gigabytes of short rows.
MOST_EXPANDED, UNCHECKED = 100, 64 << 20  # times the size of the file; bytes that any file may have
MAX_LAYERS = 3  # of compression, such as a .gz in a .xz
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "xz",  # the older .lzma
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
COMPRESSION_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)


@dataclass(frozen=True)
class _OtherFormat:
    """A format that is not read: its name, and the remedy.

    In the remedy, {file} is the file, {quoted} the same for a shell, {target} the CSV to write and {unpack} the
    command that unpacks an archive.
    """

    name: str
    remedy: str


def _with_pandas(name: str, reader: str, advice: str = "") -> _OtherFormat:
    """Return a format that pandas converts, by the call that reads it."""
    command = f'python -c "import pandas; pandas.{reader}.to_csv({{target!r}}, index=False)"'
    return _OtherFormat(name, f"{advice}Convert it: {command}")


NO_TABLE = "Give a table: CSV, Parquet or .xlsx."
SAVE_AS_CSV = "Open it in a spreadsheet program and save it as CSV or .xlsx"
WITH_OFFICE = f"{SAVE_AS_CSV}; with LibreOffice: soffice --headless --convert-to csv {{quoted}}"
UNPACK = "Unpack it and give the table in it: {unpack}"
HTML = _OtherFormat("an HTML page", "Download the file itself: this is a page to log in, or about an error.")
R_DATA = _OtherFormat("an R data file", "In R, write its table with write.csv.")
SPSS = _OtherFormat("an SPSS file", "Save it as CSV in SPSS, or with haven and write.csv in R.")
STATA = _with_pandas("a Stata file", "read_stata({file!r})")
IMAGE = _OtherFormat("an image", NO_TABLE)
DICOM = _OtherFormat("a DICOM file", NO_TABLE)
TAR = _OtherFormat("a tar archive", UNPACK)
JSON = _with_pandas("JSON", "read_json({file!r}, dtype=False, convert_dates=False)")
JSON_LINES = _with_pandas("JSON Lines", "read_json({file!r}, dtype=False, convert_dates=False, lines=True)")
PICKLE = _with_pandas(
    "a Python pickle, which can run any code when it is loaded",
    "read_pickle({file!r})",
    "Ask for the table as CSV, and convert it yourself only if you trust its origin. ",
)
OTHER_FORMATS: dict[bytes, _OtherFormat] = {  # by the first bytes
    b"\xd0\xcf\x11\xe0": _OtherFormat("an Excel workbook that is of the old format (.xls) or encrypted", WITH_OFFICE),
    b"Rar!": _OtherFormat("a RAR archive", UNPACK),
    b"7z\xbc\xaf\x27\x1c": _OtherFormat("a 7z archive", UNPACK),
    b"\x1f\x9d": _OtherFormat("a file of the program compress (.Z)", "Decompress it: gzip -d {quoted}"),
    b"SQLite format 3\0": _OtherFormat(
        "an SQLite database",
        "List its tables with sqlite3 {quoted} .tables and convert one: "
        "sqlite3 -header -csv {quoted} 'SELECT * FROM \"NAME\"' > {target}",
    ),
    b"\x89HDF\r\n\x1a\n": _OtherFormat("an HDF5 file", "Write its table as CSV with h5py or with its own program."),
    b"\x93NUMPY": _with_pandas("a NumPy array", "DataFrame(__import__('numpy').load({file!r}))"),
    b"ORC": _with_pandas("an ORC file", "read_orc({file!r})"),
    b"Obj\x01": _OtherFormat("an Avro file", "Write it as CSV or Parquet with the program that made it."),
    b"PARE": _OtherFormat("an encrypted Parquet file", "Write it without encryption."),
    b"HEADER RECORD*******LIB": _with_pandas(
        "a SAS transport file", "read_sas({file!r}, format='xport', encoding='utf-8')"
    ),
    b"\0" * 12 + b"\xc2\xea\x81\x60": _with_pandas(
        "a SAS data set", "read_sas({file!r}, format='sas7bdat', encoding='utf-8')"
    ),
    b"<stata_dta>": STATA,
    **dict.fromkeys((b"$FL2", b"$FL3"), SPSS),
    **dict.fromkeys((b"RDX", b"RDA2", b"RDA3", b"X\n\0\0\0"), R_DATA),
    b"MATLAB 5.0 MAT-file": _OtherFormat("a MATLAB file", "Write its table with writetable in MATLAB."),
    b"%PDF": _OtherFormat("a PDF", "Ask for the table as CSV; a PDF has no columns."),
    b"{\\rtf": _OtherFormat("a text document (RTF)", "Save its table as CSV."),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*"), IMAGE),
    b"version https://git-lfs": _OtherFormat("a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull"),
}
MARKUP = {  # by the first word, in lower case
    b"<!doctype": HTML,
    b"<html": HTML,
    b"<table": _OtherFormat("an HTML table", f"{SAVE_AS_CSV}."),
    b"<?xml": _OtherFormat("an XML file", f"{SAVE_AS_CSV}."),
}
ZIP_FORMATS = {  # by the name of a file in the ZIP
    "xl/workbook.bin": _OtherFormat("a binary Excel workbook (.xlsb)", WITH_OFFICE),
    "content.xml": _OtherFormat("an OpenDocument file (.ods)", WITH_OFFICE),
    "Index/Document.iwa": _OtherFormat("a document of Apple Numbers or Pages", f"{SAVE_AS_CSV}."),
    "word/document.xml": _OtherFormat("a Word document", "Save its table as CSV."),
}


@dataclass(frozen=True)
class OpenTable:
    """A table that is open for reading, without its compression.

    Attributes:
        reader: What reads it.
        file: The bytes; seekable unless the table is compressed text. Leaving the context closes it.
    """

    reader: Reader
    file: BinaryIO
    _opened: contextlib.ExitStack

    def __enter__(self) -> OpenTable:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()


def open_table(path: Path) -> OpenTable:
    """Open a table and recognise its format by its content, whatever its name.

    Args:
        path: A file.

    Raises:
        DataError: It cannot be read, is damaged, or has a format that is not read; the hint has the command that
            converts it.
        UnavailableError: Its compression needs a package that is not installed.
    """
    with contextlib.ExitStack() as opened:
        if path.exists() and not path.is_file():  # opening a pipe waits for its other end; guard: table_fifo
            if path.is_dir():
                raise DataError(
                    f"{path} is a folder, not a table.",
                    hint="Give the file itself, such as a CSV with a row per image.",
                )
            raise DataError(f"{path} is a pipe, socket or device.", hint="Write its content to a file first.")
        try:
            file = opened.enter_context(open(path, "rb"))
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}.", hint="Check the path and the permissions."
            ) from error
        reader, content = _recognise(file, path, opened)
        return OpenTable(reader, content, opened.pop_all())


def has_table_suffix(name: str) -> bool:
    """Return whether a file name has the suffix of a table, also before that of a compression.

    Args:
        name: The name.
    """
    stem, suffix = os.path.splitext(name.casefold())
    return (stem if suffix in COMPRESSION_SUFFIXES else name.casefold()).endswith(TABLE_SUFFIXES)


def looks_like_table(path: str) -> bool:
    """Return whether a file is a table by its content: a format that is read, or text.

    Args:
        path: A file, of which the first bytes are read, without their compression.
    """
    try:
        with open_table(Path(path)) as table:
            return table.reader != "text" or _is_text(first_bytes(table.file))
    except CovidFastaiError:
        return False


def _recognise(file: BinaryIO, path: Path, opened: contextlib.ExitStack) -> tuple[Reader, BinaryIO]:
    """Return what reads a file, and its content without compression."""
    compression: list[str] = []
    while True:
        try:
            head = first_bytes(file)
        except (OSError, *COMPRESSION_ERRORS) as error:
            raise damaged(path, error) from None
        name = next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)
        if name is None:
            break
        if len(compression) == MAX_LAYERS:
            raise DataError(f"{path} is compressed {MAX_LAYERS} times or more.", hint="Decompress it first.")
        file = opened.enter_context(_decompress(file, name, path))
        compression.append(name)
    reader = _reader_of(head)
    if reader == "text" and compression:
        file = opened.enter_context(io.BufferedReader(_Expanding(file, path), 1 << 16))
    if reader != "text" and compression:  # these formats are read from several places of the file
        try:
            content = file.read(LARGEST + 1)
            if len(content) > LARGEST:  # guard: table_unpacked
                raise DataError(f"{path} unpacks to more than {LARGEST:,} bytes.", hint="Decompress it first.")
            file = io.BytesIO(content)
        except (OSError, *COMPRESSION_ERRORS) as error:
            raise damaged(path, error) from None
    other = _other_format(head, file if not compression or reader != "text" else None)
    if other is not None:  # guard: no_table
        raise _refuse(path, other, compression)
    return reader, file


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for a compressed file whose content ends early or is wrong.

    Args:
        path: The file.
        error: The error of the decompression.
    """
    return DataError(
        f"{path} is damaged or was not copied completely: {error or type(error).__name__}.",
        hint="Copy or download the file again.",
    )


def first_bytes(file: BinaryIO) -> bytes:
    """Return the first bytes of a file that was just opened, and leave it at its start.

    Args:
        file: A buffered file.
    """
    return cast(io.BufferedReader, file).peek(HEAD)[:HEAD]


def _decompress(file: BinaryIO, name: str, path: Path) -> BinaryIO:
    openers: dict[str, Callable[[BinaryIO], BinaryIO]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}  # type: ignore[dict-item]
    if name in openers:
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, openers[name](file)), 1 << 16))
    try:
        import pyarrow
    except ImportError:
        raise UnavailableError(
            f"{path} is compressed with {name}, which needs the package pyarrow.",
            hint=f"pip install 'covid_fastai[tables]', or decompress it: {name} -d {shlex.quote(str(path))}",
        ) from None
    stream = pyarrow.CompressedInputStream(file, "lz4" if name == "lz4" else "zstd")
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16))


class _Expanding(io.RawIOBase):
    """What a compressed text holds, up to a limit that no table of images reaches."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path, self._bytes = file, path, 0
        self._most = max(UNCHECKED, MOST_EXPANDED * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = cast(io.BufferedReader, self._file).readinto(buffer)
        self._bytes += size
        if self._bytes > self._most:  # guard: expanding_text
            raise DataError(
                f"{self._path} unpacks to more than {MOST_EXPANDED} times its size.",
                hint="Check that it is a table with one row per image, and decompress it first.",
            )
        return size


def _reader_of(head: bytes) -> Reader:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"FEA1")):
        return "feather"
    return "workbook" if head.startswith(b"PK") and head[2:4] in (b"\x03\x04", b"\x05\x06", b"\x07\x08") else "text"


def _other_format(head: bytes, file: BinaryIO | None) -> _OtherFormat | None:
    """Return the format that is not read; None if it is read, or may be text."""
    for magic, other in OTHER_FORMATS.items():
        if head.startswith(magic):
            return other
    if head[257:262] == b"ustar":
        return TAR
    if head[128:132] == b"DICM":
        return DICOM
    if re.match(rb"\x80[\x02-\x05][\x95}\]cK(]", head):
        return PICKLE
    if re.match(rb"[\x69-\x73][\x01\x02]\x01\x00", head):
        return STATA
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for start, other in MARKUP.items():
        if text.startswith(start):
            return other
    if re.match(rb'\{\s*"|\[\s*[{\[]', text):
        # an object of objects on one line is a table by column, as pandas writes it
        is_lines = re.match(rb"\{[^\n]*\}\s*\{", text) or re.match(rb"\{[^\n{]*\}\s*$", text)
        return JSON_LINES if is_lines else JSON
    return _zip_format(file) if _reader_of(head) == "workbook" and file is not None else None


def _zip_format(file: BinaryIO) -> _OtherFormat | None:
    """Return the format of a ZIP that is no workbook; None for a workbook."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return _OtherFormat("a damaged Excel workbook or ZIP archive", "Copy or download the file again.")
    finally:
        file.seek(0)
    if "xl/workbook.xml" in names:
        return None
    for name, other in ZIP_FORMATS.items():
        if name in names:
            return other
    if names and all(name.endswith(".npy") for name in names):
        return _OtherFormat("NumPy arrays (.npz)", "Write the columns that numpy.load returns as CSV.")
    tables = [name for name in names if has_table_suffix(name)]
    content = f"; it holds {', '.join(tables[:3])}{', ...' if len(tables) > 3 else ''}" if tables else ""
    return _OtherFormat(f"a ZIP archive{content}", UNPACK)


def _refuse(path: Path, other: _OtherFormat, compression: list[str]) -> DataError:
    text, stem = str(path), path.name.split(".")[0] or path.name
    names = {"file": text, "quoted": shlex.quote(text), "target": f"{stem}.csv", "unpack": unpack_command(path)}
    inside = f", compressed with {' and '.join(reversed(compression))}" if compression else ""
    return DataError(f"{path} is {other.name}{inside}.", hint=other.remedy.format(**names))


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are text, of one or two bytes per character."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\v\x1b" for byte in head)
    return b"\0" not in head and controls == 0
