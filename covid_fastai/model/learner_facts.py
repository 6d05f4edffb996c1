"""The facts of a learner that fastai does not record: its architecture, its initial weights and its history."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pandas as pd
from fastai.learner import Learner

from covid_fastai.data.dataloaders import LoaderFacts, loader_facts
from covid_fastai.errors import UsageError
from covid_fastai.model.bundle_config import BundleConfig
from covid_fastai.model.own_parts import history_of_recorder, weights_of_vision_learner
from covid_fastai.model.precision import PrecisionChoice
from covid_fastai.model.weights import Weights
from covid_fastai.run_folder import MODEL_BUILT, RunFolder

__all__ = ["LearnerFacts", "check_seen_region", "facts_of", "log_model", "remember_training", "require_facts"]


@dataclass
class LearnerFacts:
    """The facts of a learner, as `learn.facts`.

    Attributes:
        arch: The architecture's name; empty for a learner that `build_learner` did not make.
        weights: The facts about the initial weights, without the tensors; None for such a learner.
        history: One row per epoch: phase, epoch, train_loss, valid_loss, the metrics, seconds; None before `fit`.
        steps: One row per training step: step, phase, learning_rate, train_loss (smoothed); None before `fit`.
        parts: The names of the parts that the user brought: `loss_func`, `metrics`, `opt_func`.
        bundle: The configuration of the saved model, for a learner of `load_model`; otherwise None.
        synthetic: Whether a model of `load_model` was trained on synthetic images only.
        precision: The number format of its training, and why; None for a learner that `build_learner` did not make.
    """

    arch: str = ""
    weights: Weights | None = None
    history: pd.DataFrame | None = None
    steps: pd.DataFrame | None = None
    bundle: BundleConfig | None = None
    synthetic: bool = False
    precision: PrecisionChoice | None = None
    parts: dict[str, str] = field(default_factory=dict)


def facts_of(learn: Learner) -> LearnerFacts:
    """Return the facts of a learner; a learner that was not made by this package gets empty ones."""
    if not isinstance(getattr(learn, "facts", None), LearnerFacts):
        learn.facts = LearnerFacts()
    return learn.facts


def require_facts(learn: Learner) -> tuple[LearnerFacts, Weights, LoaderFacts]:
    """Return the facts of a learner, of its initial weights and of its loaders.

    Those of a learner of fastai's `vision_learner` on loaders of `build_dataloaders` are read from the learner.

    Raises:
        UsageError: The learner or its loaders were not made by this package, so they have no facts.
    """
    facts, loaders = facts_of(learn), loader_facts(learn.dls)
    if facts.weights is None and loaders is not None and (found := weights_of_vision_learner(learn)):
        facts.arch, facts.weights = found
        learn.dls.facts = loaders = replace(loaders, mean=facts.weights.mean, std=facts.weights.std)
    if facts.weights is None or loaders is None:
        raise UsageError(
            "This learner was not made by build_learner on loaders of build_dataloaders.",
            hint="Build it with both, or with vision_learner(dls, resnet18, n_in=1) on such loaders; fastai's own "
            "methods, such as learn.export, work with any learner.",
        )
    check_seen_region(learn)
    return facts, facts.weights, loaders


def check_seen_region(learn: Learner) -> None:
    """Raise if a loaded model would see another part of each image than in its training, and was not trained further.

    Raises:
        UsageError: The learner got loaders of whole images and its model saw crops, or the reverse.
    """
    facts, loaders = facts_of(learn), loader_facts(learn.dls)
    if facts.bundle is None or loaders is None or loaders.region == facts.bundle.region:
        return
    if facts.history is None and history_of_recorder(learn) is None:  # guard: loaders_region
        raise UsageError(
            f"This model was trained with region={facts.bundle.region!r}, and its loaders have {loaders.region!r}.",
            hint=f"Build them with region={facts.bundle.region!r}, or train the model on them first.",
        )


def remember_training(learn: Learner) -> None:
    """Keep the history of a learner that fastai's own methods trained, which a prediction removes from its recorder."""
    facts = facts_of(learn)
    if facts.history is None and (recorded := history_of_recorder(learn)):
        facts.history, facts.steps = recorded


def log_model(learn: Learner, folder: RunFolder) -> None:
    """Record the architecture, device, number format and initial weights of the model that a run trains."""
    facts = facts_of(learn)
    chosen = {} if facts.precision is None else {"precision": facts.precision.precision, "why": facts.precision.reason}
    weights = facts.weights.to_dict() if facts.weights else {}
    own = {"parts": facts.parts} if facts.parts else {}
    folder.log(MODEL_BUILT, arch=facts.arch, device=str(learn.dls.device), **chosen, weights=weights, **own)
