"""The recipe of the lung segmentation: parts, masks of each lung, views, resumption, export, and its measurements."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image

from covid_fastai.data.phantom import draw_phantom
from pretraining import lungs as recipe_module
from pretraining.lung_export import export_lungs
from pretraining.lung_images import list_masked, read_lungs, read_pixels, split_lungs
from pretraining.lung_metrics import boundary_distances, compare_masks, dice, summarise
from pretraining.lung_views import Ranges, draw_views
from pretraining.lungs import LungNet, LungRecipe, label_lungs, train_lungs

STILL = Ranges(**{field.name: 0.0 for field in dataclasses.fields(Ranges)})
SMALL = LungRecipe(
    size=64, widths=(4, 8), batch_size=4, teacher_epochs=2, student_epochs=2, final_epochs=1, images_per_epoch=12
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write synthetic radiographs with their lung masks, named as those of Montgomery and Shenzhen."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (folder / "lungs-256" / name).mkdir(parents=True)
    for number in range(24):
        phantom = draw_phantom(np.random.default_rng([7, number]), image_size=64)
        stem = f"{'MCUCXR' if number % 2 else 'CHNCXR'}_{number:04d}_{number // 12}"
        Image.fromarray(phantom.image).save(folder / "lungs-256" / "images" / f"{stem}.jpg")
        Image.fromarray(phantom.lungs).save(folder / "lungs-256" / "masks" / f"{stem}.png")
    return folder


@pytest.fixture
def unmasked(data, monkeypatch):
    """Let the student's images without masks be four of the synthetic ones."""
    paths = list_masked(data, seed=3)["path"].head(4)

    def list_four(folder, out, *, seed, per_bank):
        images = pd.DataFrame({"path": paths, "bank": "kermany", "label": "Normal"})
        images.to_csv(out / "unmasked.csv", index=False)
        return images

    monkeypatch.setattr(recipe_module, "list_unmasked", list_four)


def test_the_parts_do_not_change_when_images_are_added(data, tmp_path):
    before = list_masked(data, seed=0)
    assert set(before["part"]) == {"train", "valid", "held-out"} and before["patient"].is_unique
    for name in ("images", "masks"):
        (tmp_path / "lungs-256" / name).mkdir(parents=True)
    for row in before.iloc[::2].to_dict("records"):
        name = row["path"].rsplit("/", 1)[-1]
        Image.open(row["path"]).save(tmp_path / "lungs-256" / "images" / name)
    fewer = list_masked(tmp_path, seed=0)
    assert fewer["part"].tolist() == before.iloc[::2]["part"].tolist()
    assert list_masked(data, seed=1)["part"].tolist() != before["part"].tolist()


def test_each_lung_has_its_side_and_small_parts_go_to_the_nearer_one():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:18, 3:11], mask[3:15, 18:27], mask[19, 4:6] = True, True, True
    left, right = split_lungs(mask)
    assert (left | right == mask).all() and not (left & right).any()
    assert left[:, :15].sum() == left.sum() == 14 * 8 + 2 and right.sum() == 12 * 9
    with pytest.raises(ValueError, match="1 connected components"):
        split_lungs(left[:18])


def test_views_without_ranges_are_the_image_or_its_mirror_image_with_exchanged_lungs(data):
    images = list_masked(data, seed=0)
    pixels, lungs = read_pixels(images["path"]), read_lungs(images["mask"])
    x, y = draw_views(pixels, lungs, 192, STILL, torch.Generator().manual_seed(0))
    target = torch.from_numpy(lungs).float() / 255
    same = ((y - target).abs() < 0.02).flatten(1).all(1)
    mirrored = ((y - target.flip(3).flip(1)).abs() < 0.02).flatten(1).all(1)
    assert (same | mirrored).all() and 0 < same.sum() < len(images)
    columns = (y * torch.arange(192)).sum((2, 3)) / y.sum((2, 3))
    assert (columns[:, 0] < columns[:, 1]).all()  # the first lung is on the left side of the view
    original = torch.from_numpy(pixels).float() / 255
    difference = torch.where(same[:, None, None], x[:, 0] - original, x[:, 0] - original.flip(2))
    assert difference.abs().mean() < 0.35  # the exposure and the blur have no range of their own


def test_the_mask_moves_with_the_image():
    """A bright disc on black, which is its own mask, is found where the mask says, in every view."""
    y, x = np.mgrid[:192, :192]
    disc = ((x - 70) ** 2 + (y - 100) ** 2 < 40**2).astype(np.uint8) * 255
    lungs = np.stack([disc, np.zeros_like(disc)])
    ranges = dataclasses.replace(Ranges(), opacities=0, effusions=0, collimated=0, markers=0, saturated=0, noise=0)
    pixels, lungs = np.stack([disc] * 16), np.stack([lungs] * 16)
    views, targets = draw_views(pixels, lungs, 128, ranges, torch.Generator().manual_seed(1))
    for view, target in zip(views[:, 0], targets.sum(1), strict=True):
        if (inside := target > 0.9).any():
            # A pixel outside the original image has any grey level; the disc is brighter than the black around it.
            ring = (target > 0.02) & (target < 0.1)
            assert view[inside].mean() > view[ring].mean()


def test_an_interrupted_training_resumes_to_the_same_weights(data, unmasked, tmp_path, monkeypatch):
    expected = train_lungs(data, tmp_path / "whole", SMALL).state_dict()
    calls, draw = iter(range(4)), draw_views

    def stopping(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(recipe_module, "draw_views", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_lungs(data, tmp_path / "parts", SMALL)
    assert len(pd.read_csv(tmp_path / "parts" / "teacher" / "history.csv")) == 1
    monkeypatch.setattr(recipe_module, "draw_views", draw)
    resumed = train_lungs(data, tmp_path / "parts", SMALL).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ValueError, match="another recipe"):
        train_lungs(data, tmp_path / "parts", dataclasses.replace(SMALL, weight_decay=0.5))


@pytest.mark.slow
def test_the_exported_file_answers_as_the_network(data, unmasked, tmp_path):
    model = train_lungs(data, tmp_path, SMALL)
    content = export_lungs(tmp_path, "final").read_bytes()
    assert str(tmp_path).encode() not in content
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 64), dtype=np.uint8)
    (answer,) = session.run(["lungs"], {"images": images})
    with torch.inference_mode():
        x = torch.from_numpy(images).float() / 255
        expected = model(x).softmax(1)[:, :2] + model(x.flip(3)).softmax(1)[:, :2].flip(3).flip(1)
    assert np.abs(answer - expected.numpy() / 2).max() < 0.02  # its weights have 16 bits


def test_labels_of_an_image_and_of_its_mirror_image_are_mirrored():
    torch.manual_seed(0)
    model = LungNet((4, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    lungs, certainty = label_lungs(model, pixels, 64)
    mirrored, _ = label_lungs(model, pixels[:, :, ::-1], 64)
    assert lungs.shape == (2, 2, 64, 64) and ((0 <= certainty) & (certainty <= 1)).all()
    # Two of the four views do not exchange the sides, so the labels of an untrained network agree only roughly.
    assert np.abs(lungs[:, ::-1, :, ::-1].astype(int) - mirrored).mean() < 40


def test_the_measures_of_agreement():
    first = np.zeros((40, 40), dtype=bool)
    first[10:30, 10:30] = True
    second = np.roll(first, 2, axis=1)
    assert dice(first, first) == 1 and dice(first, second) == pytest.approx(18 / 20)
    assert dice(first, ~first) == 0 and dice(first & False, first & False) == 1
    assert boundary_distances(first, first).max() == 0
    assert boundary_distances(first, second).max() == 2 and 0 < boundary_distances(first, second).mean() < 2
    assert boundary_distances(first, first & False).tolist() == [40]


def test_the_summary_has_intervals_by_set(data):
    compared = compare_masks(list_masked(data, seed=0))
    table = summarise(compared)
    assert set(table["held out"]) == {"all", "montgomery", "shenzhen"}
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    row = table[(table["held out"] == "all") & (table["measure"] == "dice, mean")].iloc[0]
    assert row["value"] == pytest.approx(compared["dice"].mean(), abs=1e-4) and row["images"] == 24
