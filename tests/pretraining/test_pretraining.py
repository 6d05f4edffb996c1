"""The pretraining: the choice of images, the views, resumption, and the export that the package reads."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from covid_fastai.data.pretraining_overlap import read_manifest
from covid_fastai.model.weights import resolve_weights
from pretraining.config import Recipe
from pretraining.export import export
from pretraining.images import CROPS_OF_COHEN, choose_images, store_pixels
from pretraining.probe import probe
from pretraining.train import MEAN, STD, body, pretrain, views

SMALL = Recipe(stored_size=40, sizes=(32, 32), batch_size=8)
STILL = Recipe(degrees=0, scale=(1.0, 1.0), shift=0, gamma=0, contrast=0)


@pytest.fixture
def material(phantom_cohort):
    """Return sixteen images of each of two banks, and random features in place of a teacher's."""
    rows = phantom_cohort[phantom_cohort["split"] != "excluded"].head(32)
    images = rows[["path", "patient", "label"]].assign(bank=["kermany", "radiography"] * 16)
    features = np.random.default_rng(0).normal(size=(32, 1280)).astype(np.float16)
    return images.reset_index(drop=True), features


def test_a_view_without_transforms_is_the_image_or_its_mirror_image():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32), dtype=np.uint8)
    found = views(pixels, 32, STILL, torch.Generator().manual_seed(0)) * STD + MEAN
    images = torch.from_numpy(pixels)[:, None] / 255
    same = ((found - images).abs() < 0.01).all((1, 2, 3))
    mirrored = ((found - images.flip(3)).abs() < 0.01).all((1, 2, 3))
    assert (same | mirrored).all() and 0 < mirrored.sum() < 16


def test_views_depend_on_the_generator_only():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40), dtype=np.uint8)
    first, second = (views(pixels, 32, Recipe(), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (4, 1, 32, 32) and first.isfinite().all()
    assert not torch.equal(first, views(pixels, 32, Recipe(), torch.Generator().manual_seed(2)))


@pytest.mark.slow
def test_an_interrupted_pretraining_resumes_to_the_same_weights(material, tmp_path, monkeypatch):
    images, features = material
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    pixels = store_pixels(images, whole / "pixels.u8", size=SMALL.stored_size)
    expected = pretrain(images, pixels, features, whole, SMALL).state_dict()
    calls = iter(range(6))  # four steps an epoch: stopped in the second

    def stopping(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return views(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pretraining.train.views", stopping)
        pretrain(images, pixels, features, parts, SMALL)
    assert len(pd.read_csv(parts / "history.csv")) == 1
    found = pretrain(images, pixels, features, parts, SMALL).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(images, pixels, features, parts, dataclasses.replace(SMALL, match=2.0))


def test_the_package_reads_the_exported_weights(material, tmp_path):
    images, _ = material
    model = body()
    path = export(model, images, tmp_path, SMALL)
    weights = resolve_weights(path, arch="resnet18")
    assert (weights.mean, weights.std) == (MEAN, STD)
    x = torch.randn(2, 1, 64, 64)
    package_body = torch.nn.Sequential(
        *list(body().children())[:-2]
    )  # without pooling and the last layer, as in the package
    package_body.load_state_dict(weights.state)
    model.eval(), package_body.eval()
    with torch.no_grad():
        torch.testing.assert_close(package_body(x).mean((2, 3)), model(x), atol=0.02, rtol=0.02)  # 16 bits
    assert path.stat().st_size < 24e6
    assert json.loads(path.with_suffix(".json").read_text())["image_size"] == 32
    assert len(read_manifest(path.with_suffix(".manifest.safetensors"))) == len(images)


def test_pixels_are_stored_once(material, tmp_path):
    images, _ = material
    first = store_pixels(images, tmp_path / "p.u8", size=40)
    stamp = (tmp_path / "p.u8").stat().st_mtime_ns
    np.testing.assert_array_equal(store_pixels(images, tmp_path / "p.u8", size=40), first)
    assert (tmp_path / "p.u8").stat().st_mtime_ns == stamp and first.shape == (32, 40, 40)


def test_the_probe_separates_informative_features_and_not_noise(phantom_cohort):
    cohort = phantom_cohort[phantom_cohort["split"] != "excluded"].reset_index(drop=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(cohort), 8))
    informative = noise + 3 * (cohort["label"] == "COVID-19").to_numpy()[:, None]
    assert probe(informative, cohort).value("auc") > 0.95
    assert probe(noise, cohort).value("auc") < 0.8


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.nightly
def test_nothing_that_evaluation_needs_is_seen(real_data, tmp_path):
    images = choose_images(real_data, tmp_path, kermany_fraction=0.5, seed=0)
    kermany = images[images["bank"] == "kermany"]
    assert not kermany["path"].str.contains("/test/").any()
    assert 1700 <= kermany["patient"].nunique() <= 1850  # half of Kermany's TRAIN patients
    assert set(kermany["label"]) == {"Normal", "Bacterial", "Viral"}
    assert (images["bank"] == "radiography").sum() == 1937 + 6628 - len(CROPS_OF_COHEN)
    assert not images["path"].str.contains("external").any()
