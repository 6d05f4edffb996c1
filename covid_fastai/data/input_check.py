"""Detect images that are not upright frontal chest radiographs, from pixels and headers, without torch or a classifier.

An image at 16 x 16 pixels is compared with a principal component model of frontal chest radiographs (the reference),
upright, rotated and inverted. If it passes, its lungs are segmented.
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

from covid_fastai.data.dicom_facts import BURNED_IN, INVERSE, LATERAL, OTHER_PART, OTHER_VIEW
from covid_fastai.data.dicom_intensity import NO_WINDOW_FITS
from covid_fastai.data.image_inputs import Paths, as_path_list
from covid_fastai.data.images import Source, read_image
from covid_fastai.data.lungs import Lungs, has_model, judge_lungs
from covid_fastai.errors import ImageError, ModelFormatError, UsageError
from covid_fastai.options import WorkerCount, checked

__all__ = [
    "InputRemark",
    "RemarkKind",
    "SIDE",
    "check_input",
    "check_inputs",
    "fit_look",
    "is_withheld",
    "ood_score",
    "rank_pixels",
    "shrink_picture",
]

LOOK = Path(__file__).with_name("input_check.safetensors")
SIDE = 16  # pixels: shows lungs, heart and surrounding air, but no finding, and identifies no person
COMPONENTS = 20  # of the reference; with 40, inverted radiographs fit as well as others
SMALL = 96  # pixels of the shorter side; a rib of a child is then two pixels wide
FLAT = 2.0  # grey levels; the standard deviation within a row or column of a frame is at most this
FRAME = 0.15  # fraction of the area
TURNED = 0.7  # ratio of the scores; a remark needs a rotated or inverted image to score at most this much
HEADER = {  # by the notes of data/dicom_facts.py and data/dicom_intensity.py
    LATERAL: "The file's header states a lateral view.",
    OTHER_VIEW: "The file's header states a view that is not known to be frontal.",
    OTHER_PART: "The file's header states another part of the body than the chest.",
    BURNED_IN: "The file's header states that text is burned into the image.",
    INVERSE: "The file's header asks for an inverted display, which is not applied: are bones white?",
    NO_WINDOW_FITS: "No window of the file's header fits its pixels; they were scaled by their own range.",
}
ORIENTATIONS = {
    "upside down": lambda pixels: pixels[::-1, ::-1],
    "turned by 90 degrees to the left": lambda pixels: np.rot90(pixels, 3),
    "turned by 90 degrees to the right": lambda pixels: np.rot90(pixels, 1),
    "inverted": lambda pixels: 255 - pixels,
}
RemarkKind = Literal[
    "unreadable", "colour", "header", "small", "frame", "turned", "inverted", "unlike", "lungs", "region", "population"
]
# remarks that make the predicted class unreliable: every answer then withholds it
WITHHELD_AFTER: set[RemarkKind] = {"inverted", "turned", "unlike", "lungs", "population"}  # guard: withheld


@dataclass(frozen=True)
class InputRemark:
    """A property of an image that makes it unsuitable for a classifier of frontal chest radiographs.

    Attributes:
        kind: One of `RemarkKind`; `"header"` is about the header of a DICOM file, `"region"` about a model that sees
            crops to the lungs and got the whole image, `"population"` about a model that was made for other images.
        text: The property, as a sentence.
    """

    kind: RemarkKind
    text: str


class _Look(NamedTuple):
    """The reference: a principal component model of frontal chest radiographs at 16 x 16 pixels.

    Attributes:
        mean: `(256,)`.
        basis: `(20, 256)`, the principal components.
        std: `(20,)`, the standard deviation along each component.
        rest: `(1,)`, the variance of a pixel outside the components.
        limit: `(1,)`, the distance that 1 in 100 of the training radiographs exceed.
    """

    mean: np.ndarray
    basis: np.ndarray
    std: np.ndarray
    rest: np.ndarray
    limit: np.ndarray


def check_input(image: Source) -> list[InputRemark]:
    """Return remarks on an image that may not be an upright frontal chest radiograph.

    An image without remarks can still be something else. `python -m pretraining.input_check` measured the fraction of
    images with a remark, on images that were not used for the reference: 0.5% of 600 images of CoronaHack's TEST, 4.4%
    of 135 and 0% of 44 of other hospitals, and 4.6% and 1.7% of the radiography database's COVID-19 and Normal images
    (two thirds of those for an empty frame that they have). It was more than 99% of rotated or inverted radiographs,
    and all of 200 grey crops of two photographs. Three of four lateral radiographs had a remark (interval 30 to 95%),
    and one of three CT slices, before lungs were segmented: do not rely on either. The check does not distinguish
    children from adults, because age and hospital are confounded in the public images.

    Args:
        image: A file, its bytes, or an image in memory, as for `open_image`.

    Returns:
        The remarks; an empty list if there are none.

    Examples:
        >>> [remark.kind for remark in check_input(cohort["path"].iloc[0])]
        ['small']
    """
    return _check(image)[0]


def is_withheld(remarks: Iterable[InputRemark]) -> bool:
    """Return whether a remark makes the predicted class unreliable, so that it is withheld."""
    return bool(WITHHELD_AFTER & {remark.kind for remark in remarks})


@checked
def check_inputs(paths: Paths, *, workers: WorkerCount | None = None) -> pd.DataFrame:
    """Check many image files.

    Args:
        paths: An image file or several; or a table with a column `path`, such as a cohort.
        workers: Threads; None for the number of processors, at most 8.

    Returns:
        One row per image, in the given order: `path`; `flagged`, whether there is a remark; `kinds`, joined by "; ";
        `ood_score`, 1 at the limit of the reference, NaN if the file cannot be read; `remarks`, the sentences.
    """
    paths = as_path_list(paths)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(_check, paths))
    rows = [
        (
            path,
            bool(remarks),
            "; ".join(remark.kind for remark in remarks),
            score,
            " ".join(remark.text for remark in remarks),
        )
        for path, (remarks, score) in zip(paths, results, strict=True)
    ]
    return pd.DataFrame(rows, columns=["path", "flagged", "kinds", "ood_score", "remarks"])


def ood_score(images: np.ndarray) -> np.ndarray:
    """Return the out-of-distribution score of images: their distance from frontal chest radiographs.

    The distance is the sum of Hotelling's T squared (the squared Mahalanobis distance within the principal components)
    and Q (the squared distance from them, divided by its mean per pixel), after Jackson and Mudholkar 1979. It is
    computed from the ranks of the pixel intensities.

    Args:
        images: `(n, 16, 16)`, pixel intensities.

    Returns:
        `(n,)`, 1 at the limit that 1 in 100 radiographs exceed.
    """
    look = _read_look()
    return _distance(rank_pixels(images), look) / look.limit[0]


def fit_look(images: np.ndarray) -> dict[str, np.ndarray]:
    """Fit the reference: a principal component model of upright frontal chest radiographs.

    Args:
        images: `(n, 16, 16)`, pixel intensities of upright frontal chest radiographs, thousands from many hospitals.

    Returns:
        The arrays of the package's `input_check.safetensors`; no image can be reconstructed from them.

    Raises:
        UsageError: There are fewer than 1,024 images.
    """
    if len(images) < 4 * SIDE**2:
        raise UsageError(f"{len(images)} images are too few for the reference.", hint=f"Give {4 * SIDE**2} or more.")
    ranks = rank_pixels(images)
    mean = ranks.mean(axis=0)
    _, sizes, basis = np.linalg.svd(ranks - mean, full_matrices=False)
    # The variance outside the components, per remaining dimension; singular values are sqrt(n) standard deviations.
    rest = (sizes[COMPONENTS:] ** 2).sum() / len(ranks) / (SIDE**2 - COMPONENTS)
    arrays = (mean, basis[:COMPONENTS], sizes[:COMPONENTS] / np.sqrt(len(ranks)), np.array([rest]), np.ones(1))
    look = _Look(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))
    limit = np.quantile(_distance(ranks, look), 0.99).astype(np.float32)
    return look._replace(limit=limit[None])._asdict()


def shrink_picture(image: Image.Image) -> np.ndarray:
    """Return an image of mode `"L"` as `(16, 16)` mean intensities; the aspect ratio is not kept."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def remark_picture(
    grey: Image.Image, notes: Iterable[str] = (), *, size: tuple[int, int] | None = None, lungs: Lungs | None = None
) -> tuple[list[InputRemark], float]:
    """Return the remarks of `check_input` and the out-of-distribution score of an opened image.

    Args:
        grey: The image that `read_image` returned, mode `"L"`.
        notes: The notes of the facts that `read_image` returned.
        size: Width and height in the file, if the image was decoded at a reduced scale.
        lungs: The lungs of the image, if they have been segmented.

    Returns:
        The remarks, and the out-of-distribution score, 1 at the limit of the reference.
    """
    remarks = []
    if "colour" in notes:  # guard: coloured
        remarks.append(InputRemark("colour", "The image is coloured: a photograph or a screenshot?"))
    remarks += [InputRemark("header", text) for note, text in HEADER.items() if note in notes]  # guard: header
    width, height = size or grey.size
    if min(width, height) < SMALL:
        remarks.append(InputRemark("small", f"The image has {width} x {height} pixels, too few for a radiograph."))
    if (fraction := _frame_fraction(np.asarray(grey))) > FRAME:
        text = f"An empty frame covers {fraction:.0%} of the image: a screenshot or a figure?"
        remarks.append(InputRemark("frame", text))
    small = shrink_picture(grey)
    names = ["", *ORIENTATIONS]
    scores = ood_score(np.stack([small, *(change(small) for change in ORIENTATIONS.values())]))
    best = int(np.argmin(scores))
    if scores[best] < min(1, TURNED * scores[0]):  # guard: turned
        kind = "inverted" if names[best] == "inverted" else "turned"
        remarks.append(InputRemark(kind, f"The image seems to be {names[best]}."))
    elif scores[0] > 1:  # guard: unlike
        remarks.append(InputRemark("unlike", "The image does not look like a frontal chest radiograph."))
    elif has_model():
        quality, remark = judge_lungs(grey) if lungs is None else (lungs.quality, lungs.remark)
        if quality in ("none found", "one lung"):  # guard: lungs_there
            text = f"The two lungs of an upright frontal radiograph were not found. {remark}"
            remarks.append(InputRemark("lungs", text))
    return remarks, float(scores[0])


def _check(image: Source) -> tuple[list[InputRemark], float]:
    try:
        grey, facts = read_image(image)
    except ImageError as error:
        return [InputRemark("unreadable", str(error))], float("nan")
    return remark_picture(grey, facts.notes)


def _frame_fraction(pixels: np.ndarray) -> float:
    """Return the fraction of the area outside the outermost rows and columns that are not flat."""
    inside = 1.0
    for lines in (pixels, pixels.T):
        first = next((number for number, line in enumerate(lines) if line.std() > FLAT), None)
        if first is None:
            return 1.0
        last = next(number for number in range(len(lines) - 1, -1, -1) if lines[number].std() > FLAT)
        inside *= (last - first + 1) / len(lines)
    return 1 - inside


def rank_pixels(images: np.ndarray) -> np.ndarray:
    """Return the ranks of the intensities in each image, -0.5 to 0.5, `(n, 256)`; exposure and gamma have no effect."""
    flat = np.asarray(images).reshape(-1, SIDE**2)
    ranks = np.empty(flat.shape)
    for row, values in zip(ranks, flat, strict=True):
        ordered = np.sort(values)  # equal values have their mean rank, as in scipy's rankdata
        row[:] = (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right") + 1) / 2
    return ((ranks - 0.5) / SIDE**2 - 0.5).astype(np.float32)


def _distance(ranks: np.ndarray, look: _Look) -> np.ndarray:
    centred = ranks - look.mean
    scores = centred @ look.basis.T
    residual = ((centred - scores @ look.basis) ** 2).sum(axis=1)
    return ((scores / look.std) ** 2).sum(axis=1) + residual / look.rest[0]  # T squared and Q


@cache
def _read_look() -> _Look:
    try:
        arrays = load_file(LOOK)
        return _Look(**arrays)
    except Exception as error:  # missing, damaged, or of another version
        raise ModelFormatError(f"{LOOK} cannot be used: {error}.", hint="Reinstall the package.") from error
