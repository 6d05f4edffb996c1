"""A model in 8-bit integers: read like any other, its change stated, and refused where it is large."""

from __future__ import annotations

import json

import numpy as np
import pytest

from covid_fastai import Predictor, evaluate, read_run
from covid_fastai.app import quantized
from covid_fastai.app.export import export_model
from covid_fastai.errors import DataError, ModelFormatError, UsageError
from covid_fastai.model import session
from covid_fastai.model.bundle_config import read_config, seal_config


@pytest.fixture(scope="module")
def held_out(run_folder):
    rows = read_run(run_folder).predictions
    return rows[rows["split"] == "valid"]


@pytest.fixture(scope="module")
def int8(run_folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MEAN_CHANGE", "LARGEST_CHANGE", "AUC_CHANGE"):
            patch.setattr(quantized, name, 1.0)  # of a model that has hardly been trained, on nine images
        return export_model(run_folder, tmp_path_factory.mktemp("quantized") / "int8", quantize="int8")


def test_it_answers_like_the_model_in_32_bits_and_says_what_differs(run_folder, held_out, int8):
    full, short = (Predictor(folder).predict(held_out["path"].tolist()) for folder in (run_folder, int8))
    change = (full["p_COVID-19"] - short["p_COVID-19"]).abs()
    assert 0 < change.max() < 0.3 and 0 < change.mean() < 0.1
    aucs = [evaluate(held_out.assign(**table[["p_Normal", "p_COVID-19"]])).value("auc") for table in (short, full)]
    limit = Predictor(int8).findings.limits[-1]
    n = f"{len(held_out)} held-out images", f"n = {held_out['patient'].nunique()} patients"
    values = (
        f"{change.mean():.4f} on average",
        f"{change.max():.4f} at most",
        f"AUC is {aucs[0]:.4f} instead of {aucs[1]:.4f}",
    )
    assert all(words in limit for words in (*n, *values))
    assert limit in (int8 / "README.md").read_text() and "in 8-bit integers" in (int8 / "README.md").read_text()
    columns = ["path", "status", "remark", "withheld"]
    assert short[columns].equals(full[columns])  # the input check is the same


def test_it_is_another_model_with_the_same_weights(run_folder, int8):
    from covid_fastai import load_model

    config, reference = (read_config(folder / "config.json") for folder in (int8, run_folder / "model"))
    assert config.fingerprint != reference.fingerprint and config.sha256 == reference.sha256
    assert config.onnx.quantized.calibration_images == int((read_run(run_folder).cohort["split"] == "train").sum())
    assert (int8 / "model.onnx").stat().st_size < (run_folder / "model" / "model.onnx").stat().st_size / 3
    assert load_model(int8, device="cpu").facts.bundle == config


def test_the_way_of_processors_without_vnni_gives_the_same_answers(held_out, int8, monkeypatch):
    paths = held_out["path"].tolist()
    tables = []
    for known in (session.has_vnni(), False):
        monkeypatch.setattr(session, "has_vnni", lambda known=known: known)
        tables.append(Predictor(int8).predict(paths)["p_COVID-19"])
    np.testing.assert_allclose(*tables, atol=1e-6)


def test_an_export_of_it_stays_in_8_bits(int8, tmp_path):
    again = export_model(int8, tmp_path / "again")
    assert (again / "model.onnx").read_bytes() == (int8 / "model.onnx").read_bytes()
    with pytest.raises(UsageError, match="not the model of a run"):
        export_model(int8, tmp_path / "other", quantize="int8")


@pytest.mark.slow
def test_a_change_above_a_bound_is_refused_and_nothing_is_written(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "AUC_CHANGE", -1.0)
    monkeypatch.setattr(quantized, "CALIBRATION_IMAGES", 2)
    with pytest.raises(DataError, match="change the answers of this model too much.*AUC is .* and may be -1"):
        export_model(run_folder, tmp_path / "int8", quantize="int8")
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"mean": 0.0101}, ["the mean change of a probability is 0.0101 and may be 0.01"]),
        ({"largest": 0.1501}, ["the largest change of a probability is 0.1501 and may be 0.15"]),
        ({"auc": 0.8949}, ["the change of the AUC is 0.0051 and may be 0.005"]),
        ({"auc": float("nan"), "reference_auc": float("nan")}, []),  # held-out patients of one class
    ],
)
def test_each_bound(changed, words):
    values = {"images": 90, "patients": 60, "mean": 0.01, "largest": 0.15, "classes_changed": 3}
    change = quantized.QuantizationChange(**{**values, "auc": 0.895001, "reference_auc": 0.9, **changed})
    assert change.excesses() == words


def test_other_outputs_than_at_the_export_are_refused(int8, tmp_path):
    fields = json.loads((int8 / "config.json").read_text())
    del fields["fingerprint"]
    fields["onnx"]["quantized"]["golden"]["logits"][0] += 1
    (tmp_path / "model.onnx").write_bytes((int8 / "model.onnx").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(seal_config(fields)))
    with pytest.raises(ModelFormatError, match="self-test.*export the model without `quantize`"):
        Predictor(tmp_path)
