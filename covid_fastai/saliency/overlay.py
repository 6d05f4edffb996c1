"""Saliency maps and outlines of lungs as overlays of a radiograph. Needs only Pillow and numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageFilter

__all__ = [
    "WHOLE",
    "against_rest",
    "area_mean",
    "crop_pixels",
    "draw_layer",
    "draw_legend",
    "draw_outline",
    "fraction_inside",
    "shrink_to_fit",
]

WHOLE = (0.0, 0.0, 1.0, 1.0)  # left, top, right and bottom of the whole image, as fractions of its sides
OUTLINE = (0, 229, 255)  # cyan, which no colour of viridis and no grey level resembles

# Nine equidistant colours of matplotlib's viridis, which is perceptually uniform and suits colour-blind readers. The
# colours between them are interpolated, so that serving predictions needs no matplotlib.
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 45, 123),
        (59, 82, 139),
        (44, 114, 142),
        (33, 145, 140),
        (40, 174, 128),
        (94, 201, 98),
        (173, 220, 48),
        (253, 231, 37),
    ],
    dtype=np.float64,
)


def against_rest(maps: np.ndarray, targets: np.ndarray | Sequence[int]) -> np.ndarray:
    """Return the map of each image's class minus the mean map of the other classes.

    Only differences of logits matter, since softmax ignores a constant that is added to all of them.

    Args:
        maps: `(n, classes, h, w)`.
        targets: Index of each image's class, `(n,)`.

    Returns:
        `(n, h, w)`.
    """
    target_maps = maps[np.arange(len(maps)), targets]
    return target_maps - (maps.sum(axis=1) - target_maps) / (maps.shape[1] - 1)


def draw_layer(saliency: np.ndarray, size: tuple[int, int], *, crop: Sequence[float] = WHOLE) -> Image.Image:
    """Draw the saliency of one image as an overlay: transparent at 0, yellow at the maximum.

    Args:
        saliency: `(h, w)`, in logits; values below 0 are evidence against the class and stay transparent.
        size: Width and height of the image below the overlay, in pixels.
        crop: Left, top, right and bottom of the part that the model saw, as fractions of width and height. What lies
            outside stays transparent.

    Returns:
        An image of mode `"RGBA"`.
    """
    left, top, right, bottom = crop_pixels(crop, size)
    if (left, top, right, bottom) != (0, 0, *size):
        layer = Image.new("RGBA", size)
        layer.paste(draw_layer(saliency, (right - left, bottom - top)), (left, top))
        return layer
    cells = Image.fromarray(np.clip(saliency, 0, None).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    values = np.asarray(cells, dtype=np.float64)
    top = float(saliency.max())
    values = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    positions = np.arange(len(VIRIDIS)) / (len(VIRIDIS) - 1)
    channels = [np.interp(values, positions, VIRIDIS[:, channel]) for channel in range(3)]
    # opacity is the square root, which makes weak saliency visible and leaves the rest clear
    return Image.fromarray(np.stack([*channels, 255 * np.sqrt(values)], axis=-1).round().astype(np.uint8))


def draw_legend(size: tuple[int, int]) -> Image.Image:
    """Draw the colours of `draw_layer` on black, from 0 on the left to the maximum on the right.

    Args:
        size: Width and height, in pixels.

    Returns:
        An image of mode `"RGB"`.
    """
    legend = Image.new("RGBA", size, "black")
    legend.alpha_composite(draw_layer(np.linspace(0, 1, size[0])[None], size))
    return legend.convert("RGB")


def draw_outline(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw the outline of a region as an overlay: a line of one pixel, transparent elsewhere.

    Args:
        mask: `(h, w)` bool, over the whole image.
        size: Width and height of the image below the overlay, in pixels.

    Returns:
        An image of mode `"RGBA"`. There is no line where the region is cut off by the edge of the image.
    """
    region = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    region = region.point([0] * 128 + [255] * 128)
    line = ImageChops.subtract(region, region.filter(ImageFilter.MinFilter(3)))
    outline = Image.new("RGBA", size, (*OUTLINE, 0))
    outline.putalpha(line)
    return outline


def area_mean(mask: np.ndarray, shape: tuple[int, int], crop: Sequence[float] = WHOLE) -> np.ndarray:
    """Return the fraction of each cell that a mask covers.

    Args:
        mask: bool, over the whole image.
        shape: Rows and columns of the cells.
        crop: The part of the image that the cells cover, as for `draw_layer`.

    Returns:
        float32 with the shape of the cells.
    """
    covered = Image.fromarray(mask.astype(np.float32))
    width, height = covered.size
    box = (crop[0] * width, crop[1] * height, crop[2] * width, crop[3] * height)
    return np.asarray(covered.resize((shape[1], shape[0]), Image.Resampling.BOX, box=box))


def fraction_inside(saliency: np.ndarray, mask: np.ndarray, crop: Sequence[float] = WHOLE) -> float | None:
    """Return the fraction of the positive saliency of one image that lies in a region.

    Args:
        saliency: `(h, w)`; values below 0 are evidence against the class and do not count.
        mask: bool, the region over the whole image.
        crop: The part of the image that the saliency covers, as for `draw_layer`.

    Returns:
        The fraction, 0 to 1; None if there is no positive saliency.
    """
    positive = np.clip(saliency, 0, None)
    total = float(positive.sum())
    return float((positive * area_mean(mask, positive.shape, crop)).sum()) / total if total > 0 else None


def crop_pixels(crop: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the edges of a crop in whole pixels of an image of a size, at least one pixel apart."""
    edges = []
    for low, high, side in ((crop[0], crop[2], size[0]), (crop[1], crop[3], size[1])):
        begin = min(round(low * side), side - 1)
        edges.append((begin, max(begin + 1, round(high * side))))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def shrink_to_fit(image: Image.Image, longest: int) -> Image.Image:
    """Return an image whose longer side has at most `longest` pixels, with the same aspect ratio."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
