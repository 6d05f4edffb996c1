"""The model card of a saved model: its description, its verdict and its limits.

Two files are written next to the model: `README.md` for readers and for the Hugging Face Hub, and `findings.json`, the
verdict and limits that are shown with every prediction. Both contain the same `Findings`; programs read the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from covid_fastai.files import atomic_write, write_json
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    LARGEST_CONFIG,
    ONNX_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    Sha256,
    describe_faults,
    read_bytes,
    unusable_model,
)
from covid_fastai.notices import RESEARCH_USE

__all__ = ["CARD_FILE", "FINDINGS_FILE", "Findings", "build_card", "read_findings", "write_card"]

CARD_FILE = "README.md"  # the name that the Hugging Face Hub shows
FINDINGS_FILE = "findings.json"
LIBRARY = "covid_fastai"
NOT_STATED = "Not stated."
LARGEST_CARD = 1 << 20  # bytes
LONGEST = 1200  # characters of a verdict or limit that is shown with a prediction
MOST_LIMITS = 100
TAGS = ("chest-x-ray", "covid_fastai", "fastai", "onnx", "research-only", "safetensors")


def _line(text: object) -> str:
    """Return a text on one line, so that it cannot add lines to the card."""
    return " ".join(str(text).split())


Sentence = Annotated[str, BeforeValidator(lambda value: _line(value)[:LONGEST] if isinstance(value, str) else value)]


class Findings(BaseModel):
    """The verdict and limits of a model, which are shown with every prediction.

    Attributes:
        fingerprint: The fingerprint of the model.
        verdict: The result of the model's evaluation, in a sentence or two; empty if not stated.
        limits: What the model cannot do, one sentence each; empty if not stated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: Sha256
    verdict: Sentence = ""
    limits: Annotated[tuple[Sentence, ...], Field(max_length=MOST_LIMITS)] = ()


def build_card(
    config: BundleConfig,
    *,
    title: str,
    verdict: str = "",
    limits: Sequence[str] = (),
    metrics: str = "",
    license: str = "unknown",
    tags: Sequence[str] = (),
) -> str:
    """Return the text of a model card, with the metadata that the Hugging Face Hub reads.

    Args:
        config: The configuration of the saved model.
        title: The model's name, one line.
        verdict: The result of its evaluation, in a sentence or two; empty for "Not stated".
        limits: What the model cannot do, one sentence each.
        metrics: The metrics as Markdown, each with its n, its interval and the command.
        license: The Hub's identifier of the weights' licence, such as `"cc-by-4.0"`; the terms of the training data
            may restrict it.
        tags: More tags for the Hub's search.

    Returns:
        Markdown after a block of YAML.
    """
    from huggingface_hub import ModelCardData  # imports an HTTP client, which reading findings does not need

    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        pipeline_tag="image-classification",
        tags=sorted({*TAGS, *tags}),
    )
    if config.threshold is not None:
        rule = f"at a probability of {config.threshold:.3g} or more"
    else:
        rule = "if it is the most probable class"
    positive = f"; {config.positive} is predicted {rule}" if config.positive else ""
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {_line(title)}",
        "",
        f"{RESEARCH_USE} No output of this model is a statement about a person's health.",
        "",
        f"- **Purpose**: predicts the probability of each class for a frontal chest radiograph: "
        f"{', '.join(_line(name) for name in config.classes)}{_line(positive)}.",
        f"- **Model**: {config.arch} on one grey channel, {config.image_size} x {config.image_size} pixels, "
        f"temperature {config.temperature:.3g}; initial weights: {_line(config.weights.name)}.",
        f"- **Files**: `{WEIGHTS_FILE}` (plain tensors), `{CONFIG_FILE}`"
        + (
            f", `{ONNX_FILE}` (the same model; input: pixels, outputs: probabilities and class activation maps)."
            if config.onnx
            else "."
        ),
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
    if metrics:
        lines += ["## Metrics", "", metrics.strip(), ""]
    lines += ["## Use", "", "```python", "from covid_fastai.model.predictor import Predictor", ""]
    lines += ['table = Predictor("this folder").predict(["a.png", "b.jpeg"])', "```", ""]
    return "\n".join(lines)


def write_card(
    folder: str | Path,
    config: BundleConfig,
    *,
    title: str,
    verdict: str = "",
    limits: Sequence[str] = (),
    metrics: str = "",
) -> Path:
    """Write the model card and the findings of a saved model.

    Args:
        folder: The saved model.
        config: Its `config.json`.
        title: As in `build_card`.
        verdict: As in `build_card`.
        limits: As in `build_card`.
        metrics: As in `build_card`.

    Returns:
        The path of the card, `README.md`; `findings.json` is in the same folder.

    Raises:
        ResourceError: A file cannot be written.
    """
    findings = Findings(fingerprint=config.fingerprint, verdict=verdict, limits=tuple(limits)[:MOST_LIMITS])
    text = build_card(config, title=title, verdict=findings.verdict, limits=findings.limits, metrics=metrics)
    write_json(Path(folder) / FINDINGS_FILE, findings.model_dump())
    with atomic_write(Path(folder) / CARD_FILE) as file:
        file.write(text)
    return Path(folder) / CARD_FILE


def read_findings(folder: str | Path, config: BundleConfig) -> Findings:
    """Read the verdict and limits of a saved model.

    Args:
        folder: The saved model.
        config: Its `config.json`.

    Returns:
        The findings; empty if the model has no `findings.json`.

    Raises:
        ModelFormatError: The file is damaged, or belongs to another model.
    """
    path = Path(folder) / FINDINGS_FILE
    if not path.exists():
        return Findings(fingerprint=config.fingerprint)
    try:
        findings = Findings.model_validate_json(read_bytes(path, LARGEST_CONFIG))
    except ValidationError as error:
        raise unusable_model(path, describe_faults(error)) from None
    if findings.fingerprint != config.fingerprint:  # guard: findings_of
        reason = f"it is about the model {findings.fingerprint[:16]}, and this one is {config.fingerprint[:16]}"
        raise unusable_model(path, reason, "Write the run's documents again, or remove the file.")
    return findings
