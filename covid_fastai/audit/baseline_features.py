"""Image features that hold little or nothing of the lungs: header, brightness, frame, thumbnail, lung geometry.

A disease must not change the features of the lung-free baselines. Those of pixels are computed outside of the convex
hull of the segmented lungs with a margin (`outside_region`); what the lungs hide is NaN until `fill_hidden` replaces it
by the mean of the images that show it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from scipy.spatial.distance import cdist
from sklearn.decomposition import KernelPCA

from covid_fastai.audit.fixed_spots import CELLS, PIXELS, describe_cells
from covid_fastai.audit.frame_spectrum import EDGES, FEATURES, describe_edges, describe_frame
from covid_fastai.audit.lung_geometry import read_geometry
from covid_fastai.audit.lung_region import outside_region
from covid_fastai.data.cache import OPENER, keep
from covid_fastai.data.image_facts import FORMATS
from covid_fastai.data.images import Source, read_image, resize_image
from covid_fastai.data.lungs import Lungs, cached_lungs, results_version
from covid_fastai.errors import ImageError

__all__ = ["BLOCKS", "Features", "fill_hidden", "kernel_components", "one_hot", "read_features", "values_of"]

GRID = 128  # pixels a side, in which the intensities are measured; small structures of the lungs do not reach beyond
assert GRID == CELLS * PIXELS  # the fixed spots are described in the same image
THUMBNAIL = 16  # pixels a side; at that size an opacity covers about a dozen pixels
CENTRE = slice(3, 13)  # the central box of the thumbnail, 10 x 10, which holds most of the lungs
_RING, _CENTRE = np.ones((2, THUMBNAIL, THUMBNAIL), dtype=bool)
_RING[1:-1, 1:-1] = False
_CENTRE[:] = False
_CENTRE[CENTRE, CENTRE] = True
BLOCKS = (
    "headers",
    "intensity mean and SD",
    "border ring",
    "frame",
    "frame texture",
    "sharp edges",
    "lung geometry",
    "fixed spot",
    "black centre",
    "thumbnail",
)
GEOMETRY = "lung geometry"
OUTSIDE = ("intensity mean and SD", "border ring", "frame", "frame texture")  # of what lies outside of the lungs
WHOLE = ("headers", "sharp edges", "fixed spot", "black centre", "thumbnail")  # of the whole image or file
VERSION = 6  # of the cached features; increase with every change of a feature
LEAST_SEEN = 0.5  # of the images; a pixel that the lungs hide in more of them is left out
NON_LINEAR = ("intensity mean and SD", "border ring", "frame texture")
COMPONENTS = 30  # of the kernel: few, so that they can be fitted to 30 patients
LARGEST_DEVIATION = 4.0  # SDs; rare outliers, such as a white corner, would hide all other distances
MODES = ("L", "RGB", "RGBA", "P", "LA", "CMYK", "1")


@dataclass(frozen=True, eq=False)
class Features:
    """Features of images, by baseline.

    Attributes:
        blocks: Features of each baseline, float `(n, k)`; `prevalence` and `source` are not in it, since they depend
            on the table and not on the image. NaN is what the lungs hide.
        readable: Whether the file could be opened, `(n,)`; the features of other files are 0.
    """

    blocks: dict[str, np.ndarray]
    readable: np.ndarray

    def take(self, places: np.ndarray) -> Features:
        """Return the features of some images, by position or mask."""
        return Features({name: block[places] for name, block in self.blocks.items()}, self.readable[places])


def fill_hidden(block: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Replace what the lungs hide by the mean of the images that show it, so that where it is hidden tells nothing.

    Args:
        block: Features, float `(n, k)`, NaN where they are hidden.
        like: The images whose mean is taken, `(m, k)`; None for the same images.

    Returns:
        The features of which at least half of the images show something, without NaN, `(n, l)`.
    """
    like = block if like is None else like
    seen = np.isfinite(like)
    often = seen.sum(axis=0) >= max(LEAST_SEEN * len(like), 1)
    means = np.where(seen, like, 0).sum(axis=0)[often] / seen.sum(axis=0)[often]
    return np.where(np.isfinite(block[:, often]), block[:, often], means)


def read_features(
    paths: Iterable[str | Path], *, blocks: Sequence[str] = BLOCKS, workers: int | None = None
) -> Features:
    """Open images and compute the features of the baselines, or take them from the cache.

    Args:
        paths: The files.
        blocks: The baselines, names in `BLOCKS`. `"fixed spot"` takes the most memory, 8 KiB per image. Whichever they
            are, the lungs are segmented, about 15 ms of a core per image.
        workers: Number of threads; None for one per processor core, at most 8.

    Returns:
        The features, in the order of the paths.
    """
    paths, sizes = list(paths), _sizes()
    of_pixels = [name for name in blocks if name != GEOMETRY]
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        images = list(pool.map(lambda path: _read(path, of_pixels), paths))
    stacked = {name: np.zeros((len(paths), sizes[name])) for name in of_pixels}
    for number, image in enumerate(images):
        for name, values in (image or {}).items():
            stacked[name][number] = values
    if GEOMETRY in blocks:
        stacked[GEOMETRY] = read_geometry(paths, workers=workers)
    return Features(stacked, np.array([image is not None for image in images], dtype=bool))


def kernel_components(features: Features) -> np.ndarray:
    """Compute the principal components of an RBF kernel on the lung-free features, for a model that is not linear.

    A border that is bright or dark at random, or a gain up or down, does not change the mean of any feature. An image
    whose lungs are not found has the features of another one, chosen at random: a kernel would recognise the mean of
    the others, and opacities are a reason that lungs are not found.

    Args:
        features: With the blocks of `NON_LINEAR`, which have the same weight each.

    Returns:
        The components, `(n, k)`, k at most 30; 0 if the lungs hide all features.
    """
    hidden = np.any([np.isnan(features.blocks[name]).all(axis=1) for name in NON_LINEAR], axis=0)
    givers = np.arange(len(hidden))
    if 0 < hidden.mean() <= 1 - LEAST_SEEN:  # else these blocks are left out  # guard: random_giver
        givers[hidden] = np.random.default_rng(0).choice(np.flatnonzero(~hidden), hidden.sum())
    weighted = []
    for name in NON_LINEAR:
        block = fill_hidden(features.blocks[name][givers])
        scale = block.std(axis=0)
        scale[scale < 1e-12] = np.inf  # a constant feature becomes 0
        standardised = np.clip((block - block.mean(axis=0)) / scale, -LARGEST_DEVIATION, LARGEST_DEVIATION)
        weighted.append(standardised / np.sqrt(max(block.shape[1], 1)))
    joined = np.hstack(weighted)
    if not joined.shape[1]:  # the lungs hide everything
        return joined
    distance = cdist(joined, joined, "sqeuclidean")
    kernel = np.exp(-distance / max(float(np.median(distance)), 1e-12))
    count = min(COMPONENTS, len(kernel) - 1)
    solver = KernelPCA(count, kernel="precomputed", eigen_solver="randomized", random_state=0)
    return solver.fit_transform(kernel)


def one_hot(values: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """Return the one-hot encoding of values, float `(n, names)`; a value that is not a name is all 0."""
    return np.array([[value == name for name in names] for value in values], dtype=float).reshape(-1, len(names))


def _read(path: str | Path, blocks: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the features of an image by baseline; None if the file cannot be opened."""
    opener, features = _Opener(), {}
    kinds = {
        f"features-{OPENER}-{VERSION}": (WHOLE, lambda source: _describe_whole(opener(source), source)),
        f"features-outside-{OPENER}-{VERSION}-{results_version()}": (
            OUTSIDE,
            lambda source: _describe_outside(opener(source), cached_lungs(path)),
        ),
    }
    try:
        # both kinds, whichever is asked for: an image is decoded once, which takes longer than to describe it
        for kind, (names, describe) in kinds.items() if {*WHOLE, *OUTSIDE} & {*blocks} else ():
            content = keep(os.fsdecode(path), kind, _packed(describe))
            ends = np.cumsum([_sizes()[name] for name in names])[:-1]
            features |= dict(zip(names, np.split(np.frombuffer(content), ends), strict=True))
    except ImageError:
        return None  # read_cohort has reported it, and the audit counts it
    return {name: features[name].copy() for name in blocks}  # a view would keep all of them in memory


def _packed(describe: Callable[[Source], dict[str, np.ndarray]]) -> Callable[[Source], bytes]:
    return lambda source: np.concatenate([*describe(source).values()]).tobytes()


class _Opened:
    """An image that is decoded and resized once for several results."""

    def __init__(self, source: Source):
        self.image, self.facts = read_image(source)
        self.grid = np.asarray(resize_image(self.image, GRID))
        self.thumbnail = np.asarray(resize_image(self.image, THUMBNAIL), dtype=float)


class _Opener:
    """Open an image once for several results."""

    def __init__(self) -> None:
        self.source: Source | None = None

    def __call__(self, source: Source) -> _Opened:
        if self.source is None or self.source != source:  # another content, if the file changed in between
            self.opened, self.source = _Opened(source), source
        return self.opened


def _describe_whole(opened: _Opened, source: Source) -> dict[str, np.ndarray]:
    """Return the features of a file by baseline, those of `WHOLE` in their order."""
    facts = opened.facts
    quantiser, extras = _compression(source) if facts.format in FORMATS else ([0], [0.0, 0.0, 0.0])
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
    features = {
        "headers": np.r_[numbers, kinds],
        "sharp edges": describe_edges(np.asarray(opened.image)),
        "fixed spot": describe_cells(opened.grid),
        "black centre": opened.thumbnail[~_CENTRE],
        "thumbnail": opened.thumbnail.ravel(),
    }
    return {name: features[name].astype(np.float64) for name in WHOLE}


def _describe_outside(opened: _Opened, lungs: Lungs) -> dict[str, np.ndarray]:
    """Return the features of what an image shows outside of the lungs, those of `OUTSIDE` in their order."""
    outside = outside_region(lungs)  # guard: outside_lungs
    seen = opened.grid[_shrink(outside, GRID)]
    # at the outermost pixels alone, these would differ from those of other images
    intensity, texture = np.full(2, np.nan), np.full(len(FEATURES), np.nan)
    if lungs.usable and seen.size:
        intensity, texture = np.array([seen.mean(), seen.std()]), describe_frame(np.asarray(opened.image), outside)
    thumbnail = np.where(_shrink(outside, THUMBNAIL), opened.thumbnail, np.nan)
    features = {
        "intensity mean and SD": intensity,
        "border ring": thumbnail[_RING],
        "frame": thumbnail[~_RING & ~_CENTRE],
        "frame texture": texture,
    }
    return {name: features[name] for name in OUTSIDE}


def _shrink(outside: np.ndarray, cells: int) -> np.ndarray:
    """Return which cells of a coarser grid lie outside as a whole, bool `(cells, cells)`."""
    step = len(outside) // cells
    return np.asarray(outside.reshape(cells, step, cells, step).all(axis=(1, 3)))


@cache
def _sizes() -> dict[str, int]:
    """Return the number of features of each baseline that has features of pixels or of the file."""
    ring, centre = int(_RING.sum()), int(_CENTRE.sum())
    return {
        "headers": len(_header_names()),
        "intensity mean and SD": 2,
        "border ring": ring,
        "frame": THUMBNAIL**2 - ring - centre,
        "frame texture": len(FEATURES),
        "sharp edges": len(EDGES),
        "fixed spot": 2 * CELLS**2,
        "black centre": THUMBNAIL**2 - centre,
        "thumbnail": THUMBNAIL**2,
    }


def _compression(source: Source) -> tuple[Sequence[int], list[float]]:
    """Return a JPEG's first quantisation table, and whether the file has a colour profile, EXIF, a resolution."""
    content = source if isinstance(source, bytes) else Path(str(source)).read_bytes()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:  # the header alone
            tables = getattr(file, "quantization", None) or {}
            return next(iter(tables.values()), [0]), [float(key in file.info) for key in ("icc_profile", "exif", "dpi")]
    except UnidentifiedImageError:  # a TIFF file that Pillow does not read
        return [0], [0.0, 0.0, 0.0]


def _header_names() -> list[str]:
    names = ["log width", "log height", "log aspect", "square", "bits", "log first quantiser", "log mean quantiser"]
    return [*names, "ICC profile", "EXIF", "resolution", *FORMATS, "DICOM", *MODES]


def values_of(rows: pd.DataFrame, column: str) -> pd.Series:
    """Return the value of each row in a column, "unknown" if it has none."""
    return rows[column].fillna("").astype(str).replace("", "unknown")
