"""The facts of a learner that fastai does not record: its architecture, its initial weights and its history."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from fastai.learner import Learner

from covid_fastai.data.dataloaders import LoaderFacts, loader_facts
from covid_fastai.errors import UsageError
from covid_fastai.model.bundle_config import BundleConfig
from covid_fastai.model.weights import Weights
from covid_fastai.run_folder import MODEL_BUILT, RunFolder

__all__ = ["LearnerFacts", "facts_of", "log_model", "require_facts"]


@dataclass
class LearnerFacts:
    """The facts of a learner, as `learn.facts`.

    Attributes:
        arch: The architecture's name; empty for a learner that `build_learner` did not make.
        weights: The facts about the initial weights, without the tensors; None for such a learner.
        history: One row per epoch: phase, epoch, train_loss, valid_loss, the metrics, seconds; None before `fit`.
        steps: One row per training step: step, phase, learning_rate, train_loss (smoothed); None before `fit`.
        bundle: The configuration of the saved model, for a learner of `load_model`; otherwise None.
    """

    arch: str = ""
    weights: Weights | None = None
    history: pd.DataFrame | None = None
    steps: pd.DataFrame | None = None
    bundle: BundleConfig | None = None


def facts_of(learn: Learner) -> LearnerFacts:
    """Return the facts of a learner; a learner that was not made by this package gets empty ones."""
    if not isinstance(getattr(learn, "facts", None), LearnerFacts):
        learn.facts = LearnerFacts()
    return learn.facts


def require_facts(learn: Learner) -> tuple[LearnerFacts, Weights, LoaderFacts]:
    """Return the facts of a learner, of its initial weights and of its loaders.

    Raises:
        UsageError: The learner or its loaders were not made by this package, so they have no facts.
    """
    facts, loaders = facts_of(learn), loader_facts(learn.dls)
    if facts.weights is None or loaders is None:
        raise UsageError(
            "This learner was not made by build_learner on loaders of build_dataloaders.",
            hint="Build it with both, or use fastai's methods, such as learn.export.",
        )
    return facts, facts.weights, loaders


def log_model(learn: Learner, folder: RunFolder) -> None:
    """Record the architecture, device and initial weights of the model that a run trains."""
    facts = facts_of(learn)
    weights = facts.weights.to_dict() if facts.weights else {}
    folder.log(MODEL_BUILT, arch=facts.arch, device=str(learn.dls.device), weights=weights)
