"""Radiographs in DICOM files: the stored numbers become the grey picture that a viewer shows. Needs the extra `dicom`.

Of the header only what the picture needs is read, by a list of allowed tags (`TAGS`): no name, number or date of a
patient is ever looked at, and no value of the file stands in a message.
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

RADIOGRAPHS = {"CR", "DX", "DR", "RG"}  # PS3.3 C.7.3.1.1.1; DR is none of its terms, and is written all the same
OTHERS = {"CT", "MR", "US", "NM", "PT", "MG", "XA", "RF", "OT", "SC", "SEG", "SR", "ECG", "RTDOSE", "RTPLAN", "DOC"}
LATERAL = {"LL", "RL", "LAT"}  # View Position, PS3.3 C.8.1.3.1.1
GREY = {"MONOCHROME1", "MONOCHROME2"}
COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
DEFLATED = b"1.2.840.10008.1.2.1.99"
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
PLAIN = {"CS": re.compile(rb"[A-Za-z0-9_ \\]{0,64}"), "DS": re.compile(rb"[0-9+\-.eE \\]{0,400}")}  # PS3.5 6.2
PLAIN |= {"IS": PLAIN["DS"], "UI": re.compile(rb"[0-9.]{0,64}")}
MUST = {0x00080060, 0x00280004, 0x00280008}  # Modality, PhotometricInterpretation, NumberOfFrames: not without
JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a frame header; 0xF7 is JPEG-LS
HEADER = 4096  # bytes: the file's meta information stands in them
SCALED = 8  # bits; with more and no window, the grey levels are scaled by percentiles as in any other format
TAGS = [
    *("SOPClassUID", "Modality", "ViewPosition", "BodyPartExamined", "BurnedInAnnotation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


def read_dicom(content: bytes, name: str) -> tuple[Image.Image, ImageFacts]:
    """Turn a DICOM file into the 8-bit grey picture that a viewer shows, bone white.

    In the order of PS3.4 N.2: the modality's LUT or rescale slope, then the first of VOI LUT, window, and the 0.5th and
    99.5th percentile (more than 8 bits only) that gives a picture; MONOCHROME1 is inverted last. Pixels of padding
    become black and count for no percentile.

    Args:
        content: The file's bytes.
        name: The file, for messages.

    Returns:
        An image of mode `"L"`, and its facts; `notes` says what was done.

    Raises:
        ImageError: The extra is not installed, or the file is damaged, no radiograph (CT, ultrasound, ...), of several
            frames, without a picture, too large, or compressed in a way that no installed decoder reads.
    """
    ds = _read_header(content, name)
    try:
        kind = _check_kind(ds, name)
        stored = _decode(ds, name)
        grey, done = _to_picture(stored, ds) if kind in GREY else _from_colour(stored, ds)
        notes = (*done, *_remarks(ds), *_odd_name(name))
        return grey, ImageFacts("DICOM", kind, grey.width, grey.height, int(ds.BitsStored), notes)
    except ImageError:
        raise
    # guard: dicom_damage
    except Exception:  # noqa: BLE001 - damage makes numpy and pydicom raise nearly anything; their words may quote it
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
    except Exception:  # noqa: BLE001 - junk makes pydicom raise nearly anything; its words may quote the file's
        raise _unreadable(name, "its header cannot be read") from None
    for tag in list(ds.keys()):
        raw = ds.get_item(tag)  # not yet made a value, which pydicom would quote in a warning if it is odd
        if raw.VR in PLAIN and isinstance(raw.value, bytes) and not PLAIN[raw.VR].fullmatch(raw.value.rstrip(b" \0")):
            if tag in MUST:
                raise _unreadable(name, "an entry of its header is damaged")
            del ds[tag]
    return ds


def _check_deflated(content: bytes, name: str) -> None:
    """Inflate within bounds what pydicom would inflate without any."""
    tag, length = content[132:140], content[140:144]
    if tag != b"\x02\x00\x00\x00UL\x04\x00":
        raise _unreadable(name, "its meta information has no length")
    begin = 144 + struct.unpack("<I", length)[0]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        stream.decompress(content[begin:], MAX_BYTES)
    except zlib.error:
        raise _unreadable(name, "its compressed part is broken") from None
    if not stream.eof:
        raise ImageError(
            f"{name} is too large to be a radiograph, or cut off.", hint=f"At most {MAX_BYTES:,} bytes are read."
        )


def _check_kind(ds: Dataset, name: str) -> str:
    """Return the photometric interpretation of what can be read as a radiograph, or raise."""
    modality, kind = str(ds.get("Modality") or ""), str(ds.get("PhotometricInterpretation") or "")
    frames, shape = int(ds.get("NumberOfFrames") or 1), (int(ds.get("Columns") or 0), int(ds.get("Rows") or 0))
    bits, allocated = int(ds.get("BitsStored") or 0), int(ds.get("BitsAllocated") or 0)
    if modality and modality not in RADIOGRAPHS:  # guard: modality
        what = f"modality {modality}" if modality in OTHERS else "another modality"
        raise ImageError(f"{name} is no radiograph: {what}.", hint=f"Give {', '.join(sorted(RADIOGRAPHS))} images.")
    if "PixelData" not in ds:  # guard: no_picture
        raise ImageError(f"{name} is a DICOM file without a picture.", hint="Give the image's own file.")
    if frames != 1:  # guard: dicom_frames
        raise ImageError(f"{name} holds {frames} frames.", hint="Save the one that is meant as a file of its own.")
    if kind not in GREY | COLOUR:
        raise _unreadable(name, "its photometric interpretation is not read")
    if not 1 <= bits <= allocated <= 32 or (kind in COLOUR and bits > 16):
        raise _unreadable(name, f"it stores {bits} bits in {allocated}")
    if int(ds.get("HighBit", bits - 1)) != bits - 1:  # PS3.5 8.1.1 allows no other since 2006
        raise _unreadable(name, "its bits stand in an unusual place")
    if (int(ds.get("SamplesPerPixel") or 1) == 3) != (kind in COLOUR):
        raise _unreadable(name, "its samples a pixel contradict its photometric interpretation")
    check_size(shape, name)
    return kind


def _remarks(ds: Dataset) -> list[str]:
    """Return what the header says against a frontal chest radiograph, without its words."""
    found = ["lateral view"] if str(ds.get("ViewPosition") or "").upper() in LATERAL else []
    part = str(ds.get("BodyPartExamined") or "").upper()
    if part and not any(word in part for word in ("CHEST", "THORA", "LUNG", "TORAX")):
        found.append("another part of the body")
    if str(ds.get("BurnedInAnnotation") or "").upper() == "YES":
        found.append("text burned into the picture")
    return found


def _odd_name(name: str) -> list[str]:
    known = {suffix: format for format, suffixes in SUFFIXES.items() for suffix in suffixes}
    suffix = next((suffix for suffix in known if name.lower().endswith(suffix)), "")
    return [f"named {suffix} but DICOM"] if known.get(suffix, "DICOM") != "DICOM" else []


# the pixels


def _decode(ds: Dataset, name: str) -> np.ndarray:
    """Return the stored numbers, `(rows, columns)` or `(rows, columns, 3)` in RGB."""
    syntax = ds.file_meta.get("TransferSyntaxUID", "")
    known = getattr(syntax, "is_transfer_syntax", False)
    if known and syntax.is_compressed:
        _check_frame(ds, name)  # guard: jpeg_frame
    try:
        pixels = ds.pixel_array
    except Exception as error:  # noqa: BLE001 - as many kinds as there are decoders; their words may quote the file's
        if syntax == JPEG_12_BIT and int(ds.BitsStored) > 8:  # guard: twelve_bit
            reason, hint = "JPEG of 12 bits, which no decoder at hand reads", "Export it without compression."
        # guard: no_decoder
        elif isinstance(error, NotImplementedError) or "missing required dependencies" in str(error):
            kind = getattr(syntax, "name", "unknown") if known else "unknown"
            reason = f"no decoder is installed for its compression ({kind})"
            hint = "pip install 'covid_fastai[dicom]', or export it without compression."
        else:
            raise _unreadable(name, "its pixel data are damaged, truncated, or not as its header says") from None
        raise ImageError(f"{name}: {reason}.", hint=hint) from None
    wanted = (int(ds.Rows), int(ds.Columns))
    if pixels.shape not in (wanted, (*wanted, 3)):
        raise _unreadable(name, "its pixel data are not as its header says")
    return pixels


def _check_frame(ds: Dataset, name: str) -> None:
    """Compare the size that a JPEG frame says of itself with the header's, since decoders make room for the former."""
    from pydicom.encaps import get_frame

    try:
        frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    except Exception:  # noqa: BLE001 - a broken sequence of fragments
        raise _unreadable(name, "its pixel data are damaged or truncated") from None
    size = _frame_size(frame)
    if size is not None and size != (int(ds.Columns), int(ds.Rows)):
        raise _unreadable(name, "its pixel data are of another size than its header says")


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG, JPEG-LS or JPEG 2000 frame; None for RLE, and where there is no header."""
    if frame[:4] == b"\xff\x4f\xff\x51" and len(frame) >= 24:  # SOC and SIZ: ITU-T T.800 A.5.1
        right, low, left, top = struct.unpack(">4I", frame[8:24])
        return right - left, low - top
    if frame[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(frame) and frame[place] == 0xFF:  # segments up to the frame header: ITU-T T.81 B.2.2
        marker, length = frame[place + 1], struct.unpack(">H", frame[place + 2 : place + 4])[0]
        if marker in JPEG_SIZES:
            height, width = struct.unpack(">HH", frame[place + 5 : place + 9])
            return width, height
        place += 2 + length if marker != 0xFF else 1
    return None


def _to_picture(stored: np.ndarray, ds: Dataset) -> tuple[Image.Image, list[str]]:
    """Return the grey picture and what was done, from stored numbers to MONOCHROME2 in 8 bits."""
    from pydicom.pixels.processing import apply_modality_lut

    padding = _padding(stored, ds)
    inside = slice(None) if padding is None else ~padding
    values = apply_modality_lut(stored, ds)  # guard: rescale
    notes = []
    for name, grey in _shown(values, ds):
        notes.append(name)
        if np.ptp(grey[inside].round()) > 1:  # guard: blank_window
            break
        notes[-1] = f"{name} leaves it blank"  # it was made for another picture
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
    colours = Image.fromarray(np.right_shift(stored, max(0, int(ds.BitsStored) - 8)).astype(np.uint8))
    return colours.convert("L"), ["colour"] if is_colour(colours) else []


def _padding(stored: np.ndarray, ds: Dataset) -> np.ndarray | None:
    """Return where there is padding rather than picture, None where there is none."""
    first = ds.get("PixelPaddingValue")  # guard: padding
    if first is None:
        return None
    last = ds.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    where = (stored >= low) & (stored <= high)
    return where if where.any() and not where.all() else None


def _shown(values: np.ndarray, ds: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what the file says about how it shall be shown, the first choice first, as grey levels 0 to 255."""
    if ds.get("VOILUTSequence"):
        yield "VOI LUT", _by_lut(values, ds)
    if (window := _window(ds)) is not None:
        yield "window", _by_window(values, *window)


def _by_range(stored: np.ndarray, values: np.ndarray, ds: Dataset, padding: np.ndarray | None) -> np.ndarray:
    """Return grey levels 0 to 255 where the file says nothing: 8 bits as they are, more between two percentiles."""
    bits = int(ds.BitsStored)
    if bits <= SCALED and stored.dtype.kind == "u" and not ds.get("ModalityLUTSequence"):
        grey = stored * (255 / (2**bits - 1))
        return 255 - grey if float(ds.get("RescaleSlope") or 1) < 0 else grey
    values = values.astype(np.float64)
    return np.asarray(scale_deep(values if padding is None else np.where(padding, np.nan, values)), dtype=np.float64)


def _window(ds: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, None where there is none that can be used."""
    centre, width = (_first(ds.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or not np.isfinite([centre, width]).all():
        return None
    if width < 1 if function == "LINEAR" else width <= 0:
        return None
    return (centre, width, function) if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else None


def _first(value) -> float | None:
    if isinstance(value, (str, float, int)):
        return float(value)
    return float(value[0]) if value else None


def _by_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Return grey levels 0 to 255 by PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 255 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR":  # guard: window
        centre, width = centre - 0.5, width - 1
    if width == 0:  # a window of 1: black up to its centre, white beyond
        return np.where(values > centre, 255.0, 0.0)
    return 255 * np.clip((values - centre) / width + 0.5, 0, 1)


def _by_lut(values: np.ndarray, ds: Dataset) -> np.ndarray:
    """Return grey levels 0 to 255 from the first VOI LUT: its lowest entry black, its highest white.

    Not the range that its descriptor claims: LUTs of 12 bits are described as of 16, and would leave the picture dark.
    """
    item = ds.VOILUTSequence[0]
    count, first = int(item.LUTDescriptor[0]) or 1 << 16, int(item.LUTDescriptor[1])
    entries = item.LUTData
    if isinstance(entries, bytes):
        wide = "<u2" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">u2"
        entries = np.frombuffer(entries, dtype=wide if len(entries) >= 2 * count else "u1")
    entries = np.asarray(entries, dtype=np.float64)[:count]
    places = np.clip(np.round(values.astype(np.float64)) - first, 0, len(entries) - 1).astype(np.int64)
    low, high = entries.min(), entries.max()
    return (entries[places] - low) * (255 / (high - low) if high > low else 0)


def _unreadable(name: str, reason: str) -> ImageError:
    return ImageError(
        f"{name}, a DICOM file, cannot be read: {reason}.", hint="Export it anew, or convert it to PNG with a viewer."
    )
