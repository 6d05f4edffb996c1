"""Export a trained model as one ONNX file, from pixels to probabilities, logits and class activation maps."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from covid_fastai.errors import UsageError
from covid_fastai.model.bundle_config import ONNX_INPUT, ONNX_OUTPUTS
from covid_fastai.model.learner import body_and_head, map_weights
from covid_fastai.model.onnx_resnet import is_plain_resnet, write_resnet
from covid_fastai.options import Region

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "export_graph", "export_onnx"]

OPSET = 20  # torch's exporter writes it without conversion; ONNX Runtime and ONNX Runtime Web read it since 1.17


def export_onnx(
    model: nn.Module, *, classes: Sequence[str], image_size: int, mean: float, std: float, region: Region = "frame"
) -> bytes:
    """Export a model of `build_learner` to ONNX, including its weights and its normalisation.

    The graph takes `images`, uint8 `(n, 1, image_size, image_size)` with intensities of 0 to 255 as `open_region`
    returns them, for any n. It returns `probabilities` and `logits`, `(n, classes)`, and `maps`, the class activation
    maps `(n, classes, h, w)`: the mean of a map over its cells, plus a constant of the class, is the logit. For a body
    without feature maps, the maps have one cell. The same model always gives the same bytes, which
    contain no path and no name of the machine.

    Args:
        model: `model[0]` is the body, `model[1]` the linear head; on any device, not changed.
        classes: The names of the outputs in order; stored in the file's metadata as JSON.
        image_size: Side of the square input, pixels.
        mean: Mean of the pixel intensities on the scale 0 to 1, which normalisation subtracts.
        std: Standard deviation of the pixel intensities, by which normalisation divides.
        region: What the model sees of an image; stored in the metadata, since the graph does not crop.

    Returns:
        The bytes of the file.

    Raises:
        UsageError: The body has an operation that torch cannot export to ONNX.
    """
    graph = _OnnxGraph(copy.deepcopy(model).float().cpu(), mean=mean, std=std)
    graph.eval().to(memory_format=torch.contiguous_format)  # channels_last would be exported as transpositions
    metadata = {"classes": json.dumps(list(classes)), "region": region, "use": "research only"}
    if is_plain_resnet(graph.body):
        proto = write_resnet(
            graph.body, graph.weight, graph.bias, image_size=image_size, mean=mean, std=std, opset=OPSET
        )
        _add_metadata(proto, metadata)
        return proto.SerializeToString(deterministic=True)
    try:
        proto = export_graph(graph, image_size=image_size, output_names=ONNX_OUTPUTS, metadata=metadata)
    except torch.onnx.OnnxExporterError as error:
        raise UsageError(
            f"This model cannot be exported to ONNX: {str(error).strip().splitlines()[0][:200]}.",
            hint="Use another architecture, such as resnet18.",
        ) from error
    return proto.SerializeToString(deterministic=True)


def export_graph(
    graph: nn.Module, *, image_size: int, output_names: Sequence[str], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Export a graph that takes `images`, uint8 `(n, 1, image_size, image_size)` for any n.

    Args:
        graph: The module, in evaluation mode and on the CPU.
        image_size: Side of the square input, pixels.
        output_names: The names of its outputs.
        metadata: Keys and values of the file's metadata.

    Returns:
        The file's content, without paths of this machine.

    Raises:
        torch.onnx.OnnxExporterError: The graph has an operation that torch cannot export.
    """
    images = torch.zeros((2, 1, image_size, image_size), dtype=torch.uint8)  # with n=1, n would be exported as constant
    with _quiet():
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[ONNX_INPUT],
            output_names=list(output_names),
            dynamic_shapes={ONNX_INPUT: {0: torch.export.Dim("n", min=1)}},
            external_data=False,
            verbose=False,
        )
    assert program is not None  # as `dynamo=True` returns it
    proto = program.model_proto
    _remove_source_info(proto)
    _add_metadata(proto, metadata)
    return proto


def _add_metadata(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)


class _OnnxGraph(nn.Module):
    """The graph: normalisation, body, and the head folded into one convolution, which also gives the maps."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, model: nn.Module, *, mean: float, std: float):
        super().__init__()
        weight, bias = map_weights(model)
        self.body, self.mean, self.std = body_and_head(model)[0], mean, std
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return probabilities, logits and class activation maps of images `(n, 1, h, w)`."""
        features = self.body((images.float() / 255 - self.mean) / self.std)
        features = features if features.ndim == 4 else features[:, :, None, None]
        maps = nn.functional.conv2d(features, self.weight[:, :, None, None])
        logits = maps.mean((2, 3)) + self.bias
        return logits.softmax(dim=1), logits, maps


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress messages and deprecation warnings, which users cannot act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|onnx_ir)\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _remove_source_info(proto) -> None:
    """Remove the exporter's stack traces, which contain paths of this machine."""
    graph = proto.graph
    for message in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
