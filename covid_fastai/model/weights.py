"""The initial weights of a model: ImageNet's, this package's, a file's or random ones; verified before use."""

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
from covid_fastai.model.weight_names import TIMM_PREFIX, check_package_weights, find_weights_file
from covid_fastai.options import Arch, check_option

__all__ = ["ARCHITECTURES", "Weights", "check_arch", "empty_body", "resolve_weights"]

logger = logging.getLogger("covid_fastai")

ARCHITECTURES = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}  # name -> channels of the last feature maps
PACKAGE_FOLDER = Path(__file__).parent  # holds cxr-resnet18.safetensors, its .json and its manifest
IMAGENET_GREY = (0.449, 0.226)  # torchvision's mean and std, each averaged over the three channels
NEUTRAL_GREY = (0.5, 0.25)  # maps 0..1 to -2..2; for random weights, and for files without mean and std
RESNET_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")  # fastai's 0..7


@dataclass(frozen=True)
class Weights:
    """The initial weights of a body and the facts about them.

    Attributes:
        name: `"imagenet"`, `"cxr"`, `"file"` or `"random"`.
        state: The body's tensors by their names in the body, the stem with one channel; None for random weights, and
            in `learn.facts.weights`, where the model already has them.
        mean: Mean of the pixel intensities on the scale 0 to 1, which normalisation subtracts.
        std: Standard deviation of the pixel intensities, by which normalisation divides.
        origin: The file that they were read from, or the method that made them.
        sha256: The sha256 of that file, 64 hexadecimal digits; empty for random weights.
        arch: The architecture that they belong to.
        assumed: Whether mean and std are assumed because no JSON file next to the weights has them.
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
        """Whether the weights are the result of a training."""
        return self.name != "random"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that are saved with a model, as values that JSON can hold."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("state", "assumed")}


def resolve_weights(weights: str | Path | Weights | None, *, arch: str) -> Weights:
    """Find and verify the initial weights of a model.

    Args:
        weights: `"auto"`: this package's own for ResNet-18, ImageNet's for any other architecture.
            `"imagenet"`: torchvision's (or timm's), from the cache or downloaded. `"cxr"`: this package's own.
            A path: a `.safetensors` or `.pth` file, or the folder of a saved model. None: random weights.
            If the weights cannot be found, this is an error; other weights are not used instead.
        arch: A name in `ARCHITECTURES`, or `"timm/<name>"`.

    Returns:
        The weights. A stem of three channels is summed to one channel (as fastai does for `n_in=1`).

    Raises:
        UsageError: `arch` or `weights` is unknown, or the weights are not for this architecture.
        ModelFormatError: A file is damaged, does not match the hash in its name, or is not of this architecture.
        OfflineError: The weights have to be downloaded, and the network or the server does not answer; the hint has
            the file to place by hand.
        UnavailableError: The architecture needs timm, which is not installed.
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
    return _file_weights(weights, arch)


def check_arch(arch: str) -> None:
    """Check that `arch` is an architecture that can be built.

    Raises:
        UsageError: The name is unknown.
        UnavailableError: The architecture needs timm, which is not installed.
    """
    check_option("arch", arch, Arch)
    if arch in ARCHITECTURES:
        return
    timm, name = _import_timm(), arch.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UsageError(
            f"timm has no model {name!r}.", hint=f"Similar names: {', '.join(near) or 'see timm.list_models()'}."
        )


def empty_body(arch: str) -> nn.Module:
    """Build the body of `arch` for one grey channel on the meta device, with names and shapes but without data."""
    with torch.device("meta"):
        if arch.startswith(TIMM_PREFIX):
            model = _import_timm().create_model(arch.removeprefix(TIMM_PREFIX), num_classes=0, in_chans=1)
            return TimmBody(model, pretrained=False, n_in=1)
        return create_body(getattr(torchvision.models, arch)(), n_in=1, pretrained=False, cut=-2)


def _random_weights(arch: str) -> Weights:
    mean, std = NEUTRAL_GREY
    return Weights("random", None, mean, std, "random initialisation", "", arch)


def _package_weights(arch: str) -> Weights:
    """Return this package's own weights, which are installed with it."""
    check_package_weights(arch)
    path = PACKAGE_FOLDER / f"cxr-{arch}.safetensors"
    if not path.exists():
        raise ModelFormatError(
            f"{path} is missing: the installation is incomplete.", hint="Reinstall; or use 'imagenet', a file, or None."
        )
    state, sha256 = read_safetensors(path)
    facts = read_facts(path.with_suffix(".json"))
    if facts.get("sha256") != sha256:  # guard: own_hash
        raise ModelFormatError(
            f"{path} is damaged: its sha256 is not the one in its JSON file.", hint="Reinstall the package."
        )
    return Weights("cxr", _fit(state, arch, path), facts["mean"], facts["std"], str(path), sha256, arch)


def _imagenet_weights(arch: str) -> Weights:
    """Return torchvision's weights, from its cache or downloaded; both are verified."""
    url = _imagenet_url(arch)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    damage = ""
    if path.exists():
        try:
            return _imagenet_from(path, arch)
        except ModelFormatError as error:
            damage = f" The file in the cache cannot be used: {error.message}"
            logger.warning("%s It is downloaded again from %s.", error.message, url)
    download(url, path, what=f"ImageNet weights for {arch}", damage=damage)
    return _imagenet_from(path, arch)


def _imagenet_from(path: Path, arch: str) -> Weights:
    state, sha256 = read_torch_file(path)
    return Weights("imagenet", _fit(state, arch, path), *IMAGENET_GREY, str(path), sha256, arch)


def _imagenet_url(arch: str) -> str:
    """Return the URL of torchvision's default weights, which fastai uses too: V1 for ResNet-18 and 34, V2 for 50."""
    return torchvision.models.get_model_weights(arch).DEFAULT.url


def _file_weights(weights: str | Path, arch: str) -> Weights:
    path = find_weights_file(weights, arch=arch)
    if arch.startswith(TIMM_PREFIX):
        return _timm_file(path, arch, name="file")
    state, sha256 = (read_safetensors if path.suffix == ".safetensors" else read_torch_file)(path)
    facts = read_facts(facts_file(path))
    if facts.get("sha256", sha256) != sha256:
        raise ModelFormatError(f"{path} is damaged: its sha256 is not the one in its JSON file.", hint="Copy it again.")
    if facts.get("arch", arch) != arch:
        raise UsageError(f"{path} contains a {facts['arch']}, not a {arch}.", hint=f"Use arch={facts['arch']!r}.")
    body = _fit(state, arch, path)
    if "mean" not in facts:
        colour = any(tensor.ndim == 4 and tensor.shape[1] == 3 for tensor in _unwrap(state).values())
        mean, std = IMAGENET_GREY if colour else NEUTRAL_GREY
        return Weights("file", body, mean, std, str(path), sha256, arch, assumed=True)
    return Weights("file", body, facts["mean"], facts["std"], str(path), sha256, arch)


def _unwrap(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state_dict, which may be under the key `state_dict` or `model` (as by `learn.save`)."""
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _fit(state: Mapping[str, Any], arch: str, origin: Path) -> dict[str, torch.Tensor]:
    """Rename the tensors as in the body, reduce the stem to one channel, and check every name, shape and value.

    Raises:
        ModelFormatError: A tensor is missing, unknown, of another shape, or not finite.
    """
    tensors = _body_names(_unwrap(state))
    expected = empty_body(arch).state_dict()
    for key, like in expected.items():
        if key.endswith("num_batches_tracked"):  # missing in files older than torch 0.4.1, without effect here
            tensors.setdefault(key, torch.zeros_like(like, device="cpu"))
    stem = next(iter(expected))
    if stem in tensors and tensors[stem].ndim == 4 and tensors[stem].shape[1] == 3:
        # the response to a grey image, whose three channels are equal, is the sum over the channels
        tensors[stem] = tensors[stem].sum(dim=1, keepdim=True)
    unmatched = sorted(tensors.keys() ^ expected.keys())
    unmatched += [key for key in expected.keys() & tensors.keys() if tensors[key].shape != expected[key].shape]
    if unmatched:
        raise ModelFormatError(
            f"{origin} is not a {arch}: {len(unmatched)} tensors do not match, such as {unmatched[0]!r}.",
            hint="Check arch.",
        )
    tensors = {key: tensors[key].to(expected[key].dtype).contiguous() for key in expected}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()) or not tensors[stem].any():
        raise ModelFormatError(f"{origin} has weights that are NaN, infinite or all zero.", hint="Use another file.")
    return tensors


def _body_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename torchvision's `layer1.0.conv1.weight`, or a saved model's `0.4.0.conv1.weight`, to `4.0.conv1.weight`."""
    if "conv1.weight" not in tensors:
        return {key.removeprefix("0."): value for key, value in tensors.items() if key.startswith("0.")}
    renamed = {}
    for key, value in tensors.items():
        stage, _, rest = key.partition(".")
        if stage != "fc":  # the classifier of ImageNet's 1000 classes
            renamed[f"{RESNET_STAGES.index(stage)}.{rest}" if stage in RESNET_STAGES else key] = value
    return renamed


def _import_timm():
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UnavailableError("timm is not installed.", hint='Run: pip install "covid_fastai[timm]"') from error
    return timm


def _timm_weights(arch: str) -> Weights:
    """Return timm's weights from the Hugging Face Hub or its cache, as safetensors only."""
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
            # one request first, since the Hub's client retries for most of a minute without a network
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT).close()
            cached = hf_hub_download(config.hf_hub_id, name)
        except (OSError, HTTPException, ValueError) as error:
            raise OfflineError(
                f"{arch}: {address} cannot be downloaded ({getattr(error, 'reason', None) or error}).",
                hint=f"Download its {name} on another machine and give that file, weights=FILE, or use weights=None.",
            ) from error
    return _timm_file(Path(cached), arch, name="imagenet")


def _timm_file(path: Path, arch: str, *, name: str) -> Weights:
    """Read a timm `.safetensors` file; timm sums the channels of the stem and drops the classifier."""
    _, sha256 = read_safetensors(path)
    timm_name = arch.removeprefix(TIMM_PREFIX)
    try:
        model = _import_timm().create_model(
            timm_name, pretrained=True, num_classes=0, in_chans=1, pretrained_cfg_overlay={"file": str(path)}
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise ModelFormatError(f"{path} is not a {arch}: {str(error)[:200]}.", hint="Check arch.") from error
    config = cast("Mapping[str, Any]", model.pretrained_cfg)
    mean, std = (sum(config[key]) / len(config[key]) for key in ("mean", "std"))
    return Weights(name, TimmBody(model).state_dict(), mean, std, str(path), sha256, arch)
