"""The parts of a batch's table as files, and all of them as one; never more than a part in memory."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING

from covid_fastai.errors import EnvironmentProblem
from covid_fastai.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PART_ENDINGS", "join_parts", "write_part"]

PART_ENDINGS = (".csv", ".parquet")
STATUSES = ("ok", "unreadable", "failed")


def write_part(path: Path, table: pd.DataFrame) -> None:
    """Write a part, whole or not at all, as CSV or Parquet by its ending.

    Raises:
        EnvironmentProblem: Parquet needs pyarrow, which is not installed.
        ResourceError: The folder cannot be written to.
    """
    if path.suffix == ".csv":
        with atomic_write(path) as file:
            table.to_csv(file, index=False, lineterminator="\n")
        return
    arrow, parquet = _pyarrow()
    with atomic_write(path, mode="wb") as file:
        # the same bytes whatever pandas: no index, no metadata of its own, text as text even where all of it is empty
        fields = [(name, arrow.float64() if name.startswith("p_") else arrow.string()) for name in table]
        columns = {name: table[name].tolist() for name in table}
        parquet.write_table(arrow.Table.from_pydict(columns, schema=arrow.schema(fields)), file)


def join_parts(paths: list[Path], file: IO[bytes]) -> dict[str, int]:
    """Write the parts one after the other into an open binary file.

    Returns:
        `rows`, and the number of each status.
    """
    found: Counter[str] = Counter()
    if paths[0].suffix == ".csv":
        for number, path in enumerate(paths):
            content = path.read_bytes()
            file.write(content if number == 0 else content[content.index(b"\n") + 1 :])
            found.update(row["status"] for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))
    else:
        _, parquet = _pyarrow()
        with parquet.ParquetWriter(file, parquet.read_schema(paths[0])) as writer:
            for path in paths:
                table = parquet.read_table(path)
                writer.write_table(table)
                found.update(table["status"].to_pylist())
    return {"rows": found.total(), **{status: found[status] for status in STATUSES}}


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EnvironmentProblem(
            "A Parquet table needs pyarrow.", hint="pip install 'covid_fastai[batch]', or name the table .csv"
        ) from error
    return pyarrow, pyarrow.parquet
