"""A saved model of a few kilobytes for the tests of what serves and shares models: written by hand, without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from covid_fastai.data.regions import region_version
from covid_fastai.model.bundle_config import golden_image, golden_sha256, seal_config
from covid_fastai.runtime import onnxruntime

CLASSES = ["Normal", "COVID-19"]
SIZE, CELLS = 64, 4


def write_small_model(folder: Path, *, threshold: float | None = 0.4, seed: int = 8, region: str = "frame") -> Path:
    """Write `config.json`, `model.onnx` and `model.safetensors`, as `save_model` names them."""
    content = _graph(seed).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    golden = session.run(["logits", "probabilities"], {"images": golden_image(SIZE)[None, None]})
    weights = save({"weight": np.zeros(2, np.float32)})
    origin = {"name": "none", "mean": 0.5, "std": 0.25, "origin": "", "sha256": "", "arch": "small"}
    fields = {"format": 3, "covid_fastai": "0.1.0", "arch": "small", "head": ["Linear"], "n_in": 1, "classes": CLASSES}
    fields |= {"positive": "COVID-19", "task": "covid", "image_size": SIZE, "resize": "squash-bilinear-antialias"}
    fields |= {"region": region, "segmentation": region_version(region)}
    fields |= {"mean": 0.5, "std": 0.25, "augmentation": "none", "batch_size": 16, "threshold": threshold}
    fields |= {"temperature": 1.0, "training_manifest": "", "weights": origin, "versions": {}}
    fields |= {"sha256": hashlib.sha256(weights).hexdigest()}
    fields["onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "opset": 17, "input": "images"}
    fields["onnx"]["outputs"] = ["probabilities", "logits", "maps"]
    fields["golden"] = {"image_sha256": golden_sha256(SIZE)}
    fields["golden"] |= {"logits": golden[0][0].tolist(), "probabilities": golden[1][0].tolist()}
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(seal_config(fields)))
    return folder


def _graph(seed: int) -> onnx.ModelProto:
    rng, side = np.random.default_rng(seed), SIZE // CELLS
    hidden = rng.normal(0, 1, (8, 1, 2, 2)).astype(np.float32)
    head = rng.normal(0, 1.5, (2, 8, 1, 1)).astype(np.float32)
    constants = {"scale": np.float32(1 / 64), "mean": np.float32(2.0), "hidden": hidden, "head": head}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("AveragePool", ["centred"], ["cells"], kernel_shape=[side] * 2, strides=[side] * 2),
        helper.make_node("Conv", ["cells", "hidden"], ["raw"], auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["raw"], ["features"]),
        helper.make_node("Conv", ["features", "head"], ["maps"]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    taken = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 1, SIZE, SIZE])]
    shapes = {"probabilities": ["n", 2], "logits": ["n", 2], "maps": ["n", 2, CELLS, CELLS]}
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", taken, given, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    helper.set_model_props(model, {"classes": json.dumps(CLASSES)})
    onnx.checker.check_model(model)
    return model
