"""TIFF files whose samples Pillow misreads or does not read, such as half floats or planes of 16 bits."""

from __future__ import annotations

import io
import logging
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from covid_fastai.data.image_facts import MAX_BYTES, check_size
from covid_fastai.errors import ImageError

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = ["is_misread", "is_white_zero", "read_samples", "refuse_misread", "samples_of_tiff", "starts_like_tiff"]

BITS, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 259, 262, 284, 339  # tags
WHITE_IS_ZERO = 0  # a photometric interpretation; Pillow inverts it for up to 8 bits only
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # sample formats
UNCOMPRESSED, DEFLATE = 1, {8, 32946}  # compressions
SEPARATE = 2  # a planar configuration: one plane a channel
GREY, RGB = (0, 1), 2  # photometric interpretations
UNASSOCIATED = (
    2  # the extra sample alpha. Associated alpha is already in the colours; TIFF 6.0 lets readers ignore others
)
KINDS = {UNSIGNED: "unsigned integers", SIGNED: "signed integers", FLOAT: "floats"}
MAX_TILE = 1 << 24  # bytes; 2048 x 2048 floats
HINT = "Save it as a PNG of 16 bits, or as a TIFF of 16 bits without compression."


def starts_like_tiff(content: bytes) -> bool:
    """Return whether the content of a file starts as TIFF or BigTIFF does."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_misread(stored: TiffImageFile) -> bool:
    """Return whether Pillow opens a TIFF file and then decodes other values than the stored ones.

    Compared with tifffile for every kind of sample, byte order, compression and planar configuration
    (`tests/data/test_tiff.py`).
    """
    kind, bits, channels = _kind(stored)
    if stored.tag_v2.get(PLANAR) == SEPARATE and channels > 1 and (bits > 8 or channels == 2):
        return True
    swapped = stored.tag_v2.prefix == b"MM" and stored.tag_v2.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
    return swapped and bits > 8 and (kind, bits) != (UNSIGNED, 16)  # their bytes are swapped twice


def samples_of_tiff(stored: TiffImageFile) -> np.ndarray | None:
    """Return the samples of a loaded TIFF file of a kind that Pillow loads as another; None for any other kind."""
    kind, bits, channels = _kind(stored)
    if channels == 1 and (kind, bits) == (SIGNED, 8):
        return np.asarray(stored).view(np.int8)  # guard: signed_8
    if channels == 1 and (kind, bits) == (UNSIGNED, 32):
        return np.asarray(stored).view(np.uint32)  # guard: unsigned_32
    return None


def is_white_zero(stored: Image.Image) -> bool:
    """Return whether the lowest value of a TIFF file is white."""
    return isinstance(stored, TiffImageFile) and stored.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO


def refuse_misread(stored: TiffImageFile, name: str) -> None:
    """Raise for an opened TIFF file that Pillow misreads, of which no bytes are at hand.

    Raises:
        ImageError: Always; the message names the kind of its samples.
    """
    kind, bits, channels = _kind(stored)
    raise ImageError(
        f"{name} has {_text(kind, bits, channels)}, which Pillow decodes wrongly.",
        hint="Give the path of the file, or its bytes, instead of the opened image.",
    )


def read_samples(content: bytes, name: str) -> tuple[np.ndarray, int, bool]:
    """Return the samples of a TIFF file that Pillow cannot read.

    Args:
        content: The bytes of the file.
        name: Name of the file, for messages.

    Returns:
        `(h, w)` or `(h, w, channels)`, with an alpha channel last; the bits per channel; whether zero is white.

    Raises:
        ImageError: The file is damaged, too large, has several images, or samples of a kind that is not read.
    """
    try:
        import tifffile
    except ImportError as error:  # an installation from before it became a requirement
        raise ImageError(
            f"{name} has samples of a kind that only the package tifffile reads, which is not installed.",
            hint="pip install tifffile",
        ) from error
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # its warnings about damaged files would reach the terminal
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            frames, page = len(file.pages), file.pages.first
            check_size((page.imagewidth, page.imagelength), name)
            if frames > 1:
                raise ImageError(f"{name} holds {frames} images.", hint="Save the image to use as a separate file.")
            _check_kind(page, name)
            _check_segments(content, page, name)
            samples = _ordered(page.asarray(), page)
            if samples.ndim not in (2, 3) or samples.shape[:2] != (page.imagelength, page.imagewidth):
                raise ValueError("its header contradicts itself")  # guard: sample_shape
    except ImageError:
        raise
    except Exception as error:  # a damaged file makes tifffile raise nearly anything
        raise ImageError(
            f"{name}: the image data are damaged or truncated ({str(error).rstrip('.')}).",
            hint="Download the file again, or leave it out.",
        ) from error
    return samples, page.bitspersample, page.photometric == WHITE_IS_ZERO


def _kind(stored: TiffImageFile) -> tuple[int, int, int]:
    """Return sample format, bits per sample and number of channels."""
    tags = stored.tag_v2
    bits = tags.get(BITS, (1,))
    kind = tags.get(SAMPLE_FORMAT, (UNSIGNED,))
    return max(kind), max(bits), len(bits)


def _text(kind: int, bits: int, channels: int) -> str:
    several = f" in {channels} channels" if channels > 1 else ""
    return f"samples of {bits} bits ({KINDS.get(kind, f'sample format {kind}')}){several}"


def _check_kind(page: TiffPage, name: str) -> None:
    """Raise for kinds of samples that are no intensities, or that cannot be decoded."""
    kind, bits, channels = int(page.sampleformat), page.bitspersample, page.samplesperpixel
    text = _text(kind, bits, channels)
    if kind not in KINDS or page.dtype is None or page.dtype.kind not in "uif":  # guard: sample_kind
        raise ImageError(f"{name} has {text}, which are no intensities.", hint=HINT)
    if page.photometric not in (*GREY, RGB) or (page.photometric == RGB and channels < 3):
        raise ImageError(f"{name} has {text} and the photometric interpretation {page.photometric}.", hint=HINT)
    if page.compression != UNCOMPRESSED and page.compression not in DEFLATE:
        compression = getattr(page.compression, "name", page.compression)
        raise ImageError(f"{name} has {text} with the compression {compression}, which is not read.", hint=HINT)
    if page.nbytes > MAX_BYTES:
        raise ImageError(
            f"{name} is too large to be a radiograph.", hint=f"Images may have at most {MAX_BYTES:,} bytes in memory."
        )


def _check_segments(content: bytes, page: TiffPage, name: str) -> None:
    """Raise if the compressed segments hold more than the image, before tifffile decompresses them without a limit."""
    if page.compression == UNCOMPRESSED:
        return
    left = 2 * page.nbytes + MAX_TILE  # tiles may reach beyond the edges of the image
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        left -= len(zlib.decompressobj().decompress(content[offset : offset + size], max(1, left)))
        if left <= 0:  # guard: tiff_bomb
            raise ImageError(f"{name}: its compressed data hold more than the image.", hint="Leave it out.")


def _ordered(samples: np.ndarray, page: TiffPage) -> np.ndarray:
    """Return the samples in the byte order of the machine, channels last, without extra samples other than alpha."""
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    channels = page.samplesperpixel
    if channels == 1:
        return samples.reshape(page.imagelength, page.imagewidth)
    if page.planarconfig == SEPARATE:
        samples = np.moveaxis(samples, 0, -1)
    colours = 3 if page.photometric == RGB else 1
    alpha = [colours + n for n, extra in enumerate(page.extrasamples) if extra == UNASSOCIATED][:1]
    samples = samples[..., [*range(colours), *alpha]]
    return samples[..., 0] if samples.shape[-1] == 1 else samples
