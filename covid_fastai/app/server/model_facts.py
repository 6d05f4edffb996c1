"""Facts of a saved model that the server shows with each prediction: architecture, rule, verdict, limits."""

from __future__ import annotations

from pathlib import Path

from covid_fastai.app.server.schemas import ModelFacts
from covid_fastai.model.bundle_config import CONFIG_FILE, BundleConfig, read_config
from covid_fastai.model.card import read_findings

__all__ = ["NOT_STATED", "read_facts"]

NOT_STATED = "not stated"


def read_facts(folder: str | Path, *, name: str | None = None) -> ModelFacts:
    """Read the facts of a saved model from its `config.json` and `findings.json`.

    Args:
        folder: The folder of the saved model.
        name: The name of the model; None for the name of its folder, or for its task if the folder is named `model`.

    Returns:
        The facts. A verdict or limits that `findings.json` lacks are `"not stated"`.

    Raises:
        ModelFormatError: `config.json` is missing, or one of the files is damaged or belongs to another model.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG_FILE)
    findings = read_findings(folder, config)
    folder_name = folder.resolve().name
    return ModelFacts(
        name=name or (f"{config.task or 'a'} model" if folder_name in ("", "model") else folder_name),
        purpose=findings.purpose,
        task=config.task,
        classes=tuple(config.classes),
        positive=config.positive,
        threshold=config.threshold,
        arch=config.arch,
        image_size=config.image_size,
        region=config.region,
        temperature=config.temperature,
        weights=config.weights.name,
        saved_by=config.covid_fastai,
        fingerprint=config.fingerprint,
        headline=findings.headline,
        synthetic=findings.synthetic,
        short_verdict=findings.short,
        verdict=findings.verdict or NOT_STATED,
        limits=findings.limits or (NOT_STATED,),
        rule=_rule(config),
    )


def _rule(config: BundleConfig) -> str:
    """Return how the class is predicted from the probabilities, as the end of a sentence."""
    if config.threshold is None:
        return "the most probable class"
    negative = next(name for name in config.classes if name != config.positive)
    return f"{config.positive} if its probability is at least {config.threshold:.3g}, else {negative}"
