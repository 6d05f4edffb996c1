"""An image in memory is converted as a file with the same values: every mode, kind of samples and shape."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps

from covid_fastai.data.fastai_types import PILRadiograph
from covid_fastai.data.images import describe_image, open_image, read_image
from covid_fastai.data.input_check import check_input
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.errors import ImageError
from covid_fastai.model.predictor import Predictor
from tests.data.test_images import MODES, encode, in_mode, stored_as
from tests.small_model import write_small_model

tifffile = pytest.importorskip("tifffile", reason="an old installation: pip install -e .")

SIDE = 96
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]
FLOATS = [np.float16, np.float32, np.float64]
CHANNELS = [1, 2, 3, 4]


def chest() -> np.ndarray:
    """A radiograph, intensities 0 to 1, `(96, 80)`."""
    return np.asarray(draw_phantom(np.random.default_rng(3), image_size=SIDE).image, dtype=np.float64)[:, :80] / 255


def samples(dtype, channels: int = 1) -> np.ndarray:
    """The radiograph in the upper two thirds of the range of a type, tinted, with a transparent corner."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        values, full = chest() * 1500 - 400, 1.0
    else:
        limits = np.iinfo(dtype)
        full = limits.max
        values = limits.min + (chest() * 0.66 + 0.3) * (float(limits.max) - float(limits.min))
    if channels == 1:
        return values.astype(dtype)
    colours = [(values * tint).astype(dtype) for tint in ((1,) if channels == 2 else (1, 0.9, 0.8))]
    alpha = np.full(values.shape, full, dtype)
    alpha[:20, :20] = 0
    return np.stack([*colours, *([alpha] if channels in (2, 4) else [])], axis=-1)


def tiff(array: np.ndarray, **options) -> bytes:
    channels = 1 if array.ndim == 2 else array.shape[-1]
    defaults = {"photometric": "rgb" if channels > 2 else "minisblack"}
    defaults |= {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    defaults |= {"planarconfig": "contig"} if channels > 1 else {}
    file = io.BytesIO()
    tifffile.imwrite(file, array, **(defaults | options))
    return file.getvalue()


def same(one, other) -> None:
    """Compare two images and what is known of them but format and mode."""
    (image, facts), (other_image, other_facts) = read_image(one), read_image(other)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(other_image))
    assert (facts.notes, facts.bits) == (other_facts.notes, other_facts.bits)


# arrays


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=lambda dtype: np.dtype(dtype).name)
def test_an_array_is_read_as_the_tiff_file_with_its_values(dtype, channels):
    array = samples(dtype, channels)
    same(array, tiff(array))
    grey = np.asarray(open_image(array), dtype=np.float64)
    inside = grey[24:, 24:].ravel()
    assert np.corrcoef(inside, chest()[24:, 24:].ravel())[0, 1] > 0.99, "the picture is right, not only the same"
    if channels in (2, 4):
        assert (grey[:20, :20] == 0).all()


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, n) for n in CHANNELS] + [(np.uint16, 1)])
def test_an_array_is_read_as_the_png_file_with_its_values(dtype, channels):
    array = samples(dtype, channels)
    same(array, encode(Image.fromarray(array), "PNG"))


def test_an_array_of_booleans_is_read_as_an_image_of_one_bit():
    array = chest() > 0.4
    same(array, encode(Image.fromarray(array), "PNG"))
    assert describe_image(array).bits == 1


@pytest.mark.parametrize("shape", ["(1, h, w)", "(h, w, 1)", "(1, 1, h, w)", "big-endian", "not contiguous", "tensor"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_shapes_and_orders_of_one_channel_are_the_same(shape, dtype):
    array = samples(dtype)
    forms = {
        "(1, h, w)": array[None],
        "(h, w, 1)": array[..., None],
        "(1, 1, h, w)": array[None, None],
        "big-endian": array.astype(np.dtype(dtype).newbyteorder(">")),
        "not contiguous": np.asfortranarray(array)[::-1][::-1],
        "tensor": torch.from_numpy(array.copy()),
    }
    same(forms[shape], array)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_may_come_first(channels, dtype):
    array = samples(dtype, channels)
    same(np.moveaxis(array, -1, 0), array)
    same(torch.from_numpy(np.moveaxis(array, -1, 0).copy()), array)
    same(torch.from_numpy(array.astype(np.float32)).requires_grad_(), array.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((64, 64), complex), "complex128"),
        (np.full((64, 64), "x"), "<U1"),
        (np.zeros((64, 64), object), "object"),
        (np.zeros((64, 64), "M8[s]"), "datetime64"),
        (np.zeros(64), r"the shape \(64,\)"),
        (np.zeros((2, 64, 64, 3)), r"the shape \(2, 64, 64, 3\)"),
        (np.zeros((64, 64, 7)), r"the shape \(64, 64, 7\)"),
        (np.zeros((0, 64)), "0 pixels"),
        (np.full((64, 64), np.nan), "no finite value"),
        (np.full((64, 64), 7, np.uint16), "blank"),
        (torch.zeros((64, 64), dtype=torch.bfloat16), "bfloat16"),
        (np.zeros((20, 64), np.uint8), "64 x 20 pixels"),
    ],
)
def test_what_is_no_image_in_memory_is_named(array, words):
    with pytest.raises(ImageError, match=words) as caught:
        open_image(array)
    assert caught.value.hint


# Pillow images

FILES = [(format, mode) for format, modes in MODES.items() for mode in modes]


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(("format", "mode"), FILES)
def test_a_pillow_image_is_read_as_its_file(format, mode, loaded):
    content = encode(in_mode(mode), format)
    with Image.open(io.BytesIO(content)) as image:
        if loaded:
            image.load()
        same(image, content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_a_pillow_image_without_a_file_is_read_as_a_tiff_file(mode):
    same(in_mode(mode), encode(in_mode(mode), "TIFF"))


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "RGBX", "YCbCr", "LAB", "HSV"])
def test_rare_modes_are_read_as_their_colours(mode):
    middle = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    image = in_mode("RGB").convert(middle).convert(mode)
    expected = np.asarray(image.convert(middle).convert("RGB").convert("L"), dtype=int)
    assert np.abs(np.asarray(open_image(image), dtype=int) - expected).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("state", ["opened", "loaded", "copied", "grey", "transposed by Pillow"])
def test_the_orientation_of_a_pillow_image_is_applied_once(state, format):
    change = {"loaded": lambda i: i.load() and i, "copied": lambda i: i.copy(), "grey": lambda i: i.convert("L")}
    change |= {"opened": lambda i: i, "transposed by Pillow": ImageOps.exif_transpose}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(stored_as(orientation).convert("RGB" if format == "WEBP" else "L"), format, exif=exif)
        image = Image.open(io.BytesIO(content))
        changed = change[state](image) or image
        read, expected = np.asarray(open_image(changed)), np.asarray(open_image(content))
        np.testing.assert_array_equal(read, expected, err_msg=f"orientation {orientation}")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int8, np.uint32])
def test_zero_is_white_in_an_opened_tiff_file_too(dtype):
    white, black = (tiff(samples(dtype), photometric=name) for name in ("miniswhite", "minisblack"))
    grey = np.asarray(open_image(white), dtype=int)
    assert np.abs(255 - grey - np.asarray(open_image(black), dtype=int)).max() <= 1
    if dtype not in (np.int8, np.uint32):  # Pillow does not open these with white at zero
        for state in (lambda image: image, lambda image: image.load() and image):
            same(state(Image.open(io.BytesIO(white))), white)


def test_a_pillow_image_of_several_frames_is_refused_like_its_file():
    frames = [in_mode("L"), ImageOps.mirror(in_mode("L"))]
    content = encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    for source in (content, Image.open(io.BytesIO(content))):
        with pytest.raises(ImageError, match="holds 2 images"):
            open_image(source)


def test_an_opened_image_is_not_changed():
    image = Image.open(io.BytesIO(encode(in_mode("RGB").resize((900, 700)), "JPEG")))
    read_image(image, image_size=64)
    assert image.size == (900, 700) and image.mode == "RGB"
    array = samples(np.float32)
    array[0, 0] = np.nan
    before = array.copy()
    open_image(array)
    np.testing.assert_array_equal(array, before)


# every way in


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor(write_small_model(tmp_path_factory.mktemp("model") / "model"))


def sources(folder: Path) -> dict[str, tuple[object, Path]]:
    """Images in memory by name, each with the file that has the same values."""
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "turned.png": encode(in_mode("L"), "PNG", exif=exif),
        "ink.tif": encode(in_mode("CMYK"), "TIFF"),
        "alpha.png": encode(in_mode("LA"), "PNG"),
        "palette.png": encode(in_mode("P"), "PNG"),
        "white.tif": tiff(samples(np.uint16), photometric="miniswhite"),
        "deep colour.tif": tiff(samples(np.uint16, 3)),
        "signed.tif": tiff(samples(np.int16)),
        "floats.tif": tiff(samples(np.float32)),
        "half floats.tif": tiff(samples(np.float16)),
    }
    arrays = {"deep colour.tif": samples(np.uint16, 3), "signed.tif": samples(np.int16)[None]}
    arrays |= {"floats.tif": torch.from_numpy(samples(np.float32))[None], "half floats.tif": samples(np.float16)}
    pairs = {}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        pairs[name] = (arrays[name] if name in arrays else Image.open(io.BytesIO(content)), folder / name)
    return pairs


def test_predictions_remarks_and_fastai_images_are_those_of_the_files(predictor, tmp_path):
    pairs = sources(tmp_path)
    images, files = (list(column) for column in zip(*pairs.values(), strict=True))
    table, expected = predictor.predict(images), predictor.predict(files)
    assert (table["status"] == "ok").all()
    pd.testing.assert_frame_equal(table.drop(columns="path"), expected.drop(columns="path"))
    for image, file in pairs.values():
        assert check_input(image) == check_input(file)
        np.testing.assert_array_equal(np.asarray(PILRadiograph.create(image)), np.asarray(PILRadiograph.create(file)))
        if not isinstance(image, Image.Image):
            same(image, os.fspath(file))


def test_one_image_several_images_and_a_batch_are_told_apart(predictor):
    array = samples(np.uint8)
    forms = [array, array[None], torch.from_numpy(array.copy())[None], Image.fromarray(array)]
    one = [predictor.predict(form) for form in forms]
    assert [len(table) for table in one] == [1, 1, 1, 1]
    batch = np.stack([array[None], array[None, ::-1]])
    for form in (batch, torch.from_numpy(batch.copy()), list(batch)):
        table = predictor.predict(form)
        assert len(table) == 2 and (table["status"] == "ok").all()
    for first, second in itertools.pairwise(one):
        pd.testing.assert_frame_equal(first, second)
