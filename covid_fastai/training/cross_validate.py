"""The folds of a cross-validation: one after the other, or several at once on Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.torch_core import no_random

from covid_fastai.audit.probes import write_probes
from covid_fastai.config import TrainConfig
from covid_fastai.data.splits import fold_cohort
from covid_fastai.errors import CovidFastaiError, ResourceError, UnavailableError
from covid_fastai.evaluation.predict import predict
from covid_fastai.files import make_folder, write_csv
from covid_fastai.model.bundle import save_model
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.training.fit_cohort import fit_cohort

__all__ = ["train_fold", "train_folds"]

logger = logging.getLogger("covid_fastai")

TRIES = 3  # a fold whose process dies is begun again from its last epoch, so often


def train_folds(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: Path,
    folds: Sequence[int],
    *,
    n_jobs: int,
    callbacks: Sequence[Callback],
    resuming: bool,
) -> Iterator[int]:
    """Train folds and leave each in its folder `fold-<k>`.

    Args:
        cohort: With its folds.
        config: What is chosen.
        folder: The run's.
        folds: Which ones.
        n_jobs: How many at the same time; more than 1 needs Ray.
        callbacks: fastai callbacks; of folds trained at the same time each has copies of its own.
        resuming: Go on from checkpoints.

    Yields:
        The number of each fold that is done.

    Raises:
        UnavailableError: Ray is not installed.
        ResourceError: A fold's process died again and again.
    """
    if n_jobs == 1:
        for fold in folds:
            logger.info("fold %d", fold + 1)
            yield train_fold(cohort, config, folder, fold, callbacks=callbacks, resuming=resuming)
    elif folds:
        yield from _train_on_ray(cohort, config, folder, folds, n_jobs=n_jobs, callbacks=callbacks)


def train_fold(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: Path,
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
    part = make_folder(folder / f"fold-{fold}")
    with no_random(config.seed + fold):
        rows, positive = fold_cohort(cohort, fold), cohort.facts.positive
        learn = fit_cohort(rows, config, part, callbacks=callbacks, resuming=resuming)
        save_model(learn, part / "model")
        if config.audit:
            write_probes(learn, rows, part, positive=positive, fold=fold, seed=config.seed)
        write_csv(part / "predictions.csv", predict(learn, fold=fold))
        clear_checkpoints(part / "checkpoints")
    return fold


def _train_on_ray(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: Path,
    folds: Sequence[int],
    *,
    n_jobs: int,
    callbacks: Sequence[Callback],
) -> Iterator[int]:
    """Train folds as tasks of the Ray cluster that this process belongs to, or of one that Ray starts here."""
    try:
        import ray
    except ImportError as error:
        raise UnavailableError("n_jobs needs Ray.", hint="pip install 'covid_fastai[ray]'") from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // n_jobs)
    gpus = ray.cluster_resources().get("GPU", 0) / n_jobs
    task = ray.remote(num_cpus=cores, num_gpus=min(1, gpus), max_retries=TRIES - 1, max_calls=1)(_fold_task)
    rows = ray.put(cohort)
    try:
        waiting = {
            task.remote(rows, config.to_dict(), str(folder.resolve()), fold, cores, list(callbacks)): fold
            for fold in folds
        }
        while waiting:
            done, _ = ray.wait(list(waiting))
            for one in done:
                fold = waiting.pop(one)
                try:
                    yield ray.get(one)
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, CovidFastaiError) else error
                    raise cause from None
                except ray.exceptions.RayError as error:
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
    return train_fold(cohort, TrainConfig.from_dict(config), Path(folder), fold, callbacks=callbacks, resuming=True)
