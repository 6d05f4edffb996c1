"""The folder of a run: the name of every file in it, and the record of its events.

A new file of a run gets a line here; every module that writes or reads the file gets its path from `RunFolder`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from covid_fastai.errors import ResourceError
from covid_fastai.files import utc_now
from covid_fastai.pseudonyms import find_key, hide_names, key_beside, read_private

__all__ = ["BATCH_HALVED", "FINISHED", "MODEL_BUILT", "RunFolder", "TEST_EVALUATED"]

# Events of the record that the code searches for.
CROPPED = "cropped to the lungs"
BATCH_HALVED = "batch halved"  # training ran out of memory and started again with half the batch size
FINISHED = "finished"
MODEL_BUILT = "model built"
TEST_EVALUATED = "test evaluated"


class _Entry:
    """Descriptor of a file or folder of a run: its name on the class, its path on an instance."""

    def __init__(self, name: str):
        self.name = name

    @overload
    def __get__(self, folder: None, owner: type) -> str: ...

    @overload
    def __get__(self, folder: RunFolder, owner: type) -> Path: ...

    def __get__(self, folder: RunFolder | None, owner: type) -> str | Path:
        return self.name if folder is None else folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files by their content: `RunFolder("runs/a").predictions` is `runs/a/predictions.csv`.

    Attributes:
        path: The folder. Each fold and repeat of a cross-validation and each network of the full audit has such a
            folder inside it; see `fold`, `repeat` and `retrained_network`.
    """

    path: Path

    config = _Entry("config.json")  # the data, the options, and the call and command that repeat the run
    versions = _Entry("versions.json")  # versions of Python and of the packages that results depend on
    cohort = _Entry("cohort.csv")  # one row per image, with its split
    cohort_info = _Entry("cohort.json")  # task, classes, positive class and the other facts of the cohort
    problems = _Entry("problems.csv")  # problems of the data, one row each
    repeats = _Entry("repeats.csv")  # the metrics of each repeat of a cross-validation
    history = _Entry("history.csv")  # one row per epoch
    steps = _Entry("steps.csv")  # one row per training step
    crops = _Entry("crops.csv")  # one row per image: what a model with region="lungs" sees of it
    checkpoints = _Entry("checkpoints")  # the last epochs, to resume from; removed at the end
    model = _Entry("model")  # the saved model
    training_manifest = _Entry("training.manifest.safetensors")  # fingerprints of the training images, not the images
    predictions = _Entry("predictions.csv")  # one row per image
    metrics = _Entry("metrics.json")  # the evaluation of each split
    probes = _Entry("probes.csv")  # the network's predictions of altered images and of the negative controls
    saliency = _Entry("saliency.csv")  # the fraction of each class activation map inside and outside the lungs
    saliency_picture = _Entry("saliency.png")
    external = _Entry("external")  # external validations, one JSON file per data set
    retrained = _Entry("retrained")  # networks trained on altered images or permuted labels, one folder each
    audit = _Entry("audit.json")
    batch_picture = _Entry("batch.png")  # a training batch after augmentation
    report = _Entry("report.html")
    datasheet = _Entry("datasheet.md")
    reporting_items = _Entry("reporting-items.md")  # the items of CLAIM 2024 and TRIPOD+AI, as far as the run has them
    record = _Entry("record.jsonl")  # the events with their times, one line each

    def __init__(self, path: str | Path):
        object.__setattr__(self, "path", Path(path))

    def fold(self, number: int) -> RunFolder:
        """Return the folder of one fold of a cross-validation."""
        return RunFolder(self.path / f"fold-{number}")

    def folds(self) -> list[RunFolder]:
        """Return the folders of the folds that have begun, in order; empty for a single training."""
        paths = {int(path.name.removeprefix("fold-")): path for path in self.path.glob("fold-[0-9]*")}
        return [RunFolder(paths[number]) for number in sorted(paths)]

    def repeat(self, number: int) -> RunFolder:
        """Return the folder of a repeat of a cross-validation, with its own folds; repeat 0 is the run itself."""
        return self if number == 0 else RunFolder(self.path / f"repeat-{number}")

    def retrained_network(self, change: str) -> RunFolder:
        """Return the folder of a network of the full audit by its change, such as `"lungs removed"`."""
        return RunFolder(self.retrained / change.replace(" ", "-"))

    def external_results(self) -> dict[str, Path]:
        """Return the files of the external validations by the names of their data sets."""
        return {path.stem: path for path in sorted(self.external.glob("*.json"))}

    def is_run(self) -> bool:
        """Return whether a run has begun in this folder."""
        return self.config.is_file() and self.record.is_file()

    @property
    def key(self) -> Path:
        """The folder of the key of a pseudonymised run, beside the run."""
        return key_beside(self.path)

    def read_options(self) -> dict[str, Any]:
        """Read `config.json`, with the files that a pseudonymised run hides in its key.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not JSON.
        """
        options = json.loads(self.config.read_text(encoding="utf-8"))
        private = read_private(self.path)
        return options | {name: private[name] for name in ("data", "config") if name in private}

    def log(self, event: str, **facts: Any) -> None:
        """Append an event to the record, with the time (UTC) and facts about it.

        Args:
            event: The event's name, a few words.
            **facts: Values that JSON can hold.

        Raises:
            ResourceError: The record cannot be written.
        """
        line = json.dumps({"time": utc_now(), "event": event, **facts}, ensure_ascii=False)
        if (key := find_key(self.record)) is not None:
            line = hide_names(line, key)
        try:
            with open(self.record, "ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a crash cut the last line; the new one must not be appended to it
                        file.write(b"\n")
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(
                f"{self.record} cannot be written: {error.strerror}.",
                hint="Free space on the disk, or check the folder's permissions.",
            ) from error

    def read_record(self) -> list[dict[str, Any]]:
        """Read the record, one dictionary per event; a line that a crash has cut becomes the event `unreadable`.

        Returns:
            The events in order; an empty list if there is no record.
        """
        if not self.record.is_file():
            return []
        events = []
        for line in self.record.read_bytes().decode("utf-8", "replace").rstrip("\n").split("\n"):
            try:
                event = json.loads(line)
            except ValueError:  # guard: torn_line
                event = None
            is_event = isinstance(event, dict) and "event" in event
            events.append(event if is_event else {"event": "unreadable", "line": line})
        return events

    def is_finished(self) -> bool:
        """Return whether the record has the event that the run finished."""
        return any(event["event"] == FINISHED for event in self.read_record())
