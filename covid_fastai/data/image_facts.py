"""Facts about an image file (format, size, notes), and the limits on its size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from covid_fastai.errors import ImageError

__all__ = ["FORMATS", "ImageFacts", "MAX_BYTES", "MAX_PIXELS", "SUFFIXES", "check_size", "name_notes"]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # no GIF (animated), no EPS, PDF or SVG (they can run other programs)
MAX_PIXELS = 50_000_000  # ten times the largest radiograph of CoronaHack; decoding it takes 200 MB in 8 bits
MAX_BYTES = 8 * MAX_PIXELS  # per file: four uncompressed channels of 16 bits
MIN_SIDE = 32  # pixels; smaller images show no lung
MAX_ASPECT = 5.0  # longer side over shorter; no chest radiograph is narrower
SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "TIFF": (".tif", ".tiff")}
SUFFIXES |= {"BMP": (".bmp", ".dib"), "WEBP": (".webp",), "DICOM": (".dcm", ".dicom", ".dic")}


@dataclass(frozen=True)
class ImageFacts:
    """Facts from a file's header and pixels.

    Attributes:
        format: One of `FORMATS`, `"DICOM"`, or `"memory"` for an image that was given without a file.
        mode: Pillow's mode as stored, e.g. `"L"`, `"RGB"`, `"I;16"`; the photometric interpretation for DICOM; the type
            of the samples, such as `"float16"`, for an array and for a TIFF file that Pillow does not read.
        width: Pixels as stored, before any EXIF rotation.
        height: Pixels as stored.
        bits: Bits per channel: 1, 8, 16, 32 or 64; the stored bits for DICOM.
        notes: Corrections and unusual properties, e.g. `"EXIF orientation 6"`, `"colour"`.
        view: The projection that a DICOM header states: `PA`, `AP` or `frontal`, perhaps with the position of the
            patient, `L` for lateral, `other`; `""` if none is stated.
        modality: The modality that a DICOM header states, such as `DX`; else `""`.
        body_part: What a DICOM header states about the part of the body: `chest` or `other`; else `""`.
    """

    format: str
    mode: str
    width: int
    height: int
    bits: int
    notes: tuple[str, ...] = ()
    view: str = ""
    modality: str = ""
    body_part: str = ""


def name_notes(name: str, format: str) -> list[str]:
    """Return a note if a file name has the suffix of another format, else an empty list."""
    suffix = Path(name).suffix.lower() if format in SUFFIXES else ""
    return [f"named {suffix} but {format}"] if suffix and suffix not in SUFFIXES[format] else []  # guard: name_notes


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise `ImageError` for a width and height that no radiograph has; called before decoding."""
    width, height = size
    if width * height > MAX_PIXELS:  # guard: pixels
        raise ImageError(
            f"{name} has {width} x {height} pixels, too many for a radiograph.",
            hint=f"Scale it down to at most {MAX_PIXELS:,} pixels.",
        )
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):  # guard: sides
        raise ImageError(
            f"{name} does not look like a radiograph: {width} x {height} pixels.",
            hint=f"Each side needs at least {MIN_SIDE} pixels, the longer at most {MAX_ASPECT:g} times the shorter.",
        )
