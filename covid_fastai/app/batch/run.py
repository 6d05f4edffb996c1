"""Predict any number of images into one table, in parts that make it possible to resume.

The images are divided into parts. While the batch runs, the folder `OUT.parts` next to the table `OUT` holds one file
per completed part, each written atomically. When all parts are complete, they are joined into `OUT`, and the folder is
deleted. After an interruption, only the missing parts are predicted, and the table is the same as without it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Unpack

from covid_fastai.app.inputs import is_url, list_images
from covid_fastai.app.table_inputs import TableOptions
from covid_fastai.errors import DataError, ResourceError, UnavailableError, UsageError
from covid_fastai.files import atomic_write, claim_folder, make_folder, write_json
from covid_fastai.main_guard import check_main_guard
from covid_fastai.model.bundle_config import CONFIG_FILE, read_config
from covid_fastai.model.hub import find_model
from covid_fastai.options import Engine, Switch, WorkerCount, checked

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PART_SIZE", "PART_SUFFIXES", "join_parts", "predict_batch", "write_part"]

logger = logging.getLogger("covid_fastai")

PART_SIZE = 256  # images; some seconds of work, which is the most that each process can lose
PART_SUFFIXES = (".csv", ".parquet")
STATUSES = ("ok", "unreadable", "failed")
PLAN_FILE = "plan.json"


@checked
def predict_batch(
    model: str | Path,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | Path,
    *,
    workers: WorkerCount | None = None,
    resume: Switch = True,
    engine: Engine = "local",
    revision: str | None = None,
    **reading: Unpack[TableOptions],
) -> dict[str, int]:
    """Predict any number of images into one table, with one row per image in the order of the inputs.

    In a script, call it below `if __name__ == "__main__":`, since the processes that it starts import the script;
    without this guard there is an error, and no table.

    Args:
        model: The folder of a run or of a saved model, or `"user/model"` on the Hugging Face Hub.
        inputs: The images, as in `covid_fastai.app.inputs.list_images`: files, folders, glob patterns, CSVs, URLs. They
            should not change before an interrupted batch is resumed; parts whose files have changed are repeated.
        out: The table to write, `.csv` or `.parquet` (extra `batch`), with the columns of `Predictor.predict`.
        workers: The number of processes, with Ray on the whole cluster; None for one per processor core.
        resume: Whether to keep the parts of an interrupted batch; False to start again.
        engine: `"local"` for processes of this machine, `"ray"` (extra `ray`) for those of a Ray cluster. The machines
            of the cluster receive the model, and must be able to read the inputs under the same paths.
        revision: The commit, tag or branch of a model on the Hub.
        **reading: How tables among the inputs are read, as in `list_images`.

    Returns:
        The number of `rows`; of rows with the status `ok`, `unreadable` and `failed`; and of `resumed` rows, which an
        interrupted batch had completed.

    Raises:
        UsageError: An option is not allowed, the parts in `OUT.parts` belong to another model, or a script called this
            function without the guard.
        ResourceError: `out` exists, cannot be written, or another process is writing it.
        DataError: There is no image.
        ModelFormatError: The model is missing, damaged or not allowed, as in `Predictor`.
        UnavailableError: An extra is not installed, or no process can be started.
    """
    check_main_guard("predict_batch")
    out = Path(out)
    suffix = out.suffix.lower()
    if suffix not in PART_SUFFIXES:
        raise UsageError(
            f"out={str(out)!r} has the suffix {out.suffix!r}, which is neither .csv nor .parquet.",
            hint="Choose a table that ends in .csv or .parquet.",
        )
    workers = workers or os.cpu_count() or 1
    folder = find_model(model, revision=revision)
    config = read_config(folder / CONFIG_FILE)
    parts = out.with_name(f"{out.name}.parts")
    if out.exists() and not parts.exists():
        raise ResourceError(f"{out} already exists.", hint="Choose another file, or delete it.")
    make_folder(parts)
    with claim_folder(parts):
        _check_plan(parts, config.fingerprint, resume=resume)
        jobs = _Jobs(inputs, parts, suffix, reading)
        if engine == "ray":
            from covid_fastai.app.batch.ray import run_on_ray as run
        else:
            from covid_fastai.app.batch.local import run_on_workers as run
        n_images = 0
        for number, table in run(folder, jobs.missing(), workers=workers):
            write_part(parts / jobs.names[number], table)
            n_images += len(table)
            logger.info("%d images done.", jobs.resumed + n_images)
        counts = _write_table(jobs, parts, out)
    shutil.rmtree(parts, ignore_errors=True)
    return counts


class _Jobs:
    """The inputs, divided into parts of `PART_SIZE` images.

    Attributes:
        names: The file names of the parts, which consist of a number and a digest of the images.
        resumed: The number of images in parts that an interrupted batch had completed.
    """

    def __init__(self, inputs: Any, parts: Path, suffix: str, reading: TableOptions):
        self.reading = reading
        self.inputs, self.parts, self.suffix = inputs, parts, suffix
        self.names: list[str] = []
        self.resumed = 0

    def missing(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the paths of each part that is not complete yet."""
        images = list_images(self.inputs, **self.reading)
        while paths := list(islice(images, PART_SIZE)):
            name = f"part-{len(self.names):07d}-{_digest(paths)}{self.suffix}"
            self.names.append(name)
            if (self.parts / name).exists():
                self.resumed += len(paths)
            else:
                yield len(self.names) - 1, paths


def _digest(paths: list[str]) -> str:
    """Return a digest of the paths of a part, and of the size and modification time of local files."""
    facts = []
    for path in paths:
        try:
            status = None if is_url(path) else os.stat(path)
        except (OSError, ValueError):  # a missing file, or not a valid path
            status = None
        facts.append([path, *((status.st_size, status.st_mtime_ns) if status else ())])  # guard: part_name
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _check_plan(parts: Path, fingerprint: str, *, resume: bool) -> None:
    """Check that existing parts belong to the same model, part size and format; delete them unless `resume`."""
    plan = {"format": 1, "model": fingerprint, "part": PART_SIZE}
    try:
        existing_plan = json.loads((parts / PLAN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        existing_plan = plan
    except ValueError:
        existing_plan = None
    if existing_plan != plan and resume:
        raise UsageError(
            f"{parts} contains parts of the table of another model.",
            hint="Delete the folder, start again with resume=False (--no-resume), or write another table.",
        )
    if not resume:
        for path in parts.glob("part-*"):
            path.unlink()
    write_json(parts / PLAN_FILE, plan)


def _write_table(jobs: _Jobs, parts: Path, out: Path) -> dict[str, int]:
    """Join the parts into the table, and return its counts."""
    if not jobs.names:
        raise DataError("The inputs contain no image.", hint="Name images, folders, CSVs or glob patterns.")
    missing = [name for name in jobs.names if not (parts / name).exists()]
    if missing:  # only if another program has deleted them
        raise ResourceError(
            f"{len(missing)} parts are missing from {parts}.", hint="Run the command again; only these are repeated."
        )
    with atomic_write(out, mode="wb") as file:
        counts = join_parts([parts / name for name in jobs.names], file)
    return counts | {"resumed": jobs.resumed}


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
            table.to_csv(file, index=False, lineterminator="\n")
        return
    arrow, parquet = _pyarrow()
    with atomic_write(path, mode="wb") as file:
        # built without pandas.DataFrame.to_parquet, so that the bytes do not depend on the version of pandas: no index,
        # no metadata of pandas, and the type string also for a column without text
        columns = {str(name): column.tolist() for name, column in table.items()}
        fields = [(name, arrow.float64() if name.startswith("p_") else arrow.string()) for name in columns]
        parquet.write_table(arrow.Table.from_pydict(columns, schema=arrow.schema(fields)), file)


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
            content = path.read_bytes()
            file.write(content if number == 0 else content[content.index(b"\n") + 1 :])
            counts.update(row["status"] for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))
    else:
        _, parquet = _pyarrow()
        with parquet.ParquetWriter(file, parquet.read_schema(paths[0])) as writer:
            for path in paths:
                table = parquet.read_table(path)
                writer.write_table(table)
                counts.update(table["status"].to_pylist())
    return {"rows": counts.total(), **{status: counts[status] for status in STATUSES}}


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
