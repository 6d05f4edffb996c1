"""Read Parquet and Feather files as columns of text, part by part."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from covid_fastai.data.workbooks import number_text, time_text
from covid_fastai.errors import DataError, UnavailableError

__all__ = ["read_arrow"]

logger = logging.getLogger("covid_fastai")


def read_arrow(file: BinaryIO, path: Path, *, reader: str, rows: int) -> Iterator[dict[str, list[str]]]:
    """Read a Parquet or Feather file.

    Every value becomes text: whole numbers without a decimal point, booleans as `True` and `False`, dates as in
    `time_text`, lists as Python writes them, and missing values as `""`. Columns of bytes that are not text, such as
    embedded images, are left out with a warning.

    Args:
        file: The file, seekable.
        path: Its name, for messages.
        reader: `"parquet"` or `"feather"`.
        rows: The number of rows of a part.

    Yields:
        The columns of each part, by name; at least one part, which may have no rows.

    Raises:
        DataError: The file is damaged, or a column has the name of another.
        UnavailableError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import feather, parquet
    except ImportError:
        raise UnavailableError(
            f"{path} is a {reader.capitalize()} file, which needs the package pyarrow.",
            hint="pip install 'covid_fastai[tables]', or write the table as CSV.",
        ) from None
    try:
        if reader == "parquet":
            source = parquet.ParquetFile(file)
            schema, batches = source.schema_arrow, source.iter_batches(batch_size=rows)
        else:
            table = feather.read_table(file)
            schema, batches = table.schema, iter(table.to_batches(max_chunksize=rows))
        duplicates = [name for name in schema.names if schema.names.count(name) > 1]
        if duplicates:
            raise DataError(f"{path} has the column {duplicates[0]!r} twice.", hint="Rename one of them.")
        names = [name for name in schema.names if _is_read(schema.field(name), path)]
        empty = True
        for batch in batches:
            empty = False
            yield {name: _texts(batch.column(batch.schema.get_field_index(name)), path, name) for name in names}
        if empty:
            yield {name: [] for name in names}
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as {reader.capitalize()}: {error}.", hint="Copy the file again, or write it again."
        ) from error


def _is_read(field: Any, path: Path) -> bool:
    """Return whether a column can be read as text; warn if not."""
    from pyarrow import types

    kind = field.type
    embedded = types.is_struct(kind) and any(types.is_binary(kind.field(n).type) for n in range(kind.num_fields))
    if embedded:
        logger.warning(
            "%s: the column %r holds files, such as images, and is not read. Write them to a folder, and their names "
            "into a column of text.",
            *(path, field.name),
        )
    return not embedded


def _texts(array: Any, path: Path, name: str) -> list[str]:
    """Return the values of a column as text, `""` for missing ones."""
    import pyarrow
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        return _texts(array.dictionary_decode(), path, name)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _texts(array.storage, path, name)
    if types.is_timestamp(kind) and kind.unit == "ns":  # Python's times have microseconds
        array = array.cast(pyarrow.timestamp("us", kind.tz), safe=False)
    if types.is_float32(kind) or types.is_float16(kind):  # the shortest text of 32 bits, not that of 64
        values: list[Any] = [
            None if value is None else float(str(value)) for value in array.to_numpy(zero_copy_only=False)
        ]
    else:
        values = array.to_pylist()
    if types.is_floating(kind):
        return ["" if value is None or math.isnan(value) else _float_text(value) for value in values]
    if types.is_temporal(kind):
        return ["" if value is None else time_text(value) for value in values]
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return _decode(values, path, name)
    return ["" if value is None else str(value) for value in values]


def _float_text(value: float) -> str:
    return number_text(value) if math.isfinite(value) else str(value)


def _decode(values: list[bytes | None], path: Path, name: str) -> list[str]:
    """Return texts that were written as bytes, as some programs do."""
    try:
        return ["" if value is None else value.decode() for value in values]
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: the column {name!r} holds bytes that are not text, such as images.",
            hint="Write them to files and their names into a column of text, or drop the column.",
        ) from None
