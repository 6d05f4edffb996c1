"""DICOM radiographs: equal images from every encoding, errors for other files, and no leak of patient data."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import time
import tracemalloc
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covid_fastai.data.dicom import is_dataset
from covid_fastai.data.images import describe_image, open_image, read_image
from covid_fastai.data.input_check import check_input
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.errors import ImageError
from tests.data.test_file_structure import jpeg_of_scans

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")

from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import apply_voi, apply_windowing  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
    generate_uid,
)

SENTINEL = "DOE^JOHN"
ROWS, COLUMNS = 48, 64


def ramp(bits: int = 12) -> np.ndarray:
    """Stored values over the full range, different in each corner."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    return ((2 * x * COLUMNS + y) * ((1 << bits) - 1) / (2 * (COLUMNS - 1) * COLUMNS + ROWS - 1)).astype(np.uint16)


def dataset(values: np.ndarray | None = None, *, bits: int = 12, syntax=ExplicitVRLittleEndian, **tags) -> Dataset:
    values = ramp(bits) if values is None else values
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    ds.PatientName, ds.PatientID, ds.InstitutionName, ds.StudyDescription = [SENTINEL] * 4
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = "DX", "MONOCHROME2", 1
    ds.Rows, ds.Columns = values.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = values.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(values.dtype.kind == "i")
    ds.PixelData = values.astype(values.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    ds["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def encode(ds: Dataset) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def grey(ds: Dataset | bytes) -> np.ndarray:
    return np.asarray(open_image(ds if isinstance(ds, bytes) else encode(ds)), dtype=np.float64)


def refused(source, words: str) -> ImageError:
    with pytest.raises(ImageError, match=words) as caught:
        open_image(encode(source) if isinstance(source, Dataset) else source)
    assert caught.value.hint and SENTINEL not in str(caught.value)
    assert caught.value.__cause__ is None or SENTINEL not in str(caught.value.__cause__)
    return caught.value


def code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = value, meaning
    return item


def lut(entries: np.ndarray, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


# the image


def test_a_dicom_file_opens_like_other_files(tmp_path):
    path = tmp_path / "scan.dcm"
    path.write_bytes(encode(dataset(WindowCenter=2048, WindowWidth=4096)))
    image, facts = read_image(path)
    assert image.mode == "L" and image.size == (COLUMNS, ROWS)
    assert (facts.format, facts.mode, facts.width, facts.height, facts.bits) == (
        "DICOM",
        "MONOCHROME2",
        COLUMNS,
        ROWS,
        12,
    )
    assert facts.notes == ("window",)
    assert describe_image(path) == facts
    with path.open("rb") as file:
        assert np.array_equal(open_image(file), image)
    path.rename(tmp_path / "scan.png")
    assert "named .png but DICOM" in describe_image(tmp_path / "scan.png").notes
    path = tmp_path / "1.2.840.113"
    path.write_bytes(encode(dataset()))
    assert not any("named" in note for note in describe_image(path).notes)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 2000}])
def test_monochrome1_is_inverted_once(window):
    window_of_inverse = {"WindowCenter": 4095 - 1500 + 1, "WindowWidth": 2000} if window else {}
    white_is_zero = dataset(4095 - ramp(), PhotometricInterpretation="MONOCHROME1", **window_of_inverse)
    np.testing.assert_allclose(grey(white_is_zero), grey(dataset(**window)), atol=1)
    assert "MONOCHROME1 inverted" in describe_image(encode(white_is_zero)).notes
    shaped = dataset(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **window)
    np.testing.assert_array_equal(grey(shaped), 255 - grey(dataset(**window)))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1900, 2400.5), ([2300, 9], [3000, 3]), (1800, 2000)])
@pytest.mark.parametrize("signed", [False, True])
def test_windows_against_pydicom(function, centre, width, signed):
    values = ramp().astype(np.int16) - 2048 if signed else ramp()
    ds = dataset(values, WindowCenter=np.subtract(centre, 2048 * signed).tolist(), WindowWidth=width)
    if function:
        ds.VOILUTFunction = function
    oracle = apply_windowing(values, ds, index=0)
    low, high = (-2048, 2047) if signed else (0, 4095)
    expected = np.clip((oracle - low) / (high - low) * 255, 0, 255)
    np.testing.assert_allclose(grey(ds), expected, atol=0.51)


def test_rescale_comes_before_the_window():
    ds = dataset(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=4096)
    plain = dataset(WindowCenter=2048, WindowWidth=2048)
    np.testing.assert_allclose(grey(ds), grey(plain), atol=1)
    falling = dataset(4095 - ramp(), RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(grey(falling), grey(dataset()), atol=1)
    np.testing.assert_allclose(grey(dataset(RescaleSlope=2)), grey(dataset()), atol=1)  # without an intercept
    eight = dataset(255 - (ramp(8)).astype(np.uint8), bits=8, RescaleSlope=-1, RescaleIntercept=255)
    np.testing.assert_array_equal(grey(eight), ramp(8))


def test_the_modality_lut_is_applied():
    entries = np.sqrt(np.arange(4096) / 4095) * 4095
    ds = dataset(ModalityLUTSequence=[lut(entries, 0, 16)])
    expected = dataset(entries[ramp()].astype(np.uint16))
    np.testing.assert_allclose(grey(ds), grey(expected), atol=1)


@pytest.mark.parametrize(("first", "bits"), [(0, 12), (500, 12), (0, 16)])
def test_the_voi_lut_against_pydicom(first, bits):
    """The first of two LUTs is used, before a window; a 12-bit LUT described as 16 bits does not give a dark image."""
    entries = (4095 * (np.arange(3000) / 2999) ** 2).astype(np.uint16)
    ds = dataset(VOILUTSequence=[lut(entries, first, bits), lut(entries[::-1], 0, 12)], WindowCenter=5, WindowWidth=9)
    oracle = apply_voi(ramp(), ds, index=0).astype(float)
    np.testing.assert_allclose(grey(ds), oracle / 4095 * 255, atol=0.51)
    assert describe_image(encode(ds)).notes == ("VOI LUT",)


@pytest.mark.parametrize("window", [{"WindowCenter": 60000, "WindowWidth": 10}, {"WindowCenter": 9, "WindowWidth": 0}])
def test_percentiles_replace_a_window_that_leaves_the_image_blank(window):
    ds = dataset(**window)
    low, high = np.percentile(ramp(), [0.5, 99.5])
    np.testing.assert_allclose(grey(ds), np.interp(ramp(), [low, high], [0, 255]), atol=0.51)
    notes = describe_image(encode(ds)).notes
    assert "12 bits scaled to 8" in notes and ("window leaves it blank" in notes) == bool(window["WindowWidth"])
    flat = lut(np.full(4096, 7), 0, 12)
    ds = dataset(VOILUTSequence=[flat], WindowCenter=2048, WindowWidth=4096)
    assert describe_image(encode(ds)).notes == ("VOI LUT leaves it blank", "window")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_any_number_of_bits_gives_the_same_image(bits, signed):
    values = ramp(bits)
    if signed:
        values = (values.astype(np.int32) - (1 << (bits - 1))).astype(np.int16)
    image = grey(dataset(values, bits=bits))
    expected = np.interp(ramp(16), np.percentile(ramp(16), [0.5, 99.5]), [0, 255])
    np.testing.assert_allclose(image, expected, atol=3)


def test_eight_bits_without_a_window_are_not_changed():
    """A DICOM file with the pixels of a JPEG therefore gives the same image as the JPEG, even if it is dark."""
    dark = (ramp(8) // 2).astype(np.uint8)
    np.testing.assert_array_equal(grey(dataset(dark, bits=8)), dark)


def test_bits_outside_the_stored_ones_are_ignored():
    """Old devices stored overlays there."""
    overlaid = ramp() | ((np.indices((ROWS, COLUMNS)).sum(0) % 3).astype(np.uint16) << 12)
    np.testing.assert_array_equal(grey(dataset(overlaid)), grey(dataset()))
    signed = (overlaid ^ 0x800).astype(np.int16)
    np.testing.assert_array_equal(grey(dataset(signed)), grey(dataset()))
    refused(dataset(ramp() << 4, HighBit=15), "unusual position")


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_padding_is_black_and_does_not_change_the_rest(kind, window):
    values = ramp() // 2 + 500
    padded = values.copy()
    padded[:, :20] = 4000
    limits = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}
    image = grey(dataset(padded, PhotometricInterpretation=kind, **limits, **window))
    assert (image[:, :20] == 0).all()
    expected = grey(dataset(values[:, 20:].copy(), PhotometricInterpretation=kind, **window))
    np.testing.assert_allclose(image[:, 20:], expected, atol=0)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
    ids=lambda uid: uid.name,
)
def test_every_transfer_syntax_gives_the_same_image(syntax):
    ds = dataset(syntax=ExplicitVRLittleEndian if syntax == RLELossless else syntax)
    if syntax == RLELossless:
        ds.compress(RLELossless)
    np.testing.assert_array_equal(grey(ds), grey(dataset()))


def test_jpeg_pixel_data():
    file = io.BytesIO()
    Image.fromarray(ramp(8).astype(np.uint8)).save(file, "JPEG", quality=95)
    ds = dataset(ramp(8).astype(np.uint8), bits=8, syntax=JPEGBaseline8Bit)
    ds.PixelData = encapsulate([file.getvalue()])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(grey(ds), np.asarray(Image.open(file)))


def bundled(name: str) -> bytes:
    """A test file of pydicom with the modality of a radiograph."""
    ds = pydicom.dcmread(get_testdata_file(name))
    ds.Modality, ds.NumberOfFrames = "DX", 1
    file = io.BytesIO()
    ds.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
        ("SC_rgb_rle.dcm", "SC_rgb_gdcm_KY.dcm"),
    ],
)
def test_pydicom_files_in_every_compression(name, like):
    image, expected = grey(bundled(name)), grey(bundled(like))
    np.testing.assert_allclose(image, expected, atol=0 if name.startswith("MR") else 3)
    ds = pydicom.dcmread(get_testdata_file(name))
    if name.startswith("MR"):  # the window of the file, as applied by pydicom
        windowed = apply_windowing(ds.pixel_array, ds).astype(float)
        assert np.corrcoef(windowed.ravel(), image.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", ["image_dfl.dcm", "SC_rgb_jpeg_gdcm.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_more_pydicom_files(name):
    assert np.ptp(grey(bundled(name))) > 50


def test_colour_is_noted():
    rgb = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    rgb[..., 0] = ramp(8)
    ds = dataset(rgb, bits=8, PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0)
    np.testing.assert_array_equal(grey(ds), np.asarray(Image.fromarray(rgb).convert("L")))
    assert describe_image(encode(ds)).notes == ("colour",)
    assert [finding.kind for finding in check_input(encode(ds))][:1] == ["colour"]


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        ({"ViewPosition": "LL"}, "lateral view"),
        ({"ViewPosition": "LAT"}, "lateral view"),
        ({"ViewPosition": "LAO"}, "view 'other' is not known to be frontal"),
        ({"ViewCodeSequence": [code("399173006", "left lateral")]}, "lateral view"),
        ({"ViewCodeSequence": [code("R-10241", "axial")]}, "view 'other' is not known to be frontal"),
        ({"BodyPartExamined": "HAND"}, "another part of the body"),
        ({"BodyPartExamined": "TSPINE"}, "another part of the body"),
        ({"AnatomicRegionSequence": [code("56459004", "Foot")]}, "another part of the body"),
        ({"BurnedInAnnotation": "YES"}, "text burned into the picture"),
        ({"PresentationLUTShape": "INVERSE"}, "presentation LUT shape INVERSE with MONOCHROME2"),
    ],
)
def test_header_values_that_contradict_a_frontal_radiograph_are_noted(tags, note):
    content = encode(dataset(**tags))
    assert note in describe_image(content).notes
    assert [finding.kind for finding in check_input(content)].count("header") == 1
    assert note not in describe_image(encode(dataset(ViewPosition="PA", BodyPartExamined="CHEST"))).notes


# windows and LUTs that do not fit


def chest(bits: int = 12) -> np.ndarray:
    """Stored values like those of a radiograph: dark air at the sides, a bright spine, grey lungs."""
    rng = np.random.default_rng(3)
    pixels = np.asarray(Image.fromarray(draw_phantom(rng, image_size=96).image), dtype=np.float64)
    return (pixels * ((1 << bits) - 1) / 255).round().astype(np.uint16)


def scaled(values: np.ndarray) -> np.ndarray:
    return np.interp(values, np.percentile(values, [0.5, 99.5]), [0, 255])


@pytest.mark.parametrize("bits", [12, 14, 16])
@pytest.mark.parametrize(
    ("centre", "width"), [(128, 256), (127.5, 255), (40, 400), (512, 1024), (-600, 1500), (1 << 20, 1 << 21), (1e6, 10)]
)
def test_a_window_that_makes_no_picture_is_replaced_by_percentiles(centre, width, bits):
    ds = dataset(chest(bits), bits=bits, WindowCenter=centre, WindowWidth=width)
    np.testing.assert_allclose(grey(ds), scaled(chest(bits)), atol=0.51)
    notes = describe_image(encode(ds)).notes
    assert "no window of the header fits its pixels" in notes and f"{bits} bits scaled to 8" in notes
    assert any(note.startswith("window ") for note in notes)
    assert "No window" in next(remark.text for remark in check_input(encode(ds)) if remark.kind == "header")


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("stale", "fitting"), [((128, 256), (2000, 3800)), ((60000, 8), (1800, 3000))])
def test_the_next_window_replaces_one_that_does_not_fit(stale, fitting, function):
    both = {"WindowCenter": [stale[0], fitting[0]], "WindowWidth": [stale[1], fitting[1]]}
    ds = dataset(chest(), VOILUTFunction=function, **both)
    alone = dataset(chest(), VOILUTFunction=function, WindowCenter=fitting[0], WindowWidth=fitting[1])
    np.testing.assert_array_equal(grey(ds), grey(alone))
    first, second = describe_image(encode(ds)).notes
    assert first in ("window saturates it", "window leaves it blank", "window leaves few grey levels")
    assert second == "window 2"


@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (2000, 2600), (1500, 3000), (2048, 8192)])
def test_a_window_that_fits_is_applied(centre, width):
    ds = dataset(chest(), WindowCenter=centre, WindowWidth=width)
    np.testing.assert_allclose(
        grey(ds), 255 * np.clip((chest().astype(float) - centre + 0.5) / (width - 1) + 0.5, 0, 1), atol=0.51
    )
    assert describe_image(encode(ds)).notes == ("window",)


def test_a_dark_border_outside_of_a_window_is_no_loss():
    """A collimated image: most of it is a nearly black border, which the window makes black."""
    values = np.full((96, 96), 60, np.uint16)
    values[20:76, 20:76] = chest()[20:76, 20:76] // 2 + 1000
    ds = dataset(values, WindowCenter=2000, WindowWidth=2200)
    assert describe_image(encode(ds)).notes == ("window",)


def test_a_lut_that_does_not_fit_is_replaced_by_the_next_lut_and_then_the_window():
    steps = lut((np.arange(4096) > 1500) * 4095, 0, 12)
    fitting = lut(np.arange(4096), 0, 12)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    ds = dataset(chest(), VOILUTSequence=[steps, fitting], **window)
    assert describe_image(encode(ds)).notes == ("VOI LUT leaves few grey levels", "VOI LUT 2")
    ds = dataset(chest(), VOILUTSequence=[steps], **window)
    np.testing.assert_array_equal(grey(ds), grey(dataset(chest(), **window)))
    assert describe_image(encode(ds)).notes == ("VOI LUT leaves few grey levels", "window")


# empty elements, padding and signs


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": "", "RescaleIntercept": "0"},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": "2000", "WindowWidth": None},
        {"VOILUTFunction": ""},
        {"PixelPaddingValue": None, "PixelPaddingRangeLimit": None},
        {"VOILUTSequence": []},
        {"ModalityLUTSequence": []},
    ],
    ids=lambda tags: "-".join(tags),
)
def test_empty_elements_are_absent(tags, syntax):
    np.testing.assert_array_equal(grey(dataset(chest(), syntax=syntax, **tags)), grey(dataset(chest())))


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("lost", ["LUTData", "LUTDescriptor", "both", "empty"])
def test_a_lut_without_data_is_absent(keyword, lost):
    item = lut(np.arange(4096), 0, 12)
    for name in ("LUTData", "LUTDescriptor") if lost in ("both", "empty") else (lost,):
        delattr(item, name)
        if lost == "empty":
            item.add_new(name, "US", None)
    ds = dataset(chest(), **{keyword: [item]}, WindowCenter=2048, WindowWidth=4096)
    np.testing.assert_array_equal(grey(ds), grey(dataset(chest(), WindowCenter=2048, WindowWidth=4096)))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("vr", ["US", "SS"])
@pytest.mark.parametrize(("first", "last"), [(-2000, None), (-2000, -1500), (-1500, -2000), (-1, None)])
def test_padding_of_the_other_sign_is_found(first, last, vr, signed, syntax):
    """-2000 and 63536 are the same 16 bits, and either may stand in the header for either kind of pixels."""
    values = chest().astype(np.int16)
    values[:, :30] = first
    values[:, 30:32] = first if last is None else last
    ds = dataset(values if signed else values.view(np.uint16), bits=16, syntax=syntax)
    for keyword, value in (("PixelPaddingValue", first), ("PixelPaddingRangeLimit", last)):
        if value is not None:
            ds.add_new(keyword, vr, value if vr == "SS" else value % 65536)
    image = grey(ds)
    assert (image[:, :32] == 0).all() and "padding blackened" in describe_image(encode(ds)).notes
    np.testing.assert_allclose(image[:, 32:], scaled(chest()[:, 32:].astype(float)), atol=1)


def test_padding_above_the_stored_bits_is_found_and_ordinary_white_is_not():
    values = chest() | 0
    values[:, :30] = 63536
    ds = dataset(values, PixelPaddingValue=63536)
    assert (grey(ds)[:, :30] == 0).all()
    white = dataset(chest(), PixelPaddingValue=65535)
    np.testing.assert_array_equal(grey(white), grey(dataset(chest())))


# files in other forms


def bare(ds: Dataset, *, meta: bool) -> bytes:
    """The content of a file without its preamble and prefix, and without its meta information unless `meta`."""
    content = encode(ds)
    end = 144 + int.from_bytes(content[140:144], "little")
    return content[132:] if meta else content[end:]


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_a_preamble_is_read_and_noted(syntax, meta, tmp_path):
    ds = dataset(chest(), syntax=syntax)
    for content in (bare(ds, meta=meta), b"DICM" + encode(ds)[132:]):
        np.testing.assert_array_equal(grey(content), grey(dataset(chest())))
        assert "no preamble" in describe_image(content).notes
    (tmp_path / "scan").write_bytes(bare(ds, meta=meta))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "scan")), grey(dataset(chest())))


@pytest.mark.parametrize("meta", [True, False])
def test_a_damaged_file_without_a_preamble_is_named_as_such(meta):
    content = bare(dataset(chest()), meta=meta)
    error = refused(content[: len(content) // 2], "DICOM file without its preamble")
    assert "dcmconv" in error.hint
    ds = dataset(chest())
    del ds.PixelData
    refused(bare(ds, meta=meta), "without an image")
    compressed = dataset()
    compressed.compress(RLELossless)
    refused(bare(compressed, meta=False), "without its preamble")


@pytest.mark.parametrize("seed", range(40))
def test_other_content_is_not_taken_for_dicom_without_a_preamble(seed):
    rng = np.random.default_rng(seed)
    start = [b"\x08\0", b"\x02\0", b"\0\x08"][seed % 3]
    refused(start + rng.integers(0, 1 + seed * 6, 5000, dtype=np.uint8).tobytes(), "not an image of a known format")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_a_dataset_in_memory_gives_the_image_of_its_file(syntax):
    ds = dataset(chest(), syntax=ExplicitVRLittleEndian if syntax == RLELossless else syntax, WindowCenter=[9, 2000])
    ds.WindowWidth, ds.ViewPosition = [9, 3000], "AP"
    if syntax == RLELossless:
        ds.compress(RLELossless)
    image, facts = read_image(pydicom.dcmread(io.BytesIO(encode(ds))))
    assert np.array_equal(image, open_image(encode(ds))) and facts == describe_image(encode(ds)) and facts.view == "AP"
    if syntax == ExplicitVRLittleEndian:
        del ds.file_meta
        assert np.array_equal(open_image(ds), image)
    with pytest.raises(ImageError, match="pydicom data set|without an image"):
        open_image(Dataset())


# what the header states


# files that are refused


def test_another_modality_is_refused():
    refused(dataset(Modality="CT"), "not a radiograph: modality CT")
    refused(dataset(Modality="JOHN"), "not a radiograph: another modality")
    for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "test-SR.dcm"):
        refused(get_testdata_file(name), "not a radiograph")
    grey(dataset(Modality=""))


def test_more_than_one_frame_is_refused():
    ds = dataset(np.tile(ramp(), (3, 1)))
    ds.Rows, ds.NumberOfFrames = ROWS, 3
    refused(ds, "has 3 frames")
    ds.NumberOfFrames = 1
    refused(dataset(NumberOfFrames=10**6), "has 1000000 frames")
    grey(dataset(NumberOfFrames=1))


@pytest.mark.parametrize("name", ["DICOMDIR", "reportsi.dcm", "no_meta_group_length.dcm"])
def test_a_file_without_an_image_is_refused(name):
    ds = dataset()
    del ds.PixelData
    refused(ds, "without an image")
    refused(get_testdata_file(name), "without an image|not a radiograph")


def test_twelve_bit_jpeg_raises_with_its_reason():
    refused(bundled("JPEG-lossy.dcm"), "12-bit JPEG is not supported")
    assert pydicom.dcmread(get_testdata_file("JPEG-lossy.dcm")).file_meta.TransferSyntaxUID == JPEGExtended12Bit


def test_a_compression_without_a_decoder_raises_with_its_name():
    ds = dataset(syntax=pydicom.uid.HTJ2KLossless)
    ds.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(40)])
    ds["PixelData"].is_undefined_length = True
    error = refused(ds, "the size of its pixel data|no decoder is installed for its compression")
    ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    ds.PixelData = encapsulate([bytes(64)])
    error = refused(ds, "no decoder is installed for its compression .MPEG2")
    assert error.hint == "Export it without compression.", "no package reads a video"


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [("HTJ2K", "pylibjpeg pylibjpeg-openjpeg"), ("JPEGLSLossless", "'covid_fastai[dicom]'")]
    + [("JPEGLosslessSV1", "'covid_fastai[dicom]'")],
)
def test_a_compression_without_a_decoder_names_the_package_to_install(syntax, packages, monkeypatch):
    uid = getattr(pydicom.uid, syntax)
    decoder = pydicom.pixels.get_decoder(uid)
    if "gdcm" in decoder._available:  # as without the extra
        monkeypatch.setattr(decoder, "_available", {})
        monkeypatch.setattr(decoder, "_unavailable", {**decoder._unavailable, "gdcm": ("gdcm>=3.0.10",)})
    ds = dataset(syntax=uid)
    ds.PixelData = encapsulate([bytes(64)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    error = refused(ds, "no decoder is installed for its compression")
    assert error.hint.startswith(f"pip install {packages}, or")


@pytest.mark.parametrize("change", ["cut", "junk", "preamble", "bits", "text", "slope"])
def test_damaged_files_raise_with_a_reason(change):
    content = encode(dataset())
    broken = {
        "cut": content[: len(content) // 2],
        "junk": content[:132] + np.random.default_rng(0).bytes(3000),
        "preamble": content[:132],
        "bits": encode(dataset(BitsStored=40)),
        "text": encode(dataset(PhotometricInterpretation=SENTINEL)),
        "slope": encode(dataset(RescaleSlope=0, RescaleIntercept=1)),
    }[change]
    refused(broken, "cannot be read|without an image|blank|photometric|damaged")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_wrong_size_is_refused_before_memory_is_allocated(syntax):
    ds = dataset()
    if syntax == RLELossless:
        ds.compress(RLELossless)
    ds.Rows = ds.Columns = 60000
    content = encode(ds)
    tracemalloc.start()
    refused(content, "too many for a radiograph")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    ds.Rows = ds.Columns = 2000
    refused(encode(ds), "damaged, truncated|contradict its header")
    ds.Rows, ds.Columns = 16, 64
    refused(ds, "16 pixels|64 x 16|not an x-ray")


def test_a_jpeg_larger_than_its_header_is_not_decoded():
    file = io.BytesIO()
    Image.new("L", (5000, 5000)).save(file, "JPEG")
    ds = dataset(ramp(8).astype(np.uint8), bits=8, syntax=JPEGBaseline8Bit)
    ds.PixelData = encapsulate([file.getvalue()])
    ds["PixelData"].is_undefined_length = True
    refused(ds, "size of its pixel data differs")


def test_the_scans_of_a_jpeg_in_a_dicom_file_are_counted():
    ds = dataset(ramp(8).astype(np.uint8), bits=8, syntax=JPEGBaseline8Bit)
    ds.PixelData = encapsulate([jpeg_of_scans(2000, Image.new("L", (COLUMNS, ROWS)))])
    ds["PixelData"].is_undefined_length = True
    refused(ds, "more than 100 scans")


@pytest.mark.parametrize("kind", ["elements", "items", "nested items", "deflated items"])
def test_a_header_of_very_many_parts_is_refused_at_once(kind):
    tag = struct.Struct("<HHI").pack
    if kind == "elements":
        parts = b"".join(struct.pack("<HH2sH", 9 + 2 * (n >> 16), n & 0xFFFF, b"LO", 0) for n in range(16, 300_000))
    else:
        start = struct.pack("<HH2sHI", 9, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        item = tag(0xFFFE, 0xE000, 0) if kind != "nested items" else tag(0xFFFE, 0xE000, 0xFFFFFFFF) + start
        parts = start + item * 200_000
    plain = encode(dataset())
    if kind == "deflated items":
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        meta = encode(dataset(syntax=DeflatedExplicitVRLittleEndian))
        begin = 144 + int.from_bytes(meta[140:144], "little")
        content = meta[:begin] + packer.compress(parts) + packer.flush()
    else:
        begin = plain.index(struct.pack("<HH", 0x10, 0x10))  # the patient's name, which comes next
        content = plain[:begin] + parts + plain[begin:]
    start_time = time.thread_time()  # of the processor: a busy machine takes longer
    refused(content, "more than 10,000 items|header cannot be read")
    assert time.thread_time() - start_time < 2


@pytest.mark.slow
def test_a_deflate_bomb_is_not_fully_decompressed():
    content = encode(dataset(syntax=DeflatedExplicitVRLittleEndian))
    begin = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join([packer.compress(bytes(1 << 24)) for _ in range(25)] + [packer.flush()])
    assert len(bomb) < 1e6
    refused(content[:begin] + bomb, "too large")
    refused(content[:begin] + b"\xff" + content[begin + 1 :], "compressed data are damaged|truncated")


@pytest.mark.parametrize("tag", [b"\x28\x00\x10\x30", b"\x40\x00\x75\x02"])
@pytest.mark.parametrize("depth", [50, 5000])
def test_nested_sequences_do_not_crash_the_process(tag, depth):
    content = encode(dataset())
    position = content.index(b"\xe0\x7f\x10\x00")
    begin = tag + b"SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    content = content[:position] + begin * depth + end * depth + content[position:]
    if depth == 50:  # as a VOI LUT it has no data, and counts as absent
        np.testing.assert_array_equal(grey(content), grey(dataset()))
    else:
        refused(content, "header")


def test_random_damage_is_always_an_image_error():
    rng = np.random.default_rng(5)
    contents = [encode(dataset(VOILUTSequence=[lut(np.arange(4096), 0, 12)])), bundled("MR_small_RLE.dcm")]
    contents += [bundled("MR_small_jp2klossless.dcm"), bundled("JPEGLSNearLossless_08.dcm")]
    n_opened = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in contents * 60:
            damaged = bytearray(content)
            for position in rng.integers(132, min(len(content), 1600), rng.integers(1, 12)):
                damaged[position] = rng.integers(0, 256)
            try:
                open_image(bytes(damaged))
                n_opened += 1
            except ImageError as error:
                assert error.hint
    assert 0 < n_opened < 240


def test_damaged_jpeg_2000_is_not_given_to_gdcm(monkeypatch):
    """It ends the process at some such files, which no `except` can catch; found by fuzzing."""
    from pydicom.pixels.decoders.base import JPEG2000LosslessDecoder as decoder

    assert "gdcm" in decoder._available
    monkeypatch.setitem(decoder._available, "gdcm", lambda *_: pytest.fail("GDCM is asked"))
    content = bundled("MR_small_jp2klossless.dcm")
    assert grey(content).shape == (64, 64)
    tile_width = content.index(b"\xff\x4f\xff\x51") + 24
    refused(content[:tile_width] + bytes(4) + content[tile_width + 4 :], "damaged, truncated")


def test_a_header_with_a_value_of_no_kind_is_damaged():
    """pydicom converts it when it is looked at, not when it is read; found by fuzzing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(bytes(128) + b"DICM\0\0DICM" + bytes(50), "its header cannot be read")


# privacy


def test_no_patient_data_is_leaked(tmp_path, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about the values written here
        good = encode(dataset(BurnedInAnnotation="YES", ViewPosition="LL", BodyPartExamined=SENTINEL))
        bad = [
            encode(dataset(**{tag: SENTINEL})) for tag in ("Modality", "PhotometricInterpretation", "VOILUTFunction")
        ]
        bad += [encode(dataset(BitsStored=40)), good.replace(b"DX", b"CT"), good[:700], good[:-700]]
    assert all(SENTINEL.encode() in content for content in [good, *bad])
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        image, facts = read_image(good)
        texts = [repr(facts), repr(image.info), *(finding.text for finding in check_input(good))]
        for content in bad:
            try:
                open_image(content)
            except ImageError as error:
                texts += [str(error), repr(error.__cause__), repr(error.details)]
    image.save(tmp_path / "out.png")
    texts += [*(str(warning.message) for warning in warned), caplog.text, *capfd.readouterr()]
    texts.append((tmp_path / "out.png").read_bytes().decode("latin-1"))
    assert len(texts) > 15 and not [text for text in texts if "DOE" in text or "JOHN" in text]


def test_without_the_extra_the_error_has_the_pip_command(tmp_path):
    (tmp_path / "a.dcm").write_bytes(encode(dataset()))
    code = """
import sys
sys.modules["pydicom"] = None
from covid_fastai.data.images import open_image
from covid_fastai.errors import ImageError
try:
    open_image(sys.argv[1])
except ImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.dcm"], capture_output=True, text=True, check=True)
    assert "a.dcm" in done.stdout and "pip install 'covid_fastai[dicom]'" in done.stdout


def test_another_thread_may_be_importing_pydicom(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", types.ModuleType("pydicom"))  # as it is while its import goes on
    assert not is_dataset(b"") and not is_dataset(Path("a.png"))


def test_other_files_do_not_load_pydicom(tmp_path):
    Image.fromarray(ramp(8).astype(np.uint8)).save(tmp_path / "a.png")
    code = "import sys; from covid_fastai.data.images import open_image; open_image(sys.argv[1]); "
    code += "print('pydicom' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and Path(tmp_path).exists()
