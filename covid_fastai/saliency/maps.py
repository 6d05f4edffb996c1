"""Maps of what speaks for each class, from a model and a batch; and weights drawn anew, to see whether they matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastai.callback.hook import hook_output
from torch import nn

from covid_fastai.errors import UsageError
from covid_fastai.model.learner import body_and_head, map_weights

__all__ = ["activation_maps", "draw_anew", "evaluating", "gradient_maps", "occlusion_maps", "stages"]

OCCLUDED_BATCH = 64  # occluded copies in a forward pass: 224 pixels of a ResNet-50 then take less than 3 GB


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model in evaluation mode for the time of a `with` block, and each module back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def activation_maps(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Compute the class activation maps: the feature maps under the folded weights of the linear head.

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
    """Compute Grad-CAM without the cut at zero: a layer's activations under their mean gradients.

    Args:
        model: In evaluation mode.
        x: Normalised images `(n, 1, h, w)`.
        layer: A name in `model.named_modules()`.

    Returns:
        `(n, classes, h', w')`.

    Raises:
        UsageError: There is no such layer, or it returns no maps.
    """
    layers = dict(model.named_modules())
    if layer not in layers or not layer:
        known = [name for name in layers if name.count(".") == 1][:12]
        raise UsageError(f"The model has no layer {layer!r}.", hint=f"Such as {', '.join(known)}.")
    with torch.enable_grad(), hook_output(layers[layer], detach=False) as hook:
        # the input needs a gradient so that a frozen body has some too
        logits = model(x.detach().requires_grad_())
        activations = hook.stored
        _check_maps(activations, f"layer {layer!r}")
        maps = []
        for number in range(logits.shape[1]):
            (slopes,) = torch.autograd.grad(logits[:, number].sum(), activations, retain_graph=True)
            maps.append((slopes.mean((2, 3), keepdim=True) * activations).sum(1))
    return torch.stack(maps, dim=1).detach()


@torch.no_grad()
def occlusion_maps(model: nn.Module, x: torch.Tensor, *, patch_size: int, stride: int) -> torch.Tensor:
    """Measure the fall of each logit when a square is set to 0, the mean grey of the normalisation.

    Args:
        model: In evaluation mode.
        x: Normalised images `(n, 1, h, w)`.
        patch_size: Side of the square, pixels.
        stride: From one square to the next, pixels; the last ones are cut off by the image's edge.

    Returns:
        `(n, classes, h, w)`; at each pixel the mean over the squares that covered it.
    """
    height, width = x.shape[-2:]
    corners = [
        (top, left) for top in _starts(height, patch_size, stride) for left in _starts(width, patch_size, stride)
    ]
    logits = model(x)
    covered = torch.zeros(height, width, device=x.device)
    falls = torch.zeros(*logits.shape, height, width, device=x.device)
    for top, left in corners:
        covered[top : top + patch_size, left : left + patch_size] += 1
    for number, image in enumerate(x):
        for begin in range(0, len(corners), OCCLUDED_BATCH):
            some = corners[begin : begin + OCCLUDED_BATCH]
            batch = image.repeat(len(some), 1, 1, 1)
            for one, (top, left) in zip(batch, some, strict=True):
                one[:, top : top + patch_size, left : left + patch_size] = 0
            for fall, (top, left) in zip(logits[number] - model(batch), some, strict=True):
                falls[number, :, top : top + patch_size, left : left + patch_size] += fall[:, None, None]
    return falls / covered


def _starts(side: int, patch_size: int, stride: int) -> range:
    return range(0, side - patch_size + stride, stride)  # the last square reaches the edge, or beyond it


def _check_maps(found: object, what: str) -> None:
    if not isinstance(found, torch.Tensor) or found.ndim != 4:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise UsageError(
            f"There is no map: {what} returns {shape}, not (n, channels, h, w).",
            hint="Name a convolutional layer, or use occlusion, which works with any model.",
        )


def stages(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the parts of a model that have weights, from the head down to the first layer, by name."""
    name, (body, head) = "0", body_and_head(model)
    while len(inner := [item for item in body.named_children() if _has_weights(item[1])]) == 1:
        name, body = f"{name}.{inner[0][0]}", inner[0][1]
    return [("head", head), *((f"{name}.{child}", part) for child, part in reversed(inner))]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


@torch.no_grad()
def draw_anew(module: nn.Module) -> None:
    """Draw all weights of a module anew, in place, as torch first draws them; statistics of BatchNorm are forgotten.

    A parameter whose layer has no way to reset it (a scale of some timm networks) gets its own numbers shuffled.
    """
    for layer in module.modules():
        if callable(reset := getattr(layer, "reset_parameters", None)):
            reset()
            continue
        for parameter in layer.parameters(recurse=False):
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
