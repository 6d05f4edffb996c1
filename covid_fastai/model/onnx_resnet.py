"""Write torchvision's ResNets as ONNX graphs, which takes a tenth of a second instead of torch.export's seconds."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from covid_fastai.model.bundle_config import ONNX_INPUT, ONNX_OUTPUTS

__all__ = ["is_plain_resnet", "write_body", "write_resnet"]

IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads
LAYERS = {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d}
CONTAINERS = {nn.Sequential, BasicBlock, Bottleneck}  # whose `forward` is known to have no branches


def is_plain_resnet(body: nn.Module) -> bool:
    """Return whether `write_resnet` knows every layer of a body and none is used twice.

    A subclass of a known layer may compute something else, so it is not known.
    """
    layers = [layer for _, layer in body.named_modules(remove_duplicate=False)]
    return len(layers) == len(set(layers)) and all(map(_is_plain, layers))


def _is_plain(module: nn.Module) -> bool:
    if type(module) not in LAYERS | CONTAINERS or module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if isinstance(module, nn.BatchNorm2d):
        return module.affine and module.track_running_stats
    return not isinstance(module, nn.MaxPool2d) or not module.return_indices


@torch.no_grad()
def write_resnet(
    body: nn.Module,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    image_size: int,
    mean: float,
    std: float,
    opset: int,
) -> onnx.ModelProto:
    """Write normalisation, body and head as the ONNX graph that `export_onnx` describes.

    BatchNorm is folded into the convolution before it.

    Args:
        body: A body for which `is_plain_resnet` is true, in evaluation mode, in 32 bits and on the CPU.
        weight: The weights of the class activation maps, `(classes, features)`, as `map_weights` returns them.
        bias: The constants of the logits, `(classes,)`.
        image_size: Side of the square input, pixels.
        mean: As in `export_onnx`.
        std: As in `export_onnx`.
        opset: The version of ONNX's operators, 18 or later.
    """
    graph = _Graph()
    pixels = graph.add("Cast", [ONNX_INPUT], "pixels", to=TensorProto.FLOAT)
    scaled = graph.add("Div", [pixels, graph.store("largest_pixel", torch.tensor(255.0))], "scaled")
    centred = graph.add("Sub", [scaled, graph.store("mean", torch.tensor(mean))], "centred")
    normalised = graph.add("Div", [centred, graph.store("std", torch.tensor(std))], "normalised")
    features = _write_body(graph, body, normalised)
    probabilities, logits, maps = ONNX_OUTPUTS
    graph.add("Conv", [features, graph.store("maps.weight", weight[:, :, None, None])], maps)
    means = graph.add("ReduceMean", [maps, graph.store("axes", torch.tensor([2, 3]))], "map_means", keepdims=0)
    graph.add("Add", [means, graph.store("maps.bias", bias)], logits)
    graph.add("Softmax", [logits], probabilities, axis=1)
    classes = len(bias)
    outputs = {
        probabilities: ["n", classes],
        logits: ["n", classes],
        maps: ["n", classes, *_map_size(body, image_size)],
    }
    proto = helper.make_graph(
        graph.nodes,
        "classifier",
        [helper.make_tensor_value_info(ONNX_INPUT, TensorProto.UINT8, ["n", 1, image_size, image_size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        graph.initialisers,
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


@torch.no_grad()
def write_body(body: nn.Module, *, opset: int) -> onnx.ModelProto:
    """Write a body alone: normalised images, float `(n, channels, h, w)`, to their features, `(n, features, 1, 1)`.

    Args:
        body: As in `write_resnet`.
        opset: As in `write_resnet`.
    """
    graph = _Graph()
    graph.add("GlobalAveragePool", [_write_body(graph, body, ONNX_INPUT)], "features")
    channels = next(layer.in_channels for layer in body.modules() if isinstance(layer, nn.Conv2d))
    proto = helper.make_graph(
        graph.nodes,
        "body",
        [helper.make_tensor_value_info(ONNX_INPUT, TensorProto.FLOAT, ["n", channels, "h", "w"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        graph.initialisers,
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def _map_size(body: nn.Module, image_size: int) -> tuple[int, ...]:
    """Return height and width of the feature maps, from a computation without values."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in body.state_dict().items()}
    features = functional_call(body, state, torch.empty(1, 1, image_size, image_size, device="meta"))
    return tuple(features.shape[2:])


class _Graph:
    """The nodes and constants of an ONNX graph while it is written."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[TensorProto] = []

    def add(self, operation: str, inputs: Sequence[str], output: str, **attributes) -> str:
        """Add a node; return the name of its output."""
        self.nodes.append(helper.make_node(operation, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def store(self, name: str, tensor: torch.Tensor) -> str:
        """Add a constant; return its name."""
        self.initialisers.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name


def _write_body(graph: _Graph, body: nn.Module, images: str) -> str:
    """Write the body's layers in the order of their computation; return the name of the features."""
    modules, written = dict(body.named_modules()), {}
    for node in fx.symbolic_trace(body).graph.nodes:
        inputs = [written[given] for given in node.all_input_nodes]
        if node.op == "placeholder":
            written[node] = images
        elif node.op == "output":
            return inputs[0]
        elif node.op == "call_module" and node not in written:
            written[node] = _write_layer(graph, node, modules, inputs[0], written)
        elif node.op == "call_function":
            assert node.target is operator.add, node.target  # the only function in CONTAINERS beside layers
            written[node] = graph.add("Add", inputs, f"body.{node.name}")
    raise AssertionError("A traced module ends with its output.")


def _write_layer(
    graph: _Graph, node: fx.Node, modules: dict[str, nn.Module], given: str, written: dict[fx.Node, str]
) -> str:
    """Write one layer, a convolution together with its BatchNorm; return the name of its output."""
    layer, name = modules[str(node.target)], f"body.{node.name}"
    if isinstance(layer, nn.Conv2d):
        weight, bias, users = layer.weight, layer.bias, list(node.users)
        norm = modules.get(str(users[0].target)) if len(users) == 1 and users[0].op == "call_module" else None
        if isinstance(norm, nn.BatchNorm2d):
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None and variance is not None  # as `is_plain_resnet` has checked
            weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, norm.weight, norm.bias)
            written[users[0]] = name
        inputs = [given, graph.store(f"{name}.weight", weight)]
        inputs += [] if bias is None else [graph.store(f"{name}.bias", bias)]
        return graph.add("Conv", inputs, name, group=layer.groups, **_window(layer))
    if isinstance(layer, nn.BatchNorm2d):
        names = ("weight", "bias", "running_mean", "running_var")
        tensors = [graph.store(f"{name}.{tensor}", getattr(layer, tensor)) for tensor in names]
        return graph.add("BatchNormalization", [given, *tensors], name, epsilon=layer.eps)
    if isinstance(layer, nn.MaxPool2d):
        return graph.add("MaxPool", [given], name, ceil_mode=int(layer.ceil_mode), **_window(layer))
    assert isinstance(layer, nn.ReLU), layer  # as `is_plain_resnet` has checked
    return graph.add("Relu", [given], name)


def _window(layer: nn.Conv2d | nn.MaxPool2d) -> dict[str, list[int]]:
    """Return ONNX's attributes of a window that moves over rows and columns."""
    padding = _pair(layer.padding)
    return {
        "kernel_shape": _pair(layer.kernel_size),
        "strides": _pair(layer.stride),
        "dilations": _pair(layer.dilation),
        "pads": [*padding, *padding],  # before, then after
    }


def _pair(value) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
