"""Read a run back from its folder, and list runs."""

from __future__ import annotations

import json
import math
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
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import ResultDisplay
from covid_fastai.evaluation.metrics import LOWER_IS_BETTER, Evaluation
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.run_folder import FINISHED, TEST_EVALUATED, RunFolder

__all__ = ["Run", "collect_versions", "list_runs", "read_run"]

PACKAGES = ("covid_fastai", "fastai", "fastcore", "torch", "torchvision", "timm", "numpy", "pandas", "scipy")
PACKAGES += ("scikit-learn", "matplotlib", "pillow", "safetensors")
RUN_COLUMNS = ["run", "task", "arch", "started", "status", "metric", "value", "low", "high", "n", "unit"]


@dataclass(frozen=True, eq=False)
class Run(ResultDisplay):
    """A run's folder, read as it is asked for.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def folder(self) -> RunFolder:
        """The folder as an object that knows the names of its files."""
        return RunFolder(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`data`, `config` (the fields of `TrainConfig`), `python` and `command`, which do the same again."""
        return self._json(RunFolder.config)

    @cached_property
    def versions(self) -> dict[str, Any]:
        """The versions of Python and of the packages that the run was made with."""
        return self._json(RunFolder.versions)

    @cached_property
    def cohort(self) -> Cohort:
        """The cohort with its split, a row an image."""
        self._file(RunFolder.cohort)
        return load_cohort(self.path)

    @cached_property
    def problems(self) -> pd.DataFrame:
        """What was found in the data: row, path, kind, severity, reason, remedy."""
        return self._table(RunFolder.problems, text=True)

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row an epoch: phase, epoch, train_loss, valid_loss, accuracy, seconds; of a cross-validation also fold."""
        return self._table(RunFolder.history)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """A row a step: step, phase, learning_rate, train_loss (smoothed). A cross-validation has them by fold."""
        return self._table(RunFolder.steps)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The predictions, a row an image."""
        return read_predictions(self._file(RunFolder.predictions), every_split=True)

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluation of each split that was judged: `valid`, and `test` where it was touched."""
        found = {}
        for split, fields in self._json(RunFolder.metrics).items():
            rows = self.predictions[self.predictions["split"] == split].reset_index(drop=True)
            found[split] = Evaluation.from_dict(fields, predictions=rows)
        return found

    @property
    def metrics(self) -> Evaluation:
        """The evaluation of the held-out patients: `.value("auc")`, `.metrics`, `.confusion`."""
        return self.evaluations["valid"]

    @cached_property
    def record(self) -> list[dict[str, Any]]:
        """What happened when: started, resumed, test evaluated, finished ..."""
        return self.folder.read_record()

    @cached_property
    def built(self) -> dict[str, Any]:
        """`arch`, `device` and `weights` of the model as it was built; of a cross-validation its first one's."""
        events = [*self.record, *self.folder.fold(0).read_record()]
        return next((event for event in events if "weights" in event), {})

    @property
    def status(self) -> str:
        """`finished`, or the last thing that is known: `started`, `interrupted`, `failed`, `diverged` ..."""
        events = [event["event"] for event in self.record]
        if FINISHED in events:
            return FINISHED
        return next((event for event in reversed(events) if event != TEST_EVALUATED), "unknown")

    @property
    def report(self) -> Path:
        """The report's file."""
        return self._file(RunFolder.report)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status})"

    def _display_parts(self) -> Iterable[pd.DataFrame | str | list[str]]:
        return self.metrics._display_parts() if self.folder.metrics.exists() else (repr(self),)

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise DataError(
                f"{self.path} holds no {name}: the run is {self.status}.", hint="Resume it, or name another run."
            )
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self._file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is no JSON: {error}.", hint="Restore it, or train again.") from error

    def _table(self, name: str, *, text: bool = False) -> pd.DataFrame:
        path = self._file(name)
        try:
            return pd.read_csv(path, **({"dtype": str, "keep_default_na": False} if text else {}))
        except ValueError as error:
            raise DataError(f"{path} is no CSV: {error}.", hint="Restore it, or train again.") from error


def read_run(folder: str | Path) -> Run:
    """Read a run's folder back.

    Args:
        folder: What `train_classifier` wrote, such as `learn.path`.

    Returns:
        The run. Its parts are read when they are asked for, so that an unfinished run can be looked at too.

    Raises:
        DataError: The folder is no run.

    Examples:
        >>> result = read_run(run)
        >>> len(result.history), result.metrics.classes
        (1, ['Normal', 'COVID-19'])
    """
    folder = Path(folder)
    if not RunFolder(folder).is_run():
        raise DataError(f"{folder} is not the folder of a run.", hint="Name a folder that train_classifier wrote.")
    return Run(folder)


def list_runs(root: str | Path = "runs", *, metric: str = "auc") -> pd.DataFrame:
    """List the runs below a folder, the best first, each figure with its interval.

    Figures are of different held-out patients where seed, data or task differ: overlapping intervals are no ranking.

    Args:
        root: The folder that holds the runs' folders.
        metric: The figure to rank by, such as `"auc"`, `"sensitivity"`, `"log_loss"`.

    Returns:
        The columns `run` (folder), `task`, `arch`, `started` (UTC), `status`, `metric`, `value`, `low`, `high`, `n`,
        `unit`; runs without that figure stand last.

    Raises:
        DataError: There is no such folder.
        UsageError: No run has that figure, although some were judged.

    Examples:
        >>> list_runs(run.parent)[["task", "status"]]
            task    status
        0  covid  finished
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", hint="Name the folder that holds the runs, or train first.")
    rows, known = [], set()
    for folder in sorted(path.parent for path in root.glob(f"*/{RunFolder.record}")):
        run = Run(folder)
        config = run.config.get("config") or {}
        task = config.get("task", "")
        row = dict.fromkeys(RUN_COLUMNS)
        row |= {"run": str(folder), "task": task["name"] if isinstance(task, dict) else task, "metric": metric}
        row |= {"arch": config.get("arch", ""), "started": run.record[0].get("time", "") if run.record else ""}
        row |= {"status": run.status, "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "unit": ""}
        if run.folder.metrics.is_file():
            figures = run.metrics.metrics["metric"]
            known |= set(figures)
            if metric in set(figures):
                found = run.metrics.row(metric)
                row |= {name: found[name] for name in ("value", "low", "high", "n", "unit")}
        rows.append(row)
    if known and metric not in known:
        raise UsageError(f"No run has the figure {metric!r}.", hint=f"Figures: {', '.join(sorted(known))}.")
    table = pd.DataFrame(rows, columns=RUN_COLUMNS)
    return table.sort_values("value", ascending=metric in LOWER_IS_BETTER, kind="stable").reset_index(drop=True)


def collect_versions() -> dict[str, Any]:
    """Return the versions of Python, the system and the packages that figures depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], "system": platform.platform(), "packages": found}
