"""Texture and pixel intensities outside of the lungs, which processing changes everywhere and disease does not."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.fft import dctn

from covid_fastai.data.images import resize_image

__all__ = ["FEATURES", "describe_edges", "describe_frame", "measure_edges"]

FRAME = 3 / 16  # of each side: the width of the frame around the central box, which holds most of the lungs
BLOCK = 8  # pixels a side, as in JPEG
LARGEST_TILE = 96  # pixels a side: 12 of them hold 110,000 pixels, enough for every feature
LARGEST_IMAGE = 256  # pixels a side, in which edges are measured
FEWEST_BLOCKS = 4  # of all tiles; fewer say too little
RINGS = 6  # of the radial power spectrum, from 0 to 0.5 cycles per pixel
WINDOWS = 8  # a side
SMALLEST_EDGE = 2.0  # grey levels; smaller differences are rounding
SMALLEST_POWER = 0.01  # of a grey level squared; below it there is rounding only
FEATURES = (
    *(f"log power, ring {ring}" for ring in range(1, RINGS + 1)),
    *(f"log power along {axis}, {band}" for axis in ("rows", "columns") for band in ("low", "middle", "high")),
    *(f"DCT coefficients near 0, {band}" for band in ("low", "middle", "high")),
    "log noise",
    "log kurtosis of the noise",
    *(f"log step at 2 lines, {axis}" for axis in ("rows", "columns")),
    *(f"blockiness, {axis}" for axis in ("rows", "columns")),
    *(f"log blockiness at the best phase, {axis}" for axis in ("rows", "columns")),
    "empty grey levels",
    "odd grey levels",
    "at 0",
    "at 255",
    "at the minimum",
    "at the maximum",
    "mean of the corners",
    "SD of the corners",
    "fraction below the corners' mean",
)
# Logs of ratios of windows. Place, intensities and direction of the sharpest edge are no part of them, since
# a disease changes them, too: the direction alone separates drawings with streaks in the lungs with an AUC of 0.77.
EDGES = ("sharpest to 7th", "2nd to 7th", "sharpest to 13th")


def describe_frame(pixels: np.ndarray, outside: np.ndarray | None = None) -> np.ndarray:
    """Describe the texture, the grey levels and the compression of an image's frame at its own resolution.

    Twelve square tiles are measured along the edges, each as wide as the frame, which is the outer 3/16 of each side,
    but at most 96 pixels. Blur, sharpening, noise, fewer grey levels, clipping, resizing and compression change them as
    they change the rest of the image. Of the tiles, only blocks of 8 x 8 pixels without any of the lungs are used.

    Args:
        pixels: Intensities, uint8 `(h, w)`.
        outside: Where the image shows nothing of the lungs, bool of any shape, over the same area; None for everywhere.

    Returns:
        The features, `(FEATURES,)`; NaN with fewer than 4 such blocks, and those of the corners without such a block.
    """
    tiles, used = _cut_tiles(pixels, outside)
    if np.count_nonzero(used) < FEWEST_BLOCKS:
        return np.full(len(FEATURES), np.nan)
    # differences of 16-bit integers are exact, and faster than those of floats
    values, seen = tiles.astype(np.int16), used.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)
    return np.r_[
        _describe_blocks(tiles.astype(np.float32), used),
        _describe_noise(values, seen),
        _blockiness(values, seen),
        _describe_levels(tiles[seen].astype(int)),
        _describe_corners(values[:4][seen[:4]]),
    ]


def describe_edges(pixels: np.ndarray) -> np.ndarray:
    """Describe how far the sharpest edges of an image exceed its other edges, wherever they lie.

    Letters, wires and clips have sharper edges than opacities, at few places. The sharpest edge of each of 8 x 8
    windows is measured, and the sharpest windows are compared with the 7th and the 13th: a letter lies in at most four.
    A texture that is sharper in the whole lungs, as that of an interstitial disease, changes them together.

    Args:
        pixels: Intensities, uint8 `(h, w)`; larger images are resized to 256 x 256 pixels.

    Returns:
        The features, `(EDGES,)`.
    """
    down, across = measure_edges(pixels)
    edges = np.maximum(down, across)
    rows, columns = (length // WINDOWS for length in edges.shape)
    windows = edges.reshape(WINDOWS, rows, WINDOWS, columns).max(axis=(1, 3))
    logs = np.log(np.sort(windows, axis=None)[::-1] + SMALLEST_EDGE)
    return np.array([logs[0] - logs[6], logs[1] - logs[6], logs[0] - logs[12]])


def measure_edges(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure the edges of an image: the second differences at each pixel.

    Args:
        pixels: As in `describe_edges`.

    Returns:
        The size of the differences along the rows' and the columns' axis, `(h, w)` each, h and w multiples of 8.
    """
    if max(pixels.shape) > LARGEST_IMAGE:
        pixels = np.asarray(resize_image(Image.fromarray(pixels), LARGEST_IMAGE))
    padding = [(1, 1 + -length % WINDOWS) for length in pixels.shape]  # to a multiple of 8, after the differences
    padded = np.pad(pixels.astype(np.float64), padding, mode="edge")
    down, across = (np.abs(second) for second in _second_differences(padded))
    return down, across


def _cut_tiles(pixels: np.ndarray, outside: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return 12 tiles along the edges, those at the corners first, `(12, side, side)`, and which blocks are outside."""
    smallest = min(pixels.shape)
    if smallest < 2 * BLOCK:  # too small for a frame
        pixels = np.pad(pixels, [(0, max(2 * BLOCK - side, 0)) for side in pixels.shape], mode="edge")
        smallest = min(pixels.shape)
    side = max(min(round(FRAME * smallest), LARGEST_TILE) // BLOCK, 1) * BLOCK
    # multiples of 8, so that the tiles start where blocks of a JPEG start
    top, left = ([(length - side) * third // (3 * BLOCK) * BLOCK for third in range(4)] for length in pixels.shape)
    corners = [(row, column) for row in (top[0], top[3]) for column in (left[0], left[3])]
    sides = [(row, column) for row in (top[0], top[3]) for column in left[1:3]]
    sides += [(row, column) for row in top[1:3] for column in (left[0], left[3])]
    tiles = np.stack([pixels[row : row + side, column : column + side] for row, column in corners + sides])
    if outside is None:
        return tiles, np.ones((len(tiles), side // BLOCK, side // BLOCK), dtype=bool)
    down, across = (
        np.arange(length) * cells // length for length, cells in zip(pixels.shape, outside.shape, strict=True)
    )
    seen = np.stack([outside[np.ix_(down[y : y + side], across[x : x + side])] for y, x in corners + sides])
    by_block = seen.reshape(len(tiles), side // BLOCK, BLOCK, side // BLOCK, BLOCK)
    return tiles, np.asarray(by_block.all(axis=(2, 4)))


def _second_differences(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return second differences along rows and along columns, without the outermost pixels."""
    return np.diff(pixels, 2, axis=-2)[..., 1:-1], np.diff(pixels, 2, axis=-1)[..., 1:-1, :]


def _describe_blocks(tiles: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the power spectrum and the small coefficients of the used 8 x 8 blocks of the tiles."""
    count, side = len(tiles), tiles.shape[1] // BLOCK
    blocks = tiles.reshape(count, side, BLOCK, side, BLOCK).swapaxes(2, 3)[used]
    coefficients = dctn(blocks, axes=(1, 2), norm="ortho")
    power = np.square(coefficients).mean(axis=0, dtype=np.float64)
    row, column = np.indices((BLOCK, BLOCK))
    ring = np.ceil(np.hypot(row, column) / np.hypot(BLOCK - 1, BLOCK - 1) * RINGS).astype(int)  # 0: the block's mean
    rings = [power[ring == number] for number in range(1, RINGS + 1)]
    bands = (slice(1, 3), slice(3, 5), slice(5, 8))
    lines = [power[band, 0] for band in bands] + [power[0, band] for band in bands]
    logs = [np.log(part.mean() + SMALLEST_POWER) for part in (*rings, *lines)]
    near_zero, diagonal = (np.abs(coefficients) < 0.5).mean(axis=0), row + column
    groups = ((diagonal > 0) & (diagonal < 4), (diagonal >= 4) & (diagonal < 8), diagonal >= 8)
    return np.r_[logs, [near_zero[group].mean() for group in groups]]


def _describe_noise(tiles: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the size and the kurtosis of the finest detail, and how much two lines differ more than neighbours.

    Args:
        tiles: `(n, side, side)`.
        seen: Which pixels are used, whole blocks, bool of the same shape.
    """
    rows, columns = _second_differences(tiles)
    # of blocks, the four corners of 3 x 3 pixels lie in all that the nine lie in
    around = seen[:, 2:, 2:] & seen[:, 2:, :-2] & seen[:, :-2, 2:] & seen[:, :-2, :-2]
    noise = np.diff(np.diff(tiles, 2, axis=1), 2, axis=2)[around].astype(np.float64)
    squares = np.square(noise - noise.mean())
    variance = squares.mean() + SMALLEST_POWER
    kurtosis = np.log1p(np.square(squares).mean() / variance**2)
    down, across = seen[:, 2:] & seen[:, :-2], seen[:, :, 2:] & seen[:, :, :-2]
    apart = [
        np.abs(tiles[:, 2:] - tiles[:, :-2])[down].mean() - np.abs(rows[around]).mean(),
        np.abs(tiles[:, :, 2:] - tiles[:, :, :-2])[across].mean() - np.abs(columns[around]).mean(),
    ]
    return np.r_[np.log(variance), kurtosis, np.arcsinh(apart)]


def _blockiness(tiles: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return how much larger the steps between 8 x 8 blocks are than other steps, by axis, and at the best phase."""
    means = []
    for images, used in ((tiles, seen), (tiles.swapaxes(1, 2), seen.swapaxes(1, 2))):
        both = used[:, 1:] & used[:, :-1]
        steps, counts = (np.abs(np.diff(images, axis=1)) * both).sum(axis=(0, 2)), both.sum(axis=(0, 2))
        phase = np.arange(1, images.shape[1]) % BLOCK
        by_phase = np.bincount(phase, steps, minlength=BLOCK)
        means.append(by_phase / np.maximum(np.bincount(phase, counts, minlength=BLOCK), 1) + SMALLEST_POWER)
    aligned = [np.log(mean[0] / mean.mean()) for mean in means]
    return np.r_[aligned, [np.log(mean.max() / mean.mean()) for mean in means]]


def _describe_levels(levels: np.ndarray) -> np.ndarray:
    """Return the gaps of the histogram and the fractions at its ends."""
    counts = np.bincount(levels, minlength=256)
    low, high = np.quantile(levels, [0.02, 0.98]).astype(int)
    present = np.flatnonzero(counts)
    ends = [counts[place] / len(levels) for place in (0, 255, present[0], present[-1])]
    return np.r_[(counts[low : high + 1] == 0).mean(), (levels % 2).mean(), ends]


def _describe_corners(corners: np.ndarray) -> np.ndarray:
    """Return the mean and the SD of the corners, and the fraction of them below their mean; NaN without a pixel."""
    if not corners.size:
        return np.full(3, np.nan)
    return np.r_[corners.mean(), corners.std(), (corners < corners.mean()).mean()]
