"""Data for the walk-throughs: real radiographs if available, else synthetic ones."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from covid_fastai.data.layouts import find_data
from covid_fastai.data.phantom import write_phantom

__all__ = ["ENVIRONMENT", "KAGGLE_FOLDER", "example_data"]

logger = logging.getLogger("covid_fastai")

ENVIRONMENT = "COVID_FASTAI_DATA"
KAGGLE_FOLDER = Path("/kaggle/input/coronahack-chest-xraydataset")  # folder of an added data set in a Kaggle notebook
FULL_DATASET = "coronahack-224"  # preferred in a folder of several data sets: it has all rows of CoronaHack


def example_data(data: str | Path | None = None, *, out: str | Path, **phantom_options: Any) -> Path:
    """Return the data for a walk-through; synthetic radiographs are generated if there are no real ones.

    Args:
        data: Folder or file of the data. None for the folder in the environment variable `COVID_FASTAI_DATA`, else
            CoronaHack in the input folder of a Kaggle notebook, else synthetic radiographs.
        out: The folder for synthetic radiographs; nothing else is written.
        **phantom_options: Options of `write_phantom`: `patients`, `image_size`, `severity`, `seed`.

    Returns:
        The folder or file for `read_cohort`.

    Raises:
        DataError: The folder in `data` or in the environment variable does not exist.

    Examples:
        >>> from covid_fastai import read_cohort
        >>> folder = example_data(out="example", patients=8, image_size=32)
        >>> read_cohort(folder)["label"].value_counts().to_dict()
        {'COVID-19': 5, 'Normal': 4, '': 3}
    """
    named = data or os.environ.get(ENVIRONMENT)
    if named:
        named = Path(named).expanduser()
        return find_data(named / FULL_DATASET if (named / FULL_DATASET).is_dir() else named)
    if KAGGLE_FOLDER.is_dir():
        return KAGGLE_FOLDER
    logger.info(
        "No real radiographs were given: the images are synthetic, and their results say nothing about patients."
    )
    return write_phantom(out, **phantom_options)
