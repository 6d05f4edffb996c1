"""Where a model's first weights come from: ImageNet, this package, a file, or chance; verified before they are used."""

from __future__ import annotations

import difflib
import logging
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from fastai.vision.learner import TimmBody, create_body
from torch import nn

from covid_fastai.errors import ModelFormatError, OfflineError, UnavailableError, UsageError
from covid_fastai.model.weight_files import (
    TIMEOUT,
    download,
    facts_file,
    read_facts,
    read_safetensors,
    read_torch_file,
)
from covid_fastai.options import Arch, check_option

__all__ = ["ARCHITECTURES", "Weights", "check_arch", "empty_body", "resolve_weights"]

logger = logging.getLogger("covid_fastai")

ARCHITECTURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}  # name -> channels of the last feature maps
TIMM_PREFIX = "timm/"
NAMES = ("auto", "imagenet", "cxr")
PACKAGE_FOLDER = Path(__file__).parent  # holds cxr-resnet18.safetensors, its .json and its manifest
IMAGENET_GREY = (0.449, 0.226)  # torchvision's mean and std, each averaged over the three channels
NEUTRAL_GREY = (0.5, 0.25)  # brings 0..1 to -2..2, where no data say better
RESNET_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # fastai numbers them 0..7


@dataclass(frozen=True)
class Weights:
    """Hold the first weights of a body and the facts about them.

    Attributes:
        name: `"imagenet"`, `"cxr"`, `"file"` or `"random"`.
        state: The body's tensors under the body's names, stem of one channel; None for random weights, and in
            `learn.facts.weights`, once they are in the model.
        mean: What the normalisation subtracts, on the 0..1 scale of a grey pixel.
        std: What the normalisation divides by, on the same scale.
        origin: The file that they were read from, or how they were made.
        sha256: Of that file, 64 hexadecimal digits; empty for random weights.
        arch: The architecture that they belong to.
        assumed: Whether mean and std are assumed, since the file has none beside it.
    """

    name: str
    state: Mapping[str, torch.Tensor] | None = field(repr=False, compare=False)
    mean: float
    std: float
    origin: str
    sha256: str
    arch: str
    assumed: bool = field(default=False, repr=False, compare=False)

    @property
    def pretrained(self) -> bool:
        """Whether the body has been trained before."""
        return self.name != "random"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that a saved model keeps, as plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("state", "assumed")}


def resolve_weights(weights: str | Path | Weights | None, *, arch: str) -> Weights:
    """Find the weights that a model shall begin with, and verify them.

    Args:
        weights: `"auto"`: this package's own for ResNet-18, ImageNet's for any other architecture.
            `"imagenet"`: torchvision's (timm's), from its cache or fetched. `"cxr"`: this package's own.
            A path: a `.safetensors` or `.pth` file, or the folder of a saved model. None: random weights.
            None of them falls back on another.
        arch: A name in `ARCHITECTURES`, or `"timm/<name>"`.

    Returns:
        The weights, their stem summed to one channel where it had three (as fastai does for `n_in=1`).

    Raises:
        UsageError: `arch` or `weights` is not known, or the two do not belong together.
        ModelFormatError: A file is damaged, not what its name says, or not of this architecture.
        OfflineError: They have to be fetched and no network answers; the error says which file to place where.
        UnavailableError: timm is asked for and not installed.
    """
    check_arch(arch)
    if isinstance(weights, Weights):
        if weights.arch != arch:
            raise UsageError(
                f"These weights belong to {weights.arch}, not to {arch}.", hint=f"Use arch={weights.arch!r}."
            )
        return weights
    if weights is None:
        return _random_weights(arch)
    if weights == "cxr" or (weights == "auto" and arch == "resnet18"):
        return _package_weights(arch)
    if weights in ("auto", "imagenet"):
        return _timm_weights(arch) if arch.startswith(TIMM_PREFIX) else _imagenet_weights(arch)
    return _file_weights(Path(weights), arch)


def check_arch(arch: str) -> None:
    """Raise unless `arch` is an architecture that can be built here.

    Raises:
        UsageError: The name is not known.
        UnavailableError: It is a timm name, and timm is not installed.
    """
    check_option("arch", arch, Arch)
    if arch in ARCHITECTURES:
        return
    timm, name = _import_timm(), arch.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UsageError(f"timm has no model {name!r}.", hint=f"Near: {', '.join(near) or 'see timm.list_models()'}.")


def empty_body(arch: str) -> nn.Module:
    """Build the body of `arch` for one grey channel on the meta device: names and shapes without memory or weights."""
    with torch.device("meta"):
        if arch.startswith(TIMM_PREFIX):
            model = _import_timm().create_model(arch.removeprefix(TIMM_PREFIX), num_classes=0, in_chans=1)
            return TimmBody(model, pretrained=False, n_in=1)
        return create_body(getattr(torchvision.models, arch)(), n_in=1, pretrained=False, cut=-2)


def _suggest(word: str, candidates, known) -> str:
    near = difflib.get_close_matches(word, candidates, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."


def _random_weights(arch: str) -> Weights:
    mean, std = NEUTRAL_GREY
    return Weights("random", None, mean, std, "random initialisation", "", arch)


def _package_weights(arch: str) -> Weights:
    """Return this package's own weights, which need no network."""
    if arch != "resnet18":
        raise UsageError(f"The package's own weights are for resnet18, not {arch}.", hint="Use weights='imagenet'.")
    path = PACKAGE_FOLDER / f"cxr-{arch}.safetensors"
    if not path.exists():
        raise ModelFormatError(
            f"{path} is missing: the installation is incomplete.", hint="Reinstall; or use 'imagenet', a file, or None."
        )
    state, sha256 = read_safetensors(path)
    facts = read_facts(path.with_suffix(".json"))
    if facts.get("sha256") != sha256:  # guard: own_hash
        raise ModelFormatError(
            f"{path} is damaged: its sha256 is not that in its .json.", hint="Reinstall the package."
        )
    return Weights("cxr", _fit(state, arch, path), facts["mean"], facts["std"], str(path), sha256, arch)


def _imagenet_weights(arch: str) -> Weights:
    """Return torchvision's weights, whose cached file is verified as a downloaded one is."""
    url = _imagenet_url(arch)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    damage = ""
    if path.exists():
        try:
            return _imagenet_from(path, arch)
        except ModelFormatError as error:
            damage = f" The file in the cache cannot be used: {error.message}"
            logger.warning("%s It is fetched again from %s.", error.message, url)
    download(url, path, what=f"ImageNet weights for {arch}", damage=damage)
    return _imagenet_from(path, arch)


def _imagenet_from(path: Path, arch: str) -> Weights:
    state, sha256 = read_torch_file(path)
    return Weights("imagenet", _fit(state, arch, path), *IMAGENET_GREY, str(path), sha256, arch)


def _imagenet_url(arch: str) -> str:
    """The weights that torchvision (and so fastai) takes when asked for its best: V1 for 18 and 34, V2 for 50."""
    return torchvision.models.get_model_weights(arch).DEFAULT.url


def _file_weights(path: Path, arch: str) -> Weights:
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UsageError(
            f"There are no weights {str(path)!r}.", hint=_suggest(str(path), NAMES, [*NAMES, "a file", "None"])
        )
    if arch.startswith(TIMM_PREFIX):
        return _timm_file(path, arch, name="file")
    readers = {".safetensors": read_safetensors, ".pth": read_torch_file, ".pt": read_torch_file}
    if path.suffix not in readers:
        raise UsageError(f"{path} is no weights file.", hint=f"Its name must end in {', '.join(readers)}.")
    state, sha256 = readers[path.suffix](path)
    facts = read_facts(facts_file(path))
    if facts.get("sha256", sha256) != sha256:
        raise ModelFormatError(f"{path} is damaged: its sha256 is not the one beside it.", hint="Copy it again.")
    if facts.get("arch", arch) != arch:
        raise UsageError(f"{path} holds a {facts['arch']}, not a {arch}.", hint=f"Use arch={facts['arch']!r}.")
    body = _fit(state, arch, path)
    if "mean" not in facts:
        colour = any(tensor.ndim == 4 and tensor.shape[1] == 3 for tensor in _unwrap(state).values())
        mean, std = IMAGENET_GREY if colour else NEUTRAL_GREY
        return Weights("file", body, mean, std, str(path), sha256, arch, assumed=True)
    return Weights("file", body, facts["mean"], facts["std"], str(path), sha256, arch)


def _unwrap(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state_dict that may lie under `state_dict` or `model` (as `learn.save` writes it)."""
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _fit(state: Mapping[str, Any], arch: str, origin: Path) -> dict[str, torch.Tensor]:
    """Give the tensors the body's names and one grey channel, and check every name, shape and value.

    Raises:
        ModelFormatError: Something is missing, too much, of another shape, or not finite.
    """
    tensors = _body_names(_unwrap(state))
    expected = empty_body(arch).state_dict()
    for key, like in expected.items():
        if key.endswith("num_batches_tracked"):  # files older than torch 0.4.1 lack it, and it has no effect here
            tensors.setdefault(key, torch.zeros_like(like, device="cpu"))
    stem = next(iter(expected))
    if stem in tensors and tensors[stem].ndim == 4 and tensors[stem].shape[1] == 3:
        tensors[stem] = tensors[stem].sum(dim=1, keepdim=True)
    odd = sorted(tensors.keys() ^ expected.keys())
    odd += [key for key in expected.keys() & tensors.keys() if tensors[key].shape != expected[key].shape]
    if odd:
        raise ModelFormatError(
            f"{origin} is not a {arch}: {len(odd)} tensors do not fit, such as {odd[0]!r}.", hint="Check arch."
        )
    tensors = {key: tensors[key].to(expected[key].dtype).contiguous() for key in expected}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()) or not tensors[stem].any():
        raise ModelFormatError(f"{origin} holds weights that are no numbers, or all zero.", hint="Use another file.")
    return tensors


def _body_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's `layer1.0.conv1.weight`, or a saved model's `0.4.0.conv1.weight`, to `4.0.conv1.weight`."""
    if "conv1.weight" not in tensors:
        return {key.removeprefix("0."): value for key, value in tensors.items() if key.startswith("0.")}
    renamed = {}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        if part != "fc":  # the classifier of the 1000 classes
            renamed[f"{RESNET_PARTS.index(part)}.{rest}" if part in RESNET_PARTS else key] = value
    return renamed


def _import_timm():
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UnavailableError("timm is not installed.", hint='Run: pip install "covid_fastai[timm]"') from error
    return timm


def _timm_weights(arch: str) -> Weights:
    """Return timm's weights from the Hugging Face cache or hub, as safetensors only."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    config = _import_timm().get_pretrained_cfg(arch.removeprefix(TIMM_PREFIX))
    if config is None or not config.hf_hub_id:
        raise UsageError(f"timm has no pretrained weights for {arch}.", hint="Use weights=None or a file.")
    name = "model.safetensors"
    cached = try_to_load_from_cache(config.hf_hub_id, name)
    if not isinstance(cached, str):
        address = f"{constants.ENDPOINT}/{config.hf_hub_id}"
        try:
            if constants.HF_HUB_OFFLINE:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            # asked first: the hub's own client retries for most of a minute when there is no network
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT).close()
            cached = hf_hub_download(config.hf_hub_id, name)
        except (OSError, HTTPException, ValueError) as error:
            raise OfflineError(
                f"{arch}: {address} cannot be fetched ({getattr(error, 'reason', None) or error}).",
                hint=f"Fetch its {name} elsewhere and give that file as weights, or use weights=None.",
            ) from error
    return _timm_file(Path(cached), arch, name="imagenet")


def _timm_file(path: Path, arch: str, *, name: str) -> Weights:
    """Read a timm `.safetensors` file; timm itself sums the stem and leaves the classifier out."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: for timm's architectures only .safetensors files are read.", hint="Convert it.")
    _, sha256 = read_safetensors(path)
    short = arch.removeprefix(TIMM_PREFIX)
    try:
        model = _import_timm().create_model(
            short, pretrained=True, num_classes=0, in_chans=1, pretrained_cfg_overlay={"file": str(path)}
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise ModelFormatError(f"{path} is not a {arch}: {str(error)[:200]}.", hint="Check arch.") from error
    config = cast("Mapping[str, Any]", model.pretrained_cfg)
    mean, std = (sum(config[key]) / len(config[key]) for key in ("mean", "std"))
    return Weights(name, TimmBody(model).state_dict(), mean, std, str(path), sha256, arch)
