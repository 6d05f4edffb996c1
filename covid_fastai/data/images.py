"""Open any radiograph file as an 8-bit grey image, for the whole package. Needs only Pillow and numpy."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from covid_fastai.data.arrays import bits_of, samples_of_array
from covid_fastai.data.dicom import as_part_10, encode_dataset, is_dataset, read_dicom
from covid_fastai.data.file_kinds import OTHER_KIND, name_kind
from covid_fastai.data.file_structure import check_exif, check_structure
from covid_fastai.data.image_facts import FORMATS, MAX_BYTES, MAX_PIXELS, ImageFacts, check_size, name_notes
from covid_fastai.data.intensity import samples_to_grey, to_grey
from covid_fastai.data.problems import visible
from covid_fastai.data.tiff import is_misread, read_samples, refuse_misread, starts_like_tiff
from covid_fastai.errors import ImageError

__all__ = ["Readable", "describe_header", "describe_image", "not_an_image", "open_image", "open_square", "read_image"]
__all__ += ["resize_image"]

SPARE = 2  # decoded over requested pixels a side: 1 takes 18% less time and triples the difference
MIN_STD = 1.0  # standard deviation of the pixel intensities, 0 to 255; below it the image is blank
EXIF_ORIENTATION = 0x0112
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS = 256, 257, 258


@runtime_checkable
class Readable(Protocol):
    """A file object that is open in the mode "rb", or an object with the same `read` method."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes, or all remaining bytes if `size` is negative."""
        ...


@runtime_checkable
class Array(Protocol):
    """An array or a tensor of any library."""

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        """Return the values as a NumPy array."""
        ...


Source = str | os.PathLike[str] | bytes | Readable | Array | Image.Image


def open_image(source: Source, *, image_size: int | None = None) -> Image.Image:
    """Open a radiograph as 8-bit grey.

    Reads JPEG, PNG, TIFF, BMP and WebP of every mode, and DICOM with the extra `dicom`. More than 8 bits are scaled
    between the 0.5th and 99.5th percentile without isolated values such as a bright marker (`used_range`), unless a
    DICOM file states a window; transparency is composited over black, and the EXIF orientation is applied. Pillow reads
    only the upper 8 of 16 bits per channel of images with colour or transparency; they are scaled if they fill less
    than half of the range, as with a 12-bit detector. An image in memory is converted as a file with the same values.

    Args:
        source: A path, the bytes of a file, or a binary file object, read from its current position; or an image in
            memory: a Pillow image, an array or tensor `(h, w)`, `(h, w, channels)` or `(channels, h, w)` with 1 (grey),
            2 (and alpha), 3 (red, green, blue) or 4 channels of integers, booleans or floats, or a pydicom `Dataset`.
        image_size: The side in pixels that the image will be resized to, if known. A JPEG is then decoded at the
            smallest of the scales 1/8, 1/4, 1/2 and 1 that has twice as many pixels a side (see `open_square` for the
            effect).

    Returns:
        An image of mode `"L"`, `(height, width)` as the file has it after rotation, or smaller with `image_size`.

    Raises:
        ImageError: The file is missing, not a regular file, of another format, damaged, too large, has several frames,
            or cannot be a radiograph. The message names the file and the reason, `.hint` the remedy.

    Examples:
        >>> image = open_image(cohort["path"].iloc[0])
        >>> image.mode, image.size
        ('L', (64, 64))
    """
    return _read(source, image_size, "the image in memory")[0]


def open_square(source: Source, image_size: int) -> Image.Image:
    """Open a radiograph as an 8-bit grey square, the input of models, saliency maps and thumbnails.

    This is a faster `resize_image(open_image(source), image_size)`. On CoronaHack's files at full resolution, the mean
    absolute difference is 0.2 grey levels of 255 at 224 and 256 pixels, and 0.4 at 128; the largest mean over one image
    is 1, 1 and 2.1. Single pixels at hard edges, such as burned-in letters, differ by up to 70 (measured by
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
    """Return the facts of an image file, with the corrections that `open_image` makes.

    Args:
        source: As for `open_image`.

    Returns:
        The facts.

    Raises:
        ImageError: As for `open_image`.
    """
    return _read(source, None, "the image in memory")[1]


def describe_header(source: Source) -> ImageFacts:
    """Return the facts of an image file that its header states, without decoding what Pillow reads.

    Args:
        source: As for `open_image`.

    Returns:
        The facts; `notes` are those of `describe_image` for a file that has to be decoded, and otherwise empty.

    Raises:
        ImageError: As for `open_image`, but pixels that are damaged or blank are not noticed.
    """
    if isinstance(source, (Image.Image, Array)) or is_dataset(source):
        return describe_image(source)
    name, content = _content(source)
    if as_part_10(content) is None:
        with io.BytesIO(content) as file:
            stored = _open_header(file, name, content)
            if stored is not None:
                with stored:
                    _check_header(stored, name)
                    return _stored_facts(stored)
    return describe_image(source)


def read_image(
    source: Source, *, image_size: int | None = None, name: str | None = None
) -> tuple[Image.Image, ImageFacts]:
    """Open a radiograph and return it with its facts, decoded once; see `open_image` and `describe_image`.

    Args:
        source: As for `open_image`.
        image_size: As for `open_image`.
        name: The name in messages of an image in memory; the name of a file is its path.

    Returns:
        The image of mode `"L"`, and its facts.

    Raises:
        ImageError: As for `open_image`.
    """
    return _read(source, image_size, name or "the image in memory")


def resize_image(image: Image.Image, image_size: int) -> Image.Image:
    """Resize an image to a square without keeping its aspect ratio, bilinear with antialiasing.

    Training and prediction both use this function.

    Args:
        image: Mode `"L"`.
        image_size: Side of the square, pixels.

    Returns:
        The image, `(image_size, image_size)`.
    """
    if image.size == (image_size, image_size):
        return image
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR)


def _read(source: Source, image_size: int | None, memory_name: str) -> tuple[Image.Image, ImageFacts]:
    if isinstance(source, Image.Image):
        return _from_stored(source, memory_name, None)
    if is_dataset(source):
        return _read_dicom(encode_dataset(source, memory_name), memory_name)
    if isinstance(source, Array):
        samples = samples_of_array(source, memory_name)
        return _from_samples(samples, memory_name, bits=bits_of(samples.dtype), format="memory")
    name, content = _content(source)
    if as_part_10(content) is not None:
        return _read_dicom(content, name)
    check_structure(content, name)
    with io.BytesIO(content) as file:
        stored = _open_header(file, name, content)
        if stored is not None:
            with stored:
                return _from_stored(stored, name, image_size)
    samples, bits, white_is_zero = read_samples(content, name)
    return _from_samples(samples, name, bits=bits, format="TIFF", white_is_zero=white_is_zero)


def _read_dicom(content: bytes, name: str) -> tuple[Image.Image, ImageFacts]:
    grey, facts = read_dicom(content, name)
    _check_not_blank(grey, name)
    return grey, facts


def _from_stored(stored: Image.Image, name: str, image_size: int | None) -> tuple[Image.Image, ImageFacts]:
    """Convert an image that Pillow has opened, from a file or by the user; the latter is not decoded at a scale."""
    _check_header(stored, name)
    if isinstance(stored, TiffImageFile) and is_misread(stored):
        refuse_misread(stored, name)
    facts = _stored_facts(stored)
    orientation = _orientation(stored, name)
    if image_size is not None:
        _reduce(stored, image_size)
    try:
        stored.load()
        grey, notes = to_grey(stored, facts.bits)
    except Exception as error:  # a damaged file makes decoders raise nearly anything; guard: decode
        raise _damaged(name, error) from error
    if orientation in _TURNS:  # guard: orientation
        if facts.format != "TIFF":  # Pillow rotates a TIFF on loading
            grey = grey.transpose(_TURNS[orientation])
        notes.append(f"EXIF orientation {orientation}")
    return _finish(grey, facts, notes, name)


def _from_samples(
    samples: np.ndarray, name: str, *, bits: int, format: str, white_is_zero: bool = False
) -> tuple[Image.Image, ImageFacts]:
    """Convert the samples of an array, or of a TIFF file that Pillow does not read."""
    height, width = samples.shape[:2]
    check_size((width, height), name)
    try:
        grey, notes = samples_to_grey(samples, bits=bits, white_is_zero=white_is_zero)
    except ValueError as error:  # no finite value
        raise _damaged(name, error) from error
    return _finish(grey, ImageFacts(format, str(samples.dtype), width, height, bits), notes, name)


def _finish(grey: Image.Image, facts: ImageFacts, notes: list[str], name: str) -> tuple[Image.Image, ImageFacts]:
    _check_not_blank(grey, name)
    return grey, replace(facts, notes=(*notes, *name_notes(name, facts.format)))


def _reduce(stored: Image.Image, image_size: int) -> None:
    """Request a reduced scale for decoding a JPEG; libjpeg drops high cosine frequencies, so there is no aliasing.

    The colours of a colour JPEG are decoded too, because they identify screenshots.
    """
    # guard: luminance
    luminance = "jfif" in stored.info or stored.info.get("adobe_transform") == 1  # else the channels may be R, G, B
    if stored.format == "JPEG" and (stored.mode == "L" or stored.mode == "RGB" and luminance):
        side = SPARE * image_size
        stored.draft("L" if stored.mode == "L" else "YCbCr", (side, side))


def _damaged(name: str, error: Exception) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError(
            f"{name}: out of memory when reading it.", hint="Scale it down, or read fewer images at once."
        )
    reason = str(error).rstrip(".") or type(error).__name__
    return ImageError(
        f"{name}: the image data are damaged or truncated ({reason}).", hint="Download the file again, or leave it out."
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


def not_an_image(value: object) -> ImageError:
    """Return the error for an object from which no image can be read."""
    hint = "Give a path, the bytes of a file, an open file, an array, a Pillow image or a pydicom Dataset."
    return ImageError(f"An object of the type {type(value).__name__} is not an image.", hint=hint)


def _content(source: Source) -> tuple[str, bytes]:
    """Return a name for messages and the file's bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the image", bytes(source)
    if isinstance(source, Readable):
        return _file_content(source)
    if not isinstance(source, (str, os.PathLike)):
        raise not_an_image(source)
    name = _printable(os.fspath(source))
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):  # checked first, because opening a FIFO blocks; guard: fifo
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise ImageError(f"{name} is {kind}, not a file.", hint="Give an image file.")
        _check_bytes(status.st_size, name)
        # a file of the kernel has no size, and may never end; guard: no_size
        return name, _read_bytes(source, status.st_size, name) if status.st_size else b""
    except FileNotFoundError as error:
        if os.path.islink(source):  # guard: dead_link
            raise ImageError(
                f"{name} is a link to a missing file.", hint="Restore the file that it points to."
            ) from error
        raise ImageError(f"{name} is missing.", hint="Correct the name, or download the file.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(f"{name} cannot be read: {error}.", hint="Check the name and the permissions.") from error


def _read_bytes(source: str | os.PathLike[str], size: int, name: str) -> bytes:
    """Return the content of a file of a known size; one that grows meanwhile may never end."""
    with open(source, "rb") as file:
        content = file.read(size + 1)
    if len(content) > size:  # guard: growing
        raise ImageError(f"{name} grows while it is read.", hint="Wait until it is complete.")
    return content


def _file_content(file: Readable) -> tuple[str, bytes]:
    name = getattr(file, "name", None)  # None or a number for a file without a name
    name = _printable(name) if isinstance(name, (str, bytes)) else "the image"
    try:
        content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: closed, or not valid text
        raise ImageError(f"{name} cannot be read: {error}.", hint='Open the file in the mode "rb".') from error
    if not isinstance(content, bytes):
        raise ImageError(f"{name} is open as text.", hint='Open the file in the mode "rb".')
    _check_bytes(len(content), name)
    return name, content


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_BYTES:  # guard: bytes
        raise ImageError(
            f"{name} is too large to be a radiograph.", hint=f"Files may have at most {MAX_BYTES:,} bytes."
        )


def _printable(name: str | bytes) -> str:
    return visible(os.fsdecode(name))  # guard: printable


def _open_header(file: io.BytesIO, name: str, content: bytes) -> ImageFile.ImageFile | None:
    """Return an opened image; None for a TIFF file that Pillow cannot read or misreads."""
    try:
        stored = Image.open(file, formats=FORMATS)  # guard: formats
        return None if isinstance(stored, TiffImageFile) and is_misread(stored) else stored  # guard: misread
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} is too large to be a radiograph ({error}).", hint=f"Images may have at most {MAX_PIXELS:,} pixels."
        ) from error
    except UnidentifiedImageError as error:
        if starts_like_tiff(content):
            return None
        raise ImageError(f"{name} is {name_kind(content)}.", hint=OTHER_KIND) from error
    except Exception as error:  # a damaged header makes Pillow raise nearly anything; guard: header_error
        raise _damaged(name, error) from error


def _check_header(stored: Image.Image, name: str) -> None:
    check_size(stored.size, name)
    try:
        frames = getattr(stored, "n_frames", 1)
    except Exception as error:  # Pillow reads the header of every frame of a TIFF to count them
        raise _damaged(name, error) from error
    if frames > 1:  # guard: frames
        raise ImageError(f"{name} holds {frames} images.", hint="Save the image to use as a separate file.")


def _stored_facts(stored: Image.Image) -> ImageFacts:
    """Return the facts of an image that is not decoded yet."""
    return ImageFacts(str(stored.format or "memory"), stored.mode, *_stored_size(stored), _bits(stored))


def _stored_size(stored: Image.Image) -> tuple[int, int]:
    if isinstance(stored, TiffImageFile):
        return stored.tag_v2[TIFF_WIDTH], stored.tag_v2[TIFF_HEIGHT]  # `size` is the size after rotation
    return stored.size


def _bits(stored: Image.Image) -> int:
    if stored.mode == "1":
        return 1
    if stored.mode.startswith("I;16"):
        return 16
    if stored.mode == "I":
        return 16 if stored.format == "PNG" or _has_raw_16(stored) else 32  # Pillow opens some 16-bit files in mode I
    if stored.mode == "F":
        return 32
    return 16 if stored.format in ("PNG", "TIFF") and _has_raw_16(stored) else 8


def _has_raw_16(stored: Image.Image) -> bool:
    """Return whether the file has 16 bits per channel, e.g. `"RGB;16B"`, which Pillow's mode does not show."""
    if isinstance(stored, TiffImageFile):
        return max(stored.tag_v2.get(TIFF_BITS, (1,))) == 16
    tile = getattr(stored, "tile", None)  # of a file that is not decoded yet
    return bool(tile) and ";16" in str(tile[0].args)


def _orientation(stored: Image.Image, name: str) -> int:
    check_exif(_exif_data(stored), name)
    try:
        return int(stored.getexif().get(EXIF_ORIENTATION, 1))
    # guard: exif
    except Exception:  # noqa: BLE001 - damaged EXIF makes Pillow raise nearly anything; the pixels can still be read
        return 1


def _exif_data(stored: Image.Image) -> bytes:
    """Return the EXIF data of an opened image as the file has them; empty if there are none."""
    try:
        if stored.format == "PNG":
            stored.load()  # EXIF data may follow the pixels
        profile = stored.info.get("Raw profile type exif", "")  # ImageMagick's, in hexadecimal after three lines
        return stored.info.get("exif") or bytes.fromhex("".join(profile.split("\n")[3:]))
    except Exception:  # noqa: BLE001 - a damaged file makes Pillow raise nearly anything; decoding reports it
        return b""


def _check_not_blank(grey: Image.Image, name: str) -> None:
    counts, levels = np.array(grey.histogram(), dtype=np.float64), np.arange(256)
    mean = np.average(levels, weights=counts)
    std = float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
    if std < MIN_STD:  # guard: blank
        raise ImageError(
            f"{name} does not look like a radiograph: it is blank (standard deviation {std:.2f} of 255).",
            hint="Put the real image in its place, or leave it out.",
        )
