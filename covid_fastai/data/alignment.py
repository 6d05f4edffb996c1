"""Copies that were cropped or mirrored: pictures that agree once one is laid over a window of the other.

Every image is compared with every other one in two steps: a linear model of small shifts and stretches names the
candidates, and each of them is aligned and must then agree in its fine structure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

__all__ = ["AlignedPair", "PICTURE_SIDE", "aligned_pairs"]

PICTURE_SIDE = 64  # pixels; twice the side that is compared, so that a window of it is averaged, not interpolated
SIDE = 32  # pixels of what is compared
FREQUENCIES = 10  # a direction; the smoothed pictures have next to nothing above
SMOOTH = 1.5  # pixels of 32, standard deviation: 5% cut off from a side are 1.6 pixels, and must stay a small shift
# All of 1,500 radiographs that were cropped by 0 to 5% a side, resized, brightened and re-encoded pass this share of
# the variance, and of CoronaHack's 70 million ordered pairs, mirrored ones too, 4,353.
MIN_EXPLAINED = 0.9775
MIN_WIDTH, MAX_WIDTH = 0.87, 1.05  # of the whole; 5% a side leave 0.9
LEAST = (0.86, 0.94, 0.95)  # coarse structure below which a pair is dropped before a step
STEP_SMOOTH = 0.7  # pixels
FINE = (1.0, 0.5)  # pixels: what is coarser is taken out, what is finer smoothed away
COARSE = (2.0, 0.7)
# After alignment the nearest strangers among CoronaHack's images agree by 0.84 in the fine structure and two images of
# one patient in one position by up to 0.94; of the 1,500 copies 1,492 pass both limits.
MIN_FINE, MIN_COARSE = 0.93, 0.955
WHOLE = np.array([0, 0, 1, 1], dtype=np.float32)  # left, top, right, bottom
CROP = 0.01  # of a side; a window this near to the whole picture is no crop
ROWS, COLUMNS, PAIRS = 128, 1024, 256  # compared at once: their products stay in a core's cache
LOW = np.s_[:, :, :FREQUENCIES, :FREQUENCIES]
ODD = np.arange(1, FREQUENCIES**2) % FREQUENCIES % 2 == 1  # the cosines that change their sign in a mirror
CENTRES = ((np.arange(SIDE) + 0.5) / SIDE - 0.5).astype(np.float32)


class AlignedPair(NamedTuple):
    """Two pictures that are one, seen through a window or in a mirror.

    Attributes:
        first: Position of the picture that is laid over the other's window, or the other way round.
        second: Position of the other one, the larger of the two.
        mirrored: Whether one is the other's mirror image.
        cropped: Whether one shows a part of the other, more than 1% of a side less.
        correlation: Of the aligned pictures at 32 x 32 pixels, -1 to 1.
    """

    first: int
    second: int
    mirrored: bool
    cropped: bool
    correlation: float


def aligned_pairs(pictures: np.ndarray) -> list[AlignedPair]:
    """Find the pictures that agree after one is cropped by up to about 5% a side, mirrored, or both.

    Grey levels count by their rank only, so that any change of brightness, contrast or gamma is the same picture.

    Args:
        pictures: `(n, 64, 64)` uint8, each squashed to the square.

    Returns:
        The pairs, sorted. Takes time in proportion to n squared, memory in proportion to n.
    """
    found: dict[tuple[int, int], AlignedPair] = {}
    features = _features(pictures)
    candidates = np.array(list(_candidates(features)), dtype=np.intp).reshape(-1, 3)
    for start in range(0, len(candidates), PAIRS):
        some = candidates[start : start + PAIRS]
        for pair in _confirmed(pictures, some, _first_window(features, some)):
            known = found.setdefault((pair.first, pair.second), pair)
            if pair.correlation > known.correlation:  # the other way round, or a symmetric picture
                found[pair.first, pair.second] = pair
    return [found[key] for key in sorted(found)]


class _Features(NamedTuple):
    """Pictures in d cosines: an orthonormal basis of each one's tangents `(n, 5, d)`, what leads from it back to shift
    and stretch `(n, 5, 5)`, and its unit vector `(n, d)`."""

    bases: np.ndarray
    triangles: np.ndarray
    units: np.ndarray


def _features(pictures: np.ndarray) -> _Features:
    """Return the features.

    A basis spans the picture and its derivatives by shift and stretch in both directions, so the squared projection
    of another picture on it is the share of its variance that small changes of the window explain (tangent distance,
    after Simard, LeCun and Denker 1993).
    """
    n, size = len(pictures), FREQUENCIES**2 - 1  # without the mean
    features = _Features(*(np.zeros(shape, np.float32) for shape in ((n, 5, size), (n, 5, 5), (n, size))))
    for start in range(0, n, ROWS):
        part = slice(start, start + ROWS)
        smooth = _smooth(_ranks(_shrink(pictures[part])), SMOOTH)
        low = dctn(_tangents(smooth), axes=(2, 3), norm="ortho")[LOW].reshape(len(smooth), 5, -1)[:, :, 1:]
        norm = np.linalg.norm(low[:, 0], axis=1, keepdims=True)
        seen = norm > 1e-3 * SIDE  # a blank picture spans nothing
        features.units[part] = np.divide(low[:, 0], norm, out=np.zeros_like(low[:, 0]), where=seen)
        bases, features.triangles[part] = np.linalg.qr(low.transpose(0, 2, 1))
        features.bases[part] = bases.transpose(0, 2, 1) * seen[:, :, None]
    return features


def _candidates(features: _Features) -> Iterator[tuple[int, int, int]]:
    """Yield first, second and mirrored (0 or 1) where the first one's tangents explain the second.

    Both ways round are tried: to take the better explained one alone loses 1 in 100 copies.
    """
    bases, units = features.bases.transpose(1, 0, 2), features.units.T
    even, odd = bases[:, :, ~ODD].copy(), bases[:, :, ODD].copy()
    even_units, odd_units = units[~ODD].copy(), units[ODD].copy()
    for start in range(0, units.shape[1], ROWS):
        for left in range(0, units.shape[1], COLUMNS):
            rows, columns = slice(start, start + ROWS), slice(left, left + COLUMNS)
            squares = products = np.zeros((), dtype=units.dtype)
            for tangent in range(5):
                plain = even[tangent, rows] @ even_units[:, columns]
                turned = odd[tangent, rows] @ odd_units[:, columns]
                products = products + plain * turned
                plain *= plain
                turned *= turned
                squares = squares + plain + turned
            for mirrored, sign in ((0, 2), (1, -2)):  # (even + odd)^2, and (even - odd)^2 of the mirror image
                for row, column in zip(*np.nonzero(squares + sign * products > MIN_EXPLAINED), strict=True):
                    if start + row != left + column:
                        yield start + int(row), left + int(column), mirrored


def _first_window(features: _Features, candidates: np.ndarray) -> np.ndarray:
    """Return where the linear model sees the second picture in the first: left, top, right, bottom of 0 to 1."""
    first, second, mirrored = candidates.T
    seen = features.units[second] * np.where(ODD & (mirrored[:, None] == 1), -1, 1)
    triangles = features.triangles[first] + 1e-6 * np.eye(5)
    change = np.linalg.solve(triangles, features.bases[first] @ seen[:, :, None])[:, :, 0]
    return _moved(np.tile(WHOLE, (len(candidates), 1)), change)


def _confirmed(pictures: np.ndarray, candidates: np.ndarray, window: np.ndarray) -> Iterator[AlignedPair]:
    """Align the candidates, from the windows given, and yield those that agree."""
    whole, other = pictures[candidates[:, 0]], pictures[candidates[:, 1]]
    mirrored = candidates[:, 2] == 1
    other[mirrored] = other[mirrored, :, ::-1]
    part = _shrink(other)
    ranks = _ranks(part)
    for least in LEAST:
        moved = _ranks(_through(whole, window))
        keep = _structure(moved, ranks, COARSE) >= least
        candidates, whole, part, ranks, window = (values[keep] for values in (candidates, whole, part, ranks, window))
        window = _step(window, _smooth(moved[keep], STEP_SMOOTH), _smooth(ranks, STEP_SMOOTH))
    seen = _through(whole, window)
    moved = _ranks(seen)
    agree = (_structure(moved, ranks, COARSE) > MIN_COARSE) & (_structure(moved, ranks, FINE) > MIN_FINE)
    cropped = np.abs(window - WHOLE).max(axis=1, initial=0) > CROP
    correlation = _correlation(seen, part)
    for (first, second, mirror), is_cropped, value in zip(
        candidates[agree].tolist(), cropped[agree].tolist(), correlation[agree].tolist(), strict=True
    ):
        yield AlignedPair(min(first, second), max(first, second), bool(mirror), is_cropped, value)


def _step(window: np.ndarray, moved: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the windows after one step of Gauss and Newton towards the target."""
    tangents = _tangents(moved).reshape(-1, 5, SIDE**2)
    tangents -= tangents.mean(axis=2, keepdims=True)
    gram = tangents @ tangents.transpose(0, 2, 1)
    gram += (1e-6 * np.trace(gram, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(5, dtype=np.float32)
    return _moved(window, np.linalg.solve(gram, tangents @ target.reshape(-1, SIDE**2, 1))[:, :, 0])


def _moved(window: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return the windows after a change: contrast, shift across and down, stretch across and down."""
    contrast = np.maximum(change[:, :1], 1e-3 * np.abs(change).max(axis=1, keepdims=True) + 1e-12)
    change = np.clip(change[:, 1:] / contrast, MIN_WIDTH - 1, 1 - MIN_WIDTH)
    width = window[:, 2:] - window[:, :2]
    reach = (1 - MIN_WIDTH) / 2
    middle = np.clip((window[:, 2:] + window[:, :2]) / 2 + change[:, :2] * width, 0.5 - reach, 0.5 + reach)
    width = np.clip(width * (1 + change[:, 2:]), MIN_WIDTH, MAX_WIDTH)
    return np.concatenate([middle - width / 2, middle + width / 2], axis=1).astype(np.float32)


def _through(pictures: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return what each window shows, as means over 32 x 32 cells; beyond the edge the picture goes on as it ends."""
    across, down = _cells(window[:, 0], window[:, 2]), _cells(window[:, 1], window[:, 3])
    return down @ pictures.astype(np.float32) @ across.transpose(0, 2, 1)


def _cells(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return matrices `(n, 32, 64)` that average the pixels between two edges, given as shares of the side."""
    edges = (low[:, None] + (high - low)[:, None] * (np.arange(SIDE + 1) / SIDE)) * PICTURE_SIDE
    covered = np.clip(edges[:, :, None] - np.arange(PICTURE_SIDE), 0, 1)
    covered[:, :, 0] += np.minimum(edges, 0)
    covered[:, :, -1] += np.maximum(edges - PICTURE_SIDE, 0)
    weights = np.diff(covered, axis=1)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def _shrink(pictures: np.ndarray) -> np.ndarray:
    return pictures.reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4), dtype=np.float32)


def _ranks(pictures: np.ndarray) -> np.ndarray:
    """Replace each grey level by its mean rank in the picture, -0.5 to 0.5, alike for all pixels of one level."""
    levels = (pictures + 0.5).astype(np.uint8).reshape(-1, SIDE**2).astype(np.intp)
    levels += 256 * np.arange(len(pictures))[:, None]
    counts = np.bincount(levels.ravel(), minlength=256 * len(pictures)).reshape(-1, 256)
    ranks = (counts.cumsum(axis=1) - counts / 2) / SIDE**2 - 0.5
    return ranks.astype(np.float32).ravel()[levels].reshape(-1, SIDE, SIDE)


def _tangents(pictures: np.ndarray) -> np.ndarray:
    """Return the pictures and their derivatives by shift and stretch, `(n, 5, 32, 32)`; a shift of 1 is the side."""
    down, across = np.gradient(pictures, axis=1) * SIDE, np.gradient(pictures, axis=2) * SIDE
    return np.stack([pictures, across, down, across * CENTRES, down * CENTRES[:, None]], axis=1)


def _structure(first: np.ndarray, second: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Correlate what is left of the pictures between two scales: the coarse shape of a chest is everybody's."""
    coarse, fine = scale
    return _correlation(*(_smooth(picture - _smooth(picture, coarse), fine) for picture in (first, second)))


def _smooth(pictures: np.ndarray, deviation: float) -> np.ndarray:
    return gaussian_filter(pictures, (0, deviation, deviation), mode="nearest")


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = (picture.reshape(-1, SIDE**2) for picture in (first, second))
    first, second = (picture - picture.mean(axis=1, keepdims=True) for picture in (first, second))
    norm = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(axis=1), norm, out=np.zeros_like(norm), where=norm > 0)
