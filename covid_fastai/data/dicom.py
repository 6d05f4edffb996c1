"""Radiographs in DICOM files, converted to the 8-bit image that a viewer shows. Requires the extra `dicom`.

Only the header elements in `TAGS`, which the image needs, are read. Names, numbers and dates of patients are never
read, and no message contains a value of the file. How values become intensities stands in `dicom_intensity`, what the
header states about the image in `dicom_facts`.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image

from covid_fastai.data.dicom_facts import STATED, header_notes, read_part, read_view
from covid_fastai.data.dicom_intensity import from_colour, from_grey
from covid_fastai.data.file_structure import check_structure, jpeg_segments
from covid_fastai.data.image_facts import MAX_BYTES, SUFFIXES, ImageFacts, check_size
from covid_fastai.data.projections import not_radiograph
from covid_fastai.errors import ImageError, NotRadiographError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

__all__ = ["TAGS", "as_part_10", "encode_dataset", "is_dataset", "read_dicom"]

RADIOGRAPHS = {"CR", "DX", "DR", "RG"}  # PS3.3 C.7.3.1.1.1; DR is not a defined term but is common
OTHERS = {"CT", "MR", "US", "NM", "PT", "MG", "XA", "RF", "OT", "SC", "SEG", "SR", "ECG", "RTDOSE", "RTPLAN", "DOC"}
GREY = {"MONOCHROME1", "MONOCHROME2"}
COLOUR = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
DEFLATED = b"1.2.840.10008.1.2.1.99"
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
PLAIN = {"CS": re.compile(rb"[A-Za-z0-9_ \\]{0,64}"), "DS": re.compile(rb"[0-9+\-.eE \\]{0,400}")}  # PS3.5 6.2
PLAIN |= {"IS": PLAIN["DS"], "UI": re.compile(rb"[0-9.]{0,64}")}
# Elements that are absent if their text is blank: window, intercept and slope, VOI LUT function
BLANK_IS_ABSENT = {0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056}
MUST = {0x00080060, 0x00280004, 0x00280008}  # Modality, PhotometricInterpretation, NumberOfFrames: required to be valid
JPEG_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of a frame header; 0xF7 is JPEG-LS
MAX_ITEMS = 10_000  # of sequences, or fragments of an image; pydicom reads each in Python, nested ones in many steps
ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # in both byte orders: PS3.5 7.5
MAX_ELEMENTS = 10_000  # of a header, outside of sequences
HEADER = 4096  # bytes, which contain the file meta information
PREFIX = b"DICM"  # PS3.10 7.1, after a preamble of 128 bytes
IMPLICIT, EXPLICIT, EXPLICIT_BIG = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2"
LONG_VR = {
    b"OB",
    b"OD",
    b"OF",
    b"OL",
    b"OW",
    b"SQ",
    b"UC",
    b"UN",
    b"UR",
    b"UT",
}  # with a length of 32 bits: PS3.5 7.1.2
UNDEFINED = 0xFFFFFFFF  # the length of a sequence that ends with a delimiter
FIRST_ELEMENTS, LAST_GROUP = 4, 0x0028  # what a data set must begin with to count as one without a preamble
TAGS = [
    *("SOPClassUID", "Modality", "ViewCodeSequence", "AnatomicRegionSequence", *STATED),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]


def read_dicom(content: bytes, name: str) -> tuple[Image.Image, ImageFacts]:
    """Return a DICOM file as the 8-bit greyscale image that a viewer shows, with white bones.

    The order is that of PS3.4 N.2. The modality LUT or rescale slope comes first. Then one transform is applied, the
    first of VOI LUTs, windows, and 0.5th and 99.5th percentile (only above 8 bits) that fits the pixels: one that
    leaves few grey levels, or saturates most of the centre, is skipped with a note. MONOCHROME1 is inverted last.
    Padding pixels become black and are ignored in the percentiles. Empty elements count as absent.

    Args:
        content: The file's bytes.
        name: Name of the file, for messages.

    Returns:
        An image of mode `"L"`, and its facts; `notes` lists the steps that were applied.

    Raises:
        ImageError: The extra is not installed, or the file is damaged, not a radiograph (CT, ultrasound, ...), too
            large, has several frames or no image, or no installed decoder reads its compression.
    """
    part_10 = as_part_10(content)
    if part_10 is content or part_10 is None:
        return _read_part_10(content, name)
    try:
        image, facts = _read_part_10(part_10, name)
    except _UnreadableError as error:
        raise ImageError(
            f"{name} seems to be a DICOM file without its preamble, and cannot be read: {error.reason}.",
            hint="Write it anew with DCMTK (dcmconv +F IN OUT) or gdcmconv, or export it again.",
        ) from None
    return image, replace(facts, notes=(*facts.notes, "no preamble"))


def _read_part_10(content: bytes, name: str) -> tuple[Image.Image, ImageFacts]:
    ds, stated = _read_header(content, name)
    try:
        kind = _check_kind(ds, name)
        stored = _decode(ds, name, raw=kind in GREY)
        image, steps = from_grey(stored, ds) if kind in GREY else from_colour(stored, ds)
        view, part = read_view(stated, ds), read_part(stated, ds)
        notes = (*steps, *header_notes(stated, view=view, body_part=part, kind=kind), *_odd_name(name))
        facts = ImageFacts("DICOM", kind, image.width, image.height, int(ds.BitsStored), notes)
        return image, replace(facts, view=view, modality=_modality(ds), body_part=part)
    except ImageError:
        raise
    # guard: dicom_damage
    except Exception:  # noqa: BLE001 - damaged files make numpy and pydicom raise many types; their messages may quote it
        raise _unreadable(name, "its header contradicts its pixels") from None


# other forms of a file


def as_part_10(content: bytes) -> bytes | None:
    """Return the content of a DICOM file in the form of PS3.10, with a preamble; None if it is no DICOM file.

    Old devices and some programs write the data set without preamble and prefix, or without meta information.
    """
    if content[128:132] == PREFIX:
        return content
    if content.startswith(PREFIX):
        return bytes(128) + content
    if content.startswith(b"\x02\0") and _begins_with_elements(content, "<"):  # guard: no_preamble
        return bytes(128) + PREFIX + content
    for order, syntax in (("<", EXPLICIT), (">", EXPLICIT_BIG)):
        if content.startswith(struct.pack(f"{order}H", 8)) and _begins_with_elements(content, order):
            uid = syntax if content[4:6].isalpha() else IMPLICIT
            uid += b"\0" * (len(uid) % 2)
            meta = b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
            return bytes(128) + PREFIX + b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta)) + meta + content
    return None


def _begins_with_elements(content: bytes, order: str) -> bool:
    """Return whether a content begins with several elements of DICOM in ascending order (PS3.5 7.1)."""
    position, last = 0, -1
    for _ in range(FIRST_ELEMENTS):
        head = content[position : position + 12]
        if len(head) < 12:
            return False
        group, element = struct.unpack(f"{order}HH", head[:4])
        if group > LAST_GROUP or (tag := group << 16 | element) <= last:
            return False
        last = tag
        if not head[4:6].isalpha():
            size, length = 8, struct.unpack(f"{order}I", head[4:8])[0]
        elif head[4:6] in LONG_VR:
            size, length = 12, struct.unpack(f"{order}I", head[8:])[0]
        else:
            size, length = 8, struct.unpack(f"{order}H", head[6:8])[0]
        if length == UNDEFINED:
            return last > 0
        if length % 2:
            return False
        position += size + length
    return True


def is_dataset(source: object) -> TypeGuard[Dataset]:
    """Return whether an object is a `Dataset` of pydicom, which is imported if there is one."""
    kind = getattr(sys.modules.get("pydicom"), "Dataset", None)  # None while another thread imports pydicom
    return kind is not None and isinstance(source, kind)


def encode_dataset(ds: Dataset, name: str) -> bytes:
    """Return the elements of a data set in memory that `read_dicom` reads, as the content of a file.

    Args:
        ds: The data set.
        name: Its name, for messages.

    Raises:
        ImageError: It cannot be written; the message names no value of it.
    """
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    try:
        copy = Dataset()
        copy.update({element.tag: element for element in map(ds.__getitem__, [tag for tag in TAGS if tag in ds])})
        copy.file_meta = FileMetaDataset()
        syntax = getattr(ds, "file_meta", {}).get("TransferSyntaxUID")
        implicit, little = ds.original_encoding
        guess = EXPLICIT_BIG if little is False else IMPLICIT if implicit else EXPLICIT
        copy.file_meta.TransferSyntaxUID = UID(syntax or guess.decode())
        copy.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID") or UID("1.2.840.10008.5.1.4.1.1.1.1")
        copy.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
        file = io.BytesIO()
        dcmwrite(file, copy, enforce_file_format=True)
        return file.getvalue()
    except Exception:  # noqa: BLE001 - a data set can hold anything; pydicom's messages may quote it
        raise ImageError(
            f"{name}, a pydicom data set, cannot be written as a file.", hint="Give the path of the DICOM file."
        ) from None


# the header


def _read_header(content: bytes, name: str) -> tuple[Dataset, dict[str, str]]:
    """Return the header without empty and damaged elements, and the text of the elements `STATED`."""
    try:
        from pydicom.filereader import read_partial
        from pydicom.tag import Tag
    except ImportError as error:  # guard: dicom_extra
        raise ImageError(
            f"{name} is a DICOM file, and pydicom is not installed.", hint="pip install 'covid_fastai[dicom]'"
        ) from error
    elements = content
    if DEFLATED in content[:HEADER]:
        elements = _inflate(content, name)  # guard: deflate
    if max(map(elements.count, ITEM_TAGS)) > MAX_ITEMS:  # guard: dicom_items
        raise _unreadable(name, f"it has more than {MAX_ITEMS:,} items")
    try:
        ds = read_partial(io.BytesIO(content), _element_counter(), specific_tags=[Tag(tag) for tag in TAGS])
        return _clean(ds, name)
    except ImageError:
        raise
    # guard: dicom_header
    except Exception:  # noqa: BLE001 - invalid data make pydicom raise many types; its messages may quote the file
        raise _unreadable(name, "its header cannot be read") from None


def _clean(ds: Dataset, name: str) -> tuple[Dataset, dict[str, str]]:
    """Remove empty and damaged elements and those of `STATED`, whose text is returned beside the header."""
    stated = {keyword: _stated_text(ds, keyword) for keyword in STATED}
    for keyword in STATED:
        ds.pop(keyword, None)
    for tag in list(ds.keys()):
        raw = ds.get_item(tag)  # not converted yet: pydicom quotes invalid values in warnings
        blank = tag in BLANK_IS_ABSENT and isinstance(raw.value, bytes) and not raw.value.strip(b" \0\\")
        if blank or raw.value is None or (isinstance(raw.value, bytes) and not raw.value):
            del ds[tag]
            continue
        if raw.VR in PLAIN and isinstance(raw.value, bytes) and not PLAIN[raw.VR].fullmatch(raw.value.rstrip(b" \0")):
            if tag in MUST:
                raise _unreadable(name, "an element of its header is damaged")
            del ds[tag]
    return ds, stated


def _element_counter() -> Callable[[BaseTag, str | None, int], bool]:
    """Return a function that pydicom calls for each element, and that raises after too many."""
    numbers = itertools.count()

    def count(tag: BaseTag, vr: str | None, length: int) -> bool:
        if next(numbers) >= MAX_ELEMENTS:  # guard: dicom_elements
            raise ValueError(f"more than {MAX_ELEMENTS:,} elements")
        return False

    return count


def _stated_text(ds: Dataset, keyword: str) -> str:
    """Return the text of an element as the file has it, of which the standard's characters are not asked."""
    if keyword not in ds:
        return ""
    value = ds.get_item(keyword).value
    if not isinstance(value, bytes):
        return "" if value is None else str(value)
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.replace("\\", " ").strip(" \0")


def _modality(ds: Dataset) -> str:
    modality = str(ds.get("Modality") or "")
    return modality if modality in RADIOGRAPHS else ""


def _inflate(content: bytes, name: str) -> bytes:
    """Return the elements of a deflated file, decompressed up to a size limit that pydicom does not have."""
    tag, length = content[132:140], content[140:144]
    if tag != b"\x02\x00\x00\x00UL\x04\x00":
        raise _unreadable(name, "its meta information has no length")
    begin = 144 + struct.unpack("<I", length)[0]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        elements = stream.decompress(content[begin:], MAX_BYTES)
    except zlib.error:
        raise _unreadable(name, "its compressed data are damaged") from None
    if not stream.eof:
        raise ImageError(
            f"{name} is too large to be a radiograph, or truncated.", hint=f"At most {MAX_BYTES:,} bytes are read."
        )
    return elements


def _check_kind(ds: Dataset, name: str) -> str:
    """Return the photometric interpretation, or raise if the file cannot be read as a radiograph."""
    modality, kind = str(ds.get("Modality") or ""), str(ds.get("PhotometricInterpretation") or "")
    frames, shape = int(ds.get("NumberOfFrames") or 1), (int(ds.get("Columns") or 0), int(ds.get("Rows") or 0))
    bits, allocated = int(ds.get("BitsStored") or 0), int(ds.get("BitsAllocated") or 0)
    if modality and modality not in RADIOGRAPHS:  # guard: modality
        modality_text = f"modality {modality}" if modality in OTHERS else "another modality"
        error = NotRadiographError(
            f"{name} is not a radiograph: {modality_text}.", hint=f"Give {', '.join(sorted(RADIOGRAPHS))} images."
        )
        error.reason = not_radiograph(modality) if modality in OTHERS else "another modality than a radiograph"
        raise error
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
    if "PixelRepresentation" not in ds:
        ds.PixelRepresentation = 0
    return kind


def _odd_name(name: str) -> list[str]:
    """Return a note if the suffix is that of another image format."""
    known = {suffix: format for format, suffixes in SUFFIXES.items() for suffix in suffixes}
    suffix = next((suffix for suffix in known if name.lower().endswith(suffix)), "")
    return [f"named {suffix} but DICOM"] if known.get(suffix, "DICOM") != "DICOM" else []


# the pixels


def _decode(ds: Dataset, name: str, *, raw: bool) -> np.ndarray:
    """Return the stored values: `(rows, columns)` with unused bits, or `(rows, columns, 3)` in RGB without them."""
    from pydicom.pixels.utils import pixel_array

    syntax = ds.file_meta.get("TransferSyntaxUID", "")
    known = getattr(syntax, "is_transfer_syntax", False)
    if known and syntax.is_compressed:
        _check_frame(ds, name)  # guard: jpeg_frame
    try:
        # guard: jpeg_2000
        decoder = "pillow" if syntax in JPEG_2000 else ""  # GDCM ends the process at some damaged files
        # unused bits are kept in one channel, since padding is compared with all allocated bits
        pixels = pixel_array(ds, correct_unused_bits=not raw, decoding_plugin=decoder)
    except Exception as error:  # noqa: BLE001 - each decoder has its own errors; their messages may quote the file
        if syntax == JPEG_12_BIT and int(ds.BitsStored) > 8:  # guard: twelve_bit
            reason, hint = "12-bit JPEG is not supported by any available decoder", "Export it without compression."
        # guard: no_decoder
        elif isinstance(error, NotImplementedError) or "missing dependencies" in str(error):
            kind = getattr(syntax, "name", "unknown") if known else "unknown"
            reason = f"no decoder is installed for its compression ({kind})"
            hint = _decoder_hint(syntax)
        else:
            raise _unreadable(name, "its pixel data are damaged, truncated, or contradict its header") from None
        raise ImageError(f"{name}: {reason}.", hint=hint) from None
    shape = (int(ds.Rows), int(ds.Columns))
    if pixels.shape not in (shape, (*shape, 3)):
        raise _unreadable(name, "its pixel data contradict its header")
    return pixels


def _decoder_hint(syntax: Any) -> str:
    """Return which package to install for a compression, among those that pydicom can use."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        missing = get_decoder(syntax).missing_dependencies
    except NotImplementedError:  # no package decodes it, such as a video
        return "Export it without compression."
    packages = " ".join(missing)
    if "gdcm" in packages:
        return "pip install 'covid_fastai[dicom]', or export it without compression."
    names = re.findall(r"pylibjpeg(?:-[a-z]+)?|pyjpegls", packages)
    return f"pip install {' '.join(dict.fromkeys(names))}, or export it without compression."


def _check_frame(ds: Dataset, name: str) -> None:
    """Raise if a frame has too many parts, or another size than the header: decoders allocate memory for its own."""
    from pydicom.encaps import get_frame

    try:
        frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    except Exception:  # noqa: BLE001 - a broken sequence of fragments
        raise _unreadable(name, "its pixel data are damaged or truncated") from None
    check_structure(frame, name)
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
    for marker, position in jpeg_segments(frame):  # up to the frame header: ITU-T T.81 B.2.2
        if marker in JPEG_SIZES and position + 7 <= len(frame):
            height, width = struct.unpack(">HH", frame[position + 3 : position + 7])
            return width, height
    return None


class _UnreadableError(ImageError):
    """A damaged file."""

    reason = ""


def _unreadable(name: str, reason: str) -> ImageError:
    error = _UnreadableError(
        f"{name}, a DICOM file, cannot be read: {reason}.", hint="Export it again, or convert it to PNG with a viewer."
    )
    error.reason = reason
    return error
