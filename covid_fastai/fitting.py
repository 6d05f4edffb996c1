"""From a split cohort to a fitted learner, as the config says: where data and model meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from fastai.callback.core import Callback
from fastai.learner import Learner

from covid_fastai.config import TrainConfig
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.evidence.runs import log_event
from covid_fastai.files import write_csv
from covid_fastai.model.distributed import data_parallel, leads, share_of_batch
from covid_fastai.model.learner import build_learner
from covid_fastai.model.schedule import fit

__all__ = ["fit_cohort"]


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
        The fitted learner.
    """
    dls = build_dataloaders(
        cohort,
        image_size=config.image_size,
        batch_size=share_of_batch(config.batch_size),
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
    if leads():
        log_event(folder, "model built", arch=learn.arch, device=str(dls.device), weights=learn.weights.to_dict())
    try:
        with data_parallel(learn):
            _fit(learn, config, folder, resuming=resuming)
    finally:  # the epochs that there were, also where the last one failed
        if hasattr(learn, "history") and leads():
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
        discriminative=config.discriminative,
        frozen_views=config.frozen_views,
        initial_image_size=config.initial_image_size,
        checkpoints=folder / "checkpoints",
        resume=resuming,
    )
