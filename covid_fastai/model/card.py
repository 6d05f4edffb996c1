"""The model card of a saved model: its description, its verdict and its limits.

Two files are written next to the model: `README.md` for readers and for the Hugging Face Hub, and `findings.json`, the
verdict and limits that are shown with every prediction. Both contain the same `Findings`; programs read the second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from covid_fastai.data.input_check import SIDE, rank_pixels, shrink_picture
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
from covid_fastai.notices import OF_DRAWINGS, RESEARCH_USE

__all__ = [
    "CARD_FILE",
    "FINDINGS_FILE",
    "Findings",
    "Population",
    "as_inert_markdown",
    "build_card",
    "read_card",
    "read_findings",
    "split_card",
    "write_card",
]

CARD_FILE = "README.md"  # the name that the Hugging Face Hub shows
FINDINGS_FILE = "findings.json"
LIBRARY = "covid_fastai"
NOT_STATED = "Not stated."
NOT_CROPPED = (
    '; the pixels are those of the crop, as `open_region(image, size, "lungs")` makes it: the graph does not crop'
)
LARGEST_CARD = 1 << 20  # bytes
LARGEST_METADATA = 16 << 10  # characters; the cards of this package have 300, and a YAML reader may take long
LONGEST = 1200  # characters of a verdict or limit that is shown with a prediction
MOST_LIMITS = 100
TAGS = ("chest-x-ray", "covid_fastai", "fastai", "onnx", "research-only", "safetensors")


def _line(text: object) -> str:
    """Return a text on one line, so that it cannot add lines to the card."""
    return " ".join(str(text).split())


Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Level = Annotated[str, Field(pattern="^(shown|not shown|failed|)$")]
Sentence = Annotated[str, BeforeValidator(lambda value: _line(value)[:LONGEST] if isinstance(value, str) else value)]


class Population(BaseModel):
    """What recognises images outside of the population that a model was made for.

    It is a linear function of the ranks of the intensities at 16 x 16 pixels, fitted on images of the model's training
    against others. It sees framing and processing as well as bodies: what it withholds is of another population or
    another hospital.

    Attributes:
        weights: One number per pixel, row by row.
        limit: The value above which an image is outside.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Annotated[tuple[Number, ...], Field(min_length=SIDE**2, max_length=SIDE**2)]
    limit: Number

    def excludes(self, grey: Image.Image) -> bool:
        """Return whether an opened image is outside of the population."""
        score = rank_pixels(shrink_picture(grey)[None])[0] @ np.array(self.weights)
        return bool(score > self.limit)


class Findings(BaseModel):
    """The verdict and limits of a model, which are shown with every prediction.

    Attributes:
        fingerprint: The fingerprint of the model.
        purpose: The population and the question that the model was made for, in a sentence; empty if not stated.
        headline: What its evaluation shows, in one plain sentence; empty if not stated.
        level: The level of the verdict: `"shown"`, `"not shown"` or `"failed"`; empty if not stated.
        synthetic: Whether all images of its training were synthetic, so that its answers say nothing about radiographs.
        verdict: The result of the model's evaluation, in a sentence or two; empty if not stated.
        limits: What the model cannot do, one sentence each; empty if not stated.
        population: What recognises images outside of its population, whose class is withheld; None if nothing does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: Sha256
    purpose: Sentence = ""
    headline: Sentence = ""
    level: Level = ""
    synthetic: bool = False
    verdict: Sentence = ""
    limits: Annotated[tuple[Sentence, ...], Field(max_length=MOST_LIMITS)] = ()
    population: Population | None = None

    @property
    def short(self) -> str:
        """The verdict in a few words, which stand in a table beside each answer."""
        if self.synthetic:
            return "model of drawings"
        return {"": "not stated", "shown": "disease signal shown"}.get(self.level, "disease signal not shown")

    def columns(self) -> dict[str, str]:
        """Return what stands in every row of a table of answers: `model_verdict`, and `model_purpose` if stated."""
        return {"model_verdict": self.short, **({"model_purpose": self.purpose} if self.purpose else {})}

    def sentences(self) -> list[str]:
        """Return what is said beside the answers of the model."""
        drawings = [OF_DRAWINGS] if self.synthetic else []
        stated = [text for text in (self.headline, self.verdict) if text]
        return [*drawings, *(stated or ["The verdict on this model is not stated."])]


def as_inert_markdown(text: str) -> str:
    """Return Markdown in which names of the data make no link, no image and no HTML: a page could load them.

    The documents of this package have none of their own.

    Args:
        text: A whole document.
    """
    # as entities: a backslash would be undone by another one before it; guard: inert_markdown
    return re.sub(r"\](?=[(\[:])", "&#93;", re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text))


def build_card(
    config: BundleConfig,
    *,
    title: str,
    purpose: str = "",
    headline: str = "",
    verdict: str = "",
    limits: Sequence[str] = (),
    metrics: str = "",
    synthetic: bool = False,
    license: str = "unknown",
    tags: Sequence[str] = (),
) -> str:
    """Return the text of a model card, with the metadata that the Hugging Face Hub reads.

    Args:
        config: The configuration of the saved model.
        title: The model's name, one line.
        purpose: The population and the question that it was made for, in a sentence; empty to state the classes only.
        headline: As in `Findings`.
        verdict: The result of its evaluation, in a sentence or two; empty for "Not stated".
        limits: What the model cannot do, one sentence each.
        metrics: The metrics as Markdown, each with its n, its interval and the command.
        synthetic: As in `Findings`.
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
        tags=sorted({*TAGS, *tags, *(["synthetic"] if synthetic else [])}),
    )
    if config.threshold is not None:
        rule = f"at a probability of {config.threshold:.3g} or more"
    else:
        rule = "if it is the most probable class"
    in_integers = " in 8-bit integers" if config.onnx is not None and config.onnx.quantized is not None else ""
    positive = f"; {config.positive} is predicted {rule}" if config.positive else ""
    lines = [
        f"# {_line(title)}{' (a model of drawings)' if synthetic else ''}",
        "",
        *([f"**{_line(headline)}**", ""] if headline else []),
        *([f"**{OF_DRAWINGS}**", ""] if synthetic else []),
        f"{RESEARCH_USE} No output of this model is a statement about a person's health.",
        "",
        *([f"- **For**: {_line(purpose)}"] if purpose else []),
        f"- **Purpose**: predicts the probability of each class for a frontal chest radiograph: "
        f"{', '.join(_line(name) for name in config.classes)}{_line(positive)}.",
        f"- **Model**: {config.arch} on one grey channel, {config.image_size} x {config.image_size} pixels"
        f"{', cropped to the lungs' if config.region == 'lungs' else ''}, "
        f"temperature {config.temperature:.3g}; initial weights: {_line(config.weights.name)}.",
        f"- **Files**: `{WEIGHTS_FILE}` (plain tensors), `{CONFIG_FILE}`"
        + (
            f", `{ONNX_FILE}` (the same model{in_integers}; input: pixels, outputs: probabilities and class "
            f"activation maps{NOT_CROPPED if config.region == 'lungs' else ''})."
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
    return "\n".join(["---", data.to_yaml(), "---", "", as_inert_markdown("\n".join(lines))])


def write_card(
    folder: str | Path,
    config: BundleConfig,
    *,
    title: str,
    purpose: str = "",
    headline: str = "",
    level: str = "",
    verdict: str = "",
    limits: Sequence[str] = (),
    metrics: str = "",
    synthetic: bool = False,
    population: Population | None = None,
) -> Path:
    """Write the model card and the findings of a saved model.

    Args:
        folder: The saved model.
        config: Its `config.json`.
        title: As in `build_card`.
        purpose: As in `build_card`.
        headline: As in `build_card`.
        level: As in `Findings`.
        verdict: As in `build_card`.
        limits: As in `build_card`.
        metrics: As in `build_card`.
        synthetic: As in `Findings`.
        population: As in `Findings`.

    Returns:
        The path of the card, `README.md`; `findings.json` is in the same folder.

    Raises:
        ResourceError: A file cannot be written.
    """
    findings = Findings(
        fingerprint=config.fingerprint,
        purpose=purpose,
        headline=headline,
        level=level,
        synthetic=synthetic,
        verdict=verdict,
        limits=tuple(limits)[:MOST_LIMITS],
        population=population,
    )
    said = findings.model_dump(exclude={"fingerprint", "level", "population"})
    text = build_card(config, title=title, metrics=metrics, **said)
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


def read_card(path: Path) -> str:
    """Read the text of a model card.

    Raises:
        ModelFormatError: The file is larger than 1 MiB, not a regular file, or not UTF-8.
    """
    try:
        return read_bytes(path, LARGEST_CARD).decode("utf-8")
    except UnicodeDecodeError as error:
        hint = "Save it as UTF-8, or remove it."
        raise unusable_model(path, f"it is not UTF-8 (byte {error.start})", hint) from error


def split_card(text: str) -> tuple[str, str]:
    """Split a model card into its metadata, with the two lines of three hyphens around them, and the rest.

    The lines are read one after the other, so the time grows with the length of the card. Of several empty lines in the
    metadata two remain, since the regular expressions of huggingface_hub may take the square of their number.

    Args:
        text: The card.

    Returns:
        Both parts; empty metadata for a card without them.

    Raises:
        ModelFormatError: The metadata have no end, or more than `LARGEST_METADATA` characters.
    """
    lines = text.lstrip().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[0].rstrip() != "---":
        return "---\n\n---\n", text
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    hint = "Correct the YAML between the two lines with three hyphens, or remove the file."
    if end is None:
        raise unusable_model(Path(CARD_FILE), "its metadata have no end", hint)
    kept, empty = [], 0
    for line in lines[: end + 1]:
        empty = 0 if line.strip() else empty + 1
        kept += [f"{line.rstrip()}\n"] if empty <= 2 else []
    metadata = "".join(kept)
    if len(metadata) > LARGEST_METADATA:  # guard: card_metadata
        raise unusable_model(
            Path(CARD_FILE),
            f"its metadata have {len(metadata):,} characters, and {LARGEST_METADATA:,} are allowed",
            hint,
        )
    return metadata, "\n".join(lines[end + 1 :])
