"""What a function that takes images accepts: one image, several, or a table of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import cast

import pandas as pd
from PIL import Image

from covid_fastai.data.dicom import is_dataset
from covid_fastai.data.images import Array, Readable, Source
from covid_fastai.errors import DataError

__all__ = ["as_image_list", "name_image"]

FILES = (str, os.PathLike, bytes, bytearray)


def as_image_list(images: Source | Sequence[Source] | pd.DataFrame) -> list[Source]:
    """Return one image, several, or the files of a table as a list.

    Raises:
        DataError: The table has no column `path`.
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
    return list(cast(Sequence[Source], images))


def name_image(image: Source, number: int) -> str:
    """Return an image's path, or "image 1" and so on for one without a path."""
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else f"image {number}"
