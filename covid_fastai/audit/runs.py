"""Runs with their verdict: read one from its folder, and list those of a folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from covid_fastai.audit.audit import Audit, read_audit
from covid_fastai.audit.plain_words import PlainVerdict, say_plainly
from covid_fastai.audit.verdict import Verdict
from covid_fastai.data.phantom import are_synthetic
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation import runs
from covid_fastai.evaluation.metrics import LOWER_IS_BETTER
from covid_fastai.notices import DRAWINGS
from covid_fastai.run_folder import RunFolder

__all__ = ["Run", "list_runs", "read_run", "warn_of_selection"]

RUN_COLUMNS = ["run", "task", "arch", "started", "status", "verdict"]
RUN_COLUMNS += ["metric", "value", "low", "high", "n", "unit"]


class Run(runs.Run):
    """A run, whose files are read on first access, with its audit and verdict.

    Attributes:
        path: The folder of the run.
    """

    @property
    def audit(self) -> Audit | None:
        """The last audit; None if the run was not audited."""
        return read_audit(self.path)

    @property
    def verdict(self) -> Verdict | None:
        """Whether the model was shown to detect disease; None if the run was not audited."""
        audit = self.audit
        return audit.verdict if audit else None

    @property
    def plain_verdict(self) -> PlainVerdict:
        """What the run shows, in plain words."""
        verdict, facts = self.verdict, self.cohort.facts
        level = verdict.level if verdict else None
        return say_plainly(level, facts.classes, facts.positive, synthetic=self.is_synthetic)

    @property
    def is_synthetic(self) -> bool:
        """Whether all used images are drawings that this package generated."""
        return are_synthetic(self.cohort.loc[self.cohort["split"] != "excluded", "path"])

    def __repr__(self) -> str:
        verdict = f", verdict: {_short_verdict(self) or 'not audited'}" if self.folder.metrics.exists() else ""
        return f"Run({str(self.path)!r}, {self.status}{verdict})"

    def _display_parts(self) -> Iterator[pd.DataFrame | str | list[str]]:
        if not self.folder.metrics.exists():
            yield repr(self)
            return
        verdict = self.verdict
        yield str(self.plain_verdict)
        yield f"Verdict: {verdict.sentence}" if verdict else "Verdict: not audited."
        yield from (part for part in self.metrics._display_parts() if part is not DRAWINGS)  # said above
        yield f"Folder: {self.path}"


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
    return Run(runs.read_run(folder).path)


def list_runs(root: str | Path = "runs", *, metric: str = "auc") -> pd.DataFrame:
    """List the runs in a folder with a metric and its interval, the best first.

    Runs with different seeds, data or tasks are evaluated on different held-out patients. If their intervals overlap,
    the order may be due to chance.

    Args:
        root: The folder that contains the folders of the runs.
        metric: The metric to sort by, such as `"auc"`, `"sensitivity"`, `"log_loss"`.

    Returns:
        The columns `run` (folder), `task`, `arch`, `started` (UTC), `status`, `verdict` (the level of the audit's
        verdict; `"synthetic"` if all images are drawings, `""` if the run was not audited), `metric`, `value`, `low`,
        `high`, `n`, `unit`; runs without this metric are last.

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
        row["verdict"] = _short_verdict(run)
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


def _short_verdict(run: Run) -> str:
    """Return the level of the verdict of a run, `"synthetic"` or `""`."""
    if run.verdict is None:
        return ""
    return "synthetic" if run.is_synthetic else run.verdict.level
