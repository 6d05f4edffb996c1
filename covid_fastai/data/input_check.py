"""What is no frontal chest radiograph, as far as pixels and headers tell. Needs neither torch nor a trained model.

A picture is compared with the usual look of frontal chest radiographs at 16 x 16 pixels, upright, turned and inverted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import load_file

from covid_fastai.data.images import read_image
from covid_fastai.errors import ImageError, ModelFormatError, UsageError
from covid_fastai.options import WorkerCount, checked

__all__ = ["InputRemark", "RemarkKind", "check_input", "check_inputs", "fit_look", "ood_score"]

LOOK = Path(__file__).with_name("input_check.safetensors")
SIDE = 16  # pixels: the lungs, the heart and the air around; no finding, and no person, can be seen in it
COMPONENTS = 20  # of the usual look; with 40, an inverted radiograph is as usual as another
SMALL = 96  # pixels of the shorter side; a rib of a child is then two pixels wide
FLAT = 2.0  # grey levels: spread of a row or column that belongs to a frame
FRAME = 0.15  # of the area
TURNED = 0.7  # how much more usual a picture must look otherwise, before it is said to be turned or inverted
HEADER = {  # what data/dicom.py notes of a file's header
    "lateral view": "The file's header says that it is a lateral view.",
    "another part of the body": "The file's header says that it shows another part of the body than the chest.",
    "text burned into the picture": "The file's header says that there is text burned into the picture.",
}
OTHERWISE = {
    "upside down": lambda pixels: pixels[::-1, ::-1],
    "turned by 90 degrees to the left": lambda pixels: np.rot90(pixels, 3),
    "turned by 90 degrees to the right": lambda pixels: np.rot90(pixels, 1),
    "inverted": lambda pixels: 255 - pixels,
}
RemarkKind = Literal["unreadable", "colour", "header", "small", "frame", "turned", "inverted", "unlike"]


@dataclass(frozen=True)
class InputRemark:
    """Something about a picture that a classifier of frontal chest radiographs was not made for.

    Attributes:
        kind: One of `RemarkKind`; `"header"` is about the header of a DICOM file.
        text: What was seen, a sentence.
    """

    kind: RemarkKind
    text: str


class _Look(NamedTuple):
    """The usual look: `mean` (256,), `basis` (20, 256), `spread` (20,) along it, `rest` (1,) beside it, a pixel's
    variance, and `limit` (1,), the ood_score that 1 in 100 of the radiographs that it was made from exceeds."""

    mean: np.ndarray
    basis: np.ndarray
    spread: np.ndarray
    rest: np.ndarray
    limit: np.ndarray


def check_input(image: str | os.PathLike | bytes | Image.Image) -> list[InputRemark]:
    """Say what speaks against a picture's being an upright frontal chest radiograph.

    No remark does not mean that it is one. `python -m pretraining.input_check` measured, on images that it was not
    made from: remarks on 0.5% of 600 images of CoronaHack's TEST, 4.4% of 135 and 0% of 44 of other hospitals, 4.6%
    and 1.7% of the radiography database's COVID-19 and Normal images, two thirds of those for an empty frame that
    is really there; on more than 99% of radiographs that were turned or inverted, and 94% of grey crops of two
    photographs. Of four lateral radiographs two were noticed (interval 15 to 85%), of three CT slices one: expect
    neither to be found. Children cannot be told from adults in this way: in the public images age and hospital go
    together.

    Args:
        image: A file, its bytes, or an opened picture.

    Returns:
        The remarks; none where nothing was noticed.

    Examples:
        >>> [remark.kind for remark in check_input(cohort["path"].iloc[0])]
        ['small']
    """
    return _check(image)[0]


@checked
def check_inputs(paths: Iterable[str | os.PathLike], *, workers: WorkerCount | None = None) -> pd.DataFrame:
    """Check many image files.

    Args:
        paths: Image files.
        workers: Threads; None for as many as there are processors, 8 at most.

    Returns:
        A row an image, in the order given: `path`; `flagged`, whether there is a remark; `kinds`, joined by "; ";
        `ood_score`, 1 at the limit of the usual, NaN where the file cannot be read; `remarks`, the sentences.
    """
    paths = [os.fsdecode(path) for path in paths]
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    with ThreadPoolExecutor(workers) as pool:
        checked = list(pool.map(_check, paths))
    rows = [
        (path, bool(found), "; ".join(one.kind for one in found), value, " ".join(one.text for one in found))
        for path, (found, value) in zip(paths, checked, strict=True)
    ]
    return pd.DataFrame(rows, columns=["path", "flagged", "kinds", "ood_score", "remarks"])


def ood_score(pictures: np.ndarray) -> np.ndarray:
    """Measure how far pictures are from the usual look of a frontal chest radiograph.

    The squared Mahalanobis distance within the usual look's principal components, and the squared distance beside
    them in units of what is usual there (Hotelling's T squared and Q, after Jackson and Mudholkar 1979), of the grey
    levels' ranks.

    Args:
        pictures: `(n, 16, 16)`, grey levels.

    Returns:
        `(n,)`, 1 at the limit that 1 in 100 radiographs exceed.
    """
    look = _read_look()
    return _distance(_ranks(pictures), look) / look.limit[0]


def fit_look(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Learn the usual look.

    Args:
        pictures: `(n, 16, 16)`, grey levels of upright frontal chest radiographs, some thousands of many hospitals.

    Returns:
        The arrays that the package's `guard.safetensors` holds; no picture can be got back from them.

    Raises:
        UsageError: There are too few pictures.
    """
    if len(pictures) < 4 * SIDE**2:
        raise UsageError(f"{len(pictures)} pictures are too few.", hint=f"Give {4 * SIDE**2} or more.")
    ranks = _ranks(pictures)
    mean = ranks.mean(axis=0)
    _, sizes, basis = np.linalg.svd(ranks - mean, full_matrices=False)
    beside = (sizes[COMPONENTS:] ** 2).sum() / len(ranks) / (SIDE**2 - COMPONENTS)
    arrays = (mean, basis[:COMPONENTS], sizes[:COMPONENTS] / np.sqrt(len(ranks)), np.array([beside]), np.ones(1))
    look = _Look(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))
    limit = np.quantile(_distance(ranks, look), 0.99).astype(np.float32)
    return look._replace(limit=limit[None])._asdict()


def shrink_picture(image: Image.Image) -> np.ndarray:
    """Return `(16, 16)` mean grey levels of a picture of mode `"L"`, squashed to the square."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def remark_picture(
    grey: Image.Image, notes: Iterable[str] = (), *, size: tuple[int, int] | None = None
) -> tuple[list[InputRemark], float]:
    """Return what `check_input` says of a picture that is already open, and its ood_score.

    Args:
        grey: What `read_image` returned, mode `"L"`.
        notes: Of the facts that it returned.
        size: Width and height as the file has them, where the picture was decoded at a reduced scale.

    Returns:
        The remarks, and the ood_score, 1 at the limit of the usual.
    """
    found = []
    if "colour" in notes:  # guard: coloured
        found.append(InputRemark("colour", "The picture is coloured: a photograph or a screenshot?"))
    found += [InputRemark("header", text) for note, text in HEADER.items() if note in notes]  # guard: header
    width, height = size or grey.size
    if min(width, height) < SMALL:
        found.append(InputRemark("small", f"The picture has {width} x {height} pixels, too few to read."))
    if (share := _frame(np.asarray(grey))) > FRAME:
        found.append(InputRemark("frame", f"{share:.0%} of the picture are an empty frame: a screenshot or a figure?"))
    small = shrink_picture(grey)
    ways = ["", *OTHERWISE]
    values = ood_score(np.stack([small, *(change(small) for change in OTHERWISE.values())]))
    best = int(np.argmin(values))
    if values[best] < min(1, TURNED * values[0]):  # guard: turned
        kind = "inverted" if ways[best] == "inverted" else "turned"
        found.append(InputRemark(kind, f"The picture seems to be {ways[best]}."))
    elif values[0] > 1:  # guard: unlike
        found.append(InputRemark("unlike", "The picture looks unlike a frontal chest radiograph."))
    return found, float(values[0])


def _check(image: str | os.PathLike | bytes | Image.Image) -> tuple[list[InputRemark], float]:
    if isinstance(image, Image.Image):
        return remark_picture(image.convert("L"))
    try:
        grey, facts = read_image(image)
    except ImageError as error:
        return [InputRemark("unreadable", str(error))], float("nan")
    return remark_picture(grey, facts.notes)


def _frame(pixels: np.ndarray) -> float:
    """Return the share of the area outside of the last rows and columns that are not flat."""
    share = 1.0
    for lines in (pixels, pixels.T):
        first = next((number for number, line in enumerate(lines) if line.std() > FLAT), None)
        if first is None:
            return 1.0
        last = next(number for number in range(len(lines) - 1, -1, -1) if lines[number].std() > FLAT)
        share *= (last - first + 1) / len(lines)
    return 1 - share


def _ranks(pictures: np.ndarray) -> np.ndarray:
    """Return the grey levels' ranks within each picture, -0.5 to 0.5, `(n, 256)`: no exposure or gamma changes them."""
    flat = np.asarray(pictures).reshape(-1, SIDE**2)
    ranks = np.empty(flat.shape)
    for row, values in zip(ranks, flat, strict=True):
        ordered = np.sort(values)  # equal values share the mean of their places, as in scipy's rankdata
        row[:] = (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right") + 1) / 2
    return ((ranks - 0.5) / SIDE**2 - 0.5).astype(np.float32)


def _distance(ranks: np.ndarray, look: _Look) -> np.ndarray:
    centred = ranks - look.mean
    along = centred @ look.basis.T
    beside = ((centred - along @ look.basis) ** 2).sum(axis=1)
    return ((along / look.spread) ** 2).sum(axis=1) + beside / look.rest[0]


@cache
def _read_look() -> _Look:
    try:
        arrays = load_file(LOOK)
        return _Look(**arrays)
    except Exception as error:  # missing, damaged, or of another version
        raise ModelFormatError(f"{LOOK} cannot be used: {error}.", hint="Reinstall the package.") from error
