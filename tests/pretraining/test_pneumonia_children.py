"""The recipe of the model `pneumonia-children`: 8-bit weights, and metrics of the stored model."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from covid_fastai import evaluate, load_model, read_run
from covid_fastai.model.bundle_config import golden_image
from covid_fastai.model.predictor import Predictor
from covid_fastai.runtime import onnxruntime
from pretraining.pneumonia_children import evaluate_stored, round_weights, store_in_8_bits, store_model


@pytest.fixture(scope="module")
def stored(run_folder, tmp_path_factory):
    """The run's model with 8-bit weights."""
    return store_model(run_folder, tmp_path_factory.mktemp("stored") / "model")


def test_weights_are_rounded_per_channel():
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[2] = 0
    before = layer.weight.detach().clone()
    round_weights(nn.Sequential(layer))
    largest = before.abs().amax((1, 2, 3), keepdim=True)
    assert ((layer.weight - before).abs() <= largest / 254 + 1e-7).all()  # half of a step
    integers = layer.weight / (largest + (largest == 0)) * 127
    assert torch.allclose(integers, integers.round(), atol=1e-3) and integers.abs().max() <= 127.001


def test_the_stored_model_has_a_quarter_of_the_size_and_the_same_output(stored, run_folder):
    content = (stored / "model.onnx").read_bytes()
    before = (run_folder / "model" / "model.onnx").stat().st_size
    assert len(content) < 0.27 * before and len(content) < 12e6
    learn = load_model(run_folder, device="cpu")
    round_weights(learn.model)
    images = np.stack([golden_image(32), golden_image(32)[::-1], np.full((32, 32), 90, np.uint8)])[:, None]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    config = Predictor(stored).config
    x = (torch.from_numpy(images.copy()).float() / 255 - config.mean) / config.std
    with torch.no_grad():
        expected = learn.model.eval()(x).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"images": images})[0], expected, atol=1e-4)
    onnx.checker.check_model(onnx.load_from_string(content))


def test_other_weights_keep_32_bits(run_folder):
    content = (run_folder / "model" / "model.onnx").read_bytes()
    assert len(store_in_8_bits(content)) == pytest.approx(len(content), rel=0.001)  # they were not rounded


def test_the_metrics_are_those_of_the_stored_model(stored, run_folder, tmp_path):
    table = evaluate_stored(run_folder, stored, tmp_path, sets={"valid": "held out"})
    rows = read_run(run_folder).cohort
    rows = rows[rows["split"] == "valid"].reset_index(drop=True)
    predicted = Predictor(stored).predict(rows).assign(label=rows["label"], patient=rows["patient"], split="valid")
    expected = evaluate(predicted, positive="COVID-19")
    by_patient = table[table["by"] == "patient"].set_index("metric")
    assert by_patient.loc["auc", "value"] == pytest.approx(expected.value("auc"), abs=1e-4)
    assert by_patient.loc["accuracy", "n"] == rows["patient"].nunique()
    assert table.loc[table["by"] == "image", "n"].max() == len(rows)
    (file,) = tmp_path.glob("valid-*.csv")
    moment = file.stat().st_mtime_ns
    evaluate_stored(run_folder, stored, tmp_path, sets={"valid": "held out"})
    assert file.stat().st_mtime_ns == moment  # predicted once


def test_a_model_that_is_there_is_kept(stored, run_folder, tmp_path):
    copy = shutil.copytree(stored, tmp_path / "copy")
    moment = (copy / "model.onnx").stat().st_mtime_ns
    assert store_model(run_folder, copy) == copy and (copy / "model.onnx").stat().st_mtime_ns == moment
