"""Where a model looked, as pictures to lay over a radiograph. Needs Pillow and numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["against_rest", "draw_layer", "shrink_to_fit"]

# Matplotlib's viridis at nine even places, between which colours are mixed: perceptually even, readable without red
# and green, and no matplotlib where predictions are served.
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


def against_rest(maps: np.ndarray, wanted: np.ndarray | Sequence[int]) -> np.ndarray:
    """Return what speaks for each image's class rather than another, since softmax weighs differences only.

    Args:
        maps: `(n, classes, h, w)`.
        wanted: The number of each image's class, `(n,)`.

    Returns:
        `(n, h, w)`: the map of the class less the mean of the others'.
    """
    own = maps[np.arange(len(maps)), wanted]
    return own - (maps.sum(axis=1) - own) / (maps.shape[1] - 1)


def draw_layer(heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw the heat of one image as a layer to lay over it: clear where there is none, yellow where it is greatest.

    Args:
        heat: `(h, w)`, in logits; what is below 0 speaks against the class and is left clear.
        size: Width and height of the picture that it is laid over, pixels.

    Returns:
        An image of mode `"RGBA"`.
    """
    cells = Image.fromarray(np.clip(heat, 0, None).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    values = np.asarray(cells, dtype=np.float64)
    top = float(heat.max())
    values = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    places = np.arange(len(VIRIDIS)) / (len(VIRIDIS) - 1)
    channels = [np.interp(values, places, VIRIDIS[:, channel]) for channel in range(3)]
    # the root lets weak heat be seen without a veil over the rest
    return Image.fromarray(np.stack([*channels, 255 * np.sqrt(values)], axis=-1).round().astype(np.uint8))


def shrink_to_fit(image: Image.Image, longest: int) -> Image.Image:
    """Return an image whose longer side has `longest` pixels at most, its shape kept."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
