"""What stands beside every answer of a served model: what it is, what it is worth, where it ends."""

from __future__ import annotations

from pathlib import Path

from covid_fastai.app.server.schemas import ModelFacts
from covid_fastai.model.bundle_config import CONFIG_FILE, BundleConfig, read_config
from covid_fastai.model.card import read_findings

__all__ = ["NOT_STATED", "read_facts"]

NOT_STATED = "not stated"


def read_facts(folder: str | Path, *, name: str | None = None) -> ModelFacts:
    """Read the facts of a saved model from its `config.json` and its `findings.json`.

    Args:
        folder: The saved model.
        name: What it is called; None for its folder's name, or its task where that says more.

    Raises:
        ModelFormatError: `config.json` is missing, or one of the two is not to be trusted.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG_FILE)
    findings = read_findings(folder, config)
    own = folder.resolve().name
    return ModelFacts(
        name=name or (f"{config.task or 'a'} model" if own in ("", "model") else own),
        task=config.task,
        classes=tuple(config.classes),
        positive=config.positive,
        threshold=config.threshold,
        arch=config.arch,
        image_size=config.image_size,
        temperature=config.temperature,
        weights=config.weights.name,
        saved_by=config.covid_fastai,
        fingerprint=config.fingerprint,
        verdict=findings.verdict or NOT_STATED,
        limits=findings.limits or (NOT_STATED,),
        rule=_rule(config),
    )


def _rule(config: BundleConfig) -> str:
    if config.threshold is None:
        return "the most probable class"
    other = next(name for name in config.classes if name != config.positive)
    return f"{config.positive} from a probability of {config.threshold:.3g} on, else {other}"
