"""Search by keypoints: hash tables against every pair of codes, the fitted maps, order and blocks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from covid_fastai.data import keypoint_search
from covid_fastai.data.keypoint_search import match_images
from covid_fastai.data.keypoints import COUNT, KEYPOINT, PLAIN, SIDE, find_keypoints
from covid_fastai.data.phantom import FINDINGS, draw_phantom

PATIENTS = 12


def keypoints_of(image: Image.Image) -> np.ndarray:
    return find_keypoints(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rngs = (np.random.default_rng([31, patient]) for patient in range(PATIENTS))
    drawn = (draw_phantom(rng, finding=list(FINDINGS)[n % 4], image_size=192).image for n, rng in enumerate(rngs))
    return [Image.fromarray(image) for image in drawn]


@pytest.fixture(scope="module")
def keypoints(images) -> np.ndarray:
    return np.stack([keypoints_of(image) for image in images])


@pytest.fixture(scope="module")
def both(images, keypoints) -> np.ndarray:
    """The images, and each again, cropped and turned."""
    copies = [image.rotate(6, resample=Image.Resampling.BICUBIC).crop((12, 6, 180, 192)) for image in images]
    return np.concatenate([keypoints, [keypoints_of(copy) for copy in copies]])


def test_tables_find_the_codes_that_agree_in_a_mask(both):
    tables = keypoint_search.KeypointIndex(both)
    codes = both["codes"][:4, :, 0].ravel()
    stored = both["codes"][..., PLAIN].ravel()
    for number, mask in enumerate(tables.masks):
        assert int(mask).bit_count() == keypoint_search.key_bits(len(both))
        differing = codes[:, None] ^ stored
        expected = (differing & mask == 0) & (np.bitwise_count(differing) <= keypoint_search.MAX_BITS)
        expected &= both["sign"].ravel() != 0
        found = set(zip(*(ends.tolist() for ends in tables.look_up(codes, number)), strict=True))
        assert found == set(zip(*(ends.tolist() for ends in np.nonzero(expected)), strict=True))


def test_the_map_says_where_the_content_is(images):
    copy = images[0].crop((10, 0, 180, 186))
    matches = match_images(np.stack([keypoints_of(copy)]), np.stack([keypoints_of(images[0])]), min_count=6)
    assert matches.first.tolist() == [0] and matches.second.tolist() == [0] and not matches.inverted.any()
    corners = np.array([(-0.5, -0.5, 1), (0.5, -0.5, 1), (-0.5, 0.5, 1), (0.5, 0.5, 1)])
    expected = np.array([(10, 0), (180, 0), (10, 186), (180, 186)]) / 192 - 0.5
    np.testing.assert_allclose(corners @ matches.maps[0].T, expected, atol=0.02)


def test_copies_have_more_matches_than_other_images(both):
    matches = match_images(both, min_count=6)
    pairs = set(zip(matches.first.tolist(), matches.second.tolist(), strict=True))
    copies = {frozenset((n, n + PATIENTS)) for n in range(PATIENTS)}
    assert copies <= {frozenset(pair) for pair in pairs}
    is_copy = np.abs(matches.first - matches.second) == PATIENTS
    assert np.median(matches.matched[is_copy]) > 15 and np.median(matches.matched[~is_copy]) < 15


def test_blocks_and_the_order_of_images_change_nothing(both, monkeypatch):
    expected = match_images(both, min_count=6)
    order = np.random.default_rng(0).permutation(len(both))
    for queries, candidates in ((1024, 4096), (5, 3)):
        monkeypatch.setattr(keypoint_search, "QUERIES", queries)
        monkeypatch.setattr(keypoint_search, "CANDIDATES", candidates)
        for rows in (np.arange(len(both)), order):
            matches = match_images(both[rows], min_count=6)
            first, second = rows[matches.first], rows[matches.second]
            ends = [tuple(pair) for pair in np.stack([first, second], axis=1).tolist()]
            place = [ends.index(pair) for pair in zip(expected.first.tolist(), expected.second.tolist(), strict=True)]
            assert sorted(place) == list(range(len(ends)))
            np.testing.assert_array_equal(matches.matched[place], expected.matched)
            np.testing.assert_allclose(matches.maps[place], expected.maps, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_pair(keypoints, count):
    matches = match_images(keypoints[:count], min_count=6)
    assert [len(values) for values in matches] == [0] * 6 and matches.maps.shape == (0, 2, 3)
    assert len(match_images(keypoints[:count], keypoints[:0], min_count=6).first) == 0


def test_images_without_keypoints_are_in_no_pair(keypoints):
    empty = np.zeros((2, COUNT), KEYPOINT)
    assert len(match_images(empty, min_count=6).first) == 0
    matches = match_images(np.concatenate([empty, keypoints[:3]]), keypoints, min_count=30)
    assert (matches.first - 2).tolist() == matches.second.tolist() == [0, 1, 2]


def test_pairs_without_enough_evidence_are_left_out(both):
    """Matches by chance are barely near enough, so that they have less evidence at the same number of keypoints."""
    matches = match_images(both, min_count=6)
    chosen = match_images(both, min_count=6, min_evidence=60)
    enough = matches.evidence >= 60
    assert 0 < enough.sum() < len(enough)
    pairs = [np.stack([m.first, m.second], axis=1).tolist() for m in (matches, chosen)]
    assert [pair for pair, kept in zip(pairs[0], enough, strict=True) if kept] == pairs[1]
    is_copy = np.abs(matches.first - matches.second) == PATIENTS
    per_keypoint = matches.evidence / matches.matched
    assert np.median(per_keypoint[is_copy]) > 1.5 * np.median(per_keypoint[~is_copy])


def test_keys_that_occur_several_times_are_kept():
    keys = np.array([7, 1 << 40, 3, 7, 9, 1 << 40, 11])
    assert set(keypoint_search._repeated(keys)) >= {0, 1, 3, 5}
    many = np.arange(1000) * 7919
    assert len(keypoint_search._repeated(many)) < 50
