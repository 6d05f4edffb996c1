"""Saliency maps as overlays of a radiograph. Needs only Pillow and numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["against_rest", "draw_layer", "shrink_to_fit"]

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


def draw_layer(saliency: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw the saliency of one image as an overlay: transparent at 0, yellow at the maximum.

    Args:
        saliency: `(h, w)`, in logits; values below 0 are evidence against the class and stay transparent.
        size: Width and height of the image below the overlay, in pixels.

    Returns:
        An image of mode `"RGBA"`.
    """
    cells = Image.fromarray(np.clip(saliency, 0, None).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    values = np.asarray(cells, dtype=np.float64)
    top = float(saliency.max())
    values = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    positions = np.arange(len(VIRIDIS)) / (len(VIRIDIS) - 1)
    channels = [np.interp(values, positions, VIRIDIS[:, channel]) for channel in range(3)]
    # opacity is the square root, which makes weak saliency visible and leaves the rest clear
    return Image.fromarray(np.stack([*channels, 255 * np.sqrt(values)], axis=-1).round().astype(np.uint8))


def shrink_to_fit(image: Image.Image, longest: int) -> Image.Image:
    """Return an image whose longer side has at most `longest` pixels, with the same aspect ratio."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
