"""The folder of a run: settled, owned, and read back where a run goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import COHORT_CSV, Cohort, load_cohort, save_cohort
from covid_fastai.data.layouts import find_data
from covid_fastai.data.pretraining_overlap import write_manifest
from covid_fastai.errors import DataError, DivergenceError, UsageError
from covid_fastai.evaluation.runs import TRAINING_MANIFEST, collect_versions, log_event, read_record
from covid_fastai.files import claim_folder, new_run_folder, write_json

__all__ = ["keep_cohort", "resolve_run", "run_context"]

logger = logging.getLogger("covid_fastai")


def resolve_run(data, *, preset, out, resume, choices, folds=None) -> tuple[Any, TrainConfig, Path]:
    """Return the data, the checked config and the run's folder, from the arguments or from the run to resume."""
    if folds is not None and (folds < 2 or choices.get("split") == "image" or choices.get("evaluate_test")):
        raise UsageError(
            f"folds={folds} cannot be had with these options.",
            hint="Cross-validation needs 2 folds or more, split='patient', and leaves the official TEST alone.",
        )
    if resume is None:
        if data is None:
            raise UsageError("There is no data.", hint="Name a folder or CSV, or resume a run.")
        config = TrainConfig.build(preset=preset, **choices)
        if not isinstance(data, pd.DataFrame):
            find_data(data)  # before a folder is made for a run that cannot begin
        return data, config, new_run_folder(out, task=config.task_name)
    if preset or choices or out:
        raise UsageError("A resumed run keeps its own options.", hint="Leave out all options beside resume.")
    folder = Path(resume)
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is not a run that can be resumed: {error}.", hint="Name a run's folder.") from error
    if saved.get("folds") != folds:
        call = "cross_validate" if saved.get("folds") else "train_classifier"
        raise UsageError(f"{folder} was not begun so.", hint=f"Resume it with {call}, folds={saved.get('folds')}.")
    if any(event["event"] == "finished" for event in read_record(folder)):
        raise UsageError(f"{folder} is finished.", hint="Start a new run.")
    if data is None:
        data = saved["data"]
        if data is None:
            raise UsageError(f"{folder} was made from a DataFrame.", hint="Give the same DataFrame to resume it.")
    return data, TrainConfig.from_dict(saved["config"]), folder


@contextmanager
def run_context(
    folder: Path, config: TrainConfig, data: Any, *, resuming: bool, quiet: bool, **extra: Any
) -> Iterator[None]:
    """Own the run's folder, write down what it is and how it ended, and let progress be seen."""
    with claim_folder(folder), _heard(quiet):
        source = None if isinstance(data, pd.DataFrame) else str(data)
        if not resuming:
            commands = {"python": config.to_python(source or "rows"), "command": config.to_command(source or "rows")}
            if extra.get("folds"):  # the same options, another function
                call = commands["python"].replace("train_classifier", "cross_validate", 1)
                commands["python"] = f"{call[:-1]}, folds={extra['folds']})"
                commands["command"] += f" --folds {extra['folds']}"
            write_json(folder / "config.json", {"data": source, "config": config.to_dict(), **commands, **extra})
            write_json(folder / "versions.json", collect_versions())
            logger.info("The same from the command line: %s", commands["command"])
        log_event(folder, "resumed" if resuming else "started")
        try:
            yield
        except KeyboardInterrupt:
            log_event(folder, "interrupted")
            logger.warning("Interrupted. Go on with resume=%r.", str(folder))
            raise
        except Exception as error:
            log_event(folder, "diverged" if isinstance(error, DivergenceError) else "failed", reason=str(error))
            raise


@contextmanager
def _heard(quiet: bool) -> Iterator[None]:
    """Show this package's notes on standard error where the caller has set up no logging of their own."""
    if quiet or logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def keep_cohort(cohort: Cohort, folder: Path, *, resuming: bool) -> None:
    """Write the cohort into the run; a resumed run must find the rows and the split that it began with."""
    if resuming and (folder / COHORT_CSV).exists():
        before, same = load_cohort(folder), ["path", "label", "split"]
        if before[same].to_numpy().tolist() != cohort[same].to_numpy().tolist():
            raise DataError(f"The data have changed since {folder} was begun.", hint="Start a new run.")
    save_cohort(cohort, folder)
    trained = cohort[cohort["split"] == "train"]  # of a cross-validation all folds
    write_manifest(trained, folder / TRAINING_MANIFEST)
