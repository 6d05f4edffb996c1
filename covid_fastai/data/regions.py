"""The region of an image that a model sees: the whole frame, or a crop to the lungs.

Training and prediction use the same functions, so that a model sees the same pixels in both.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from covid_fastai.data.images import Source, open_image, resize_image
from covid_fastai.data.lungs import Lungs, find_lungs, model_digest
from covid_fastai.options import Region

__all__ = [
    "CROP_COLUMNS",
    "Crop",
    "FRAME",
    "crop_of",
    "crop_of_row",
    "crop_square",
    "decoded_size",
    "open_region",
    "pack_region",
    "region_version",
    "unpack_region",
]

MARGIN = 0.06  # of the box's width and height, on each side: the pleura and the chest wall beside the lungs
RULES = 2  # increase with every change of the margin, or of the rules in `data/lungs.py` that decide the box


class Crop(NamedTuple):
    """The part of an image that a model sees, as fractions of the image's width and height.

    Attributes:
        left: Left edge, 0 to 1.
        top: Top edge, 0 to 1.
        right: Right edge, 0 to 1.
        bottom: Bottom edge, 0 to 1.
        reason: Why this is the whole frame although a crop to the lungs was wanted; empty otherwise.
    """

    left: float
    top: float
    right: float
    bottom: float
    reason: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether the crop is the whole image."""
        return self[:4] == (0.0, 0.0, 1.0, 1.0)

    def used(self, region: Region) -> Region:
        """Return what is used for an image where `region` is wanted."""
        return "frame" if self.reason else region

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom in pixels of an image; not rounded."""
        return self.left * width, self.top * height, self.right * width, self.bottom * height


FRAME = Crop(0.0, 0.0, 1.0, 1.0)
CROP_COLUMNS = ["region_left", "region_top", "region_right", "region_bottom"]  # of predictions


def crop_of(lungs: Lungs) -> Crop:
    """Return the crop to segmented lungs, with a margin; the whole frame where the segmentation is not usable.

    Args:
        lungs: The lungs of the image.
    """
    if not lungs.usable or lungs.box is None:  # guard: no_lungs_no_crop
        return FRAME._replace(reason=f"The lungs were not found, so the whole image is used. {lungs.remark}")
    left, top, right, bottom = lungs.box
    across, down = MARGIN * (right - left), MARGIN * (bottom - top)
    return Crop(max(0.0, left - across), max(0.0, top - down), min(1.0, right + across), min(1.0, bottom + down))


def crop_of_row(row: Mapping[Any, Any]) -> Crop:
    """Return the crop that a row of `Predictor.predict` states; the whole frame for a model that sees whole images.

    Args:
        row: The row by column.
    """
    if CROP_COLUMNS[0] not in row:
        return FRAME
    left, top, right, bottom = (float(row[name]) for name in CROP_COLUMNS)
    return Crop(left, top, right, bottom)


def decoded_size(image_size: int, region: Region) -> int:
    """Return the `image_size` of `open_image` for a region: a crop needs more pixels of the whole image."""
    return image_size if region == "frame" else 2 * image_size


def crop_square(grey: Image.Image, image_size: int, crop: Crop) -> Image.Image:
    """Crop an image and squash it to a square, bilinear with antialiasing, in one interpolation.

    Args:
        grey: The image that `open_image` returned for `decoded_size`, mode `"L"`.
        image_size: Side of the square, pixels.
        crop: The part of the image.

    Returns:
        The image, `(image_size, image_size)`; of the whole frame the same as from `resize_image`.
    """
    if crop.is_whole:
        return resize_image(grey, image_size)
    box = crop.pixels(*grey.size)
    return grey.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)


def open_region(source: Source, image_size: int, region: Region) -> tuple[Image.Image, Crop]:
    """Open a radiograph as the 8-bit grey square that a model sees.

    Args:
        source: As for `open_image`.
        image_size: Side of the square, pixels.
        region: `"frame"` for the whole image, as from `open_square`; `"lungs"` for the box around the lungs.

    Returns:
        An image of mode `"L"`, `(image_size, image_size)`, and the crop.

    Raises:
        ImageError: As for `open_image`.
    """
    grey = open_image(source, image_size=decoded_size(image_size, region))
    crop = FRAME if region == "frame" else crop_of(find_lungs(grey))
    return crop_square(grey, image_size, crop), crop


@cache
def region_version(region: Region) -> str:
    """Return the version of what decides the crops: the segmentation's model and rules; empty for the whole frame.

    A model that was trained on other crops must not be used, and cached crops of another version are made anew.

    Raises:
        ModelFormatError: The segmentation's model is not there.
    """
    if region == "frame":
        return ""
    return f"lungs-{RULES}-{model_digest()[:16]}"


# A record of the cache: the crop's four edges, the number of bytes of its reason, the reason, and the pixels.
_HEADER = struct.Struct("<4dI")


def pack_region(square: Image.Image, crop: Crop) -> bytes:
    """Return a crop and its pixels as bytes, for the cache."""
    reason = crop.reason.encode()
    return _HEADER.pack(*crop[:4], len(reason)) + reason + square.tobytes()


def unpack_region(content: bytes, image_size: int) -> tuple[np.ndarray, Crop]:
    """Return the pixels `(image_size, image_size)` and the crop of a record of `pack_region`."""
    left, top, right, bottom, length = _HEADER.unpack_from(content)
    start = _HEADER.size + length
    reason = content[_HEADER.size : start].decode()
    pixels = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(image_size, image_size)
    return pixels, Crop(left, top, right, bottom, reason)
