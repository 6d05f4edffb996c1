"""The saved model: its outputs are unchanged, and damaged, changed or planted files are refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from fastai.torch_core import no_random
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from covid_fastai.data.cohort import Cohort, CohortInfo
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.errors import DivergenceError, ModelFormatError, ResourceError, UnavailableError, UsageError
from covid_fastai.model import bundle
from covid_fastai.model.bundle import load_model, save_model
from covid_fastai.model.bundle_config import golden_image, read_config, seal_config
from covid_fastai.model.card import Findings, read_findings
from covid_fastai.model.learner import build_learner
from covid_fastai.model.onnx_export import export_onnx
from tests.examples import examples

matplotlib.use("Agg")
CLASSES = ["Normal", "COVID-19"]
SIZE = 48


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> pd.DataFrame:
    folder, rows, rng = tmp_path_factory.mktemp("images"), [], np.random.default_rng(0)
    for i in range(24):
        label, path = CLASSES[i % 2], folder / f"{i}.png"
        pixels = rng.integers(60, 120, (60, 70)) + 80 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        split = ("train", "train", "train", "valid", "test", "test")[i // 2 % 6]
        rows.append({"path": str(path), "label": label, "patient": path.stem, "split": split})
    return Cohort(rows, facts=CohortInfo(classes=CLASSES, positive="COVID-19", task="covid"))


def loaders(cohort, **options):
    return build_dataloaders(cohort, image_size=SIZE, batch_size=6, device="cpu", **options)


@pytest.fixture(scope="module")
def learn(cohort, tmp_path_factory) -> Learner:
    """Return a learner that ran on some batches, so that its BatchNorm statistics are not the initial ones."""
    with no_random(0):
        learn = build_learner(loaders(cohort), arch="resnet18", weights=None, path=tmp_path_factory.mktemp("run"))
        learn.unfreeze()
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 1e-3)
    return learn


@pytest.fixture(scope="module")
def saved(learn, tmp_path_factory) -> Path:
    return save_model(learn, tmp_path_factory.mktemp("saved") / "model", threshold=0.3)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """Return a copy to modify; weights and ONNX are hard links, so a test must replace these files."""
    made = tmp_path / "model"
    made.mkdir()
    shutil.copy(saved / "config.json", made)
    for name in ("model.safetensors", "model.onnx"):
        os.link(saved / name, made / name)
    return made


def probabilities(learn, rows):
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds(dl=learn.dls.test_dl(rows))[0]


def edit(folder, *, seal=True, **changes):
    """Change fields of config.json (`golden__probabilities` is a field of golden), and update its fingerprint."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = config
        for key in outer:
            place = place[key]
        place[last] = value
    if seal:
        fields = {key: value for key, value in config.items() if key != "fingerprint"}
        config["fingerprint"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(config))


def put_weights(folder, content: bytes):
    """Replace the weights and update config.json, as an attacker would."""
    path = folder / "model.safetensors"
    path.unlink()
    path.write_bytes(content)
    edit(folder, sha256=hashlib.sha256(content).hexdigest())


def put_tensors(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder.parent / "changed.safetensors")
    put_weights(folder, (folder.parent / "changed.safetensors").read_bytes())


# what it is for


def test_a_reloaded_model_gives_the_same_probabilities(learn, saved, cohort):
    rows = cohort[cohort["split"].isin(["valid", "test"])]
    again = load_model(saved, device="cpu")
    torch.testing.assert_close(probabilities(again, rows), probabilities(learn, rows), rtol=0, atol=1e-6)
    assert isinstance(again, Learner) and again.facts.arch == "resnet18" and list(again.dls.vocab) == CLASSES
    assert again.facts.weights == learn.facts.weights and again.dls.facts.cohort.facts == learn.dls.facts.cohort.facts
    assert again.dls.facts.to_dict() == learn.dls.facts.to_dict()
    name, index, p = again.predict(rows["path"].iloc[0])
    torch.testing.assert_close(p, probabilities(learn, rows)[0], rtol=0, atol=1e-6)
    assert name == CLASSES[int(index)]


def test_the_folder_has_three_files_without_pickle(saved, cohort):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.onnx", "model.safetensors"]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]
    assert oct(saved.stat().st_mode)[-3:] == "755"
    config = json.loads((saved / "config.json").read_text())
    assert config["format"] == 3 and config["arch"] == "resnet18" and config["n_in"] == 1
    assert config["classes"] == CLASSES and config["positive"] == "COVID-19" and config["task"] == "covid"
    assert (config["image_size"], config["mean"], config["std"]) == (SIZE, 0.5, 0.25)
    assert config["resize"] == "squash-bilinear-antialias"
    assert config["head"] == ["AdaptiveAvgPool2d", "Flatten", "BatchNorm1d", "Dropout", "Linear"]
    assert config["weights"]["name"] == "random" and set(config["versions"]) >= {"torch", "fastai", "python"}
    assert config["sha256"] == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert config["onnx"]["sha256"] == hashlib.sha256((saved / "model.onnx").read_bytes()).hexdigest()
    assert (config["threshold"], config["temperature"]) == (0.3, 1)
    assert str(Path(cohort["path"].iloc[0]).parent) not in (saved / "config.json").read_text()


def test_the_origin_of_initial_weights_has_no_path(saved, cohort, tmp_path):
    """A saved model can be the initial weights of another one, whose files do not contain its path."""
    next_one = build_learner(loaders(cohort), weights=saved)
    config = read_config(save_model(next_one, tmp_path / "next", onnx=False) / "config.json")
    assert config.weights.origin == "model.safetensors" and config.weights.name == "file"
    assert config.weights.sha256 == read_config(saved / "config.json").sha256
    assert load_model(tmp_path / "next", device="cpu").facts.weights.origin == "model.safetensors"


def test_saving_a_loaded_model_gives_the_same_files(saved, tmp_path):
    save_model(load_model(saved, device="cpu"), tmp_path / "a" / "b")
    again, first = ((path / "config.json").read_text() for path in (tmp_path / "a" / "b", saved))
    assert json.loads(again) == json.loads(first)


def test_a_model_of_drawings_that_is_saved_again_still_says_so(folder, tmp_path):
    fingerprint = json.loads((folder / "config.json").read_text())["fingerprint"]
    (folder / "findings.json").write_text(Findings(fingerprint=fingerprint, synthetic=True).model_dump_json())
    learn = load_model(folder, device="cpu")
    again = save_model(learn, tmp_path / "again", onnx=False)
    assert read_findings(again, read_config(again / "config.json")).short == "model of drawings"


def test_a_loaded_model_can_be_shown_and_trained_further(saved, cohort, capsys):
    learn = load_model(saved, device="cpu")
    learn.dls = loaders(cohort)
    before = learn.model[1][-1].weight.detach().clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        learn.show_results(max_n=4)
    titles = [axis.get_title() for axis in matplotlib.pyplot.gcf().axes]
    assert all(title.split("\n")[0] in CLASSES and title.split("\n")[1] in CLASSES for title in titles if title)
    assert sum(map(bool, titles)) == 4 and matplotlib.pyplot.gcf().axes[0].images[0].get_cmap().name == "gray"
    matplotlib.pyplot.close("all")
    learn.dls.show_batch(max_n=4)
    matplotlib.pyplot.close("all")
    assert not torch.equal(before, learn.model[1][-1].weight)


def test_saving_does_not_change_the_learner(learn, saved, tmp_path):
    learn.model.train()
    state = {key: value.clone() for key, value in learn.model.state_dict().items()}
    save_model(learn, tmp_path / "model", temperature=2, onnx=False)
    assert learn.model.training and all(
        torch.equal(state[key], value) for key, value in learn.model.state_dict().items()
    )


# what goes with the weights


@pytest.mark.slow
def test_a_temperature_is_applied_to_every_saved_file(learn, saved, cohort, tmp_path):
    """Every reader of the folder gets calibrated probabilities, and a second temperature multiplies the first."""
    rows = cohort[cohort["split"] == "test"]
    plain = probabilities(load_model(saved, device="cpu"), rows)
    warm = load_model(save_model(learn, tmp_path / "a", temperature=2, onnx=False), device="cpu")
    torch.testing.assert_close(probabilities(warm, rows), (plain.log() / 2).softmax(dim=1), rtol=0, atol=1e-5)
    warmer = load_model(save_model(warm, tmp_path / "b", temperature=3, onnx=False), device="cpu")
    assert (warm.facts.bundle.temperature, warmer.facts.bundle.temperature) == (2, 6)
    torch.testing.assert_close(probabilities(warmer, rows), (plain.log() / 6).softmax(dim=1), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_threshold_temperature_and_manifest_are_kept_while_the_weights_are_the_same(saved, tmp_path):
    manifest = tmp_path / "training.manifest.safetensors"
    manifest.write_bytes(b"these images")
    expected = {"threshold": 0.3, "temperature": 1.0, "training_manifest": ""}
    again = load_model(saved, device="cpu")
    assert {name: getattr(again.facts.bundle, name) for name in expected} == expected
    noted = save_model(again, tmp_path / "a", training_manifest=manifest, onnx=False)
    noted = load_model(noted, device="cpu")
    assert noted.facts.bundle.training_manifest == hashlib.sha256(b"these images").hexdigest()
    assert noted.facts.bundle.threshold == 0.3 and noted.facts.bundle.onnx is None
    warm = read_config(save_model(noted, tmp_path / "b", temperature=2, onnx=False) / "config.json")
    assert warm.threshold is None and warm.training_manifest  # of other probabilities it would be another threshold
    noted.model[1][-1].bias.data.add_(1)
    other = read_config(save_model(noted, tmp_path / "c", onnx=False) / "config.json")
    assert other.threshold is None and other.training_manifest == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"training_manifest": "nowhere"}, "nowhere"),
    ],
)
def test_invalid_options_are_not_saved(learn, tmp_path, options, words):
    with pytest.raises(UsageError, match=words) as caught:
        save_model(learn, tmp_path / "model", **options)
    assert caught.value.hint and not list(tmp_path.iterdir())


def test_an_onnx_file_with_other_outputs_is_not_saved(learn, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "export_onnx", lambda model, **options: export_onnx(model, **{**options, "mean": 0.1}))
    with pytest.raises(UsageError, match="cannot be used in place of the model"):
        save_model(learn, tmp_path / "model")
    assert not list(tmp_path.iterdir())


# writing


def test_a_second_model_replaces_the_first(learn, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (tmp_path / ".model.unfinished-killed").mkdir()
    assert save_model(learn, path, onnx=False) == path == save_model(learn, path, onnx=False)
    assert [other.name for other in tmp_path.iterdir()] == ["model"]
    load_model(path, device="cpu")


def test_a_failed_write_leaves_the_old_model(learn, folder, monkeypatch):
    before = (folder / "config.json").read_bytes()
    for name in ("write_json", "_replace_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(bundle, name, lambda *_: (_ for _ in ()).throw(ResourceError("disk full")))
            with pytest.raises(ResourceError, match="disk full"):
                save_model(learn, folder, onnx=False)
    renamed = []

    def rename(source, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise PermissionError(13, "in use")
        real(source, target)

    real = os.rename
    monkeypatch.setattr(bundle.os, "rename", rename)
    with pytest.raises(ResourceError, match="in use"):
        save_model(learn, folder, onnx=False)
    assert (folder / "config.json").read_bytes() == before
    assert [other.name for other in folder.parent.iterdir()] == ["model"]


def test_refuses_a_folder_with_other_files(learn, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ResourceError, match="thesis.tex"):
        save_model(learn, tmp_path)
    with pytest.raises(ResourceError, match="thesis.tex"):
        save_model(learn, tmp_path / "thesis.tex")


def test_refuses_a_model_with_nan(learn, tmp_path):
    weight = learn.model[1][-1].weight
    original = weight.detach().clone()
    try:
        weight.data[0, 0] = float("nan")
        with pytest.raises(DivergenceError, match="1.4.weight"):
            save_model(learn, tmp_path / "model")
    finally:
        weight.data.copy_(original)
    assert not list(tmp_path.iterdir())


def test_refuses_a_learner_that_this_package_did_not_build(cohort, tmp_path):
    dls = loaders(cohort)
    with pytest.raises(UsageError, match="build_learner"):
        save_model(Learner(dls, torch.nn.Flatten(), loss_func=torch.nn.CrossEntropyLoss()), tmp_path / "model")


# reading what is damaged, changed or planted


def refused(folder, words):
    with pytest.raises(ModelFormatError, match=words) as caught:
        load_model(folder, device="cpu")
    assert str(folder) in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"classes": CLASSES[::-1]},
        {"mean": 0.49, "weights__mean": 0.49},
        {"image_size": 64},
        {"positive": "Normal"},
        {"task": "other"},
        {"golden__probabilities": [0.5, 0.5]},
    ],
)
def test_any_changed_field_is_detected(folder, change):
    edit(folder, seal=False, **change)
    refused(folder, "fingerprint")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": 0.2, "weights__mean": 0.2}, "self-test"),
        ({"std": 0.5, "weights__std": 0.5}, "self-test"),
        ({"image_size": 96}, "image of its self-test"),
        ({"mean": 0.49, "weights__mean": 0.49}, "self-test"),
        ({"golden__probabilities": [0.0, 1.0]}, "self-test"),
        ({"golden__logits": [0.0, 0.0]}, "self-test"),
        ({"golden__logits": [0.0, 1e300]}, "golden.logits"),
        ({"mean": 0.2}, "mean, std or arch differ"),
        ({"arch": "resnet34", "weights__arch": "resnet34"}, "missing or too many"),
        ({"arch": "vgg16", "weights__arch": "vgg16"}, "arch='vgg16' is not one of 'resnet18'"),
        ({"arch": "__import__('os')"}, "arch: String should match"),
        ({"arch": "timm/../../x"}, "arch: String should match"),
        ({"arch": "timm/hf-hub:evil/model"}, "arch: String should match"),
        ({"head": ["Linear"]}, "head"),
        ({"classes": ["Normal"]}, "classes"),
        ({"classes": ["Normal", "Normal"]}, "twice"),
        ({"classes": ["Normal", "COVID-19", "SARS"], "threshold": None}, "differ in number"),
        ({"classes": ["c" * 101, "COVID-19"]}, "classes"),
        ({"classes": [f"{i}" for i in range(1001)]}, "classes"),
        ({"classes": 10**9}, "classes"),
        ({"positive": "SARS"}, "not one of the classes"),
        ({"image_size": 100000}, "image_size"),
        ({"image_size": "48"}, "image_size"),
        ({"n_in": 3}, "n_in"),
        ({"resize": "crop"}, "resize"),
        ({"augmentation": "mixup"}, "mixup"),
        ({"sha256": "0" * 64}, "sha256 is not the one"),
        ({"onnx__sha256": "0" * 64}, "model.onnx .* sha256 is not the one"),
        ({"onnx__input": "pixels"}, "onnx.input"),
        ({"threshold": 1.0}, "threshold"),
        ({"positive": None}, "a threshold needs two classes"),
        ({"temperature": 0}, "temperature"),
        ({"training_manifest": "x"}, "training_manifest"),
        ({"unknown": 1}, "unknown"),
        ({"format": 2}, "it has format 2, this version reads format 3"),
        ({"format": "1"}, "no format number"),
        ({"format": True}, "no format number"),
        ({"weights__state": "x"}, "weights.state"),
    ],
)
def test_an_invalid_config_is_refused(folder, change, words):
    edit(folder, **change)
    refused(folder, words)


def test_a_newer_format_needs_a_newer_package(folder):
    edit(folder, format=999, something="new")
    with pytest.raises(ModelFormatError, match="needs a newer covid_fastai") as caught:
        load_model(folder)
    assert caught.value.hint == "Install a newer version of covid_fastai."


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"hello",
        b"[1]",
        b"\xff\xfe",
        b'{"format": NaN}',
        b"[" * 100_000,
        b'{"format": ' + b"1" * 5000 + b"}",
        b" " * (1 << 21),
    ],
)
def test_a_config_that_is_not_json_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    refused(folder, "config.json")


@examples(60)
@given(data=st.data())
def test_any_config_gives_a_model_or_a_typed_error(saved, tmp_path_factory, data):
    config = json.loads((saved / "config.json").read_text())
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    value = st.recursive(leaf, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3))
    name = data.draw(st.sampled_from([*config, "new"]))
    config[name] = data.draw(value)
    path = tmp_path_factory.mktemp("fuzz") / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelFormatError):
        read_config(path)


def test_missing_and_irregular_files(folder, tmp_path):
    refused(tmp_path / "nowhere", "There is no folder")
    (folder / "model.onnx").unlink()
    refused(folder, "model.onnx .* no such file")
    os.mkfifo(folder / "model.onnx")
    refused(folder, "model.onnx .* no such file")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors .* no such file")
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "no such file")
    (folder / "config.json").unlink()
    (folder / "export.pkl").write_bytes(b"x")
    refused(folder, "export.pkl is a pickle, which is never loaded")


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_in_place_of_the_weights_is_never_loaded(folder, tmp_path, form):
    canary, file = tmp_path / "canary", tmp_path / "hostile"
    torch.save(Canary(canary), file) if form == "torch" else file.write_bytes(pickle.dumps(Canary(canary)))
    put_weights(folder, file.read_bytes())
    refused(folder, "is a pickle")
    assert not canary.exists()


def test_damaged_weights_are_refused(folder, saved):
    content = (saved / "model.safetensors").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for bad in (bytes(flipped), content[: len(content) // 2], b"", b"version https://git-lfs.github.com/spec/v1"):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(bad)
        refused(folder, "damaged or exchanged")
    for bad in (content[: len(content) // 2], b"", b"\xff" * 100):
        put_weights(folder, bad)
        refused(folder, "no safetensors file")


def set_tensor(name, value):
    return lambda state: state.update({name: value(state[name])})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("1.4.bias"), "missing or too many, such as '1.4.bias'"),
        (lambda state: state.update(more=torch.zeros(1)), "missing or too many, such as 'more'"),
        (set_tensor("1.4.weight", lambda t: t[:, :-1].contiguous()), "'1.4.weight' is"),
        (set_tensor("1.4.weight", lambda t: t.half()), "float16"),
        (set_tensor("1.4.bias", lambda t: t.fill_(float("nan"))), "NaN"),
        (set_tensor("0.0.weight", lambda t: t.mul_(torch.inf)), "NaN or infinite"),
        (set_tensor("1.4.weight", lambda t: -t), "self-test"),
    ],
)
def test_weights_of_another_model_are_refused(folder, change, words):
    put_tensors(folder, change)
    refused(folder, words)


def test_a_giant_without_its_weights_is_never_built(folder, monkeypatch):
    monkeypatch.setattr(bundle, "build_learner", lambda *_, **__: pytest.fail("the model was built"))
    edit(folder, arch="resnet50", weights__arch="resnet50")
    refused(folder, "tensors are missing or too many")


def test_a_missing_device_is_not_an_error_of_the_file(saved):
    with pytest.raises(UsageError, match="abacus"):
        load_model(saved, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="cuda"):
            load_model(saved, device="cuda")


def test_the_golden_image_never_changes():
    """Models that were saved before have this image in their self-test."""
    image = golden_image(224)
    assert image.shape == (224, 224) and image.dtype == np.uint8 and image.std() > 30
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "480bdaa3c5186569"


def test_seal_refuses_a_config_that_cannot_be_read(saved):
    config = json.loads((saved / "config.json").read_text())
    config.pop("fingerprint")
    assert seal_config(config)["fingerprint"]
    with pytest.raises(UsageError, match="image_size"):
        seal_config({**config, "image_size": 1})


def test_a_model_with_the_norms_of_several_gpus_can_be_saved(cohort, learn, tmp_path):
    other = build_learner(loaders(cohort), arch="resnet18", weights=None, path=tmp_path)
    other.model.load_state_dict(learn.model.state_dict())
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(other.model)  # as fastai's DistributedTrainer leaves it
    loaded = load_model(save_model(other, tmp_path / "model"), device="cpu")
    x = torch.rand(3, 1, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.eval()(x), learn.model.eval()(x))
    assert not any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in loaded.model.modules())
