"""Read the files of a run from its folder; `audit/runs.py` adds the verdict."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.data.cohort import Cohort, load_cohort
from covid_fastai.errors import DataError
from covid_fastai.evaluation.formatting import ResultDisplay
from covid_fastai.evaluation.metrics import Evaluation
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.files import read_csv, similar_path
from covid_fastai.run_folder import FINISHED, TEST_EVALUATED, RunFolder

__all__ = ["Run", "collect_versions", "count_test_evaluations", "read_run"]

PACKAGES = ("covid_fastai", "fastai", "fastcore", "torch", "torchvision", "timm", "numpy", "pandas", "scipy")
PACKAGES += ("scikit-learn", "matplotlib", "pillow", "safetensors")


@dataclass(frozen=True, eq=False)
class Run(ResultDisplay):
    """A run, whose files are read on first access.

    Attributes:
        path: The folder of the run.
    """

    path: Path

    @property
    def folder(self) -> RunFolder:
        """The folder as a `RunFolder`, which knows the names of its files."""
        return RunFolder(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`data`, `config` (the fields of `TrainConfig`), and `python` and `command`, which repeat the run."""
        return self._json(RunFolder.config)

    @property
    def is_pseudonymised(self) -> bool:
        """Whether numbers stand for the names of files and patients in the run; their key lies beside it."""
        return bool((self.config.get("config") or {}).get("pseudonymise"))

    @cached_property
    def versions(self) -> dict[str, Any]:
        """The versions of Python and of the packages that the run used."""
        return self._json(RunFolder.versions)

    @cached_property
    def cohort(self) -> Cohort:
        """The cohort with its split, one row per image."""
        self._file(RunFolder.cohort)
        return load_cohort(self.path)

    @cached_property
    def problems(self) -> pd.DataFrame:
        """Problems of the data: row, path, kind, severity, reason, remedy."""
        return self._table(RunFolder.problems, text=True)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch: phase, epoch, train_loss, valid_loss, accuracy, seconds; with several folds also fold."""
        history = self._table(RunFolder.history)
        if "seconds" in history:
            return history
        # of fastai's CSVLogger, which writes a file of this name into the learner's folder
        history = history.drop(columns="time", errors="ignore").assign(epoch=history["epoch"] + 1, seconds=float("nan"))
        return history.assign(phase="unfrozen")

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per step: step, phase, learning_rate, train_loss (smoothed); a cross-validation has them by fold."""
        return self._table(RunFolder.steps)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The predictions, one row per image."""
        return read_predictions(self._file(RunFolder.predictions), every_split=True)

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluation of each evaluated split: `valid`, and `test` if it was evaluated."""
        evaluations = {}
        for split, fields in self._json(RunFolder.metrics).items():
            rows = self.predictions[self.predictions["split"] == split].reset_index(drop=True)
            evaluations[split] = Evaluation.from_dict(fields, predictions=rows)
        return evaluations

    @property
    def metrics(self) -> Evaluation:
        """The evaluation of the held-out patients: `.value("auc")`, `.metrics`, `.confusion`."""
        return self.evaluations["valid"]

    @cached_property
    def repeats(self) -> pd.DataFrame:
        """The rows of `metrics.metrics` by `repeat` of a cross-validation; empty if it was done once."""
        if not self.folder.repeats.is_file():
            return pd.DataFrame()
        return self._table(RunFolder.repeats).fillna({"class": ""})

    @cached_property
    def record(self) -> list[dict[str, Any]]:
        """The events of the run with their times: started, resumed, test evaluated, finished ..."""
        return self.folder.read_record()

    @cached_property
    def built(self) -> dict[str, Any]:
        """`arch`, `device` and `weights` of the model as built; in a cross-validation, those of the first fold."""
        events = [*self.record, *self.folder.fold(0).read_record()]
        return next((event for event in events if "weights" in event), {})

    @property
    def status(self) -> str:
        """`finished`, or the last event: `started`, `interrupted`, `failed`, `diverged` ..."""
        events = [event["event"] for event in self.record]
        if FINISHED in events:
            return FINISHED
        return next((event for event in reversed(events) if event != TEST_EVALUATED), "unknown")

    @property
    def report(self) -> Path:
        """The path of the report."""
        return self._file(RunFolder.report)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status})"

    def _display_parts(self) -> Iterable[pd.DataFrame | str | list[str]]:
        return self.metrics._display_parts() if self.folder.metrics.exists() else (repr(self),)

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise DataError(
                f"{self.path} has no {name}: the run is {self.status}.", hint="Resume it, or give another run."
            )
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self._file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}.", hint="Restore it, or train again.") from error

    def _table(self, name: str, *, text: bool = False) -> pd.DataFrame:
        path = self._file(name)
        try:
            return read_csv(path, **({"dtype": str, "keep_default_na": False} if text else {}))
        except ValueError as error:
            raise DataError(f"{path} is not a valid CSV: {error}.", hint="Restore it, or train again.") from error


def read_run(folder: str | Path) -> Run:
    """Read a run from its folder.

    Args:
        folder: A folder that `train_classifier` wrote, such as `learn.path`.

    Returns:
        The run. Its files are read on first access, so that an unfinished run can be read too.

    Raises:
        DataError: The folder is not that of a run.
    """
    folder = Path(folder)
    if not RunFolder(folder).is_run():
        near = None if folder.exists() else similar_path(folder)
        raise DataError(
            f"{folder} is not the folder of a run." if folder.exists() else f"There is no folder {folder}.",
            hint=f"Did you mean {near}?" if near else "Give the folder of a training, such as one in runs.",
        )
    return Run(folder)


def count_test_evaluations(run: Run) -> dict[str, int]:
    """Count how often the official TEST of a run's data was evaluated, by this and other runs in the same folder.

    Args:
        run: The run.

    Returns:
        The number of evaluations by the name of each run that made one. Other runs count if their data have the same
        path.
    """
    data, counts = run.folder.read_options().get("data"), {}
    folders = [path.parent for path in run.path.resolve().parent.glob(f"*/{RunFolder.record}")]
    for folder in sorted({run.path.resolve(), *folders}):
        other = Run(folder)
        evaluations = sum(event["event"] == TEST_EVALUATED for event in other.record)
        # a run that was interrupted before it wrote its options has not evaluated anything
        if evaluations and (folder == run.path.resolve() or (data and other.folder.read_options().get("data") == data)):
            counts[folder.name] = evaluations
    return counts


def collect_versions() -> dict[str, Any]:
    """Return the versions of Python, the system and the packages that results depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], "system": platform.platform(), "packages": versions}
