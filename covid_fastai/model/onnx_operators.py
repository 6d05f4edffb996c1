"""The operators that a saved model may have, each with the shape of its output, and no others.

There is no loop, no condition and no random number among them, and no operator whose output depends in its shape on the
pixels. So the memory and the time of a graph are known before it runs. The rules are those of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from covid_fastai.model.onnx_reader import DTYPES, GraphError, OnnxNode, OnnxTensor

__all__ = ["Value", "infer", "work_of"]

MOST_KNOWN = 1024  # values of a small tensor that are computed here, such as a shape
LARGEST_SIDE = 1 << 40
FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9
INTEGERS = {2, 3, 6, 7}
SMALL_INTEGERS = {2, 3}  # of 8 bits


class Value(NamedTuple):
    """What is known of a tensor before the graph runs.

    Attributes:
        shape: Its shape.
        type: The number of its type in `DTYPES`.
        known: Its values, if it is small and does not depend on the pixels.
        fixed: Whether it depends on constants only, so that ONNX Runtime may compute it when it opens the file.
    """

    shape: tuple[int, ...]
    type: int
    known: np.ndarray | None = None
    fixed: bool = False

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Call:
    """An operation and what is known of its inputs."""

    node: OnnxNode
    inputs: tuple[Value | None, ...]
    opset: int

    def __getitem__(self, number: int) -> Value:
        value = self.given(number)
        if value is None:
            raise GraphError(f"its operator {self.node.operator} lacks an input")
        return value

    def given(self, number: int) -> Value | None:
        """Return an input that may be left out."""
        return self.inputs[number] if number < len(self.inputs) else None

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute of the operation."""
        value = self.node.attributes.get(name, default)
        if default is not None and not isinstance(value, type(default)):
            raise GraphError(f"its operator {self.node.operator} has {name} of another type")
        return value

    def integers(self, number: int) -> list[int]:
        """Return the values of an input that a shape is computed from."""
        known = self[number].known
        if known is None or self[number].type not in INTEGERS:  # guard: onnx_known
            raise GraphError(f"the size of an output of its operator {self.node.operator} depends on the pixels")
        return [int(value) for value in known.reshape(-1)]

    def axes(self, number: int, ndim: int) -> list[int] | None:
        """Return the axes of an operation, from an attribute or, in newer versions, an input; None if not given."""
        if "axes" in self.node.attributes:
            axes = self.attribute("axes", [])
        elif self.given(number) is None:
            return None
        else:
            axes = self.integers(number)
        return [_axis(axis, ndim) for axis in axes]


Rule = Callable[[Call], Value]


def infer(node: OnnxNode, inputs: Sequence[Value | None], opset: int) -> list[Value]:
    """Return what is known of the outputs of an operation.

    Args:
        node: The operation.
        inputs: What is known of its inputs; None for one that is left out.
        opset: The version of the operators.

    Raises:
        GraphError: The operator is not allowed, or its inputs are not those that it takes.
    """
    call = Call(node, tuple(inputs), opset)
    if node.operator == "Split":
        outputs = _split(call)
    else:
        rule = RULES.get(node.operator)
        if rule is None:  # guard: onnx_operator
            raise GraphError(f"it has the operator {node.operator[:100]!r}, which is not allowed")
        outputs = [rule(call)]
    if len(outputs) != len(node.outputs):
        raise GraphError(f"its operator {node.operator} has {len(node.outputs)} outputs, and not {len(outputs)}")
    if any(not 0 <= side < LARGEST_SIDE for output in outputs for side in output.shape):
        raise GraphError(f"its operator {node.operator} has an output of the shape {outputs[0].shape}")
    fixed = all(value is None or value.fixed or value.known is not None for value in inputs)
    outputs = [output._replace(fixed=fixed) for output in outputs]
    if len(outputs) == 1 and outputs[0].known is None:
        outputs[0] = outputs[0]._replace(known=_compute(call, outputs[0]))
    if any(output.size == 0 and output.known is None for output in outputs):  # a factor that would hide the others
        raise GraphError(f"its operator {node.operator} has an output without values")
    return outputs


def work_of(node: OnnxNode, inputs: Sequence[Value | None], outputs: Sequence[Value]) -> int:
    """Return about how many additions and multiplications an operation needs."""
    size = sum(output.size for output in outputs)
    if node.operator == "Conv":
        assert inputs[1] is not None  # the rule has checked it
        return size * math.prod(inputs[1].shape[1:])
    if node.operator in ("MatMul", "Gemm"):
        assert inputs[0] is not None
        return size * inputs[0].shape[-2 if node.attributes.get("transA") else -1]
    window = math.prod(node.attributes.get("kernel_shape", ()))
    return size * max(1, window) + sum(value.size for value in inputs if value is not None)


# rules of shapes


def _axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise GraphError(f"it has the axis {axis} of a tensor with {ndim} axes")
    return axis % ndim


def _same(call: Call) -> Value:
    return Value(call[0].shape, call[0].type)


def _dropout(call: Call) -> Value:
    if call.given(2) is not None:  # guard: onnx_dropout
        raise GraphError("it has a Dropout that may be switched on, which sets random values to 0")
    return _same(call)


def _broadcast_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    sides = []
    for column in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1):
        different = set(column) - {1}
        if len(different) > 1:
            raise GraphError(f"it combines tensors of the shapes {', '.join(map(str, shapes))}")
        sides.append(different.pop() if different else 1)
    return tuple(reversed(sides))


def _broadcast(call: Call) -> Value:
    inputs = [call[number] for number in range(len(call.inputs))]
    kind = inputs[1 if call.node.operator == "Where" else 0].type
    if call.node.operator in ("Div", "Mod") and kind in INTEGERS:
        divisor = inputs[1].known
        if divisor is None or not (divisor > 0).all():  # guard: onnx_divisor
            raise GraphError("it divides integers by a number that is not known to be above 0")
    if call.node.operator in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or"):
        kind = BOOL
    return Value(_broadcast_shapes([value.shape for value in inputs]), kind)


def _cast(call: Call) -> Value:
    kind = call.attribute("to", 0)
    if kind not in DTYPES:
        raise GraphError(f"it converts numbers to the type {kind}")
    return Value(call[0].shape, kind)


def _quantize(call: Call) -> Value:
    kind = call[2].type  # that of the zero point
    if kind not in SMALL_INTEGERS or call[0].type != FLOAT:
        raise GraphError("it quantizes to other numbers than 8-bit integers")
    _check_scale(call)
    return Value(call[0].shape, kind)


def _dequantize(call: Call) -> Value:
    if call[0].type not in (*SMALL_INTEGERS, INT32):
        raise GraphError("it dequantizes other numbers than integers of 8 or 32 bits")
    _check_scale(call)
    return Value(call[0].shape, FLOAT)


def _check_scale(call: Call) -> None:
    """Raise unless the scale is a constant, for the whole tensor or for each channel."""
    shape, scale = call[0].shape, call[1]
    channels = shape[_axis(call.attribute("axis", 1), len(shape))] if scale.shape else 0
    if not scale.fixed or scale.type != FLOAT or scale.shape not in ((), (1,), (channels,)):  # guard: onnx_scale
        raise GraphError(f"its operator {call.node.operator} has a scale of the shape {scale.shape}, or none")
    if call.attribute("block_size", 0):
        raise GraphError(f"its operator {call.node.operator} has a scale for blocks")


def _windows(call: Call, sides: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Return the number of positions of a window along each side."""
    n = len(sides)
    strides, dilations = (call.attribute(name, []) or [1] * n for name in ("strides", "dilations"))
    pads, auto = call.attribute("pads", []) or [0] * 2 * n, call.attribute("auto_pad", "") or "NOTSET"
    lengths = (len(kernel), len(strides), len(dilations), len(pads) - n)
    if set(lengths) != {n} or min([*strides, *dilations, *kernel]) < 1 or min(pads) < 0:
        raise GraphError(f"its operator {call.node.operator} has a window that is not allowed")
    positions = []
    for number, side in enumerate(sides):
        window, stride = dilations[number] * (kernel[number] - 1) + 1, strides[number]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            positions.append(-(-side // stride))
            continue
        before, after = (0, 0) if auto == "VALID" else (pads[number], pads[number + n])
        room = side + before + after - window
        if call.attribute("ceil_mode", 0):
            count = -(-room // stride) + 1
            count -= (count - 1) * stride >= side + before  # a window starts inside the image
        else:
            count = room // stride + 1
        if room < 0:
            raise GraphError(f"its operator {call.node.operator} has a window that is larger than its input")
        positions.append(count)
    return tuple(positions)


def _conv(call: Call) -> Value:
    images, weights = call[0].shape, call[1].shape
    group, kernel = call.attribute("group", 1), tuple(call.attribute("kernel_shape", []) or weights[2:])
    if len(images) < 3 or len(images) != len(weights) or group < 1 or weights[0] % group:
        raise GraphError("its convolution has weights of another shape")
    if images[1] != weights[1] * group or kernel != weights[2:]:
        raise GraphError(f"its convolution has weights {weights} for images {images}")
    return Value((images[0], weights[0], *_windows(call, images[2:], kernel)), call[0].type)


def _pool(call: Call) -> Value:
    images = call[0].shape
    if len(images) < 3:
        raise GraphError(f"its operator {call.node.operator} has an input of the shape {images}")
    return Value((*images[:2], *_windows(call, images[2:], call.attribute("kernel_shape", []))), call[0].type)


def _global_pool(call: Call) -> Value:
    return Value((*call[0].shape[:2], *[1] * (len(call[0].shape) - 2)), call[0].type)


def _reduce(call: Call) -> Value:
    shape = call[0].shape
    axes = call.axes(1, len(shape))
    if not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(len(shape)))
    if call.attribute("keepdims", 1):
        return Value(tuple(1 if axis in axes else side for axis, side in enumerate(shape)), call[0].type)
    return Value(tuple(side for axis, side in enumerate(shape) if axis not in axes), call[0].type)


def _matmul(call: Call) -> Value:
    left, right = call[0].shape, call[1].shape
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        raise GraphError(f"it multiplies matrices of the shapes {left} and {right}")
    return Value((*_broadcast_shapes([left[:-2], right[:-2]]), left[-2], right[-1]), call[0].type)


def _gemm(call: Call) -> Value:
    if len(call[0].shape) != 2 or len(call[1].shape) != 2:
        raise GraphError("it multiplies matrices that are not matrices")
    left, right = call[0].shape, call[1].shape
    left = left[::-1] if call.attribute("transA", 0) else left
    right = right[::-1] if call.attribute("transB", 0) else right
    if left[1] != right[0]:
        raise GraphError(f"it multiplies matrices of the shapes {left} and {right}")
    shape = (left[0], right[1])
    added = call.given(2)
    if added is not None and _broadcast_shapes([shape, added.shape]) != shape:
        raise GraphError(f"it adds {added.shape} to {shape}")
    return Value(shape, call[0].type)


def _concat(call: Call) -> Value:
    shapes = [call[number].shape for number in range(len(call.inputs))]
    axis = _axis(call.attribute("axis", 0), len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) != 1 or len({len(shape) for shape in shapes}) != 1:
        raise GraphError(f"it joins tensors of the shapes {', '.join(map(str, shapes))[:200]}")
    total = sum(shape[axis] for shape in shapes)
    return Value((*shapes[0][:axis], total, *shapes[0][axis + 1 :]), call[0].type)


def _split(call: Call) -> list[Value]:
    shape, n = call[0].shape, len(call.node.outputs)
    axis = _axis(call.attribute("axis", 0), len(shape))
    if call.given(1) is not None:
        sides = call.integers(1)
    else:
        side = -(-shape[axis] // n)
        sides = [side] * (n - 1) + [shape[axis] - side * (n - 1)]
    if sum(sides) != shape[axis] or min(sides) < 0:
        raise GraphError(f"it splits {shape[axis]} into {sides}")
    return [Value((*shape[:axis], side, *shape[axis + 1 :]), call[0].type) for side in sides]


def _slices(call: Call) -> tuple[slice, ...]:
    shape = call[0].shape
    starts, ends = call.integers(1), call.integers(2)
    axes = call.axes(3, len(shape)) if call.given(3) is not None else list(range(len(starts)))
    steps = call.integers(4) if call.given(4) is not None else [1] * len(starts)
    assert axes is not None
    if len({len(starts), len(ends), len(axes), len(steps)}) != 1 or 0 in steps or len(set(axes)) != len(axes):
        raise GraphError("it cuts a tensor in a way that is not allowed")
    slices = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0 and start < -shape[axis]:  # readers differ in what this is
            raise GraphError("it cuts a tensor in a way that is not allowed")
        if step < 0 and end < -shape[axis]:
            slices[axis] = slice(start, None, step)  # up to the first value
        else:
            slices[axis] = slice(start, end, step)
    return tuple(slices)


def _slice(call: Call) -> Value:
    cut = zip(_slices(call), call[0].shape, strict=True)
    return Value(tuple(len(range(*part.indices(side))) for part, side in cut), call[0].type)


def _gather(call: Call) -> Value:
    shape, axis = call[0].shape, _axis(call.attribute("axis", 0), len(call[0].shape))
    return Value((*shape[:axis], *call[1].shape, *shape[axis + 1 :]), call[0].type)


def _gather_each(call: Call) -> Value:
    if len(call[0].shape) != len(call[1].shape):
        raise GraphError(f"it picks {call[1].shape} values of {call[0].shape}")
    return Value(call[1].shape, call[0].type)


def _gather_nd(call: Call) -> Value:
    (shape, places), together = (call[0].shape, call[1].shape), call.attribute("batch_dims", 0)
    first = together + places[-1]
    if (
        not 0 <= together < len(places)
        or not 1 <= places[-1]
        or first > len(shape)
        or places[:together] != shape[:together]
    ):
        raise GraphError(f"it picks values of {shape} at {places}")
    return Value((*places[:-1], *shape[first:]), call[0].type)


def _transpose(call: Call) -> Value:
    shape = call[0].shape
    order = call.attribute("perm", []) or list(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise GraphError(f"it transposes {shape} to {order}")
    return Value(tuple(shape[axis] for axis in order), call[0].type)


def _reshape(call: Call) -> Value:
    shape, wanted = call[0].shape, call.integers(1)
    if not call.attribute("allowzero", 0):
        wanted = [shape[axis] if side == 0 else side for axis, side in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = call[0].size // rest if rest else 0
    if math.prod(wanted) != call[0].size or min(wanted, default=0) < 0:
        raise GraphError(f"it reshapes {shape} to {wanted}")
    return Value(tuple(wanted), call[0].type)


def _flatten(call: Call) -> Value:
    shape, axis = call[0].shape, call.attribute("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return Value((math.prod(shape[:axis]), math.prod(shape[axis:])), call[0].type)


def _squeeze(call: Call) -> Value:
    shape = call[0].shape
    axes = call.axes(1, len(shape))
    axes = [axis for axis, side in enumerate(shape) if side == 1] if axes is None else axes
    if any(shape[axis] != 1 for axis in axes):
        raise GraphError(f"it removes the axes {axes} of {shape}")
    return Value(tuple(side for axis, side in enumerate(shape) if axis not in axes), call[0].type)


def _unsqueeze(call: Call) -> Value:
    added = len(call.attribute("axes", [])) if "axes" in call.node.attributes else len(call.integers(1))
    ndim = len(call[0].shape) + added
    axes, sides = set(call.axes(1, ndim) or ()), list(call[0].shape)
    if len(axes) != added:
        raise GraphError("it adds an axis twice")
    return Value(tuple(1 if axis in axes else sides.pop(0) for axis in range(ndim)), call[0].type)


def _expand(call: Call) -> Value:
    return Value(_broadcast_shapes([call[0].shape, tuple(call.integers(1))]), call[0].type)


def _tile(call: Call) -> Value:
    repeats = call.integers(1)
    return Value(tuple(a * b for a, b in zip(call[0].shape, repeats, strict=True)), call[0].type)


def _pad(call: Call) -> Value:
    shape, pads = call[0].shape, call.integers(1)
    axes = call.axes(3, len(shape))
    axes = list(range(len(shape))) if axes is None else axes
    sides = list(shape)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if call.attribute("mode", "constant") != "constant" and max(before, after) >= shape[axis]:
            raise GraphError("it mirrors more of an image than there is")
        if min(before, after) < -shape[axis]:
            raise GraphError("it removes more of an image than there is")
        sides[axis] += before + after
    return Value(tuple(sides), call[0].type)


def _resize(call: Call) -> Value:
    sides, scales = list(call[0].shape), call.given(2)
    modes = call.attribute("keep_aspect_ratio_policy", "stretch"), call.attribute("coordinate_transformation_mode", "")
    if modes[0] != "stretch" or modes[1] == "tf_crop_and_resize":
        raise GraphError("it resizes images in a way that is not allowed")
    axes = [_axis(axis, len(sides)) for axis in call.attribute("axes", [])] or list(range(len(sides)))
    if call.given(3) is not None:
        wanted = call.integers(3)
    elif scales is not None and scales.known is not None:
        factors = zip(axes, scales.known.reshape(-1), strict=True)
        wanted = [math.floor(np.float32(sides[axis]) * np.float32(factor)) for axis, factor in factors]  # in 32 bits
    else:
        raise GraphError("the size of an output of its operator Resize depends on the pixels")
    for axis, side in zip(axes, wanted, strict=True):
        sides[axis] = side
    return Value(tuple(sides), call[0].type)


def _depth_to_space(call: Call) -> Value:
    (n, channels, height, width), block = call[0].shape, call.attribute("blocksize", 1)
    if call.node.operator == "DepthToSpace":
        return Value((n, channels // block**2, height * block, width * block), call[0].type)
    return Value((n, channels * block**2, height // block, width // block), call[0].type)


def _shape(call: Call) -> Value:
    end = call.attribute("end", len(call[0].shape))
    sides = np.array(call[0].shape[call.attribute("start", 0) : end], dtype=np.int64)
    return Value(sides.shape, INT64, sides)


def _constant(call: Call) -> Value:
    (name,) = call.node.attributes
    value = call.node.attributes[name]
    if isinstance(value, OnnxTensor):
        return constant(value)
    kind = FLOAT if name.startswith("value_float") else INT64
    values = np.array(value, dtype=DTYPES[kind])
    return Value(values.shape, kind, values)


def constant(tensor: OnnxTensor) -> Value:
    """Return what is known of a constant."""
    known = tensor.values() if math.prod(tensor.shape) <= MOST_KNOWN else None
    return Value(tensor.shape, tensor.type, known, fixed=True)


def _filled(call: Call) -> Value:
    tensor = call.node.attributes.get("value")
    return Value(tuple(call.integers(0)), FLOAT if tensor is None else tensor.type)


def _range(call: Call) -> Value:
    start, limit, step = (call.integers(number)[0] for number in range(3))
    if step == 0:
        raise GraphError("it counts in steps of 0")
    return Value((len(range(start, limit, step)),), call[0].type)


SAME = (
    "Abs BatchNormalization Ceil Clip Cos Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid "
    "HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax LpNormalization Mish "
    "Neg Not RMSNormalization Reciprocal Relu Round Selu Sigmoid Sin Softmax Softplus Softsign Sqrt Swish Tanh "
    "ThresholdedRelu"
)
BROADCAST = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or PRelu Pow Sub Sum Where"
REDUCE = "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare"
RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME.split(), _same),
    **dict.fromkeys(BROADCAST.split(), _broadcast),
    **dict.fromkeys(REDUCE.split(), _reduce),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth_to_space),
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Conv": _conv,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_each,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


# values of small tensors, which shapes are computed from


def _divided(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Divide as ONNX does, integers towards 0; the divisor is above 0."""
    if left.dtype == object:  # integers
        return np.where(left < 0, -(-left // right), left // right)
    return left / right


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Div": _divided,
    "Equal": np.equal,
    "Identity": np.asarray,
    "Mul": np.multiply,
    "Sub": np.subtract,
    "Where": np.where,
}
RESHAPED = {"Expand", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}


def _compute(call: Call, output: Value) -> np.ndarray | None:
    """Return the values of a small output whose inputs are known; None if they are not needed for any shape."""
    name = call.node.operator
    inputs = [value.known for value in call.inputs if value is not None and value.known is not None]
    if output.size > MOST_KNOWN or len(inputs) != len(call.inputs):
        return None
    if name == "Range":
        start, limit, step = (call.integers(number)[0] for number in range(3))
        values = np.arange(start, limit, step)
    elif name == "ConstantOfShape":
        tensor = call.node.attributes.get("value")
        values = np.full(output.shape, 0.0 if tensor is None else tensor.values().reshape(-1)[0])
    elif name in RESHAPED:
        values = np.broadcast_to(inputs[0], output.shape) if name == "Expand" else inputs[0].reshape(output.shape)
    elif name == "Cast":
        values = inputs[0]
    elif name == "Concat":
        values = np.concatenate(inputs, axis=call.attribute("axis", 0))
    elif name == "Gather":
        values = np.take(inputs[0], inputs[1], axis=call.attribute("axis", 0))
    elif name == "Slice":
        values = inputs[0][_slices(call)]
    elif name in ARITHMETIC:
        # integers without a limit, so that too large ones are seen below
        exact = [known.astype(object) if known.dtype.kind == "i" else known for known in inputs]
        values = ARITHMETIC[name](*exact)
    else:
        return None
    values = np.asarray(values)
    if output.type in INTEGERS and any(abs(int(value)) > LARGEST_SIDE for value in values.reshape(-1)):
        return None  # ONNX Runtime computes with 64 bits
    with np.errstate(all="ignore"):
        return values.astype(DTYPES[output.type])
