"""Marks at a fixed place: a maximum-statistic permutation test over the cells of a grid (Westfall and Young 1993).

Marks at other places have sharp edges, which are found in each image, so that they can be covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter, label, uniform_filter
from scipy.stats import rankdata

from covid_fastai.audit.frame_spectrum import measure_edges
from covid_fastai.audit.permutation import PERMUTATIONS, auc_of_ranks, group_codes, permute_groups
from covid_fastai.data.images import resize_image

__all__ = [
    "CELLS",
    "SpotTest",
    "cover_boxes",
    "cover_image",
    "describe_box",
    "describe_cells",
    "find_edges",
    "find_spots",
    "format_boxes",
    "most_telling",
    "places_of",
]

CELLS = 32  # a side of the grid
PIXELS = 4  # a side of a cell, at 128 x 128 pixels
NEIGHBOURS = 5  # cells a side, whose mean is subtracted: a mark is smaller, an opacity is not
LEVEL = 0.05
MOST_SPOTS = 3
SHARPEST = 3  # places with the sharpest edges that are covered in each image
HALF_SIDE = 2  # cells from the middle one of such a place to its end: 5 cells hold a letter of 1/8 of the side
LARGEST = 6  # cells a side: a fifth of the image's; larger differences are no mark
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SpotTest:
    """Result of the test whether some cell separates the classes.

    Attributes:
        observed: The largest distance of a cell's AUC from 0.5.
        permuted: The same for permuted labels, `(permutations,)`.
        boxes: Up to three groups of neighbouring cells that separate the classes at a family-wise level of 5%, the
            strongest first; the best cell with its neighbours if none does. First row, row after the last, first
            column, column after the last, in cells.
    """

    observed: float
    permuted: np.ndarray
    boxes: tuple[Box, ...]


def describe_cells(pixels: np.ndarray) -> np.ndarray:
    """Describe each cell of a 32 x 32 grid by its contrast to its surroundings and by its texture.

    Args:
        pixels: Intensities of the image at 128 x 128 pixels.

    Returns:
        Contrast and log standard deviation of each cell, float32 `(2 * 32 * 32,)`.
    """
    cells = np.asarray(pixels, dtype=np.float64).reshape(CELLS, PIXELS, CELLS, PIXELS)
    mean, spread = cells.mean(axis=(1, 3)), cells.std(axis=(1, 3))
    contrast = mean - uniform_filter(mean, NEIGHBOURS, mode="nearest")
    return np.concatenate([contrast.ravel(), np.log1p(spread).ravel()]).astype(np.float32)


def find_spots(
    x: np.ndarray, rows: pd.DataFrame, classes: list[str], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> SpotTest:
    """Test whether a cell separates the classes, by the largest distance of an AUC from 0.5 over all cells.

    The largest distance for permuted labels accounts for the number of cells and for their correlation.

    Args:
        x: Results of `describe_cells`, `(n, 2048)`.
        rows: As in `permute_labels`; folds play no part, so that a fold's training finds the same spots.
        classes: All classes.
        permutations: Number of permutations of the labels among the patients.
        seed: Seed of the permutations.

    Returns:
        The result.
    """
    codes = group_codes(rows)
    counts = np.bincount(codes)
    means = np.zeros((len(counts), x.shape[1]))
    np.add.at(means, codes, x)
    ranks = rankdata(means / counts[:, None], axis=0)
    rng = np.random.default_rng(seed)
    permuted = permute_groups(rows.assign(fold=0), codes, classes, permutations=permutations, rng=rng)
    distance = np.zeros((permuted.shape[1], x.shape[1]))
    for k in range(len(classes)) if len(classes) > 2 else [1]:
        distance = np.maximum(distance, np.abs(auc_of_ranks(ranks, permuted == k) - 0.5))
    largest = distance.max(axis=1)
    significant = distance[0] > np.quantile(largest[1:], 1 - LEVEL)
    return SpotTest(float(largest[0]), largest[1:], _boxes(distance[0], significant))


def find_edges(pixels: np.ndarray, inside: np.ndarray | None) -> tuple[Box, ...]:
    """Find the places of an image with the sharpest edges, such as letters, wires and clips.

    Args:
        pixels: Intensities, uint8 `(h, w)`.
        inside: Where to search, bool of any shape over the same area; None for the whole image.

    Returns:
        Three places that do not overlap with each other's middle, the sharpest first, as `SpotTest.boxes`.
    """
    down, across = measure_edges(pixels)
    edges = np.maximum(down, across)
    if inside is not None:
        places = (np.arange(length) * cells // length for length, cells in zip(edges.shape, inside.shape, strict=True))
        edges = np.where(inside[np.ix_(*places)], edges, -1.0)
    boxes = []
    for _ in range(SHARPEST):
        place = np.unravel_index(edges.argmax(), edges.shape)
        middle = [int(place[axis]) * CELLS // edges.shape[axis] for axis in (0, 1)]
        bounds = [bound for cell in middle for bound in (max(cell - HALF_SIDE, 0), min(cell + HALF_SIDE + 1, CELLS))]
        boxes.append((bounds[0], bounds[1], bounds[2], bounds[3]))
        (covered,) = places_of(boxes[-1:], *edges.shape)
        edges[covered] = -2.0
    return tuple(boxes)


def most_telling(x: np.ndarray, labels: np.ndarray, classes: list[str]) -> int:
    """Return the column whose AUC is farthest from 0.5 for some class."""
    ranks = rankdata(x, axis=0)
    of_class = np.stack([labels == name for name in (classes if len(classes) > 2 else classes[1:])], axis=1)
    return int(np.nan_to_num(np.abs(auc_of_ranks(ranks, of_class) - 0.5)).max(axis=0).argmax())


def describe_box(box: Sequence[int]) -> str:
    """Return where a box of cells lies, as text."""
    row, column = (50 * (box[k] + box[k + 1]) // CELLS for k in (0, 2))
    return f"{row}% from the top and {column}% from the left"


def format_boxes(boxes: Sequence[Sequence[int]]) -> str:
    """Return boxes as text, as a table names them, such as "12 16 19 23; 0 4 28 32"."""
    return "; ".join(" ".join(map(str, box)) for box in boxes)


def cover_image(image: Image.Image, boxes: Sequence[Sequence[int]], *, side: int) -> Image.Image:
    """Cover groups of cells of an image of any size, whose other pixels remain.

    Args:
        image: Mode `"L"`.
        boxes: As in `SpotTest.boxes`.
        side: Side in pixels of the square on which the surroundings are blurred, which takes long on a large image.

    Returns:
        The covered image, of the same size.
    """
    covered = Image.fromarray(cover_boxes(np.array(resize_image(image, side)), boxes))
    covered = covered if covered.size == image.size else covered.resize(image.size, Image.Resampling.BILINEAR)
    result = image.copy()
    for rows, columns in places_of(boxes, image.height, image.width):
        place = (columns.start, rows.start, columns.stop, rows.stop)
        result.paste(covered.crop(place), place)
    return result


def cover_boxes(pixels: np.ndarray, boxes: Sequence[Sequence[int]]) -> np.ndarray:
    """Cover groups of cells with the blurred surroundings.

    Args:
        pixels: An image, uint8 `(h, w)`.
        boxes: As in `SpotTest.boxes`.

    Returns:
        The covered image, uint8 `(h, w)`.
    """
    known = np.ones(pixels.shape)
    height, width = pixels.shape
    for rows, columns in places_of(boxes, height, width):
        known[rows, columns] = 0
    reach = LARGEST / 2 / CELLS * np.array([height, width])  # the blur reaches over the largest box
    weight = gaussian_filter(known, reach, truncate=6)
    blurred = gaussian_filter(pixels * known, reach, truncate=6) / np.maximum(weight, 1e-6)
    return np.where(known > 0, pixels, np.clip(blurred, 0, 255).round()).astype(np.uint8)


def places_of(boxes: Sequence[Sequence[int]], height: int, width: int) -> list[tuple[slice, slice]]:
    """Return the rows and columns of boxes of cells in an image."""
    places = []
    for top, bottom, left, right in boxes:
        rows = slice(top * height // CELLS, -(-bottom * height // CELLS))
        places.append((rows, slice(left * width // CELLS, -(-right * width // CELLS))))
    return places


def _boxes(distance: np.ndarray, significant: np.ndarray) -> tuple[Box, ...]:
    """Return the boxes of the significant cells, the strongest first, or that of the best cell and its neighbours."""
    if not significant.any():
        row, column = divmod(int(distance.argmax()) % CELLS**2, CELLS)
        return ((max(row - 1, 0), min(row + 2, CELLS), max(column - 1, 0), min(column + 2, CELLS)),)
    strength = np.where(significant, distance, 0).reshape(2, CELLS, CELLS).max(axis=0)
    groups, count = label(strength > 0, structure=np.ones((3, 3)))
    boxes = []
    for number in sorted(range(1, count + 1), key=lambda number: -strength[groups == number].max())[:MOST_SPOTS]:
        row, column = np.unravel_index(np.argmax(np.where(groups == number, strength, 0)), strength.shape)
        bounds: list[int] = []
        for centre, places in zip((row, column), np.nonzero(groups == number), strict=True):
            near = places[np.abs(places - centre) <= LARGEST // 2]
            bounds += [int(near.min()), int(near.max()) + 1]
        boxes.append((bounds[0], bounds[1], bounds[2], bounds[3]))
    return tuple(boxes)
