"""From a split cohort to a fitted learner, as the config says: where data and model meet."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import get_random_states, num_distrib, set_random_states

from covid_fastai.config import TrainConfig
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.errors import ResourceError
from covid_fastai.evaluation.runs import HALVED, log_event, read_record
from covid_fastai.files import write_csv
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.model.distributed import batch_per_process, data_parallel, is_main_process
from covid_fastai.model.learner import build_learner
from covid_fastai.model.schedule import fit

__all__ = ["fit_cohort"]

logger = logging.getLogger("covid_fastai")

HALVINGS = 3


def fit_cohort(
    cohort: pd.DataFrame, config: TrainConfig, folder: Path, *, callbacks: Sequence[Callback], resuming: bool
) -> Learner:
    """Build the loaders and the learner, and fit it, with a checkpoint an epoch in the run's folder.

    Args:
        cohort: With its split.
        config: What is chosen.
        folder: Where checkpoints, `history.csv` and `steps.csv` go, and the record.
        callbacks: fastai callbacks.
        resuming: Go on from the last checkpoint that is there.

    Returns:
        The fitted learner. Where the memory does not do, the training begins anew with half as many images in a step,
        up to three times; the log, the record and the report say so.

    Raises:
        ResourceError: The memory does not do for an eighth of the batch either.
    """
    asked = batch_per_process(config.batch_size)
    batch_size = _batch_size_of_record(folder, asked) if resuming else asked
    state = get_random_states()
    for halvings in range(HALVINGS + 1):
        try:
            return _fit_once(
                cohort, config, folder, batch_size=batch_size, callbacks=callbacks, resuming=resuming and not halvings
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):  # guard: oom
                raise
            smaller = batch_size // 2
            if halvings == HALVINGS or smaller < 2 or num_distrib() > 1:  # guard: oom_end
                raise ResourceError(
                    f"The memory is full, with {batch_size} images in a step.",
                    hint="Take a smaller batch_size or image_size, or another device.",
                ) from error
        # outside of `except`, whose error holds the tensors that filled the memory
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch_size = smaller
        logger.warning("The memory is full: the training begins anew with %d images in a step.", batch_size)
        log_event(folder, HALVED, batch_size=batch_size, asked=asked)
        clear_checkpoints(folder / "checkpoints")  # of the larger batches
        set_random_states(**state)
    raise AssertionError("the last turn returns or raises")


def _is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is one of memory: CUDA's has a type, MPS's and the CPU allocator's have words."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error).lower() for word in words)


def _batch_size_of_record(folder: Path, asked: int) -> int:
    """Return the batch size that a run has come down to."""
    halved = [event["batch_size"] for event in read_record(folder) if event["event"] == HALVED]
    return halved[-1] if halved else asked  # guard: oom_record


def _fit_once(
    cohort: pd.DataFrame,
    config: TrainConfig,
    folder: Path,
    *,
    batch_size: int,
    callbacks: Sequence[Callback],
    resuming: bool,
) -> Learner:
    dls = build_dataloaders(
        cohort,
        image_size=config.image_size,
        batch_size=batch_size,
        augmentation=config.augmentation,
        balance=config.balance,
        num_workers=config.num_workers,
        device=config.device,
        path=folder,
    )
    learn = build_learner(
        dls,
        arch=config.arch,
        weights=config.weights,
        path=folder,
        balance=config.balance,
        weight_decay=config.weight_decay,
        gradient_clip=config.gradient_clip,
        precision=config.precision,
        callbacks=callbacks,
    )
    if is_main_process():
        log_event(folder, "model built", arch=learn.arch, device=str(dls.device), weights=learn.weights.to_dict())
    try:
        with data_parallel(learn):
            _fit(learn, config, folder, resuming=resuming)
    finally:  # the epochs that there were, also where the last one failed
        if hasattr(learn, "history") and is_main_process():
            write_csv(folder / "history.csv", learn.history)
            write_csv(folder / "steps.csv", learn.steps)
    return learn


def _fit(learn: Learner, config: TrainConfig, folder: Path, *, resuming: bool) -> None:
    fit(
        learn,
        frozen_epochs=config.frozen_epochs,
        unfrozen_epochs=config.unfrozen_epochs,
        learning_rate=config.learning_rate,
        unfrozen_learning_rate=config.unfrozen_learning_rate,
        lr_ratio=config.lr_ratio,
        frozen_augmentations=config.frozen_augmentations,
        initial_image_size=config.initial_image_size,
        checkpoints=folder / "checkpoints",
        resume=resuming,
    )
