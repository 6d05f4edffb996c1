"""The model card: a README.md beside a saved model, which says what it is, what it is worth and where it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from covid_fastai.model.bundle_config import ONNX_FILE, WEIGHTS_FILE, BundleConfig
from covid_fastai.notices import RESEARCH_USE

__all__ = ["CARD_FILE", "Card", "build_card", "read_card"]

CARD_FILE = "README.md"  # the name that the Hugging Face Hub shows
NOT_STATED = "Not stated."
LARGEST_CARD = 1 << 20  # bytes
LONGEST = 1200  # characters of a section that is shown beside a number
TAGS = ("chest-x-ray", "covid_fastai", "fastai", "onnx", "research-only", "safetensors")


@dataclass(frozen=True)
class Card:
    """What a model card says that belongs beside every answer of the model.

    Attributes:
        verdict: What the model was found to be worth; empty where the card does not say.
        limits: What it cannot do; empty where the card does not say.
    """

    verdict: str = ""
    limits: tuple[str, ...] = ()


def build_card(
    config: BundleConfig,
    *,
    title: str,
    verdict: str = "",
    limits: Sequence[str] = (),
    figures: str = "",
    license: str = "unknown",
    tags: Sequence[str] = (),
) -> str:
    """Write the text of a model card, with the metadata that the Hugging Face Hub reads.

    Args:
        config: Of the saved model.
        title: The model's name, a line.
        verdict: What it was found to be worth, in a sentence or two; empty for "Not stated".
        limits: What it cannot do, a sentence each.
        figures: What was measured, as Markdown: each figure with its n, its interval and the command.
        license: The Hub's word for the licence of the weights, such as `"cc-by-4.0"`; training data may bind it.
        tags: More words to be found by.

    Returns:
        Markdown with YAML before it.
    """
    named = sorted({*TAGS, *tags})
    rule = f"from a probability of {config.threshold:.3g} on" if config.threshold is not None else "where more probable"
    positive = f"; {config.positive} is called {rule}" if config.positive else ""
    lines = [
        "---",
        "library_name: covid_fastai",
        f"license: {json.dumps(license)}",  # JSON is YAML, whatever the text holds
        "pipeline_tag: image-classification",
        f"tags: {json.dumps(named)}",
        "---",
        "",
        f"# {_line(title)}",
        "",
        f"{RESEARCH_USE} No output of this model is a statement about a person's health.",
        "",
        f"- **What it does**: gives a frontal chest radiograph a probability of each class: "
        f"{', '.join(_line(name) for name in config.classes)}{_line(positive)}.",
        f"- **What it is**: {config.arch} on one grey channel, {config.image_size} x {config.image_size} pixels, "
        f"temperature {config.temperature:.3g}; first weights: {_line(config.weights.name)}.",
        f"- **Files**: `{WEIGHTS_FILE}` (plain tensors), `config.json`"
        + (f", `{ONNX_FILE}` (the same model; pixels in, probabilities and maps out)." if config.onnx else "."),
        f"- **Fingerprint**: `{config.fingerprint[:16]}`, saved by covid_fastai {_line(config.covid_fastai)}.",
        "",
        "## Verdict",
        "",
        _line(verdict) or NOT_STATED,
        "",
        "## Limits",
        "",
        *([f"- {_line(limit)}" for limit in limits] or [NOT_STATED]),
        "",
    ]
    if figures:
        lines += ["## Figures", "", figures.strip(), ""]
    lines += ["## Use", "", "```python", "from covid_fastai.model.predictor import Predictor", ""]
    lines += ['table = Predictor("this folder").predict(["a.png", "b.jpeg"])', "```", ""]
    return "\n".join(lines)


def read_card(folder: str | Path) -> Card:
    """Read what belongs beside the answers from the card of a saved model.

    Args:
        folder: The saved model; it need not have a card.

    Returns:
        The sections `## Verdict` and `## Limits` as plain text; a part that is not there is empty.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        return Card()
    with open(path, "rb") as file:
        text = file.read(LARGEST_CARD).decode("utf-8", "replace")
    verdict = _section(text, "Verdict")
    limits = _section(text, "Limits")
    items = re.split(r"^\s*[-*]\s+", limits, flags=re.MULTILINE)
    return Card(_plain(verdict), tuple(plain for item in items if (plain := _plain(item))))


def _section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}[ \t]*\r?\n(.*?)(?=^#{{1,2}} |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found.group(1).strip() if found else ""


def _plain(text: str) -> str:
    text = " ".join(text.replace("**", "").replace("`", "").split())
    return "" if text == NOT_STATED else text[:LONGEST]


def _line(text: str) -> str:
    return " ".join(str(text).split())
