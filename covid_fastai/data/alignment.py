"""Detection of cropped and mirrored copies: image pairs that agree after alignment.

Every image is compared with every other one in two steps. A linear model of small shifts and stretches selects the
candidates. Each candidate pair is then aligned, and its fine structure must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

__all__ = ["AlignedPair", "INPUT_SIDE", "aligned_pairs"]

INPUT_SIDE = 64  # pixels; twice the compared side, so that windows are averaged and not interpolated
SIDE = 32  # pixels; images are compared at this size
FREQUENCIES = 10  # per direction; the smoothed images contain almost no energy above
SMOOTH = 1.5  # pixels of 32, standard deviation: a 5% crop of a side is 1.6 pixels and must remain a small shift
# Minimum fraction of explained variance. All 1,500 test copies (radiographs cropped by 0 to 5% per side, resized,
# brightened and re-encoded) exceed it, and 4,353 of CoronaHack's 70 million ordered pairs, mirrored ones included.
MIN_EXPLAINED = 0.9775
MIN_WIDTH, MAX_WIDTH = 0.87, 1.05  # fraction of the full width; a 5% crop per side leaves 0.9
MIN_STEP_CORRELATIONS = (0.86, 0.94, 0.95)  # one per step: pairs whose coarse structure correlates less are dropped
STEP_SMOOTH = 0.7  # pixels, standard deviation
FINE = (1.0, 0.5)  # pixels, the band of a difference of Gaussians: upper and lower standard deviation
COARSE = (2.0, 0.7)
# After alignment, the fine structure of the most similar CoronaHack images of different patients correlates by 0.84,
# that of two images of one patient in the same position by up to 0.94. 1,492 of the 1,500 copies pass both limits.
MIN_FINE, MIN_COARSE = 0.93, 0.955
WHOLE = np.array([0, 0, 1, 1], dtype=np.float32)  # left, top, right, bottom
CROP = 0.01  # fraction of a side; a window that differs less from the full image counts as uncropped
ROWS, COLUMNS, PAIRS = 128, 1024, 256  # block sizes; the products of a block fit in the cache of a CPU core
LOW = np.s_[:, :, :FREQUENCIES, :FREQUENCIES]
ODD = np.arange(1, FREQUENCIES**2) % FREQUENCIES % 2 == 1  # the cosines whose sign changes when the image is mirrored
CENTRES = ((np.arange(SIDE) + 0.5) / SIDE - 0.5).astype(np.float32)


class AlignedPair(NamedTuple):
    """Two images that are copies of each other, possibly cropped or mirrored.

    Attributes:
        first: Position of one image, the smaller of the two positions.
        second: Position of the other image.
        mirrored: Whether one image is the mirror image of the other.
        cropped: Whether one image is a crop of the other that lacks more than 1% of a side.
        correlation: Correlation of the aligned images at 32 x 32 pixels, -1 to 1.
    """

    first: int
    second: int
    mirrored: bool
    cropped: bool
    correlation: float


def aligned_pairs(images: np.ndarray) -> list[AlignedPair]:
    """Return the pairs of images that agree after cropping by up to about 5% per side, mirroring, or both.

    Only the ranks of the pixel intensities are compared, so changes of brightness, contrast or gamma have no effect.
    The time grows with the square of n, the memory in proportion to n.

    Args:
        images: `(n, 64, 64)` uint8, each squashed to a square.

    Returns:
        The pairs, sorted by their positions.
    """
    pairs: dict[tuple[int, int], AlignedPair] = {}
    features = _features(images)
    candidates = np.array(list(_candidates(features)), dtype=np.intp).reshape(-1, 3)
    for start in range(0, len(candidates), PAIRS):
        block = candidates[start : start + PAIRS]
        for pair in _confirm_pairs(images, block, _initial_windows(features, block)):
            known = pairs.setdefault((pair.first, pair.second), pair)
            if pair.correlation > known.correlation:  # found in the other order too, or a symmetric image
                pairs[pair.first, pair.second] = pair
    return [pairs[key] for key in sorted(pairs)]


class _Features(NamedTuple):
    """Features of n images in d cosine coefficients, from the QR decomposition of each image's tangents.

    Attributes:
        bases: Orthonormal basis of the tangents, `(n, 5, d)` (Q, transposed).
        triangles: Coefficients of the tangents in that basis, `(n, 5, 5)` (R).
        units: Unit vector of the image, `(n, d)`.
    """

    bases: np.ndarray
    triangles: np.ndarray
    units: np.ndarray


def _features(images: np.ndarray) -> _Features:
    """Return the features of the images.

    A basis spans the image and its derivatives by shift and stretch in both directions. The squared length of another
    image's projection on it is the fraction of variance that small changes of the window explain (tangent distance,
    Simard, LeCun and Denker 1993).
    """
    n, size = len(images), FREQUENCIES**2 - 1  # without the mean
    features = _Features(*(np.zeros(shape, np.float32) for shape in ((n, 5, size), (n, 5, 5), (n, size))))
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        smooth = _smooth(_ranks(_shrink(images[rows])), SMOOTH)
        low = dctn(_tangents(smooth), axes=(2, 3), norm="ortho")[LOW].reshape(len(smooth), 5, -1)[:, :, 1:]
        norm = np.linalg.norm(low[:, 0], axis=1, keepdims=True)
        not_blank = norm > 1e-3 * SIDE  # a blank image has no direction: its features remain 0
        features.units[rows] = np.divide(low[:, 0], norm, out=np.zeros_like(low[:, 0]), where=not_blank)
        bases, features.triangles[rows] = np.linalg.qr(low.transpose(0, 2, 1))
        features.bases[rows] = bases.transpose(0, 2, 1) * not_blank[:, :, None]
    return features


def _candidates(features: _Features) -> Iterator[tuple[int, int, int]]:
    """Yield first, second and mirrored (0 or 1) of the pairs where the tangents of the first explain the second.

    Both orders of a pair are candidates: keeping only the better explained one would miss 1 in 100 copies.
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


def _initial_windows(features: _Features, candidates: np.ndarray) -> np.ndarray:
    """Estimate the window of the first image that shows the second: left, top, right, bottom on a scale of 0 to 1."""
    first, second, mirrored = candidates.T
    targets = features.units[second] * np.where(ODD & (mirrored[:, None] == 1), -1, 1)
    # least squares by QR: R @ change = Q^T @ target; the small diagonal makes R of a blank image solvable
    triangles = features.triangles[first] + 1e-6 * np.eye(5)
    change = np.linalg.solve(triangles, features.bases[first] @ targets[:, :, None])[:, :, 0]
    return _change_windows(np.tile(WHOLE, (len(candidates), 1)), change)


def _confirm_pairs(images: np.ndarray, candidates: np.ndarray, window: np.ndarray) -> Iterator[AlignedPair]:
    """Align the candidates, starting from the given windows, and yield the pairs that agree."""
    whole, other = images[candidates[:, 0]], images[candidates[:, 1]]
    mirrored = candidates[:, 2] == 1
    other[mirrored] = other[mirrored, :, ::-1]
    target = _shrink(other)
    target_ranks = _ranks(target)
    for min_correlation in MIN_STEP_CORRELATIONS:
        view_ranks = _ranks(_window_views(whole, window))
        keep = _band_correlation(view_ranks, target_ranks, COARSE) >= min_correlation
        candidates, whole, target, target_ranks, window = (
            values[keep] for values in (candidates, whole, target, target_ranks, window)
        )
        window = _gauss_newton_step(window, _smooth(view_ranks[keep], STEP_SMOOTH), _smooth(target_ranks, STEP_SMOOTH))
    view = _window_views(whole, window)
    view_ranks = _ranks(view)
    agree = (_band_correlation(view_ranks, target_ranks, COARSE) > MIN_COARSE) & (
        _band_correlation(view_ranks, target_ranks, FINE) > MIN_FINE
    )
    cropped = np.abs(window - WHOLE).max(axis=1, initial=0) > CROP
    correlation = _correlation(view, target)
    for (first, second, mirror), is_cropped, value in zip(
        candidates[agree].tolist(), cropped[agree].tolist(), correlation[agree].tolist(), strict=True
    ):
        yield AlignedPair(min(first, second), max(first, second), bool(mirror), is_cropped, value)


def _gauss_newton_step(window: np.ndarray, view: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the windows after one Gauss-Newton step of their views towards the target."""
    tangents = _tangents(view).reshape(-1, 5, SIDE**2)
    tangents -= tangents.mean(axis=2, keepdims=True)
    gram = tangents @ tangents.transpose(0, 2, 1)
    # damping relative to the trace (and 1e-9 for a blank view) keeps the matrix invertible
    gram += (1e-6 * np.trace(gram, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(5, dtype=np.float32)
    return _change_windows(window, np.linalg.solve(gram, tangents @ target.reshape(-1, SIDE**2, 1))[:, :, 0])


def _change_windows(window: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return the windows after a change, within the allowed widths and positions.

    Args:
        window: `(n, 4)`, left, top, right, bottom.
        change: `(n, 5)`, coefficients of the tangents: contrast, shift across and down, stretch across and down.
    """
    # shift and stretch are relative to the contrast; the lower bound avoids a division by 0 or a negative contrast
    contrast = np.maximum(change[:, :1], 1e-3 * np.abs(change).max(axis=1, keepdims=True) + 1e-12)
    change = np.clip(change[:, 1:] / contrast, MIN_WIDTH - 1, 1 - MIN_WIDTH)
    width = window[:, 2:] - window[:, :2]
    reach = (1 - MIN_WIDTH) / 2
    middle = np.clip((window[:, 2:] + window[:, :2]) / 2 + change[:, :2] * width, 0.5 - reach, 0.5 + reach)
    width = np.clip(width * (1 + change[:, 2:]), MIN_WIDTH, MAX_WIDTH)
    return np.concatenate([middle - width / 2, middle + width / 2], axis=1).astype(np.float32)


def _window_views(images: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the content of each window as means over 32 x 32 cells; edge pixels are repeated beyond the image."""
    across, down = _cell_weights(window[:, 0], window[:, 2]), _cell_weights(window[:, 1], window[:, 3])
    return down @ images.astype(np.float32) @ across.transpose(0, 2, 1)


def _cell_weights(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return matrices `(n, 32, 64)` that average the pixels between two edges, given as fractions of the side."""
    edges = (low[:, None] + (high - low)[:, None] * (np.arange(SIDE + 1) / SIDE)) * INPUT_SIDE
    # length of each pixel left of an edge; the difference of two edges is what a cell covers of the pixel
    covered = np.clip(edges[:, :, None] - np.arange(INPUT_SIDE), 0, 1)
    covered[:, :, 0] += np.minimum(edges, 0)
    covered[:, :, -1] += np.maximum(edges - INPUT_SIDE, 0)
    weights = np.diff(covered, axis=1)
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def _shrink(images: np.ndarray) -> np.ndarray:
    """Return the images at half the size, as means of 2 x 2 pixels."""
    return images.reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4), dtype=np.float32)


def _ranks(images: np.ndarray) -> np.ndarray:
    """Replace each pixel intensity by its mean rank in the image, -0.5 to 0.5; equal intensities have equal ranks."""
    levels = (images + 0.5).astype(np.uint8).reshape(-1, SIDE**2).astype(np.intp)
    levels += 256 * np.arange(len(images))[:, None]  # one histogram for each image
    counts = np.bincount(levels.ravel(), minlength=256 * len(images)).reshape(-1, 256)
    ranks = (counts.cumsum(axis=1) - counts / 2) / SIDE**2 - 0.5
    return ranks.astype(np.float32).ravel()[levels].reshape(-1, SIDE, SIDE)


def _tangents(images: np.ndarray) -> np.ndarray:
    """Return the images and their derivatives by shift and stretch, `(n, 5, 32, 32)`; a shift of 1 is a full side."""
    down, across = np.gradient(images, axis=1) * SIDE, np.gradient(images, axis=2) * SIDE
    return np.stack([images, across, down, across * CENTRES, down * CENTRES[:, None]], axis=1)


def _band_correlation(first: np.ndarray, second: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Correlate the images in a band of scales: without the coarse shape of the chest, which all patients share."""
    coarse, fine = scale
    return _correlation(*(_smooth(image - _smooth(image, coarse), fine) for image in (first, second)))


def _smooth(images: np.ndarray, deviation: float) -> np.ndarray:
    return gaussian_filter(images, (0, deviation, deviation), mode="nearest")


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = (image.reshape(-1, SIDE**2) for image in (first, second))
    first, second = (image - image.mean(axis=1, keepdims=True) for image in (first, second))
    norm = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(axis=1), norm, out=np.zeros_like(norm), where=norm > 0)
