"""Fit a learner to a split cohort, with the options of a config and the parts that the caller brings."""

from __future__ import annotations

import pandas as pd
from fastai.learner import Learner

from covid_fastai.config import TrainConfig
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.model.learner import build_learner
from covid_fastai.model.own_parts import OwnParts
from covid_fastai.model.schedule import fit
from covid_fastai.run_folder import RunFolder
from covid_fastai.training.run_context import batch_size_of, precision_of

__all__ = ["fit_cohort"]


def fit_cohort(
    cohort: pd.DataFrame, config: TrainConfig, folder: RunFolder, *, own: OwnParts | None = None, resuming: bool
) -> Learner:
    """Build the loaders and the learner of a run, of a fold or of a network of the audit, and fit the learner.

    Args:
        cohort: The cohort with its split.
        config: The options.
        folder: The folder for checkpoints, history, steps and the record.
        own: Callbacks, loss and the like; None for the package's own.
        resuming: Continue from the last checkpoint, if there is one.

    Returns:
        The fitted learner.

    Raises:
        ResourceError: As in `fit`.
    """
    own = own or OwnParts()
    batch_size = batch_size_of(folder, config, resuming=resuming)
    loading = config.options_of(build_dataloaders, batch_size=batch_size) | own.of_loaders
    dls = build_dataloaders(cohort, path=folder.path, **loading)
    options = config.options_of(build_learner, precision=precision_of(folder, config, resuming=resuming))
    learn = build_learner(dls, path=folder.path, **own.of_learner, **options)
    fit(learn, out=folder.path, resume=resuming, **config.options_of(fit))
    return learn
