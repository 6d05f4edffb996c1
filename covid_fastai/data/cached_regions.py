"""What models see of image files, from the cache: pixels at the model's input size, and the crop that they show."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from covid_fastai.data.cache import OPENER, keep, square_pixels
from covid_fastai.data.image_inputs import Paths, as_path_list
from covid_fastai.data.regions import FRAME, Crop, open_region, pack_region, region_version, unpack_region
from covid_fastai.errors import ImageError
from covid_fastai.options import ImageSize, Region, WorkerCount, checked

__all__ = ["count_whole", "measure_crops", "name_whole", "region_pixels"]

UNREADABLE = "unreadable"
COLUMNS = ["path", "region", "left", "top", "right", "bottom", "reason"]


def region_pixels(path: str | os.PathLike, image_size: int, region: Region) -> tuple[np.ndarray, Crop]:
    """Return the result of `open_region` for a file, from the cache if possible; the crop is stored with its pixels.

    Args:
        path: The file.
        image_size: Side of the square, pixels.
        region: As for `open_region`.

    Returns:
        The pixels `(image_size, image_size)` uint8, which must not be changed, and the crop.

    Raises:
        ImageError: As for `open_image`; errors are not cached.
    """
    if region == "frame":
        return square_pixels(path, image_size), FRAME
    kind = f"grey-{OPENER}-{image_size}-{region_version(region)}"  # guard: region_cached
    content = keep(path, kind, lambda source: pack_region(*open_region(source, image_size, region)))
    return unpack_region(content, image_size)


@checked
def measure_crops(
    paths: Paths,
    *,
    image_size: ImageSize = 128,
    region: Region = "lungs",
    workers: WorkerCount | None = None,
) -> pd.DataFrame:
    """Return the crop of each image, exactly as a training and a predictor make it; fast for images in the cache.

    Args:
        paths: An image file or several; or a table with a column `path`, such as a cohort.
        image_size: The `image_size` of the model; a JPEG is decoded at a scale that depends on it.
        region: The `region` of the model.
        workers: Threads; None for the number of processors, at most 8.

    Returns:
        One row per image, in the given order: `path`; `region`, what is used: `"lungs"`, `"frame"` or `"unreadable"`;
        `left`, `top`, `right` and `bottom`, fractions of the image's width and height, NaN if it cannot be read;
        `reason`, why the lungs are not used although they are wanted, or why the image cannot be read.
    """
    paths = as_path_list(paths)

    def measure(path: str) -> list[object]:
        try:
            crop = region_pixels(path, image_size, region)[1]
        except ImageError as error:
            return [path, UNREADABLE, *[float("nan")] * 4, str(error)]
        return [path, crop.used(region), *crop[:4], crop.reason]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1) if workers is None else workers) as pool:
        return pd.DataFrame(list(pool.map(measure, paths)), columns=COLUMNS)


def count_whole(crops: pd.DataFrame, labels: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Count by class the images that a model with `region="lungs"` sees whole, and all that can be read.

    Args:
        crops: What `measure_crops` returned.
        labels: The class of each of its rows.

    Returns:
        Both numbers by class, in the order of the rows.
    """
    regions = crops["region"].groupby(list(labels), sort=False)
    return {str(label): (int((used == "frame").sum()), int((used != UNREADABLE).sum())) for label, used in regions}


def name_whole(counts: Mapping[str, Sequence[int]]) -> str:
    """Return the numbers of `count_whole` as text."""
    return ", ".join(f"{whole} of {images} of {name}" for name, (whole, images) in counts.items())
