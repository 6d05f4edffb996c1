"""Read a run from its folder, and list runs."""

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

__all__ = ["Run", "collect_versions", "count_test_evaluations", "list_runs", "read_run", "warn_of_selection"]

PACKAGES = ("covid_fastai", "fastai", "fastcore", "torch", "torchvision", "timm", "numpy", "pandas", "scipy")
PACKAGES += ("scikit-learn", "matplotlib", "pillow", "safetensors")
RUN_COLUMNS = ["run", "task", "arch", "started", "status", "metric", "value", "low", "high", "n", "unit"]


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
        return self._table(RunFolder.history)

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
            return pd.read_csv(path, **({"dtype": str, "keep_default_na": False} if text else {}))
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

    Examples:
        >>> result = read_run(run)
        >>> len(result.history), result.metrics.classes
        (1, ['Normal', 'COVID-19'])
    """
    folder = Path(folder)
    if not RunFolder(folder).is_run():
        raise DataError(f"{folder} is not the folder of a run.", hint="Give a folder that train_classifier wrote.")
    return Run(folder)


def list_runs(root: str | Path = "runs", *, metric: str = "auc") -> pd.DataFrame:
    """List the runs in a folder with a metric and its interval, the best first.

    Runs with different seeds, data or tasks are evaluated on different held-out patients. If their intervals overlap,
    the order may be due to chance.

    Args:
        root: The folder that contains the folders of the runs.
        metric: The metric to sort by, such as `"auc"`, `"sensitivity"`, `"log_loss"`.

    Returns:
        The columns `run` (folder), `task`, `arch`, `started` (UTC), `status`, `metric`, `value`, `low`, `high`, `n`,
        `unit`; runs without this metric are last.

    Raises:
        DataError: There is no such folder.
        UsageError: Some runs were evaluated, but none has this metric.

    Examples:
        >>> list_runs(run.parent)[["task", "status"]]
            task    status
        0  covid  finished
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", hint="Give the folder that contains the runs, or train first.")
    rows, known = [], set()
    for folder in sorted(path.parent for path in root.glob(f"*/{RunFolder.record}")):
        run = Run(folder)
        config = run.config.get("config") or {}
        row = dict.fromkeys(RUN_COLUMNS)
        row |= {"run": str(folder), "task": run.config.get("task", ""), "metric": metric}
        row |= {"arch": config.get("arch", ""), "started": run.record[0].get("time", "") if run.record else ""}
        row |= {"status": run.status, "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "unit": ""}
        if run.folder.metrics.is_file():
            names = set(run.metrics.metrics["metric"])
            known |= names
            if metric in names:
                estimate = run.metrics.row(metric)
                row |= {name: estimate[name] for name in ("value", "low", "high", "n", "unit")}
        rows.append(row)
    if known and metric not in known:
        raise UsageError(f"No run has the metric {metric!r}.", hint=f"Metrics: {', '.join(sorted(known))}.")
    table = pd.DataFrame(rows, columns=RUN_COLUMNS)
    return table.sort_values("value", ascending=metric in LOWER_IS_BETTER, kind="stable").reset_index(drop=True)


def warn_of_selection(table: pd.DataFrame) -> str:
    """Return a sentence on the optimism of the best of several runs; "" for fewer than two evaluated runs.

    Args:
        table: What `list_runs` returned.
    """
    count = int(table["value"].notna().sum())
    if count < 2:
        return ""
    return (
        f"The best of {count} runs is optimistic: its value was selected on the patients that it was evaluated on, and "
        "its interval does not include that choice. Evaluate the chosen run on other patients."
    )


def count_test_evaluations(run: Run) -> dict[str, int]:
    """Count how often the official TEST of a run's data was evaluated, by this and other runs in the same folder.

    Args:
        run: The run.

    Returns:
        The number of evaluations by the name of each run that made one. Other runs count if their data have the same
        path.
    """
    data, counts = run.config.get("data"), {}
    folders = [path.parent for path in run.path.resolve().parent.glob(f"*/{RunFolder.record}")]
    for folder in sorted({run.path.resolve(), *folders}):
        other = Run(folder)
        evaluations = sum(event["event"] == TEST_EVALUATED for event in other.record)
        # a run that was interrupted before it wrote its options has not evaluated anything
        if evaluations and (folder == run.path.resolve() or (data and other.config.get("data") == data)):
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
