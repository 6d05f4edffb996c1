"""Read the graph of an ONNX file strictly: what is not known is refused, so that no other reader can read more in it.

A file that somebody else wrote is read here before ONNX Runtime sees it. The reader knows the messages of `onnx.proto`
that the exports of this package use. Any other field is an error, and so is a field in another encoding or a single
field that stands twice, since two readers could understand these differently. Weights are not copied.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DTYPES", "GraphError", "OnnxGraph", "OnnxNode", "OnnxTensor", "read_graph"]

MOST_NODES = 20_000  # the largest networks of timm have some 3,000
MOST_NAMES = 100_000  # inputs and outputs of all nodes
MOST_DIMS = 8
OPSETS = range(13, 25)  # of the operators; before, some take from attributes what they take from inputs now
DTYPES = {  # the types of numbers, by their number in onnx.proto
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
}

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # the encodings of protocol buffers that are in use


class GraphError(ValueError):
    """A graph is not one that this package runs; the argument is the reason, as the end of a sentence."""


@dataclass(frozen=True)
class OnnxTensor:
    """A constant of a graph: its shape, the number of its type in `DTYPES`, and its bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    content: memoryview | bytes = field(repr=False)

    def values(self) -> np.ndarray:
        """Return the values; the array shares the memory of the file."""
        return np.frombuffer(self.content, DTYPES[self.type]).reshape(self.shape)


@dataclass(frozen=True)
class OnnxNode:
    """One operation of a graph; an input that is left out has the name ""."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class OnnxGraph:
    """A graph in the order of its computation.

    Attributes:
        nodes: The operations.
        constants: The weights and other constants by name.
        inputs: The names of the inputs.
        outputs: The names of the outputs.
        opset: The version of the operators.
    """

    nodes: tuple[OnnxNode, ...]
    constants: dict[str, OnnxTensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int


class _Field(NamedTuple):
    """A field of a message: its name, how it is read, and whether it may stand more than once."""

    name: str
    kind: str | Mapping[int, _Field]
    many: bool = False


def _refused(reason: str) -> _Field:
    return _Field(reason, "refused")


TENSOR = {
    1: _Field("dims", "int", many=True),
    2: _Field("type", "int"),
    3: _refused("it has a tensor in segments"),
    4: _Field("float_data", "float", many=True),
    5: _Field("int32_data", "int", many=True),
    6: _refused("it has a tensor of text"),
    7: _Field("int64_data", "int", many=True),
    8: _Field("name", "text"),
    9: _Field("raw_data", "bytes"),
    10: _Field("double_data", "double", many=True),
    11: _refused("it has a tensor of 64-bit numbers without a sign"),
    12: _Field("doc_string", "skipped"),
    13: _refused("it has weights outside of the file, which are never read"),
    14: _Field("data_location", "int"),
    16: _Field("metadata", "skipped", many=True),
}
ATTRIBUTE = {
    1: _Field("name", "text"),
    2: _Field("f", "float"),
    3: _Field("i", "int"),
    4: _Field("s", "text"),
    5: _Field("t", TENSOR),
    6: _refused("it has a graph within an operator, such as a loop"),
    7: _Field("floats", "float", many=True),
    8: _Field("ints", "int", many=True),
    11: _refused("it has graphs within an operator, such as a loop"),
    13: _Field("doc_string", "skipped"),
    20: _Field("type", "int"),
}
NODE = {
    1: _Field("inputs", "text", many=True),
    2: _Field("outputs", "text", many=True),
    3: _Field("name", "text"),
    4: _Field("operator", "text"),
    5: _Field("attributes", ATTRIBUTE, many=True),
    6: _Field("doc_string", "skipped"),
    7: _Field("domain", "text"),
    9: _Field("metadata", "skipped", many=True),
}
VALUE = {1: _Field("name", "text"), 2: _Field("value_type", "skipped"), 3: _Field("doc_string", "skipped")}
VALUE |= {4: _Field("metadata", "skipped", many=True)}
GRAPH = {
    1: _Field("nodes", NODE, many=True),
    2: _Field("name", "text"),
    5: _Field("constants", TENSOR, many=True),
    10: _Field("doc_string", "skipped"),
    11: _Field("inputs", VALUE, many=True),
    12: _Field("outputs", VALUE, many=True),
    13: _Field("value_info", "skipped", many=True),  # ONNX Runtime infers the shapes itself
    15: _refused("it has a sparse tensor, whose size in memory is not that in the file"),
    16: _Field("metadata", "skipped", many=True),
}
OPSET = {1: _Field("domain", "text"), 2: _Field("version", "int")}
MODEL = {
    1: _Field("ir_version", "int"),
    2: _Field("producer_name", "text"),
    3: _Field("producer_version", "text"),
    4: _Field("domain", "text"),
    5: _Field("model_version", "int"),
    6: _Field("doc_string", "skipped"),
    7: _Field("graph", GRAPH),
    8: _Field("opsets", OPSET, many=True),
    14: _Field("metadata", "skipped", many=True),
    20: _refused("it has a graph for training"),
    25: _refused("it has functions, which can call each other without end"),
}
VALUES_OF_TYPE = {1: ("f",), 2: ("i",), 3: ("s",), 4: ("t",), 6: ("floats",), 7: ("ints",)}  # of an attribute
DATA_OF_TYPE = {1: "float_data", 11: "double_data", 7: "int64_data"}  # of a tensor; other types are in int32_data


def read_graph(content: bytes) -> OnnxGraph:
    """Read the graph of an ONNX file.

    Args:
        content: The bytes of the file.

    Raises:
        GraphError: The file is damaged or is not ONNX, or has something that the exports of this package do not have,
            such as functions, graphs within operators, operators of other makers or weights outside of the file.
    """
    try:
        model = _read_message(memoryview(content), MODEL)
        return _as_graph(model)
    except (IndexError, KeyError, struct.error, TypeError, UnicodeDecodeError, OverflowError) as error:
        raise GraphError("it is damaged, or it is not an ONNX file") from error


# protocol buffers


def _read_message(data: memoryview, fields: Mapping[int, _Field]) -> dict[str, Any]:
    """Return the fields of a message by name; fields that may stand more than once are lists."""
    message: dict[str, Any] = {known.name: [] for known in fields.values() if known.many}
    for number, encoding, value in _read_fields(data):
        known = fields.get(number)
        if known is None:  # guard: onnx_field
            raise GraphError(f"it has a field that this package does not write (number {number})")
        if known.kind == "refused":  # guard: onnx_refused
            raise GraphError(known.name)
        read = _read_value(known, encoding, value)
        if known.many:
            message[known.name].extend(read if isinstance(read, list) else [read])
        elif known.name in message:  # the last one counts for some readers, the first one for others
            raise GraphError(f"it has a field twice that stands once ({known.name})")
        else:
            message[known.name] = read
    return message


def _read_fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield the number, the encoding and the undecoded value of each field."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        number, encoding = tag >> 3, tag & 7
        if encoding == VARINT:
            value, at = _read_varint(data, at)
        elif encoding in (FIXED64, BYTES, FIXED32):
            length = {FIXED64: 8, FIXED32: 4}.get(encoding)
            if length is None:
                length, at = _read_varint(data, at)
            if length > end - at:
                raise IndexError("the field ends after its message")
            value, at = data[at : at + length], at + length
        else:
            raise GraphError("it is damaged, or it is not an ONNX file")
        yield number, encoding, value


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise OverflowError("the number has more than 64 bits")


def _read_value(known: _Field, encoding: int, value: Any) -> Any:
    """Decode the value of a field; a list if it holds several numbers."""
    kind = known.kind
    wanted = {"int": VARINT, "float": FIXED32, "double": FIXED64}.get(kind, BYTES) if isinstance(kind, str) else BYTES
    packed = known.many and encoding == BYTES and wanted != BYTES
    if encoding != wanted and not packed:
        raise GraphError(f"it has a field in another encoding ({known.name})")
    if not isinstance(kind, str):
        return _read_message(value, kind)
    if kind == "int":
        return _read_ints(value) if packed else _signed(value)
    if kind in ("float", "double"):
        numbers = [number for (number,) in struct.iter_unpack("<f" if kind == "float" else "<d", value)]
        return numbers if packed else numbers[0]
    return str(value, "utf-8") if kind == "text" else value


def _read_ints(data: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        value, at = _read_varint(data, at)
        numbers.append(_signed(value))
    return numbers


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# what the messages mean


def _as_graph(model: dict[str, Any]) -> OnnxGraph:
    opsets = [(entry.get("domain", ""), entry["version"]) for entry in model["opsets"]]
    if len(opsets) != 1 or opsets[0][0] not in ("", "ai.onnx"):  # guard: onnx_domain
        names = ", ".join(repr(domain) for domain, _ in opsets)
        raise GraphError(f"it has operators of other makers than ONNX, or none (domains: {names[:200]})")
    if opsets[0][1] not in OPSETS:  # guard: onnx_opset
        raise GraphError(
            f"it has the operators of version {opsets[0][1]}, and {OPSETS.start} to {OPSETS.stop - 1} are known"
        )
    graph = model["graph"]
    names = sum(len(node["inputs"]) + len(node["outputs"]) for node in graph["nodes"])
    if max(len(graph["nodes"]), len(graph["constants"])) > MOST_NODES or names > MOST_NAMES:  # guard: onnx_nodes
        raise GraphError(f"it has {len(graph['nodes']):,} operations, and {MOST_NODES:,} are allowed")
    nodes = tuple(map(_as_node, graph["nodes"]))
    constants = [_as_tensor(tensor) for tensor in graph["constants"]]
    inputs, outputs = (tuple(value["name"] for value in graph[name]) for name in ("inputs", "outputs"))
    defined = [*inputs, *(constant.name for constant in constants), *(name for node in nodes for name in node.outputs)]
    if len(set(defined)) != len(defined) or "" in defined:
        raise GraphError("it has two values of the same name, or one without a name")
    return OnnxGraph(nodes, {constant.name: constant for constant in constants}, inputs, outputs, opsets[0][1])


def _as_node(message: dict[str, Any]) -> OnnxNode:
    if message.get("domain", "") not in ("", "ai.onnx"):
        raise GraphError(f"it has an operator of another maker than ONNX ({message['domain'][:100]!r})")
    attributes = {}
    for attribute in message["attributes"]:
        values = {name for name in ("f", "i", "s", "t", "floats", "ints") if attribute.get(name, []) != []}
        kind = VALUES_OF_TYPE.get(attribute.get("type", 0))
        if kind is None or not values <= set(kind) or attribute["name"] in attributes:
            raise GraphError(
                f"it has the attribute {attribute['name'][:100]!r} of a kind that is not allowed, or twice"
            )
        # a number that is 0 may be left out of the file
        value = attribute.get(kind[0], {"f": 0.0, "i": 0, "s": ""}.get(kind[0]))
        attributes[attribute["name"]] = _as_tensor(value) if kind[0] == "t" else value
    return OnnxNode(message["operator"], tuple(message["inputs"]), tuple(message["outputs"]), attributes)


def _as_tensor(message: dict[str, Any]) -> OnnxTensor:
    shape, kind, name = tuple(message["dims"]), message["type"], message.get("name", "")
    if message.get("data_location", 0) != 0:
        raise GraphError(TENSOR[13].name)
    if kind not in DTYPES or len(shape) > MOST_DIMS or any(not 0 <= side < 1 << 31 for side in shape):
        raise GraphError(f"its constant {name[:100]!r} has a type or a shape that is not allowed")
    stored = {data: message[data] for data in ("float_data", "int32_data", "int64_data", "double_data")}
    stored = {data: values for data, values in stored.items() if values}
    content = message.get("raw_data", b"")
    if stored:
        wanted = DATA_OF_TYPE.get(kind, "int32_data")
        if set(stored) != {wanted} or "raw_data" in message or kind == 10:  # 16-bit numbers as bit patterns
            raise GraphError(f"its constant {name[:100]!r} has values of another type")
        content = np.array(stored[wanted]).astype(DTYPES[kind]).tobytes()
    size = DTYPES[kind].itemsize
    for side in shape:
        size *= side
    if len(content) != size:  # guard: onnx_whole
        raise GraphError(f"its constant {name[:100]!r} has {len(content):,} bytes, and its shape needs {size:,}")
    return OnnxTensor(name, shape, kind, content)
