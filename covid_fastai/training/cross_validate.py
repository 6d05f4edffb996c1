"""`cross_validate`: one model per fold, trained one after the other, or in parallel on Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.metrics import accuracy
from fastai.torch_core import no_random, num_distrib

from covid_fastai.audit.audit import audit_run
from covid_fastai.audit.probes import write_probes
from covid_fastai.audit.runs import Run, read_run
from covid_fastai.config import TrainConfig, TrainOptions, merge_options
from covid_fastai.data.cohort import Cohort
from covid_fastai.data.hardware import share_devices
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import fold_by_patient, fold_cohort, fold_officially
from covid_fastai.errors import CovidFastaiError, ResourceError, UnavailableError, UsageError
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.files import make_folder, read_csv, write_csv, write_json
from covid_fastai.model.bundle import save_model
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.model.own_parts import OwnParts
from covid_fastai.options import Folds, NJobs, Repeats, checked
from covid_fastai.reporting.closing import show_closing
from covid_fastai.reporting.documents import write_documents
from covid_fastai.reporting.report import render_report
from covid_fastai.run_folder import FINISHED, RunFolder
from covid_fastai.training.fit_cohort import fit_cohort
from covid_fastai.training.run_context import RunPlan, kept_cohort, resolve_run, run_context, write_cohort, write_crops
from covid_fastai.training.run_start import check_folds
from covid_fastai.training.train import with_choices

__all__ = ["cross_validate", "train_fold", "train_folds"]

logger = logging.getLogger("covid_fastai")

NEXT_REPEAT = 1_000  # added to the seed by each repeat; fold k adds k
TRIES = 3  # attempts per fold; a fold whose process died is resumed from its last epoch


@with_choices
@checked
def cross_validate(
    data: str | Path | pd.DataFrame | None = None,
    *,
    folds: Folds = 5,
    repeats: Repeats = 1,
    n_jobs: NJobs = 1,
    config: TrainConfig | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    loss_func: Callable[..., Any] | None = None,
    metrics: Sequence[Any] | Any = accuracy,
    opt_func: Callable[..., Any] | None = None,
    quiet: bool = False,
    **choices: Unpack[TrainOptions],
) -> Run:
    """Train one model per fold, and predict each patient with the model that was not trained on them.

    Args:
        data: As in `train_classifier`.
        folds: Number of folds that the patients are distributed over, 2 or more; `valid_pct` is not used and
            `evaluate_test` is not allowed. With `split="official"`, the folds are those of the data's own column, such
            as `fold` or `kfold`.
        repeats: How often all of it is done, each time with another seed: other folds (not with `split="official"`),
            and other initial weights and batches. Models, predictions and metrics of the run are those of the first
            time; `.repeats` and the report show how much the metrics change.
        n_jobs: How many folds are trained at the same time, each in its own process on Ray (extra `ray`), which
            may be a cluster whose machines share the run's folder. The CPU cores are distributed over the processes.
        config: As in `train_classifier`.
        preset: As in `train_classifier`.
        out: The run's folder; each fold has its own folder `fold-<k>` in it, with its model.
        resume: The folder of an unfinished cross-validation; finished folds are not trained again, the interrupted
            fold is continued.
        callbacks: fastai callbacks; the same objects are used in every fold.
        loss_func: As in `train_classifier`, as well as `metrics`, `opt_func` and a list of transforms as
            `augmentation`; with `n_jobs`, each process gets a copy.
        metrics: As in `train_classifier`.
        opt_func: As in `train_classifier`.
        quiet: Log warnings only.
        **choices: The fields of `TrainConfig`, by name.

    Returns:
        The run: `.predictions` holds the out-of-fold predictions with their `fold`, and `.metrics` the metrics of all
        of them together; each patient is in one fold.

    Raises:
        UsageError: An option does not exist, or the values of `folds`, `split` and `evaluate_test` are mutually
            exclusive.
        DataError: As in `train_classifier`; also if a class has fewer patients than there are folds.
        DivergenceError: As in `train_classifier`.
        ResourceError: As in `train_classifier`.
        OfflineError: As in `train_classifier`.

    Examples:
        >>> quick = {"weights": None, "image_size": 32, "batch_size": 8, "frozen_epochs": 0, "unfrozen_epochs": 1}
        >>> result = cross_validate(data, folds=2, out="run", quiet=True, num_workers=0, audit=False, **quick)
        >>> sorted(result.predictions["fold"].unique().tolist())
        [0, 1]
    """
    if num_distrib() > 1:
        raise UsageError(
            "cross_validate was started in several processes, which it does not support.",
            hint="Start one process; n_jobs= trains folds in parallel.",
        )
    options = merge_options(config, choices, preset=preset, resume=resume)
    parts = {"callbacks": callbacks, "loss_func": loss_func, "metrics": metrics, "opt_func": opt_func}
    own = OwnParts.take(options, resuming=resume is not None, **parts)
    check_folds(folds, options, n_jobs=n_jobs)
    run = resolve_run(data, preset=preset, out=out, resume=resume, choices=options, folds=folds, repeats=repeats)
    config, folder = run.config, run.folder
    with run_context(run, quiet=quiet):
        rows = read_cohort(run.data, **config.options_of(read_cohort))
        cohort = _fold(rows, config, folds)
        cohort = write_cohort(cohort, run)
        preds, result = _train_repeat(cohort, run, 0, n_jobs=n_jobs, own=own)
        write_crops(cohort, run)
        fold_folders = folder.folds()
        histories = [read_csv(fold.history).assign(fold=number) for number, fold in enumerate(fold_folders)]
        write_csv(folder.predictions, preds)
        write_csv(folder.history, pd.concat(histories, ignore_index=True))
        write_json(folder.metrics, {"valid": result.to_dict()})
        if config.audit:
            _concatenate([fold.probes for fold in fold_folders], folder.probes)
            _concatenate([fold.saliency for fold in fold_folders], folder.saliency)
            audit_run(folder.path)
        if repeats > 1:
            evaluations = {0: result}
            for number in range(1, repeats):
                again = replace(run, config=config.replace(seed=config.seed + number * NEXT_REPEAT))
                folded = kept_cohort(_fold(rows, again.config, folds), run)
                evaluations[number] = _train_repeat(folded, again, number, n_jobs=n_jobs, own=own)[1]
            tables = [each.metrics.assign(repeat=number) for number, each in evaluations.items()]
            write_csv(folder.repeats, pd.concat(tables, ignore_index=True))
        render_report(folder.path)
        write_documents(folder.path)
        folder.log(FINISHED)
    finished = read_run(folder.path)
    if not quiet:
        show_closing(finished)
    return finished


def _fold(cohort: Cohort, config: TrainConfig, folds: int) -> Cohort:
    """Assign the rows to folds, as the options say."""
    if config.split == "official":
        return fold_officially(cohort, folds=folds)
    return fold_by_patient(cohort, folds=folds, seed=config.seed)


def _train_repeat(
    cohort: Cohort, run: RunPlan, repeat: int, *, n_jobs: int, own: OwnParts
) -> tuple[pd.DataFrame, Evaluation]:
    """Train the folds of a repeat that have no predictions yet, and evaluate all of them."""
    within = replace(run, folder=run.folder.repeat(repeat))
    folders = [within.folder.fold(number) for number in range(int(cohort["fold"].max()) + 1)]
    remaining = [number for number, fold in enumerate(folders) if not fold.predictions.exists()]
    for number in train_folds(cohort, within, remaining, n_jobs=n_jobs, own=own, keep=repeat == 0):
        run.folder.log("fold finished", fold=number, repeat=repeat)
    preds = pd.concat([read_predictions(fold.predictions) for fold in folders], ignore_index=True)
    return preds, evaluate(preds, positive=cohort.facts.positive)


def _concatenate(paths: Sequence[Path], target: Path) -> None:
    """Write the tables of the folds as one table; write nothing if no fold has it, such as saliency of small images."""
    text = {"patient": str, "label": str}  # a patient "007" must not become the number 7
    tables = [read_csv(path, keep_default_na=False, dtype=text) for path in paths if path.is_file()]
    if tables:
        write_csv(target, pd.concat(tables, ignore_index=True))


def train_folds(
    cohort: pd.DataFrame, run: RunPlan, folds: Sequence[int], *, n_jobs: int, own: OwnParts, keep: bool
) -> Iterator[int]:
    """Train folds and write each into its folder `fold-<k>`.

    Args:
        cohort: The cohort with its folds.
        run: The plan of the run; with `run.resuming` folds continue from their checkpoints.
        folds: The numbers of the folds to train.
        n_jobs: How many folds are trained at the same time; more than 1 needs Ray.
        own: Callbacks, loss and the like; folds that are trained in parallel get copies.
        keep: As in `train_fold`.

    Yields:
        The number of each fold when it is finished.

    Raises:
        UnavailableError: Ray is not installed.
        ResourceError: A fold's process died `TRIES` times.
    """
    if n_jobs == 1:
        for fold in folds:
            logger.info("fold %d", fold + 1)
            yield train_fold(cohort, run.config, run.folder, fold, own=own, keep=keep, resuming=run.resuming)
    elif folds:
        yield from _train_on_ray(cohort, run.config, run.folder, folds, n_jobs=n_jobs, own=own, keep=keep)


def train_fold(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: RunFolder,
    fold: int,
    *,
    own: OwnParts | None = None,
    keep: bool = True,
    resuming: bool = False,
) -> int:
    """Train on all folds except one, predict that one, and write its model, history, probes and predictions.

    Args:
        cohort: The cohort with its folds.
        config: The options; fold `k` has the seed `config.seed + k`.
        folder: The run's folder, in which `fold-<k>` is created.
        fold: The number of the held-out fold.
        own: Callbacks, loss and the like; None for the package's own.
        keep: Whether the model and the probes of the audit are written; the further repeats have none.
        resuming: Continue from the fold's checkpoints.

    Returns:
        The fold's number. `predictions.csv` is written last, so a fold that has it is complete.
    """
    fold_folder = folder.fold(fold)
    make_folder(fold_folder.path)
    with no_random(config.seed + fold):
        rows, positive = fold_cohort(cohort, fold), cohort.facts.positive
        learn = fit_cohort(rows, config, fold_folder, own=own, resuming=resuming)
        if keep:
            save_model(learn, fold_folder.model)
        if keep and config.audit:
            write_probes(learn, rows, fold_folder.path, positive=positive, fold=fold, seed=config.seed)
        write_csv(fold_folder.predictions, predict(learn, fold=fold))
        clear_checkpoints(fold_folder.checkpoints)
    return fold


def _train_on_ray(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: RunFolder,
    folds: Sequence[int],
    *,
    n_jobs: int,
    own: OwnParts,
    keep: bool,
) -> Iterator[int]:
    """Train folds as Ray tasks, on the cluster that this process is connected to or on one started for them."""
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise UnavailableError(
            f"n_jobs={n_jobs} needs Ray, which is not installed.", hint="pip install 'covid_fastai[ray]'"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // n_jobs)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    task = ray.remote(num_cpus=cores, num_gpus=min(1, gpus / n_jobs), max_retries=TRIES - 1, max_calls=1)(_fold_task)
    rows, sharing = ray.put(cohort), {"trainings": min(n_jobs, len(folds)), "gpus": gpus}
    try:
        waiting = {
            task.remote(rows, config.to_dict(), str(folder.path.resolve()), fold, cores, sharing, own, keep): fold
            for fold in folds
        }
        while waiting:
            done, _ = ray.wait(list(waiting))
            for future in done:
                fold = waiting.pop(future)
                try:
                    yield ray.get(future)
                except RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, CovidFastaiError) else error
                    raise cause from None
                except RayError as error:
                    raise ResourceError(
                        f"The process of fold {fold} died {TRIES} times: {str(error).splitlines()[0][:200]}",
                        hint="If memory is short, use fewer n_jobs. Finished folds remain; continue with resume=.",
                    ) from error
                logger.info("fold %d done", fold + 1)
    finally:
        if started:
            ray.shutdown()


def _fold_task(
    cohort: pd.DataFrame,
    config: dict,
    folder: str,
    fold: int,
    cores: int,
    sharing: dict[str, int],
    own: OwnParts,
    keep: bool,
) -> int:
    """Train one fold in a Ray worker, on `cores` threads."""
    os.environ["OMP_NUM_THREADS"] = str(cores)
    torch.set_num_threads(cores)
    share_devices(**sharing)
    # always resuming, since a previous process may have died while it trained this fold
    return train_fold(cohort, TrainConfig.from_dict(config), RunFolder(folder), fold, own=own, keep=keep, resuming=True)
