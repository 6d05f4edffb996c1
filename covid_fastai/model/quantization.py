"""Rewrite the ONNX file of a saved model in 8-bit integers, calibrated on images, without torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from covid_fastai.model.bundle_config import ONNX_INPUT, ONNX_OUTPUTS
from covid_fastai.runtime import quantization_tools

__all__ = ["quantize_onnx"]

LAYERS = ["Conv", "Add", "MaxPool", "Relu"]  # of a convolutional body; products of two activations stay in 32 bits
BATCH = 16  # images of one calibration step


def quantize_onnx(content: bytes, images: np.ndarray) -> bytes:
    """Return an ONNX file that computes the same model in 8-bit integers.

    Weights are rounded per output channel and activations by the range that they have on the images (static
    quantization; Jacob et al., CVPR 2018). The last convolution, which gives the class activation maps, stays in 32
    bits: it takes hardly any time, and its rounding errors would reach the logits directly.

    Args:
        content: The bytes of `model.onnx`.
        images: Training images, uint8 `(n, 1, image_size, image_size)`, as the model sees them.

    Returns:
        The bytes of the file, with the same inputs, outputs and metadata.

    Raises:
        UnavailableError: The package onnx is not installed.
    """
    tools = quantization_tools()
    import onnx

    metadata = onnx.load_model_from_string(content).metadata_props
    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantized = (Path(folder) / name for name in ("given.onnx", "prepared.onnx", "int8.onnx"))
        given.write_bytes(content)
        tools.quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)  # which needs sympy
        tools.quantize_static(
            str(prepared),
            str(quantized),
            _Images(images),
            quant_format=tools.QuantFormat.QDQ,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=LAYERS,
            nodes_to_exclude=_last_nodes(onnx.load(str(prepared))),
        )
        model = onnx.load(str(quantized))
    opsets = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    del model.metadata_props[:], model.opset_import[:]  # ONNX Runtime names its own operators, which are not in use
    model.metadata_props.extend(metadata)
    model.opset_import.extend(opsets)
    return model.SerializeToString(deterministic=True)


class _Images:
    """The images as ONNX Runtime's `CalibrationDataReader` gives them."""

    def __init__(self, images: np.ndarray):
        self._batches: Iterator[np.ndarray] = (images[start : start + BATCH] for start in range(0, len(images), BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by the name of the input; None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {ONNX_INPUT: batch}


def _last_nodes(model) -> list[str]:
    """Return the names of the nodes that give the outputs of the model."""
    return [node.name for node in model.graph.node if set(node.output) & set(ONNX_OUTPUTS)]
