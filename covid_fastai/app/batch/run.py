"""Any number of images to one table: in parts, each written whole or not at all, so that nothing is done twice.

Beside `OUT` stands a folder `OUT.parts` while the work goes on, with a file a part. When all are there they are joined,
and the folder goes. What a run was killed in is done again, and the table is the same as that of a run that was not.
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
from typing import IO, TYPE_CHECKING, Any

from covid_fastai.app.inputs import is_address, list_images
from covid_fastai.errors import DataError, ResourceError, UnavailableError, UsageError
from covid_fastai.files import atomic_write, claim_folder, make_folder, write_json
from covid_fastai.model.bundle_config import CONFIG_FILE, read_config
from covid_fastai.model.hub import find_model
from covid_fastai.options import Engine, Switch, WorkerCount, checked

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PART", "PART_ENDINGS", "join_parts", "predict_batch", "write_part"]

logger = logging.getLogger("covid_fastai")

PART = 256  # images: some seconds of work, what a killed run loses at most in each process
PLAN = "plan.json"


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
) -> dict[str, int]:
    """Predict any number of images into one table, a row an image in the order of the inputs.

    In a script, call it below `if __name__ == "__main__":`, since the processes that it starts import the script.

    Args:
        model: A run, a saved model, or a name on the Hub.
        inputs: What `covid_fastai.app.inputs.list_images` takes: folders, CSVs, patterns, files, addresses. Nothing
            may change in them between a run and its resumption; what did change is done again.
        out: The table to write, `.csv` or `.parquet` (extra `batch`): the columns of `Predictor.predict`.
        workers: Processes; None for one a processor core. With Ray, of the whole cluster.
        resume: Go on with what an interrupted run has left; False to begin anew.
        engine: `"local"` for processes of this machine; `"ray"` (extra `ray`) for those of a Ray cluster, which have to
            reach the inputs under the same names. The model goes to them with the work.
        revision: Of a model on the Hub.

    Returns:
        `rows`, and how many of them are `ok`, `unreadable` and `failed`; `resumed`, the rows of an earlier run.

    Raises:
        UsageError: An option is not allowed, or the parts that were left belong to another model.
        ResourceError: `out` exists, cannot be written, or another process writes it.
        DataError: There is no image.
        ModelFormatError: As in `Predictor`.
        UnavailableError: An extra is not installed.
    """
    out = Path(out)
    ending = out.suffix.lower()
    if ending not in PART_ENDINGS:
        raise UsageError(f"{out} ends neither as .csv nor as .parquet.", hint="Name the table so.")
    workers = workers or os.cpu_count() or 1
    folder = find_model(model, revision=revision)
    config = read_config(folder / CONFIG_FILE)
    parts = out.with_name(f"{out.name}.parts")
    if out.exists() and not parts.exists():
        raise ResourceError(f"{out} already exists.", hint="Name another table, or remove it.")
    make_folder(parts)
    with claim_folder(parts):
        _check_plan(parts, config.fingerprint, resume=resume)
        jobs = _Jobs(inputs, parts, ending)
        if engine == "ray":
            from covid_fastai.app.batch.ray import run_on_ray as run
        else:
            from covid_fastai.app.batch.local import run_on_workers as run
        done = 0
        for number, table in run(folder, jobs.missing(), workers=workers):
            write_part(parts / jobs.names[number], table)
            done += len(table)
            logger.info("%d images done.", jobs.resumed + done)
        counts = _finish(jobs, parts, out)
    shutil.rmtree(parts, ignore_errors=True)
    return counts


class _Jobs:
    """The inputs, cut into parts of `PART` images; a part's file is named by its number and by what is in it."""

    def __init__(self, inputs: Any, parts: Path, ending: str):
        self.inputs, self.parts, self.ending = inputs, parts, ending
        self.names: list[str] = []
        self.resumed = 0

    def missing(self) -> Iterator[tuple[int, list[str]]]:
        """Yield number and paths of the parts that are not there yet."""
        images = list_images(self.inputs)
        while paths := list(islice(images, PART)):
            name = f"part-{len(self.names):07d}-{_digest(paths)}{self.ending}"
            self.names.append(name)
            if (self.parts / name).exists():
                self.resumed += len(paths)
            else:
                yield len(self.names) - 1, paths


def _digest(paths: list[str]) -> str:
    """Return what tells one part's images from another's: names, and of local files size and time of change."""
    facts = []
    for path in paths:
        try:
            status = None if is_address(path) else os.stat(path)
        except (OSError, ValueError):  # missing, or no name at all
            status = None
        facts.append([path, *((status.st_size, status.st_mtime_ns) if status else ())])  # guard: part_name
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _check_plan(parts: Path, fingerprint: str, *, resume: bool) -> None:
    """Make sure that the parts are of this model and this version of their form, or begin anew."""
    plan = {"format": 1, "model": fingerprint, "part": PART}
    try:
        found = json.loads((parts / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = plan
    except ValueError:
        found = None
    if found != plan and resume:
        raise UsageError(
            f"{parts} holds parts of another model's table.", hint="Remove it, begin anew with resume=False, or rename."
        )
    if not resume:
        for old in parts.glob("part-*"):
            old.unlink()
    write_json(parts / PLAN, plan)


def _finish(jobs: _Jobs, parts: Path, out: Path) -> dict[str, int]:
    if not jobs.names:
        raise DataError("There is no image.", hint="Name images, folders, CSVs or patterns.")
    lost = [name for name in jobs.names if not (parts / name).exists()]
    if lost:  # cannot be, unless somebody removes them
        raise ResourceError(f"{parts} lost {len(lost)} parts.", hint="Run again: only those are done.")
    with atomic_write(out, mode="wb") as file:
        counts = join_parts([parts / name for name in jobs.names], file)
    return counts | {"resumed": jobs.resumed}


PART_ENDINGS = (".csv", ".parquet")
STATUSES = ("ok", "unreadable", "failed")


def write_part(path: Path, table: pd.DataFrame) -> None:
    """Write a part, whole or not at all, as CSV or Parquet by its ending.

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
        # the same bytes whatever pandas: no index, no metadata of its own, text as text even where all of it is empty
        columns = {str(name): column.tolist() for name, column in table.items()}
        fields = [(name, arrow.float64() if name.startswith("p_") else arrow.string()) for name in columns]
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
        raise UnavailableError(
            "A Parquet table needs pyarrow.", hint="pip install 'covid_fastai[batch]', or name the table .csv"
        ) from error
    return pyarrow, pyarrow.parquet
