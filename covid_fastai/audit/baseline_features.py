"""Image features that hold little or nothing of the lungs: file header, brightness, border and a thumbnail."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from covid_fastai.data.image_facts import FORMATS
from covid_fastai.data.images import read_image, resize_image
from covid_fastai.errors import ImageError

__all__ = ["Features", "one_hot", "read_features", "sources_of"]

THUMBNAIL = 16  # pixels a side; at that size an opacity covers about a dozen pixels
CENTRE = slice(3, 13)  # the central box of the thumbnail, 10 x 10, which holds most of the lungs
MODES = ("L", "RGB", "RGBA", "P", "LA", "CMYK", "1")


@dataclass(frozen=True, eq=False)
class Features:
    """Features of images, by baseline.

    Attributes:
        blocks: Features of each baseline, float `(n, k)`; `prevalence` and `source` are not in it, since they depend
            on the table and not on the image.
        readable: Whether the file could be opened, `(n,)`; the features of other files are 0.
    """

    blocks: dict[str, np.ndarray]
    readable: np.ndarray

    def take(self, places: np.ndarray) -> Features:
        """Return the features of some images, by position or mask."""
        return Features({name: block[places] for name, block in self.blocks.items()}, self.readable[places])


def read_features(paths: Iterable[str | Path], *, workers: int | None = None) -> Features:
    """Open images and compute the features of the baselines.

    Args:
        paths: The files.
        workers: Number of threads; None for one per processor core, at most 8.

    Returns:
        The features, in the order of the paths.
    """
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        features = list(pool.map(_read, paths))
    empty = (np.zeros(len(_header_names())), np.zeros((THUMBNAIL, THUMBNAIL)), np.zeros(2))
    headers, thumbnails, intensities = (
        np.stack([(image or empty)[k] for image in features]) if features else np.zeros((0, *empty[k].shape))
        for k in range(3)
    )
    ring = np.ones((THUMBNAIL, THUMBNAIL), dtype=bool)
    ring[1:-1, 1:-1] = False
    outside_centre = np.ones_like(ring)
    outside_centre[CENTRE, CENTRE] = False
    blocks = {
        "headers": headers,
        "intensity mean and SD": intensities,
        "border ring": thumbnails[:, ring],
        "black centre": thumbnails[:, outside_centre],
        "thumbnail": thumbnails.reshape(len(thumbnails), -1),
    }
    return Features(blocks, np.array([image is not None for image in features], dtype=bool))


def one_hot(values: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """Return the one-hot encoding of values, float `(n, names)`; a value that is not a name is all 0."""
    return np.array([[value == name for name in names] for value in values], dtype=float).reshape(-1, len(names))


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return header features, thumbnail, and intensity mean and SD; None if the file cannot be opened."""
    try:
        image, facts = read_image(path)
    except ImageError:
        return None  # read_cohort has reported it, and the audit counts it
    pixels = np.asarray(image, dtype=float)
    thumbnail = np.asarray(resize_image(image, THUMBNAIL), dtype=float)
    quantiser, extras = _compression(path) if facts.format in FORMATS else ([0], [0.0, 0.0, 0.0])
    # The file's length is left out: it depends on the lungs too, since detail compresses less.
    numbers = [np.log(facts.width), np.log(facts.height), np.log(facts.width / facts.height)]
    numbers += [
        float(facts.width == facts.height),
        float(facts.bits),
        np.log1p(quantiser[0]),
        np.log1p(np.mean(quantiser)),
    ]
    numbers += extras
    kinds = np.r_[one_hot([facts.format], (*FORMATS, "DICOM"))[0], one_hot([facts.mode], MODES)[0]]
    return np.r_[numbers, kinds], thumbnail, np.array([pixels.mean(), pixels.std()])


def _compression(path: str | Path) -> tuple[Sequence[int], list[float]]:
    """Return a JPEG's first quantisation table, and whether the file has a colour profile, EXIF, a resolution."""
    try:
        with Image.open(path, formats=FORMATS) as file:  # reads the header alone, which read_image has checked
            tables = getattr(file, "quantization", None) or {}
            return next(iter(tables.values()), [0]), [float(key in file.info) for key in ("icc_profile", "exif", "dpi")]
    except UnidentifiedImageError:  # a TIFF file that Pillow does not read
        return [0], [0.0, 0.0, 0.0]


def _header_names() -> list[str]:
    names = ["log width", "log height", "log aspect", "square", "bits", "log first quantiser", "log mean quantiser"]
    return [*names, "ICC profile", "EXIF", "resolution", *FORMATS, "DICOM", *MODES]


def sources_of(rows: pd.DataFrame) -> pd.Series:
    """Return the source of each row, "unknown" if it names none."""
    return rows["source"].fillna("").astype(str).replace("", "unknown")
