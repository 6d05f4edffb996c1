"""What can be known of an image without a look at a lung: its file's header, brightness, border, a thumbnail."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from covid_fastai.data.image_facts import FORMATS
from covid_fastai.data.images import read_image, resize_image
from covid_fastai.errors import ImageError

__all__ = ["BASELINES", "Features", "LUNG_FREE", "one_hot", "read_features", "sources_of"]

THUMBNAIL = 16  # pixels a side; at that size an opacity is a dozen of grey values
CENTRE = slice(3, 13)  # the lungs' box of the thumbnail, 10 x 10
BASELINES = {
    "prevalence": "how frequent the classes are, nothing else",
    "source": "the name of the collection or hospital",
    "headers": "format, mode, width, height, compression and profile of the file",
    "mean and spread": "mean and standard deviation of the grey values",
    "border ring": "the outermost pixels at 16 x 16",
    "black centre": "the image at 16 x 16 pixels without its central 10 x 10",
    "thumbnail": "the image at 16 x 16 pixels",
}
LUNG_FREE = ("source", "headers", "mean and spread", "border ring")  # what is above chance here is no finding
MODES = ("L", "RGB", "RGBA", "P", "LA", "CMYK", "1")


@dataclass(frozen=True, eq=False)
class Features:
    """What baselines see of images.

    Attributes:
        blocks: By a baseline's name float `(n, k)`; without `prevalence` and `source`, which need the rows' labels.
        readable: Whether the file could be opened, `(n,)`; the features of others are 0.
    """

    blocks: dict[str, np.ndarray]
    readable: np.ndarray

    def take(self, places: np.ndarray) -> Features:
        """Return the features of some images, by position or mask."""
        return Features({name: block[places] for name, block in self.blocks.items()}, self.readable[places])


def read_features(paths: Iterable[str | Path], *, workers: int | None = None) -> Features:
    """Open images and return what the baselines see of them.

    Args:
        paths: The files.
        workers: Threads; None for the processor cores.

    Returns:
        The features, in the order of the paths.
    """
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_read, paths))
    empty = (np.zeros(len(_header_names())), np.zeros((THUMBNAIL, THUMBNAIL)), np.zeros(2))
    headers, thumbnails, grey = (
        np.stack([(one or empty)[part] for one in found]) if found else np.zeros((0, *empty[part].shape))
        for part in range(3)
    )
    ring = np.ones((THUMBNAIL, THUMBNAIL), dtype=bool)
    ring[1:-1, 1:-1] = False
    around = np.ones_like(ring)
    around[CENTRE, CENTRE] = False
    blocks = {
        "headers": headers,
        "mean and spread": grey,
        "border ring": thumbnails[:, ring],
        "black centre": thumbnails[:, around],
        "thumbnail": thumbnails.reshape(len(thumbnails), -1),
    }
    return Features(blocks, np.array([one is not None for one in found], dtype=bool))


def one_hot(values: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """Return 1 where a value is a name, float `(n, names)`."""
    return np.array([[value == name for name in names] for value in values], dtype=float).reshape(-1, len(names))


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the header's facts, the thumbnail and the mean and spread; None where the file cannot be opened."""
    try:
        image, facts = read_image(path)
    except ImageError:
        return None  # read_cohort has listed it, and the audit counts it
    pixels = np.asarray(image, dtype=float)
    thumbnail = np.asarray(resize_image(image, THUMBNAIL), dtype=float)
    steps, extras = _compression(path) if facts.format in FORMATS else ([0], [0.0, 0.0, 0.0])
    # Not the file's length: what is drawn in a lung makes a file longer too.
    numbers = [np.log(facts.width), np.log(facts.height), np.log(facts.width / facts.height)]
    numbers += [float(facts.width == facts.height), float(facts.bits), np.log1p(steps[0]), np.log1p(np.mean(steps))]
    numbers += extras
    kinds = np.r_[one_hot([facts.format], (*FORMATS, "DICOM"))[0], one_hot([facts.mode], MODES)[0]]
    return np.r_[numbers, kinds], thumbnail, np.array([pixels.mean(), pixels.std()])


def _compression(path: str | Path) -> tuple[Sequence[int], list[float]]:
    """Return the steps of a JPEG's first quantiser, and whether there is a colour profile, EXIF, a resolution."""
    with Image.open(path, formats=FORMATS) as file:  # the header alone, which read_image has found sound
        tables = getattr(file, "quantization", None) or {}
        return next(iter(tables.values()), [0]), [float(key in file.info) for key in ("icc_profile", "exif", "dpi")]


def _header_names() -> list[str]:
    names = ["log width", "log height", "log aspect", "square", "bits", "log first quantiser", "log mean quantiser"]
    return [*names, "ICC profile", "EXIF", "resolution", *FORMATS, "DICOM", *MODES]


def sources_of(rows: pd.DataFrame) -> pd.Series:
    """Return the source of each row, "unknown" where none is named."""
    return rows["source"].fillna("").astype(str).replace("", "unknown")
