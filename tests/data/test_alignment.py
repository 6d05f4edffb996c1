"""Alignment: copies agree in fine detail once one is placed on the other, other images do not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import map_coordinates

from covid_fastai.data import alignment
from covid_fastai.data.alignment import INPUT_SIDE, aligned_pairs, measure_agreement
from covid_fastai.data.keypoints import SIDE, find_keypoints
from covid_fastai.data.phantom import FINDINGS, draw_anatomy, draw_phantom

PATIENTS = 20
WHOLE = np.eye(2, 3)[None]


def squashed(image: Image.Image, side: int = INPUT_SIDE) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def pairs_of(images: list[Image.Image]) -> list[alignment.AlignedPair]:
    keypoints = np.stack([find_keypoints(squashed(image, SIDE)) for image in images])
    return aligned_pairs(np.stack([squashed(image) for image in images]), keypoints)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rngs = (np.random.default_rng([31, patient]) for patient in range(PATIENTS))
    drawn = (draw_phantom(rng, finding=list(FINDINGS)[n % 4], image_size=192).image for n, rng in enumerate(rngs))
    return [Image.fromarray(image) for image in drawn]


COPIES = {  # how a copy is made, and the kind that is found
    "brighter": (lambda image: image.point(lambda grey: round(255 * (grey / 255) ** 0.7)), "near"),
    "cropped": (lambda image: image.crop((19, 19, 173, 173)), "cropped"),
    "cropped on one side": (lambda image: image.crop((0, 30, 192, 192)), "cropped"),
    "turned": (lambda image: image.rotate(-10, resample=Image.Resampling.BICUBIC), "turned"),
    "at a right angle": (lambda image: image.transpose(Image.Transpose.ROTATE_90), "turned"),
    "inverted": (ImageOps.invert, "inverted"),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "upside down, negative": (lambda image: ImageOps.flip(ImageOps.invert(image)), "mirrored"),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_and_described(images, name):
    alter, kind = COPIES[name]
    pairs = pairs_of([*images, *map(alter, images)])
    positions = {(pair.first, pair.second) for pair in pairs}
    assert positions <= {(n, n + PATIENTS) for n in range(PATIENTS)} and len(positions) >= PATIENTS - 3
    assert {pair.kind for pair in pairs} == {kind}
    assert min(pair.correlation for pair in pairs) > 0.97


def test_images_of_different_patients_are_no_pairs(images):
    assert pairs_of(images) == []


def test_two_exposures_of_a_patient_are_rarely_a_pair():
    """Drawings of one patient differ by a turn, a shift, their shading and noise; real ones differ more."""
    exposures = []
    for patient in range(PATIENTS):
        rng = np.random.default_rng([12, patient])
        anatomy = draw_anatomy(rng)
        exposures += [Image.fromarray(draw_phantom(rng, anatomy=anatomy, image_size=192).image) for _ in range(2)]
    pairs = pairs_of(exposures)
    assert len(pairs) <= PATIENTS * 2 // 5 and all(pair.first // 2 == pair.second // 2 for pair in pairs)


def test_images_without_structure_are_in_no_pair(images):
    assert pairs_of([Image.new("L", (80, 80), 90)] * 3 + images[:3]) == []


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_give_no_pair(images, count):
    keypoints = np.stack([find_keypoints(squashed(images[0], SIDE))])[:count]
    assert aligned_pairs(squashed(images[0])[None][:count], keypoints) == []


def test_the_map_is_improved(images):
    """A map that is 3% of the side off ends within half a pixel of the truth."""
    whole, crop = squashed(images[1]), squashed(images[1].crop((12, 0, 180, 186)))
    truth = np.array([[[168 / 192, 0, 0], [0, 186 / 192, -3 / 192]]])
    start = truth + np.array([[[0.02, 0.01, 0.03], [-0.01, 0, -0.02]]])
    agreement = measure_agreement(crop[None], whole[None], start)
    np.testing.assert_allclose(agreement.maps, truth, atol=0.5 / INPUT_SIDE)
    assert agreement.median[0] > 0.9 and agreement.correlation[0] > 0.99


@pytest.mark.parametrize("lost", [0.03, 0.1])
def test_the_margins_of_a_crop_do_not_bias_the_map(images, lost):
    """A local standardisation sees other surroundings at the edges of a crop than in the whole image."""
    errors, shading = [], []
    for image in images[:6]:
        margin = round(lost * 192)
        crop = image.crop((margin, margin, 192 - margin, 192 - margin))
        size = (192 - 2 * margin) / 192
        truth = np.array([[[size, 0, 0], [0, size, 0]]])
        agreement = measure_agreement(squashed(crop)[None], squashed(image)[None], truth + 0.008)
        errors.append(np.abs(agreement.maps - truth).max())
        shading.append(agreement.shading[0])
    assert max(errors) < 0.004 and min(shading) > 0.9998


def test_a_tone_curve_changes_the_shading_and_not_the_matched_tones(images):
    plain = squashed(images[3])
    curved = np.round(255 * (plain / 255) ** 1.6).astype(np.uint8)
    agreement = measure_agreement(plain[None], curved[None], WHOLE)
    assert agreement.shading[0] < 0.9998 and agreement.tones[0] > 0.9999


def test_only_what_both_images_show_is_standardised(images):
    """Pixels beside the common part change nothing."""
    first, second = (squashed(images[n]).astype(np.float32)[None] for n in (4, 5))
    valid = np.zeros(first.shape, bool)
    valid[:, 10:50, 5:60] = True
    expected = alignment._standardise_common(first, second, valid)
    changed = (np.where(valid, image, 255) for image in (first, second))
    for values, others in zip(expected, alignment._standardise_common(*changed, valid), strict=True):
        np.testing.assert_allclose(values, others, atol=1e-4)
        assert (values[~valid] == 0).all()


def test_blocks_that_one_image_does_not_show_are_not_compared(images):
    """A half that is covered in one image leaves the other half; its blocks agree."""
    pixels = squashed(images[2])
    shifted = WHOLE + np.array([[[0, 0, 0.5], [0, 0, 0]]])
    half = np.zeros_like(pixels)
    half[:, 32:] = pixels[:, :32]
    agreement = measure_agreement(pixels[None], half[None], shifted)
    assert agreement.blocks[0] <= 32


def test_interpolation_equals_scipys(images):
    pixels = squashed(images[0]).astype(np.float32)
    x, y = np.random.default_rng(0).uniform(0, INPUT_SIDE - 2, (2, 1, INPUT_SIDE, INPUT_SIDE))
    expected = map_coordinates(pixels, np.stack([y[0], x[0]]), order=1)
    np.testing.assert_allclose(alignment._sample(pixels[None], x, y)[0], expected, atol=1e-3)


def test_agreement_is_the_correlation_of_blocks():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(1, INPUT_SIDE, INPUT_SIDE))
    second = first + rng.normal(size=first.shape)
    valid = np.ones(first.shape, bool)
    valid[0, :8, :8] = False
    blocks, median, quartile = alignment._agree(first, second, valid)
    cells = [(slice(r, r + 8), slice(c, c + 8)) for r in range(0, 64, 8) for c in range(0, 64, 8)][1:]
    expected = sorted(np.corrcoef(first[0][cell].ravel(), second[0][cell].ravel())[0, 1] for cell in cells)
    assert blocks[0] == 63 and median[0] == pytest.approx(expected[31])
    assert quartile[0] == pytest.approx(expected[15])


def test_pixels_that_differ_most_are_left_out():
    """Letters on a tenth of the pixels change the correlation, and that of the others not at all."""
    rng = np.random.default_rng(0)
    first = rng.normal(100, 30, (1, INPUT_SIDE, INPUT_SIDE))
    second = 0.5 * first + 10 + rng.normal(0, 0.01, first.shape)
    valid = np.ones(first.shape, bool)
    valid[0, :, :4] = False
    second[0, :6, 4:] = 255
    kept = alignment._without_outliers(first, second, valid)
    assert kept.sum() == np.ceil(0.8 * valid.sum()) and not kept[0, :, :4].any() and kept[0, :6].sum() < 20
    assert alignment._correlate(first, second, valid)[0] < 0.9
    assert alignment._correlate(first, second, alignment._without_outliers(first, second, valid))[0] > 0.995


def test_more_images_need_more_common_keypoints():
    """The pairs that share keypoints by chance grow with the square of the number of images."""
    counts = [alignment.fewest_keypoints(images) for images in (1, 10_000, 20_000, 100_000)]
    assert counts == [6, 6, 8, 13]
    evidence = [alignment.least_evidence(images) for images in (1, 10_000, 20_000, 100_000)]
    assert evidence == sorted(evidence) and evidence[0] == alignment.MIN_EVIDENCE < evidence[2]
