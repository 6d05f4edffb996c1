"""Probes of a trained model: images with the lung region black or filled with noise, and negative controls."""

from __future__ import annotations

import logging
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from covid_fastai.audit.audit import BLIND, NEGATIVE_CONTROL, negative_control_rows
from covid_fastai.data.images import open_image, open_square
from covid_fastai.errors import ImageError, UsageError
from covid_fastai.evaluation.predict import predict
from covid_fastai.files import make_folder, write_csv
from covid_fastai.plotting import save_figure
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.methods import plot_saliency, saliency_fraction
from covid_fastai.saliency.region_fraction import CENTRAL_BOX

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = ["CHANGES", "predict_probes", "write_altered", "write_probes"]

logger = logging.getLogger("covid_fastai")

Table = TypeVar("Table", bound=pd.DataFrame)  # a cohort in, a cohort out

CHANGES = (BLIND, "noise centre")
SMALLEST_FOR_MAPS = 128  # pixels; below it a ResNet's map has fewer than 4 x 4 cells, too few to locate anything
MOST_MAPS = 200  # held-out images whose maps are measured
SHOWN = 6  # of these are plotted
MOST = 400  # held-out images that are predicted for each change


def predict_probes(
    learn: Learner, cohort: pd.DataFrame, *, positive: str | None, fold: int = 0, seed: int = 0
) -> pd.DataFrame:
    """Predict held-out images with the lung region altered, and the negative controls.

    A model that performs almost as well without the lungs does not use them. A lower performance proves little: the
    model never saw a black box in training. `covid-fastai audit --full` trains a network on such images.

    Args:
        learn: A fitted learner.
        cohort: The cohort of its training; at most 400 rows of `valid` are predicted.
        positive: The positive class; None if there are more than two classes, which have no negative controls.
        fold: Value of the column `fold`.
        seed: Seed of the sample of held-out images.

    Returns:
        A table like that of `predict` with the column `probe`: `"black centre"`, `"noise centre"` or
        `"negative control"`. `path` names the original image.
    """
    held_out = cohort[cohort["split"] == "valid"]
    held_out = held_out.sample(min(MOST, len(held_out)), random_state=seed).sort_index()
    tables = []
    with tempfile.TemporaryDirectory(prefix="covid_fastai-") as folder:
        for change in CHANGES:
            rows = write_altered(held_out, Path(folder) / change, change=change, image_size=_image_size(learn))
            table = predict(learn, rows, fold=fold)
            tables.append(table.assign(path=rows["original"].to_numpy(), probe=change))
    if positive is not None:
        rows = negative_control_rows(cohort, positive=positive)
        if len(rows):
            table = predict(learn, rows.assign(label=""), fold=fold)
            tables.append(table.assign(label=rows["label"].to_numpy(), probe=NEGATIVE_CONTROL))
    return pd.concat(tables, ignore_index=True)


def write_probes(
    learn: Learner, cohort: pd.DataFrame, folder: str | Path, *, positive: str | None, fold: int = 0, seed: int = 0
) -> None:
    """Write the results of the probes into a run's folder, for its audit.

    `probes.csv` holds the table of `predict_probes`, `saliency.csv` the fraction of the class activation maps of
    held-out images that lies in the lungs, in the central box and in the border, and `saliency.png` some of the maps.
    The last two are not written for images below 128 pixels, whose maps are too coarse.

    Args:
        learn: As in `predict_probes`.
        cohort: As in `predict_probes`.
        folder: The run's folder.
        positive: As in `predict_probes`.
        fold: As in `predict_probes`.
        seed: Seed of the samples of held-out images.

    Raises:
        ResourceError: The folder cannot be written.
    """
    run = RunFolder(folder)
    write_csv(run.probes, predict_probes(learn, cohort, positive=positive, fold=fold, seed=seed))
    held_out = cohort[cohort["split"] == "valid"].sample(frac=1, random_state=seed).head(MOST_MAPS)
    held_out = held_out[held_out["path"].map(_can_be_opened)]
    if _image_size(learn) < SMALLEST_FOR_MAPS:
        return
    try:
        write_csv(run.saliency, saliency_fraction(learn, held_out))
        per_class = -(-SHOWN // held_out["label"].nunique())  # rounded up
        shown = held_out.groupby("label", sort=False).head(per_class)
        save_figure(run.saliency_picture, plot_saliency(learn, shown.sort_values("label"), k=SHOWN))
    except UsageError as error:
        logger.warning("Class activation maps were not written: %s", error)


def _can_be_opened(path: str) -> bool:
    try:
        open_image(path)
    except ImageError:
        return False
    return True


def write_altered(rows: Table, folder: str | Path, *, change: str, image_size: int) -> Table:
    """Write copies of images with the lung region altered, resized to the model's input size.

    Args:
        rows: With `path`; rows whose image cannot be opened are left out.
        folder: A new folder.
        change: `"black centre"` or `"noise centre"` (Gaussian noise with the mean and standard deviation of the
            region). The region is a fixed box, 3/16 to 13/16 of each side, not a segmentation.
        image_size: Side of the copies in pixels.

    Returns:
        The rows; `path` is the copy and `original` the original image.

    Raises:
        UsageError: `change` is unknown.
    """
    if change not in CHANGES:
        raise UsageError(f"change={change!r} is unknown.", hint=f"Choose one of {', '.join(map(repr, CHANGES))}.")
    make_folder(folder)
    copies = []
    low, high = (round(edge * image_size) for edge in CENTRAL_BOX)
    for number, path in enumerate(rows["path"]):
        try:
            pixels = np.array(open_square(path, image_size))
        except ImageError:
            copies.append("")  # read_cohort has reported it
            continue
        box = pixels[low:high, low:high]
        if change == BLIND:
            box[:] = 0
        else:
            # seeded by the path, so that an image gets the same noise in every call
            rng = np.random.default_rng(zlib.crc32(str(path).encode("utf-8", "surrogateescape")))
            box[:] = np.clip(rng.normal(box.mean(), box.std(), box.shape), 0, 255).round()
        copies.append(str(Path(folder) / f"{number}.png"))
        Image.fromarray(pixels).save(copies[-1])
    written = rows.assign(original=rows["path"], path=copies)
    return written[written["path"] != ""]


def _image_size(learn: Learner) -> int:
    return int(learn.dls.facts.image_size)
