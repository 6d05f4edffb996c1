"""The context of a run: its options and folder, the claim on the folder, and the record of how the run ended."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.torch_core import no_random, rank_distrib

from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import Cohort, load_cohort, save_cohort
from covid_fastai.data.layouts import find_data
from covid_fastai.data.pretraining_overlap import write_manifest
from covid_fastai.data.problems import PROBLEM_COLUMNS
from covid_fastai.data.recipe_tables import task_of_config
from covid_fastai.data.recipes import get_recipe
from covid_fastai.errors import DataError, DivergenceError, UsageError
from covid_fastai.evaluation.moved_images import record_move
from covid_fastai.evaluation.runs import collect_versions
from covid_fastai.files import claim_folder, new_run_folder, write_csv, write_json
from covid_fastai.main_guard import check_main_guard
from covid_fastai.model.distributed import batch_per_process, broadcast_text, check_same_everywhere, is_main_process
from covid_fastai.model.environment import check_environment
from covid_fastai.run_folder import BATCH_HALVED, RunFolder

__all__ = ["RunPlan", "batch_size_of", "device_of", "resolve_run", "run_context", "write_cohort"]

logger = logging.getLogger("covid_fastai")


@dataclass(frozen=True)
class RunPlan:
    """The checked data, options and folder of a run.

    Attributes:
        data: A folder, a CSV or a DataFrame.
        config: All options.
        folder: The run's folder.
        resuming: Whether an earlier process began this run.
        folds: Number of folds of a cross-validation; None for a single training.
    """

    data: Any
    config: TrainConfig
    folder: RunFolder
    resuming: bool
    folds: int | None = None


def resolve_run(data, *, preset, out, resume, choices, folds=None) -> RunPlan:
    """Check the data and options of a new run or of a run to resume, and create the folder of a new run.

    In a distributed training the main process creates the folder and sends its name to the others.
    """
    check_main_guard("train_classifier" if folds is None else "cross_validate")
    if folds is not None and (folds < 2 or choices.get("split") == "image" or choices.get("evaluate_test")):
        raise UsageError(
            f"folds={folds} cannot be combined with these options.",
            hint="Cross-validation needs 2 folds or more, split='patient' or 'official', and evaluate_test=False.",
        )
    if resume is None:
        if data is None:
            raise UsageError("No data were given.", hint="Name a folder or CSV, or resume a run.")
        config = TrainConfig.build(preset=preset, **choices)
        check_environment(config)
        if config.recipe is not None:
            get_recipe(config.recipe)
        if not isinstance(data, pd.DataFrame):
            find_data(data)  # raises before a folder is created for a run that cannot begin
        task = task_of_config(config)
        folder = new_run_folder(out, task=task.name) if is_main_process() else ""
        return RunPlan(data, config, RunFolder(broadcast_text(str(folder))), False, folds)
    if preset or choices or out:
        raise UsageError("A resumed run keeps its own options.", hint="Give no other options together with resume.")
    folder = RunFolder(resume)
    saved = _read_options(folder)
    if saved.get("folds") != folds:
        call = f"cross_validate(folds={saved['folds']})" if saved.get("folds") else "train_classifier"
        raise UsageError(f"The run {folder.path} was begun with {call}.", hint="Resume it with the same function.")
    if folder.is_finished():
        raise UsageError(f"The run {folder.path} is finished.", hint="Start a new run.")
    if data is None:
        data = saved["data"]
        if data is None:
            raise UsageError(
                f"The run {folder.path} was begun with a DataFrame.", hint="Give the same DataFrame to resume it."
            )
        if not Path(data).expanduser().exists():  # guard: resume_moved
            raise DataError(
                f"The run {folder.path} was begun with the data {data}, which do not exist (seen from {Path.cwd()}).",
                hint="Restore them. If they have moved, give their new place: "
                f"covid-fastai train NEW_DATA --resume {folder.path}, or "
                f"train_classifier(NEW_DATA, resume={str(folder.path)!r}).",
            )
    config = _with_moved_root(TrainConfig.from_dict(saved["config"]), saved["data"], data)
    check_environment(config)
    return RunPlan(data, config, folder, True, folds)


def _with_moved_root(config: TrainConfig, old: str | None, new: Any) -> TrainConfig:
    """Return the options of a resumed run with an `image_root` that has moved together with the data."""
    root = config.image_root
    if root is None or Path(root).expanduser().is_dir() or old is None or isinstance(new, pd.DataFrame):
        return config
    moved = os.path.normpath(os.path.join(new, os.path.relpath(root, old)))
    if not os.path.isdir(moved):
        raise DataError(
            f"The run was begun with image_root={root}, which does not exist, and neither does {moved}.",
            hint="Put the images back, or at the same place relative to the data as before.",
        )
    return config.replace(image_root=moved)


def device_of(resume: str | Path | None, choices: Mapping[str, Any]) -> str:
    """Return the device that a new run asks for, or that a run to resume was begun with."""
    if resume is None:
        return choices.get("device", "auto")
    return TrainConfig.from_dict(_read_options(RunFolder(resume))["config"]).device  # guard: resumed_device


def _read_options(folder: RunFolder) -> dict[str, Any]:
    """Read what `_describe_run` wrote; raise `DataError` if the folder is not a run."""
    try:
        return json.loads(folder.config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder.path} is not a run that can be resumed: {error}.", hint="Name the folder of an unfinished run."
        ) from error


@contextmanager
def run_context(run: RunPlan, *, quiet: bool) -> Iterator[None]:
    """Claim the run's folder, set the random seeds, and record the run's options and how it ended.

    In a distributed training, processes other than the main one write and log nothing, and use seeds of their own.
    """
    config, folder = run.config, run.folder
    if not is_main_process():
        logger.setLevel(logging.WARNING)
        with no_random(config.seed + rank_distrib()):  # the initial weights are broadcast from the main process
            yield
        return
    with claim_folder(folder.path), _logging(quiet), no_random(config.seed):
        if not run.resuming:
            _describe_run(run)
        folder.log("resumed" if run.resuming else "started")
        try:
            yield
        except KeyboardInterrupt:
            folder.log("interrupted")
            logger.warning("Interrupted. Continue with resume=%r.", str(folder.path))
            raise
        except Exception as error:
            if isinstance(error, DataError) and error.details and not folder.cohort.exists():
                write_csv(folder.problems, pd.DataFrame(error.details, columns=PROBLEM_COLUMNS))
            folder.log("diverged" if isinstance(error, DivergenceError) else "failed", reason=str(error))
            raise


def _describe_run(run: RunPlan) -> None:
    """Write the options, the call and the command that repeat the run, and the versions of the packages."""
    source = None if isinstance(run.data, pd.DataFrame) else str(run.data)
    python, command = run.config.to_python(source or "rows"), run.config.to_command(source or "rows")
    task = task_of_config(run.config).name
    facts = {"data": source, "task": task, "config": run.config.to_dict()}
    if run.folds:  # `to_python` and `to_command` write a single training
        python = f"{python.replace('train_classifier', 'cross_validate', 1)[:-1]}, folds={run.folds})"
        command += f" --folds {run.folds}"
        facts["folds"] = run.folds
    write_json(run.folder.config, {**facts, "python": python, "command": command})
    write_json(run.folder.versions, collect_versions())
    logger.info("Command that repeats this run: %s", command)


def batch_size_of(folder: RunFolder, config: TrainConfig, *, resuming: bool) -> int:
    """Return the batch size per process; a resumed run keeps the size that it was reduced to when out of memory."""
    halved = [event["batch_size"] for event in folder.read_record() if event["event"] == BATCH_HALVED]
    return halved[-1] if resuming and halved else batch_per_process(config.batch_size)  # guard: oom_record


@contextmanager
def _logging(quiet: bool) -> Iterator[None]:
    """Show this package's log on standard error, unless the caller has configured logging."""
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


def write_cohort(cohort: Cohort, run: RunPlan) -> None:
    """Write the cohort and its problems into the run; in a resumed run, check that rows and split are the same.

    Raises:
        DataError: The data have changed since the run began.
        UsageError: Another process of this training has read different rows.
    """
    check_same_everywhere(
        "The cohort", list(cohort[["path", "label", "patient", "split"]].itertuples(index=False, name=None))
    )
    if not is_main_process():
        return
    folder = run.folder
    write_csv(folder.problems, cohort.facts.problem_table())
    folder.log("data read", images=len(cohort), patients_known=cohort.patients_known)
    if run.resuming and folder.cohort.exists():
        previous = load_cohort(folder.path)
        if _rows_of(previous) != _rows_of(cohort):
            raise DataError(f"The data have changed since the run {folder.path} began.", hint="Start a new run.")
        record_move(folder, previous, cohort)
    save_cohort(cohort, folder.path)
    trained = cohort[cohort["split"] == "train"]  # in a cross-validation, the rows of all folds
    write_manifest(trained, folder.training_manifest)


def _rows_of(cohort: Cohort) -> list[tuple[str, str, str]]:
    """Return what a resumed run must find unchanged: file names, labels and split; the folder may be another one."""
    return list(zip(cohort["path"].map(os.path.basename), cohort["label"], cohort["split"], strict=True))
