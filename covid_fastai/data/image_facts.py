"""What is known of an image file: its format, size and oddities, and the limits on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from covid_fastai.errors import ImageError

__all__ = ["FORMATS", "IMAGE_SUFFIXES", "ImageFacts", "MAX_BYTES", "MAX_PIXELS", "SUFFIXES", "check_size", "name_notes"]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # no GIF (animated), no EPS, PDF or SVG (they run other programs)
MAX_PIXELS = 50_000_000  # ten times the largest radiograph of CoronaHack; decoding it takes 200 MB in 8 bits
MAX_BYTES = 8 * MAX_PIXELS  # of the file: four channels of 16 bits, not compressed
MIN_SIDE = 32  # pixels; below it no lung can be seen
MAX_ASPECT = 5.0  # longer side over shorter; beyond it no chest has been squeezed
SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "TIFF": (".tif", ".tiff")}
SUFFIXES |= {"BMP": (".bmp", ".dib"), "WEBP": (".webp",), "DICOM": (".dcm", ".dicom", ".dic")}
IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}


@dataclass(frozen=True)
class ImageFacts:
    """What a file's header and pixels say.

    Attributes:
        format: One of `FORMATS`, or `"DICOM"`.
        mode: Pillow's mode as stored, e.g. `"L"`, `"RGB"`, `"I;16"`; of DICOM the photometric interpretation.
        width: Pixels as stored, before any EXIF rotation.
        height: Pixels as stored.
        bits: Bits a channel, 1, 8, 16 or 32; of DICOM those that are stored.
        notes: What was put right or looks odd, e.g. `"EXIF orientation 6"`, `"colour"`.
    """

    format: str
    mode: str
    width: int
    height: int
    bits: int
    notes: tuple[str, ...] = ()


def name_notes(name: str, format: str) -> list[str]:
    """Return the note on a name that ends as those of another format do; none where it does not."""
    suffix = Path(name).suffix.lower()
    return [f"named {suffix} but {format}"] if suffix and suffix not in SUFFIXES[format] else []  # guard: name_notes


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise for a width and height that no radiograph has; asked before anything is decoded."""
    width, height = size
    if width * height > MAX_PIXELS:  # guard: pixels
        raise ImageError(
            f"{name} has {width} x {height} pixels, too many for a radiograph.",
            hint=f"At most {MAX_PIXELS:,} pixels are read: scale it down.",
        )
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):  # guard: sides
        raise ImageError(
            f"{name} is not an x-ray like image: {width} x {height} pixels.",
            hint=f"Each side needs {MIN_SIDE} pixels or more, the longer one at most {MAX_ASPECT:g} times the other.",
        )
