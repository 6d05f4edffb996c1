"""The region of the lungs, which the audit removes from images or keeps alone."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import maximum_filter
from scipy.spatial import ConvexHull

from covid_fastai.data.lungs import MASK_SIZE, Lungs
from covid_fastai.data.regions import FRAME, Crop
from covid_fastai.saliency.region_fraction import BORDER, CENTRAL_BOX, find_lung_region

__all__ = ["MARGIN", "outside_region", "thorax_region", "within_lungs"]

MARGIN = 0.04  # of the side; a margin of some pixels hides the border of the lungs, and most of what lies at it
OUTSIDE_MARGIN = 0.04  # of the side, around what a baseline must not see


def thorax_region(path: str | os.PathLike[str], image_size: int, crop: Crop = FRAME) -> tuple[np.ndarray, str]:
    """Return the region of an image that holds the lungs and whatever may be seen of them.

    The region is the convex hull of both segmented lungs with a margin of 4% of the side. A segmentation leaves out the
    lung behind the heart and most of an opaque lung. If only its pixels were removed, such a finding would remain, and
    a network that was trained without the lungs could still detect disease.

    Args:
        path: The image file.
        image_size: Side of the result, pixels.
        crop: The part of the image that the result covers: what the model sees. A box is that of this part.

    Returns:
        The mask, bool `(image_size, image_size)`, and the name of the region. Where the lungs are not found, it is the
        box `CENTRAL_BOX`, and the name has the reason.

    Raises:
        ImageError: The file cannot be read.
    """
    region = find_lung_region(path)
    if region.mask is None:
        low, high = (round(edge * image_size) for edge in CENTRAL_BOX)
        box = np.zeros((image_size, image_size), dtype=bool)
        box[low:high, low:high] = True
        return box, region.name
    side = len(region.mask)
    grown = Image.fromarray(_grown_hull(region.mask, MARGIN))
    method = Image.Resampling.BOX if image_size < side else Image.Resampling.NEAREST
    resized = grown.resize((image_size, image_size), method, box=crop.pixels(side, side))
    return np.asarray(resized) >= 128, region.name


def outside_region(lungs: Lungs) -> np.ndarray:
    """Return where an image shows nothing of the lungs: outside of their convex hull with a margin.

    Args:
        lungs: What `segment_lungs` found.

    Returns:
        bool `(256, 256)`, over the whole image squashed to a square. Where the lungs are not found, it is the outermost
        1/16 of each side, which few lungs reach.
    """
    if lungs.usable:
        return _grown_hull(lungs.mask, OUTSIDE_MARGIN) == 0
    edge = round(BORDER * MASK_SIZE)
    outside = np.ones((MASK_SIZE, MASK_SIZE), dtype=bool)
    outside[edge:-edge, edge:-edge] = False
    return outside


def within_lungs(lungs: Lungs) -> np.ndarray | None:
    """Return where an image shows the lungs: their convex hull without a margin.

    Args:
        lungs: What `segment_lungs` found.

    Returns:
        bool `(256, 256)`, over the whole image squashed to a square; None where the lungs are not found.
    """
    return _grown_hull(lungs.mask, 0) > 0 if lungs.usable else None


def _grown_hull(mask: np.ndarray, margin: float) -> np.ndarray:
    """Return the convex hull of a mask, grown by a margin in fractions of the side, uint8 `(h, w)`, 0 or 255."""
    side = len(mask)
    rows = np.flatnonzero(mask.any(axis=1))
    ends = mask[rows].argmax(axis=1), side - 1 - mask[rows, ::-1].argmax(axis=1)  # the hull is that of these pixels
    corners = np.stack([np.concatenate(ends), np.tile(rows, 2)], axis=1)
    hull = Image.new("L", (side, side))
    outline = corners[ConvexHull(corners).vertices]
    ImageDraw.Draw(hull).polygon([tuple(map(int, corner)) for corner in outline], fill=255, outline=255)
    # one side after the other: Pillow's MaxFilter takes eighty times as long
    return maximum_filter(np.asarray(hull), 2 * round(margin * side) + 1, mode="nearest")
