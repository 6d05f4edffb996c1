"""A run while it goes on: what it was asked for, whose folder it is, and how it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
from fastai.torch_core import no_random, rank_distrib

from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import Cohort, load_cohort, save_cohort
from covid_fastai.data.layouts import find_data
from covid_fastai.data.pretraining_overlap import write_manifest
from covid_fastai.data.problems import PROBLEM_COLUMNS
from covid_fastai.errors import DataError, DivergenceError, UsageError
from covid_fastai.evaluation.runs import collect_versions
from covid_fastai.files import claim_folder, new_run_folder, write_csv, write_json
from covid_fastai.model.distributed import agree, batch_per_process, broadcast_text, is_main_process
from covid_fastai.model.environment import check_environment
from covid_fastai.run_folder import BATCH_HALVED, RunFolder

__all__ = ["RunPlan", "batch_size_of", "keep_cohort", "resolve_run", "run_context"]

logger = logging.getLogger("covid_fastai")


@dataclass(frozen=True)
class RunPlan:
    """What a run was asked for, checked.

    Attributes:
        data: A folder, a CSV or rows.
        config: Every choice.
        folder: Where the run is kept.
        resuming: Whether the run has begun before.
        folds: How many folds a cross-validation has; None for a single training.
    """

    data: Any
    config: TrainConfig
    folder: RunFolder
    resuming: bool
    folds: int | None = None


def resolve_run(data, *, preset, out, resume, choices, folds=None) -> RunPlan:
    """Check what a run was asked for, from the arguments or from the run to resume; a new run gets its folder.

    Of several processes the first one makes the folder, and the others are told its name.
    """
    if folds is not None and (folds < 2 or choices.get("split") == "image" or choices.get("evaluate_test")):
        raise UsageError(
            f"folds={folds} cannot be had with these options.",
            hint="Cross-validation needs 2 folds or more, split='patient', and leaves the official TEST alone.",
        )
    if resume is None:
        if data is None:
            raise UsageError("There is no data.", hint="Name a folder or CSV, or resume a run.")
        config = TrainConfig.build(preset=preset, **choices)
        check_environment(config)
        if not isinstance(data, pd.DataFrame):
            find_data(data)  # before a folder is made for a run that cannot begin
        folder = new_run_folder(out, task=config.task_name) if is_main_process() else ""
        return RunPlan(data, config, RunFolder(broadcast_text(str(folder))), False, folds)
    if preset or choices or out:
        raise UsageError("A resumed run keeps its own options.", hint="Leave out all options beside resume.")
    folder = RunFolder(resume)
    try:
        saved = json.loads(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder.path} is not a run that can be resumed: {error}.", hint="Name a run's folder."
        ) from error
    if saved.get("folds") != folds:
        call = "cross_validate" if saved.get("folds") else "train_classifier"
        raise UsageError(f"{folder.path} was not begun so.", hint=f"Resume it with {call}, folds={saved.get('folds')}.")
    if folder.is_finished():
        raise UsageError(f"{folder.path} is finished.", hint="Start a new run.")
    if data is None:
        data = saved["data"]
        if data is None:
            raise UsageError(f"{folder.path} was made from a DataFrame.", hint="Give the same DataFrame to resume it.")
    config = TrainConfig.from_dict(saved["config"])
    check_environment(config)
    return RunPlan(data, config, folder, True, folds)


@contextmanager
def run_context(run: RunPlan, *, quiet: bool) -> Iterator[None]:
    """Own the run's folder and its random numbers, and write down what the run is and how it ended.

    A process that is not the first one of several writes and says nothing, and draws random numbers of its own.
    """
    config, folder = run.config, run.folder
    if not is_main_process():
        logger.setLevel(logging.WARNING)
        with no_random(config.seed + rank_distrib()):  # the first weights are those of the first process all the same
            yield
        return
    with claim_folder(folder.path), _heard(quiet), no_random(config.seed):
        if not run.resuming:
            _describe_run(run)
        folder.log("resumed" if run.resuming else "started")
        try:
            yield
        except KeyboardInterrupt:
            folder.log("interrupted")
            logger.warning("Interrupted. Go on with resume=%r.", str(folder.path))
            raise
        except Exception as error:
            if isinstance(error, DataError) and error.details and not folder.cohort.exists():
                write_csv(folder.problems, pd.DataFrame(error.details, columns=PROBLEM_COLUMNS))
            folder.log("diverged" if isinstance(error, DivergenceError) else "failed", reason=str(error))
            raise


def _describe_run(run: RunPlan) -> None:
    """Write the options, the call and the command that repeat the run, and the versions it was made with."""
    source = None if isinstance(run.data, pd.DataFrame) else str(run.data)
    python, command = run.config.to_python(source or "rows"), run.config.to_command(source or "rows")
    facts = {"data": source, "config": run.config.to_dict()}
    if run.folds:  # the same options, another function
        python = f"{python.replace('train_classifier', 'cross_validate', 1)[:-1]}, folds={run.folds})"
        command += f" --folds {run.folds}"
        facts["folds"] = run.folds
    write_json(run.folder.config, {**facts, "python": python, "command": command})
    write_json(run.folder.versions, collect_versions())
    logger.info("The same from the command line: %s", command)


def batch_size_of(folder: RunFolder, config: TrainConfig, *, resuming: bool) -> int:
    """Return how many images a process takes in a step; a resumed run keeps the batch that it has come down to."""
    halved = [event["batch_size"] for event in folder.read_record() if event["event"] == BATCH_HALVED]
    return halved[-1] if resuming and halved else batch_per_process(config.batch_size)  # guard: oom_record


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


def keep_cohort(cohort: Cohort, run: RunPlan) -> None:
    """Write the cohort and its problems into the run; a resumed run must find the rows and the split it began with.

    Raises:
        DataError: The data have changed since the run was begun.
        UsageError: Another process of this training has read other rows.
    """
    agree("The cohort", list(cohort[["path", "label", "patient", "split"]].itertuples(index=False, name=None)))
    if not is_main_process():
        return
    folder = run.folder
    write_csv(folder.problems, cohort.facts.problem_table())
    folder.log("data read", images=len(cohort), patients_known=cohort.patients_known)
    if run.resuming and folder.cohort.exists():
        before, same = load_cohort(folder.path), ["path", "label", "split"]
        if before[same].to_numpy().tolist() != cohort[same].to_numpy().tolist():
            raise DataError(f"The data have changed since {folder.path} was begun.", hint="Start a new run.")
    save_cohort(cohort, folder.path)
    trained = cohort[cohort["split"] == "train"]  # of a cross-validation all folds
    write_manifest(trained, folder.training_manifest)
