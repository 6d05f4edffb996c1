"""Opening images: every format and mode gives the right intensities; other files raise an error with the reason."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from covid_fastai.data import image_facts, images
from covid_fastai.data.image_facts import FORMATS, ImageFacts
from covid_fastai.data.images import (
    describe_header,
    describe_image,
    open_image,
    open_square,
    read_image,
    resize_image,
)
from covid_fastai.errors import DataError, ImageError

WIDTH, HEIGHT = 80, 60
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}
LOSS = {"JPEG": 3.0, "WEBP": 3.0}  # mean difference, grey levels; the others keep every pixel
MODES = {
    "JPEG": ["L", "RGB", "CMYK"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I", "F"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "WEBP": ["RGB", "RGBA"],
}
DEEP = {"I;16": np.uint16, "I;16B": ">u2", "I": np.int32, "F": np.float32}


def scene() -> Image.Image:
    """A smooth image without symmetry, so that all its rotations differ."""
    x, y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    grey = 30 + 150 * x + 40 * y**2 + 30 * np.exp(-((x - 0.2) ** 2 + (y - 0.3) ** 2) / 0.02)
    return Image.fromarray(grey.round().astype(np.uint8))


def in_mode(mode: str) -> Image.Image:
    """The scene in a mode; with more than 8 bits it uses 12, as a detector does."""
    if mode in DEEP:
        return Image.fromarray((np.asarray(scene(), dtype=np.float64) * 16).astype(DEEP[mode]))
    if mode == "CMYK":  # as printers store grey: no colour, only black
        none = Image.new("L", (WIDTH, HEIGHT), 0)
        return Image.merge("CMYK", [none, none, none, ImageOps.invert(scene())])
    return scene().convert(mode)


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    quality = {"quality": 95} if format in LOSS else {}
    image.save(file, format, **{**quality, **options})
    return file.getvalue()


def grey_of(source) -> np.ndarray:
    return np.asarray(open_image(source), dtype=np.float64)


def scaled(values: np.ndarray) -> np.ndarray:
    """The rule by hand: the 0.5th percentile is black, the 99.5th white."""
    low, high = np.percentile(values, [0.5, 99.5])
    return np.interp(values, [low, high], [0, 255])


SCENE = np.asarray(scene(), dtype=np.float64)


# every format and mode


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes])
def test_every_format_and_mode_gives_the_right_grey(format, mode, tmp_path):
    path = tmp_path / f"scene{SUFFIX[format]}"
    path.write_bytes(encode(in_mode(mode), format))
    image, facts = read_image(path)
    assert image.mode == "L" and image.size == (WIDTH, HEIGHT)
    assert facts.format == format and (facts.width, facts.height) == (WIDTH, HEIGHT)
    if mode == "1":
        expected = np.asarray(scene().convert("1"), dtype=np.float64) * 255
    elif mode in DEEP:
        expected = scaled(np.asarray(in_mode(mode), dtype=np.float64))
    else:
        expected = SCENE
    gap = np.abs(np.asarray(image, dtype=np.float64) - expected).mean()
    assert gap <= (0.51 if mode in DEEP else LOSS.get(format, 0.0))


def test_formats_are_those_tested():
    assert set(FORMATS) == set(MODES)


@pytest.mark.parametrize(
    ("mode", "format", "bits"),
    [("1", "PNG", 1), ("L", "PNG", 8), ("RGB", "JPEG", 8), ("P", "PNG", 8), ("CMYK", "TIFF", 8), ("I;16", "PNG", 16)]
    + [("I;16", "TIFF", 16), ("I;16B", "TIFF", 16), ("I", "TIFF", 32), ("F", "TIFF", 32)],
)
def test_facts_have_the_bits(mode, format, bits):
    facts = describe_image(encode(in_mode(mode), format))
    assert describe_header(encode(in_mode(mode), format)) == dataclasses.replace(facts, notes=())
    assert facts.bits == bits and (f"{bits} bits scaled to 8" in facts.notes) == (bits > 8)


def test_plain_grey_has_no_notes(tmp_path):
    path = tmp_path / "plain.png"
    scene().save(path)
    assert describe_image(path) == ImageFacts("PNG", "L", WIDTH, HEIGHT, 8, ())


def test_read_image_is_both_at_once():
    content = encode(in_mode("RGB"), "PNG")
    image, facts = read_image(content)
    assert facts == describe_image(content)
    assert image.tobytes() == open_image(content).tobytes()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_reach_from_black_to_white(depth):
    levels = np.arange(2**depth, dtype=np.uint8).repeat(128 // 2**depth)
    rows = np.unpackbits(np.tile(levels, (64, 1))[:, :, None], axis=2)[:, :, -depth:].reshape(64, -1)
    content = raw_png(levels.size, 64, depth, 0, np.packbits(rows, axis=1))
    grey = grey_of(content)
    np.testing.assert_array_equal(grey[0], levels * (255 // (2**depth - 1)))


def raw_png(width: int, height: int, depth: int, colour: int, rows: np.ndarray | None, *extra: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write: `rows` has a row of bytes for each row of the image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"" if rows is None else b"".join(b"\0" + bytes(row) for row in rows)
    data = chunk(b"IDAT", zlib.compress(body, 9)) if rows is not None else b""
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")


# more than 8 bits


@pytest.mark.parametrize(("format", "top"), [("PNG", 4095), ("PNG", 65535), ("TIFF", 1023), ("TIFF", 65535)])
def test_16_bit_ramp_does_not_turn_white(format, top):
    ramp = np.tile(np.linspace(0, top, 200).astype(np.uint16), (50, 1))
    content = encode(Image.fromarray(ramp), format)
    grey = grey_of(content)
    assert np.abs(grey - scaled(ramp.astype(np.float64))).max() <= 0.51
    assert np.corrcoef(grey.ravel(), ramp.ravel())[0, 1] > 0.99
    assert abs(grey.mean() - 127.5) < 1 and grey.min() == 0 and grey.max() == 255


def test_plain_pillow_turns_32_bits_white():
    """The reason why `open_image` scales; this test fails if Pillow ever does it."""
    ramp = np.tile(np.linspace(0, 65535, 200).astype(np.int32), (50, 1))
    content = encode(Image.fromarray(ramp), "TIFF")
    assert np.asarray(Image.open(io.BytesIO(content)).convert("L")).mean() > 240
    assert abs(grey_of(content).mean() - 127.5) < 1


def test_a_few_extreme_pixels_do_not_darken_the_rest():
    values = (SCENE * 16).astype(np.uint16)
    spiked = values.copy()
    spiked[0, :5] = 65535  # a burnt-in letter
    gap = grey_of(encode(Image.fromarray(spiked), "PNG")) - grey_of(encode(Image.fromarray(values), "PNG"))
    assert np.abs(gap[1:]).mean() < 4


def test_negative_and_huge_numbers_are_scaled():
    for values in (SCENE.astype(np.int32) - 1024, (SCENE * 2**22).astype(np.int32), (SCENE * 1e-6).astype(np.float32)):
        grey = grey_of(encode(Image.fromarray(values), "TIFF"))
        assert np.abs(grey - scaled(values.astype(np.float64))).max() <= 0.51


def test_nan_is_black_and_infinity_white():
    values = (SCENE * 16).astype(np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    grey = grey_of(encode(Image.fromarray(values), "TIFF"))
    assert grey[0, :3].tolist() == [0, 255, 0]
    finite = np.isfinite(values)
    assert np.abs(grey[finite] - scaled(values[finite].astype(np.float64))).max() <= 0.51


def test_an_image_without_finite_values_is_refused():
    with pytest.raises(ImageError, match="no finite value"):
        open_image(encode(Image.fromarray(np.full((40, 40), np.nan, np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_inverted(kind):
    """In a TIFF, 0 can be white (photometric 0); Pillow handles it for 8 bits only."""
    values = Image.fromarray((SCENE * (1 if kind is np.uint8 else 16)).astype(kind))
    black_is_zero = encode(values, "TIFF", tiffinfo={262: 1})
    changed = bytearray(black_is_zero)
    for offset in range(len(changed) - 12):  # the entry of the tag in the file's directory
        if struct.unpack_from("<HHI", changed, offset) == (262, 3, 1):
            struct.pack_into("<H", changed, offset + 8, 0)
    assert bytes(changed) != black_is_zero
    assert np.abs(255 - grey_of(bytes(changed)) - grey_of(black_is_zero)).max() <= 1


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_in_colour_are_scaled_too(colour, channels):
    """A 12-bit image saved as 16-bit RGB: Pillow keeps the upper byte, 16 levels of nearly black."""
    values = (SCENE * 16).astype(">u2")[:, :, None].repeat(channels, axis=2)
    if colour in (4, 6):
        values[:, :, -1] = 65535  # opaque
    content = raw_png(WIDTH, HEIGHT, 16, colour, values.reshape(HEIGHT, -1).view(np.uint8))
    grey, facts = read_image(content)
    assert facts.bits == 16 and facts.notes == ("the upper 8 of 16 bits, scaled",)
    pixels = np.asarray(grey, dtype=np.float64)
    assert np.corrcoef(pixels.ravel(), SCENE.ravel())[0, 1] > 0.99 and pixels.max() - pixels.min() > 200


def test_16_bits_in_colour_that_fill_the_range_are_kept():
    """An image with a chosen contrast, such as one of CoronaHack's, is not scaled."""
    values = (SCENE * 257).astype(">u2")[:, :, None].repeat(3, axis=2)
    grey, facts = read_image(raw_png(WIDTH, HEIGHT, 16, 2, values.reshape(HEIGHT, -1).view(np.uint8)))
    np.testing.assert_array_equal(np.asarray(grey), SCENE)
    assert facts.bits == 16 and facts.notes == ("the upper 8 of 16 bits",)


# colour and transparency


def test_transparency_is_composited_over_black():
    alpha = Image.new("L", (WIDTH, HEIGHT), 255)
    alpha.paste(0, (0, 0, 40, HEIGHT))
    alpha.paste(128, (40, 0, 50, HEIGHT))
    for mode in ("LA", "RGBA"):
        image = Image.merge(mode, [scene()] * (len(mode) - 1) + [alpha])
        grey = grey_of(encode(image, "PNG"))
        assert (grey[:, :40] == 0).all()
        assert np.abs(grey[:, 40:50] - SCENE[:, 40:50] * 128 / 255).max() <= 1
        np.testing.assert_array_equal(grey[:, 50:], SCENE[:, 50:])
        assert describe_image(encode(image, "PNG")).notes == ("transparency composited over black",)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_value_is_composited_over_black(mode):
    image = scene().point(lambda value: 90 if value < 90 else value).convert(mode)
    transparent = (90, 90, 90) if mode == "RGB" else 90
    if mode == "P":
        transparent = image.getpixel((0, HEIGHT - 1))
    grey = grey_of(encode(image, "PNG", transparency=transparent))
    flat = SCENE <= 90
    assert (grey[flat] == 0).all()
    np.testing.assert_array_equal(grey[~flat], SCENE[~flat])


def test_an_opaque_alpha_has_no_note():
    assert describe_image(encode(in_mode("RGBA"), "PNG")).notes == ()


def test_colour_is_noted():
    ramp = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    photo = Image.merge("RGB", [scene(), ramp, ImageOps.invert(scene())])
    assert "colour" in describe_image(encode(photo, "PNG")).notes
    tint = Image.merge("RGB", [scene(), scene(), scene().point(lambda value: max(0, value - 8))])  # a bluish film
    assert describe_image(encode(tint, "PNG")).notes == ()
    weights = np.asarray(photo, dtype=np.float64) @ [0.299, 0.587, 0.114]  # ITU-R 601-2, as in Pillow's manual
    assert np.abs(grey_of(encode(photo, "PNG")) - weights).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(format):
    """Adobe's JPEG stores CMYK inverted with a marker, TIFF does not; ink is black in both."""
    grey = grey_of(encode(in_mode("CMYK"), format))
    assert np.corrcoef(grey.ravel(), SCENE.ravel())[0, 1] > 0.99


def test_an_icc_profile_changes_nothing():
    """Intensities are used as stored, without the colour profile of a scanner."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encode(in_mode("RGB"), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(grey_of(content), SCENE)


# orientation


def stored_as(orientation: int) -> Image.Image:
    """The scene as stored by a rotated camera: the inverse of the transformation of the EXIF standard."""
    turn = {
        1: lambda pixels: pixels,
        2: np.fliplr,
        3: lambda pixels: np.rot90(pixels, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda pixels: np.rot90(pixels, 1),
        7: lambda pixels: np.rot90(pixels, 2).T,
        8: lambda pixels: np.rot90(pixels, -1),
    }
    return Image.fromarray(np.ascontiguousarray(turn[orientation](np.asarray(scene()))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = stored_as(orientation)
    content = encode(stored.convert("RGB" if format == "WEBP" else "L"), format, exif=exif)
    image, facts = read_image(content)
    assert image.size == (WIDTH, HEIGHT) and (facts.width, facts.height) == stored.size
    assert np.abs(np.asarray(image, dtype=np.float64) - SCENE).mean() <= LOSS.get(format, 0.0)
    assert facts.notes == ((f"EXIF orientation {orientation}",) if orientation > 1 else ())


def test_orientation_of_16_bits_is_applied_once():
    stored = Image.fromarray(np.asarray(stored_as(6)).astype(np.uint16) * 16)
    for compression in (None, "tiff_lzw"):  # Pillow's own decoder and libtiff
        content = encode(stored, "TIFF", tiffinfo={0x0112: 6}, compression=compression)
        assert np.abs(grey_of(content) - scaled(SCENE)).max() <= 0.51


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(grey_of(encode(scene(), "PNG", exif=exif)), SCENE)


WORD_AS_ORIENTATION = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"MM\0*\0\0\xff\xff" + bytes(range(64)), b"no TIFF header", WORD_AS_ORIENTATION])
def test_damaged_exif_does_not_hide_the_picture(exif):
    content = encode(scene(), "JPEG", exif=b"Exif\0\0" + exif)
    assert np.abs(grey_of(content) - SCENE).mean() < 3


# sources


def test_paths_bytes_and_files_are_the_same(tmp_path):
    path = tmp_path / "scene.png"
    path.write_bytes(encode(scene(), "PNG"))
    content = path.read_bytes()
    for source in (path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)):
        np.testing.assert_array_equal(grey_of(source), SCENE)
    with path.open("rb") as file:
        np.testing.assert_array_equal(grey_of(file), SCENE)


def test_a_file_is_read_from_its_current_position():
    file = io.BytesIO(b"header" + encode(scene(), "PNG"))
    file.seek(6)
    np.testing.assert_array_equal(grey_of(file), SCENE)


def test_a_file_object_without_a_name_or_as_text(tmp_path):
    class Unnamed(io.BytesIO):
        name = None

    with pytest.raises(ImageError, match="^the image is empty"):
        open_image(Unnamed(b""))
    path = tmp_path / "scene.png"
    scene().save(path)
    with path.open(encoding="latin-1") as file, pytest.raises(ImageError, match="open as text") as caught:
        open_image(file)
    assert path.name in str(caught.value) and "rb" in caught.value.hint
    with path.open("rb") as file:
        file.close()
        with pytest.raises(ImageError, match="cannot be read"):
            open_image(file)


@pytest.mark.parametrize("name", ["emoji 🫁 and spaces.png", "r\u00f6ntgen.png", "x" * 240 + ".png"])
def test_odd_names_are_read(name, tmp_path):
    scene().save(tmp_path / name)
    np.testing.assert_array_equal(grey_of(tmp_path / name), SCENE)


def test_a_name_that_is_no_text_is_read_and_printable(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    try:
        Path(path).write_bytes(b"")
    except OSError:
        pytest.skip("system: this file system takes UTF-8 names only")
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert "caf\\udce9.jpg" in str(caught.value).encode("utf-8").decode()
    Path(path).write_bytes(encode(scene(), "PNG"))
    np.testing.assert_array_equal(grey_of(path), SCENE)


@pytest.mark.parametrize(
    ("name", "format", "note"),
    [("x.jpg", "PNG", "named .jpg but PNG"), ("x.PNG", "JPEG", "named .png but JPEG"), ("x.tiff", "TIFF", None)]
    + [("x.JPEG", "JPEG", None), ("x", "PNG", None), ("x.webp", "BMP", "named .webp but BMP")],
)
def test_a_wrong_suffix_is_noted(name, format, note, tmp_path):
    (tmp_path / name).write_bytes(encode(scene(), format))
    assert describe_image(tmp_path / name).notes == ((note,) if note else ())


# refused


def refusal(source) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_image(source)
    error = caught.value
    assert isinstance(error, DataError) and error.hint and error.exit_code == 3
    if isinstance(source, (str, os.PathLike)):
        assert os.path.basename(source).replace("\0", "\\x00") in error.message
    return error


OTHERS = {
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a JPEG of 12 bits": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9) + b"\xff\xc1\0\x0b\x0c\0\x40\0\x40\1",
    "JPEG-LS": b"\xff\xd8\xff\xf7\0\x0b\x10",
    "AVIF": b"\0\0\0\x1cftypavif",
    "HEIC": b"\0\0\0\x18ftypheic",
    "an array of NumPy": b"\x93NUMPY\x01\0",
    "PGM": b"P5\n64 64\n255\n",
    "NIfTI": bytes(344) + b"n+1\0",
    "a zip archive": b"PK\3\4\x14\0",
    "gzip": b"\x1f\x8b\x08",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_named_with_the_way_out(kind):
    error = refusal(OTHERS[kind] + bytes(600))
    assert kind in error.message and "not supported" in error.message and "convert it to PNG" in error.hint


NO_IMAGES = {
    "empty": (b"", "empty, 0 bytes"),
    "html": (b"\n <!DOCTYPE html><html><body>404</body></html>", "HTML page"),
    "text": (b"the radiograph is in the other folder\n", "text file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not supported"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "not supported"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>', "not supported"),
    "jpeg": (b"\xff\xd8\xff\xe0", "damaged"),
    "png": (b"\x89PNG\r\n\x1a\n", "damaged"),
    "zeros": (bytes(5000), "not an image"),
    "noise": (bytes(np.random.default_rng(0).integers(128, 256, 5000, dtype=np.uint8)), "not an image"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_named(kind, tmp_path):
    content, reason = NO_IMAGES[kind]
    path = tmp_path / "scan.jpg"
    path.write_bytes(content)
    error = refusal(path)
    assert reason in error.message and "JPEG, PNG, TIFF, BMP, WebP or DICOM" in error.hint
    assert reason in refusal(content).message


def test_gif_and_real_eps_and_pdf_are_refused(tmp_path):
    for format in ("GIF", "EPS", "PDF"):
        path = tmp_path / f"{format}.jpg"
        scene().convert("RGB" if format != "GIF" else "L").save(path, format)
        assert "not supported" in refusal(path).message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(format, fraction, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)
    content = encode(Image.fromarray(noise).convert("RGB"), format)
    path = tmp_path / f"cut{SUFFIX[format]}"
    path.write_bytes(content[: int(fraction * len(content))])
    assert "damaged" in refusal(path).message


def test_the_last_two_bytes_of_a_jpeg_count(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(scene(), "JPEG")[:-2])
    assert "damaged" in refusal(path).message


def test_a_text_bomb_in_a_png_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "0" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    assert "damaged" in refusal(encode(scene(), "PNG", pnginfo=info)).message


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_second_header_in_a_tiff_is_refused():
    """Pillow reads all headers of a TIFF to count its frames, and can raise any exception."""
    content = bytearray(encode(scene(), "TIFF"))
    (start,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, start)
    struct.pack_into("<I", content, start + 2 + 12 * entries, len(content) - 1)
    assert "damaged" in refusal(bytes(content)).message


def test_missing_folder_link_and_impossible_names(tmp_path):
    assert "is missing" in refusal(tmp_path / "absent.png").message
    assert "is a folder" in refusal(tmp_path).message
    (tmp_path / "link.png").symlink_to(tmp_path / "absent.png")
    assert "link to a missing file" in refusal(tmp_path / "link.png").message
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "cannot be read" in refusal(tmp_path / "loop.png").message
    assert "cannot be read" in refusal(str(tmp_path / "nul\0.png")).message
    assert "cannot be read" in refusal(tmp_path / ("x" * 300)).message


@pytest.mark.timeout(10)
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "pipe" in refusal(tmp_path / "pipe.jpg").message
    assert "device" in refusal("/dev/zero").message


def test_no_permission(tmp_path, monkeypatch):
    """The error is simulated, because root can read every file."""
    path = tmp_path / "mine.png"
    scene().save(path)

    def refuse(source, size, name):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(images, "_read_bytes", refuse)
    error = refusal(path)
    assert "cannot be read" in error.message and "Permission denied" in error.message and "permissions" in error.hint


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7_100, 10_000, 20_000])
def test_a_bomb_is_refused_from_its_header(side, monkeypatch):
    """Three size limits: this package's, Pillow's warning and Pillow's error; all apply before decoding."""
    content = raw_png(side, side, 8, 0, np.zeros((10, side), np.uint8))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    tracemalloc.start()
    error = refusal(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "50,000,000" in error.hint and "too" in error.message and peak < 5e6


def test_a_bomb_is_called_so_where_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "too large" in refusal(raw_png(10_000, 10_000, 8, 0, None)).message


def test_the_limit_of_pixels_is_exact(monkeypatch):
    monkeypatch.setattr(image_facts, "MAX_PIXELS", WIDTH * HEIGHT)
    assert open_image(encode(scene(), "PNG")).size == (WIDTH, HEIGHT)
    monkeypatch.setattr(image_facts, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    assert f"{WIDTH} x {HEIGHT}" in refusal(encode(scene(), "PNG")).message


def test_a_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "sparse.tif"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # takes no room on the disk
    monkeypatch.setattr(images, "_read_bytes", lambda *_: pytest.fail("it was read"))
    assert "too large" in refusal(path).message
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert "too large" in refusal(io.BytesIO(bytes(101))).message


def test_a_file_that_grows_while_it_is_read_ends(tmp_path, monkeypatch):
    """Such as one that a scanner writes: its end may never come."""
    path = tmp_path / "a.png"
    scene().save(path)
    status = os.stat(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: os.stat_result([*status[:6], status.st_size - 9, *status[7:]]))
    assert "grows while it is read" in refusal(path).message


@pytest.mark.parametrize("size", [(1, 1), (31, 40), (40, 31), (5000, 1), (501, 100), (100, 501)])
def test_sizes_of_no_radiograph_are_refused(size):
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    error = refusal(encode(Image.fromarray(noise), "PNG"))
    assert f"{size[0]} x {size[1]} pixels" in error.message and "does not look like a radiograph" in error.message


@pytest.mark.parametrize("size", [(32, 32), (160, 32), (500, 100), (100, 500)])
def test_sizes_at_the_limit_are_read(size):
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    assert open_image(encode(Image.fromarray(noise), "PNG")).size == size


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank_is_refused(level):
    assert "blank" in refusal(encode(Image.new("L", (64, 64), level), "PNG")).message
    assert "blank" in refusal(encode(Image.new("RGBA", (64, 64), (200, 10, level, 0)), "PNG")).message
    assert "blank" in refusal(encode(Image.fromarray(np.full((64, 64), level, np.uint16)), "PNG")).message


@pytest.mark.parametrize(("step", "blank"), [(1, True), (3, False)])
def test_blank_images_have_a_small_standard_deviation(step, blank):
    """Half the pixels `step` levels above the other half: the standard deviation is step / 2."""
    pixels = np.full((64, 64), 100, np.uint8)
    pixels[:32] += step
    if blank:
        assert f"standard deviation {step / 2:.2f} of 255" in refusal(encode(Image.fromarray(pixels), "PNG")).message
    else:
        assert open_image(encode(Image.fromarray(pixels), "PNG")).size == (64, 64)


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP"])
def test_several_images_in_one_file_are_refused(format):
    frames = [scene().transpose(Image.Transpose.ROTATE_180), Image.linear_gradient("L").resize((WIDTH, HEIGHT))]
    content = encode(scene().convert("RGB"), format, save_all=True, append_images=[f.convert("RGB") for f in frames])
    assert "holds 3 images" in refusal(content).message


@pytest.mark.timeout(120)
def test_damaged_bytes_give_an_image_or_an_image_error():
    """Fuzz test: with any byte changed, the file opens or raises `ImageError`."""
    rng = np.random.default_rng(0)
    modes = [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "I;16"), ("TIFF", "L"), ("TIFF", "F")]
    modes += [("TIFF", "RGB"), ("BMP", "P"), ("WEBP", "RGBA")]
    outcomes = {"read": 0, "refused": 0}
    for format, mode in modes:
        options = {"compression": "tiff_lzw"} if mode == "RGB" else {}
        content = np.frombuffer(encode(in_mode(mode), format, **options), np.uint8)
        for _ in range(60):
            changed = content.copy()
            reach = rng.choice([60, 300, len(content)])  # most of what can go wrong is at the start or the end
            places = rng.integers(0, min(reach, len(content)), rng.integers(1, 6))
            if format == "TIFF" and rng.random() < 0.5:
                places = len(content) - 1 - places
            changed[places] = rng.integers(0, 256, len(places))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    open_image(changed.tobytes())
                    outcomes["read"] += 1
                except ImageError:
                    outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


# resizing


@pytest.mark.parametrize("side", [32, 57, 160])
def test_resize_is_pillows_bilinear(side):
    small = resize_image(scene(), side)
    assert small.size == (side, side) and small.mode == "L"
    assert small.tobytes() == scene().resize((side, side), Image.Resampling.BILINEAR).tobytes()


def test_resize_has_antialiasing():
    """A chequer of single pixels becomes grey; without antialiasing it would stay black or white."""
    chequer = Image.fromarray((np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8))
    assert np.asarray(resize_image(chequer, 64)).std() < 5


def test_resize_of_the_right_size_changes_nothing():
    square = scene().resize((48, 48))
    assert resize_image(square, 48) is square


# real radiographs


@pytest.mark.realdata
def test_real_radiographs_open(real_data):
    """A sample of them, 20 of each format and mode: JPEG and PNG, grey, RGB and RGBA."""
    paths = sorted(path for path in (real_data / "coronahack-full").rglob("*.*") if path.suffix != ".csv")
    assert len(paths) == 291
    by_mode = {}
    for path in paths:
        with Image.open(path) as image:
            by_mode.setdefault((image.format, image.mode), []).append(path)
    sample = [path for same in by_mode.values() for path in same[:: max(1, len(same) // 20)][:21]]
    assert {mode for _, mode in by_mode} == {"L", "RGB", "RGBA"} and len(sample) >= 40
    for path in sample:
        image, facts = read_image(path)
        with Image.open(path) as stored:
            assert (facts.format, facts.mode) == (stored.format, stored.mode)
            assert image.mode == "L" and image.size == stored.size
            if stored.mode == "L" and not any("orientation" in note for note in facts.notes):
                assert image.tobytes() == stored.tobytes()


def photograph(mode="L", size=(1400, 900), **options) -> bytes:
    """A smooth image with hard edges, as a JPEG."""
    x, y = np.meshgrid(np.arange(size[0]) / 97, np.arange(size[1]) / 61)
    grey = 128 + 60 * np.sin(x) + 50 * np.cos(y + x / 2)
    grey[100:180, 200:420] = 255
    image = Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=92, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("image_size", [64, 224, 400])
def test_a_square_is_close_to_the_resized_full_image(mode, image_size):
    content = photograph(mode)
    plain = np.asarray(resize_image(open_image(content), image_size), dtype=int)
    fast = np.asarray(open_square(content, image_size), dtype=int)
    assert fast.shape == (image_size, image_size) and abs(fast - plain).mean() < 1


def test_no_more_is_decoded_than_needed_and_the_facts_are_those_of_the_file():
    content = photograph()
    grey, facts = read_image(content, image_size=100)
    assert grey.size == (350, 225), "a quarter: 200 pixels a side are enough"
    assert facts == describe_image(content) and (facts.width, facts.height) == (1400, 900)
    assert read_image(content, image_size=700)[0].size == (1400, 900)


def test_colours_and_rotation_are_noted_at_reduced_scale_too():
    image = Image.new("RGB", (1200, 900), (200, 60, 20))
    image.paste((20, 60, 200), (0, 0, 600, 450))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, format="JPEG", exif=exif)
    grey, facts = read_image(file.getvalue(), image_size=64)
    assert grey.height > grey.width and facts.notes == ("colour", "EXIF orientation 6")
    assert facts == describe_image(file.getvalue())


def test_channels_that_are_red_green_and_blue_are_not_taken_for_luminance():
    image = Image.merge("RGB", [Image.fromarray(np.full((400, 400), level, np.uint8)) for level in (250, 20, 90)])
    image.paste((10, 10, 10), (0, 0, 200, 400))
    file = io.BytesIO()
    image.save(file, format="JPEG", keep_rgb=True, quality=95)
    plain = np.asarray(resize_image(open_image(file.getvalue()), 64), dtype=int)
    assert abs(np.asarray(open_square(file.getvalue(), 64), dtype=int) - plain).mean() < 1


@pytest.mark.parametrize("lost", [2, 3000], ids=lambda n: f"{n} bytes")
def test_a_file_that_was_cut_is_found_at_reduced_scale_too(lost):
    content = photograph()
    with pytest.raises(ImageError, match="damaged or truncated"):
        open_square(content[: len(content) - lost], 32)


@pytest.mark.realdata
@pytest.mark.parametrize(("image_size", "mean", "worst"), [(128, 0.45, 2.2), (224, 0.25, 1.0), (256, 0.25, 1.0)])
def test_the_tolerance_on_radiographs(image_size, mean, worst, real_data):
    files = sorted((real_data / "coronahack-full").rglob("*.jp*g"))[::4]
    squares = [(open_square(file, image_size), resize_image(open_image(file), image_size)) for file in files]
    gaps = [abs(np.asarray(fast, dtype=int) - np.asarray(plain, dtype=int)).mean() for fast, plain in squares]
    assert len(files) > 60 and np.mean(gaps) < mean and max(gaps) < worst
