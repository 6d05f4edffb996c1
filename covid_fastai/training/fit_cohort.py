"""Fit a learner to a split cohort, with the options of a config."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from fastai.callback.core import Callback
from fastai.learner import Learner

from covid_fastai.config import TrainConfig
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.model.learner import build_learner
from covid_fastai.model.schedule import fit
from covid_fastai.run_folder import RunFolder
from covid_fastai.training.run_context import batch_size_of

__all__ = ["fit_cohort"]


def fit_cohort(
    cohort: pd.DataFrame, config: TrainConfig, folder: RunFolder, *, callbacks: Sequence[Callback] = (), resuming: bool
) -> Learner:
    """Build the loaders and the learner of a fold or of a network of the audit, and fit the learner.

    Args:
        cohort: The cohort with its split.
        config: The options.
        folder: The folder for checkpoints, history, steps and the record.
        callbacks: fastai callbacks.
        resuming: Continue from the last checkpoint, if there is one.

    Returns:
        The fitted learner.

    Raises:
        ResourceError: As in `fit`.
    """
    batch_size = batch_size_of(folder, config, resuming=resuming)
    dls = build_dataloaders(cohort, path=folder.path, **config.options_of(build_dataloaders, batch_size=batch_size))
    learn = build_learner(dls, path=folder.path, callbacks=callbacks, **config.options_of(build_learner))
    fit(learn, out=folder.path, resume=resuming, **config.options_of(fit))
    return learn
