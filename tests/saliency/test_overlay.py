"""The overlay: the map of a class against the others, its colours and its transparency."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image

from covid_fastai.saliency.overlay import against_rest, draw_layer, shrink_to_fit


def test_against_rest_is_the_class_minus_the_mean_of_the_others():
    maps = np.random.default_rng(0).normal(size=(4, 3, 2, 5))
    differences = against_rest(maps, np.array([0, 1, 2, 1]))
    assert differences.shape == (4, 2, 5)
    np.testing.assert_allclose(differences[2], maps[2, 2] - (maps[2, 0] + maps[2, 1]) / 2)
    np.testing.assert_allclose(against_rest(maps[:, :2], np.zeros(4, int)), maps[:, 0] - maps[:, 1])


def test_colours_are_viridis():
    saliency = np.linspace(0, 3.7, 256)[None].repeat(2, axis=0)
    layer = np.asarray(draw_layer(saliency, (256, 2)))
    expected = matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255
    off = np.abs(layer[0, :, :3] - expected)  # in intensity levels; nine colours approximate 256
    assert off.max() < 20 and off.mean() < 2
    np.testing.assert_allclose(layer[0, :, 3], 255 * np.sqrt(np.linspace(0, 1, 256)), atol=1)


def test_evidence_against_the_class_is_transparent():
    saliency = np.array([[-5.0, 0.0], [0.0, 2.0]])
    layer = np.asarray(draw_layer(saliency, (64, 48)))
    assert layer.shape == (48, 64, 4)
    assert layer[:10, :10, 3].max() == 0 and layer[-1, -1, 3] == 255
    assert np.asarray(draw_layer(-np.ones((4, 4)), (8, 8)))[..., 3].max() == 0


@pytest.mark.parametrize("size", [(3000, 2000), (800, 1200), (40, 30)])
def test_shrinking_preserves_the_aspect_ratio(size):
    shrunk = shrink_to_fit(Image.new("L", size, 9), 512)
    assert max(shrunk.size) == min(512, max(size))
    assert shrunk.width / shrunk.height == pytest.approx(size[0] / size[1], rel=0.01)
