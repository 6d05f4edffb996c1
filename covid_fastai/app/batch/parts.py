"""The parts of a batch: a folder that carries the batch's mark, and the files in it.

The folder `OUT.parts` lies next to the table `OUT`. Only a folder that a batch made is used, only files that a batch
wrote are removed, and no link is followed. A part is complete if it has a row for each of its images.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from covid_fastai.data.problems import printable
from covid_fastai.errors import ResourceError, UnavailableError, UsageError
from covid_fastai.files import (
    CLAIM_FILES,
    LOCK_FILE,
    OWNER,
    OWNER_FILE,
    atomic_write,
    claim_folder,
    dump_csv,
    is_unfinished,
    make_folder,
    unescape_cell,
    write_json,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PartFolder", "join_parts", "owned_parts", "write_part"]

logger = logging.getLogger("covid_fastai")

STATUSES = ("ok", "unreadable", "failed")
PLAN_FILE = "plan.json"
MARK = "covid_fastai batch"  # in the plan of a folder that a batch made
LONGEST_NAME = 255  # bytes, of the usual file systems
PART_NAME = re.compile(r"part-\d{7,}-[0-9a-f]{16}\.(csv|parquet)")


class PartFolder:
    """The folder with the parts of one table, while this process owns it.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path):
        self.path = path

    def check_plan(self, plan: dict[str, Any], *, resume: bool) -> None:
        """Check that existing parts belong to the same plan; remove them unless `resume`.

        Args:
            plan: What decides the content of the parts: the model, the size of a part.
            resume: Whether to keep complete parts.

        Raises:
            UsageError: The parts are those of another plan.
        """
        plan = {**plan, "made_by": MARK}
        if not resume:
            self._remove_parts()
        elif _read_plan(self.path) not in (None, plan) and any(self._parts()):
            raise UsageError(
                f"{self.path} contains parts of the table of another model.",
                hint="Start again with resume=False, or write another table.",
            )
        write_json(self.path / PLAN_FILE, plan)

    def is_complete(self, name: str, paths: Sequence[str]) -> bool:
        """Return whether a part has a row for each of its images.

        Args:
            name: The file's name.
            paths: The images of the part.
        """
        path = self.path / name
        if not _is_file(path):
            return False
        try:
            rows = _read_paths(path)
        except Exception as error:  # noqa: BLE001 - pyarrow and csv raise nearly anything for a damaged file
            rows = [str(error)]
        if rows == [printable(text) for text in paths]:  # guard: whole_part
            return True
        logger.warning("%s is incomplete or damaged; its %d images are predicted again.", path, len(paths))
        return False

    def remove(self) -> None:
        """Remove the parts and the plan."""
        self._remove_parts()
        if _is_file(self.path / PLAN_FILE):
            (self.path / PLAN_FILE).unlink()

    def _remove_parts(self) -> None:
        for path in self._parts():
            path.unlink()

    def _parts(self) -> Iterator[Path]:
        """Yield the files that a batch wrote; a link, a folder or another file is none of them."""
        for path in sorted(self.path.iterdir()):
            if PART_NAME.fullmatch(path.name) and _is_file(path):  # guard: own_parts
                yield path


@contextmanager
def owned_parts(out: Path) -> Iterator[PartFolder]:
    """Own the folder of the parts of a table during a `with` block, and remove it if it then has no parts.

    Args:
        out: The table, which does not exist yet.

    Raises:
        ResourceError: `out` exists; the folder is a link, or was not made by a batch; or another process owns it.
    """
    path = out.with_name(f"{out.name}.parts")
    if len(os.fsencode(path.name)) > LONGEST_NAME:  # guard: long_name
        raise ResourceError(f"The name {out.name} is too long.", hint=f"Use at most {LONGEST_NAME - 6} bytes.")
    exists = os.path.lexists(path)
    if path.is_symlink():  # guard: parts_link
        raise ResourceError(f"{path} is a link, not a folder.", hint="Remove the link, or write another table.")
    _check_new(out)
    if exists and not _is_own(path):  # guard: foreign_parts
        raise ResourceError(
            f"{path} exists, and no batch has made it. The parts of {out.name} would be kept there.",
            hint="Move or rename it, or write a table of another name.",
        )
    make_folder(path)
    empty = False
    try:
        with claim_folder(path):
            folder = PartFolder(path)
            try:
                _check_new(out)  # again, since the process that owned the folder until now may have written the table
                yield folder
            finally:
                empty = not any(folder._parts())
                if empty:
                    folder.remove()
    finally:
        if empty:
            _remove_claim(path)


def _check_new(out: Path) -> None:
    if os.path.lexists(out):  # guard: table_there
        raise ResourceError(
            f"{out} already exists.",
            hint="Choose another file, or delete it: a batch writes only whole tables.",
        )


def _is_own(path: Path) -> bool:
    """Return whether a batch made a folder: it has a batch's plan, or nothing but the files of a claim."""
    if not path.is_dir():
        return False
    return _read_plan(path) is not None or all(map(_is_of_claim, path.iterdir()))


def _is_of_claim(path: Path) -> bool:
    """Return whether a file is one that a batch leaves which was killed when it began."""
    if not _is_file(path):
        return False
    if path.name == LOCK_FILE:
        return path.stat().st_size == 0  # guard: claim_file
    if path.name == OWNER_FILE:
        return path.read_bytes()[: len(OWNER)] == OWNER.encode()
    return is_unfinished(path) and path.name.startswith((f".{PLAN_FILE}.", f".{OWNER_FILE}."))


def _read_plan(path: Path) -> dict[str, Any] | None:
    """Return the plan of a batch in a folder; None if there is none, or it is not a batch's."""
    file = path / PLAN_FILE
    if path.is_symlink() or not _is_file(file):
        return None
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) and plan.get("made_by") == MARK else None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _remove_claim(path: Path) -> None:
    """Remove a folder that has nothing but the files of a claim."""
    for name in CLAIM_FILES:
        if _is_file(path / name):
            (path / name).unlink()
    try:
        path.rmdir()
    except OSError:
        logger.warning("%s is kept, since it contains files that the batch did not write.", path)


def write_part(path: Path, table: pd.DataFrame) -> None:
    """Write a part atomically, as CSV or Parquet according to its suffix.

    Args:
        path: The file.
        table: The rows that `Predictor.predict` returned.

    Raises:
        UnavailableError: Parquet needs pyarrow, which is not installed.
        ResourceError: The folder cannot be written to.
    """
    if path.suffix == ".csv":
        with atomic_write(path) as file:
            dump_csv(file, table)
        return
    arrow, parquet = _pyarrow()
    with atomic_write(path, mode="wb") as file:
        # built without pandas.DataFrame.to_parquet, so that the bytes do not depend on the version of pandas: no index,
        # no metadata of pandas, and the type string also for a column without text
        columns = {
            str(name): [printable(value) if isinstance(value, str) else value for value in column.tolist()]
            for name, column in table.items()
        }
        fields = [(name, _arrow_type(arrow, name)) for name in columns]
        parquet.write_table(arrow.Table.from_pydict(columns, schema=arrow.schema(fields)), file)


def _arrow_type(arrow: Any, column: str) -> Any:
    """Return the Arrow type of a column of `Predictor.predict`."""
    if column.startswith(("p_", "region_")):
        return arrow.float64()
    return arrow.bool_() if column == "withheld" else arrow.string()


def join_parts(paths: list[Path], file: IO[bytes]) -> dict[str, int]:
    """Write parts one after the other into an open binary file.

    Args:
        paths: The files of the parts, which have the same suffix.
        file: A file that is open for writing.

    Returns:
        The number of `rows`, and of the rows with each status.
    """
    counts: Counter[str] = Counter()
    if paths[0].suffix == ".csv":
        for number, path in enumerate(paths):
            text = path.read_bytes().decode("utf-8")
            reader = csv.reader(io.StringIO(text, newline=""))
            status = next(reader).index("status")
            lines = io.StringIO(text, newline="")
            for _ in range(reader.line_num if number else 0):  # a name in the header can span several lines
                next(lines)
            file.write(lines.read().encode("utf-8"))
            counts.update(row[status] for row in reader)
    else:
        _, parquet = _pyarrow()
        with parquet.ParquetWriter(file, parquet.read_schema(paths[0])) as writer:
            for path in paths:
                table = parquet.read_table(path)
                writer.write_table(table)
                counts.update(table["status"].to_pylist())
    return {"rows": counts.total(), **{status: counts[status] for status in STATUSES}}


def _read_paths(path: Path) -> list[str]:
    """Return the column `path` of a part, all of whose rows are whole."""
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        column, end = header.index("path"), len(header)
        return [unescape_cell(row[column]) for row in rows if len(row) == end]
    _, parquet = _pyarrow()
    return parquet.read_table(path, columns=["path"])["path"].to_pylist()


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnavailableError(
            "A Parquet table needs the package pyarrow, which is not installed.",
            hint="pip install 'covid_fastai[batch]', or write a .csv table.",
        ) from error
    return pyarrow, pyarrow.parquet
