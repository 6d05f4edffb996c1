"""TIFF files of every kind of samples: the right intensities, or an error that names the kind."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from covid_fastai.audit.baseline_features import read_features
from covid_fastai.data.images import describe_image, open_image
from covid_fastai.data.intensity import samples_to_grey, used_range
from covid_fastai.errors import ImageError
from tests.data.test_images import encode
from tests.data.test_memory_images import FLOATS, INTEGERS, chest, samples, tiff

tifffile = pytest.importorskip("tifffile", reason="an old installation: pip install -e .")


def grey_of(content: bytes) -> np.ndarray:
    return np.asarray(open_image(content), dtype=np.float64)


def written(dtype, *, channels: int = 1, separate: bool = False, **options) -> tuple[bytes, np.ndarray]:
    """A file and the samples in it."""
    array = samples(dtype, channels)
    if not separate:
        return tiff(array, **options), array
    extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    photometric = "rgb" if channels > 2 else "minisblack"
    file, planes = io.BytesIO(), np.moveaxis(array, -1, 0).copy()
    tifffile.imwrite(file, planes, photometric=photometric, planarconfig="separate", **extra, **options)
    return file.getvalue(), array


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=lambda dtype: np.dtype(dtype).name)
def test_every_kind_of_samples_is_read(dtype, photometric, compression, byteorder):
    content, array = written(dtype, photometric=photometric, compression=compression, byteorder=byteorder)
    white_is_zero = photometric == "miniswhite"
    expected, _ = samples_to_grey(array, bits=8 * array.itemsize, white_is_zero=white_is_zero)
    np.testing.assert_array_equal(grey_of(content), np.asarray(expected, dtype=np.float64))
    correlation = np.corrcoef(grey_of(content).ravel(), chest().ravel())[0, 1]
    assert correlation < -0.99 if white_is_zero else correlation > 0.99
    facts = describe_image(content)
    assert facts.format == "TIFF" and facts.bits == 8 * array.itemsize
    assert (facts.width, facts.height) == (80, 96)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_every_planar_configuration_is_read(dtype, channels, compression, separate):
    content, array = written(dtype, channels=channels, separate=separate, compression=compression)
    expected, notes = samples_to_grey(array, bits=8 * array.itemsize)
    np.testing.assert_array_equal(grey_of(content), np.asarray(expected, dtype=np.float64))
    assert describe_image(content).notes == tuple(notes)


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_differences_and_tiles_are_read(dtype, byteorder, predictor):
    options = {"compression": "zlib", "predictor": predictor, "tile": (32, 32), "byteorder": byteorder}
    content, array = written(dtype, **options)
    np.testing.assert_array_equal(grey_of(content), np.asarray(open_image(array), dtype=np.float64))


@pytest.mark.parametrize("extra", ["unspecified", "assocalpha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extra_samples_that_are_no_straight_alpha_change_nothing(dtype, extra):
    array = samples(dtype, 2)
    array[..., 0] = np.where(array[..., 1] == 0, 0, array[..., 0])  # as alpha that is multiplied in already
    content = tiff(array, extrasamples=[extra])
    np.testing.assert_array_equal(grey_of(content), np.asarray(open_image(array[..., 0]), dtype=np.float64))


def test_a_bigtiff_is_read():
    content, array = written(np.float64, bigtiff=True)
    np.testing.assert_array_equal(grey_of(content), np.asarray(open_image(array), dtype=np.float64))


def test_the_baselines_of_the_audit_read_it_too(tmp_path):
    for dtype in (np.float16, np.uint8):
        (tmp_path / f"{np.dtype(dtype).name}.tif").write_bytes(written(dtype)[0])
    features = read_features(sorted(tmp_path.iterdir()), workers=1)
    assert features.readable.all() and all(len(block) == 2 for block in features.blocks.values())


# refused


def with_tag(content: bytes, name: str, value: int) -> bytes:
    """A file with another value of a tag."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages.first.tags[name].valueoffset
    return content[:place] + struct.pack("<H", value) + content[place + 2 :]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(np.ones((64, 64), np.complex64)), "64 bits .sample format 6., which are no intensities"),
        (tiff(np.ones((64, 64), np.complex128)), "128 bits .sample format 6., which are no intensities"),
        (with_tag(tiff(samples(np.float16)), "Compression", 5), "16 bits .floats. with the compression LZW"),
        (with_tag(tiff(samples(np.float64)), "Compression", 32773), "64 bits .floats. with the compression PACKBITS"),
        (with_tag(tiff(samples(np.uint64)), "PhotometricInterpretation", 5), "photometric interpretation"),
    ],
)
def test_a_kind_that_is_not_read_is_named(content, words):
    with pytest.raises(ImageError, match=words) as caught:
        open_image(content)
    assert "PNG" in caught.value.hint


def test_samples_of_another_shape_than_the_header_states_are_damaged():
    """With three channels by its header and none by its data; found by fuzzing."""
    tags = [(256, 4, 1, 60), (257, 4, 1, 50), (258, 3, 1, 3), (273, 1, 4, 140), (277, 3, 1, 0)]
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", 10) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    with pytest.raises(ImageError, match="its header contradicts itself"):
        open_image(content.ljust(181, b"\0"))


def test_several_large_and_damaged_files_are_refused(tmp_path):
    content, _ = written(np.float16)
    several = io.BytesIO()
    tifffile.imwrite(several, np.stack([samples(np.float16)] * 3), photometric="minisblack")
    for damaged, words in (
        (several.getvalue(), "holds 3 images"),
        (content[:300], "damaged"),
        (content[: len(content) // 2], "damaged"),
        (tiff(np.ones((20, 64), np.float64)), "64 x 20 pixels"),
    ):
        (tmp_path / "scan.tif").write_bytes(damaged)
        with pytest.raises(ImageError, match=words) as caught:
            open_image(tmp_path / "scan.tif")
        assert "scan.tif" in caught.value.message and caught.value.hint


def test_a_compressed_bomb_is_not_decompressed():
    content, array = written(np.float16, compression="zlib")
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        offset = page.dataoffsets[0]
        tag = page.tags["StripByteCounts"]
    bomb = zlib.compress(bytes(1 << 28), 9)
    changed = bytearray(content[:offset] + bomb)
    struct.pack_into("<I" if tag.dtype == 4 else "<H", changed, tag.valueoffset, len(bomb) if tag.dtype == 4 else 65535)
    tracemalloc.start()
    with pytest.raises(ImageError, match="more than the image|damaged"):
        open_image(bytes(changed))
    assert tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_bytes_give_an_image_or_an_image_error():
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for dtype in (np.float16, np.float64, np.int8, np.uint32):
        for compression in [None, "zlib"] * 20:
            content = np.frombuffer(written(dtype, compression=compression)[0], np.uint8)
            changed = content.copy()
            places = rng.integers(0, min(rng.choice([60, 400, len(content)]), len(content)), rng.integers(1, 6))
            changed[places] = rng.integers(0, 256, len(places))
            try:
                open_image(changed.tobytes())
                outcomes["read"] += 1
            except ImageError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


# isolated values


def marked(top: int, marker: int, fraction: float, *, dark: bool = False) -> np.ndarray:
    """A radiograph of `top` levels with a letter of a value outside of its range."""
    values = (chest() * 0.9 * (top - 1) + 0.05 * top).round().astype(np.int64)
    letter = np.zeros(values.shape, bool)
    letter[4 : 4 + round(fraction * values.size / 40), 4:44] = True
    values[letter] = marker
    return values


@pytest.mark.parametrize("fraction", [0.001, 0.008, 0.03, 0.1, 0.2])
@pytest.mark.parametrize(
    ("top", "marker", "dtype"),
    [(4096, 65535, np.uint16), (1024, 4095, np.uint16), (16384, 65535, np.uint16), (4096, 32767, np.int16)]
    + [(256, 4095, np.int32), (65536, 4294967295, np.uint32), (4096, 1e30, np.float32), (4096, 65504, np.float16)],
)
def test_an_isolated_top_value_does_not_darken_the_picture(top, marker, dtype, fraction):
    plain = marked(top, 0, 0)
    rest = marked(top, -1, fraction) >= 0
    spiked = plain.astype(dtype)
    spiked[~rest] = marker
    for source in (tiff(spiked), spiked):
        grey = np.asarray(open_image(source), dtype=np.float64)
        reference = np.asarray(open_image(plain.astype(dtype)), dtype=np.float64)
        assert np.abs(grey - reference)[rest].mean() < 6 and (grey[~rest] == 255).all()


@pytest.mark.parametrize("low", [-32768, -2000, -10000])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2])
def test_an_isolated_bottom_value_does_not_brighten_the_picture(low, fraction):
    plain = marked(1024, 0, 0)
    rest = marked(1024, -1, fraction) >= 0
    spiked = np.where(rest, plain, low).astype(np.int16)
    spiked[-1, -12:] = 32767  # and a marker at the other end
    grey, reference = (np.asarray(open_image(array), dtype=np.float64) for array in (spiked, plain.astype(np.int16)))
    assert np.abs(grey - reference)[rest][:-12].mean() < 6 and (grey[~rest] == 0).all()


@pytest.mark.parametrize("fraction", [0.03, 0.15])
def test_a_marker_in_a_16_bit_colour_image_does_not_darken_it(fraction):
    plain = marked(4096, 0, 0)
    rest = marked(4096, -1, fraction) >= 0
    spiked = np.where(rest, plain, 65535).astype(np.uint16)[..., None].repeat(3, axis=-1)
    grey = np.asarray(open_image(spiked), dtype=np.float64)
    assert describe_image(spiked).notes == ("the upper 8 of 16 bits, scaled",)
    assert np.corrcoef(grey[rest], plain[rest])[0, 1] > 0.99 and np.ptp(grey[rest]) > 200


def test_values_that_belong_together_are_kept():
    """Wide ranges without a gap, two parts with detail, drawings of few levels: the percentiles as before."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 65535, 9000)
    halves = np.concatenate([rng.uniform(0, 500, 6000), rng.uniform(3000, 4000, 4000)])
    detailed = np.concatenate([rng.uniform(0, 500, 8000), rng.uniform(3000, 4000, 2000)])
    drawing = np.repeat([0, 1, 2, 3, 60000], [3000, 2000, 2000, 2000, 1000]).astype(float)
    bones = np.exp(rng.normal(0, 1.2, 9000))
    for values in (ramp, halves, detailed, drawing, bones, np.array([5.0, 5.0, 9.0])):
        low, high = np.percentile(values, [0.5, 99.5])
        if high > low:
            assert used_range(values) == (low, high)


@pytest.mark.parametrize("bits", [12, 16])
def test_real_intensities_in_more_bits_are_the_same_picture(bits):
    """12 bits in 16 and 16 bits give the picture of the 8-bit file, stretched."""
    deep = (chest() * ((1 << bits) - 1)).round().astype(np.uint16)
    grey = grey_of(encode(Image.fromarray(deep), "PNG"))
    low, high = np.percentile(chest(), [0.5, 99.5])
    assert np.abs(grey - 255 * np.clip((chest() - low) / (high - low), 0, 1)).max() <= 1
