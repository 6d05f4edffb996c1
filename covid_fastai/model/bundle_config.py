"""What a saved model says of itself in `config.json`, checked field by field, without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from covid_fastai.errors import ModelFormatError, UsageError

__all__ = [
    "BundleConfig",
    "CONFIG_FILE",
    "FORMAT",
    "ONNX_FILE",
    "ONNX_INPUT",
    "ONNX_OUTPUTS",
    "Sha256",
    "WEIGHTS_FILE",
    "check_golden",
    "describe_faults",
    "golden_image",
    "golden_sha256",
    "no_model",
    "read_bytes",
    "read_config",
    "read_verified",
    "seal_config",
]

FORMAT = 2  # raised whenever a reader of the old number would read the new files wrongly
WEIGHTS_FILE, CONFIG_FILE, ONNX_FILE = "model.safetensors", "config.json", "model.onnx"
ONNX_INPUT, ONNX_OUTPUTS = "images", ("probabilities", "logits", "maps")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip; a bare pickle
GOLDEN_TOLERANCE = 1e-3  # share of a logit; another CPU or version moves it by some 1e-6, a wrong mean by 1e-2
LARGEST_CONFIG = 1 << 20  # bytes; a thousand classes take a tenth of that
LARGEST_WEIGHTS = 2 << 30  # bytes; ResNet-50 has 90 MiB

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(max_length=2000)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Logit = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Mean = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Std = Annotated[float, Field(ge=0.01, le=10, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Origin(_Strict):
    """Where the first weights came from: the facts of `covid_fastai.model.weights.Weights`."""

    name: Name
    mean: Mean
    std: Std
    origin: Text
    sha256: Sha256 | Literal[""]
    arch: Name


class _Golden(_Strict):
    """One picture that the code draws, and what the model answered to it when it was saved."""

    image_sha256: Sha256
    logits: list[Logit] = Field(min_length=2, max_length=1000)  # a sure model's probabilities hardly move, these do
    probabilities: list[Probability] = Field(min_length=2, max_length=1000)


class _Onnx(_Strict):
    """The same model as `model.onnx`: what it takes and gives, for readers in any language."""

    sha256: Sha256
    opset: Annotated[int, Field(ge=1, le=1000)]
    input: Literal["images"]  # uint8 (n, 1, image_size, image_size), grey values 0 to 255
    outputs: list[Literal["probabilities", "logits", "maps"]] = Field(min_length=3, max_length=3)


class BundleConfig(_Strict):
    """Hold what `config.json` says; unknown fields and values beyond what makes sense are refused.

    Attributes:
        format: The layout's number.
        covid_fastai: The version that wrote it.
        arch: The architecture's name.
        head: The layers of the head, in order.
        n_in: Channels of the input, one.
        classes: In the order of the model's outputs.
        positive: The class that sensitivity is about, if there is one.
        task: The task's name.
        image_size: Side of the square input, pixels.
        resize: How an image is brought to it.
        mean: Subtracted from grey values on the scale 0 to 1.
        std: What they are divided by after that.
        augmentation: A name in `AUGMENTATIONS`, for training on and for test-time augmentation.
        batch_size: Images in a training step.
        threshold: From which probability of `positive` on an image of two classes is called that; None for the more
            probable class.
        temperature: What the logits were divided by after training (Guo et al., ICML 2017). The division is in the
            weights and in `model.onnx`, so that no reader can forget it; 1 for none.
        training_manifest: The sha256 of the manifest of the images that it was trained on; empty where there is none.
        weights: Where the first weights came from.
        sha256: Of `model.safetensors`.
        onnx: The facts about `model.onnx`; None where it was saved without.
        versions: Of python, torch, torchvision, fastai and onnxscript, when it was saved.
        golden: The self-test.
        fingerprint: The sha256 of all the other fields, so that an edit does not go unseen.
    """

    format: Literal[2]
    covid_fastai: Name
    # guard: arch_name
    arch: Annotated[str, Field(max_length=100, pattern=r"^(timm/)?[A-Za-z0-9_.\-]+$")]  # then build_learner's own list
    head: list[Name] = Field(max_length=20)
    n_in: Literal[1]
    classes: list[Name] = Field(min_length=2, max_length=1000)
    positive: Name | None
    task: Text
    image_size: Annotated[int, Field(ge=32, le=1024)]
    resize: Literal["squash-bilinear-antialias"]
    mean: Mean
    std: Std
    augmentation: Annotated[str, Field(max_length=30, pattern=r"^[a-z0-9\-]+$")]  # then the list of AUGMENTATIONS
    batch_size: Annotated[int, Field(ge=2, le=65536)]
    threshold: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None
    temperature: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]
    training_manifest: Sha256 | Literal[""]
    weights: _Origin
    sha256: Sha256
    onnx: _Onnx | None
    versions: dict[Name, Name] = Field(max_length=20)
    golden: _Golden
    fingerprint: Sha256

    @model_validator(mode="after")
    def _belong_together(self) -> BundleConfig:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive={self.positive!r} is no class")
        if self.threshold is not None and (self.positive is None or len(self.classes) != 2):
            raise ValueError("a threshold needs two classes, and one of them to be positive")
        if not len(self.golden.probabilities) == len(self.golden.logits) == len(self.classes):  # guard: classes_match
            raise ValueError("golden and classes differ in number")
        if (self.weights.mean, self.weights.std, self.weights.arch) != (self.mean, self.std, self.arch):
            raise ValueError("mean, std or arch differ from those of weights")
        return self


def golden_image(image_size: int) -> np.ndarray:
    """Draw the picture of the self-test: a slope of greys with a bright ellipse, the same on every machine.

    Args:
        image_size: Side of the square, pixels.

    Returns:
        uint8 array `(image_size, image_size)`, made in whole numbers alone.
    """
    y, x = np.mgrid[:image_size, :image_size].astype(np.int64)
    grey = (160 * x + 60 * y) // (image_size - 1)
    ellipse = (3 * x - image_size) ** 2 + (2 * y - image_size) ** 2 < (image_size // 2) ** 2
    return np.where(ellipse, 255 - grey // 4, grey).astype(np.uint8)


def golden_sha256(image_size: int) -> str:
    """Return the sha256 of the picture's pixels."""
    return hashlib.sha256(golden_image(image_size).tobytes()).hexdigest()


def check_golden(config: BundleConfig, found: Mapping[str, Sequence[float]], path: Path) -> None:
    """Compare the answer to the picture of the self-test with the one that the model gave when it was saved.

    Args:
        config: Of the model.
        found: `logits` and `probabilities`, one a class.
        path: What has answered, for the message.

    Raises:
        ModelFormatError: The answer is another, or the picture is.
    """
    if golden_sha256(config.image_size) != config.golden.image_sha256:
        raise no_model(path, "the picture of its self-test is not the one that this version draws")
    for name in ("logits", "probabilities"):
        pairs = list(zip(found[name], getattr(config.golden, name), strict=True))
        if not all(abs(a - b) <= GOLDEN_TOLERANCE * max(1, abs(b)) for a, b in pairs):  # guard: golden
            raise no_model(
                path,
                f"its self-test gives {name} {[round(a, 4) for a, _ in pairs]}, not {[round(b, 4) for _, b in pairs]}",
                f"It was saved with {config.versions}; try those versions, or train again.",
            )


def seal_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Add the fingerprint to the fields of a config, after making sure that `read_config` will take them.

    Raises:
        UsageError: A field is missing or not allowed; the message names it.
    """
    sealed = {**fields, "fingerprint": _fingerprint(fields)}
    try:
        BundleConfig.model_validate(sealed)
    except ValidationError as error:
        raise UsageError(
            f"This model cannot be saved: {describe_faults(error)}.", hint="Build its loaders anew."
        ) from None
    return sealed


def _fingerprint(config: dict[str, Any]) -> str:
    """Return the sha256 of all fields but `fingerprint`, however the JSON is spaced and ordered."""
    fields = {key: value for key, value in config.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def no_model(path: Path, reason: str, hint: str = "Copy the folder again, or save the model anew.") -> ModelFormatError:
    """Make the error that says why a file is no model."""
    return ModelFormatError(f"{path} is no model that can be used: {reason}.", hint=hint)


def read_bytes(path: Path, largest: int) -> bytes:
    """Return the bytes of a regular file, which may be `largest` at most.

    Raises:
        ModelFormatError: It is not there, no regular file, larger, or cannot be read.
    """
    if not path.is_file():  # a folder, a FIFO, which would wait for ever, or nothing; guard: irregular
        # guard: pickle_named
        beside = sorted(other.name for other in path.parent.glob("*.pkl")) if path.parent.is_dir() else []
        reason = f"{', '.join(beside)} is a pickle, which is never loaded" if beside else "there is no such file"
        raise no_model(path, reason, "Name a folder that save_model has written.")
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise no_model(path, str(error.strerror), "Check its permissions.") from error
    if len(content) > largest:
        raise no_model(path, f"it is larger than {largest >> 20} MiB")
    return content


def read_verified(path: Path, sha256: str) -> bytes:
    """Return the bytes of a file of a saved model, once they are known to be the ones that were saved.

    Args:
        path: The file.
        sha256: What config.json says of it.

    Raises:
        ModelFormatError: It is missing, a pickle, which is never opened, or not the file that was saved.
    """
    content = read_bytes(path, LARGEST_WEIGHTS)
    if content.startswith(PICKLE_MAGIC):  # guard: pickle_magic
        raise no_model(path, "it is a pickle, which may run any code and is never loaded")
    if hashlib.sha256(content).hexdigest() != sha256:  # guard: verified
        raise no_model(path, "its sha256 is not the one in config.json, so it was damaged or exchanged")
    return content


def read_config(path: Path) -> BundleConfig:
    """Read and check a `config.json`.

    Raises:
        ModelFormatError: It is missing, no JSON, of a newer format, or has a field that is not allowed or was changed.
    """
    try:
        raw = json.loads(read_bytes(path, LARGEST_CONFIG).decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # guard: no_json
        raise no_model(path, f"it is not JSON ({error})") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int) or isinstance(raw["format"], bool):
        raise no_model(path, "it has no format number")
    if raw["format"] > FORMAT:  # guard: newer_format
        raise ModelFormatError(
            f"{path} has format {raw['format']} and needs a newer covid_fastai; this one reads format {FORMAT}.",
            hint="pip install --upgrade covid_fastai",
        )
    if raw["format"] < FORMAT:
        raise no_model(
            path, f"it has format {raw['format']}, this version reads format {FORMAT}", "Train the model again."
        )
    try:
        config = BundleConfig.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:  # guard: config_fields
        raise no_model(path, describe_faults(error)) from None
    if _fingerprint(raw) != config.fingerprint:  # guard: fingerprint
        raise no_model(path, "a field was changed after it was saved, since its fingerprint is another")
    return config


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def describe_faults(error: ValidationError) -> str:
    """Say which fields pydantic refuses, and why, in 500 characters at most."""
    faults = [f"{'.'.join(map(str, fault['loc'])) or 'its fields'}: {fault['msg']}" for fault in error.errors()]
    return "; ".join(faults[:5])[:500]
