"""The baseline of the lungs' geometry: how large their box is in an image, where it lies, and how they are tilted.

The area of the lungs, and whether they are found at all, are no part of it: opacities change both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from covid_fastai.data.lungs import Lungs, cached_lungs
from covid_fastai.errors import ImageError

__all__ = ["GEOMETRY", "measure_geometry", "read_geometry"]

GEOMETRY = ("x", "y", "width", "height", "log aspect", "tilt")


def measure_geometry(lungs: Lungs) -> np.ndarray:
    """Measure the geometry of the lungs of one image, which says nothing of what is in them.

    Args:
        lungs: What `segment_lungs` found; of a usable quality.

    Returns:
        `(6,)` in the order of `GEOMETRY`: the centre of the box around both lungs from the left and from the top; its
        width and height, all as fractions of the sides; the logarithm of width by height; and the angle of the line
        from the centre of the left lung to that of the right one, in radians, positive if the right one is lower.
    """
    assert lungs.box is not None  # usable lungs have a box
    left, top, right, bottom = lungs.box
    width, height = right - left, bottom - top
    (y0, x0), (y1, x1) = (np.argwhere(mask).mean(axis=0) for mask in lungs.masks)
    tilt = math.atan2(y1 - y0, x1 - x0)
    place = (left + right) / 2, (top + bottom) / 2
    return np.array([*place, width, height, math.log(width / height), tilt])


def read_geometry(paths: Iterable[str | os.PathLike[str]], *, workers: int | None = None) -> np.ndarray:
    """Read the geometry of the lungs of image files, as features of a baseline.

    Args:
        paths: The files.
        workers: Number of threads; None for one per processor core, at most 8.

    Returns:
        `(n, 6)`: the measurements of `GEOMETRY`. Where the lungs were not found, or the file cannot be opened, they are
        the mean of the other images.
    """
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        rows = list(pool.map(_read, paths))
    values = np.array(rows, dtype=float).reshape(-1, len(GEOMETRY))
    found = np.isfinite(values).all(axis=1)
    values[~found] = values[found].mean(axis=0) if found.any() else 0
    return values


def _read(path: str | os.PathLike[str]) -> np.ndarray:
    try:
        lungs = cached_lungs(path)
    except ImageError:
        return np.full(len(GEOMETRY), np.nan)  # the other features report that it cannot be opened
    return measure_geometry(lungs) if lungs.usable else np.full(len(GEOMETRY), np.nan)
