"""Save and load a model: weights as safetensors, the model as ONNX, and a JSON configuration; no pickle."""

from __future__ import annotations

import copy
import glob
import hashlib
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from fastai.learner import Learner
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from covid_fastai.data.dataloaders import OWN, empty_dataloaders
from covid_fastai.data.hardware import resolve_device
from covid_fastai.data.phantom import are_synthetic
from covid_fastai.data.regions import region_version
from covid_fastai.errors import DivergenceError, ModelFormatError, ResourceError, UsageError
from covid_fastai.files import (
    REPLACED_SUFFIX,
    atomic_write,
    make_folder,
    make_unfinished_folder,
    restore_folder,
    unfinished_prefix,
    write_json,
)
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    FORMAT,
    ONNX_FILE,
    ONNX_INPUT,
    ONNX_OUTPUTS,
    WEIGHTS_FILE,
    BundleConfig,
    check_golden,
    check_region,
    golden_image,
    golden_sha256,
    read_config,
    read_verified,
    require_weights,
    seal_config,
    unusable_model,
)
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE, Findings, read_findings
from covid_fastai.model.hub import find_model
from covid_fastai.model.learner import (
    body_and_head,
    body_features,
    build_learner,
    has_linear_head,
    linear_head,
    unwrapped,
)
from covid_fastai.model.learner_facts import facts_of, require_facts
from covid_fastai.model.norms import plain_norms
from covid_fastai.model.onnx_export import OPSET, export_onnx
from covid_fastai.model.session import ModelSession, check_graph, read_onnx
from covid_fastai.model.weights import Weights, check_arch, empty_body
from covid_fastai.options import Device, OpenFraction, SavedTemperature, checked

__all__ = ["load_model", "save_model"]  # guard: no_pickle, no_archive, telemetry


@checked
def save_model(
    learn: Learner,
    folder: str | Path,
    *,
    threshold: OpenFraction | None = None,
    temperature: SavedTemperature = 1.0,
    training_manifest: str | Path | None = None,
    onnx: bool = True,
) -> Path:
    """Save a trained model as `model.safetensors`, `model.onnx` and `config.json`, all or none.

    The files are written to a temporary folder next to the final one, which is then renamed; an existing model remains
    until the new one is complete. Only one process at a time may save to the same folder. `Predictor` runs the ONNX
    file without torch; before anything is written, its outputs are compared with those of the model.

    If all training images are synthetic, `findings.json` is written, too, so that every answer of the model says so.

    The threshold, temperature and manifest of a model from `load_model` are kept if its weights have not changed.

    Args:
        learn: A learner of `build_learner` or `load_model`.
        folder: The folder to create; an existing folder must be empty or contain a saved model only.
        threshold: The probability of the positive class at or above which `Predictor` predicts it, for two classes;
            above 0 and below 1. Choose it on other images than those that evaluate it. None for the more probable
            class.
        temperature: The divisor of the logits for calibration (Guo et al., ICML 2017), 0.01 to 100. It is applied to
            the last layer of the saved model, so that every reader gives calibrated probabilities; the learner itself
            is not changed.
        training_manifest: The manifest of the training images; its sha256 is saved.
        onnx: Whether to write `model.onnx`. It takes as much disk space as the weights, and some seconds for other
            architectures than ResNets; without it, the model cannot be used by `Predictor`.

    Returns:
        The folder.

    Raises:
        DivergenceError: A weight is NaN or infinite.
        ResourceError: The folder contains other files, or cannot be written to.
        UsageError: The learner was not made by this package, a value is not allowed, or its architecture cannot be
            exported to ONNX.

    Examples:
        >>> folder = save_model(learn, "model", onnx=False)
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'findings.json', 'model.safetensors']
    """
    folder = Path(folder)
    facts, _, data = require_facts(learn)
    model = copy.deepcopy(unwrapped(learn.model)).float().cpu()
    if not has_linear_head(model):
        raise UsageError(
            "Only a model with this package's head is saved without pickle, and this one has "
            f"{', '.join(_layers(model))}.",
            hint="Build it with build_learner, or with vision_learner(dls, resnet18, n_in=1, "
            "custom_head=linear_head(512, classes=2)) and linear_head from covid_fastai.model.learner.",
        )
    empty = _empty_model(facts.arch, image_size=data.image_size, classes=len(data.classes))
    plain_norms(model, empty)  # guard: plain_norms
    nonfinite = _first_nonfinite(model.state_dict())  # guard: save_nan
    if nonfinite:
        raise DivergenceError(
            f"The model cannot be saved: its weight {nonfinite} is NaN or infinite.",
            hint="Train again with a lower learning_rate.",
        )
    restore_folder(folder)
    _check_target(folder)
    fields = _calibration_fields(learn, model, threshold=threshold, temperature=temperature, manifest=training_manifest)
    _divide_logits(model, temperature)
    contents = {WEIGHTS_FILE: _serialise_weights(model)}
    fields |= {**_describe(learn, model), "sha256": _sha256(contents[WEIGHTS_FILE]), "onnx": None}
    seal_config(fields)  # raises for a wrong field before the export, which takes longer
    if onnx:
        contents[ONNX_FILE] = _export_onnx_checked(model, fields, folder / ONNX_FILE)
    temporary = _make_temporary_folder(folder)
    try:
        for name, content in contents.items():
            with atomic_write(temporary / name, mode="wb") as file:
                file.write(content)
        config = seal_config(fields)
        write_json(temporary / CONFIG_FILE, config)
        if _is_of_drawings(learn):
            findings = Findings(fingerprint=config["fingerprint"], synthetic=True)
            write_json(temporary / FINDINGS_FILE, findings.model_dump())
        _replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@checked
def load_model(folder: str | Path, *, revision: str | None = None, device: Device | torch.device = "auto") -> Learner:
    """Load a model that `save_model` wrote, and verify that its outputs are the same as when it was saved.

    No code from the folder is executed: the weights are plain tensors, and each field of the JSON is checked. The ONNX
    file is not run, but its sha256 is verified and its graph is checked.

    Args:
        folder: A folder with `model.safetensors`, `config.json`, and `model.onnx` if it was saved; a run; or, if there
            is no such folder, `"user/model"` on the Hugging Face Hub.
        revision: The commit, tag or branch of a model on the Hub.
        device: As in `build_dataloaders`.

    Returns:
        A fastai `Learner` whose data loaders have no images. `predict(learn, cohort)`, `learn.dls.test_dl(rows)` and
        `learn.predict(path)` work; set `learn.dls` to continue training. `learn.facts.bundle` has the fields of
        `config.json`, such as `threshold`.

    Raises:
        ModelFormatError: A file is missing, damaged, changed or of a newer version, or is not a model of this package;
            the message names the file and the reason.
        UnavailableError: The device does not exist, the architecture needs timm, which is not installed, or the Hub
            refuses access or does not answer.

    Examples:
        >>> learn = load_model(run / "model", device="cpu")
        >>> list(learn.dls.vocab)
        ['Normal', 'COVID-19']
    """
    folder = find_model(folder, revision=revision)
    config = read_config(folder / CONFIG_FILE)
    require_weights(folder)
    check_region(config, folder / CONFIG_FILE)
    state = _read_state(folder / WEIGHTS_FILE, config.sha256)
    if config.onnx is not None:
        read_onnx(folder / ONNX_FILE, config)
    _check_tensors(config, state, folder)  # before the model takes memory
    learn = _build(config, folder / CONFIG_FILE, device=device)
    learn.model.load_state_dict(state, strict=True)
    check_golden(config, _self_test(learn.model, config.image_size, mean=config.mean, std=config.std), folder)
    facts = facts_of(learn)
    facts.bundle, facts.synthetic = config, read_findings(folder, config).synthetic
    return learn


# writing


def _is_of_drawings(learn: Learner) -> bool:
    """Return whether all training images of a learner are synthetic, which every answer of its model says."""
    cohort = learn.dls.facts.cohort
    paths = [] if cohort is None else cohort.loc[cohort["split"] == "train", "path"]
    return are_synthetic(paths) if len(paths) else facts_of(learn).synthetic  # `load_model` has no images


def _calibration_fields(
    learn: Learner, model: nn.Module, *, threshold: float | None, temperature: float, manifest: str | Path | None
) -> dict[str, Any]:
    """Return threshold, temperature and manifest; those of the loaded model count only if its weights are unchanged."""
    loaded = facts_of(learn).bundle
    if loaded is not None and loaded.sha256 != _sha256(_serialise_weights(model)):
        loaded = None
    digest = "" if loaded is None else loaded.training_manifest
    if manifest is not None:
        try:
            digest = _sha256(Path(manifest).read_bytes())
        except OSError as error:
            raise UsageError(
                f"training_manifest={str(manifest)!r} cannot be read: {error.strerror}.", hint="Name a readable file."
            ) from error
    if threshold is None and loaded is not None and temperature == 1:  # another temperature needs another threshold
        threshold = loaded.threshold
    previous = 1.0 if loaded is None else loaded.temperature  # already in the loaded weights, so the two multiply
    return {"threshold": threshold, "temperature": previous * temperature, "training_manifest": digest}


@torch.no_grad()
def _divide_logits(model: nn.Module, temperature: float) -> None:
    """Divide the weights and bias of the last layer in place; the class activation maps scale with the logits."""
    last = cast(nn.Linear, body_and_head(model)[1][-1])
    last.weight.div_(temperature)
    last.bias.div_(temperature)


def _serialise_weights(model: nn.Module) -> bytes:
    """Return the weights as the bytes of a safetensors file."""
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    return save_safetensors(state, metadata={"format": "pt"})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _export_onnx_checked(model: nn.Module, fields: dict[str, Any], path: Path) -> bytes:
    """Export the model to ONNX, add its facts to `fields`, and check that its outputs are those of the model."""
    content = export_onnx(model, **{name: fields[name] for name in ("classes", "image_size", "mean", "std", "region")})
    fields["onnx"] = {"sha256": _sha256(content), "opset": OPSET, "input": ONNX_INPUT, "outputs": list(ONNX_OUTPUTS)}
    try:
        config = BundleConfig.model_validate(seal_config(fields))
        ModelSession(content, check_graph(content, config, path), config, path, threads=None)
    except ModelFormatError as error:
        raise UsageError(
            f"The exported ONNX model cannot be used in place of the model: {error.message}",
            hint="Use another architecture, other versions of torch and onnxruntime, or onnx=False.",
        ) from error
    return content


def _describe(learn: Learner, model: nn.Module) -> dict[str, Any]:
    """Return the fields of `config.json` about the learner, its weights and its data, with the self-test."""
    facts, weights, data = require_facts(learn)
    origin = (
        Path(weights.origin).name if weights.sha256 else weights.origin
    )  # without the path, which may contain a name
    return {
        "format": FORMAT,
        "covid_fastai": _version("covid_fastai"),
        "arch": facts.arch,
        "head": _layers(model),
        "n_in": 1,
        "classes": list(data.classes),
        "positive": data.cohort.facts.positive,
        "task": data.cohort.facts.task,
        **{name: getattr(data, name) for name in ("image_size", "resize", "region")},
        "segmentation": region_version(data.region),
        **{name: getattr(data, name) for name in ("mean", "std", "augmentation", "batch_size")},
        "weights": {**weights.to_dict(), "origin": origin},
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "torchvision", "fastai", "onnxscript")},
        },
        "golden": {
            "image_sha256": golden_sha256(data.image_size),
            **_self_test(model, data.image_size, mean=data.mean, std=data.std),
        },
    }


def _empty_model(arch: str, *, image_size: int, classes: int) -> nn.Module:
    """Return a model as `build_learner` makes it, whose body has no values."""
    head = linear_head(*body_features(arch, image_size=image_size), classes=classes)
    return nn.Sequential(empty_body(arch), head)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # run from a source tree


def _layers(model: nn.Module) -> list[str]:
    """Return the types of the head's layers, in order."""
    return [type(layer).__name__ for layer in body_and_head(model)[1]]


def _check_target(folder: Path) -> None:
    if not folder.exists():
        return
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    others = [name for name in others if name not in (WEIGHTS_FILE, CONFIG_FILE, ONNX_FILE, CARD_FILE, FINDINGS_FILE)]
    if others:
        raise ResourceError(
            f"{folder} contains other files: {', '.join(others[:3])}.", hint="Name a new folder, or one with a model."
        )


def _make_temporary_folder(folder: Path) -> Path:
    """Make a temporary folder next to the final one, so that it is on the same disk."""
    make_folder(folder.parent)
    try:
        temporary = make_unfinished_folder(folder)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}.", hint="Choose a folder that you may write to."
        ) from error
    return temporary


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Rename the complete folder to its final name, after moving an existing model away (folders cannot be swapped)."""
    try:
        if folder.exists():
            old = temporary.with_name(f"{temporary.name}{REPLACED_SUFFIX}")
            os.rename(folder, old)
            try:
                os.rename(temporary, folder)
            except OSError:
                os.rename(old, folder)  # guard: take_name_back
                raise
        else:
            os.rename(temporary, folder)
    except OSError as error:
        raise ResourceError(
            f"{folder} could not be written: {error.strerror}.",
            hint="Close the programs that use it, or choose another folder.",
        ) from error
    for unfinished in folder.parent.glob(glob.escape(unfinished_prefix(folder)) + "*"):
        shutil.rmtree(unfinished, ignore_errors=True)  # the old model, and the folders of processes that were killed


# reading


def _read_state(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    content = read_verified(path, sha256)
    try:
        return load_safetensors(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise unusable_model(path, f"it is no safetensors file ({error})") from error


def _build(config: BundleConfig, path: Path, *, device: str | torch.device) -> Learner:
    """Build the learner that the config describes, with random weights and without images."""
    names = ("classes", "positive", "task", "image_size", "region", "mean", "std", "augmentation", "batch_size")
    options = {name: getattr(config, name) for name in names}
    if options["augmentation"] == OWN:  # its transforms are not saved: code is never read from a model
        options["augmentation"] = "none"
    device = resolve_device(device)  # outside of the try: a missing device is not an error of the file
    try:
        dls = empty_dataloaders(device=device, **options)
        weights = Weights(**config.weights.model_dump(), state=None)
        learn = build_learner(dls, arch=config.arch, weights=weights)
    except UsageError as error:
        raise _not_buildable(path, error) from error
    if _layers(learn.model) != config.head:
        raise unusable_model(path, f"its head is {config.head}, this version builds {_layers(learn.model)}")
    return learn


def _check_tensors(config: BundleConfig, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Check that every name, shape and data type of the weights is that of the model that the config describes."""
    path = folder / WEIGHTS_FILE
    try:
        check_arch(config.arch)
        expected = _empty_model(config.arch, image_size=config.image_size, classes=len(config.classes)).state_dict()
    except UsageError as error:
        raise _not_buildable(folder / CONFIG_FILE, error) from error
    unmatched = sorted(expected.keys() ^ state.keys())
    if unmatched:  # guard: odd_tensors
        raise unusable_model(path, f"{len(unmatched)} tensors are missing or too many, such as {unmatched[0]!r}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:  # guard: tensor_shape
            read, wanted = ((tuple(t.shape), str(t.dtype)) for t in (state[name], tensor))
            raise unusable_model(path, f"{name!r} is {read} where the model has {wanted}")
    nonfinite = _first_nonfinite(state)  # guard: load_nan
    if nonfinite:
        raise unusable_model(path, f"{nonfinite!r} has NaN or infinite values", "Use a model whose training finished.")


def _not_buildable(path: Path, error: UsageError) -> ModelFormatError:
    hint = "Check that it was saved by this version of covid_fastai."
    return unusable_model(path, error.message.rstrip("."), hint)


def _first_nonfinite(state: dict[str, torch.Tensor]) -> str:
    """Return the name of the first tensor with NaN or infinite values; empty if there is none."""
    return next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), "")


# the self-test


@torch.no_grad()
def _self_test(model: nn.Module, image_size: int, *, mean: float, std: float) -> dict[str, list[float]]:
    """Return the model's outputs for the golden image, computed on the CPU in 32 bits whatever the model's device."""
    model = copy.deepcopy(model).float().cpu().eval()
    batch = (torch.from_numpy(golden_image(image_size)).float() / 255 - mean) / std
    logits = model(batch[None, None])[0].double()  # in 64 bits, so that the softmax adds no rounding error
    return {"logits": logits.tolist(), "probabilities": logits.softmax(dim=0).tolist()}
