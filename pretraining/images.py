"""Which images the weights may see, chosen by seed and written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from covid_fastai.data.images import open_image, resize_image
from covid_fastai.data.metadata import read_cohort
from covid_fastai.files import write_csv

__all__ = ["CROPS_OF_COHEN", "choose_images", "store_pixels"]

# Images of radiography-224 that are of Cohen's collection, cropped by a few percent: `find_leaks` shows them beside
# CoronaHack's. What is to be judged on CoronaHack's COVID-19 patients must not have seen them.
CROPS_OF_COHEN = {f"COVID-{number}.jpg" for number in (339, 342, 675, 681, 1054, 1114, 1249, 1529, 1535)}


def choose_images(data: Path, out: Path, *, kermany_share: float, seed: int) -> pd.DataFrame:
    """Choose the images: a share of Kermany's TRAIN patients, and radiography-224 but for its copies of Cohen's images.

    Args:
        data: The folder that holds coronahack-224 and radiography-224.
        out: Where `seen.csv` is written.
        kermany_share: Share of Kermany's TRAIN patients, 0 to 1.
        seed: Of the choice.

    Returns:
        `path`, `bank` (kermany or radiography), `label`, `patient`, `patient_known`, a row an image.
    """
    kermany = read_cohort(data / "coronahack-224", task="etiology")
    kermany = kermany[(kermany["split"] == "train") & (kermany["source"] == "kermany")]
    groups = np.sort(kermany["group"].unique())
    chosen = np.random.default_rng(seed).permutation(groups)[: int(kermany_share * len(groups))]
    kermany = kermany[kermany["group"].isin(chosen)].assign(bank="kermany")
    radiography = read_cohort(data / "radiography-224", task="covid", check_images=False).assign(bank="radiography")
    radiography = radiography[~radiography["path"].map(lambda path: Path(path).name).isin(CROPS_OF_COHEN)]
    columns = ["path", "bank", "label", "patient", "patient_known"]
    seen = pd.concat([pd.DataFrame(rows)[columns] for rows in (kermany, radiography)], ignore_index=True)
    assert len(kermany) and not kermany["path"].str.contains("/test/").any()
    write_csv(out / "seen.csv", seen)
    return seen


def store_pixels(seen: pd.DataFrame, file: Path, *, size: int) -> np.ndarray:
    """Open each image once, and keep it as `(n, size, size)` uint8 in a file that is mapped into memory."""
    shape = (len(seen), size, size)
    if file.exists() and file.stat().st_size == np.prod(shape):
        return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
    part = file.with_suffix(".part")
    pixels = np.memmap(part, dtype=np.uint8, mode="w+", shape=shape)
    for row, path in enumerate(seen["path"]):
        pixels[row] = np.asarray(resize_image(open_image(path), size))
    pixels.flush()
    part.rename(file)
    return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
