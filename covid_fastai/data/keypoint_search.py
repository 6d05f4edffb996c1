"""Search for images that share keypoints in the same arrangement, without a comparison of every pair.

The codes of all keypoints are put into hash tables by some of their bits (locality-sensitive hashing, Indyk and Motwani
1998). Two keypoints with similar codes meet in at least one table; each such match says how one image would have to be
turned, mirrored and shifted, and two matches that say the same make the pair a candidate. The matches of a candidate
are then fitted by an affine map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array

from covid_fastai.data.keypoints import COUNT, MIRROR, PLAIN, SCALES

__all__ = ["KeypointIndex", "Matches", "match_images"]

TABLES = 16
KEY_POOL = 40  # bits of a code that those of a table are chosen from: the lowest frequencies, which change least
MOST = 1000  # keypoints with one hash; more are a mark that many images have, and would fill the memory
MAX_BITS = 16  # of 64 that may differ between two matching codes
REACH = 0.25  # fraction of the side that a keypoint may be from where a turn about the centre puts it
SECTOR = 30  # degrees; matches in a common sector of this width agree about the rotation
SPREAD = 0.06  # fraction of the side; matches whose shifts are this close to the mean agree
MIN_VOTES = 2  # keypoints that agree
SIEVE_BITS, SIEVE_SPREAD, MIN_SIEVED = 18, 0.1, 6  # a candidate has this many keypoints with similar codes in place
FIT_BITS = 20  # of 64 that may differ between the codes of a fitted match
FIT_REACH = (0.1, 0.07, 0.05, 0.03)  # fraction of the side that a match may be off in each round of the fit
RIDGE = 0.02  # weight of the initial map, so that two or three matches do not fit a degenerate one
CELL_BITS = 22  # of the number of the cell in which the votes for a pair are counted first
QUERIES = 1024  # images that are looked up together
CANDIDATES = 4096  # pairs that are fitted together


class Matches(NamedTuple):
    """Pairs of images with keypoints in the same arrangement.

    Attributes:
        first: Positions among the queries, `(n,)`.
        second: Positions in the database, `(n,)`.
        maps: `(n, 2, 3)`: where a place of the first image is in the second one. Places are x and y relative to the
            centre, in units of the side.
        inverted: Whether bright spots of one are dark in the other, `(n,)`.
        matched: Number of matching keypoints, `(n,)`.
        evidence: Sum over the matching keypoints of the bits by which their codes are nearer than `FIT_BITS`, and less
            the farther they are from where the map puts them, `(n,)`. Matches by chance are barely near enough.
    """

    first: np.ndarray
    second: np.ndarray
    maps: np.ndarray
    inverted: np.ndarray
    matched: np.ndarray
    evidence: np.ndarray


def match_images(
    queries: np.ndarray,
    database: np.ndarray | KeypointIndex | None = None,
    *,
    min_count: int,
    min_evidence: float = 0.0,
    owners: np.ndarray | None = None,
) -> Matches:
    """Return the pairs of images of which enough keypoints match.

    Args:
        queries: `(n, 32)` of the type `KEYPOINT`.
        database: `(m, 32)` of the same type, or their index; None to compare the queries with each other, each pair
            once.
        min_count: The smallest number of matching keypoints, 6 or more.
        min_evidence: The smallest `Matches.evidence`.
        owners: Without a database: two queries with the same number are not compared, `(n,)`.

    Returns:
        The pairs, sorted by their positions.
    """
    others = queries if database is None else database
    others = others.keypoints if isinstance(others, KeypointIndex) else others
    fitted: list[Matches] = []
    if len(queries) and len(others):
        if database is None and owners is None:
            owners = np.arange(len(queries))
        index = database if isinstance(database, KeypointIndex) else KeypointIndex(others)
        for candidates in _candidates(queries, index, owners if database is None else None):
            for start in range(0, len(candidates), CANDIDATES):
                maps = _fit_maps(queries, others, candidates[start : start + CANDIDATES])
                enough = (maps.matched >= min_count) & (maps.evidence >= min_evidence)
                fitted.append(Matches(*(values[enough] for values in maps)))
    if not fitted:
        return Matches(*(np.zeros(shape, kind) for shape, kind in SHAPES))
    matches = Matches(*(np.concatenate(values) for values in zip(*fitted, strict=True)))
    return _best_of_each_pair(matches, same=database is None)


SHAPES = ((0, np.intp), (0, np.intp), ((0, 2, 3), np.float64), (0, bool), (0, np.intp), (0, np.float64))
# a candidate: rotation in degrees, number of the scale and shift in units of the side, after mirroring
CANDIDATE = np.dtype(
    [("query", "i8"), ("other", "i8"), ("turn", "f4"), ("scale", "i8"), ("x", "f4"), ("y", "f4")]
    + [("mirrored", "?"), ("inverted", "?")]
)
SIZES = np.array(SCALES, np.float32)


def key_bits(images: int) -> int:
    """Return the number of bits that must be equal in a table: 18 up to 3,000 images, 27 for 100,000, 33 for a million.

    The number of keypoints that meet by chance grows with the square of the number of images; longer keys keep the time
    in bounds, and miss more of the strongly altered copies (Indyk and Motwani 1998).
    """
    return max(18, round(19.5 + 1.85 * math.log2(max(images, 1) / 6000)))


class KeypointIndex:
    """The keypoints of images by the hashes of their codes, to search several times.

    Args:
        database: `(m, 32)` of the type `KEYPOINT`.
    """

    def __init__(self, database: np.ndarray):
        self.keypoints, self.points = database, _Points(database)
        flat = database.ravel()
        self.member = np.flatnonzero(flat["sign"])  # position of each keypoint in the database
        self.codes = flat["codes"][self.member, PLAIN]
        self.size = max(8, math.ceil(math.log2(max(2, len(self.member)))))  # bits of a hash
        rng, bits = np.random.default_rng(0), key_bits(len(database))
        self.masks = [np.uint64(sum(1 << int(bit) for bit in rng.permutation(KEY_POOL)[:bits])) for _ in range(TABLES)]
        self.tables = []
        for mask in self.masks:
            # the rows of a sparse matrix are what a table is, and scipy makes them in linear time
            hashes, columns = self._hash(self.codes, mask), np.arange(len(self.codes), dtype=np.int32)
            entries = (np.ones(len(hashes), bool), (hashes.astype(np.int32), columns))
            table = coo_array(entries, shape=(2**self.size, max(1, len(hashes)))).tocsr()
            self.tables.append((table.indices, table.indptr))

    def _hash(self, codes: np.ndarray, mask: np.uint64) -> np.ndarray:
        chosen = codes & mask
        chosen = (chosen ^ (chosen >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash
        return (chosen >> np.uint64(64 - self.size)).astype(np.int64)

    def look_up(self, codes: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of codes, and of the keypoints with the same hash, whose codes are similar."""
        order, starts = self.tables[number]
        hashes = self._hash(codes, self.masks[number])
        low = starts[hashes]
        counts = starts[hashes + 1] - low
        counts[counts > MOST] = 0
        asked = np.repeat(np.arange(len(codes)), counts)
        first = np.cumsum(counts) - counts
        met = order[np.arange(len(asked)) - np.repeat(first - low, counts)]
        differing = codes[asked] ^ self.codes[met]
        close = (np.bitwise_count(differing) <= MAX_BITS) & (differing & self.masks[number] == 0)
        return asked[close], self.member[met[close]]


def _candidates(queries: np.ndarray, index: KeypointIndex, owners: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield arrays of the type CANDIDATE; with owners, none of a query and another one of the same owner."""
    for start in range(0, len(queries), QUERIES):
        block = queries[start : start + QUERIES]
        asking = np.flatnonzero(block["sign"])
        codes = block["codes"].reshape(-1, len(SCALES))[asking]
        points = _Points(block)
        votes = []
        for mirrored in (False, True):
            asked_codes = (codes ^ MIRROR if mirrored else codes).ravel()
            for number in range(TABLES):
                asked, met = index.look_up(asked_codes, number)
                here, scale = asking[asked // len(SCALES)], asked % len(SCALES)
                if owners is not None:
                    keep = owners[here // COUNT + start] != owners[met // COUNT]
                    here, scale, met = here[keep], scale[keep], met[keep]
                votes.append(_votes(points, here, scale, index.points, met, mirrored))
        candidates = _count_votes(np.concatenate(votes))
        candidates["query"] += start
        for first in range(0, len(candidates), CANDIDATES):
            part = candidates[first : first + CANDIDATES]
            yield part[_sieve(queries[part["query"]], index.keypoints[part["other"]], part) >= MIN_SIEVED]


class _Points:
    """Places, directions and signs of the keypoints of images, one after the other."""

    def __init__(self, keypoints: np.ndarray):
        flat = keypoints.ravel()
        self.x, self.y = _place(flat)
        self.angle, self.sign = flat["angle"].copy(), flat["sign"].copy()


VOTE = np.dtype([*CANDIDATE.descr, ("point", "i8")])
TURNS = np.arange(256) * np.float32(2 * math.pi / 256)
COSINE, SINE = np.cos(TURNS), np.sin(TURNS)


def _votes(
    points: _Points, here: np.ndarray, scale: np.ndarray, others: _Points, met: np.ndarray, mirrored: bool
) -> np.ndarray:
    """Return rotation, size and shift of the whole image by each match, if the shift is not too large."""
    angle = points.angle[here]
    turn = others.angle[met] - (128 - angle if mirrored else angle)  # of 256, which bytes wrap at
    x, y, size = points.x[here], points.y[here], SIZES[scale]
    x = -x if mirrored else x
    shift_x = others.x[met] - (COSINE[turn] * x - SINE[turn] * y) / size
    shift_y = others.y[met] - (SINE[turn] * x + COSINE[turn] * y) / size
    near = np.flatnonzero(np.maximum(np.abs(shift_x), np.abs(shift_y)) < REACH)
    votes = np.zeros(len(near), VOTE)
    here, met = here[near], met[near]
    votes["query"], votes["other"], votes["point"] = here // COUNT, met // COUNT, here % COUNT
    votes["turn"], votes["scale"] = turn[near] * np.float32(360 / 256), scale[near]
    votes["x"], votes["y"] = shift_x[near], shift_y[near]
    votes["mirrored"], votes["inverted"] = mirrored, points.sign[here] != others.sign[met]
    return votes


def _place(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y relative to the centre, in units of the side."""
    return keypoints["x"] / np.float32(255) - np.float32(0.5), keypoints["y"] / np.float32(255) - np.float32(0.5)


def _turn(angle: np.ndarray, other: np.ndarray, mirrored: bool | np.ndarray) -> np.ndarray:
    """Return the rotation, 0 to 360 degrees, that gives a keypoint (mirrored or not) another's direction."""
    angle, other = angle.astype(np.int32), other.astype(np.int32)
    return ((other - np.where(mirrored, 128 - angle, angle)) % 256 * np.float32(360 / 256)).astype(np.float32)


def _turned(place: tuple[np.ndarray, np.ndarray], turn: np.ndarray, mirrored) -> tuple[np.ndarray, np.ndarray]:
    x, y = place
    x = np.where(mirrored, -x, x)
    radians = np.deg2rad(turn)
    cosine, sine = np.cos(radians), np.sin(radians)
    return cosine * x - sine * y, sine * x + cosine * y


def _count_votes(votes: np.ndarray) -> np.ndarray:
    """Return the candidates: images of which several keypoints say the same rotation, shift and inversion."""
    sectors = 360 // SECTOR
    votes = votes[_repeated(votes["query"] << 32 | votes["other"])]
    candidates = []
    for shift in (0.0, 0.5):  # two ways to cut the circle, since matches that agree can lie on both sides of a cut
        sector = np.floor(votes["turn"] / SECTOR + shift).astype(np.int64) % sectors
        pair = votes["query"] << 32 | votes["other"]
        group = ((pair * sectors + sector) * 2 + votes["mirrored"]) * 2 + votes["inverted"]
        chosen, number, counts = np.unique(group, return_inverse=True, return_counts=True)
        several = (counts >= MIN_VOTES)[number]
        sectored, number, counts = votes[several], number[several], np.maximum(counts, 1)
        x, y = (np.bincount(number, sectored[name], len(chosen)) / counts for name in ("x", "y"))
        near = (np.abs(sectored["x"] - x[number]) < SPREAD) & (np.abs(sectored["y"] - y[number]) < SPREAD)
        sectored, number = sectored[near], number[near]
        agreeing = np.flatnonzero(_count_points(number, sectored["point"], len(chosen)) >= MIN_VOTES)
        first = np.full(len(chosen), -1)
        first[number[::-1]] = np.arange(len(number))[::-1]
        total = np.maximum(np.bincount(number, minlength=len(chosen)), 1)
        found = np.zeros(len(agreeing), CANDIDATE)
        for name in ("query", "other", "mirrored", "inverted"):
            found[name] = sectored[name][first[agreeing]]
        for name in ("x", "y"):
            found[name] = (np.bincount(number, sectored[name], len(chosen)) / total)[agreeing]
        mean_scale = np.bincount(number, sectored["scale"], len(chosen)) / total
        found["scale"] = np.round(mean_scale[agreeing])
        # the rotation relative to the middle of the sector, whose mean no cut disturbs
        middle = (chosen // 4 % sectors + 0.5 - shift) * SECTOR
        off = (sectored["turn"] - middle[number] + 180) % 360 - 180
        found["turn"] = (middle + np.bincount(number, off, len(chosen)) / total)[agreeing] % 360
        candidates.append(found)
    return np.concatenate(candidates)


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Return which keys occur several times, and a few others; faster than a count of each, since most occur once."""
    cells = (keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - CELL_BITS)).astype(np.int64)
    return np.flatnonzero(np.bincount(cells, minlength=2**CELL_BITS)[cells] >= MIN_VOTES)


def _sieve(first: np.ndarray, second: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Count the keypoints of each candidate that have one with a similar code where the votes put it, `(n,)`."""
    rows = np.arange(len(candidates))
    flip = np.where(candidates["mirrored"], MIRROR, np.uint64(0))
    codes = first["codes"][rows, :, candidates["scale"]] ^ flip[:, None]
    distance = np.bitwise_count(codes[:, :, None] ^ second["codes"][:, None, :, PLAIN])
    row, here, there = np.nonzero(distance <= SIEVE_BITS)
    one, two, candidate = first[row, here], second[row, there], candidates[row]
    x, y = _turned(_place(one), candidate["turn"], candidate["mirrored"])
    other_x, other_y = _place(two)
    size = SIZES[candidate["scale"]]
    near = (np.abs(other_x - x / size - candidate["x"]) < SIEVE_SPREAD) & (
        np.abs(other_y - y / size - candidate["y"]) < SIEVE_SPREAD
    )
    near &= one["sign"] * np.where(candidate["inverted"], -1, 1) * two["sign"] == 1
    near &= _angle_apart(_turn(one["angle"], two["angle"], candidate["mirrored"]), candidate["turn"]) <= SECTOR
    return _count_points(row[near], here[near], len(candidates))


def _count_points(owners: np.ndarray, points: np.ndarray, number: int) -> np.ndarray:
    """Count the different keypoints of each of a number of owners, `(number,)`; each is given once or several times."""
    given = np.zeros((number, COUNT), bool)
    given[owners, points] = True
    return given.sum(axis=1)


def _angle_apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the difference of two directions, 0 to 180 degrees."""
    return np.abs((first - second + 180) % 360 - 180)


def _fit_maps(queries: np.ndarray, others: np.ndarray, candidates: np.ndarray) -> Matches:
    """Fit an affine map to the matching keypoints of each candidate, beginning with the map of its votes."""
    first, second = queries[candidates["query"]], others[candidates["other"]]
    rows = np.arange(len(candidates))
    flip = np.where(candidates["mirrored"], MIRROR, np.uint64(0))
    codes = first["codes"][rows, :, candidates["scale"]] ^ flip[:, None]
    distance = np.bitwise_count(codes[:, :, None] ^ second["codes"][:, None, :, PLAIN])
    sign = np.where(candidates["inverted"], -1, 1)[:, None, None]
    possible = (first["sign"][:, :, None] * sign * second["sign"][:, None, :] == 1) & (distance <= FIT_BITS)
    turn = _turn(first["angle"][:, :, None], second["angle"][:, None, :], candidates["mirrored"][:, None, None])
    possible &= _angle_apart(turn, candidates["turn"][:, None, None]) <= SECTOR
    maps = np.zeros((len(candidates), 2, 3))
    radians, size = np.deg2rad(candidates["turn"].astype(float)), SIZES[candidates["scale"]]
    side = np.where(candidates["mirrored"], -1.0, 1.0)
    maps[:, 0, 0], maps[:, 0, 1] = np.cos(radians) * side / size, -np.sin(radians) / size
    maps[:, 1, 0], maps[:, 1, 1] = np.sin(radians) * side / size, np.cos(radians) / size
    maps[:, 0, 2], maps[:, 1, 2] = candidates["x"], candidates["y"]
    initial = maps
    match, weight, error = np.zeros(first.shape, np.intp), np.zeros(first.shape), np.zeros(0)
    places = np.stack([*_place(first), np.ones(first.shape, np.float32)], axis=-1).astype(float)
    targets = np.stack(_place(second), axis=-1).astype(float)
    x, y = (np.ascontiguousarray(targets[:, None, :, axis], np.float32) for axis in (0, 1))
    distance = np.where(possible, distance, 99).astype(np.float32)
    for reach in FIT_REACH:
        moved = (places @ maps.transpose(0, 2, 1)).astype(np.float32)
        error = np.maximum(np.abs(moved[:, :, :1] - x), np.abs(moved[:, :, 1:] - y))
        cost = np.where(error < reach, np.minimum(distance + error / np.float32(reach), 99), np.float32(99))
        match = cost.argmin(axis=2)
        weight = (np.take_along_axis(cost, match[:, :, None], axis=2)[:, :, 0] < 99).astype(float)
        target = np.take_along_axis(targets, match[:, :, None], axis=1)
        weighted = places * weight[:, :, None]
        gram = weighted.transpose(0, 2, 1) @ places + RIDGE * np.eye(3)
        right = weighted.transpose(0, 2, 1) @ target + RIDGE * initial.transpose(0, 2, 1)
        maps = np.linalg.solve(gram, right).transpose(0, 2, 1)
    matched = _distinct(match, np.asarray(weight > 0))
    nearest = np.take_along_axis(distance, match[:, :, None], axis=2)[:, :, 0]
    off = np.take_along_axis(error, match[:, :, None], axis=2)[:, :, 0]
    evidence = (weight * (FIT_BITS + 0.5 - nearest) * (1 - off / FIT_REACH[-1])).sum(axis=1)
    return Matches(candidates["query"], candidates["other"], maps, candidates["inverted"], matched, evidence)


def _distinct(match: np.ndarray, matched: np.ndarray) -> np.ndarray:
    """Return how many different keypoints of the second image are matched, `(n,)`."""
    rows, points = np.nonzero(matched)
    return np.minimum(_count_points(rows, match[rows, points], len(match)), matched.sum(axis=1))


def _best_of_each_pair(matches: Matches, *, same: bool) -> Matches:
    """Keep of each pair of images the map with the most matches."""
    low, high = matches.first, matches.second
    if same:
        low, high = np.minimum(low, high), np.maximum(low, high)
    # of a pair that is found in both directions, the image that shows less is placed on the other one, so that the
    # order of the images changes nothing
    size = np.abs(np.linalg.det(matches.maps[:, :, :2]))
    order = np.lexsort((matches.first, size, -matches.matched, high, low))
    matches = Matches(*(values[order] for values in matches))
    pair = np.stack([low[order], high[order]], axis=1)
    new = np.ones(len(pair), bool)
    new[1:] = (pair[1:] != pair[:-1]).any(axis=1)
    return Matches(*(values[new] for values in matches))
