"""Alignment: windows that are averaged exactly, features that know a mirror, and pairs that agree once aligned."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from scipy.stats import rankdata

from covid_fastai.data import alignment
from covid_fastai.data.alignment import PICTURE_SIDE, aligned_pairs
from covid_fastai.data.phantom import FINDINGS, draw_phantom

PEOPLE = 40


def picture(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rngs = (np.random.default_rng([31, person]) for person in range(PEOPLE))
    drawn = (draw_phantom(rng, finding=list(FINDINGS)[n % 4], image_size=128).image for n, rng in enumerate(rngs))
    return [Image.fromarray(image) for image in drawn]


@pytest.fixture(scope="module")
def pictures(images) -> np.ndarray:
    return np.stack([picture(image) for image in images])


def assert_copies(found: list[alignment.AlignedPair]) -> None:
    """Each picture with its copy and nothing else; one drawing in forty has too little fine structure."""
    pairs = {(pair.first, pair.second) for pair in found}
    assert pairs <= {(n, n + PEOPLE) for n in range(PEOPLE)} and len(pairs) >= PEOPLE - 1


def test_nobody_is_joined_with_a_stranger(pictures):
    assert aligned_pairs(pictures) == []


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(pictures, count):
    assert aligned_pairs(pictures[:count]) == []


def test_blank_pictures_are_like_none(pictures):
    blank = np.full((3, PICTURE_SIDE, PICTURE_SIDE), 80, dtype=np.uint8)
    assert aligned_pairs(np.concatenate([blank, pictures[:4]])) == []


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("window", [(0, 0, 128, 128), (6, 6, 122, 122), (6, 0, 128, 128), (0, 2, 125, 122)])
def test_a_copy_is_found_with_what_was_done_to_it(images, pictures, window, mirrored):
    copies = [image.crop(window) for image in images]
    if mirrored:
        copies = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in copies]
    found = aligned_pairs(np.concatenate([pictures, [picture(copy) for copy in copies]]))
    assert_copies(found)
    assert {pair.mirrored for pair in found} == {mirrored}
    assert {pair.cropped for pair in found} == {window != (0, 0, 128, 128)}
    assert min(pair.correlation for pair in found) > 0.99


@pytest.mark.parametrize("change", [lambda x: x**1.4, lambda x: x**0.7, lambda x: 0.6 * x + 0.3, np.sqrt])
def test_grey_levels_count_by_their_rank(images, pictures, change):
    table = [round(255 * float(change(value / 255))) for value in range(256)]
    copies = [picture(image.point(table)) for image in images]
    found = aligned_pairs(np.concatenate([pictures, copies]))
    assert_copies(found)


def test_ranks_are_those_of_scipy(pictures):
    small = alignment._shrink(pictures[:5])
    np.testing.assert_array_equal(small, pictures[:5].reshape(5, 32, 2, 32, 2).mean(axis=(2, 4)))
    expected = [(rankdata((one + 0.5).astype(np.uint8)) - 0.5) / 32**2 - 0.5 for one in small]
    np.testing.assert_allclose(alignment._ranks(small).reshape(5, -1), np.reshape(expected, (5, -1)), atol=1e-6)


def test_a_window_is_the_mean_of_what_it_covers():
    """The oracle repeats each pixel a hundred times, so that every edge falls between two of them."""
    pixels = np.random.default_rng(0).random((64, 64))
    seen = alignment._through(pixels[None], np.array([[0.03, 0.01, 0.96, 0.98]]))[0]
    fine = pixels.repeat(100, axis=0).repeat(100, axis=1)[64:6272, 192:6144]
    np.testing.assert_allclose(seen, fine.reshape(32, 194, 32, 186).mean(axis=(1, 3)), atol=1e-5)
    whole = alignment._through(pixels[None], alignment.WHOLE[None])[0]
    np.testing.assert_allclose(whole, pixels.reshape(32, 2, 32, 2).mean(axis=(1, 3)), atol=1e-6)
    beyond = alignment._through(np.arange(64.0)[None, None, :].repeat(64, axis=1), np.array([[-0.1, 0, 1.1, 1]]))
    assert beyond[0, 0, 0] == pytest.approx(0) and beyond[0, 0, -1] == pytest.approx(63)


def test_the_mirror_is_the_change_of_sign_of_odd_cosines():
    noise = np.random.default_rng(0).normal(size=(32, 32))
    size = alignment.FREQUENCIES
    plain, turned = (dctn(one, norm="ortho")[:size, :size].ravel()[1:] for one in (noise, noise[:, ::-1]))
    np.testing.assert_allclose(np.where(alignment.ODD, -plain, plain), turned, atol=1e-12)


def test_candidates_are_those_of_the_whole_matrix(pictures, monkeypatch):
    """Blocks and the two halves of a mirror give what one product of all with all gives."""
    monkeypatch.setattr(alignment, "MIN_EXPLAINED", 0.9)
    features = alignment._features(pictures)
    for mirrored in (0, 1):
        units = np.where(alignment.ODD & bool(mirrored), -1, 1) * features.units
        explained = (np.einsum("ikd,jd->ijk", features.bases, units) ** 2).sum(axis=2)
        np.fill_diagonal(explained, 0)
        expected = {(int(i), int(j), mirrored) for i, j in zip(*np.nonzero(explained > 0.9), strict=True)}
        assert mirrored or expected
        for rows, columns in ((128, 1024), (7, 11)):
            monkeypatch.setattr(alignment, "ROWS", rows)
            monkeypatch.setattr(alignment, "COLUMNS", columns)
            assert {found for found in alignment._candidates(features) if found[2] == mirrored} == expected


def test_the_first_window_is_near_the_crop(images, pictures):
    crop = (5, 1, 124, 126)
    both = np.concatenate([pictures, [picture(image.crop(crop)) for image in images]])
    here = np.arange(PEOPLE)
    window = alignment._first_window(alignment._features(both), np.stack([here, here + PEOPLE, 0 * here], axis=1))
    assert np.abs(np.median(window, axis=0) - np.array(crop) / 128).max() < 0.012
