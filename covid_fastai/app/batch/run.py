"""Predict any number of images into one table, in parts that make it possible to resume.

The images are divided into parts. While the batch runs, the folder `OUT.parts` next to the table `OUT` holds one file
per completed part, each written atomically. When all parts are complete, they are joined into `OUT`, and the folder is
deleted. After an interruption, only the missing parts are predicted, and the table is the same as without it. A folder
of that name that no batch made is never used or changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

from covid_fastai.app.batch.parts import PartFolder, join_parts, owned_parts, write_part
from covid_fastai.app.inputs import list_images
from covid_fastai.app.table_inputs import TableOptions
from covid_fastai.data.reach import is_url
from covid_fastai.errors import DataError, ResourceError, UsageError
from covid_fastai.files import atomic_write
from covid_fastai.main_guard import check_main_guard
from covid_fastai.model.bundle_config import CONFIG_FILE, check_fingerprint, read_config
from covid_fastai.model.card import read_findings
from covid_fastai.model.hub import find_model
from covid_fastai.options import Engine, Seconds, Switch, WorkerCount, checked

__all__ = ["PART_SIZE", "PART_SUFFIXES", "predict_batch"]

logger = logging.getLogger("covid_fastai")

PART_SIZE = 256  # images; some seconds of work, which is the most that each process can lose
PART_SUFFIXES = (".csv", ".parquet")


@checked
def predict_batch(
    model: str | Path,
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | Path,
    *,
    workers: WorkerCount | None = None,
    resume: Switch = True,
    engine: Engine = "local",
    seconds: Seconds = 60,
    revision: str | None = None,
    fingerprint: str | None = None,
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
        seconds: The longest time that an image may take, such as one on a drive that no longer answers; a row that took
            longer has the status `failed`. Not with Ray.
        revision: The commit, tag or branch of a model on the Hub.
        fingerprint: The fingerprint that the model must have, as in `Predictor`; None for any.
        **reading: How tables among the inputs are read, as in `list_images`.

    Returns:
        The number of `rows`; of rows with the status `ok`, `unreadable` and `failed`; and of `resumed` rows, which an
        interrupted batch had completed.

    Raises:
        UsageError: An option is not allowed, the parts in `OUT.parts` belong to another model, or a script called this
            function without the guard.
        ResourceError: `out` exists, cannot be written, or another process is writing it; or `OUT.parts` is a link or
            somebody's own folder.
        DataError: There is no image.
        ModelFormatError: The model is missing, damaged or not allowed, as in `Predictor`, or it was exchanged while the
            batch ran; the parts remain, and those of one model are never joined with those of another one.
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
    check_fingerprint(config, fingerprint, folder)
    said = read_findings(folder, config).columns()
    with owned_parts(out) as parts:
        parts.check_plan({"format": 4, "model": config.fingerprint, **said, "part": PART_SIZE}, resume=resume)
        jobs = _Jobs(inputs, parts, suffix, reading)
        if engine == "ray":
            from covid_fastai.app.batch.ray import run_on_ray

            tables = run_on_ray(folder, jobs.missing(), workers=workers, fingerprint=config.fingerprint)
        else:
            from covid_fastai.app.batch.local import run_on_workers

            tables = run_on_workers(
                folder, jobs.missing(), workers=workers, seconds=seconds, fingerprint=config.fingerprint
            )
        n_images = 0
        for number, table in tables:
            # the one that was read first, since findings.json may be written again while the batch runs
            write_part(parts.path / jobs.names[number], table.assign(**said))  # guard: one_verdict
            n_images += len(table)
            logger.info("%d images done.", jobs.resumed + n_images)
        counts = _write_table(jobs, parts.path, out)
        parts.remove()
    return counts


class _Jobs:
    """The inputs, divided into parts of `PART_SIZE` images.

    Attributes:
        names: The file names of the parts, which consist of a number and a digest of the images.
        resumed: The number of images in parts that an interrupted batch had completed.
    """

    def __init__(self, inputs: Any, parts: PartFolder, suffix: str, reading: TableOptions):
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
            if self.parts.is_complete(name, paths):
                self.resumed += len(paths)
            else:
                yield len(self.names) - 1, paths


def _digest(paths: list[str]) -> str:
    """Return a digest of the paths of a part, and of the state of local files.

    The time of the last change of a file's state can be set by nobody, unlike the time of its last modification.
    """
    facts = []
    for path in paths:
        try:
            status = None if is_url(path) else os.stat(path)
        except (OSError, ValueError):  # a missing file, or not a valid path
            status = None
        state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) if status else ()
        facts.append([path, *state])  # guard: part_name
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _write_table(jobs: _Jobs, parts: Path, out: Path) -> dict[str, int]:
    """Join the parts into the table, and return its counts."""
    if not jobs.names:
        raise DataError("The inputs contain no image.", hint="Name images, folders, CSVs or glob patterns.")
    missing = [name for name in jobs.names if not (parts / name).exists()]
    if missing:  # only if another program has deleted them
        raise ResourceError(
            f"{len(missing)} parts are missing from {parts}.", hint="Run the command again; only these are repeated."
        )
    with atomic_write(out, mode="wb", new=True) as file:
        counts = join_parts([parts / name for name in jobs.names], file)
    return counts | {"resumed": jobs.resumed}
