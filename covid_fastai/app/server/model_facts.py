"""What stands beside every answer of a served model: what it is, what it is worth, where it ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from covid_fastai.model.bundle_config import CONFIG_FILE, read_config
from covid_fastai.model.card import read_card

__all__ = ["ModelFacts", "NOT_STATED", "read_facts"]

NOT_STATED = "not stated"


@dataclass(frozen=True)
class ModelFacts:
    """Hold the facts of a saved model for people.

    Attributes:
        name: What it is called.
        task: The task that it was trained for.
        classes: In the order of the outputs.
        positive: The class that a threshold is about.
        threshold: From which probability of `positive` on it is called that; None for the more probable class.
        arch: The architecture.
        image_size: Pixels of the square that it sees.
        temperature: Of its calibration; 1 for none.
        weights: Where its first weights came from.
        saved_by: The version of covid_fastai.
        fingerprint: Of its config.
        verdict: What it was found to be worth, or `NOT_STATED`.
        limits: What it cannot do; one `NOT_STATED` where its card does not say.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    positive: str | None
    threshold: float | None
    arch: str
    image_size: int
    temperature: float
    weights: str
    saved_by: str
    fingerprint: str
    verdict: str
    limits: tuple[str, ...]

    @property
    def rule(self) -> str:
        """How a class is named from the probabilities, as the end of a sentence."""
        if self.threshold is None:
            return "the most probable class"
        other = next(name for name in self.classes if name != self.positive)
        return f"{self.positive} from a probability of {self.threshold:.3g} on, else {other}"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return asdict(self) | {"rule": self.rule, "classes": list(self.classes), "limits": list(self.limits)}


def read_facts(folder: str | Path, *, name: str | None = None) -> ModelFacts:
    """Read the facts of a saved model from its `config.json` and its model card.

    Args:
        folder: The saved model.
        name: What it is called; None for its folder's name, or its task where that says more.

    Raises:
        ModelFormatError: `config.json` is missing or not to be trusted.
    """
    folder = Path(folder)
    config, card = read_config(folder / CONFIG_FILE), read_card(folder)
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
        verdict=card.verdict or NOT_STATED,
        limits=card.limits or (NOT_STATED,),
    )
