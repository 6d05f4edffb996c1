"""Duplicate images: exact and perceptual fingerprints, and the groups of duplicates.

The copies that are found may be renamed, re-encoded, resized, changed in brightness, cropped by a few percent or
mirrored.
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

from covid_fastai.data.alignment import INPUT_SIDE, aligned_pairs
from covid_fastai.data.cache import keep
from covid_fastai.data.image_facts import name_notes
from covid_fastai.data.images import Source, read_image
from covid_fastai.errors import ImageError, NotRadiographError
from covid_fastai.options import WorkerCount, checked

__all__ = ["connect_pairs", "duplicate_groups", "duplicate_pairs", "fingerprint_images", "join_groups"]

HASH_SIDE = 16  # 16 x 16 = 256 bits of an image of 64 x 64 pixels, four times its side as in the usual 64-bit hash
THUMBNAIL_SIDE = 32  # pixels
# CoronaHack (5,910 images) has two copies that are not exact: they differ by 8 and 18 bits and correlate by 0.998 and
# 0.989. The most similar images of different patients differ by 36 bits and correlate by at most 0.975.
MAX_DISTANCE = 30  # bits of 256
MIN_CORRELATION = 0.98  # of the thumbnails
VERSION = 3  # increase with every change to the fingerprints or to the output of open_image
PRINTS = (HASH_SIDE**2 // 8, THUMBNAIL_SIDE**2, INPUT_SIDE**2)  # bytes of hash, thumbnail and 64 x 64 image
BLOCK = 512  # rows compared at once: 512 x 6,000 x 32 bytes fit in 100 MB

COLUMNS = ["path", "error", "hint", "not_radiograph", "format", "mode", "width", "height", "notes", "view"]
COLUMNS += ["sha256", "phash", "thumbnail", "picture"]


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
        `thumbnail`, 32 x 32 bytes of pixels; `picture`, 64 x 64 bytes of pixels. The last four are empty if the image
        cannot be read.
    """
    paths = [os.fsdecode(path) for path in paths]  # bytes would be taken for an image's content
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    with ThreadPoolExecutor(workers) as pool:
        return pd.DataFrame(list(pool.map(_fingerprint, paths)), columns=COLUMNS)


def _fingerprint(path: str) -> tuple[Any, ...]:
    try:
        content = keep(path, f"prints-{VERSION}", _compute_prints)
    except ImageError as error:
        reason = error.reason if isinstance(error, NotRadiographError) else ""
        return path, error.message, error.hint, reason, "", "", 0, 0, "", "", "", b"", b"", b""
    facts, prints = json.loads(content[: -sum(PRINTS)]), content[-sum(PRINTS) :]
    notes = [*facts["notes"], *name_notes(path, facts["format"])]
    ends = np.cumsum(PRINTS)
    values = [prints[end - size : end] for size, end in zip(PRINTS, ends, strict=True)]
    sides = facts["width"], facts["height"]
    header = facts["format"], facts["mode"], *sides, "; ".join(notes), facts["view"]
    return path, "", "", "", *header, facts["sha256"], *values


def _compute_prints(source: Source) -> bytes:
    """Return an image's facts as JSON, followed by its hash, thumbnail and pixels at 64 x 64."""
    image, facts = read_image(source)
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()
    thumbnail = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()
    small = np.asarray(image.resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BOX))
    record = {"format": facts.format, "mode": facts.mode, "width": facts.width, "height": facts.height}
    record |= {"notes": facts.notes, "view": facts.view, "sha256": digest}
    return json.dumps(record).encode() + _phash(small) + thumbnail + small.tobytes()


def _phash(image: np.ndarray) -> bytes:
    """Return the perceptual hash: the signs of the lowest DCT coefficients around their median (Zauner 2010)."""
    low = dctn(image.astype(np.float64), type=2)[:HASH_SIDE, :HASH_SIDE].ravel()
    return np.packbits(low > np.median(low)).tobytes()


def duplicate_pairs(fingerprints: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of rows whose images are duplicates.

    A pair has one of four kinds. `exact`: the pixels are equal. `near`: at most `MAX_DISTANCE` of the 256 bits differ
    and the thumbnails correlate above `MIN_CORRELATION`, or `aligned_pairs` finds the same uncropped image. `cropped`:
    `aligned_pairs` finds one image in a window of the other. `mirrored`: it finds one image in the mirror image of the
    other, cropped or not. The time grows with the square of the number of rows: two or three seconds for 6,000.

    Args:
        fingerprints: As `fingerprint_images` returns them.

    Returns:
        A table of `first` and `second` (index labels), `kind`, `distance` (bits between the images before alignment,
        about 128 for mirror images) and `correlation` (-1 to 1, after alignment). For n identical images, the n - 1
        pairs with the first one are listed.
    """
    readable = fingerprints[fingerprints["sha256"] != ""]
    unique = readable.drop_duplicates("sha256")
    hashes = np.frombuffer(b"".join(unique["phash"]), dtype=np.uint64).reshape(-1, HASH_SIDE**2 // 64)
    thumbnails = _standardised(unique["thumbnail"])
    near = {}
    for first, second, distance in _near_hashes(hashes):
        correlation = float(thumbnails[first] @ thumbnails[second])
        if correlation > MIN_CORRELATION:
            near[first, second] = ("near", distance, correlation)
    images = np.frombuffer(b"".join(unique["picture"]), dtype=np.uint8).reshape(-1, INPUT_SIDE, INPUT_SIDE)
    for pair in aligned_pairs(images):
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


def _near_hashes(hashes: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield the positions of two hashes that differ by at most `MAX_DISTANCE` bits, and their distance in bits."""
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
    """Return the thumbnails as centred unit vectors: the dot product of two is their Pearson correlation."""
    values = np.frombuffer(b"".join(thumbnails), dtype=np.uint8).reshape(-1, THUMBNAIL_SIDE**2).astype(np.float32)
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
