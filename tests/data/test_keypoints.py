"""Keypoints: their codes are the same in turned, mirrored, inverted and brightened copies."""

from __future__ import annotations

import numpy as np
import pytest

from covid_fastai.data.keypoints import (
    COUNT,
    MIRROR,
    SIDE,
    find_keypoints,
    standardise,
    unpack_keypoints,
)
from covid_fastai.data.phantom import draw_phantom


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return draw_phantom(np.random.default_rng(3), finding="COVID-19", image_size=SIDE).image


ALTERED = {  # how pixels are altered; where x and y, 0 to 255, then are; whether it is mirrored, inverted
    "as it is": (lambda p: p, lambda x, y: (x, y), False, False),
    "turned by 90": (lambda p: np.rot90(p), lambda x, y: (y, 255 - x), False, False),
    "turned by 180": (lambda p: np.rot90(p, 2), lambda x, y: (255 - x, 255 - y), False, False),
    "mirrored": (lambda p: p[:, ::-1], lambda x, y: (255 - x, y), True, False),
    "upside down": (lambda p: p[::-1], lambda x, y: (x, 255 - y), True, False),
    "inverted": (lambda p: 255 - p, lambda x, y: (x, y), False, True),
    "less contrast": (lambda p: (p * 0.7 + 20).astype(np.uint8), lambda x, y: (x, y), False, False),
}


@pytest.mark.parametrize("name", ALTERED)
def test_codes_are_found_again(pixels, name):
    alter, place, mirrored, inverted = ALTERED[name]
    own, other = find_keypoints(pixels), find_keypoints(np.ascontiguousarray(alter(pixels)))
    x, y = place(own["x"].astype(int), own["y"].astype(int))
    apart = np.maximum(np.abs(x[:, None] - other["x"].astype(int)), np.abs(y[:, None] - other["y"].astype(int)))
    match = apart.argmin(axis=1)
    again = apart.min(axis=1) <= 2
    assert again.mean() >= 0.8
    own, other = own[again], other[match[again]]
    np.testing.assert_array_equal(own["sign"] * (-1 if inverted else 1), other["sign"])
    codes = own["codes"] ^ (MIRROR if mirrored else np.uint64(0))
    differing = np.bitwise_count(codes ^ other["codes"])
    assert np.median(differing) <= 2 and np.mean(differing <= 8) > 0.9
    unrelated = np.bitwise_count(codes ^ np.roll(other["codes"], 1, axis=0))
    assert np.median(unrelated) > 20


def test_an_even_image_has_no_keypoint():
    keypoints = find_keypoints(np.full((SIDE, SIDE), 90, np.uint8))
    assert keypoints.shape == (COUNT,) and (keypoints["sign"] == 0).all()


def test_standardised_pixels_equal_their_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 80, 80), dtype=np.uint8)
    triangle = np.convolve(np.ones(5), np.ones(5)) / 25  # two boxes of 5 pixels
    window = np.outer(triangle, triangle)
    around = pixels[1, 36:45, 26:35].astype(float)
    mean = (window * around).sum()
    deviation = np.sqrt((window * around**2).sum() - mean**2)
    assert standardise(pixels, 5)[1, 40, 30] == pytest.approx((pixels[1, 40, 30] - mean) / (deviation + 4), rel=1e-4)


def test_keypoints_survive_their_bytes(pixels):
    keypoints = np.stack([find_keypoints(pixels), find_keypoints(pixels[::-1].copy())])
    np.testing.assert_array_equal(unpack_keypoints(row.tobytes() for row in keypoints), keypoints)
