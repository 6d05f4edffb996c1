"""Frames: constant bars are cut off, and what is inside them is not."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from covid_fastai.data.frames import list_views, trim_even_frame, trim_frame


@pytest.fixture(scope="module")
def content() -> Image.Image:
    grey = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    return Image.fromarray(grey).resize((300, 200), Image.Resampling.BICUBIC)


def assert_same(trimmed: Image.Image, content: Image.Image, *, atol: int = 0) -> None:
    assert trimmed.size == content.size
    np.testing.assert_allclose(np.asarray(trimmed, float), np.asarray(content, float), atol=atol)


@pytest.mark.parametrize("grey", [0, 97, 255])
@pytest.mark.parametrize("border", [(5, 5, 5, 5), (0, 60, 0, 60), (120, 0, 10, 0), (1, 2, 3, 4)])
def test_a_frame_is_cut_off(content, grey, border):
    assert_same(trim_frame(ImageOps.expand(content, border=border, fill=grey)), content)


def test_an_image_without_a_frame_remains_whole(content):
    assert trim_frame(content).size == content.size


def test_a_frame_survives_lossy_storage(content):
    stored = BytesIO()
    ImageOps.expand(content, border=16, fill=30).save(stored, "JPEG", quality=60)
    trimmed = trim_frame(Image.open(stored))
    assert max(abs(a - b) for a, b in zip(trimmed.size, content.size, strict=True)) <= 4


def test_bars_of_several_brightnesses_with_letters_are_cut_off(content):
    shot = ImageOps.expand(ImageOps.expand(content, border=20, fill=40), border=(0, 24, 0, 12), fill=200)
    ImageDraw.Draw(shot).text((4, 4), "File  Edit", fill=20, font_size=12)
    assert_same(trim_frame(shot), content)


@pytest.mark.parametrize("size", [(1, 1), (40, 40)])
def test_an_even_image_remains_whole(size):
    assert trim_frame(Image.new("L", size, 80)).size == size


def test_a_small_picture_on_a_page_is_no_frame(content):
    page = ImageOps.expand(content, border=400, fill=255)
    assert trim_frame(page).size == page.size


def test_the_views_are_the_image_and_what_is_inside_its_frame(content):
    assert list_views(content) == [content]
    assert list_views(ImageOps.expand(content, border=2, fill=0))[0].size == (304, 204)
    assert len(list_views(ImageOps.expand(content, border=2, fill=0))) == 1  # too narrow to matter
    whole, inside = list_views(ImageOps.expand(content, border=20, fill=0))
    assert whole.size == (340, 240) and inside.size == content.size


@pytest.mark.parametrize("grey", [0, 255])
def test_an_even_frame_is_cut_off_and_the_dark_air_inside_remains(content, grey):
    """The air around a patient is dark, but not of one brightness; its hash belongs to the original."""
    dark = np.random.default_rng(1).integers(0, 9, (240, 360), dtype=np.uint8)
    image = Image.fromarray(dark)
    image.paste(content, (30, 20))
    framed = ImageOps.expand(image, border=(20, 10), fill=grey)
    assert_same(trim_even_frame(framed), image)
    assert trim_even_frame(image).size == image.size != trim_frame(image).size


def test_an_image_of_one_brightness_has_no_even_frame():
    assert trim_even_frame(Image.new("L", (40, 30), 7)).size == (40, 30)
