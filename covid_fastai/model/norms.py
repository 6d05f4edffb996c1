"""BatchNorm in a training on several GPUs: synchronised while it goes on, and plain again in the model that remains."""

from __future__ import annotations

import copy
import sys

from torch import nn

from covid_fastai.errors import UsageError

__all__ = ["BATCH_NORMS", "plain_norms", "restore_norms", "synchronise_norms"]

# with their subclasses, such as timm's, which contain an activation
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Replaced = list[tuple[nn.Module, str, nn.Module]]  # the parent, the name in it, and the layer that was there


def synchronise_norms(model: nn.Module) -> Replaced:
    """Replace each BatchNorm layer by one that uses the statistics of all processes, with the same weights.

    Returns:
        What was replaced, for `restore_norms`.
    """
    timm = sys.modules.get("timm.layers")  # torch's conversion would leave out the activation in timm's BatchNormAct2d
    convert = nn.SyncBatchNorm.convert_sync_batchnorm if timm is None else timm.convert_sync_batchnorm
    replaced = []
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, BATCH_NORMS) and not isinstance(layer, nn.SyncBatchNorm):
                parent.add_module(name, convert(layer))
                replaced.append((parent, name, layer))
    return replaced


def restore_norms(replaced: Replaced) -> None:
    """Put the layers back that `synchronise_norms` replaced, with the weights and statistics of the training."""
    for parent, name, layer in replaced:
        _take_state(layer, parent.get_submodule(name))
        parent.add_module(name, layer)


def plain_norms(model: nn.Module, like: nn.Module) -> None:
    """Replace synchronised BatchNorm layers in place, as fastai's distributed training leaves them behind.

    Args:
        model: The model.
        like: A model of the same architecture with plain layers, which tells the kind of each.

    Raises:
        UsageError: torch's conversion has removed the activation of a timm layer, so the model is another one.
    """
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.SyncBatchNorm):
            continue
        plain = copy.deepcopy(like.get_submodule(name))
        if type(layer) is nn.SyncBatchNorm and type(plain) not in BATCH_NORMS:
            raise UsageError(
                f"The layer {name} has lost its activation: torch's convert_sync_batchnorm does not know it.",
                hint="Train it with fit or train_classifier, or convert it with timm.layers.convert_sync_batchnorm.",
            )
        _take_state(plain, layer)
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent).add_module(last, plain)


def _take_state(layer: nn.Module, source: nn.Module) -> None:
    """Give a layer the parameters and statistics of another one, not copies, so that an optimiser keeps them."""
    for name in layer._parameters:
        layer._parameters[name] = source._parameters[name]
    for name in layer._buffers:
        layer._buffers[name] = source._buffers[name]
    layer.train(source.training)
