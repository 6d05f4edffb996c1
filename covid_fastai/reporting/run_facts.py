"""The facts of a run that its documents report: its files, each read once; a missing file gives None or empty."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.audit.audit import Audit, read_audit
from covid_fastai.data.cohort import Cohort
from covid_fastai.data.exploration import header_facts
from covid_fastai.data.phantom import are_synthetic
from covid_fastai.errors import DataError
from covid_fastai.evaluation.formatting import MISSING, format_interval, format_metric, format_metric_name
from covid_fastai.evaluation.metrics import Evaluation
from covid_fastai.evaluation.runs import Run
from covid_fastai.evaluation.subgroups import Subgroups, evaluate_subgroups
from covid_fastai.model.bundle_config import CONFIG_FILE, BundleConfig, read_config

__all__ = [
    "RunFacts",
    "SPLIT_TITLES",
    "count_shared_patients",
    "describe_counts",
    "describe_metric",
    "markdown_table",
]

USED_SPLITS = ("train", "valid", "test")
SPLIT_TITLES = {"valid": "Held-out patients", "test": "Official test set"}  # of the evaluated splits
KNOWN_COLUMNS = {"view": "projection", "sex": "sex", "age": "age"}


@dataclass(frozen=True, eq=False)
class RunFacts:
    """The facts of a run for its documents.

    Attributes:
        run: The run.
    """

    run: Run

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The fields of `TrainConfig`; empty if the steps were called one by one."""
        return self.run.config.get("config") or {}

    @property
    def folds(self) -> int:
        """The number of folds of a cross-validation; 0 for a single training."""
        return int(self.run.config.get("folds") or 0)

    @property
    def command(self) -> str:
        """The command that repeats the run; empty if the steps were called one by one."""
        return self.run.config.get("command") or self.run.config.get("python") or ""

    @property
    def cohort(self) -> Cohort:
        """The cohort, one row per image."""
        return self.run.cohort

    @cached_property
    def used(self) -> Cohort:
        """The rows that are not excluded."""
        return self.cohort[self.cohort["split"].isin(USED_SPLITS)]

    @property
    def evaluated(self) -> bool:
        """Whether the run was evaluated."""
        return self.run.folder.metrics.is_file() and self.run.folder.predictions.is_file()

    @property
    def result(self) -> Evaluation:
        """The evaluation of the held-out patients; it exists only if `evaluated`."""
        return self.run.metrics

    @cached_property
    def audit(self) -> Audit | None:
        """The audit; None if the run was not audited."""
        return read_audit(self.run.path)

    @cached_property
    def external(self) -> dict[str, dict[str, Any]]:
        """The stored results of `validate`, by the name of the data."""
        results = self.run.folder.external_results()
        return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in results.items()}

    @property
    def audit_is_older(self) -> bool:
        """Whether the external data include a source with both classes that the audit does not include."""
        audited = {source["source"] for source in self.audit.external} if self.audit else set()
        sources = [source for result in self.external.values() for source in result["same_source"]]
        return any(source["source"] not in audited for source in sources)

    @cached_property
    def models(self) -> dict[Path, BundleConfig]:
        """The saved models by folder; a cross-validation has one per fold."""
        folders = [self.run.folder.model, *(self.run.folder.fold(k).model for k in range(self.folds))]
        return {folder: read_config(folder / CONFIG_FILE) for folder in folders if (folder / CONFIG_FILE).is_file()}

    @property
    def model(self) -> BundleConfig | None:
        """The config of the first saved model; None if no model was saved."""
        return next(iter(self.models.values()), None)

    @cached_property
    def weights(self) -> Mapping[str, Any]:
        """The initial weights: `name`, `origin`, `sha256`; empty if they are unknown."""
        records = [self.run.record, *(self.run.folder.fold(k).read_record() for k in range(self.folds))]
        named = next((event["weights"] for events in records for event in events if "weights" in event), {})
        return self.model.weights.model_dump() if self.model else named

    @property
    def patients_known(self) -> bool:
        """Whether the patient of every used image is known."""
        return self.cohort.patients_known

    @cached_property
    def subgroups(self) -> Subgroups | None:
        """The evaluation by projection, sex, age band and source; None if the run was not evaluated."""
        if not self.evaluated:
            return None
        options = {"positive": self.result.positive, "threshold": self.result.threshold or 0.5}
        cohort = self.cohort.drop_duplicates("path")
        return evaluate_subgroups(self.result.predictions, cohort, **options)

    @cached_property
    def headers(self) -> pd.DataFrame | None:
        """Facts from the file headers of at most 400 images per class; None if no image can be read."""
        try:
            return header_facts(self.cohort)
        except DataError:
            return None  # the documents report that the files could not be read

    @cached_property
    def is_synthetic(self) -> bool:
        """Whether all used images were generated by this package."""
        return are_synthetic(self.used["path"])

    @property
    def excluded(self) -> pd.DataFrame:
        """The excluded rows."""
        return self.cohort[self.cohort["split"] == "excluded"]

    @property
    def shared_patients(self) -> int:
        """The number of patients in two splits or folds."""
        return count_shared_patients(self.used)

    def count_known(self, column: str) -> int:
        """Count the used images with a known value in a column."""
        if column not in self.used:
            return 0
        values = self.used[column]
        return int((values.notna() & ~values.astype(str).str.strip().str.casefold().isin(["", "unknown"])).sum())

    def parts(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield the name and the rows of each split that is not empty."""
        for name in USED_SPLITS:
            rows = self.used[self.used["split"] == name]
            if len(rows):
                yield ("cross-validated" if self.folds and name == "train" else name), rows


def count_shared_patients(rows: pd.DataFrame) -> int:
    """Count the patients in more than one fold, or without folds in more than one split."""
    column = "fold" if "fold" in rows else "split"
    return int((rows.groupby("patient")[column].nunique() > 1).sum())


def describe_counts(rows: pd.DataFrame) -> str:
    """Return the number of images and patients of each class, such as `20 images of 12 patients (Normal)`."""
    counts = rows.groupby("label", sort=False)["patient"].agg(images="size", patients="nunique")
    return "; ".join(f"{row.images:,} images of {row.patients:,} patients ({name})" for name, row in counts.iterrows())


def describe_metric(row: Mapping[str, Any], *, name: str | None = None) -> str:
    """Return a metric with its interval and n as text; a missing value is called not estimable."""
    name = name or format_metric_name(row["metric"])
    unit = row.get("unit", "patient")
    if row["value"] is None or row["value"] != row["value"]:
        return f"{name} not estimable (n = {row['n']} {unit}s)"
    interval = f"95% interval {format_interval(row['low'], row['high'])}"
    return f"{name} {format_metric(row['value'])} ({interval}, n = {row['n']} {unit}s)"


def markdown_table(rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; text from the data is escaped, so that it stays in its cell."""
    table = pd.DataFrame(rows)
    lines = [[_cell(name) for name in table], ["---"] * table.shape[1]]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = MISSING if value is None or value != value else " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
