"""The saved model: plain tensors, the same as ONNX, and a page of JSON that says how to use them; no pickle."""

from __future__ import annotations

import copy
import glob
import hashlib
import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from fastai.learner import Learner
from fastai.torch_core import get_model
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from covid_fastai.data.dataloaders import empty_dataloaders
from covid_fastai.data.hardware import resolve_device
from covid_fastai.errors import DivergenceError, ModelFormatError, ResourceError, UsageError
from covid_fastai.files import ASIDE, atomic_write, make_folder, restore_folder, unfinished_prefix, write_json
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    FORMAT,
    ONNX_FILE,
    ONNX_INPUT,
    ONNX_OUTPUTS,
    WEIGHTS_FILE,
    BundleConfig,
    check_golden,
    golden_image,
    golden_sha256,
    no_model,
    read_config,
    read_verified,
    seal_config,
)
from covid_fastai.model.card import CARD_FILE, FINDINGS_FILE
from covid_fastai.model.hub import find_model
from covid_fastai.model.learner import body_and_head, build_learner
from covid_fastai.model.learner_facts import facts_of, require_facts
from covid_fastai.model.onnx_export import OPSET, export_onnx
from covid_fastai.model.predictor import open_session
from covid_fastai.model.weights import Weights
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
    """Write a trained model as `model.safetensors`, `model.onnx` and `config.json`, all or none.

    They are written to a folder beside the final one, which then takes its name; a model that stood there before stays
    until the new one is whole. One process at a time may save to one place. The ONNX file, from which `Predictor`
    answers without torch, is tested to give the model's own answer before anything is written.

    What `load_model` has read of threshold, temperature and manifest is kept while the weights are the same.

    Args:
        learn: A learner of `build_learner` or `load_model`.
        folder: The folder to make; where it exists, it must be empty or hold a saved model only.
        threshold: From which probability of the positive class on `Predictor` calls an image of two classes positive,
            above 0 and below 1; chosen on other images than those that it is judged on. None for the more probable
            class.
        temperature: What the logits are divided by for calibration (Guo et al., ICML 2017), 0.01 to 100. It goes into
            the last layer of what is saved, so that every reader gives calibrated probabilities; the learner stays as
            it is.
        training_manifest: The manifest of the images that it was trained on, of which the sha256 is noted.
        onnx: Write `model.onnx` too. It takes some seconds and as much room as the weights; without it there is no
            `Predictor`.

    Returns:
        The folder.

    Raises:
        DivergenceError: A weight is NaN or infinite.
        ResourceError: The folder holds something else, or cannot be written.
        UsageError: The learner was not made by this package, a value is not allowed, or its architecture cannot be
            written as ONNX.

    Examples:
        >>> folder = save_model(learn, "model", onnx=False)
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.safetensors']
    """
    folder = Path(folder)
    require_facts(learn)
    model = copy.deepcopy(get_model(learn.model)).float().cpu()  # out of its wrapper, when trained on several GPUs
    wild = _not_finite(model.state_dict())  # guard: save_nan
    if wild:
        raise DivergenceError(
            f"The model is not saved: {wild} is NaN or infinite.", hint="Train again with a lower learning_rate."
        )
    restore_folder(folder)
    _check_target(folder)
    fields = _judged(learn, model, threshold=threshold, temperature=temperature, manifest=training_manifest)
    _divide_logits(model, temperature)
    contents = {WEIGHTS_FILE: _tensors(model)}
    fields |= {**_describe(learn, model), "sha256": _sha256(contents[WEIGHTS_FILE]), "onnx": None}
    seal_config(fields)  # a wrong field is found before the export, which takes longer
    if onnx:
        contents[ONNX_FILE] = _onnx(model, fields, folder / ONNX_FILE)
    part = _new_part(folder)
    try:
        for name, content in contents.items():
            with atomic_write(part / name, mode="wb") as file:
                file.write(content)
        write_json(part / CONFIG_FILE, seal_config(fields))
        _take_name(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


@checked
def load_model(folder: str | Path, *, revision: str | None = None, device: Device | torch.device = "auto") -> Learner:
    """Read a model that `save_model` wrote, and test that it answers as it did then.

    Nothing in the folder is executed: the weights are plain tensors, the JSON is checked field by field. The ONNX
    file is not run, but has to be the one that was saved.

    Args:
        folder: With `model.safetensors`, `config.json`, and `model.onnx` where it was saved with it; or a run; or
            `"user/model"` on the Hugging Face Hub, where there is no such folder.
        revision: The commit, tag or branch of a model on the Hub.
        device: As in `build_dataloaders`.

    Returns:
        A fastai `Learner` with data loaders that hold no image. `predict(learn, cohort)`,
        `learn.dls.test_dl(rows)` and `learn.predict(path)` work; set `learn.dls` to train on. `learn.bundle` is what
        `config.json` says, such as its `threshold`.

    Raises:
        ModelFormatError: A file is missing, damaged, changed, of a newer version, or no model of this package; the
            message names the file and the reason.
        UnavailableError: The device is not there, the architecture needs timm, which is not installed, or the Hub
            refuses or does not answer.

    Examples:
        >>> learn = load_model(run / "model", device="cpu")
        >>> list(learn.dls.vocab)
        ['Normal', 'COVID-19']
    """
    folder = find_model(folder, revision=revision)
    config = read_config(folder / CONFIG_FILE)
    state = _read_state(folder / WEIGHTS_FILE, config.sha256)
    if config.onnx is not None:
        read_verified(folder / ONNX_FILE, config.onnx.sha256)
    learn = _build(config, folder / CONFIG_FILE, device=device)
    _fill(learn.model, state, folder / WEIGHTS_FILE)
    check_golden(config, _answer(learn.model, config.image_size, mean=config.mean, std=config.std), folder)
    facts_of(learn).bundle = config
    return learn


# writing


def _judged(
    learn: Learner, model: nn.Module, *, threshold: float | None, temperature: float, manifest: str | Path | None
) -> dict[str, Any]:
    """Return what was found out about the weights; of weights that were trained on since, nothing is kept."""
    before = facts_of(learn).bundle
    if before is not None and before.sha256 != _sha256(_tensors(model)):
        before = None
    digest = "" if before is None else before.training_manifest
    if manifest is not None:
        try:
            digest = _sha256(Path(manifest).read_bytes())
        except OSError as error:
            raise UsageError(
                f"training_manifest={str(manifest)!r}: {error.strerror}.", hint="Name a file that can be read."
            ) from error
    if threshold is None and before is not None and temperature == 1:  # of other probabilities it would be another one
        threshold = before.threshold
    so_far = 1.0 if before is None else before.temperature
    return {"threshold": threshold, "temperature": so_far * temperature, "training_manifest": digest}


@torch.no_grad()
def _divide_logits(model: nn.Module, temperature: float) -> None:
    """Divide the last layer, in place; the head is linear, so its maps go with its logits."""
    last = cast(nn.Linear, body_and_head(model)[1][-1])
    last.weight.div_(temperature)
    last.bias.div_(temperature)


def _tensors(model: nn.Module) -> bytes:
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    return save_safetensors(state, metadata={"format": "pt"})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _onnx(model: nn.Module, fields: dict[str, Any], path: Path) -> bytes:
    """Write the ONNX file, note its facts in `fields`, and make sure that it answers as the model does."""
    content = export_onnx(model, **{name: fields[name] for name in ("classes", "image_size", "mean", "std")})
    fields["onnx"] = {"sha256": _sha256(content), "opset": OPSET, "input": ONNX_INPUT, "outputs": list(ONNX_OUTPUTS)}
    try:
        open_session(content, BundleConfig.model_validate(seal_config(fields)), path)
    except ModelFormatError as error:
        raise UsageError(
            f"The ONNX file of this model does not give the model's own answer: {error.message}",
            hint="Use another architecture, other versions of torch and onnxruntime, or onnx=False.",
        ) from error
    return content


def _describe(learn: Learner, model: nn.Module) -> dict[str, Any]:
    facts, weights, data = require_facts(learn)
    origin = Path(weights.origin).name if weights.sha256 else weights.origin  # a file's folder may name its owner
    return {
        "format": FORMAT,
        "covid_fastai": _version("covid_fastai"),
        "arch": facts.arch,
        "head": _layers(model),
        "n_in": 1,
        "classes": list(data.classes),
        "positive": data.cohort.facts.positive,
        "task": data.cohort.facts.task,
        **{name: getattr(data, name) for name in ("image_size", "resize", "mean", "std", "augmentation", "batch_size")},
        "weights": {**weights.to_dict(), "origin": origin},
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "torchvision", "fastai", "onnxscript")},
        },
        "golden": {
            "image_sha256": golden_sha256(data.image_size),
            **_answer(model, data.image_size, mean=data.mean, std=data.std),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # run from a source tree


def _layers(model: nn.Module) -> list[str]:
    """Name the kinds of layers of the head."""
    return [type(layer).__name__ for layer in body_and_head(model)[1]]


def _check_target(folder: Path) -> None:
    if not folder.exists():
        return
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    others = [name for name in others if name not in (WEIGHTS_FILE, CONFIG_FILE, ONNX_FILE, CARD_FILE, FINDINGS_FILE)]
    if others:
        raise ResourceError(
            f"{folder} already holds something else: {', '.join(others[:3])}.", hint="Name a folder of its own."
        )


def _new_part(folder: Path) -> Path:
    """Make the folder to write in, on the same disk as the final one."""
    make_folder(folder.parent)
    try:
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=unfinished_prefix(folder)))
        part.chmod(0o755)  # mkdtemp makes it 0700, which other users of a shared folder could not enter
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}.", hint="Choose a folder that you may write to."
        ) from error
    return part


def _take_name(part: Path, folder: Path) -> None:
    """Give the finished folder its name; the model that had it steps aside first, since no system swaps folders."""
    try:
        if folder.exists():
            old = part.with_name(f"{part.name}{ASIDE}")
            os.rename(folder, old)
            try:
                os.rename(part, folder)
            except OSError:
                os.rename(old, folder)  # guard: take_name_back
                raise
        else:
            os.rename(part, folder)
    except OSError as error:
        raise ResourceError(
            f"{folder} could not be written: {error.strerror}.", hint="Close what uses it, or choose another folder."
        ) from error
    for left in folder.parent.glob(glob.escape(unfinished_prefix(folder)) + "*"):
        shutil.rmtree(left, ignore_errors=True)  # the old model, and what processes left that were killed


# reading


def _read_state(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    content = read_verified(path, sha256)
    try:
        return load_safetensors(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise no_model(path, f"it is no safetensors file ({error})") from error


def _build(config: BundleConfig, path: Path, *, device: str | torch.device) -> Learner:
    """Build the learner that the config describes, with random weights and without images."""
    names = ("classes", "positive", "task", "image_size", "mean", "std", "augmentation", "batch_size")
    options = {name: getattr(config, name) for name in names}
    device = resolve_device(device)  # first, since a wrong device is no fault of the file
    try:
        dls = empty_dataloaders(device=device, **options)
        weights = Weights(**config.weights.model_dump(), state=None)
        learn = build_learner(dls, arch=config.arch, weights=weights)
    except UsageError as error:
        hint = "Check that it was saved by this version of covid_fastai."
        raise no_model(path, error.message.rstrip("."), hint) from error
    if _layers(learn.model) != config.head:
        raise no_model(path, f"its head is {config.head}, this version builds {_layers(learn.model)}")
    return learn


def _fill(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load the weights; every name, shape and kind of number must be the model's own."""
    own = model.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    if odd:  # guard: odd_tensors
        raise no_model(path, f"{len(odd)} tensors are missing or too many, such as {odd[0]!r}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:  # guard: tensor_shape
            found, wanted = ((tuple(t.shape), str(t.dtype)) for t in (state[name], tensor))
            raise no_model(path, f"{name!r} is {found} where the model has {wanted}")
    wild = _not_finite(state)  # guard: load_nan
    if wild:
        raise no_model(path, f"{wild!r} holds NaN or infinite numbers", "Use a model that was trained to its end.")
    model.load_state_dict(state, strict=True)


def _not_finite(state: dict[str, torch.Tensor]) -> str:
    """Return the name of the first tensor with a number that is none, or nothing."""
    return next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), "")


# the self-test


@torch.no_grad()
def _answer(model: nn.Module, image_size: int, *, mean: float, std: float) -> dict[str, list[float]]:
    """Return the answer to the golden image, computed on the CPU in 32 bits wherever the model lives."""
    model = copy.deepcopy(model).float().cpu().eval()
    batch = (torch.from_numpy(golden_image(image_size)).float() / 255 - mean) / std
    logits = model(batch[None, None])[0].double()
    return {"logits": logits.tolist(), "probabilities": logits.softmax(dim=0).tolist()}
