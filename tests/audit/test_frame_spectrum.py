"""Features of the frame and of edges: each kind of processing changes them, and the lungs do not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from covid_fastai.audit.frame_spectrum import EDGES, FEATURES, describe_edges, describe_frame


@pytest.fixture(scope="module")
def texture():
    noise = np.random.default_rng(0).normal(0, 1, (192, 160))
    smooth = gaussian_filter(noise, 3) / gaussian_filter(noise, 3).std()
    return np.clip(120 + 30 * smooth + 4 * noise, 0, 255).round().astype(np.uint8)


def compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


PROCESSING = {  # each with the feature that it changes most plainly, and in which direction
    "blur": (lambda x: gaussian_filter(x, 0.7), "log power, ring 6", -1),
    "sharpening": (
        lambda x: np.clip(2 * x.astype(float) - gaussian_filter(x.astype(float), 1), 0, 255),
        "log noise",
        1,
    ),
    "fewer levels": (lambda x: x // 8 * 8, "empty grey levels", 1),
    "even levels": (lambda x: x // 2 * 2, "odd grey levels", -1),
    "clipping": (lambda x: np.clip(x, 100, 140), "at the maximum", 1),
    "compression": (lambda x: compress(x, 20), "blockiness, rows", 1),
    "compression, blocks": (lambda x: compress(x, 20), "DCT coefficients near 0, high", 1),
    "every other line": (lambda x: np.repeat(x[::2], 2, axis=0), "log step at 2 lines, rows", -1),
}


@pytest.mark.parametrize("kind", PROCESSING)
def test_processing_changes_its_feature(texture, kind):
    process, feature, sign = PROCESSING[kind]
    place = FEATURES.index(feature)
    before, after = describe_frame(texture)[place], describe_frame(process(texture).astype(np.uint8))[place]
    assert sign * (after - before) > 0.1


def test_the_lungs_do_not_change_the_frame(texture):
    changed = texture.copy()
    changed[48:144, 40:120] = 255
    np.testing.assert_array_equal(describe_frame(changed), describe_frame(texture))


def test_blocks_with_some_of_the_lungs_are_left_out(texture):
    """A lung that reaches into the frame changes nothing there."""
    outside = np.ones((256, 256), dtype=bool)
    outside[64:192, 20:236] = False  # of 192 x 160 pixels: rows 48 to 143, columns 12.5 to 147.5
    changed = texture.copy()
    changed[48:144, 13:147] = 255
    assert not np.array_equal(describe_frame(changed), describe_frame(texture))
    np.testing.assert_array_equal(describe_frame(changed, outside), describe_frame(texture, outside))
    np.testing.assert_allclose(describe_frame(texture, np.ones((8, 8), dtype=bool)), describe_frame(texture))


def test_a_frame_that_the_lungs_hide_has_no_features(texture):
    assert np.isnan(describe_frame(texture, np.zeros((256, 256), dtype=bool))).all()
    sides = np.zeros((256, 256), dtype=bool)
    sides[60:196] = True  # no corner
    features = describe_frame(texture, sides)
    assert np.isnan(features[-3:]).all() and np.isfinite(features[:-3]).all()


@pytest.mark.parametrize("shape", [(1, 1), (9, 40), (16, 16), (33, 700), (800, 600)])
def test_features_of_any_size_are_finite(shape):
    for pixels in (np.zeros(shape, dtype=np.uint8), np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)):
        frame, edges = describe_frame(pixels), describe_edges(pixels)
        assert frame.shape == (len(FEATURES),) and edges.shape == (len(EDGES),)
        assert np.isfinite(frame).all() and np.isfinite(edges).all()


def test_a_sharp_mark_anywhere_is_an_edge_and_disease_is_not(texture):
    y, x = np.indices((400, 400))
    background = np.clip(np.tile(texture, (3, 3))[:400, :400].astype(float), 60, 180)
    opacity = background + 60 * np.exp(-((y - 200) ** 2 + (x - 130) ** 2) / 2 / 40**2)
    lungs = (np.abs(y - 200) < 120) & (np.abs(np.abs(x - 200) - 90) < 50)
    streaks = background + 40 * lungs * np.cos(0.9 * x)  # a fine texture in both lungs
    marked = background.copy()
    marked[200:206, 80:110] = 250
    plain, soft, fine, mark = (
        describe_edges(np.clip(image, 0, 255).astype(np.uint8)) for image in (background, opacity, streaks, marked)
    )
    assert np.abs(soft - plain).max() < 0.1 and np.abs(fine[:2] - plain[:2]).max() < 0.3
    assert mark[0] > plain[0] + 0.3
