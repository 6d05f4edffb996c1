"""The shapes that are computed before a graph runs are those that ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from covid_fastai.model.onnx_operators import INTEGERS, RULES, Value, constant, infer
from covid_fastai.model.onnx_reader import DTYPES, GraphError, OnnxNode, read_graph
from covid_fastai.runtime import onnxruntime

X = (2, 8, 7, 9)  # of the input x
CONSTANTS = {
    "w": np.zeros((6, 4, 3, 2), np.float32),
    "m": np.zeros((9, 5), np.float32),
    "b": np.zeros((8, 1, 1), np.float32),
    "nine": np.zeros(9, np.float32),
    "double": np.array([1, 1, 2, 2.3], np.float32),
    "rounded": np.array([1, 1, 9 / 7, 11 / 9], np.float32),  # 32 and 64 bits differ in the product
    "eight": np.zeros(8, np.float32),
    "flag": np.zeros((7, 1), bool),
}
CASES = [  # an operator, its inputs beside x (a list is a constant of integers) and its attributes
    ("Relu", [], {}),
    ("Softmax", [], {"axis": 1}),
    ("Cast", [], {"to": TensorProto.INT64}),
    ("Add", ["b"], {}),
    ("Where", ["flag", "x", "b"], {}),
    ("Greater", ["b"], {}),
    ("Conv", ["w"], {"group": 2}),
    ("Conv", ["w"], {"group": 2, "strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", ["w"], {"group": 2, "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("Conv", ["w"], {"group": 2, "auto_pad": "VALID"}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]}),
    ("AveragePool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("GlobalAveragePool", [], {}),
    ("ReduceMean", [[2, -1]], {"keepdims": 0}),
    ("ReduceMax", [[1]], {}),
    ("ReduceSum", [], {}),
    ("ReduceSum", [], {"noop_with_empty_axes": 1}),
    ("MatMul", ["m"], {}),
    ("Concat", ["x", "x"], {"axis": -2}),
    ("Split", [[3, 5]], {"axis": 1}),
    ("Split", [], {"axis": -1, "num_outputs": 2}),
    ("Slice", [[1], [-1], [2]], {}),
    ("Slice", [[-2, 0], [1 << 40, 9], [3, 1], [1, 3]], {}),
    ("Slice", [[-1], [-1 << 40], [3], [-2]], {}),
    ("Gather", [[[1, 0], [2, -1]]], {"axis": 2}),
    ("GatherND", [[[1, 2, 3], [0, -1, 0]]], {}),
    ("GatherND", [[[3], [-1]]], {"batch_dims": 1}),
    ("GatherElements", [[[[[0, 1]]]]], {"axis": 3}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [], {}),
    ("Reshape", [[0, -1, 9]], {}),
    ("Flatten", [], {"axis": 2}),
    ("Unsqueeze", [[0, -1]], {}),
    ("Expand", [[3, 1, 8, 7, 1]], {}),
    ("Tile", [[1, 2, 3, 1]], {}),
    ("Pad", [[0, 0, 1, 2, 0, 0, 3, -1]], {}),
    ("Pad", [[1, 2, 0, 1], "", [2, 3]], {}),
    ("Resize", ["", "", [2, 8, 20, 3]], {"mode": "linear"}),
    ("Resize", ["", "", [20, 3]], {"mode": "nearest", "axes": [2, 3], "keep_aspect_ratio_policy": "stretch"}),
    ("Resize", ["", "double"], {"mode": "nearest"}),
    ("Resize", ["", "rounded"], {"mode": "nearest"}),
    ("DepthToSpace", [], {"blocksize": 2}),
    ("LayerNormalization", ["nine"], {}),
    ("BatchNormalization", ["eight", "eight", "eight", "eight"], {}),
    ("Shape", [], {"start": 1, "end": -1}),
    ("Dropout", [], {}),
    ("PRelu", ["b"], {}),
    ("Clip", [], {}),
]


def build(operator, inputs, attributes) -> onnx.ModelProto:
    constants, names = dict(CONSTANTS), [] if operator == "Where" else ["x"]
    for number, value in enumerate(inputs):
        names.append(value if isinstance(value, str) else f"given{number}")
        if not isinstance(value, str):
            constants[f"given{number}"] = np.array(value, np.int64)
    outputs = ["out", "out2"] if operator == "Split" else ["out"]
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in names]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(X))]
    kind = {"Cast": TensorProto.INT64, "Shape": TensorProto.INT64, "Greater": TensorProto.BOOL}
    made = [helper.make_tensor_value_info(name, kind.get(operator, TensorProto.FLOAT), None) for name in outputs]
    graph = helper.make_graph([helper.make_node(operator, names, outputs, **attributes)], "one", given, made, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    return model


def shapes_before(content: bytes) -> dict[str, Value | None]:
    graph = read_graph(content)
    values = {name: constant(tensor) for name, tensor in graph.constants.items()} | {"": None, "x": Value(X, 1)}
    for node in graph.nodes:
        values |= zip(node.outputs, infer(node, [values[name] for name in node.inputs], graph.opset), strict=True)
    return values


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_shape_is_that_of_onnx_runtime(number):
    content = build(*CASES[number]).SerializeToString()
    values = shapes_before(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, array in zip(names, session.run(names, {"x": np.zeros(X, np.float32)}), strict=True):
        assert values[name].shape == array.shape
        if values[name].known is not None:
            np.testing.assert_array_equal(values[name].known, array)


def test_every_operator_of_the_list_is_one_of_onnx():
    newest = onnx.defs.onnx_opset_version()
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert RULES.keys() <= known and newest >= 20
    assert not {name for name in RULES if "Random" in name or name in ("Bernoulli", "Multinomial")}
    attributes = [attribute for name in RULES for attribute in onnx.defs.get_schema(name).attributes.values()]
    assert all(attribute.type != onnx.defs.OpSchema.AttrType.GRAPH for attribute in attributes)


@pytest.mark.parametrize(
    ("left", "right", "name", "wanted"),
    [(7, 2, "Div", 3), (-7, 2, "Div", -3), (5, 3, "Sub", 2), (1 << 40, 1 << 40, "Mul", None), (2, 2, "Equal", True)],
)
def test_small_integers_are_computed_as_onnx_does(left, right, name, wanted):
    values = [Value((), 7, np.array(value, np.int64), fixed=True) for value in (left, right)]
    node = read_graph(build(name, ["b"], {}).SerializeToString()).nodes[0]
    (output,) = infer(node, values, 20)
    assert (output.known if wanted is None else output.known.item()) == wanted and output.fixed


def test_integers_are_divided_by_known_numbers_only():
    node = read_graph(build("Div", ["b"], {}).SerializeToString()).nodes[0]
    for kind in INTEGERS:
        with pytest.raises(GraphError, match="divides integers"):
            infer(node, [Value((2,), kind), Value((2,), kind)], 20)
    assert infer(node, [Value((2,), 1), Value((2,), 1)], 20)[0].shape == (2,)


@pytest.mark.parametrize(("shape", "kind"), [((), np.uint8), ((8,), np.int8)])  # of a tensor, of each channel
def test_8_bit_integers_have_the_shape_of_their_numbers(shape, kind):
    kept = {"scale": np.full(shape, 0.1, np.float32), "zero": np.zeros(shape, kind)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["short"], axis=1),
        helper.make_node("DequantizeLinear", ["short", "scale", "zero"], ["out"], axis=1),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(X))]
    made = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(value, name) for name, value in kept.items()]
    graph = helper.make_graph(nodes, "integers", given, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (array,) = session.run(["out"], {"x": np.zeros(X, np.float32)})
    values = shapes_before(content)
    assert values["out"].shape == values["short"].shape == array.shape
    assert DTYPES[values["short"].type] == kind and DTYPES[values["out"].type] == array.dtype


@pytest.mark.parametrize(
    ("operator", "changed", "attributes", "words"),
    [
        ("QuantizeLinear", {1: Value((), 1)}, {}, "scale"),  # which depends on the pixels
        ("DequantizeLinear", {0: Value(X, 2), 1: Value((7,), 1, fixed=True)}, {"axis": 1}, "scale"),
        ("DequantizeLinear", {0: Value(X, 2)}, {"block_size": 2}, "blocks"),
        ("QuantizeLinear", {2: Value((), 6, fixed=True)}, {}, "8-bit integers"),
        ("QuantizeLinear", {0: Value(X, 6)}, {}, "8-bit integers"),
        ("DequantizeLinear", {0: Value(X, 7)}, {}, "integers of 8 or 32 bits"),
    ],
)
def test_other_integers_are_refused(operator, changed, attributes, words):
    inputs = {0: Value(X, 1), 1: Value((), 1, fixed=True), 2: Value((), 2, fixed=True)} | changed
    with pytest.raises(GraphError, match=words):
        infer(OnnxNode(operator, ("x", "scale", "zero"), ("out",), attributes), [*inputs.values()], 20)
