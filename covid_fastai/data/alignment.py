"""Confirmation of copies: whether two images agree in fine detail after one is placed on the other.

The affine map that `match_images` found is improved by Gauss-Newton steps on the locally standardised images. Then the
fine structure must agree in most blocks of the common part: two exposures of one patient agree in their outlines, but
not in detail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, minimum_filter, uniform_filter

from covid_fastai.data.keypoint_search import Matches, match_images
from covid_fastai.data.keypoints import FLOOR, standardise

__all__ = [
    "AlignedPair",
    "INPUT_SIDE",
    "aligned_pairs",
    "equalised_pairs",
    "fewest_keypoints",
    "least_evidence",
    "measure_agreement",
]

INPUT_SIDE = 64  # pixels
WINDOW = 13  # pixels; side of the box of the local standardisation, twice
COARSE_STEPS = (1.5, 1.5, 1.5)  # pixels, standard deviation of the smoothing in each Gauss-Newton step
FINE_STEPS = (1.5, 0.7)
LAST_STEP = 0.7  # of the step on images that are standardised where both show something
MARGIN = 6  # pixels; nearer to an edge, the local standardisation depends on what a crop has cut off
OUTLIER = 0.7  # residual, in local standard deviations, beyond which a pixel counts little
MIN_COARSE = 0.7  # correlation after the first steps; of copies with a strong local equalisation 0.8
MIN_ROUGH = 0.65  # median before the last step; nine of ten pairs that are no copies have less
FINE = (1.5, 0.6)  # pixels, the band of a difference of Gaussians: upper and lower standard deviation
FINEST = 0.8  # pixels, the standard deviation above which the finest structure lies
BLOCK = 8  # pixels; side of a block
MIN_VALID = 0.75  # fraction of a block's pixels that both images show
MIN_ENERGY = 0.02  # of a block's fine structure; less is noise of an even region
EDGE = 1.5  # pixels; places nearer to the edge of the second image are not compared
SMOOTH = 1.5  # pixels, standard deviation; what remains does not depend on how an image was resized
TRIMMED = 0.2  # fraction of the pixels that may differ: letters, corners, the edge of a frame
INTERIOR = 7  # pixels; side of the box in which all pixels are compared, so that smoothing mixes in no others
PAIRS = 32  # compared together; their images stay in a core's cache
# Two images are compared if this many keypoints match, among up to `FEW_IMAGES`, with this much evidence (`Matches`).
MIN_KEYPOINTS, MIN_EVIDENCE, EVIDENCE_PER_KEYPOINT = 6, 38.0, 5.0
FEW_IMAGES = 10_000
# The limits were set on copies of 50 images of CoronaHack and its other pairs, 17 million. Two images of different
# patients have a median of at most 0.84, but for one pair of neighbouring numbers with 0.89, and correlate by at most
# 0.997 without 20% of the pixels. Drawings of one patient share their fine detail, but differ in their shading.
MIN_BLOCKS = 12
MIN_MEDIAN, MIN_SHADING, MIN_TONES = 0.92, 0.9998, 0.9999
MIN_MEDIAN_DETAILED, MIN_FINEST_DETAILED = 0.93, 0.965
# A local equalisation changes the shading more than another exposure does, and no tone curve undoes it: the tones agree
# by at most 0.992. But the detail is the same everywhere: three quarters of the blocks agree by 0.83 or more. Two drawn
# patients have similar ribs; three quarters of their blocks agree by less, or the tones by 0.993 or more.
MAX_SHADING_EQUALISED, MAX_TONES_EQUALISED = 0.99, 0.9935
MIN_MEDIAN_EQUALISED, MIN_QUARTILE_EQUALISED, MIN_FINEST_EQUALISED = 0.91, 0.825, 0.79
# The same of whole images with similar hashes, which are fewer: of 2,000 images of CoronaHack, different ones have at
# most 0.56 and 0.77; copies with a strong equalisation have 0.88 and 0.93 or more, of drawings 0.85 and 0.89.
MIN_FINEST_WHOLE, MIN_MEDIAN_WHOLE = 0.83, 0.87
TURN = 1.5  # degrees; less is not called turned
CROP = 0.02  # fraction of a side; corners that differ less are not called cropped

INNER = np.zeros((INPUT_SIDE, INPUT_SIDE), bool)
INNER[MARGIN:-MARGIN, MARGIN:-MARGIN] = True


class AlignedPair(NamedTuple):
    """Two images that are copies of each other, possibly cropped, turned, mirrored or inverted.

    Attributes:
        first: Position of one image, the smaller of the two positions.
        second: Position of the other image.
        kind: What differs most: mirrored, inverted, turned, cropped or near.
        correlation: Correlation of the pixel intensities in the common part, -1 to 1; of the negative if inverted.
    """

    first: int
    second: int
    kind: str
    correlation: float


class Agreement(NamedTuple):
    """How well the images of n pairs agree after alignment.

    Attributes:
        maps: The improved maps, `(n, 2, 3)`.
        blocks: Number of blocks of 8 x 8 pixels that were compared, `(n,)`.
        median: Median over the blocks of the correlation of the fine structure, `(n,)`; 0 without a block.
        quartile: The lower quartile of the same.
        finest: The same of the finest structure.
        shading: Correlation of the smoothed intensities in the common part, without the 20% of the pixels that differ
            most, `(n,)`.
        tones: The same after the second image was given the histogram of the first one.
        correlation: Correlation of the intensities in the common part, `(n,)`.
    """

    maps: np.ndarray
    blocks: np.ndarray
    median: np.ndarray
    quartile: np.ndarray
    finest: np.ndarray
    shading: np.ndarray
    tones: np.ndarray
    correlation: np.ndarray


def fewest_keypoints(images: int) -> int:
    """Return how many keypoints must match before two images are compared: 6 up to 10,000 images, 13 for 100,000.

    The pairs of images that share keypoints by chance grow with the square of the number of images, and one keypoint
    more nearly halves them. Two more keypoints for each doubling keep the time for comparisons in bounds, and miss more
    of the copies that show less than the original.

    Args:
        images: Number of images.
    """
    return MIN_KEYPOINTS + max(0, round(2 * math.log2(max(images, 1) / FEW_IMAGES)))


def least_evidence(images: int) -> float:
    """Return how much evidence (`Matches.evidence`) the matching keypoints of two images need, as `fewest_keypoints`.

    Args:
        images: Number of images.
    """
    return MIN_EVIDENCE + EVIDENCE_PER_KEYPOINT * (fewest_keypoints(images) - MIN_KEYPOINTS)


def aligned_pairs(
    images: np.ndarray,
    keypoints: np.ndarray,
    owners: np.ndarray | None = None,
    *,
    apart: np.ndarray | None = None,
) -> list[AlignedPair]:
    """Return the pairs of images that are copies of each other.

    Args:
        images: `(n, 64, 64)` uint8, each a view of an image, squashed to a square.
        keypoints: `(n, 32)` of the type `KEYPOINT`, of the same views.
        owners: The image that each view is of, `(n,)`; None if each is of another one.
        apart: A number for each image; two with the same number are not compared. None to compare all.

    Returns:
        The pairs of images, sorted by their positions. Of two images with several views, the views that differ least.
    """
    owners = np.arange(len(images)) if owners is None else owners
    count = len(np.unique(owners))
    limits = {"min_count": fewest_keypoints(count), "min_evidence": least_evidence(count)}
    matches = match_images(keypoints, **limits, owners=owners if apart is None else apart[owners])
    pairs: dict[tuple[int, int], AlignedPair] = {}
    for start in range(0, len(matches.first), PAIRS):
        part = Matches(*(values[start : start + PAIRS] for values in matches))
        first, second = images[part.first], images[part.second]
        second = np.where(part.inverted[:, None, None], 255 - second, second)
        maps, coarse = _align(first, second, part.maps)
        near = np.flatnonzero(coarse > MIN_COARSE)
        if len(near):
            maps, rough = _align_finely(first[near], second[near], maps[near])
            near, maps = near[rough > MIN_ROUGH], maps[rough > MIN_ROUGH]
        if not len(near):
            continue
        part = Matches(*(values[near] for values in part))
        agreement = _measure(first[near], second[near], maps)
        for row in np.flatnonzero(_are_copies(agreement)):
            ends = int(owners[part.first[row]]), int(owners[part.second[row]])
            kind = _kind(agreement.maps[row], inverted=bool(part.inverted[row]))
            pair = AlignedPair(min(ends), max(ends), kind, float(agreement.correlation[row]))
            pairs[pair[:2]] = max(
                pair, pairs.get(pair[:2], pair), key=lambda pair: (pair.kind == "near", pair.correlation)
            )
    return [pairs[ends] for ends in sorted(pairs)]


def equalised_pairs(images: np.ndarray, pairs: Sequence[tuple[int, int]]) -> list[AlignedPair]:
    """Return the pairs of whole images that agree in fine detail, however the brightness was changed.

    Args:
        images: `(n, 64, 64)` uint8, squashed to a square.
        pairs: Positions of the images to compare, the smaller one first.

    Returns:
        The pairs that are copies of each other, in the given order.
    """
    found = []
    for start in range(0, len(pairs), PAIRS):
        part = np.array(pairs[start : start + PAIRS])
        first, second = images[part[:, 0]], images[part[:, 1]]
        maps, coarse = _align(first, second, np.repeat(np.eye(2, 3)[None], len(part), axis=0))
        agreement = measure_agreement(first, second, maps)
        copies = (agreement.median > MIN_MEDIAN_WHOLE) & (agreement.finest > MIN_FINEST_WHOLE)
        for row in np.flatnonzero(copies & (coarse > MIN_COARSE) & (agreement.blocks >= MIN_BLOCKS)):
            kind = _kind(agreement.maps[row], inverted=False)
            found.append(AlignedPair(int(part[row, 0]), int(part[row, 1]), kind, float(agreement.correlation[row])))
    return found


def _are_copies(agreement: Agreement) -> np.ndarray:
    same_shading = agreement.median > MIN_MEDIAN
    same_shading &= (agreement.shading > MIN_SHADING) | (agreement.tones > MIN_TONES)
    detailed = (agreement.median > MIN_MEDIAN_DETAILED) & (agreement.finest > MIN_FINEST_DETAILED)
    equalised = (agreement.median > MIN_MEDIAN_EQUALISED) & (agreement.finest > MIN_FINEST_EQUALISED)
    equalised &= agreement.quartile > MIN_QUARTILE_EQUALISED
    equalised &= (agreement.shading < MAX_SHADING_EQUALISED) & (agreement.tones < MAX_TONES_EQUALISED)
    return (same_shading | detailed | equalised) & (agreement.blocks >= MIN_BLOCKS)


def _kind(affine: np.ndarray, *, inverted: bool) -> str:
    """Name what differs most between two copies, from the map of one to the other."""
    linear = affine[:, :2]
    if np.linalg.det(linear) < 0:
        return "mirrored"
    if inverted:
        return "inverted"
    turn = np.rad2deg(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    if abs(turn) > TURN:
        return "turned"
    return "cropped" if np.abs(_corners(affine) - _corners(np.eye(2, 3))).max() > CROP else "near"


def _corners(affine: np.ndarray) -> np.ndarray:
    """Return where the corners of the first image are in the second one."""
    return np.array([(x, y, 1) for x in (-0.5, 0.5) for y in (-0.5, 0.5)]) @ affine.T


def _align(images: np.ndarray, others: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps after the first steps, and the correlation of the locally standardised images, `(n,)`."""
    first, second = (_smooth(standardise(pixels, WINDOW), COARSE_STEPS[0]) for pixels in (images, others))
    for _ in COARSE_STEPS:
        maps = _refine(first, second, maps)
    x, y = _positions(maps)
    return maps, _correlate(first, _sample(second, x, y), _inside(x, y))


def measure_agreement(images: np.ndarray, others: np.ndarray, maps: np.ndarray) -> Agreement:
    """Improve the maps of pairs, and measure how well their images agree.

    Args:
        images: The first images, `(n, 64, 64)` uint8.
        others: The second images, inverted if they are negatives of the first.
        maps: From the first to the second, `(n, 2, 3)`, as `match_images` returns them.
    """
    return _measure(images, others, _align_finely(images, others, maps)[0])


def _align_finely(images: np.ndarray, others: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps after the fine steps, and a first estimate of the median over the blocks, `(n,)`."""
    first, second = standardise(images, WINDOW), standardise(others, WINDOW)
    for deviation in FINE_STEPS:
        maps = _refine(_smooth(first, deviation), _smooth(second, deviation), maps)
    x, y = _positions(maps)
    valid = _inside(x, y)
    band, other = (_smooth(image, FINE[1]) - _smooth(image, FINE[0]) for image in (first, _sample(second, x, y)))
    return maps, _agree(band, other, valid)[1]


def _measure(images: np.ndarray, others: np.ndarray, maps: np.ndarray) -> Agreement:
    """Take the last step, and measure how well the images agree."""
    plain, moving = images.astype(np.float32), others.astype(np.float32)
    x, y = _positions(maps)
    first, second = _standardise_common(plain, _sample(moving, x, y), _inside(x, y))
    maps = _step(_smooth(first, LAST_STEP), _smooth(second, LAST_STEP), _interior(_inside(x, y)), maps)
    x, y = _positions(maps)
    valid, moved = _inside(x, y), _sample(moving, x, y)
    first, second = _standardise_common(plain, moved, valid)
    band, other_band = (_smooth(image, FINE[1]) - _smooth(image, FINE[0]) for image in (first, second))
    blocks, median, quartile = _agree(band, other_band, valid)
    _, finest, _ = _agree(first - _smooth(first, FINEST), second - _smooth(second, FINEST), valid)
    weight = _smooth(valid.astype(np.float32), SMOOTH) + 1e-6
    a, b = (_smooth(np.where(valid, image, 0), SMOOTH) / weight for image in (plain, moved))
    shading, tones = (
        _correlate(a, other, _without_outliers(a, other, valid)) for other in (b, _match_tones(b, a, valid))
    )
    return Agreement(maps, blocks, median, quartile, finest, shading, tones, _correlate(plain, moved, valid))


def _match_tones(images: np.ndarray, references: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return images with the histograms of others, so that a tone curve or a window changes nothing."""
    n = len(images)
    values, targets = (np.where(valid, pixels, np.inf).reshape(n, -1) for pixels in (images, references))
    matched = np.zeros_like(values)
    np.put_along_axis(matched, np.argsort(values, axis=1), np.sort(targets, axis=1), axis=1)
    return np.where(valid, matched.reshape(images.shape), 0)


def _without_outliers(first: np.ndarray, second: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the valid pixels without the 20% that are farthest from a line between the intensities, `(n, h, w)`."""
    n = len(first)
    a, b, all_valid = (values.reshape(n, -1) for values in (first, second, valid))
    kept = all_valid
    for _ in range(3):
        count = np.maximum(kept.sum(axis=1, keepdims=True), 1)
        across, up = (values - (values * kept).sum(axis=1, keepdims=True) / count for values in (a, b))
        slope = (across * up * kept).sum(axis=1) / np.maximum((across * across * kept).sum(axis=1), 1e-6)
        residual = np.where(all_valid, np.abs(up - slope[:, None] * across), np.inf)
        last = np.maximum(np.ceil((1 - TRIMMED) * all_valid.sum(axis=1)).astype(np.intp) - 1, 0)
        kept = all_valid & (residual <= np.take_along_axis(np.sort(residual, axis=1), last[:, None], axis=1))
    return kept.reshape(valid.shape)


def _positions(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the pixels of the first image are in the second one, in pixels, `(n, 64, 64)` each."""
    centre = (np.arange(INPUT_SIDE) + 0.5) / INPUT_SIDE - 0.5
    grid_y, grid_x = np.meshgrid(centre, centre, indexing="ij")
    places = np.stack([grid_x, grid_y, np.ones_like(grid_x)]).reshape(3, -1)
    moved = ((maps @ places + 0.5) * INPUT_SIDE - 0.5).astype(np.float32)
    shape = (len(maps), INPUT_SIDE, INPUT_SIDE)
    return moved[:, 0].reshape(shape), moved[:, 1].reshape(shape)


def _inside(x: np.ndarray, y: np.ndarray, edge: float = EDGE) -> np.ndarray:
    low, high = edge - 0.5, INPUT_SIDE - 0.5 - edge
    return (x >= low) & (x <= high) & (y >= low) & (y <= high)


def _interior(valid: np.ndarray) -> np.ndarray:
    """Return the valid pixels around which all others are valid, too."""
    return minimum_filter(valid, (1, INTERIOR, INTERIOR), mode="constant", cval=False)


def _standardise_common(first: np.ndarray, second: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardise two images by the surroundings that both show, so that a crop changes nothing; 0 elsewhere."""
    size = (1, WINDOW, WINDOW)

    def total(values: np.ndarray) -> np.ndarray:
        return uniform_filter(uniform_filter(values, size, mode="constant"), size, mode="constant")

    common = valid.astype(np.float32)
    weight = np.maximum(total(common), 1e-3)
    standardised = []
    for image in (first, second):
        mean = total(image * common) / weight
        variance = np.maximum(total(image * image * common) / weight - mean * mean, 0)
        standardised.append((image - mean) / (np.sqrt(variance) + FLOOR) * common)
    return standardised[0], standardised[1]


def _sample(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate images linearly; the pixels at the edge are repeated outside."""
    x, y = np.clip(x, 0, INPUT_SIDE - 1.001), np.clip(y, 0, INPUT_SIDE - 1.001)
    column, row = x.astype(np.intp), y.astype(np.intp)
    across, down = x - column, y - row
    flat = images.reshape(len(images), -1)
    start = (row * INPUT_SIDE + column).reshape(len(images), -1)
    corner = [
        np.take_along_axis(flat, start + step, axis=1).reshape(x.shape) for step in (0, 1, INPUT_SIDE, INPUT_SIDE + 1)
    ]
    top = corner[0] + across * (corner[1] - corner[0])
    bottom = corner[2] + across * (corner[3] - corner[2])
    return top + down * (bottom - top)


def _refine(first: np.ndarray, second: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Return the maps after a step that leaves out the margins of both images."""
    x, y = _positions(maps)
    return _step(first, _sample(second, x, y), _inside(x, y, MARGIN + 0.5) & INNER, maps)


def _step(first: np.ndarray, moved: np.ndarray, valid: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Return the maps after a Gauss-Newton step with robust weights.

    Args:
        first: The first images, `(n, 64, 64)`.
        moved: The second images, placed on the first ones by the maps.
        valid: Which pixels are compared.
        maps: `(n, 2, 3)`.
    """
    n = len(maps)
    residual = (first - moved).reshape(n, -1)
    slope_y, slope_x = (slope.reshape(n, -1) * INPUT_SIDE for slope in np.gradient(moved, axis=(1, 2)))
    weight = valid.reshape(n, -1) / (1 + (residual / OUTLIER) ** 2)
    centre = ((np.arange(INPUT_SIDE) + 0.5) / INPUT_SIDE - 0.5).astype(np.float32)
    place_y, place_x = (grid.ravel() for grid in np.meshgrid(centre, centre, indexing="ij"))
    columns = [slope * factor for slope in (slope_x, slope_y) for factor in (place_x, place_y, np.float32(1))]
    tangents = np.stack(columns, axis=1)  # (n, 6, 4096)
    weighted = tangents * weight[:, None]
    gram = weighted @ tangents.transpose(0, 2, 1)
    gram += (1e-4 * np.trace(gram, axis1=1, axis2=2)[:, None, None] + 1e-6) * np.eye(6)
    change = np.linalg.solve(gram, weighted @ residual[:, :, None])[:, :, 0].reshape(n, 2, 3)
    change = np.clip(change, -0.08, 0.08)
    # the places of the first image move before the map, since the slopes are those on its grid
    linear = maps[:, :, :2]
    return maps + linear @ change


def _agree(first: np.ndarray, second: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the number of compared blocks, and the median and lower quartile of their correlations, `(n,)` each."""
    n, cells = len(first), INPUT_SIDE // BLOCK
    shape = (n, cells, BLOCK, cells, BLOCK)
    a, b, v = (
        values.reshape(shape).transpose(0, 1, 3, 2, 4).reshape(n, cells**2, -1) for values in (first, second, valid)
    )
    count = v.sum(axis=2)
    a, b = a * v, b * v
    a = (a - (a.sum(axis=2) / np.maximum(count, 1))[:, :, None]) * v
    b = (b - (b.sum(axis=2) / np.maximum(count, 1))[:, :, None]) * v
    energy = (a * a).sum(axis=2), (b * b).sum(axis=2)
    usable = (count >= MIN_VALID * BLOCK**2) & (np.minimum(*energy) > MIN_ENERGY)
    norm = np.sqrt(energy[0] * energy[1])
    value = np.divide((a * b).sum(axis=2), norm, out=np.zeros_like(norm), where=usable)
    ordered = np.sort(np.where(usable, value, np.inf), axis=1)
    compared = usable.sum(axis=1)
    median, quartile = (
        np.where(compared, ordered[np.arange(n), np.maximum((compared - 1) // part, 0)], 0) for part in (2, 4)
    )
    return compared, median, quartile


def _correlate(first: np.ndarray, second: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the correlation of two images where both are valid."""
    n = len(first)
    weight = valid.reshape(n, -1).astype(np.float32)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
    a, b = (image.reshape(n, -1) for image in (first, second))
    a, b = ((values - (values * weight).sum(axis=1, keepdims=True) / total) * weight for values in (a, b))
    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros_like(norm), where=norm > 0)


def _smooth(images: np.ndarray, deviation: float) -> np.ndarray:
    return gaussian_filter(images, (0, deviation, deviation), mode="nearest")
