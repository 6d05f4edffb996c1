"""Changes of framing, exposure and storage: against torchvision, SciPy and Pillow's JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from covid_fastai.data.capture_changes import (
    add_noise,
    change_sharpness,
    change_tone,
    collimate,
    move,
    paint_out,
    quantise_blocks,
    sample_affine,
)
from covid_fastai.data.phantom import draw_phantom

STILL = {"p": 1.0, "rotation": 0.0, "zoom": (1.0, 1.0), "aspect": 0.0, "shift": 0.0}


@pytest.fixture(scope="module")
def x():
    images = [draw_phantom(np.random.default_rng([3, number]), image_size=60).image for number in range(4)]
    return torch.from_numpy(np.stack(images)).float()[:, None] / 255


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_zoom_is_torchvisions_scale(x):
    ours = move(x, **{**STILL, "zoom": (1.25, 1.25)})
    theirs = affine(x, 0.0, [0, 0], 1.25, [0.0], interpolation=InterpolationMode.BILINEAR)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("options", "moved"), [({}, False), ({"p": 0.0, "zoom": (0.5, 0.6)}, False), ({"shift": 0.3}, True)]
)
def test_images_move_within_the_limits(x, options, moved):
    spot = torch.zeros(64, 1, 61, 61)
    spot[:, :, 30, 30] = 1
    result = move(spot, **STILL | options)
    rows, columns = (result.sum(dim) @ torch.arange(61.0) / result.sum((2, 3)) for dim in (3, 2))
    shifts = torch.stack([rows, columns]).sub(30).abs()
    assert (shifts.max() <= 0.3 * 61 + 1e-3) and (shifts.max() > 0.2 * 61 if moved else shifts.max() < 1e-3)


def test_tone_is_a_power_and_keeps_black(x):
    x = torch.where(x > 0.1, x, torch.zeros_like(x))
    ours = change_tone(x, p=1.0, gamma=(2.0, 2.0), contrast=0.0, brightness=0.0)
    assert torch.allclose(ours, x**2, atol=1e-6)
    brighter = change_tone(x, p=1.0, gamma=(1.0, 1.0), contrast=0.0, brightness=0.3)
    assert (brighter[x == 0] == 0).all() and not torch.equal(brighter, x)


def test_sharpening_is_a_convolution(x):
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    ours = change_sharpness(x, p=1.0, blur=-0.5, sharpen=0.5)  # by 0.5 in every image
    for image, result in zip(x[:, 0].numpy(), ours[:, 0].numpy(), strict=True):
        expected = image + 0.5 * (image - convolve(image, kernel, mode="nearest"))
        np.testing.assert_allclose(result, expected.clip(0, 1), atol=1e-6)


def test_collimation_blackens_edges_only():
    white = torch.ones(64, 1, 50, 50)
    result = collimate(white, p=1.0, depth=0.2)
    assert (result[:, :, 10:40, 10:40] == 1).all() and (result[:, :, :, 0] == 0).float().mean() > 0.5


def test_one_rectangle_is_painted_in_one_grey():
    x = torch.rand(64, 1, 50, 50)
    result = paint_out(x, p=0.5, side=(0.2, 0.4))
    changed = (result != x)[:, 0]
    assert 0.25 < changed.any(2).any(1).float().mean() < 0.75
    for image, mask in zip(result[:, 0], changed, strict=True):
        if mask.any():
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            patch = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (patch == patch[0, 0]).all() and 9 <= len(rows) <= 21 and 9 <= len(columns) <= 21


def test_noise_has_the_standard_deviation():
    grey = torch.full((8, 1, 64, 64), 0.5)
    assert add_noise(grey, p=1.0, std=(0.02, 0.02)).std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("quality", [20, 50, 80])
def test_quantisation_is_that_of_jpeg(x, quality):
    """60 pixels are no multiple of 8; the encoder repeats the last row, as we do."""
    ours = quantise_blocks(x, p=1.0, quality=(quality, quality))
    for image, result in zip(x[:, 0].numpy(), ours[:, 0].numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray((image * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(file), dtype=float)
        assert np.abs(theirs - result * 255).mean() < 0.5
        assert np.abs(theirs - image * 255).mean() > 0.5  # else an unchanged image would pass


def test_images_that_are_not_chosen_do_not_change(x):
    for change, options in [
        (change_tone, {"gamma": (0.5, 0.6), "contrast": 0.5, "brightness": 0.5}),
        (change_sharpness, {"blur": 1.0, "sharpen": 1.0}),
        (collimate, {"depth": 0.4}),
        (paint_out, {"side": (0.4, 0.5)}),
        (add_noise, {"std": (0.1, 0.2)}),
        (quantise_blocks, {"quality": (5.0, 10.0)}),
    ]:
        assert torch.equal(change(x, p=0.0, **options), x) and not torch.equal(change(x, p=1.0, **options), x)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "reflection"])
def test_images_are_moved_as_torch_moves_them(align_corners, padding):
    torch.manual_seed(0)
    images, theta = torch.rand(3, 1, 33, 40), torch.eye(2, 3) + 0.2 * torch.randn(3, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=align_corners)
    expected = functional.grid_sample(images, grid, padding_mode=padding, align_corners=align_corners)
    moved = sample_affine(images, theta, padding=padding, align_corners=align_corners)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
