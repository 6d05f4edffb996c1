"""Radiographs in DICOM files, converted to the 8-bit image that a viewer shows. Requires the extra `dicom`.

Only the header elements in `TAGS`, which the image needs, are read. Names, numbers and dates of patients are never
read, and no message contains a value of the file.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from covid_fastai.data.image_facts import MAX_BYTES, SUFFIXES, ImageFacts, check_size
from covid_fastai.data.intensity import is_colour, scale_deep
from covid_fastai.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["TAGS", "read_dicom"]

RADIOGRAPHS = {"CR", "DX", "DR", "RG"}  # PS3.3 C.7.3.1.1.1; DR is not a defined term but is common
OTHERS = {"CT", "MR", "US", "NM", "PT", "MG", "XA", "RF", "OT", "SC", "SEG", "SR", "ECG", "RTDOSE", "RTPLAN", "DOC"}
LATERAL = {"LL", "RL", "LAT"}  # View Position, PS3.3 C.8.1.3.1.1
GREY = {"MONOCHROME1", "MONOCHROME2"}
COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
DEFLATED = b"1.2.840.10008.1.2.1.99"
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
PLAIN = {"CS": re.compile(rb"[A-Za-z0-9_ \\]{0,64}"), "DS": re.compile(rb"[0-9+\-.eE \\]{0,400}")}  # PS3.5 6.2
PLAIN |= {"IS": PLAIN["DS"], "UI": re.compile(rb"[0-9.]{0,64}")}
MUST = {0x00080060, 0x00280004, 0x00280008}  # Modality, PhotometricInterpretation, NumberOfFrames: required to be valid
JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a frame header; 0xF7 is JPEG-LS
HEADER = 4096  # bytes, which contain the file meta information
SCALED = 8  # bits; with more and no window, intensities are scaled by percentiles as in other formats
TAGS = [
    *("SOPClassUID", "Modality", "ViewPosition", "BodyPartExamined", "BurnedInAnnotation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


def read_dicom(content: bytes, name: str) -> tuple[Image.Image, ImageFacts]:
    """Return a DICOM file as the 8-bit greyscale image that a viewer shows, with white bones.

    The order is that of PS3.4 N.2. The modality LUT or rescale slope comes first. Then one transform is applied, the
    first of VOI LUT, window, and 0.5th and 99.5th percentile (only above 8 bits) that does not leave the image blank.
    MONOCHROME1 is inverted last. Padding pixels become black and are ignored in the percentiles.

    Args:
        content: The file's bytes.
        name: Name of the file, for messages.

    Returns:
        An image of mode `"L"`, and its facts; `notes` lists the steps that were applied.

    Raises:
        ImageError: The extra is not installed, or the file is damaged, not a radiograph (CT, ultrasound, ...), too
            large, has several frames or no image, or no installed decoder reads its compression.
    """
    ds = _read_header(content, name)
    try:
        kind = _check_kind(ds, name)
        stored = _decode(ds, name)
        image, steps = _from_grey(stored, ds) if kind in GREY else _from_colour(stored, ds)
        notes = (*steps, *_remarks(ds), *_odd_name(name))
        return image, ImageFacts("DICOM", kind, image.width, image.height, int(ds.BitsStored), notes)
    except ImageError:
        raise
    # guard: dicom_damage
    except Exception:  # noqa: BLE001 - damaged files make numpy and pydicom raise many types; their messages may quote it
        raise _unreadable(name, "its header contradicts its pixels") from None


# the header


def _read_header(content: bytes, name: str) -> Dataset:
    try:
        import pydicom
    except ImportError as error:  # guard: dicom_extra
        raise ImageError(
            f"{name} is a DICOM file, and pydicom is not installed.", hint="pip install 'covid_fastai[dicom]'"
        ) from error
    if DEFLATED in content[:HEADER]:
        _check_deflated(content, name)  # guard: deflate
    try:
        ds = pydicom.dcmread(io.BytesIO(content), specific_tags=TAGS)
    # guard: dicom_header
    except Exception:  # noqa: BLE001 - invalid data make pydicom raise many types; its messages may quote the file
        raise _unreadable(name, "its header cannot be read") from None
    for tag in list(ds.keys()):
        raw = ds.get_item(tag)  # not converted yet: pydicom quotes invalid values in warnings
        if raw.VR in PLAIN and isinstance(raw.value, bytes) and not PLAIN[raw.VR].fullmatch(raw.value.rstrip(b" \0")):
            if tag in MUST:
                raise _unreadable(name, "an element of its header is damaged")
            del ds[tag]
    return ds


def _check_deflated(content: bytes, name: str) -> None:
    """Decompress a deflated file up to a size limit, which pydicom does not have, and raise above it."""
    tag, length = content[132:140], content[140:144]
    if tag != b"\x02\x00\x00\x00UL\x04\x00":
        raise _unreadable(name, "its meta information has no length")
    begin = 144 + struct.unpack("<I", length)[0]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        stream.decompress(content[begin:], MAX_BYTES)
    except zlib.error:
        raise _unreadable(name, "its compressed data are damaged") from None
    if not stream.eof:
        raise ImageError(
            f"{name} is too large to be a radiograph, or truncated.", hint=f"At most {MAX_BYTES:,} bytes are read."
        )


def _check_kind(ds: Dataset, name: str) -> str:
    """Return the photometric interpretation, or raise if the file cannot be read as a radiograph."""
    modality, kind = str(ds.get("Modality") or ""), str(ds.get("PhotometricInterpretation") or "")
    frames, shape = int(ds.get("NumberOfFrames") or 1), (int(ds.get("Columns") or 0), int(ds.get("Rows") or 0))
    bits, allocated = int(ds.get("BitsStored") or 0), int(ds.get("BitsAllocated") or 0)
    if modality and modality not in RADIOGRAPHS:  # guard: modality
        modality_text = f"modality {modality}" if modality in OTHERS else "another modality"
        raise ImageError(
            f"{name} is not a radiograph: {modality_text}.", hint=f"Give {', '.join(sorted(RADIOGRAPHS))} images."
        )
    if "PixelData" not in ds:  # guard: no_picture
        raise ImageError(f"{name} is a DICOM file without an image.", hint="Give the file that contains the image.")
    if frames != 1:  # guard: dicom_frames
        raise ImageError(f"{name} has {frames} frames.", hint="Save the relevant frame as a separate file.")
    if kind not in GREY | COLOUR:
        raise _unreadable(name, "its photometric interpretation is not supported")
    if not 1 <= bits <= allocated <= 32 or (kind in COLOUR and bits > 16):
        raise _unreadable(name, f"it stores {bits} bits in {allocated}")
    if int(ds.get("HighBit", bits - 1)) != bits - 1:  # PS3.5 8.1.1 allows no other since 2006
        raise _unreadable(name, "its bits are stored in an unusual position")
    if (int(ds.get("SamplesPerPixel") or 1) == 3) != (kind in COLOUR):
        raise _unreadable(name, "its samples per pixel contradict its photometric interpretation")
    check_size(shape, name)
    return kind


def _remarks(ds: Dataset) -> list[str]:
    """Return notes on header values that contradict a frontal chest radiograph, without quoting them."""
    notes = ["lateral view"] if str(ds.get("ViewPosition") or "").upper() in LATERAL else []
    body_part = str(ds.get("BodyPartExamined") or "").upper()
    if body_part and not any(word in body_part for word in ("CHEST", "THORA", "LUNG", "TORAX")):
        notes.append("another part of the body")
    if str(ds.get("BurnedInAnnotation") or "").upper() == "YES":
        notes.append("text burned into the picture")
    return notes


def _odd_name(name: str) -> list[str]:
    """Return a note if the suffix is that of another image format."""
    known = {suffix: format for format, suffixes in SUFFIXES.items() for suffix in suffixes}
    suffix = next((suffix for suffix in known if name.lower().endswith(suffix)), "")
    return [f"named {suffix} but DICOM"] if known.get(suffix, "DICOM") != "DICOM" else []


# the pixels


def _decode(ds: Dataset, name: str) -> np.ndarray:
    """Return the stored values, `(rows, columns)`, or `(rows, columns, 3)` in RGB."""
    syntax = ds.file_meta.get("TransferSyntaxUID", "")
    known = getattr(syntax, "is_transfer_syntax", False)
    if known and syntax.is_compressed:
        _check_frame(ds, name)  # guard: jpeg_frame
    try:
        pixels = ds.pixel_array
    except Exception as error:  # noqa: BLE001 - each decoder has its own errors; their messages may quote the file
        if syntax == JPEG_12_BIT and int(ds.BitsStored) > 8:  # guard: twelve_bit
            reason, hint = "12-bit JPEG is not supported by any available decoder", "Export it without compression."
        # guard: no_decoder
        elif isinstance(error, NotImplementedError) or "missing required dependencies" in str(error):
            kind = getattr(syntax, "name", "unknown") if known else "unknown"
            reason = f"no decoder is installed for its compression ({kind})"
            hint = "pip install 'covid_fastai[dicom]', or export it without compression."
        else:
            raise _unreadable(name, "its pixel data are damaged, truncated, or contradict its header") from None
        raise ImageError(f"{name}: {reason}.", hint=hint) from None
    shape = (int(ds.Rows), int(ds.Columns))
    if pixels.shape not in (shape, (*shape, 3)):
        raise _unreadable(name, "its pixel data contradict its header")
    return pixels


def _check_frame(ds: Dataset, name: str) -> None:
    """Raise if the size in a JPEG frame differs from the header's: decoders allocate memory for the former."""
    from pydicom.encaps import get_frame

    try:
        frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    except Exception:  # noqa: BLE001 - a broken sequence of fragments
        raise _unreadable(name, "its pixel data are damaged or truncated") from None
    size = _frame_size(frame)
    if size is not None and size != (int(ds.Columns), int(ds.Rows)):
        raise _unreadable(name, "the size of its pixel data differs from that in its header")


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG, JPEG-LS or JPEG 2000 frame; None for RLE or without a frame header."""
    if frame[:4] == b"\xff\x4f\xff\x51" and len(frame) >= 24:  # SOC and SIZ: ITU-T T.800 A.5.1
        right, low, left, top = struct.unpack(">4I", frame[8:24])
        return right - left, low - top
    if frame[:2] != b"\xff\xd8":
        return None
    offset = 2
    while offset + 9 <= len(frame) and frame[offset] == 0xFF:  # segments up to the frame header: ITU-T T.81 B.2.2
        marker, length = frame[offset + 1], struct.unpack(">H", frame[offset + 2 : offset + 4])[0]
        if marker in JPEG_SIZES:
            height, width = struct.unpack(">HH", frame[offset + 5 : offset + 9])
            return width, height
        offset += 2 + length if marker != 0xFF else 1
    return None


def _from_grey(stored: np.ndarray, ds: Dataset) -> tuple[Image.Image, list[str]]:
    """Return the image in 8-bit MONOCHROME2 and the applied steps, from stored values of one channel."""
    from pydicom.pixels.processing import apply_modality_lut

    padding = _padding(stored, ds)
    inside = slice(None) if padding is None else ~padding
    values = apply_modality_lut(stored, ds)  # guard: rescale
    notes = []
    for name, grey in _voi_images(values, ds):
        notes.append(name)
        if np.ptp(grey[inside].round()) > 1:  # guard: blank_window
            break
        notes[-1] = f"{name} leaves it blank"  # the LUT or window does not fit this image
    else:
        grey = _by_range(stored, values, ds, padding)
        notes += [f"{int(ds.BitsStored)} bits scaled to 8"] if int(ds.BitsStored) > SCALED else []
    if ds.PhotometricInterpretation == "MONOCHROME1":  # guard: monochrome1
        grey = 255 - grey
        notes.append("MONOCHROME1 inverted")
    if padding is not None:
        grey = np.where(padding, 0, grey)
        notes.append("padding blackened")
    return Image.fromarray(np.clip(grey, 0, 255).round().astype(np.uint8)), notes


def _from_colour(stored: np.ndarray, ds: Dataset) -> tuple[Image.Image, list[str]]:
    """Return the image in 8-bit greyscale and a note if it has colours, from stored RGB values."""
    colours = Image.fromarray(np.right_shift(stored, max(0, int(ds.BitsStored) - 8)).astype(np.uint8))
    return colours.convert("L"), ["colour"] if is_colour(colours) else []


def _padding(stored: np.ndarray, ds: Dataset) -> np.ndarray | None:
    """Return the mask of padding pixels; None if there are none, or nothing else."""
    first = ds.get("PixelPaddingValue")  # guard: padding
    if first is None:
        return None
    last = ds.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() and not mask.all() else None


def _voi_images(values: np.ndarray, ds: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and result (intensities 0 to 255) of each VOI transform in the file, in order of preference."""
    if ds.get("VOILUTSequence"):
        yield "VOI LUT", _by_lut(values, ds)
    if (window := _window(ds)) is not None:
        yield "window", _by_window(values, *window)


def _by_range(stored: np.ndarray, values: np.ndarray, ds: Dataset, padding: np.ndarray | None) -> np.ndarray:
    """Return intensities 0 to 255 without a VOI transform: 8 bits unchanged, more bits scaled by percentiles."""
    bits = int(ds.BitsStored)
    if bits <= SCALED and stored.dtype.kind == "u" and not ds.get("ModalityLUTSequence"):
        grey = stored * (255 / (2**bits - 1))
        return 255 - grey if float(ds.get("RescaleSlope") or 1) < 0 else grey
    values = values.astype(np.float64)
    return np.asarray(scale_deep(values if padding is None else np.where(padding, np.nan, values)), dtype=np.float64)


def _window(ds: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window; None if there is no valid one."""
    centre, width = (_first(ds.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or not np.isfinite([centre, width]).all():
        return None
    if width < 1 if function == "LINEAR" else width <= 0:
        return None
    return (centre, width, function) if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else None


def _first(value) -> float | None:
    """Return a header value, or the first of several, as a number; None if it is empty."""
    if isinstance(value, (str, float, int)):
        return float(value)
    return float(value[0]) if value else None


def _by_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Return intensities 0 to 255 after windowing, by PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 255 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR":  # guard: window
        centre, width = centre - 0.5, width - 1
    if width == 0:  # a window of width 1 is a threshold at its centre
        return np.where(values > centre, 255.0, 0.0)
    return 255 * np.clip((values - centre) / width + 0.5, 0, 1)


def _by_lut(values: np.ndarray, ds: Dataset) -> np.ndarray:
    """Return intensities 0 to 255 from the first VOI LUT: its lowest entry is black, its highest white.

    The bits in its descriptor are ignored: many LUTs of 12 bits are described as 16 bits, and the image would be dark.
    """
    item = ds.VOILUTSequence[0]
    count, first = int(item.LUTDescriptor[0]) or 1 << 16, int(item.LUTDescriptor[1])
    entries = item.LUTData
    if isinstance(entries, bytes):
        dtype = "<u2" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">u2"
        entries = np.frombuffer(entries, dtype=dtype if len(entries) >= 2 * count else "u1")
    entries = np.asarray(entries, dtype=np.float64)[:count]
    positions = np.clip(np.round(values.astype(np.float64)) - first, 0, len(entries) - 1).astype(np.int64)
    low, high = entries.min(), entries.max()
    return (entries[positions] - low) * (255 / (high - low) if high > low else 0)


def _unreadable(name: str, reason: str) -> ImageError:
    return ImageError(
        f"{name}, a DICOM file, cannot be read: {reason}.", hint="Export it again, or convert it to PNG with a viewer."
    )
