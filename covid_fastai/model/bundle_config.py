"""The configuration of a saved model, `config.json`: its fields, their checks and the self-test, without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from covid_fastai.data.regions import region_version
from covid_fastai.errors import ModelFormatError, UsageError

__all__ = [
    "BundleConfig",
    "CONFIG_FILE",
    "FORMAT",
    "LARGEST_CONFIG",
    "LARGEST_WEIGHTS",
    "ONNX_FILE",
    "ONNX_INPUT",
    "ONNX_OUTPUTS",
    "Sha256",
    "WEIGHTS_FILE",
    "check_fingerprint",
    "check_golden",
    "check_region",
    "describe_faults",
    "golden_image",
    "golden_sha256",
    "parse_config",
    "read_bytes",
    "read_config",
    "read_verified",
    "require_weights",
    "seal_config",
    "unusable_model",
]

FORMAT = 3  # increased whenever an older version would read the new files wrongly
WEIGHTS_FILE, CONFIG_FILE, ONNX_FILE = "model.safetensors", "config.json", "model.onnx"
ONNX_INPUT, ONNX_OUTPUTS = "images", ("probabilities", "logits", "maps")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip file; a pickle
GOLDEN_TOLERANCE = 1e-3  # relative; another CPU or version changes a logit by about 1e-6, a wrong mean by 1e-2
INT8_TOLERANCE = 0.05  # relative; where a value is rounded the other way, it changes by a whole step of the integers
LARGEST_CONFIG = 1 << 20  # bytes; a thousand classes need a tenth of that
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
    """The origin of the initial weights: the facts of `covid_fastai.model.weights.Weights`."""

    name: Name
    mean: Mean
    std: Std
    origin: Text
    sha256: Sha256 | Literal[""]
    arch: Name


class _Golden(_Strict):
    """The self-test: the hash of an image that the code draws, and the model's outputs for it when it was saved."""

    image_sha256: Sha256
    # logits too, since probabilities near 0 or 1 hardly change when the model does
    logits: list[Logit] = Field(min_length=2, max_length=1000)
    probabilities: list[Probability] = Field(min_length=2, max_length=1000)


class _Quantized(_Strict):
    """How `model.onnx` was rewritten in 8-bit integers, and its own outputs for the image of the self-test."""

    type: Literal["int8"]
    calibration_images: Annotated[int, Field(ge=1)]
    golden: _Golden


class _Onnx(_Strict):
    """The facts about `model.onnx`: its hash, version, input and outputs; None as `quantized` for 32 bits."""

    sha256: Sha256
    opset: Annotated[int, Field(ge=1, le=1000)]
    input: Literal["images"]  # uint8 (n, 1, image_size, image_size), intensities 0 to 255
    outputs: list[Literal["probabilities", "logits", "maps"]] = Field(min_length=3, max_length=3)
    quantized: _Quantized | None = None


class BundleConfig(_Strict):
    """The fields of `config.json`, checked: unknown fields and values out of range are errors.

    Attributes:
        format: The version of the file format.
        covid_fastai: The version of this package that wrote it.
        arch: The architecture's name.
        head: The layers of the head, in order.
        n_in: Number of input channels, 1.
        classes: The classes in the order of the model's outputs.
        positive: The positive class, which sensitivity refers to; None if there is none.
        task: The task's name.
        image_size: Side of the square input, pixels.
        resize: The method that resizes an image to `image_size`.
        region: What the model sees of an image: the whole `"frame"`, or a crop to the `"lungs"`, made as in training.
        segmentation: The version of the lung segmentation that decides the crops; empty for the whole frame.
        mean: Mean of the pixel intensities on the scale 0 to 1, which normalisation subtracts.
        std: Standard deviation of the pixel intensities, by which normalisation divides.
        augmentation: A name in `AUGMENTATIONS`, for further training and for test-time augmentation.
        batch_size: Images per training step.
        threshold: The probability of `positive` at or above which it is predicted, for two classes; None for the more
            probable class.
        temperature: The divisor of the logits after training (Guo et al., ICML 2017); 1 for none. The weights and
            `model.onnx` already contain the division.
        training_manifest: The sha256 of the manifest of the training images; empty if there is none.
        weights: The origin of the initial weights.
        sha256: The sha256 of `model.safetensors`.
        onnx: The facts about `model.onnx`; None if it was not saved.
        versions: The versions of python, torch, torchvision, fastai and onnxscript when the model was saved.
        golden: The self-test.
        fingerprint: The sha256 of all other fields, which detects a changed field.
    """

    format: Literal[3]
    covid_fastai: Name
    # guard: arch_name
    arch: Annotated[
        str, Field(max_length=100, pattern=r"^(timm/)?[A-Za-z0-9_.\-]+$")
    ]  # `build_learner` checks the name
    head: list[Name] = Field(max_length=20)
    n_in: Literal[1]
    classes: list[Name] = Field(min_length=2, max_length=1000)
    positive: Name | None
    task: Text
    image_size: Annotated[int, Field(ge=32, le=1024)]
    resize: Literal["squash-bilinear-antialias"]
    region: Literal["frame", "lungs"]
    segmentation: Annotated[str, Field(max_length=60, pattern=r"^(lungs-[a-z0-9\-]+)?$")]
    mean: Mean
    std: Std
    augmentation: Annotated[str, Field(max_length=30, pattern=r"^[a-z0-9\-]+$")]  # the loaders check the name
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
    def _check_consistency(self) -> BundleConfig:
        """Check the fields that depend on each other."""
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is listed twice")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(f"positive={self.positive!r} is not one of the classes")
        if (self.region == "frame") != (self.segmentation == ""):
            raise ValueError("region and segmentation do not match")
        if self.threshold is not None and (self.positive is None or len(self.classes) != 2):
            raise ValueError("a threshold needs two classes, one of them positive")
        if not len(self.golden.probabilities) == len(self.golden.logits) == len(self.classes):  # guard: classes_match
            raise ValueError("golden and classes differ in number")
        quantized = self.onnx.quantized if self.onnx else None
        if quantized and not len(quantized.golden.probabilities) == len(quantized.golden.logits) == len(self.classes):
            raise ValueError("golden of the 8-bit integers and classes differ in number")
        if (self.weights.mean, self.weights.std, self.weights.arch) != (self.mean, self.std, self.arch):
            raise ValueError("mean, std or arch differ from those of weights")
        return self


def check_region(config: BundleConfig, path: Path) -> None:
    """Raise unless this version makes the crops that the model was trained on.

    Args:
        config: The configuration of the model.
        path: The model's path, for the message.

    Raises:
        ModelFormatError: The lung segmentation has changed since.
    """
    if config.segmentation != region_version(config.region):  # guard: other_segmentation
        raise unusable_model(
            path,
            f"it sees crops of the lung segmentation {config.segmentation}, and this version of covid_fastai has "
            f"{region_version(config.region)}",
            f"Install covid_fastai {config.covid_fastai}, with which it was saved, or train it again.",
        )


def check_fingerprint(config: BundleConfig, fingerprint: str | None, folder: Path) -> None:
    """Raise if a model is not the one that the caller has read before.

    Args:
        config: The configuration of the model that is there now.
        fingerprint: The fingerprint that it had; None if any model is right.
        folder: The folder of the model, for the message.

    Raises:
        ModelFormatError: The fingerprints differ.
    """
    if fingerprint is not None and config.fingerprint != fingerprint:  # guard: exchanged
        raise ModelFormatError(
            f"{folder} has the model {config.fingerprint[:16]}, and {fingerprint[:16]} was read from it before: it was "
            "exchanged while it was in use.",
            hint="Start again, so that all answers are those of one model.",
        )


def golden_image(image_size: int) -> np.ndarray:
    """Draw the image of the self-test: an intensity gradient with a bright ellipse, the same on every machine.

    Args:
        image_size: Side of the square, pixels.

    Returns:
        uint8 array `(image_size, image_size)`, computed with integers only.
    """
    y, x = np.mgrid[:image_size, :image_size].astype(np.int64)
    gradient = (160 * x + 60 * y) // (image_size - 1)  # 0 in the first corner to 220 in the last
    # centred at a third of the width and half of the height
    ellipse = (3 * x - image_size) ** 2 + (2 * y - image_size) ** 2 < (image_size // 2) ** 2
    return np.where(ellipse, 255 - gradient // 4, gradient).astype(np.uint8)


def golden_sha256(image_size: int) -> str:
    """Return the sha256 of the pixels of `golden_image`."""
    return hashlib.sha256(golden_image(image_size).tobytes()).hexdigest()


def check_golden(
    config: BundleConfig, outputs: Mapping[str, Sequence[float]], path: Path, *, of_onnx: bool = False
) -> None:
    """Compare the model's outputs for the golden image with its outputs when it was saved.

    Args:
        config: The configuration of the model.
        outputs: `logits` and `probabilities`, one value per class.
        path: The model's path, for the message.
        of_onnx: Whether `model.onnx` gave the outputs, which in 8-bit integers has outputs of its own.

    Raises:
        ModelFormatError: The outputs differ, or the golden image does.
    """
    golden, tolerance = config.golden, GOLDEN_TOLERANCE
    hint = f"It was saved with {config.versions}; try those versions, or train again."
    if of_onnx and config.onnx is not None and config.onnx.quantized is not None:
        golden, tolerance = config.onnx.quantized.golden, INT8_TOLERANCE
        hint = "This processor computes its 8-bit integers differently: export the model without `quantize`."
    if golden_sha256(config.image_size) != golden.image_sha256:
        raise unusable_model(path, "the image of its self-test is not the one that this version draws")
    for name in ("logits", "probabilities"):
        pairs = list(zip(outputs[name], getattr(golden, name), strict=True))
        # relative for large logits, absolute for values below 1
        if not all(abs(a - b) <= tolerance * max(1, abs(b)) for a, b in pairs):  # guard: golden
            raise unusable_model(
                path,
                f"its self-test gives {name} {[round(a, 4) for a, _ in pairs]}, not {[round(b, 4) for _, b in pairs]}",
                hint,
            )


def seal_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Add the fingerprint to the fields of a config, after checking that `read_config` accepts them.

    Raises:
        UsageError: A field is missing or not allowed; the message names it.
    """
    sealed = {**fields, "fingerprint": _fingerprint(fields)}
    try:
        BundleConfig.model_validate(sealed)
    except ValidationError as error:
        raise UsageError(
            f"This model cannot be saved: {describe_faults(error)}.", hint="Build its loaders again."
        ) from None
    return sealed


def _fingerprint(config: dict[str, Any]) -> str:
    """Return the sha256 of all fields except `fingerprint`, independent of the whitespace and order of the JSON."""
    fields = {key: value for key, value in config.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def unusable_model(
    path: Path, reason: str, hint: str = "Copy the folder again, or save the model again."
) -> ModelFormatError:
    """Return the error for a file that cannot be used as a model, with the reason."""
    return ModelFormatError(f"{path} cannot be used as a model: {reason}.", hint=hint)


def read_bytes(path: Path, largest: int) -> bytes:
    """Return the content of a regular file of at most `largest` bytes.

    Raises:
        ModelFormatError: The file is missing, not a regular file, too large, or cannot be read.
    """
    if not path.is_file():  # missing, a folder, or a FIFO, which would block forever; guard: irregular
        # guard: pickle_named
        pickles = sorted(other.name for other in path.parent.glob("*.pkl")) if path.parent.is_dir() else []
        reason = f"{', '.join(pickles)} is a pickle, which is never loaded" if pickles else "there is no such file"
        hint = "Give the folder of a finished run, or of a model that export or save_model has written."
        raise unusable_model(path, reason, hint)
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise unusable_model(path, str(error.strerror), "Check its permissions.") from error
    if len(content) > largest:
        raise unusable_model(path, f"it is larger than {largest >> 20} MiB")
    return content


def read_verified(path: Path, sha256: str) -> bytes:
    """Return the content of a file of a saved model, after verifying its sha256.

    Args:
        path: The file.
        sha256: Its sha256 according to `config.json`.

    Raises:
        ModelFormatError: The file is missing, is a pickle, which is never loaded, or is not the file that was saved.
    """
    content = read_bytes(path, LARGEST_WEIGHTS)
    if content.startswith(PICKLE_MAGIC):  # guard: pickle_magic
        raise unusable_model(path, "it is a pickle, which may run any code and is never loaded")
    if hashlib.sha256(content).hexdigest() != sha256:  # guard: verified
        raise unusable_model(path, "its sha256 is not the one in config.json, so it was damaged or exchanged")
    return content


def require_weights(folder: Path) -> None:
    """Raise if a saved model has an ONNX file and no weights to train further, as a model of the package.

    Raises:
        ModelFormatError: There are no weights.
    """
    if not (folder / WEIGHTS_FILE).exists() and (folder / ONNX_FILE).is_file():  # guard: onnx_only
        raise ModelFormatError(
            f"{folder.name} comes without {WEIGHTS_FILE}, so it cannot be loaded for training, exported or pushed.",
            hint="It can predict: Predictor, and covid-fastai predict, serve and batch.",
        )


def read_config(path: Path) -> BundleConfig:
    """Read and check a `config.json`.

    Raises:
        ModelFormatError: The file is missing, not JSON or of another format, or a field is not allowed or was changed.
    """
    return parse_config(read_bytes(path, LARGEST_CONFIG), path)


def parse_config(content: bytes, path: Path) -> BundleConfig:
    """Check the content of a `config.json`.

    Args:
        content: The bytes of the file.
        path: The file, for messages.

    Raises:
        ModelFormatError: As in `read_config`.
    """
    try:
        raw = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # guard: no_json
        raise unusable_model(path, f"it is not JSON ({error})") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int) or isinstance(raw["format"], bool):
        raise unusable_model(path, "it has no format number")
    if raw["format"] > FORMAT:  # guard: newer_format
        raise ModelFormatError(
            f"{path} has format {raw['format']} and needs a newer covid_fastai; this one reads format {FORMAT}.",
            hint="Install a newer version of covid_fastai.",
        )
    if raw["format"] < FORMAT:
        raise unusable_model(
            path, f"it has format {raw['format']}, this version reads format {FORMAT}", "Train the model again."
        )
    try:
        config = BundleConfig.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:  # guard: config_fields
        raise unusable_model(path, describe_faults(error)) from None
    if _fingerprint(raw) != config.fingerprint:  # guard: fingerprint
        raise unusable_model(path, "a field was changed after it was saved: the fingerprint differs")
    return config


def _refuse_constant(name: str) -> None:
    """Raise for NaN and infinity, which Python's JSON reader would accept."""
    raise ValueError(f"{name} is not a number that JSON allows")


def describe_faults(error: ValidationError) -> str:
    """Return which fields pydantic rejects, and why, in 500 characters at most."""
    faults = [f"{'.'.join(map(str, fault['loc'])) or 'its fields'}: {fault['msg']}" for fault in error.errors()]
    return "; ".join(faults[:5])[:500]
