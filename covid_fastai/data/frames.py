"""Frames around the content of an image: constant bars, letterboxes and the margins of screenshots."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["list_views", "trim_even_frame", "trim_frame"]

TOLERANCE = 12  # grey levels; lossy storage changes a constant frame by less
MIN_CONSTANT = 0.9  # fraction of a line of a frame that is constant; letters on a bar cover less than the rest
EVEN_TOLERANCE, MIN_EVEN = 2, 0.995  # the same of a frame that was drawn, which the dark air around a patient is not
MIN_CONTENT = 0.3  # fraction of each side; what is smaller is no framed radiograph, and the image remains whole
MIN_FRAME = 0.03  # of a side, both ends together; what shows more than the rest is the same view
ROUNDS = 8  # bars of different brightness, one inside the other, on each side


def list_views(grey: Image.Image) -> list[Image.Image]:
    """Return an image and, if it has a frame, its content.

    A copy may have lost or gained a frame. The dark air around a patient looks like a frame, too, and how much of it is
    cut off depends on the contrast: so both views are compared.

    Args:
        grey: An image of mode L.

    Returns:
        One or two images.
    """
    content = trim_frame(grey)
    cut = max(1 - content.width / grey.width, 1 - content.height / grey.height)
    return [grey, content] if cut > MIN_FRAME else [grey]


def trim_frame(grey: Image.Image) -> Image.Image:
    """Cut off lines at the edges of a grey image that have one brightness, apart from noise and a few letters.

    Args:
        grey: An image of mode L.

    Returns:
        The content; the image itself if it has no frame, or if less than 30% of a side would remain.
    """
    pixels = np.asarray(grey)
    height, width = pixels.shape
    top, bottom, left, right = 0, height, 0, width
    for _ in range(ROUNDS):
        before = top, bottom, left, right
        top += _constant_lines(pixels[top:bottom, left:right])
        bottom -= _constant_lines(pixels[top:bottom, left:right][::-1])
        left += _constant_lines(pixels[top:bottom, left:right].T)
        right -= _constant_lines(pixels[top:bottom, left:right].T[::-1])
        if bottom - top < MIN_CONTENT * height or right - left < MIN_CONTENT * width:
            return grey
        if (top, bottom, left, right) == before:
            break
    return grey.crop((left, top, right, bottom))


def trim_even_frame(grey: Image.Image) -> Image.Image:
    """Cut off lines at the edges that have exactly one brightness, and leave the dark air around a patient.

    Args:
        grey: An image of mode L.

    Returns:
        The content; the image itself if it has no such frame, or if less than 30% of a side would remain.
    """
    pixels = np.asarray(grey)
    even = EVEN_TOLERANCE, MIN_EVEN
    top, bottom = _constant_lines(pixels, *even), _constant_lines(pixels[::-1], *even)
    inner = pixels[top : len(pixels) - bottom]
    left, right = _constant_lines(inner.T, *even), _constant_lines(inner.T[::-1], *even)
    width, height = grey.width - left - right, grey.height - top - bottom
    if height < MIN_CONTENT * grey.height or width < MIN_CONTENT * grey.width:
        return grey
    return grey.crop((left, top, left + width, top + height))


def _constant_lines(pixels: np.ndarray, tolerance: int = TOLERANCE, fraction: float = MIN_CONSTANT) -> int:
    """Return the number of first rows that have the brightness of the outermost one."""
    if not pixels.size:
        return 0
    width = pixels.shape[1]
    ordered = np.sort(pixels[0]).astype(float)
    brightness = (ordered[(width - 1) // 2] + ordered[width // 2]) / 2  # the median; np.median takes longer
    step = 16  # rows looked at together; most images have no frame
    for start in range(0, len(pixels), step):
        near = np.abs(pixels[start : start + step].astype(np.int16) - brightness) <= tolerance
        constant = near.sum(axis=1) / width >= fraction
        if not constant.all():
            return start + int(np.argmin(constant))
    return len(pixels)
