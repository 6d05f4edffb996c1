"""`cross_validate`: a model a fold, trained one after the other, or several at the same time on Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.torch_core import no_random, num_distrib

from covid_fastai.audit.audit import audit_run
from covid_fastai.audit.probes import write_probes
from covid_fastai.config import TrainConfig, TrainOptions, merge_options
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import fold_by_patient, fold_cohort
from covid_fastai.errors import CovidFastaiError, ResourceError, UnavailableError, UsageError
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import make_folder, write_csv, write_json
from covid_fastai.model.bundle import save_model
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.options import Folds, NJobs, checked
from covid_fastai.reporting.documents import write_documents
from covid_fastai.reporting.report import render_report
from covid_fastai.run_folder import FINISHED, RunFolder
from covid_fastai.training.fit_cohort import fit_cohort
from covid_fastai.training.run_context import RunPlan, keep_cohort, resolve_run, run_context
from covid_fastai.training.train import with_choices

__all__ = ["cross_validate", "train_fold", "train_folds"]

logger = logging.getLogger("covid_fastai")

TRIES = 3  # a fold whose process dies is begun again from its last epoch, so often


@with_choices
@checked
def cross_validate(
    data: str | Path | pd.DataFrame | None = None,
    *,
    folds: Folds = 5,
    n_jobs: NJobs = 1,
    config: TrainConfig | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **choices: Unpack[TrainOptions],
) -> Run:
    """Train once a fold and predict every patient by the one model that has not seen them.

    Args:
        data: As in `train_classifier`.
        folds: How many parts the patients are dealt into, 2 or more; `valid` and `evaluate_test` have no meaning here.
        n_jobs: How many folds are trained at the same time, each in a process of its own on Ray (extra `ray`), which
            may be a cluster whose machines share the run's folder. The processor cores are dealt out among them.
        config: As in `train_classifier`.
        preset: As in `train_classifier`.
        out: The run's folder; each fold has its own folder `fold-<k>` in it, with its model.
        resume: The folder of an unfinished cross-validation; finished folds are kept, the one begun goes on.
        callbacks: fastai callbacks; the same objects see every fold in turn.
        quiet: Log nothing but warnings.
        **choices: The fields of `TrainConfig`, by name.

    Returns:
        The run: `.predictions` holds the out-of-fold predictions with their `fold`, `.metrics` the figures over all of
        them, each patient counted once.

    Raises:
        UsageError: An option does not exist, or `folds`, `split` or `evaluate_test` cannot be had together.
        DataError: As in `train_classifier`; also where a class has fewer patients than there are folds.
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
        raise UsageError("Folds are not trained by several processes.", hint="Use n_jobs=, or start one process.")
    options = merge_options(config, choices, preset=preset, resume=resume)
    run = resolve_run(data, preset=preset, out=out, resume=resume, choices=options, folds=folds)
    config, folder = run.config, run.folder
    with run_context(run, quiet=quiet):
        cohort = read_cohort(run.data, **config.options_of(read_cohort))
        cohort = fold_by_patient(cohort, folds=folds, seed=config.seed)
        keep_cohort(cohort, run)
        parts = [folder.fold(number) for number in range(folds)]
        left = [number for number, part in enumerate(parts) if not part.predictions.exists()]
        for fold in train_folds(cohort, run, left, n_jobs=n_jobs, callbacks=callbacks):
            folder.log("fold finished", fold=fold)
        preds = pd.concat([read_predictions(part.predictions) for part in parts], ignore_index=True)
        result = evaluate(preds, positive=cohort.facts.positive)
        histories = [pd.read_csv(part.history).assign(fold=fold) for fold, part in enumerate(parts)]
        write_csv(folder.predictions, preds)
        write_csv(folder.history, pd.concat(histories, ignore_index=True))
        write_json(folder.metrics, {"valid": result.to_dict()})
        if config.audit:
            _gather([part.probes for part in parts], folder.probes)
            _gather([part.saliency for part in parts], folder.saliency)
            audit_run(folder.path)
        folder.log(FINISHED)
        render_report(folder.path)
        write_documents(folder.path)
    return read_run(folder.path)


def _gather(parts: Sequence[Path], whole: Path) -> None:
    """Write the tables of the folds as one; none where no fold has it, such as maps of small images."""
    text = {"patient": str, "label": str}  # a patient "007" is no number
    tables = [pd.read_csv(part, keep_default_na=False, dtype=text) for part in parts if part.is_file()]
    if tables:
        write_csv(whole, pd.concat(tables, ignore_index=True))


def train_folds(
    cohort: pd.DataFrame, run: RunPlan, folds: Sequence[int], *, n_jobs: int, callbacks: Sequence[Callback]
) -> Iterator[int]:
    """Train folds and leave each in its folder `fold-<k>`.

    Args:
        cohort: With its folds.
        run: What was asked for; with `run.resuming` folds go on from their checkpoints.
        folds: Which ones.
        n_jobs: How many at the same time; more than 1 needs Ray.
        callbacks: fastai callbacks; of folds trained at the same time each has copies of its own.

    Yields:
        The number of each fold that is done.

    Raises:
        UnavailableError: Ray is not installed.
        ResourceError: A fold's process died again and again.
    """
    if n_jobs == 1:
        for fold in folds:
            logger.info("fold %d", fold + 1)
            yield train_fold(cohort, run.config, run.folder, fold, callbacks=callbacks, resuming=run.resuming)
    elif folds:
        yield from _train_on_ray(cohort, run.config, run.folder, folds, n_jobs=n_jobs, callbacks=callbacks)


def train_fold(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: RunFolder,
    fold: int,
    *,
    callbacks: Sequence[Callback] = (),
    resuming: bool = False,
) -> int:
    """Train on all folds but one, predict that one, and write model, history, probes and predictions.

    Args:
        cohort: With its folds.
        config: What is chosen; fold `k` has the seed `config.seed + k`.
        folder: The run's; `fold-<k>` in it is made.
        fold: The one that is held out.
        callbacks: fastai callbacks.
        resuming: Go on from the fold's checkpoints.

    Returns:
        The fold; its `predictions.csv` is written last, so that a fold that has one is whole.
    """
    part = folder.fold(fold)
    make_folder(part.path)
    with no_random(config.seed + fold):
        rows, positive = fold_cohort(cohort, fold), cohort.facts.positive
        learn = fit_cohort(rows, config, part, callbacks=callbacks, resuming=resuming)
        save_model(learn, part.model)
        if config.audit:
            write_probes(learn, rows, part.path, positive=positive, fold=fold, seed=config.seed)
        write_csv(part.predictions, predict(learn, fold=fold))
        clear_checkpoints(part.checkpoints)
    return fold


def _train_on_ray(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: RunFolder,
    folds: Sequence[int],
    *,
    n_jobs: int,
    callbacks: Sequence[Callback],
) -> Iterator[int]:
    """Train folds as tasks of the Ray cluster that this process belongs to, or of one that Ray starts here."""
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise UnavailableError("n_jobs needs Ray.", hint="pip install 'covid_fastai[ray]'") from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // n_jobs)
    gpus = ray.cluster_resources().get("GPU", 0) / n_jobs
    task = ray.remote(num_cpus=cores, num_gpus=min(1, gpus), max_retries=TRIES - 1, max_calls=1)(_fold_task)
    rows = ray.put(cohort)
    try:
        waiting = {
            task.remote(rows, config.to_dict(), str(folder.path.resolve()), fold, cores, list(callbacks)): fold
            for fold in folds
        }
        while waiting:
            done, _ = ray.wait(list(waiting))
            for one in done:
                fold = waiting.pop(one)
                try:
                    yield ray.get(one)
                except RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, CovidFastaiError) else error
                    raise cause from None
                except RayError as error:
                    raise ResourceError(
                        f"The process of fold {fold} died {TRIES} times: {str(error).splitlines()[0][:200]}",
                        hint="Memory may be short: fewer n_jobs. Finished folds are kept; go on with resume=.",
                    ) from error
                logger.info("fold %d done", fold + 1)
    finally:
        if started:
            ray.shutdown()


def _fold_task(
    cohort: pd.DataFrame, config: dict, folder: str, fold: int, cores: int, callbacks: Sequence[Callback]
) -> int:
    os.environ["OMP_NUM_THREADS"] = str(cores)
    torch.set_num_threads(cores)
    # always as one that goes on: the process that had this fold before may have died in it
    return train_fold(
        cohort, TrainConfig.from_dict(config), RunFolder(folder), fold, callbacks=callbacks, resuming=True
    )
