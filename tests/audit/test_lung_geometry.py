"""The baseline of the lungs' geometry: its measurements on drawn lungs, and a framing that differs by class."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.audit.baseline_features import read_features
from covid_fastai.audit.lung_geometry import GEOMETRY, measure_geometry, read_geometry
from covid_fastai.data.cohort import Cohort, CohortInfo
from covid_fastai.data.lungs import describe_lungs
from covid_fastai.data.phantom import draw_phantom


def lungs_of(left, right):
    """Return the lungs of two rectangles on the grid of 128 pixels, each left, top, right, bottom."""
    output = np.zeros((2, 128, 128), dtype=np.float32)
    for lung, (x0, y0, x1, y1) in zip(output, (left, right), strict=True):
        lung[y0:y1, x0:x1] = 0.98
    return describe_lungs(output)


def test_the_measurements_of_two_rectangles():
    measured = dict(zip(GEOMETRY, measure_geometry(lungs_of((20, 30, 50, 90), (70, 40, 100, 100))), strict=True))
    assert (measured["x"], measured["y"]) == pytest.approx((60 / 128, 65 / 128), abs=0.005)
    assert (measured["width"], measured["height"]) == pytest.approx((80 / 128, 70 / 128), abs=0.01)
    assert measured["log aspect"] == pytest.approx(np.log(80 / 70), abs=0.02)
    assert measured["tilt"] == pytest.approx(np.arctan2(10, 50), abs=0.01)  # the right lung is 10 pixels lower


def test_files_without_lungs_have_the_mean_of_the_others(tmp_path):
    for number in range(2):
        phantom = draw_phantom(np.random.default_rng([9, number]), image_size=256)
        Image.fromarray(phantom.image).save(tmp_path / f"{number}.png")
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).save(tmp_path / "ramp.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    paths = [tmp_path / name for name in ("0.png", "ramp.png", "1.png", "broken.png")]
    features = read_geometry(paths)
    assert not np.array_equal(features[0], features[2])
    np.testing.assert_allclose(features[[1, 3]], np.tile(features[[0, 2]].mean(axis=0), (2, 1)))
    assert read_geometry([]).shape == (0, len(GEOMETRY))
    assert (read_geometry(paths[1:2]) == 0).all()
    blocks = read_features(paths).blocks
    np.testing.assert_array_equal(blocks["lung geometry"], features)
    assert "lung geometry" not in read_features(paths, blocks=["thumbnail"]).blocks


def test_a_framing_that_differs_by_class_is_found(tmp_path):
    """One class has a margin around the same kind of image; only size and place of the lungs differ."""
    from covid_fastai.audit.baselines import find_shortcuts

    rows = []
    for number in range(24):
        phantom = draw_phantom(np.random.default_rng([9, number]), image_size=160)
        image, label = Image.fromarray(phantom.image), ("Normal", "COVID-19")[number % 2]
        if label == "COVID-19":
            framed = Image.new("L", (240, 240))
            framed.paste(image, (20, 20))
            image = framed.resize((160, 160))
        image.save(tmp_path / f"{number}.png")
        rows.append({"path": str(tmp_path / f"{number}.png"), "label": label, "patient": str(number), "split": "train"})
    facts = CohortInfo(classes=("Normal", "COVID-19"), positive="COVID-19")
    shortcuts = find_shortcuts(Cohort(pd.DataFrame(rows).assign(source="one"), facts=facts), permutations=199)
    row = shortcuts.row("lung geometry")
    assert row["auc"] > 0.75 and row["p"] < 0.05
    assert not row["lung_free"] and not row["flagged"]  # disease can change it, too
