"""A trained model as one ONNX file: grey pixels in; probabilities, logits and class activation maps out."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from covid_fastai.errors import UsageError
from covid_fastai.model.bundle_config import ONNX_INPUT, ONNX_OUTPUTS
from covid_fastai.model.learner import body_and_head, map_weights

__all__ = ["OPSET", "export_onnx"]

OPSET = 20  # what torch's exporter writes without converting; ONNX Runtime reads it since 1.17, ONNX Runtime Web too


def export_onnx(model: nn.Module, *, classes: Sequence[str], image_size: int, mean: float, std: float) -> bytes:
    """Write a model of `build_learner` as an ONNX file, with its weights and its normalisation inside.

    The graph takes `images`, uint8 `(n, 1, image_size, image_size)`, grey levels of 0 to 255 as `open_image` and
    `resize_image` give them, any n. It returns `probabilities` and `logits`, `(n, classes)`, and `maps`, the class
    activation maps `(n, classes, h, w)`: the mean of a map over its cells, plus a constant of the class, is the logit.
    A body without feature maps has maps of one cell. The same model gives the same bytes; they hold no path and no name
    of the machine.

    Args:
        model: `model[0]` the body, `model[1]` the linear head; on any device, left as it is.
        classes: The names of the outputs in order, which go into the file's metadata as JSON.
        image_size: Side of the square input, pixels.
        mean: Subtracted from the grey values on the scale 0 to 1.
        std: What they are divided by after that.

    Returns:
        The file's bytes.

    Raises:
        UsageError: The body has an operation that torch cannot write as ONNX.
    """
    answer = _Answer(copy.deepcopy(model).float().cpu(), mean=mean, std=std)
    answer.eval().to(memory_format=torch.contiguous_format)  # channels_last would be written as transpositions
    images = torch.zeros((2, 1, image_size, image_size), dtype=torch.uint8)  # with one image, n would be a constant 1
    try:
        with _quiet():
            program = torch.onnx.export(
                answer,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[ONNX_INPUT],
                output_names=list(ONNX_OUTPUTS),
                dynamic_shapes={ONNX_INPUT: {0: torch.export.Dim("n", min=1)}},
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UsageError(
            f"This model cannot be written as ONNX: {str(error).strip().splitlines()[0][:200]}.",
            hint="Use another architecture, such as resnet18.",
        ) from error
    assert program is not None  # as `dynamo=True` returns it
    proto = program.model_proto
    _forget_origin(proto)
    for key, value in {"classes": json.dumps(list(classes)), "use": "research only"}.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString(deterministic=True)


class _Answer(nn.Module):
    """The graph: normalisation, body, and the head in its folded form, whose maps are then no second computation."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, model: nn.Module, *, mean: float, std: float):
        super().__init__()
        weight, bias = map_weights(model)
        self.body, self.mean, self.std = body_and_head(model)[0], mean, std
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return probabilities, logits and maps of grey images."""
        features = self.body((images.float() / 255 - self.mean) / self.std)
        features = features if features.ndim == 4 else features[:, :, None, None]
        maps = nn.functional.conv2d(features, self.weight[:, :, None, None])
        logits = maps.mean((2, 3)) + self.bias
        return logits.softmax(dim=1), logits, maps


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own progress and deprecations, which no reader can act on, out of a training's log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|onnx_ir)\.")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _forget_origin(proto) -> None:
    """Take out what the exporter writes of its own source: stack traces with the paths of this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
