"""The context of a run: its options and folder, the claim on the folder, and the record of how the run ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.torch_core import no_random, num_distrib, rank_distrib

from covid_fastai.config import TrainConfig
from covid_fastai.data.cached_regions import count_whole, measure_crops
from covid_fastai.data.cohort import Cohort, load_cohort, save_cohort
from covid_fastai.data.hardware import resolve_device
from covid_fastai.data.kept_columns import keep_columns
from covid_fastai.data.pretraining_overlap import write_manifest
from covid_fastai.data.problems import PROBLEM_COLUMNS, visible
from covid_fastai.data.pseudonymise import DATA, begin_key, hide_files, pseudonymise
from covid_fastai.data.recipe_tables import task_of_config
from covid_fastai.data.regions import region_version
from covid_fastai.errors import DataError, DivergenceError
from covid_fastai.evaluation.moved_images import record_move
from covid_fastai.evaluation.runs import collect_versions
from covid_fastai.files import claim_folder, new_run_folder, write_csv, write_json
from covid_fastai.main_guard import check_main_guard
from covid_fastai.model.distributed import (
    batch_per_process,
    broadcast_text,
    check_same_everywhere,
    is_main_process,
    main_process_first,
)
from covid_fastai.model.environment import check_environment
from covid_fastai.model.precision import choose_precision
from covid_fastai.run_folder import BATCH_HALVED, CROPPED, MODEL_BUILT, RunFolder
from covid_fastai.training.run_start import (
    check_folds,
    check_start,
    clear_failed_start,
    read_options,
    read_unfinished,
)

__all__ = [
    "RunPlan",
    "batch_size_of",
    "device_of",
    "kept_cohort",
    "precision_of",
    "resolve_run",
    "run_context",
]
__all__ += ["write_cohort", "write_crops"]

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
        repeats: How often the cross-validation is done.
    """

    data: Any
    config: TrainConfig
    folder: RunFolder
    resuming: bool
    folds: int | None = None
    repeats: int = 1


def resolve_run(data, *, preset, out, resume, choices, folds=None, repeats=1) -> RunPlan:
    """Check the data and options of a new run or of a run to resume, and create the folder of a new run.

    In a distributed training the main process creates the folder and sends its name to the others.
    """
    check_main_guard("train_classifier" if folds is None else "cross_validate")
    check_folds(folds, choices)
    if resume is None:
        config = TrainConfig.build(preset=preset, **choices)
        check_start(data, config)  # raises before a folder is created for a run that cannot begin
        check_environment(config)
        task = task_of_config(config)
        folder = ""
        if is_main_process():
            if out is not None:
                clear_failed_start(RunFolder(Path(out)))
            folder = new_run_folder(out, task=task.name)
        return RunPlan(data, config, RunFolder(broadcast_text(str(folder))), False, folds, repeats)
    others = {"preset": preset, "out": out, "options": choices}
    data, config = read_unfinished(resume, data, folds=folds, repeats=repeats, others=others)
    check_environment(config)
    return RunPlan(data, config, RunFolder(Path(resume)), True, folds, repeats)


def device_of(resume: str | Path | None, choices: Mapping[str, Any]) -> str:
    """Return the device that a new run asks for, or that a run to resume was begun with."""
    if resume is None:
        return choices.get("device", "auto")
    return TrainConfig.from_dict(read_options(RunFolder(Path(resume)))["config"]).device  # guard: resumed_device


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
        elif config.pseudonymise:
            hide_files(folder, _named_files(run))
        folder.log("resumed" if run.resuming else "started")
        try:
            yield
        except KeyboardInterrupt:
            folder.log("interrupted")
            logger.warning("Interrupted. Continue with resume=%r.", str(folder.path))
            raise
        except Exception as error:
            reason, problems = str(error), folder.problems
            if config.pseudonymise and not folder.cohort.exists():  # before its names are hidden; guard: hidden_reason
                reason, problems = type(error).__name__, folder.key / RunFolder.problems
            if isinstance(error, DataError) and error.details and not folder.cohort.exists():
                write_csv(problems, pd.DataFrame(error.details, columns=PROBLEM_COLUMNS))
            folder.log("diverged" if isinstance(error, DivergenceError) else "failed", reason=reason)
            raise


def _describe_run(run: RunPlan) -> None:
    """Write the options, the call and the command that repeat the run, and the versions of the packages."""
    source = None if isinstance(run.data, pd.DataFrame) else str(run.data)
    config = run.config
    logger.info("Command that repeats this run: %s", _commands(run, source, config)[1])
    if config.pseudonymise:
        begin_key(run.folder, data=source, config=config.to_dict(), files=_named_files(run))
        source, config = DATA, _without_files(config)  # guard: hidden_options
    python, command = _commands(run, source, config)
    facts = {"data": source, "task": task_of_config(run.config).name, "config": config.to_dict()}
    facts |= {"folds": run.folds} if run.folds else {}
    facts |= {"segmentation": region_version(config.region)} if config.region != "frame" else {}
    facts |= {"repeats": run.repeats} if run.repeats > 1 else {}
    write_json(run.folder.config, {**facts, "python": python, "command": command})
    write_json(run.folder.versions, collect_versions())


def _commands(run: RunPlan, source: str | None, config: TrainConfig) -> tuple[str, str]:
    """Return the call of Python and the command line that repeat a run."""
    python, command = config.to_python(source or "rows"), config.to_command(source or "rows")
    if run.folds:  # `to_python` and `to_command` write a single training
        python = f"{python.replace('train_classifier', 'cross_validate', 1)[:-1]}, folds={run.folds})"
        command += f" --folds {run.folds}"
        if run.repeats > 1:
            python = f"{python[:-1]}, repeats={run.repeats})"
            command += f" --repeats {run.repeats}"
    return python, command


def _named_files(run: RunPlan) -> dict[str, str]:
    """Return the files and folders that a pseudonymised run hides, each with the word that stands for it."""
    config, files = run.config, {str(run.folder.path): "RUN", os.getcwd(): "."}
    named = {DATA: None if isinstance(run.data, pd.DataFrame) else run.data}
    named |= {"IMAGE_ROOT": config.image_root, "JOIN": config.join}
    if _is_file_name(config.weights):
        named["WEIGHTS"] = os.path.dirname(str(config.weights))
    return files | {str(file): word for word, file in named.items() if file}


def _without_files(config: TrainConfig) -> TrainConfig:
    """Return options without the files and folders that they name, for the shared part of a pseudonymised run."""
    public: dict[str, Any] = {
        name: name.upper() for name in ("image_root", "join") if getattr(config, name) is not None
    }
    if _is_file_name(config.weights):
        public["weights"] = os.path.basename(str(config.weights))
    return config.replace(**public)


def _is_file_name(weights: str | Path | None) -> bool:
    return weights is not None and os.path.basename(str(weights)) != str(weights)


def batch_size_of(folder: RunFolder, config: TrainConfig, *, resuming: bool) -> int:
    """Return the batch size per process; a resumed run keeps the size that it was reduced to when out of memory."""
    halved = [event["batch_size"] for event in folder.read_record() if event["event"] == BATCH_HALVED]
    return halved[-1] if resuming and halved else batch_per_process(config.batch_size)  # guard: oom_record


def precision_of(folder: RunFolder, config: TrainConfig, *, resuming: bool) -> str:
    """Return the number format, the same in every process; a resumed run keeps the one that it was begun with.

    A run that goes on with another kind of device gets that device's format.
    """
    device = resolve_device(config.device)
    built = [event for event in folder.read_record() if event["event"] == MODEL_BUILT and "precision" in event]
    precision = config.precision
    if resuming and built and torch.device(built[-1]["device"]).type == device.type:
        precision = built[-1]["precision"]  # guard: resumed_precision
    return precision if num_distrib() < 2 else broadcast_text(choose_precision(precision, device).precision)


class _VisibleFormatter(logging.Formatter):
    """Escape what a terminal would obey in the names of files."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)  # guard: visible_run_log


@contextmanager
def _logging(quiet: bool) -> Iterator[None]:
    """Show this package's log on standard error, unless the caller has configured logging."""
    if quiet or logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(_VisibleFormatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def write_crops(cohort: Cohort, run: RunPlan) -> None:
    """With `region="lungs"`, write what the model sees of each image, and count the whole images in the record.

    Args:
        cohort: The cohort with its split; excluded images are omitted, and the test set unless it is evaluated.
        run: The plan of the run.
    """
    config = run.config
    if config.region == "frame":
        return
    used = ["train", "valid", *(["test"] if config.evaluate_test else [])]
    rows = pd.DataFrame(cohort[cohort["split"].isin(used)])
    crops = measure_crops(rows["path"], image_size=config.image_size, region=config.region)
    crops.insert(1, "label", rows["label"].to_numpy())
    write_csv(run.folder.crops, crops)
    whole = int((crops["region"] == "frame").sum())  # guard: whole_images_counted
    by_class = count_whole(crops, crops["label"])
    run.folder.log(CROPPED, images=len(crops), whole_images=whole, by_class=by_class)
    logger.info("On %d of %d images the lungs were not found; the model sees these images whole.", whole, len(crops))


def write_cohort(cohort: Cohort, run: RunPlan) -> Cohort:
    """Write the cohort and its problems into the run; in a resumed run, check that rows and split are the same.

    Args:
        cohort: The cohort with its split.
        run: The plan of the run.

    Returns:
        The cohort that the run goes on with: the columns that it keeps and, in a pseudonymised run, numbers in place of
        the names of files and patients.

    Raises:
        DataError: The data have changed since the run began.
        UsageError: Another process of this training has read different rows, or `keep_columns` names a column that the
            data do not have.
    """
    config, folder = run.config, run.folder
    cohort = keep_columns(cohort, config.keep_columns)
    check_same_everywhere(
        "The cohort", list(cohort[["path", "label", "patient", "split"]].itertuples(index=False, name=None))
    )
    if config.pseudonymise:
        with main_process_first():
            cohort = pseudonymise(cohort, folder, write=is_main_process())
    if not is_main_process():
        return cohort
    write_csv(folder.problems, cohort.facts.problem_table())
    folder.log("data read", images=len(cohort), patients_known=cohort.patients_known)
    if run.resuming and folder.cohort.exists():
        previous = load_cohort(folder.path)
        if _rows_of(previous) != _rows_of(cohort):
            raise DataError(f"The data have changed since the run {folder.path} began.", hint="Start a new run.")
        record_move(folder, previous, cohort)
    save_cohort(cohort, folder.path)
    trained = cohort[cohort["split"] == "train"]  # in a cross-validation, the rows of all folds
    if config.pseudonymise:  # hashes of numbers would recognise other patients of the same number
        trained = trained.assign(patient_known=False)
    write_manifest(trained, folder.training_manifest)
    return cohort


def kept_cohort(cohort: Cohort, run: RunPlan) -> Cohort:
    """Return a cohort with the columns that a run keeps and, in a pseudonymised run, with the numbers of its key.

    Args:
        cohort: The cohort, split as in the run or otherwise; all rows are in the order of the run.
        run: The plan of the run, which has written its cohort.
    """
    cohort = keep_columns(cohort, run.config.keep_columns)
    return pseudonymise(cohort, run.folder, write=False) if run.config.pseudonymise else cohort


def _rows_of(cohort: Cohort) -> list[tuple[str, str, str]]:
    """Return what a resumed run must find unchanged: file names, labels and split; the folder may be another one."""
    return list(zip(cohort["path"].map(os.path.basename), cohort["label"], cohort["split"], strict=True))
