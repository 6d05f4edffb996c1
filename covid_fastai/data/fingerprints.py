"""Duplicate images: exact and perceptual fingerprints, and the groups of duplicates.

The copies that are found may be renamed, re-encoded, resized, changed in brightness or contrast, inverted, framed,
cropped, turned, mirrored or written on. `python -m benchmarks.copies` measures how many.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from covid_fastai.data.alignment import INPUT_SIDE, aligned_pairs, equalised_pairs
from covid_fastai.data.cache import keep
from covid_fastai.data.frames import list_views, trim_even_frame
from covid_fastai.data.image_facts import name_notes
from covid_fastai.data.images import Source, read_image
from covid_fastai.data.keypoints import COUNT, KEYPOINT, SIDE, find_keypoints, standardise, unpack_keypoints
from covid_fastai.errors import ImageError, NotRadiographError
from covid_fastai.options import WorkerCount, checked
from covid_fastai.progress import LIVE, logged

__all__ = [
    "connect_pairs",
    "duplicate_groups",
    "duplicate_pairs",
    "fingerprint_images",
    "has_copy",
    "join_groups",
]

logger = logging.getLogger("covid_fastai")

HASH_SIDE = 16  # 16 x 16 = 256 bits of an image of 64 x 64 pixels, four times its side as in the usual 64-bit hash
HASHED_SIDE = 64  # pixels
THUMBNAIL_SIDE = 32  # pixels
# CoronaHack (5,910 images) has two copies that are not exact: they differ by 8 and 18 bits and correlate by 0.998 and
# 0.989. The most similar images of different patients differ by 36 bits and correlate by at most 0.975.
MAX_DISTANCE = 30  # bits of 256
MANY = 1000  # images, whose search for copies takes seconds
MIN_CORRELATION = 0.98  # of the thumbnails
# A local equalisation changes up to 42 bits and the shading, but not the fine detail, which `equalised_pairs` compares.
FARTHEST = 44  # bits of 256
# Of 10,000 drawings, 7,000 pairs are as near by chance, and their number grows with the square of that of the images.
# Their thumbnails, each pixel standardised by its surroundings, correlate by 0.84 or less in nine of ten cases; those
# of 150 radiographs and their copies after an equalisation with a limit of 2, 4 or 8 by at least 0.93, 0.88 and 0.84.
MIN_DETAIL, DETAIL_WINDOW = 0.84, 5
THUMBNAILS = 4096  # pairs of them that are compared together
VERSION = 5  # increase with every change to the fingerprints or to the output of open_image
HASH_BYTES = HASH_SIDE**2 // 8
LOST = 0.03  # fraction of each side that may be cut off; an image is hashed with as much added at its edges, too
# bytes of hash and thumbnail; and of the 64 x 64 image and the keypoints of each view
PRINTS = (HASH_BYTES, THUMBNAIL_SIDE**2)
VIEW_PRINTS = (INPUT_SIDE**2, COUNT * KEYPOINT.itemsize)
EVERY_PAIR = 10_000  # images, of which all hashes are compared, in about a second
ROWS = 64  # hashes that are compared together with all others
# Among more, hashes that agree in the bits of one of the tables are compared. A pair that differs in 18 bits is missed
# in one of 150,000 cases, one that differs in 30 in 1 of 100, one that differs in 44 in 1 of 5 or more.
TABLES, TABLE_BITS = 32, 16
PAIRS = 1 << 20  # compared together

COLUMNS = ["path", "error", "hint", "not_radiograph", "format", "mode", "width", "height", "notes", "view"]
COLUMNS += ["sha256", "phash", "thumbnail", "picture", "keypoints", "hashes"]


@checked
def fingerprint_images(paths: Iterable[str | os.PathLike], *, workers: WorkerCount | None = None) -> pd.DataFrame:
    """Open every image once and return its fingerprints and facts.

    Args:
        paths: Image files.
        workers: Threads; None for the number of processors, at most 8.

    Returns:
        A table with one row per image, in the given order: `path`; `error` and `hint` ("" if it can be read);
        `not_radiograph`, the reason if a DICOM header states another modality; `format, mode, width, height, notes`;
        `view`, which a DICOM header states; `sha256` of the decoded 8-bit grey pixels and their shape; `phash`, 32
        bytes (256-bit perceptual hash: signs of the lowest DCT frequencies against their median, after Zauner 2010);
        `thumbnail`, 32 x 32 bytes of pixels; `picture`, 64 x 64 bytes of pixels, and as many again for what is inside a
        frame; `keypoints`, the bytes of what `find_keypoints` returns for the same views; `hashes`, 16 hashes of each
        view: turned by right angles, mirrored and inverted, as many without a frame of one brightness, and 8 with 3% of
        each side added. The last six are empty if the image cannot be read.
    """
    paths = [os.fsdecode(path) for path in paths]  # bytes would be taken for an image's content
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    with ThreadPoolExecutor(workers) as pool:
        rows = logged(pool.map(_fingerprint, paths), "Images opened", len(paths))
        return pd.DataFrame(list(rows), columns=COLUMNS)


def _fingerprint(path: str) -> tuple[Any, ...]:
    try:
        content = keep(path, f"prints-{VERSION}", _compute_prints)
    except ImageError as error:
        reason = error.reason if isinstance(error, NotRadiographError) else ""
        return path, error.message, error.hint, reason, "", "", 0, 0, "", "", "", *[b""] * 5
    views, hashes = content[-2:]  # how many
    sizes = [*PRINTS, *(views * size for size in VIEW_PRINTS), hashes * HASH_BYTES]
    facts, prints = json.loads(content[: -sum(sizes) - 2]), content[-sum(sizes) - 2 : -2]
    notes = [*facts["notes"], *name_notes(path, facts["format"])]
    ends = np.cumsum(sizes)
    values = [prints[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    sides = facts["width"], facts["height"]
    header = facts["format"], facts["mode"], *sides, "; ".join(notes), facts["view"]
    return path, "", "", "", *header, facts["sha256"], *values


def _compute_prints(source: Source) -> bytes:
    """Return an image's facts as JSON, followed by its prints."""
    image, facts = read_image(source)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()
    thumbnail = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()
    small = np.asarray(image.resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.BOX))
    record = {"format": facts.format, "mode": facts.mode, "width": facts.width, "height": facts.height}
    record |= {"notes": facts.notes, "view": facts.view, "sha256": digest}
    views = list_views(image)
    pictures = [np.asarray(view.resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BOX)) for view in views]
    hashes = [phash for picture in _hashed_forms(image, pictures) for phash in _oriented_hashes(picture)]
    hashes += _oriented_hashes(_extended(image), turned=False)
    squashed = (np.asarray(view.resize((SIDE, SIDE), Image.Resampling.BOX)) for view in views)
    keypoints = [find_keypoints(pixels).tobytes() for pixels in squashed]
    per_view = *(picture.tobytes() for picture in pictures), *keypoints, *hashes
    prints = [_phash(small), thumbnail, *per_view, bytes([len(views), len(hashes)])]
    return json.dumps(record).encode() + b"".join(prints)


def _hashed_forms(image: Image.Image, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Return the views, and what is inside a frame of one brightness, since of originals whole images are known."""
    content = trim_even_frame(image)
    if content.size == image.size:
        return pictures
    return [*pictures, np.asarray(content.resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BOX))]


def _extended(image: Image.Image) -> np.ndarray:
    """Return an image whose outermost pixels are repeated, as large as before a crop of `LOST` a side."""
    inside = round(HASHED_SIDE * (1 - 2 * LOST))
    added = HASHED_SIDE - inside
    small = np.asarray(image.resize((inside, inside), Image.Resampling.BOX))
    return np.pad(small, (added // 2, added - added // 2), mode="edge")


def _phash(image: np.ndarray) -> bytes:
    """Return the perceptual hash: the signs of the lowest DCT coefficients around their median (Zauner 2010)."""
    return _pack_signs(_low_frequencies(image)).tobytes()


def _oriented_hashes(image: np.ndarray, *, turned: bool = True) -> list[bytes]:
    """Return the hashes of the 8 orientations of an image and of its negative, or of those 4 that are not turned.

    Mirrored cosines change their signs.
    """
    low = _low_frequencies(image)
    odd = np.where(np.arange(HASH_SIDE) % 2, -1, 1)
    ways = [np.ones_like(low), odd * np.ones_like(low)]  # as it is, and mirrored from side to side
    mirrored = np.stack([across * down.T for across in ways for down in ways])
    oriented = np.stack([low, low.T] if turned else [low])[:, None] * mirrored
    both = np.stack([oriented, -oriented], axis=2)
    both[:, :, 1, 0, 0] = both[:, :, 0, 0, 0]  # the mean; always among the largest
    return [packed.tobytes() for packed in _pack_signs(both)]


def _low_frequencies(image: np.ndarray) -> np.ndarray:
    return dctn(image.astype(np.float64), type=2)[:HASH_SIDE, :HASH_SIDE]


def _pack_signs(low: np.ndarray) -> np.ndarray:
    """Return the signs of coefficients `(..., 16, 16)` around the median of each image, `(n, 32)` uint8."""
    rows = low.reshape(-1, HASH_SIDE**2)
    middle = HASH_SIDE**2 // 2
    parted = np.partition(rows, (middle - 1, middle), axis=1)
    median = (parted[:, middle - 1] + parted[:, middle]) / 2  # np.median takes longer
    return np.packbits(rows > median[:, None], axis=1)


def duplicate_pairs(fingerprints: pd.DataFrame, *, apart: pd.Series | None = None) -> pd.DataFrame:
    """Return the pairs of rows whose images are duplicates.

    A pair has one of six kinds. `exact`: the pixels are equal. `near`: at most `MAX_DISTANCE` of the 256 bits differ
    and the thumbnails correlate above `MIN_CORRELATION`, or at most `FARTHEST` bits differ and `equalised_pairs` finds
    the same fine detail, or `aligned_pairs` finds the same whole image, framed or not.
    `cropped`: `aligned_pairs` finds one image in a part of the other, or stretched. `turned`: rotated, by a right angle
    or another, cropped or not. `inverted`: in the negative of the other. `mirrored`: in its mirror image, inverted or
    not. `python -m benchmarks.copies` measures the fraction of each kind that is found: one that lost a fifth of two
    sides, or a half, is often missed. Among more than 3,000 images the search looks at fewer candidates, and among more
    than 10,000 two images need more common keypoints before they are compared (`fewest_keypoints`), so that the time
    stays in bounds. It then misses more of the strongly altered copies, such as those cropped by 8% a side.

    Args:
        fingerprints: As `fingerprint_images` returns them.
        apart: With the same index: keypoints of two rows with the same value are not compared, which saves time where
            pairs within a group do not matter. None to compare all.

    Returns:
        A table of `first` and `second` (index labels), `kind`, `distance` (bits between the images before alignment,
        about 128 for mirror images) and `correlation` (-1 to 1, after alignment). For n identical images, the n - 1
        pairs with the first one are listed.
    """
    readable = fingerprints[fingerprints["sha256"] != ""]
    if len(readable) >= MANY:
        logger.info("Searching for copies among %s images.", f"{len(readable):,}")
    LIVE.info("Searching for copies of images")
    unique = readable.drop_duplicates("sha256")
    hashes = np.frombuffer(b"".join(unique["phash"]), dtype=np.uint64).reshape(-1, HASH_SIDE**2 // 64)
    small = np.frombuffer(b"".join(unique["thumbnail"]), dtype=np.uint8).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnails = _unit_vectors(small)
    near, farther = {}, []
    for first, second, distance in _near_hashes(hashes):
        correlation = float(thumbnails[first] @ thumbnails[second])
        if distance <= MAX_DISTANCE and correlation > MIN_CORRELATION:
            near[first, second] = ("near", distance, correlation)
        else:
            farther.append((first, second))
    images = np.frombuffer(b"".join(unique["picture"]), dtype=np.uint8).reshape(-1, INPUT_SIDE, INPUT_SIDE)
    owners = np.repeat(np.arange(len(unique)), [len(picture) // INPUT_SIDE**2 for picture in unique["picture"]])
    whole = images[np.searchsorted(owners, np.arange(len(unique)))]  # the first view of each image
    groups = None if apart is None else pd.factorize(apart[unique.index])[0]
    for pair in [
        *equalised_pairs(whole, _with_equal_detail(small, farther)),
        *aligned_pairs(images, unpack_keypoints(unique["keypoints"]), owners, apart=groups),
    ]:
        distance = int(np.bitwise_count(hashes[pair.first] ^ hashes[pair.second]).sum())
        near.setdefault((pair.first, pair.second), (pair.kind, distance, pair.correlation))
    LIVE.info("%s", "")
    pairs = list(_exact_pairs(readable))
    pairs += [(unique.index[first], unique.index[second], *facts) for (first, second), facts in near.items()]
    return pd.DataFrame(pairs, columns=["first", "second", "kind", "distance", "correlation"])


def _with_equal_detail(thumbnails: np.ndarray, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the pairs whose thumbnails agree where each pixel is standardised by its surroundings."""
    kept = []
    for start in range(0, len(pairs), THUMBNAILS):
        part = pairs[start : start + THUMBNAILS]
        first, second = (
            _unit_vectors(standardise(thumbnails[list(ends)], DETAIL_WINDOW)) for ends in zip(*part, strict=True)
        )
        kept += [part[row] for row in np.flatnonzero(np.einsum("np,np->n", first, second) > MIN_DETAIL)]
    return kept


def _exact_pairs(readable: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    for _, same in readable[readable["sha256"].duplicated(keep=False)].groupby("sha256", sort=False):
        for other in same.index[1:]:
            yield same.index[0], other, "exact", 0, 1.0


def _near_hashes(hashes: np.ndarray) -> list[tuple[int, int, int]]:
    """Return the positions of two hashes that differ by at most `FARTHEST` bits, and their distance in bits."""
    near: set[tuple[int, int, int]] = set()
    if len(hashes) <= EVERY_PAIR:
        for start in range(0, len(hashes), ROWS):
            block = hashes[start : start + ROWS]
            distance = np.zeros((len(block), len(hashes) - start), dtype=np.uint16)
            for word in range(hashes.shape[1]):
                distance += np.bitwise_count(block[:, word, None] ^ hashes[start:, word])
            first, second = np.nonzero(np.triu(distance <= FARTHEST, 1))
            ends = (first + start).tolist(), (second + start).tolist()
            near.update(zip(*ends, distance[first, second].tolist(), strict=True))
        return sorted(near)
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    rng = np.random.default_rng(0)
    for _ in range(TABLES):
        chosen = rng.permutation(bits.shape[1])[:TABLE_BITS]
        for first, second in _equal_pairs(bits[:, chosen] @ (1 << np.arange(TABLE_BITS))):
            distance = np.bitwise_count(hashes[first] ^ hashes[second]).sum(axis=1)
            close = distance <= FARTHEST
            near.update(zip(first[close].tolist(), second[close].tolist(), distance[close].tolist(), strict=True))
    return sorted(near)


def _equal_pairs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the positions of two equal keys, the smaller one first, in parts of about `PAIRS`."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    later = np.searchsorted(ordered, ordered, side="right") - np.arange(len(keys)) - 1  # equal keys behind each one
    ends = np.cumsum(later)
    for part in np.split(np.arange(len(keys)), np.searchsorted(ends, np.arange(PAIRS, ends.max(initial=0), PAIRS))):
        first = np.repeat(part, later[part])
        step = np.arange(len(first)) - np.repeat(np.cumsum(later[part]) - later[part], later[part])
        yield order[first], order[first + step + 1]


def _unit_vectors(images: np.ndarray) -> np.ndarray:
    """Return images as centred unit vectors, `(n, pixels)`: the dot product of two is their Pearson correlation."""
    values = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)


def duplicate_groups(fingerprints: pd.DataFrame) -> pd.Series:
    """Number the groups of rows whose images are duplicates.

    Args:
        fingerprints: As `fingerprint_images` returns them.

    Returns:
        Group numbers from 0 with the table's index; an image without a duplicate, or one that cannot be read, has a
        number of its own.
    """
    return connect_pairs(duplicate_pairs(fingerprints), fingerprints.index)


def has_copy(fingerprints: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Return for each image whether it is a copy of one of the others, by the same search as `duplicate_groups`.

    Args:
        fingerprints: As `fingerprint_images` returns them.
        others: Such a table of the other images.

    Returns:
        One bool per row, with the index of `fingerprints`; False for an image that cannot be read.
    """
    groups = duplicate_groups(pd.concat([others, fingerprints], ignore_index=True)).to_numpy()
    known = np.isin(groups[len(others) :], groups[: len(others)])
    return pd.Series(known, index=fingerprints.index, name="has_copy")


def connect_pairs(pairs: pd.DataFrame, index: pd.Index) -> pd.Series:
    """Number the groups of rows that are connected by pairs, directly or through other rows.

    Args:
        pairs: `first` and `second`, labels of the index, as `duplicate_pairs` returns them.
        index: The labels of all rows, each once.

    Returns:
        Group numbers from 0 with the given index; a row in no pair has a number of its own.
    """
    position = pd.Series(np.arange(len(index)), index=index)
    first, second = (position[pairs[end]].to_numpy() for end in ("first", "second"))
    groups = _components(first, second, len(index))
    return pd.Series(groups, index=index, name="group")


def join_groups(patients: pd.Series, duplicates: pd.Series) -> pd.Series:
    """Join patients whose images are duplicates, so that a split can keep them on one side.

    Args:
        patients: Patient keys.
        duplicates: Group numbers with the same index, as `duplicate_groups` returns them; a row without a number joins
            no patients.

    Returns:
        For each row the alphabetically first patient key of its joined group.
    """
    keys, patient = np.unique(patients.to_numpy().astype(str), return_inverse=True)
    duplicate = pd.factorize(duplicates.reindex(patients.index))[0]
    known = duplicate >= 0
    # a bipartite graph: the nodes are the patients, then the groups of duplicates; each row is an edge
    nodes = len(keys) + duplicate.max(initial=-1) + 1
    component = _components(patient[known], len(keys) + duplicate[known], nodes)[: len(keys)]
    first = pd.Series(keys).groupby(component).transform("min").to_numpy()
    return pd.Series(first[patient], index=patients.index, name="group", dtype=object)


def _components(first: np.ndarray, second: np.ndarray, nodes: int) -> np.ndarray:
    """Return the number of the connected component of each node of a graph."""
    ends = (np.asarray(first), np.asarray(second))
    edges = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1]
