"""Alignment: exact averages of windows, features of mirrored images, and pairs that agree after alignment."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from scipy.stats import rankdata

from covid_fastai.data import alignment
from covid_fastai.data.alignment import INPUT_SIDE, aligned_pairs
from covid_fastai.data.phantom import FINDINGS, draw_phantom

PATIENTS = 40


def squashed(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BOX))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rngs = (np.random.default_rng([31, patient]) for patient in range(PATIENTS))
    drawn = (draw_phantom(rng, finding=list(FINDINGS)[n % 4], image_size=128).image for n, rng in enumerate(rngs))
    return [Image.fromarray(image) for image in drawn]


@pytest.fixture(scope="module")
def arrays(images) -> np.ndarray:
    return np.stack([squashed(image) for image in images])


def assert_copies(pairs: list[alignment.AlignedPair]) -> None:
    """Each image is paired with its copy only; one phantom of forty has too little fine structure to be found."""
    positions = {(pair.first, pair.second) for pair in pairs}
    assert positions <= {(n, n + PATIENTS) for n in range(PATIENTS)} and len(positions) >= PATIENTS - 1


def test_images_of_different_patients_are_no_pairs(arrays):
    assert aligned_pairs(arrays) == []


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_give_no_pair(arrays, count):
    assert aligned_pairs(arrays[:count]) == []


def test_blank_images_are_in_no_pair(arrays):
    blank = np.full((3, INPUT_SIDE, INPUT_SIDE), 80, dtype=np.uint8)
    assert aligned_pairs(np.concatenate([blank, arrays[:4]])) == []


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("window", [(0, 0, 128, 128), (6, 6, 122, 122), (6, 0, 128, 128), (0, 2, 125, 122)])
def test_cropped_and_mirrored_copies_are_found_and_described(images, arrays, window, mirrored):
    copies = [image.crop(window) for image in images]
    if mirrored:
        copies = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in copies]
    pairs = aligned_pairs(np.concatenate([arrays, [squashed(copy) for copy in copies]]))
    assert_copies(pairs)
    assert {pair.mirrored for pair in pairs} == {mirrored}
    assert {pair.cropped for pair in pairs} == {window != (0, 0, 128, 128)}
    assert min(pair.correlation for pair in pairs) > 0.99


@pytest.mark.parametrize("change", [lambda x: x**1.4, lambda x: x**0.7, lambda x: 0.6 * x + 0.3, np.sqrt])
def test_monotonic_intensity_changes_have_no_effect(images, arrays, change):
    table = [round(255 * float(change(value / 255))) for value in range(256)]
    copies = [squashed(image.point(table)) for image in images]
    pairs = aligned_pairs(np.concatenate([arrays, copies]))
    assert_copies(pairs)


def test_ranks_equal_scipys(arrays):
    small = alignment._shrink(arrays[:5])
    np.testing.assert_array_equal(small, arrays[:5].reshape(5, 32, 2, 32, 2).mean(axis=(2, 4)))
    expected = [(rankdata((image + 0.5).astype(np.uint8)) - 0.5) / 32**2 - 0.5 for image in small]
    np.testing.assert_allclose(alignment._ranks(small).reshape(5, -1), np.reshape(expected, (5, -1)), atol=1e-6)


def test_a_window_is_averaged_exactly():
    """The oracle repeats each pixel 100 times, so that every edge lies between two pixels."""
    pixels = np.random.default_rng(0).random((64, 64))
    view = alignment._window_views(pixels[None], np.array([[0.03, 0.01, 0.96, 0.98]]))[0]
    fine = pixels.repeat(100, axis=0).repeat(100, axis=1)[64:6272, 192:6144]
    np.testing.assert_allclose(view, fine.reshape(32, 194, 32, 186).mean(axis=(1, 3)), atol=1e-5)
    whole = alignment._window_views(pixels[None], alignment.WHOLE[None])[0]
    np.testing.assert_allclose(whole, pixels.reshape(32, 2, 32, 2).mean(axis=(1, 3)), atol=1e-6)
    beyond = alignment._window_views(np.arange(64.0)[None, None, :].repeat(64, axis=1), np.array([[-0.1, 0, 1.1, 1]]))
    assert beyond[0, 0, 0] == pytest.approx(0) and beyond[0, 0, -1] == pytest.approx(63)


def test_mirroring_changes_the_sign_of_odd_cosines():
    noise = np.random.default_rng(0).normal(size=(32, 32))
    size = alignment.FREQUENCIES
    plain, mirrored = (dctn(image, norm="ortho")[:size, :size].ravel()[1:] for image in (noise, noise[:, ::-1]))
    np.testing.assert_allclose(np.where(alignment.ODD, -plain, plain), mirrored, atol=1e-12)


def test_candidates_equal_those_of_the_full_matrix(arrays, monkeypatch):
    """Blocks, and the products of even and odd cosines, give the result of one full matrix product."""
    monkeypatch.setattr(alignment, "MIN_EXPLAINED", 0.9)
    features = alignment._features(arrays)
    for mirrored in (0, 1):
        units = np.where(alignment.ODD & bool(mirrored), -1, 1) * features.units
        explained = (np.einsum("ikd,jd->ijk", features.bases, units) ** 2).sum(axis=2)
        np.fill_diagonal(explained, 0)
        expected = {(int(i), int(j), mirrored) for i, j in zip(*np.nonzero(explained > 0.9), strict=True)}
        assert mirrored or expected
        for rows, columns in ((128, 1024), (7, 11)):
            monkeypatch.setattr(alignment, "ROWS", rows)
            monkeypatch.setattr(alignment, "COLUMNS", columns)
            assert {pair for pair in alignment._candidates(features) if pair[2] == mirrored} == expected


def test_the_initial_window_is_close_to_the_crop(images, arrays):
    crop = (5, 1, 124, 126)
    both = np.concatenate([arrays, [squashed(image.crop(crop)) for image in images]])
    positions = np.arange(PATIENTS)
    window = alignment._initial_windows(
        alignment._features(both), np.stack([positions, positions + PATIENTS, 0 * positions], axis=1)
    )
    assert np.abs(np.median(window, axis=0) - np.array(crop) / 128).max() < 0.012
