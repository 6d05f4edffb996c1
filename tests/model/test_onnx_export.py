"""The ONNX file: its outputs are those of the model for any number of images, and it has no path of the machine."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fastai.torch_core import no_random
from onnx.reference import ReferenceEvaluator

from covid_fastai.data.dataloaders import empty_dataloaders
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.model.bundle import save_model
from covid_fastai.model.bundle_config import ONNX_INPUT as INPUT
from covid_fastai.model.bundle_config import ONNX_OUTPUTS as OUTPUTS
from covid_fastai.model.learner import build_learner, map_weights
from covid_fastai.model.onnx_export import OPSET, export_onnx
from covid_fastai.model.predictor import Predictor

CLASSES = ["Normal", "COVID-19", "other"]
SIZE, MEAN, STD = 48, 0.4, 0.2


@pytest.fixture(scope="module")
def model():
    """Return a model with random BatchNorm statistics and biases, since the initial ones could hide an error."""
    with no_random(1):
        learn = build_learner(empty_dataloaders(classes=CLASSES, image_size=SIZE, device="cpu"), weights=None)
        for norm in learn.model.modules():
            if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                norm.running_mean.uniform_(-0.2, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return learn.model


@pytest.fixture(scope="module")
def content(model):
    return export_onnx(model, classes=CLASSES, image_size=SIZE, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def session(content):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, SIZE, SIZE), dtype=np.uint8)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_onnx_outputs_are_those_of_the_model(model, session, n):
    found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images(n)}), strict=True))
    with torch.no_grad():
        x = (torch.from_numpy(images(n)).float() / 255 - MEAN) / STD
        logits = model.eval()(x)
        maps = torch.einsum("ck,nkhw->nchw", map_weights(model)[0], model[0](x)).numpy()
    assert maps.shape == (n, 3, 2, 2) and np.ptp(logits.numpy(), axis=1).min() > 0.1
    np.testing.assert_allclose(found["logits"], logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], logits.softmax(dim=1).numpy(), atol=1e-5)
    np.testing.assert_allclose(found["maps"], maps, atol=1e-4)


def test_another_runtime_gives_the_same_outputs(content, session):
    """onnx's reference evaluator, in NumPy, gives the same outputs as ONNX Runtime."""
    wanted = session.run(list(OUTPUTS), {INPUT: images(1)})
    found = ReferenceEvaluator(onnx.load_from_string(content)).run(list(OUTPUTS), {INPUT: images(1)})
    for output, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_a_map_averages_to_its_logit(model, session):
    logits, maps = session.run(["logits", "maps"], {INPUT: images(3)})
    np.testing.assert_allclose(maps.mean((2, 3)) + map_weights(model)[1].numpy(), logits, atol=1e-4)


def test_inputs_and_outputs_of_the_graph(content, session):
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == (INPUT, ["n", 1, SIZE, SIZE], "tensor(uint8)")
    assert [out.name for out in session.get_outputs()] == list(OUTPUTS)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [OPSET] and proto.ir_version <= 10
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in proto.graph.initializer)  # weights inside


def test_the_file_contains_no_path_of_the_machine(content):
    for words in (b"site-packages", b"stack_trace", b".py", b"covid_fastai"):
        assert words not in content


def test_the_same_model_gives_the_same_bytes_and_is_not_changed(model, content, caplog, capfd):
    model.train()
    state, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    caplog.set_level(logging.INFO)
    again = export_onnx(model, classes=CLASSES, image_size=SIZE, mean=MEAN, std=STD)
    assert hashlib.sha256(again).digest() == hashlib.sha256(content).digest()
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not caplog.records and capfd.readouterr() == ("", "")


class Pooled(torch.nn.Module):
    """Some of timm's bodies have no feature maps."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(SIZE, 8)

    def forward(self, x):
        return self.layer(x.mean((1, 2)))


@pytest.mark.slow
def test_a_body_without_maps_has_maps_of_one_cell():
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 2))
    model = torch.nn.Sequential(Pooled(), head).eval()
    session = onnxruntime.InferenceSession(export_onnx(model, classes=["a", "b"], image_size=SIZE, mean=0.5, std=0.25))
    logits, maps = session.run(["logits", "maps"], {INPUT: images(3)})
    assert maps.shape == (3, 2, 1, 1)
    with torch.no_grad():
        wanted = model((torch.from_numpy(images(3)).float() / 255 - 0.5) / 0.25).numpy()
    np.testing.assert_allclose(logits, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.network
def test_a_browsers_runtime_gives_the_same_outputs(tmp_path):
    """ONNX Runtime Web under Node.js runs the WebAssembly that a web page would load."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not installed")
    dls = empty_dataloaders(classes=["Normal", "COVID-19"], image_size=64, positive="COVID-19", device="cpu")
    folder = save_model(build_learner(dls, weights="cxr"), tmp_path / "model")
    (tmp_path / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "onnxruntime-web@1"], cwd=tmp_path, check=True)
    shutil.copy(Path(__file__).with_name("onnx_web.mjs"), tmp_path)
    phantoms = [draw_phantom(np.random.default_rng(seed), image_size=64).image for seed in range(3)]
    for number, phantom in enumerate(phantoms):
        (tmp_path / f"{number}.gray").write_bytes(np.asarray(phantom).tobytes())
    command = ["node", "onnx_web.mjs", folder / "model.onnx", "64", *(f"{number}.gray" for number in range(3))]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    table, maps = Predictor(folder).explain([np.asarray(phantom) for phantom in phantoms])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    np.testing.assert_allclose(
        [image["probabilities"] for image in found], table[["p_Normal", "p_COVID-19"]], atol=1e-4
    )
    assert all(image["maps"] == [1, *maps.shape[1:]] for image in found)
