"""Saliency maps of each class from a model and a batch, and the randomisation of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastai.callback.hook import hook_output
from torch import nn

from covid_fastai.errors import UsageError
from covid_fastai.model.learner import body_and_head, map_weights

__all__ = ["activation_maps", "evaluating", "gradient_maps", "occlusion_maps", "randomise_weights", "stages"]

OCCLUDED_BATCH = 64  # occluded copies per forward pass: a ResNet-50 at 224 pixels needs less than 3 GB for them


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in evaluation mode within a `with` block and restore the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def activation_maps(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute class activation maps: the feature maps weighted by the folded weights of the linear head.

    Args:
        model: A model of `build_learner`, in evaluation mode.
        x: Normalised images `(n, 1, h, w)`.

    Returns:
        `(n, classes, h', w')`; `maps.mean((2, 3))` plus the bias of `map_weights` are the logits.

    Raises:
        UsageError: The body returns no maps.
    """
    features = body_and_head(model)[0](x)
    _check_maps(features, "the body")
    return torch.einsum("ck,nkhw->nchw", map_weights(model)[0], features)


def gradient_maps(model: nn.Module, x: torch.Tensor, *, layer: str = "0") -> torch.Tensor:
    """Compute Grad-CAM without the ReLU: the activations of a layer weighted by their mean gradients.

    Args:
        model: In evaluation mode.
        x: Normalised images `(n, 1, h, w)`.
        layer: A name in `model.named_modules()`.

    Returns:
        `(n, classes, h', w')`.

    Raises:
        UsageError: The layer does not exist or returns no maps.
    """
    layers = dict(model.named_modules())
    if layer not in layers or not layer:
        known = [name for name in layers if name.count(".") == 1][:12]
        raise UsageError(f"The model has no layer {layer!r}.", hint=f"Its layers include {', '.join(known)}.")
    with torch.enable_grad(), hook_output(layers[layer], detach=False) as hook:
        # without a gradient of the input, a frozen body would have none
        logits = model(x.detach().requires_grad_())
        activations = hook.stored
        _check_maps(activations, f"layer {layer!r}")
        maps = []
        for number in range(logits.shape[1]):
            # the sum over the batch gives each image its own gradient, since images do not interact in evaluation mode
            (gradients,) = torch.autograd.grad(logits[:, number].sum(), activations, retain_graph=True)
            maps.append((gradients.mean((2, 3), keepdim=True) * activations).sum(1))
    return torch.stack(maps, dim=1).detach()


@torch.no_grad()
def occlusion_maps(model: nn.Module, x: torch.Tensor, *, patch_size: int, stride: int) -> torch.Tensor:
    """Measure the decrease of each logit when a square is set to 0, the mean of the normalisation.

    Args:
        model: In evaluation mode.
        x: Normalised images `(n, 1, h, w)`.
        patch_size: Side of the square in pixels.
        stride: Distance between squares in pixels; the edge of the image cuts the last ones.

    Returns:
        `(n, classes, h, w)`; the value of a pixel is the mean over the squares that cover it.
    """
    height, width = x.shape[-2:]
    corners = [
        (top, left) for top in _starts(height, patch_size, stride) for left in _starts(width, patch_size, stride)
    ]
    logits = model(x)
    covered = torch.zeros(height, width, device=x.device)
    decreases = torch.zeros(*logits.shape, height, width, device=x.device)
    for top, left in corners:
        covered[top : top + patch_size, left : left + patch_size] += 1
    for number, image in enumerate(x):
        for begin in range(0, len(corners), OCCLUDED_BATCH):
            squares = corners[begin : begin + OCCLUDED_BATCH]
            batch = image.repeat(len(squares), 1, 1, 1)
            for copy, (top, left) in zip(batch, squares, strict=True):
                copy[:, top : top + patch_size, left : left + patch_size] = 0
            for decrease, (top, left) in zip(logits[number] - model(batch), squares, strict=True):
                decreases[number, :, top : top + patch_size, left : left + patch_size] += decrease[:, None, None]
    return decreases / covered


def _starts(side: int, patch_size: int, stride: int) -> range:
    return range(0, side - patch_size + stride, stride)  # the last square reaches the edge or beyond


def _check_maps(output: object, what: str) -> None:
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UsageError(
            f"There is no map: {what} returns {shape}, not (n, channels, h, w).",
            hint="Name a convolutional layer, or use method='occlusion', which works with any model.",
        )


def stages(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the stages of a model that have weights with their names, from the head to the first layer."""
    name, (body, head) = "0", body_and_head(model)
    while len(inner := [item for item in body.named_children() if _has_weights(item[1])]) == 1:
        name, body = f"{name}.{inner[0][0]}", inner[0][1]
    return [("head", head), *((f"{name}.{child}", stage) for child, stage in reversed(inner))]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@torch.no_grad()
def randomise_weights(module: nn.Module) -> None:
    """Initialise all weights of a module again, in place, as torch does; BatchNorm statistics are reset too.

    A parameter whose layer has no `reset_parameters` (such as a scale in some timm networks) is shuffled.
    """
    for layer in module.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
            continue
        for parameter in layer.parameters(recurse=False):
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
