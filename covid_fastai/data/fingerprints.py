"""The same picture under another name: exact and perceptual fingerprints, and the groups that they join.

Finds copies that were renamed, re-encoded, resized, made brighter or darker, cropped by a few percent, or mirrored.
"""

from __future__ import annotations

import hashlib
import json
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

from covid_fastai.data.alignment import PICTURE_SIDE, aligned_pairs
from covid_fastai.data.cache import keep
from covid_fastai.data.image_facts import name_notes
from covid_fastai.data.images import Source, read_image
from covid_fastai.errors import ImageError
from covid_fastai.options import WorkerCount, checked

__all__ = ["connect_pairs", "duplicate_groups", "duplicate_pairs", "fingerprint_images", "join_groups"]

HASH_SIDE = 16  # 16 x 16 = 256 bits of a picture of 64 pixels, four for each frequency, as in the usual hash of 64 bits
THUMBNAIL_SIDE = 32  # pixels
# Over CoronaHack's 5,910 images the two copies that are not exact differ by 8 and 18 bits and correlate by 0.998 and
# 0.989; the nearest images of different people differ by 36 bits, and correlate by 0.975 at most.
MAX_DISTANCE = 30  # bits of 256
MIN_CORRELATION = 0.98  # of the thumbnails
VERSION = 1  # to be counted up with every change of what is taken, or of what open_image makes of a file
PRINTS = (HASH_SIDE**2 // 8, THUMBNAIL_SIDE**2, PICTURE_SIDE**2)  # bytes of hash, thumbnail and picture
BLOCK = 512  # rows compared at once: 512 x 6,000 x 32 bytes fit in 100 MB

COLUMNS = ["path", "error", "hint", "format", "mode", "width", "height", "notes", "sha256", "phash", "thumbnail"]
COLUMNS += ["picture"]


@checked
def fingerprint_images(paths: Iterable[str | os.PathLike], *, workers: WorkerCount | None = None) -> pd.DataFrame:
    """Open every image once and take its fingerprints and facts.

    Args:
        paths: Image files.
        workers: Threads; None for as many as there are processors, 8 at most.

    Returns:
        A table with a row an image, in the order given: `path`; `error` and `hint` ("" where it can be read);
        `format, mode, width, height, notes`; `sha256` of the decoded 8-bit grey pixels and their shape; `phash`, 32
        bytes (256-bit perceptual hash: signs of the lowest DCT frequencies against their median, after Zauner 2010);
        `thumbnail`, 32 x 32 bytes of grey; `picture`, 64 x 64 bytes of grey. The last four are empty where the image
        cannot be read.
    """
    paths = [os.fsdecode(path) for path in paths]  # bytes would be taken for an image's content
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    with ThreadPoolExecutor(workers) as pool:
        return pd.DataFrame(list(pool.map(_fingerprint, paths)), columns=COLUMNS)


def _fingerprint(path: str) -> tuple[Any, ...]:
    try:
        kept = keep(path, f"prints-{VERSION}", _take_prints)
    except ImageError as error:
        return path, error.message, error.hint, "", "", 0, 0, "", "", b"", b"", b""
    facts, prints = json.loads(kept[: -sum(PRINTS)]), kept[-sum(PRINTS) :]
    notes = [*facts["notes"], *name_notes(path, facts["format"])]
    ends = np.cumsum(PRINTS)
    parts = [prints[end - size : end] for size, end in zip(PRINTS, ends, strict=True)]
    sides = facts["width"], facts["height"]
    return path, "", "", facts["format"], facts["mode"], *sides, "; ".join(notes), facts["sha256"], *parts


def _take_prints(source: Source) -> bytes:
    """Return an image's facts as JSON, and after them its hash, thumbnail and picture."""
    image, facts = read_image(source)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()
    thumbnail = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()
    picture = np.asarray(image.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX))
    said = {"format": facts.format, "mode": facts.mode, "width": facts.width, "height": facts.height}
    said |= {"notes": facts.notes, "sha256": digest}
    return json.dumps(said).encode() + _phash(picture) + thumbnail + picture.tobytes()


def _phash(picture: np.ndarray) -> bytes:
    low = dctn(picture.astype(np.float64), type=2)[:HASH_SIDE, :HASH_SIDE].ravel()
    return np.packbits(low > np.median(low)).tobytes()


def duplicate_pairs(fingerprints: pd.DataFrame) -> pd.DataFrame:
    """List the pairs of rows that show the same picture.

    Two pictures are the same when their pixels are (`exact`); when at most `MAX_DISTANCE` of the 256 bits differ and
    the thumbnails correlate above `MIN_CORRELATION`, or `aligned_pairs` finds one whole in the other (`near`); when it
    finds one in a window of the other (`cropped`); or when it finds one in the other's mirror image, cropped or not
    (`mirrored`). Takes time in proportion to the square of the rows: 6,000 in two or three seconds.

    Args:
        fingerprints: As `fingerprint_images` returns them.

    Returns:
        A table of `first` and `second` (index labels), `kind`, `distance` (bits between the pictures as they are: 128
        or so in a mirror) and `correlation` (-1 to 1, after alignment). Of n identical pictures the n - 1 pairs with
        the first of them are listed.
    """
    readable = fingerprints[fingerprints["sha256"] != ""]
    unique = readable.drop_duplicates("sha256")
    hashes = np.frombuffer(b"".join(unique["phash"]), dtype=np.uint64).reshape(-1, HASH_SIDE**2 // 64)
    thumbnails = _standardised(unique["thumbnail"])
    near = {}
    for first, second, distance in _near(hashes):
        correlation = float(thumbnails[first] @ thumbnails[second])
        if correlation > MIN_CORRELATION:
            near[first, second] = ("near", distance, correlation)
    pictures = np.frombuffer(b"".join(unique["picture"]), dtype=np.uint8).reshape(-1, PICTURE_SIDE, PICTURE_SIDE)
    for pair in aligned_pairs(pictures):
        kind = "mirrored" if pair.mirrored else "cropped" if pair.cropped else "near"
        distance = int(np.bitwise_count(hashes[pair.first] ^ hashes[pair.second]).sum())
        near.setdefault((pair.first, pair.second), (kind, distance, pair.correlation))
    pairs = list(_exact_pairs(readable))
    pairs += [(unique.index[first], unique.index[second], *facts) for (first, second), facts in near.items()]
    return pd.DataFrame(pairs, columns=["first", "second", "kind", "distance", "correlation"])


def _exact_pairs(readable: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    for _, same in readable[readable["sha256"].duplicated(keep=False)].groupby("sha256", sort=False):
        for other in same.index[1:]:
            yield same.index[0], other, "exact", 0, 1.0


def _near(hashes: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield the positions of every two hashes that are near, and their distance in bits."""
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK]
        others = hashes[start:]
        distance = np.zeros((len(block), len(others)), dtype=np.uint16)
        for word in range(hashes.shape[1]):
            distance += np.bitwise_count(block[:, None, word] ^ others[None, :, word])
        for row, column in zip(*np.nonzero(distance <= MAX_DISTANCE), strict=True):
            if column > row:
                yield start + int(row), start + int(column), int(distance[row, column])


def _standardised(thumbnails: Iterable[bytes]) -> np.ndarray:
    """Return the thumbnails as unit vectors around 0, so that a product of two is their correlation."""
    values = np.frombuffer(b"".join(thumbnails), dtype=np.uint8).reshape(-1, THUMBNAIL_SIDE**2).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)


def duplicate_groups(fingerprints: pd.DataFrame) -> pd.Series:
    """Number the groups of rows that show the same picture.

    Args:
        fingerprints: As `fingerprint_images` returns them.

    Returns:
        Group numbers from 0 under the table's index; an image without a copy, or one that cannot be read, has a number
        of its own.
    """
    return connect_pairs(duplicate_pairs(fingerprints), fingerprints.index)


def connect_pairs(pairs: pd.DataFrame, index: pd.Index) -> pd.Series:
    """Number the groups of rows that pairs tie together, directly or through others.

    Args:
        pairs: `first` and `second`, labels of the index, as `duplicate_pairs` returns them.
        index: The labels of all rows, each once.

    Returns:
        Group numbers from 0 under the index; a row in no pair has a number of its own.
    """
    position = pd.Series(np.arange(len(index)), index=index)
    first, second = (position[pairs[end]].to_numpy() for end in ("first", "second"))
    groups = _components(first, second, len(index))
    return pd.Series(groups, index=index, name="group")


def join_groups(patients: pd.Series, duplicates: pd.Series) -> pd.Series:
    """Join patients who share a picture, so that a split can keep them on one side.

    Args:
        patients: Patient keys.
        duplicates: Group numbers under the same index, as `duplicate_groups` returns them; a row without one joins
            nobody.

    Returns:
        For each row the alphabetically first patient key of its joined group.
    """
    keys, patient = np.unique(patients.to_numpy().astype(str), return_inverse=True)
    picture = pd.factorize(duplicates.reindex(patients.index))[0]
    known = picture >= 0
    nodes = len(keys) + picture.max(initial=-1) + 1
    component = _components(patient[known], len(keys) + picture[known], nodes)[: len(keys)]
    first = pd.Series(keys).groupby(component).transform("min").to_numpy()
    return pd.Series(first[patient], index=patients.index, name="group", dtype=object)


def _components(first: np.ndarray, second: np.ndarray, nodes: int) -> np.ndarray:
    ends = (np.asarray(first), np.asarray(second))
    edges = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(nodes, nodes))
    return connected_components(edges, directed=False)[1]
