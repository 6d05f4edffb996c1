"""Keypoints of a radiograph: places that are found again in a copy, each with a code of its surroundings.

A code does not depend on brightness, contrast, rotation or inversion, and mirroring only flips some of its bits. Two
copies have many codes in common; two patients have next to none in the same arrangement. The method is that of Lowe
(2004), with codes of 64 bits: signs of cosine coefficients of the locally standardised surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter, uniform_filter

__all__ = [
    "COUNT",
    "KEYPOINT",
    "MIRROR",
    "PLAIN",
    "SCALES",
    "SIDE",
    "STORED_BYTES",
    "find_keypoints",
    "from_stored",
    "standardise",
    "to_stored",
    "unpack_keypoints",
]

SIDE = 96  # pixels; images are squashed to this square
COUNT = 32  # keypoints of an image, the strongest ones
WINDOW = 19  # pixels; side of the box of the local standardisation, twice
FLOOR = 4.0  # grey levels added to the local deviation, so that the noise of an even region stays small
BLOB = (1.6, 2.6)  # pixels, standard deviations of the difference of Gaussians whose extrema are keypoints
SLOPE = 4.0  # pixels, standard deviation; the gradient at this scale is the direction of a keypoint
SMOOTH = 1.0  # pixels, standard deviation, of the surroundings
RADIUS = 14.0  # pixels; half of the side of the surroundings
MARGIN = 9  # pixels; no keypoint is nearer to an edge
GRID = 12  # samples along each side of the surroundings
SCALES = (0.8, 0.9, 1.0, 1.11, 1.25)  # sizes of the surroundings; a copy may be cropped, and its content larger
PLAIN = SCALES.index(1.0)
KEYPOINT = np.dtype([("x", "u1"), ("y", "u1"), ("angle", "u1"), ("sign", "i1"), ("codes", "<u8", (len(SCALES),))])

STORED = np.dtype([("x", "u1"), ("y", "u1"), ("angle", "u1"), ("sign", "i1"), ("code", "<u8")])  # what is searched in
STORED_BYTES = COUNT * STORED.itemsize  # of an image


def standardise(pixels: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Return the deviation of each pixel from its surroundings, in units of their deviation; `(..., h, w)`."""
    values = pixels.astype(np.float32)
    powers = np.stack([values, values * values])
    size = (*(1,) * (powers.ndim - 2), window, window)
    mean, mean_square = uniform_filter(uniform_filter(powers, size, mode="nearest"), size, mode="nearest")
    variance = np.maximum(mean_square - mean * mean, 0)
    return (values - mean) / (np.sqrt(variance) + FLOOR)


def _basis() -> tuple[np.ndarray, np.uint64]:
    """Return 64 cosine patterns `(144, 64)` of the lowest frequencies, and which of them change sign in a mirror."""
    orders = [(u, v) for u in range(GRID) for v in range(GRID) if not _is_given(u, v)]
    orders = sorted(orders, key=lambda order: (order[0] ** 2 + order[1] ** 2, order))[:64]
    position = (np.arange(GRID) + 0.5) * math.pi / GRID
    weight = np.exp(-0.5 * ((np.arange(GRID) + 0.5) / GRID * 2 - 1) ** 2 / 0.8**2)
    cosines = [np.outer(weight * np.cos(u * position), weight * np.cos(v * position)).ravel() for u, v in orders]
    basis = np.stack(cosines, axis=1)
    basis -= basis.mean(axis=0)
    mirror = sum(1 << bit for bit, (_, v) in enumerate(orders) if v % 2)
    return basis.astype(np.float32), np.uint64(mirror)


def _is_given(u: int, v: int) -> bool:
    """Return whether the sign of a pattern is nearly the same at all keypoints: of spots, and of their gradients."""
    return v % 2 == 0 and (u % 2 == 0 or (u <= 3 and v <= 2))


BASIS, MIRROR = _basis()  # u runs along the direction of a keypoint, v across it
OFFSETS = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * RADIUS


def find_keypoints(pixels: np.ndarray) -> np.ndarray:
    """Return the keypoints of an image.

    Args:
        pixels: `(96, 96)` uint8, the content of an image, squashed.

    Returns:
        `(32,)` of the type `KEYPOINT`: place (0 to 255 across the side), direction (256 for a full turn), sign (1 for a
        bright spot, -1 for a dark one, 0 for none) and the codes at each of `SCALES`.
    """
    keypoints = np.zeros(COUNT, KEYPOINT)
    values = standardise(pixels)
    response = gaussian_filter(values, BLOB[0]) - gaussian_filter(values, BLOB[1])
    strength = np.abs(response)
    peaks = (strength == maximum_filter(strength, 5)) & (strength > 0.02)
    peaks[:MARGIN] = peaks[-MARGIN:] = peaks[:, :MARGIN] = peaks[:, -MARGIN:] = False
    rows, columns = np.nonzero(peaks)
    strongest = np.lexsort((columns, rows, -strength[rows, columns]))[:COUNT]
    rows, columns = rows[strongest], columns[strongest]
    if not len(rows):
        return keypoints
    sign = np.sign(response[rows, columns])
    slope = gaussian_filter(values, SLOPE)
    angle = np.arctan2(
        sign * (slope[rows + 1, columns] - slope[rows - 1, columns]),
        sign * (slope[rows, columns + 1] - slope[rows, columns - 1]),
    )
    down = rows + _peak_offset(response, rows, columns, (1, 0))
    across = columns + _peak_offset(response, rows, columns, (0, 1))
    along, side = (grid.ravel() for grid in np.meshgrid(OFFSETS, OFFSETS, indexing="ij"))
    x = np.cos(angle)[:, None] * along - np.sin(angle)[:, None] * side
    y = np.sin(angle)[:, None] * along + np.cos(angle)[:, None] * side
    scales = np.array(SCALES)[:, None]
    where = np.stack([down[:, None, None] + scales * y[:, None], across[:, None, None] + scales * x[:, None]])
    smooth = gaussian_filter(values, SMOOTH)
    surroundings = map_coordinates(smooth, where, order=1, mode="nearest") * sign[:, None, None]
    bits = np.packbits(surroundings @ BASIS > 0, axis=-1, bitorder="little")
    filled = keypoints[: len(rows)]
    filled["x"], filled["y"] = np.round((across + 0.5) / SIDE * 255), np.round((down + 0.5) / SIDE * 255)
    filled["angle"] = np.round(angle / (2 * math.pi) * 256).astype(np.int64) % 256
    filled["sign"] = sign
    filled["codes"] = np.ascontiguousarray(bits).view("<u8")[..., 0]
    return keypoints


def _peak_offset(response: np.ndarray, rows: np.ndarray, columns: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    """Return how far the vertex of a parabola through three pixels is from the middle one, -0.5 to 0.5 pixels."""
    before = response[rows - step[0], columns - step[1]]
    after = response[rows + step[0], columns + step[1]]
    bend = before + after - 2 * response[rows, columns]
    offset = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend != 0)
    return np.clip(offset, -0.5, 0.5)


def unpack_keypoints(packed: Iterable[bytes]) -> np.ndarray:
    """Return the keypoints of n images from their bytes, `(n, 32)` of the type `KEYPOINT`."""
    return np.frombuffer(b"".join(packed), dtype=KEYPOINT).reshape(-1, COUNT)


def to_stored(keypoints: np.ndarray) -> np.ndarray:
    """Return what a database needs of keypoints, with one code each, `(n, STORED_BYTES)` uint8.

    Args:
        keypoints: `(n, 32)` of the type `KEYPOINT`.
    """
    stored = np.zeros(keypoints.shape, STORED)
    for name in ("x", "y", "angle", "sign"):
        stored[name] = keypoints[name]
    stored["code"] = keypoints["codes"][..., PLAIN]
    return stored.view(np.uint8).reshape(-1, STORED_BYTES)


def from_stored(stored: np.ndarray) -> np.ndarray:
    """Return keypoints in which `match_images` can search, `(n, 32)` of the type `KEYPOINT`, from `to_stored`."""
    values = np.ascontiguousarray(stored).view(STORED).reshape(-1, COUNT)
    keypoints = np.zeros(values.shape, KEYPOINT)
    for name in ("x", "y", "angle", "sign"):
        keypoints[name] = values[name]
    keypoints["codes"][..., PLAIN] = values["code"]
    return keypoints
