"""What a function that takes images or their files accepts: one, several, or a table of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import cast

import pandas as pd
from PIL import Image

from covid_fastai.data.dicom import is_dataset
from covid_fastai.data.images import Array, Readable, Source, not_an_image
from covid_fastai.errors import DataError

__all__ = ["Paths", "as_image_list", "as_path_list", "name_image"]

FILES = (str, os.PathLike, bytes, bytearray)
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | pd.DataFrame


def as_image_list(images: Source | Sequence[Source] | pd.DataFrame) -> list[Source]:
    """Return one image, several, or the files of a table as a list.

    Raises:
        DataError: The table has no column `path`.
        ImageError: The object is neither an image nor several.
    """
    if isinstance(images, pd.DataFrame):
        if "path" not in images:
            raise DataError(
                "The table has no column path.", hint="Name the files in a column path, or give a list of paths."
            )
        return images["path"].tolist()
    is_batch = getattr(images, "ndim", 0) == 4 or isinstance(images, pd.Series)
    if is_dataset(images) or (isinstance(images, (*FILES, Image.Image, Readable, Array)) and not is_batch):
        return [images]
    if not isinstance(images, Iterable):
        raise not_an_image(images)
    return list(cast(Iterable[Source], images))


def as_path_list(paths: Paths) -> list[str]:
    """Return one path, several, or those of a table as a list.

    Raises:
        DataError: The table has no column `path`, or an item is not a path.
    """
    several: Iterable[object]
    if isinstance(paths, pd.DataFrame):
        several = as_image_list(paths)
    else:
        several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    names = []
    for number, path in enumerate(several, start=1):
        if not isinstance(path, (str, os.PathLike)):
            name = type(path).__name__
            raise DataError(f"Item {number} is of the type {name}, not a path.", hint="Give the paths of image files.")
        names.append(os.fsdecode(path))
    return names


def name_image(image: Source, number: int) -> str:
    """Return an image's path, or "image 1" and so on for one without a path."""
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
