"""What a run's documents are filled in from: its files, read once, a part that is not there being None or empty."""

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
from covid_fastai.errors import DataError
from covid_fastai.evaluation.formatting import MISSING, format_interval, format_metric, format_metric_name
from covid_fastai.evaluation.metrics import Evaluation
from covid_fastai.evaluation.runs import Run
from covid_fastai.evaluation.subgroups import Subgroups, evaluate_subgroups
from covid_fastai.model.bundle_config import CONFIG_FILE, BundleConfig, read_config

__all__ = ["RunFacts", "SPLIT_TITLES", "count_shared_patients", "markdown_table", "say_counts", "say_figure"]

TAKES_PART = ("train", "valid", "test")
SPLIT_TITLES = {"valid": "Held-out patients", "test": "Official test set"}  # of the splits that are evaluated
KNOWN_COLUMNS = {"view": "projection", "sex": "sex", "age": "age"}


@dataclass(frozen=True, eq=False)
class RunFacts:
    """A run's files, as its documents speak of them.

    Attributes:
        run: The run.
    """

    run: Run

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The fields of `TrainConfig`; none where the story was told by hand."""
        return self.run.config.get("config") or {}

    @property
    def folds(self) -> int:
        """How many parts a cross-validation has; 0 for a single training."""
        return int(self.run.config.get("folds") or 0)

    @property
    def command(self) -> str:
        """The call that does the same again; empty where the story was told by hand."""
        return self.run.config.get("command") or self.run.config.get("python") or ""

    @property
    def cohort(self) -> Cohort:
        """The cohort, a row an image."""
        return self.run.cohort

    @cached_property
    def used(self) -> Cohort:
        """The rows that take part."""
        return self.cohort[self.cohort["split"].isin(TAKES_PART)]

    @property
    def judged(self) -> bool:
        """Whether there are figures."""
        return self.run.folder.metrics.is_file() and self.run.folder.predictions.is_file()

    @property
    def result(self) -> Evaluation:
        """The evaluation of the held-out patients; ask `judged` first."""
        return self.run.metrics

    @cached_property
    def audit(self) -> Audit | None:
        """The audit, where there was one."""
        return read_audit(self.run.path)

    @cached_property
    def external(self) -> dict[str, dict[str, Any]]:
        """What `validate` kept, by the name of the data."""
        results = self.run.folder.external_results()
        return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in results.items()}

    @property
    def audit_is_older(self) -> bool:
        """Whether an external set of both classes was tried that the audit's verdict does not know."""
        known = {one["source"] for one in self.audit.external} if self.audit else set()
        return any(one["source"] not in known for found in self.external.values() for one in found["same_source"])

    @cached_property
    def models(self) -> dict[Path, BundleConfig]:
        """The saved models by their folders, one a fold of a cross-validation."""
        folders = [self.run.folder.model, *(self.run.folder.fold(k).model for k in range(self.folds))]
        return {folder: read_config(folder / CONFIG_FILE) for folder in folders if (folder / CONFIG_FILE).is_file()}

    @property
    def model(self) -> BundleConfig | None:
        """What the first saved model says of itself; None where none was saved."""
        return next(iter(self.models.values()), None)

    @cached_property
    def weights(self) -> Mapping[str, Any]:
        """Where the first weights came from: `name`, `origin`, `sha256`; empty where nothing says so."""
        records = [self.run.record, *(self.run.folder.fold(k).read_record() for k in range(self.folds))]
        named = next((event["weights"] for events in records for event in events if "weights" in event), {})
        return self.model.weights.model_dump() if self.model else named

    @property
    def patients_known(self) -> bool:
        """Whether every image that takes part names its patient."""
        return self.cohort.patients_known

    @cached_property
    def subgroups(self) -> Subgroups | None:
        """The figures by projection, sex, age band and source, of columns that are known; None without figures."""
        if not self.judged:
            return None
        options = {"positive": self.result.positive, "threshold": self.result.threshold or 0.5}
        own = self.cohort.drop_duplicates("path")
        return evaluate_subgroups(self.result.predictions, own, **options)

    @cached_property
    def headers(self) -> pd.DataFrame | None:
        """What the files' headers say, of 400 images a class at most; None where the images are no longer there."""
        try:
            return header_facts(self.cohort)
        except DataError:
            return None  # the documents then say that the files could not be read

    @property
    def excluded(self) -> pd.DataFrame:
        """The rows that are excluded."""
        return self.cohort[self.cohort["split"] == "excluded"]

    @property
    def both_sides(self) -> int:
        """How many patients are trained on and held out, or in two folds."""
        return count_shared_patients(self.used)

    def known(self, column: str) -> int:
        """Count the images that take part and have a value in a column."""
        if column not in self.used:
            return 0
        values = self.used[column]
        return int((values.notna() & ~values.astype(str).str.strip().str.casefold().isin(["", "unknown"])).sum())

    def parts(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield the name and the rows of each part that is trained on or judged."""
        for name in TAKES_PART:
            rows = self.used[self.used["split"] == name]
            if len(rows):
                yield ("cross-validated" if self.folds and name == "train" else name), rows


def count_shared_patients(rows: pd.DataFrame) -> int:
    """Count the patients that are in two folds, or without folds in two splits."""
    side = "fold" if "fold" in rows else "split"
    return int((rows.groupby("patient")[side].nunique() > 1).sum())


def say_counts(rows: pd.DataFrame) -> str:
    """Say images and patients of each class, such as `Normal 20 images of 12 patients`."""
    counts = rows.groupby("label", sort=False)["patient"].agg(images="size", patients="nunique")
    return "; ".join(f"{name} {row.images:,} images of {row.patients:,} patients" for name, row in counts.iterrows())


def say_figure(row: Mapping[str, Any], *, name: str | None = None) -> str:
    """Say a figure with its interval and n; a figure that is not there is said to be not estimable."""
    name = name or format_metric_name(row["metric"])
    unit = row.get("unit", "patient")
    if row["value"] is None or row["value"] != row["value"]:
        return f"{name} not estimable (n = {row['n']} {unit}s)"
    interval = f"95% interval {format_interval(row['low'], row['high'])}"
    return f"{name} {format_metric(row['value'])} ({interval}, n = {row['n']} {unit}s)"


def markdown_table(rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> str:
    """Write rows as a Markdown table; text from the data cannot break out of its cell."""
    table = pd.DataFrame(rows)
    lines = [[str(name) for name in table], ["---"] * table.shape[1]]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = MISSING if value is None or value != value else " ".join(str(value).split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
