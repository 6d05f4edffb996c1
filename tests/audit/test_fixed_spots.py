"""Fixed spots: a mark at one place is found, chance is not; oracle: scikit-learn's AUC."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from covid_fastai.audit.fixed_spots import (
    CELLS,
    cover_boxes,
    describe_box,
    describe_cells,
    find_edges,
    find_spots,
    format_boxes,
    most_telling,
    places_of,
)
from covid_fastai.audit.permutation import auc_of_ranks

CLASSES = ["Normal", "COVID-19"]


def draw_images(rng, count: int) -> np.ndarray:
    noise = gaussian_filter(rng.normal(size=(count, 128, 128)), (0, 4, 4))
    return np.clip(110 + 400 * noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images():
    return draw_images(np.random.default_rng(0), 60)


@pytest.fixture(scope="module")
def rows():
    names = [f"p{number // 2}" for number in range(60)]  # two images of each patient
    return pd.DataFrame({"patient": names, "label": np.repeat(CLASSES, 30), "fold": 0})


def mark(images: np.ndarray) -> np.ndarray:
    marked = images.copy()
    marked[30:, 50:58, 80:92] = 230
    return marked


def test_a_mark_at_a_fixed_place_is_found_and_its_box_covers_it(images, rows):
    x = np.stack([describe_cells(image) for image in mark(images)])
    test = find_spots(x, rows, CLASSES, permutations=199)
    assert test.observed == 0.5 and (test.permuted < test.observed).all()
    top, bottom, left, right = (4 * edge for edge in test.boxes[0])
    assert top <= 50 and bottom >= 58 and left <= 80 and right >= 92
    assert (bottom - top) * (right - left) < 30 * 30
    assert most_telling(x, rows["label"].to_numpy(), CLASSES) % CELLS**2 // CELLS in range(11, 17)


def test_chance_gives_no_small_p_value_and_the_box_of_the_best_cell(images, rows):
    x = np.stack([describe_cells(image) for image in images])
    test = find_spots(x, rows, CLASSES, permutations=199)
    assert (1 + (test.permuted >= test.observed).sum()) / 200 > 0.05
    assert len(test.boxes) == 1 and test.boxes[0][1] - test.boxes[0][0] <= 3


def test_the_family_wise_error_is_controlled(images, rows):
    """The p-values of permuted labels are uniform: each permutation is as extreme as any other."""
    x = np.stack([describe_cells(image) for image in images])
    rng, small = np.random.default_rng(1), 0
    for _ in range(20):
        shuffled = rows.assign(label=np.repeat(rng.permutation(np.repeat(CLASSES, 15)), 2))
        test = find_spots(x, shuffled, CLASSES, permutations=99)
        small += (1 + (test.permuted >= test.observed).sum()) / 100 <= 0.05
    assert small <= 4  # 1 is expected; more than 4 have a probability of 0.003


def test_the_auc_of_ranks_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 5, (40, 3)), rng.random((40, 2)) < 0.4
    ranks = pd.DataFrame(values).rank().to_numpy()
    expected = [[roc_auc_score(labels[:, p], values[:, k]) for k in range(3)] for p in range(2)]
    np.testing.assert_allclose(auc_of_ranks(ranks, labels), expected)


def test_a_covered_mark_is_gone_and_the_rest_of_the_image_is_the_same(images):
    marked = mark(images)[40]
    covered = cover_boxes(marked, [[12, 15, 19, 24]])
    assert covered[48:60, 76:96].max() < 200 and covered.dtype == np.uint8
    outside = np.ones(marked.shape, dtype=bool)
    outside[48:60, 76:96] = False
    np.testing.assert_array_equal(covered[outside], marked[outside])
    assert cover_boxes(np.full((50, 70), 90, dtype=np.uint8), [[0, 6, 26, 32]]).min() == 90


def test_letters_anywhere_are_covered_in_each_image(images):
    """The letters of one class may be as sharp as those of the other: nothing but covering them shows their part."""
    rng = np.random.default_rng(3)
    inside = np.zeros((256, 256), dtype=bool)
    inside[40:220, 40:220] = True
    for image in images[:10]:
        canvas = Image.fromarray(image)
        place = rng.integers(28, 88, 2)
        ImageDraw.Draw(canvas).text(tuple(place), "AP", fill=235, font=ImageFont.load_default(12))
        ImageDraw.Draw(canvas).text((1, 1), "L", fill=255, font=ImageFont.load_default(12))  # sharper, and outside
        written = np.asarray(canvas)
        letters = (written != image) & (np.add.outer(np.arange(128), np.arange(128)) > 40)
        boxes = find_edges(written, inside)
        for place in places_of(boxes, 128, 128):
            letters[place] = False
        assert letters.sum() < 0.1 * (written != image).sum() and len(boxes) == 3
        assert any(top <= 2 and left <= 2 for top, _, left, _ in find_edges(written, None))  # the letter outside, too


def test_places_of_sharp_edges_lie_in_the_image():
    for corner in ((0, 0), (0, 127), (127, 127)):
        pixels = np.zeros((128, 128), dtype=np.uint8)
        pixels[corner] = 255
        for top, bottom, left, right in find_edges(pixels, None):
            assert 0 <= top < bottom <= CELLS and 0 <= left < right <= CELLS


def test_boxes_as_text():
    assert describe_box([12, 16, 19, 23]) == "43% from the top and 65% from the left"
    assert format_boxes([[12, 16, 19, 23], [0, 4, 28, 32]]) == "12 16 19 23; 0 4 28 32"
