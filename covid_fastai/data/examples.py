"""The data of a walk-through: real radiographs where there are some, else synthetic ones."""

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
KAGGLE_FOLDER = Path("/kaggle/input/coronahack-chest-xraydataset")  # where a Kaggle notebook finds an added data set
WHOLE = "coronahack-224"  # of a folder of several data sets, the one with all of CoronaHack's rows


def example_data(data: str | Path | None = None, *, out: str | Path, **drawing: Any) -> Path:
    """Return the data that a walk-through shall use, and draw synthetic radiographs if there are no real ones.

    Args:
        data: Named data win. None for the folder in the environment variable `COVID_FASTAI_DATA`, else CoronaHack as a
            Kaggle notebook has it, else synthetic radiographs.
        out: The folder to draw into, where it comes to that; nothing else is ever written.
        **drawing: The options of `write_phantom`: `patients`, `image_size`, `severity`, `seed`.

    Returns:
        The folder or file for `read_cohort`.

    Raises:
        DataError: The folder that was named, or that the variable names, is not there.

    Examples:
        >>> from covid_fastai import read_cohort
        >>> folder = example_data(out="example", patients=8, image_size=32)
        >>> read_cohort(folder)["label"].value_counts().to_dict()
        {'COVID-19': 5, 'Normal': 4, '': 3}
    """
    named = data or os.environ.get(ENVIRONMENT)
    if named:
        named = Path(named).expanduser()
        return find_data(named / WHOLE if (named / WHOLE).is_dir() else named)
    if KAGGLE_FOLDER.is_dir():
        return KAGGLE_FOLDER
    logger.info("No real radiographs were named: these are synthetic, and say nothing about lungs.")
    return write_phantom(out, **drawing)
