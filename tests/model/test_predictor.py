"""The predictor: predictions as by the learner without torch, a row per file, and refusal of changed files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from fastai.torch_core import no_random
from PIL import Image

from covid_fastai.data.dataloaders import empty_dataloaders
from covid_fastai.data.input_check import check_input
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.errors import DataError, ModelFormatError, UsageError
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.model.bundle import load_model, save_model
from covid_fastai.model.learner import build_learner
from covid_fastai.model.predictor import Predictor
from covid_fastai.saliency.methods import class_activation_map

CLASSES = ["Normal", "COVID-19"]
SIZE = 64
THRESHOLD = 0.4


@pytest.fixture(scope="module")
def learn():
    """Return a model with random statistics and a last layer for which predictions differ between images."""
    with no_random(1):
        dls = empty_dataloaders(classes=CLASSES, image_size=SIZE, device="cpu", task="covid", positive="COVID-19")
        learn = build_learner(dls, weights=None)
        for norm in learn.model.modules():
            if isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                norm.running_mean.uniform_(-0.2, 0.2)
                norm.running_var.uniform_(0.5, 1.5)
                torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
    return learn


@pytest.fixture(scope="module")
def saved(learn, tmp_path_factory) -> Path:
    return save_model(learn, tmp_path_factory.mktemp("saved") / "model", threshold=THRESHOLD)


@pytest.fixture(scope="module")
def predictor(saved) -> Predictor:
    return Predictor(saved, threads=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Write radiographs of several formats and sizes: grey, colour, transparent, 16 bits, rotated by EXIF, JPEG."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)

    def grey(height, width):
        small = rng.integers(0, 256, (6, 5)).astype(np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    grey(64, 64).save(folder / "same-size.png")
    grey(300, 240).save(folder / "jpeg.jpeg", quality=80)
    grey(90, 120).convert("RGB").save(folder / "colour.png")
    clear = grey(100, 80)
    Image.merge("LA", (clear, grey(100, 80))).save(folder / "transparent.png")
    Image.fromarray(np.asarray(grey(128, 100)).astype(np.uint16) * 14 + 300).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey(200, 150).save(folder / "turned.jpg", exif=exif)
    return sorted(str(path) for path in folder.iterdir())


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def seal(folder, **changes):
    """Change fields of config.json and update its fingerprint, as an attacker would."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config.pop("fingerprint")
    config["fingerprint"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def put_onnx(folder, content: bytes):
    """Replace the ONNX file and update config.json."""
    (folder / "model.onnx").write_bytes(content)
    facts = json.loads((folder / "config.json").read_text())["onnx"]
    seal(folder, onnx={**facts, "sha256": hashlib.sha256(content).hexdigest()})


P = ["p_Normal", "p_COVID-19"]
COLUMNS = ["path", *P, "prediction", "withheld", "status", "reason", "remark", "model_verdict"]

# what it is for


def test_predictions_are_those_of_the_learner(predictor, saved, learn, files):
    found = predictor.predict(files)
    for one in (learn, load_model(saved, device="cpu")):
        wanted = predict(one, files)
        np.testing.assert_allclose(found[P], wanted[P], rtol=0, atol=1e-4)
    assert np.ptp(found["p_COVID-19"]) > 1e-2  # or the comparison would say nothing
    assert found.columns.tolist() == COLUMNS
    assert found["path"].tolist() == files and (found["status"] == "ok").all() and (found["reason"] == "").all()


@pytest.mark.realdata
def test_predictions_of_real_files_are_those_of_the_learner(predictor, learn, real_data):
    """Original files of every mode and format in the data."""
    files = sorted(str(path) for path in (real_data / "coronahack-full").rglob("*") if path.suffix.lower() != ".csv")
    files = [file for file in files if Path(file).is_file()][::8]
    found, wanted = predictor.predict(files), predict(learn, files)
    assert len(files) > 30 and (found["status"] == "ok").all()
    np.testing.assert_allclose(found[P], wanted[P], rtol=0, atol=1e-4)


def test_maps_are_those_of_the_learner(predictor, learn, files):
    table, maps = predictor.explain(files)
    assert maps.shape == (len(files), 2, *predictor.map_shape) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, class_activation_map(learn, files), rtol=1e-4, atol=1e-4)
    pd.testing.assert_frame_equal(table, predictor.predict(files))


def test_the_threshold_decides_between_two_classes(predictor, folder):
    files = [draw_phantom(np.random.default_rng(number), image_size=128).image for number in range(4)]
    table = predictor.predict(files)
    p = table["p_COVID-19"]
    assert not table["withheld"].any() and p.is_unique
    for threshold in (0.01, float(p.median()), 0.99):
        seal(folder, threshold=threshold)
        called = Predictor(folder).predict(files)["prediction"]
        assert (called == np.where(p >= threshold, "COVID-19", "Normal")).all()
    seal(folder, threshold=None)
    assert (Predictor(folder).predict(files)["prediction"] == np.where(p > 0.5, "COVID-19", "Normal")).all()


def test_an_image_may_be_a_path_bytes_a_file_an_array_or_an_image(predictor, files):
    path = next(file for file in files if file.endswith("same-size.png"))
    pixels = np.asarray(Image.open(path))
    deep = np.asarray(Image.open(path.replace("same-size", "deep")))
    forms = [path, Path(path), Path(path).read_bytes(), io.BytesIO(Path(path).read_bytes()), pixels, pixels[..., None]]
    forms += [Image.open(path), np.stack([pixels] * 3, axis=-1), deep]
    found = predictor.predict(forms)
    assert found["path"].tolist() == [path, path, *(f"image {n}" for n in range(3, 10))]
    np.testing.assert_allclose(found["p_COVID-19"][:8], found["p_COVID-19"][0], atol=1e-6)
    assert found["p_COVID-19"][8] == pytest.approx(
        predictor.predict(path.replace("same-size", "deep"))["p_COVID-19"][0]
    )
    for one in forms[4:5] + forms[:2]:
        assert predictor.predict(one)["p_COVID-19"].tolist() == pytest.approx([found["p_COVID-19"][0]])
    named = predictor.predict(pixels, names=["upload.png"])
    assert named["path"].tolist() == ["upload.png"]
    table = predictor.predict(pd.DataFrame({"label": "Normal", "path": files}))
    pd.testing.assert_frame_equal(table, predictor.predict(files))


def test_no_image_is_an_empty_table(predictor):
    table, maps = predictor.explain([])
    assert table.columns.tolist() == COLUMNS
    assert len(table) == 0 and maps.shape == (0, 2, *predictor.map_shape)


def test_a_bad_file_is_a_row_with_its_reason(predictor, files, tmp_path):
    bad = {
        "empty.png": (b"", "empty"),
        "page.jpg": (b"<!doctype html><html>", "HTML"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        "half.jpeg": (Path(next(f for f in files if f.endswith("jpeg.jpeg"))).read_bytes()[:900], "damaged"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / name).write_bytes(content)
    Image.new("L", (80, 80), 7).save(tmp_path / "blank.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    words = {name: word for name, (_, word) in bad.items()}
    words |= {"blank.png": "blank", "pipe.png": "pipe", "folder.png": "folder", "gone.png": "missing"}
    mixed = [files[0], *(str(tmp_path / name) for name in words), b"text", np.zeros((64, 64)), object(), *files[1:]]
    table, maps = predictor.explain(mixed)
    assert len(table) == len(mixed)
    ok = table["status"] == "ok"
    assert table["path"][ok].tolist() == files and set(table["status"]) == {"ok", "unreadable"}
    np.testing.assert_allclose(table.loc[ok, P], predictor.predict(files)[P], atol=1e-6)
    lost = table[~ok]
    assert lost[P].isna().all(axis=None) and (lost["prediction"] == "").all() and np.isnan(maps[~ok]).all()
    for (name, word), row in zip(words.items(), lost.to_dict("records"), strict=False):
        assert row["path"].endswith(name) and word in row["reason"] and name in row["reason"]
    assert (lost["reason"].str.len() > 20).all()
    assert np.isfinite(maps[ok]).all()


def test_the_table_can_be_evaluated(predictor, files, tmp_path):
    table = predictor.predict([*files, "gone.png"]).assign(label="Normal")
    table.to_csv(tmp_path / "predictions.csv", index=False)
    read = read_predictions(tmp_path / "predictions.csv")
    assert read["status"].tolist() == ["ok"] * len(files) + ["unreadable"]


def test_a_nan_output_has_the_status_failed_and_no_class(predictor, files, monkeypatch):
    class Wild:
        def run(self, outputs, inputs):
            n = len(inputs["images"])
            p = np.full((n, 2), 0.5, np.float32)
            p[0] = np.nan
            return [p, np.ones((n, 2, *predictor.map_shape), np.float32)][: len(outputs)]

    monkeypatch.setattr(predictor, "_session", Wild())
    table, maps = predictor.explain(files[:3])
    assert table["status"].tolist() == ["failed", "ok", "ok"] and table["prediction"][0] == ""
    assert table["reason"][0] and np.isnan(maps[0]).all() and np.isfinite(maps[1:]).all()
    assert predictor.predict(files[:3])["status"].tolist() == ["failed", "ok", "ok"]


def test_threads_get_the_predictions_of_a_single_one(predictor, files):
    alone = {file: predictor.predict(file)["p_COVID-19"][0] for file in files}
    jobs = files * 12
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda file: predictor.predict(file)["p_COVID-19"][0], jobs))
    assert found == [alone[file] for file in jobs]


@pytest.mark.slow
def test_one_predictor_in_eight_threads_gives_the_same_tables_and_maps(saved, files, tmp_path):
    predictor = Predictor(saved)  # each call then decodes in threads of its own
    (tmp_path / "bad.png").write_bytes(b"nothing")
    orders = [files, files[::-1], [*files[:3], str(tmp_path / "bad.png"), *files], files[:1]]
    alone = [predictor.explain(order) for order in orders]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predictor.explain, orders * 10))
    for number, (table, maps) in enumerate(found):
        pd.testing.assert_frame_equal(table, alone[number % 4][0], check_exact=True)
        np.testing.assert_array_equal(maps, alone[number % 4][1])


@pytest.mark.parametrize("decoders", [2, 4])
def test_decoding_ahead_changes_nothing(saved, files, monkeypatch, decoders):
    many = [*files, "gone.png"] * 9
    one, ahead = Predictor(saved, threads=1), Predictor(saved, threads=1)
    monkeypatch.setattr(ahead, "_decoders", decoders)
    (mine, my_maps), (theirs, their_maps) = one.explain(many), ahead.explain(many)
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    np.testing.assert_array_equal(my_maps, their_maps)
    assert ahead.predict([]).shape == one.predict([]).shape == (0, len(one.predict("gone.png").columns))


def test_remarks_of_the_input_check_are_in_the_table(predictor, files):
    phantom = Image.fromarray(draw_phantom(np.random.default_rng(3), image_size=128).image)
    images = [phantom, phantom.transpose(Image.Transpose.ROTATE_180), files[0]]
    table = predictor.predict(images)
    assert (table["status"] == "ok").all() and np.isfinite(table[P].to_numpy()).all()
    assert table["withheld"].tolist()[:2] == [False, True] and table["withheld"].dtype == bool
    assert [bool(name) for name in table["prediction"]] == (~table["withheld"]).tolist()  # no class, if it is withheld
    assert table["remark"].tolist() == [" ".join(remark.text for remark in check_input(image)) for image in images]
    assert table["remark"][0] == "" and "upside down" in table["remark"][1]
    colour = next(file for file in files if "transparent" in file)
    assert predictor.predict(colour)["remark"][0] == " ".join(remark.text for remark in check_input(colour))
    assert predictor.predict("gone.png")["remark"][0] == ""


def test_invalid_arguments_are_named(predictor, saved):
    with pytest.raises(UsageError, match="1 names for 2 images"):
        predictor.predict(["a", "b"], names=["a"])
    with pytest.raises(DataError, match="no column path"):
        predictor.predict(pd.DataFrame({"file": ["a"]}))
    with pytest.raises(UsageError, match="threads=0"):
        Predictor(saved, threads=0)


def test_it_needs_no_torch(saved, files):
    """In a new process: the imported modules, and a prediction without `model.safetensors`."""
    code = """
import json, sys
from covid_fastai.model.predictor import Predictor
table = Predictor(sys.argv[1]).predict(sys.argv[2:])
heavy = {"torch", "torchvision", "fastai", "timm", "scipy", "sklearn", "matplotlib", "onnx", "pydicom"}
print(json.dumps([sorted(heavy & set(sys.modules)), table["p_COVID-19"].tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", code, saved, *files], capture_output=True, text=True, check=True)
    heavy, found = json.loads(done.stdout)
    assert heavy == [] and done.stderr == ""
    np.testing.assert_allclose(found, Predictor(saved).predict(files)["p_COVID-19"], atol=1e-6)


# what is refused


def refused(folder, words):
    with pytest.raises(ModelFormatError, match=words) as caught:
        Predictor(folder)
    assert str(folder) in caught.value.message and caught.value.hint


def test_the_weights_of_torch_are_not_needed(folder, files, predictor):
    (folder / "model.safetensors").unlink()
    pd.testing.assert_frame_equal(Predictor(folder, threads=1).predict(files), predictor.predict(files))


def test_a_missing_or_damaged_file_is_refused(folder, tmp_path):
    content = (folder / "model.onnx").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for bad in (bytes(flipped), content[: len(content) // 2], b"", b"version https://git-lfs.github.com/spec/v1"):
        (folder / "model.onnx").write_bytes(bad)
        refused(folder, "damaged or exchanged")
    (folder / "model.onnx").unlink()
    refused(folder, "model.onnx .* no such file")
    os.mkfifo(folder / "model.onnx")
    refused(folder, "no such file")
    (folder / "config.json").unlink()
    refused(folder, "config.json .* no such file")


def test_a_model_without_onnx_is_refused_with_the_reason(learn, tmp_path):
    refused(save_model(learn, tmp_path / "model", onnx=False), "saved without it")


def test_a_newer_format_needs_a_newer_package(folder):
    seal(folder, format=999)
    with pytest.raises(ModelFormatError, match="needs a newer covid_fastai") as caught:
        Predictor(folder)
    assert "newer version" in caught.value.hint


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_in_place_of_the_onnx_file_is_never_loaded(folder, tmp_path, form):
    canary, file = tmp_path / "canary", tmp_path / "hostile"
    torch.save(Canary(canary), file) if form == "torch" else file.write_bytes(pickle.dumps(Canary(canary)))
    put_onnx(folder, file.read_bytes())
    refused(folder, "is a pickle")
    assert not canary.exists()


def test_another_order_of_the_classes_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["classes"] = CLASSES[::-1]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "fingerprint")
    seal(folder, classes=CLASSES[::-1])  # with the fingerprint made to fit, the ONNX file itself says otherwise
    refused(folder, 'its classes are .*"Normal", "COVID-19".* those of config.json are .*"COVID-19", "Normal"')


def test_the_file_of_another_model_is_refused(folder, learn):
    """The self-test detects an ONNX file of the same shapes whose sha256 was updated in config.json."""
    proto = onnx.load_from_string((folder / "model.onnx").read_bytes())
    float32 = onnx.TensorProto.FLOAT
    bias = next(one for one in proto.graph.initializer if list(one.dims) == [2] and one.data_type == float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[::-1].copy() + 1, bias.name))
    put_onnx(folder, proto.SerializeToString())
    refused(folder, "self-test gives logits")


def test_a_file_that_is_not_onnx_is_refused(folder):
    put_onnx(folder, b"\x08\x0a nonsense")
    refused(folder, "model.onnx .*another encoding")
    put_onnx(folder, (folder / "config.json").read_bytes())
    refused(folder, "model.onnx .*not an ONNX file")


def test_other_inputs_or_outputs_are_refused(folder, saved):
    proto = onnx.load(saved / "model.onnx")
    del proto.graph.output[2]
    put_onnx(folder, proto.SerializeToString())
    refused(folder, "it gives .* not probabilities, logits, maps of 2 classes")
    shutil.copy(saved / "model.onnx", folder)
    shutil.copy(saved / "config.json", folder)
    seal(folder, image_size=96)
    refused(folder, "it takes .*64, 64.* not images of 8 bits and 96 pixels")
