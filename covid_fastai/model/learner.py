"""Build the learner: a pretrained body for one grey channel, a linear head, and the normalisation of the weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import fastai.callback.progress  # gives Learner no_bar
import fastai.callback.schedule  # gives Learner fine_tune, fit_one_cycle and lr_find
import fastai.interpret  # noqa: F401 - lets ClassificationInterpretation show this learner's images
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.layers import Flatten
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.vision.learner import TimmBody, vision_learner
from fastcore.foundation import L
from torch import nn

from covid_fastai.data.dataloaders import OWN, loader_facts
from covid_fastai.errors import UsageError
from covid_fastai.model.learner_export import export_learner
from covid_fastai.model.learner_facts import LearnerFacts, facts_of
from covid_fastai.model.norms import BATCH_NORMS
from covid_fastai.model.optimiser import FusedAdam
from covid_fastai.model.own_parts import check_callbacks, check_loss, check_metrics, check_optimiser, describe_part
from covid_fastai.model.precision import FullPrecision, choose_precision, precision_callbacks
from covid_fastai.model.weight_names import TIMM_PREFIX
from covid_fastai.model.weights import ARCHITECTURES, Weights, empty_body, resolve_weights
from covid_fastai.options import Arch, Balance, GradientNorm, LabelSmoothing, Precision, WeightDecay, checked

__all__ = [
    "ARCHITECTURES",
    "CheckNormalisation",
    "FrozenBody",
    "body_and_head",
    "body_features",
    "build_learner",
    "has_linear_head",
    "linear_head",
    "map_weights",
    "pooled_features",
    "unwrapped",
]

logger = logging.getLogger("covid_fastai")

HEAD_DROPOUT = 0.5  # fastai's default before the last layer
MODEL_DIR = "models"  # in the learner's path; learn.save and lr_find write there


@checked
def build_learner(
    dls: DataLoaders,
    *,
    arch: Arch = "resnet18",
    weights: str | Path | Weights | None = "auto",
    path: str | Path | None = None,
    balance: Balance = "none",
    weight_decay: WeightDecay = 1e-2,
    gradient_clip: GradientNorm | None = None,
    precision: Precision = "auto",
    callbacks: Sequence[Callback] = (),
    label_smoothing: LabelSmoothing = 0.0,
    loss_func: Callable[..., torch.Tensor] | None = None,
    metrics: Sequence[Any] | Any = accuracy,
    opt_func: Callable[..., Any] | None = None,
) -> Learner:
    """Build a fastai learner: a body for one grey channel with verified weights, and a linear head.

    The model maps `(n, 1, h, w)` to logits `(n, classes)`; the softmax is in the loss. The normalisation in `dls` is
    replaced by the one that the weights were trained with.

    Args:
        dls: Loaders of grey images, from `build_dataloaders`.
        arch: `"resnet18"`, `"resnet34"`, `"resnet50"`, or `"timm/<name>"` for a convolutional network of timm; or
            the function, such as torchvision's `resnet34`.
        weights: `"auto"`, `"imagenet"`, `"cxr"`, a file, or None for random weights; see `resolve_weights`.
        path: The folder that the learner may write to, such as the run's; None for the current folder.
        balance: `"loss"` weights the classes in the loss by `dls.facts.class_weights`; `"sampler"` has no effect here
            (the loaders sample the classes); `"none"` does not weight them.
        weight_decay: Decoupled weight decay, 0 or more; not applied to biases and normalisation layers.
        gradient_clip: The maximum norm of the gradient, above 0; None for no clipping.
        precision: The number format of training: `"auto"`, `"fp32"`, `"fp16"` or `"bf16"`; see `choose_precision`.
            Predictions are always computed in 32 bits.
        callbacks: fastai callbacks that remain on the learner.
        label_smoothing: The fraction of the target that is distributed over all classes, 0 to below 1.
        loss_func: A loss of logits `(n, classes)` and class indices `(n,)`, such as fastai's `FocalLossFlat()`; None
            for the cross-entropy. Not with `balance="loss"` or `label_smoothing`.
        metrics: fastai metrics of each epoch, or functions of predictions and targets.
        opt_func: Makes the optimiser, such as fastai's `ranger`; None for Adam with decoupled weight decay.

    Returns:
        The learner. `learn.facts` has the architecture's name and the facts about the initial weights.

    Raises:
        UsageError: An argument has a value that is not allowed.
        ModelFormatError: The weights' file is damaged or of another architecture.
        OfflineError: The weights have to be downloaded, and the network or the server does not answer.
        UnavailableError: The architecture needs timm, which is not installed.

    Examples:
        >>> learn = build_learner(dls, arch="resnet18", weights=None)
        >>> learn.facts.arch, learn.facts.weights.name
        ('resnet18', 'random')
        >>> tuple(learn.model(dls.one_batch()[0]).shape)
        (8, 2)
    """
    if len(dls.vocab) < 2:
        raise UsageError(
            f"The loaders have fewer than two classes: {list(dls.vocab)}.", hint="A classifier needs two or more."
        )
    callbacks = check_callbacks(callbacks)
    check_optimiser(opt_func, is_saved=False)
    device = torch.device(getattr(dls, "device", None) or "cpu")
    chosen = choose_precision(precision, device)
    mixed = precision_callbacks(chosen.precision, device)
    found = resolve_weights(weights, arch=arch)
    _log_weights(found)
    loaders = loader_facts(dls)
    features = body_features(arch, image_size=loaders.image_size if loaders else 224)
    head = linear_head(*features, classes=len(dls.vocab))
    learn = vision_learner(
        dls,
        arch.removeprefix(TIMM_PREFIX) if arch not in ARCHITECTURES else getattr(torchvision.models, arch),
        n_in=1,
        n_out=len(dls.vocab),
        pretrained=False,
        normalize=False,
        custom_head=head,
        opt_func=FusedAdam if opt_func is None else opt_func,
        loss_func=_loss(dls, loss_func, balance=balance, label_smoothing=label_smoothing),
        metrics=metrics,
        path=Path("." if path is None else path),
        model_dir=MODEL_DIR,
        wd=weight_decay,
        train_bn=False,  # otherwise the BatchNorm layers of the frozen body would be trained
        cbs=[FrozenBody(), CheckNormalisation(), FullPrecision(), *_clip(gradient_clip), *mixed, *callbacks],
    )
    check_metrics(learn.metrics, classes=len(dls.vocab), device=device)
    if found.state is not None:
        learn.model[0].load_state_dict(found.state)
    # before an optimiser exists, whose state is created and restored where the parameters are
    learn.model.to(dls.device)  # guard: model_on_device
    if getattr(dls.device, "type", "cpu") in ("cpu", "cuda"):
        # measured on 2 CPU cores with ResNet-18, 64 to 224 pixels: a training step takes 16 to 27% less time
        learn.model.to(memory_format=torch.channels_last)
    own = {"loss_func": loss_func, "opt_func": opt_func} | ({} if metrics is accuracy else {"metrics": metrics})
    if loaders and loaders.augmentation == OWN:
        steps = dls.train.after_batch.fs
        own["augmentation"] = [step for step in steps if not isinstance(step, (IntToFloatTensor, Normalize))]
    found = dataclasses.replace(found, state=None)
    learn.facts = LearnerFacts(arch, found, precision=chosen, parts=_describe_parts(own))
    _normalise(dls, found)
    learn.export = partial(export_learner, learn)
    return learn


def linear_head(features: int, pool: bool = True, *, classes: int) -> nn.Sequential:
    """Build the head: pooling, flattening, BatchNorm, dropout and a linear layer.

    At inference the head is linear: the mean over positions, BatchNorm's fixed scale and shift, and the last layer. A
    class's logit is therefore the mean over positions of a weighted sum of the feature maps. That sum is the class
    activation map of Zhou et al. (CVPR 2016), which here explains the logit exactly; `map_weights` returns its weights.

    Args:
        features: Number of channels of the body's output.
        pool: False if the body returns `(n, features)`.
        classes: Number of logits, 2 or more.

    Returns:
        A module from `(n, features, h, w)` (or `(n, features)`) to `(n, classes)`.
    """
    layers = [nn.AdaptiveAvgPool2d(1), Flatten()] if pool else []
    layers += [nn.BatchNorm1d(features), nn.Dropout(HEAD_DROPOUT), nn.Linear(features, classes)]
    return nn.Sequential(*layers)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of a distributed training, which hold it as `module`."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def body_and_head(model: nn.Module) -> tuple[nn.Module, nn.Sequential]:
    """Return the body and the head of a model of `build_learner`."""
    body, head = cast(nn.Sequential, model)
    return body, cast(nn.Sequential, head)


def pooled_features(output: torch.Tensor) -> torch.Tensor:
    """Return the mean over positions of a body's output, `(n, features, 1, 1)`; `(n, features)` is already pooled."""
    return output if output.ndim == 2 else output.mean((2, 3), keepdim=True)


def has_linear_head(model: nn.Module) -> bool:
    """Return whether a model is a body and a head of `linear_head`, which class activation maps explain exactly."""
    if not isinstance(model, nn.Sequential) or len(model) != 2 or not isinstance(model[1], nn.Sequential):
        return False
    types = [type(layer) for layer in model[1].children()]
    types = [nn.BatchNorm1d if kind is nn.SyncBatchNorm else kind for kind in types]  # as on several GPUs
    end = [nn.BatchNorm1d, nn.Dropout, nn.Linear]
    return types in ([nn.AdaptiveAvgPool2d, Flatten, *end], end)


def map_weights(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold a model's linear head into the weights of its class activation maps.

    For feature maps `f` of shape `(n, features, h, w)`, `maps = einsum("ck,nkhw->nchw", weight, f)` are the class
    activation maps, and `maps.mean((2, 3)) + bias` are the model's logits.

    Args:
        model: A model of `build_learner`: `model[0]` the body, `model[1]` the head.

    Returns:
        `weight` of shape `(classes, features)` and `bias` of shape `(classes,)`.

    Raises:
        UsageError: The head is not linear.
    """
    _, head = body_and_head(model)
    if not has_linear_head(model):  # guard: linear_head
        layers = ", ".join(type(layer).__name__ for layer in head.children())
        raise UsageError(
            f"The head of this model is not linear ({layers}), so that it has no class activation map.",
            hint="Use grad_cam, or build the learner with this package's head: vision_learner(dls, resnet18, n_in=1, "
            "custom_head=linear_head(512, classes=2)), from covid_fastai.model.learner.",
        )
    norm, linear = cast(nn.BatchNorm1d, head[-3]), cast(nn.Linear, head[-1])
    assert norm.running_mean is not None and norm.running_var is not None  # as `linear_head` makes it
    # BatchNorm at inference is x * scale + shift, which the linear layer absorbs
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return (linear.weight * scale).detach(), (linear.bias + linear.weight @ shift).detach()


class FrozenBody(Callback):
    """Keep the BatchNorm statistics of a frozen body unchanged, which training mode would update.

    fastai freezes parameters only. This callback puts a completely frozen body in evaluation mode, and in a partly
    frozen one each BatchNorm layer whose parameters are frozen.
    """

    order = -9  # right after TrainEvalCallback (-10), which puts the whole model in training mode
    run_valid = False

    def before_train(self):
        """Put the frozen modules in evaluation mode."""
        model = unwrapped(self.model)  # guard: frozen_unwrapped
        body = model[0] if isinstance(model, nn.Sequential) else model
        if _is_frozen(body):
            body.eval()
            return
        for module in body.modules():
            if isinstance(module, BATCH_NORMS) and _is_frozen(module):
                module.eval()


def _is_frozen(module: nn.Module) -> bool:
    flags = [parameter.requires_grad for parameter in module.parameters()]
    return bool(flags) and not any(flags)


class CheckNormalisation(Callback):
    """Raise if the loaders' normalisation is not that of the learner's weights, since predictions would be wrong.

    This happens when two learners with different weights share one `dls`, or when a learner predicts on loaders that
    were made for another model.
    """

    def before_train(self):
        """Check the loader that is about to be used."""
        self._check()

    def before_validate(self):
        """Check the loader that is about to be used."""
        self._check()

    def _check(self) -> None:
        weights = facts_of(self.learn).weights
        if not hasattr(getattr(self.dl, "after_batch", None), "fs"):  # a list of batches, as show_results gives
            return
        normalisations = _normalisations(self.dl)
        if weights is not None and not _has_normalisation(normalisations, weights):  # guard: normalised
            raise UsageError(
                f"These loaders normalise by {normalisations or 'nothing'}, this learner's weights need "
                f"mean {weights.mean}, std {weights.std}.",
                hint="Build new loaders for each learner: build_learner sets their normalisation.",
            )


def _normalise(dls: DataLoaders, weights: Weights) -> None:
    """Set the normalisation of every loader to the weights' mean and std, in place."""
    if not all(_has_normalisation(_normalisations(loader), weights) for loader in dls.loaders):
        logger.info("Images are normalised by mean %.3f and std %.3f (%s).", weights.mean, weights.std, weights.name)
    for loader in dls.loaders:
        steps = [step for step in loader.after_batch.fs if isinstance(step, Normalize)]
        if not steps:
            steps = [Normalize(torch.zeros(1), torch.ones(1))]
            loader.after_batch.add(steps)
        for step in steps:  # changed in place, since the pipeline has several references to the object
            step.mean = torch.full((1, 1, 1, 1), weights.mean, device=dls.device)
            step.std = torch.full((1, 1, 1, 1), weights.std, device=dls.device)
    if loaders := loader_facts(dls):
        dls.facts = dataclasses.replace(loaders, mean=weights.mean, std=weights.std)


def _normalisations(loader: DataLoader) -> list[tuple[float, float]]:
    """Return the mean and std of each normalisation in a loader's batch transforms."""
    steps = [step for step in loader.after_batch.fs if isinstance(step, Normalize)]
    return [(float(step.mean.mean()), float(step.std.mean())) for step in steps]


def _has_normalisation(normalisations: Sequence[tuple[float, float]], weights: Weights) -> bool:
    """Return whether there is exactly one normalisation, and it is that of the weights."""
    if len(normalisations) != 1:
        return False
    mean, std = normalisations[0]
    return abs(mean - weights.mean) < 1e-5 and abs(std - weights.std) < 1e-5  # tolerates float32 rounding


def _log_weights(weights: Weights) -> None:
    if weights.state is None:
        return
    if weights.name == "cxr":
        logger.info("The initial weights are the package's own (cxr, sha256 %s).", weights.sha256[:8])
    if weights.assumed:
        logger.warning(
            "%s has no JSON file with mean and std; %s and %s are used.", weights.origin, weights.mean, weights.std
        )


def body_features(arch: str, *, image_size: int) -> tuple[int, bool]:
    """Return the number of channels of a body's output, and whether the head has to pool them.

    Args:
        arch: The architecture.
        image_size: Side of the images, pixels.

    Raises:
        UsageError: A timm network does not return `(n, features, h, w)` or `(n, features)` at this image size.
    """
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch], True
    body = cast(TimmBody, empty_body(arch))
    hint = "Use a convolutional network (ConvNeXt, EfficientNet, RegNet, DenseNet), or image_size=224."
    try:
        shape = body(torch.zeros(2, 1, image_size, image_size, device="meta")).shape
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"{arch} does not take images of {image_size} pixels: {error}.", hint=hint) from error
    features = body.model.num_features
    if tuple(shape[:2]) != (2, features) or len(shape) != (4 if body.needs_pool else 2):
        raise UsageError(f"{arch} returns {tuple(shape)}, not feature maps (n, {features}, h, w).", hint=hint)
    return features, body.needs_pool


def _describe_parts(own: dict[str, Any]) -> dict[str, str]:
    """Return the names of the parts that the user brought."""
    given = {name: part for name, part in own.items() if part is not None}
    listed = {name: part if isinstance(part, (list, tuple, L)) else [part] for name, part in given.items()}
    return {name: ", ".join(map(describe_part, parts)) for name, parts in listed.items()}


def _loss(dls: DataLoaders, loss_func: Callable | None, *, balance: str, label_smoothing: float) -> Callable:
    if loss_func is not None:
        if balance == "loss" or label_smoothing:
            other = "balance='loss'" if balance == "loss" else f"label_smoothing={label_smoothing}"
            raise UsageError(
                f"loss_func and {other} are mutually exclusive.", hint="Weight or smooth the classes in your loss."
            )
        return check_loss(loss_func, classes=len(dls.vocab), device=dls.device)
    weight, loaders = None, loader_facts(dls)
    found = loaders.class_weights if loaders else None
    if balance == "loss":
        if found is None:
            raise UsageError(
                "balance='loss' needs class weights, which these loaders do not have.",
                hint="Build them with balance='loss'.",
            )
        weight = torch.as_tensor(found, dtype=torch.float32, device=dls.device)
    elif found is not None:
        logger.warning("The loaders were built with balance='loss' and the learner was not: classes are not weighted.")
    return CrossEntropyLossFlat(weight=weight, label_smoothing=label_smoothing)


def _clip(gradient_clip: float | None) -> list[Callback]:
    return [] if gradient_clip is None else [GradientClip(gradient_clip)]
