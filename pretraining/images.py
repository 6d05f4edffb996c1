"""Choose the images of the pretraining by seed, and store their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from covid_fastai.data.images import open_image, resize_image
from covid_fastai.data.metadata import read_cohort
from covid_fastai.files import write_csv

__all__ = ["CROPS_OF_COHEN", "IMAGES_FILE", "choose_images", "store_pixels"]

IMAGES_FILE = "training-images.csv"  # in the folder of a pretraining

# Images of radiography-224 that are cropped copies of Cohen's images, as found by `find_leaks`. They are excluded, as
# the weights are evaluated on CoronaHack's COVID-19 patients, whose images are Cohen's.
CROPS_OF_COHEN = {f"COVID-{number}.jpg" for number in (339, 342, 675, 681, 1054, 1114, 1249, 1529, 1535)}


def choose_images(data: Path, out: Path, *, kermany_fraction: float, seed: int) -> pd.DataFrame:
    """Choose a fraction of Kermany's TRAIN patients, and radiography-224 without its copies of Cohen's images.

    Args:
        data: The folder with coronahack-224 and radiography-224.
        out: The folder in which `training-images.csv` is written.
        kermany_fraction: Fraction of Kermany's TRAIN patients, 0 to 1.
        seed: Seed of the choice.

    Returns:
        One row per image: `path`, `bank` (kermany or radiography), `label`, `patient`, `patient_known`.
    """
    kermany = read_cohort(data / "coronahack-224", task="etiology")
    kermany = kermany[(kermany["split"] == "train") & (kermany["source"] == "kermany")]
    groups = np.sort(kermany["group"].unique())
    chosen = np.random.default_rng(seed).permutation(groups)[: int(kermany_fraction * len(groups))]
    kermany = kermany[kermany["group"].isin(chosen)].assign(bank="kermany")
    radiography = read_cohort(data / "radiography-224", task="covid", check_images=False).assign(bank="radiography")
    radiography = radiography[~radiography["path"].map(lambda path: Path(path).name).isin(CROPS_OF_COHEN)]
    columns = ["path", "bank", "label", "patient", "patient_known"]
    images = pd.concat([pd.DataFrame(rows)[columns] for rows in (kermany, radiography)], ignore_index=True)
    assert len(kermany) and not kermany["path"].str.contains("/test/").any()
    write_csv(out / IMAGES_FILE, images)
    return images


def store_pixels(images: pd.DataFrame, file: Path, *, size: int) -> np.ndarray:
    """Read each image once, and store the pixels as uint8 `(n, size, size)` in a memory-mapped file."""
    shape = (len(images), size, size)
    if file.exists() and file.stat().st_size == np.prod(shape):
        return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
    temporary = file.with_suffix(".part")
    pixels = np.memmap(temporary, dtype=np.uint8, mode="w+", shape=shape)
    for row, path in enumerate(images["path"]):
        pixels[row] = np.asarray(resize_image(open_image(path), size))
    pixels.flush()
    temporary.rename(file)
    return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
