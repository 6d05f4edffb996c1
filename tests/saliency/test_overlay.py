"""The overlay: the map of a class against the others, its colours and its transparency."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from covid_fastai.saliency.overlay import (
    OUTLINE,
    against_rest,
    area_mean,
    draw_layer,
    draw_outline,
    fraction_inside,
    shrink_to_fit,
)


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


def test_the_outline_is_the_edge_of_the_region():
    """Oracle: scipy's erosion with a 3 x 3 square, which does not erode at the edge of the image."""
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:40, 5:30] = mask[20:64, 40:60] = True  # the second one is cut off by the lower edge
    outline = np.asarray(draw_outline(mask, (64, 64)))
    expected = mask & ~binary_erosion(mask, np.ones((3, 3)), border_value=1)
    np.testing.assert_array_equal(outline[..., 3] == 255, expected)
    assert set(np.unique(outline[..., 3])) == {0, 255} and (outline[expected][:, :3] == OUTLINE).all()
    larger = np.asarray(draw_outline(mask, (128, 256)))
    assert larger.shape == (256, 128, 4) and 0 < (larger[..., 3] > 0).mean() < 0.05


def test_the_fraction_inside_a_region_is_that_of_its_cells():
    mask = np.zeros((64, 64), dtype=bool)
    mask[:32, :16] = True  # half of the first of 2 x 2 cells
    assert area_mean(mask, (2, 2)) == pytest.approx(np.array([[0.5, 0], [0, 0]]))
    saliency = np.array([[2.0, 1.0], [-5.0, 1.0]])
    assert fraction_inside(saliency, mask) == pytest.approx(2 * 0.5 / 4)
    assert fraction_inside(saliency, np.ones_like(mask)) == pytest.approx(1)
    assert fraction_inside(-np.ones((2, 2)), mask) is None
