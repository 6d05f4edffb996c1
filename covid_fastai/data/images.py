"""The one opener of the whole package: any radiograph file to an 8-bit grey image. Needs Pillow and numpy only."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from covid_fastai.data.image_facts import FORMATS, MAX_BYTES, MAX_PIXELS, ImageFacts, check_size, name_notes
from covid_fastai.data.intensity import to_grey
from covid_fastai.errors import ImageError
from covid_fastai.plotting import encode_png

__all__ = ["Readable", "describe_image", "encode_in_memory", "open_image", "open_square", "read_image", "resize_image"]

SPARE = 2  # times the pixels a side that are asked for: 1 takes 18% less time, and differs by three times as much
MIN_SPREAD = 1.0  # standard deviation in grey levels of 0 to 255; below it the image is blank
SNIFFED = 64  # bytes that tell what a file really is
EXIF_ORIENTATION = 0x0112
TIFF_WIDTH, TIFF_HEIGHT = 256, 257


@runtime_checkable
class Readable(Protocol):
    """A file object that is open in the mode "rb", or anything that is read like one."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes, all of the rest where negative."""
        ...


Source = str | os.PathLike[str] | bytes | Readable


def open_image(source: Source, *, image_size: int | None = None) -> Image.Image:
    """Open a radiograph as 8-bit grey.

    Reads JPEG, PNG, TIFF, BMP and WebP of every mode, and DICOM with the extra `dicom`: more than 8 bits are scaled
    between the 0.5th and 99.5th percentile (unless a DICOM file says otherwise), transparency is laid over black, and
    the EXIF orientation is applied. Of 16 bits a channel in colour or with transparency Pillow reads the upper 8 only;
    they are scaled where they do not fill half of the range, as those of a detector with 12 bits.

    Args:
        source: A path, the bytes of a file, or a binary file object, read from where it stands.
        image_size: The side in pixels that the picture will be squashed to, where that is known: a JPEG is then decoded
            no larger than needed, at the smallest of its scales 1/8, 1/4, 1/2 and 1 that has twice as many pixels a
            side (see `open_square` for what that changes).

    Returns:
        An image of mode `"L"`, `(height, width)` as the file has it after rotation, or smaller with `image_size`.

    Raises:
        ImageError: The file is missing, not a regular file, of another format, damaged, too large, of several frames,
            or no picture that could be a radiograph. The message names the file and the reason, `.hint` the remedy.

    Examples:
        >>> image = open_image(cohort["path"].iloc[0])
        >>> image.mode, image.size
        ('L', (64, 64))
    """
    return _read(source, image_size)[0]


def open_square(source: Source, image_size: int) -> Image.Image:
    """Open a radiograph as the 8-bit grey square that models, maps and thumbnails are made of.

    This is `resize_image(open_image(source), image_size)`, faster: on CoronaHack's files at full resolution the two
    differ by 0.2 grey levels of 255 on average at 224 and 256 pixels and by 0.4 at 128, at most by 1, 1 and 2.1 on
    average over one image; single pixels at hard edges, such as burned-in letters, by up to 70 (measured by
    `tests/data/test_images.py`, marked realdata).

    Args:
        source: As for `open_image`.
        image_size: Side of the square, pixels.

    Returns:
        An image of mode `"L"`, `(image_size, image_size)`.

    Raises:
        ImageError: As for `open_image`.
    """
    return resize_image(open_image(source, image_size=image_size), image_size)


def describe_image(source: Source) -> ImageFacts:
    """Say what a file is and what `open_image` puts right in it.

    Args:
        source: As for `open_image`.

    Returns:
        The facts.

    Raises:
        ImageError: As for `open_image`.
    """
    return _read(source, None)[1]


def read_image(source: Source, *, image_size: int | None = None) -> tuple[Image.Image, ImageFacts]:
    """Open a radiograph and return it with its facts, for one decode; see `open_image` and `describe_image`."""
    return _read(source, image_size)


def resize_image(image: Image.Image, image_size: int) -> Image.Image:
    """Squash an image to a square, bilinear with antialiasing, as training and prediction both do.

    Args:
        image: Mode `"L"`.
        image_size: Side of the square, pixels.

    Returns:
        The image, `(image_size, image_size)`.
    """
    if image.size == (image_size, image_size):
        return image
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR)


def _read(source: Source, image_size: int | None) -> tuple[Image.Image, ImageFacts]:
    name, content = _content(source)
    if content[128:132] == b"DICM":
        from covid_fastai.data.dicom import read_dicom  # an extra, and as heavy to import as all the rest

        grey, facts = read_dicom(content, name)
        _check_picture(grey, name)
        return grey, facts
    with io.BytesIO(content) as file:
        stored = _open_header(file, name, content)
        with stored:
            _check_header(stored, name)
            facts = ImageFacts(str(stored.format), stored.mode, *_stored_size(stored), _bits(stored))
            orientation = _orientation(stored)
            if image_size is not None:
                _reduce(stored, image_size)
            try:
                stored.load()
                grey, notes = to_grey(stored, facts.bits)
            except Exception as error:  # a damaged file makes decoders raise nearly anything; guard: decode
                raise _damaged(name, error) from error
    if orientation in _TURNS:  # guard: orientation
        if facts.format != "TIFF":  # Pillow turns a TIFF itself, on loading
            grey = grey.transpose(_TURNS[orientation])
        notes.append(f"EXIF orientation {orientation}")
    _check_picture(grey, name)
    notes += name_notes(name, facts.format)
    return grey, replace(facts, notes=tuple(notes))


def _reduce(stored: Image.Image, image_size: int) -> None:
    """Let a JPEG be decoded at a reduced scale: by whole cosines, which costs no aliasing, and without its colours.

    The colours of one that has them are decoded too, for nothing else tells a screenshot.
    """
    # guard: luminance
    luminance = "jfif" in stored.info or stored.info.get("adobe_transform") == 1  # else the channels may be R, G, B
    if stored.format == "JPEG" and (stored.mode == "L" or stored.mode == "RGB" and luminance):
        side = SPARE * image_size
        stored.draft("L" if stored.mode == "L" else "YCbCr", (side, side))


def _damaged(name: str, error: Exception) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError(f"{name}: to read it takes more memory than there is.", hint="Scale it down, or read fewer.")
    reason = str(error).rstrip(".") or type(error).__name__
    return ImageError(
        f"{name}: the image data are damaged or truncated ({reason}).", hint="Fetch the file anew, or leave it out."
    )


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _content(source: Source) -> tuple[str, bytes]:
    """Return a name for messages and the file's bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the image", bytes(source)
    if isinstance(source, Readable):
        return _file_content(source)
    name = _printable(os.fspath(source))
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):  # looked at before opening: to open a FIFO waits for ever; guard: fifo
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise ImageError(f"{name} is {kind}, not a file.", hint="Name an image file.")
        _check_bytes(status.st_size, name)
        return name, Path(source).read_bytes()
    except FileNotFoundError as error:
        if os.path.islink(source):  # guard: dead_link
            raise ImageError(f"{name} is a link to nothing.", hint="Restore the file that it points to.") from error
        raise ImageError(f"{name} is missing.", hint="Correct the name, or fetch the file.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(f"{name} cannot be read: {error}.", hint="Check the name and the permissions.") from error


def _file_content(file: Readable) -> tuple[str, bytes]:
    name = getattr(file, "name", None)  # None or a number for a file without a name
    name = _printable(name) if isinstance(name, (str, bytes)) else "the image"
    try:
        content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: closed, or text that is none
        raise ImageError(f"{name} cannot be read: {error}.", hint='Open the file in the mode "rb".') from error
    if not isinstance(content, bytes):
        raise ImageError(f"{name} is open as text.", hint='Open the file in the mode "rb".')
    _check_bytes(len(content), name)
    return name, content


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_BYTES:  # guard: bytes
        raise ImageError(f"{name} is too large to be a radiograph.", hint=f"At most {MAX_BYTES:,} bytes are read.")


def _printable(name: str | bytes) -> str:
    return os.fsdecode(name).encode("utf-8", "backslashreplace").decode()  # guard: printable


def _open_header(file: io.BytesIO, name: str, content: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(file, formats=FORMATS)  # guard: formats
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} is too large to be a radiograph ({error}).", hint=f"At most {MAX_PIXELS:,} pixels are read."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is {_sniff(content)}.", hint=_SNIFF_HINT) from error
    except Exception as error:  # so does a damaged header; guard: header_error
        raise _damaged(name, error) from error


_SNIFF_HINT = "Put the real image in its place (JPEG, PNG, TIFF, BMP, WebP or DICOM), or leave it out."


def _sniff(content: bytes) -> str:
    """Say what a file is that is no image of an allowed format."""
    start = content[:SNIFFED]
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not content:  # guard: sniff_empty
        return "empty, 0 bytes"
    if start.startswith(b"version https://git-lfs"):  # guard: sniff_lfs
        return "a Git LFS pointer, not the image itself"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):  # guard: sniff_html
        return "an HTML page, not an image"
    if start.startswith((b"GIF8", b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6")) or text.startswith((b"<svg", b"<?xml")):
        return "of a format that is not read (GIF, PDF, EPS, SVG)"  # guard: sniff_other
    if start.startswith((b"\xff\xd8", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF")):
        return f"damaged: it begins like an image and ends after {len(content)} bytes"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return "a text file, not an image"  # guard: sniff_text
    return "not an image of a known format"  # guard: sniff_unknown


def _check_header(stored: Image.Image, name: str) -> None:
    check_size(stored.size, name)
    try:
        frames = getattr(stored, "n_frames", 1)
    except Exception as error:  # to count the images of a TIFF, Pillow reads the header of each
        raise _damaged(name, error) from error
    if frames > 1:  # guard: frames
        raise ImageError(f"{name} holds {frames} images.", hint="Save the one that is meant as a file of its own.")


def _stored_size(stored: Image.Image) -> tuple[int, int]:
    if isinstance(stored, TiffImageFile):
        return stored.tag_v2[TIFF_WIDTH], stored.tag_v2[TIFF_HEIGHT]  # `size` is that after the rotation
    return stored.size


def _bits(stored: ImageFile.ImageFile) -> int:
    if stored.mode == "1":
        return 1
    if stored.mode.startswith("I;16"):
        return 16
    if stored.mode == "I":
        return 16 if stored.format == "PNG" or _has_raw_16(stored) else 32  # Pillow opens some 16-bit files as I
    if stored.mode == "F":
        return 32
    return 16 if stored.format in ("PNG", "TIFF") and _has_raw_16(stored) else 8


def _has_raw_16(stored: ImageFile.ImageFile) -> bool:
    """Say whether the file has 16 bits a channel where Pillow's mode does not tell: as in `"RGB;16B"`."""
    return bool(stored.tile) and ";16" in str(stored.tile[0].args)


def _orientation(stored: Image.Image) -> int:
    try:
        return int(stored.getexif().get(EXIF_ORIENTATION, 1))
    # guard: exif
    except Exception:  # noqa: BLE001 - damaged EXIF makes Pillow raise nearly anything, and says nothing of the picture
        return 1


def encode_in_memory(image: Image.Image | np.ndarray, *, name: str = "The image in memory") -> bytes:
    """Return an image in memory as the bytes of a lossless file, so that the one opener treats its mode and depth.

    Args:
        image: An image, or an array of 8- or 16-bit integers.
        name: What an error calls it.

    Returns:
        The bytes of a PNG file.

    Raises:
        ImageError: It is no image, or of a mode or type that no lossless file holds.
    """
    try:
        return encode_png(image)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise ImageError(
            f"{name} cannot be read as a radiograph: {error}.", hint="Give a file, its bytes, or 8- or 16-bit integers."
        ) from error


def _check_picture(grey: Image.Image, name: str) -> None:
    counts, levels = np.array(grey.histogram(), dtype=np.float64), np.arange(256)
    mean = np.average(levels, weights=counts)
    spread = float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
    if spread < MIN_SPREAD:  # guard: blank
        raise ImageError(
            f"{name} is not an x-ray like image: it is blank (standard deviation {spread:.2f} of 255).",
            hint="Put the real image in its place, or leave it out.",
        )
