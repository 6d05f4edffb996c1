"""Probes of a trained model: images with the lungs' region black or noise, and negatives of the same source."""

from __future__ import annotations

import logging
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from covid_fastai.audit.audit import (
    BLIND,
    NEGATIVE_CONTROL,
    negative_control_rows,
)
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

Table = TypeVar("Table", bound=pd.DataFrame)  # a cohort stays one

CHANGES = (BLIND, "noise centre")
SMALLEST_FOR_MAPS = 128  # pixels; below it a map of a ResNet has fewer than 4 x 4 cells, which tell no place
MOST_MAPS = 200  # held-out images whose maps are measured
SHOWN = 6  # of them are drawn
MOST = 400  # held-out images that are predicted once more for each change


def predict_probes(
    learn: Learner, cohort: pd.DataFrame, *, positive: str | None, fold: int = 0, seed: int = 0
) -> pd.DataFrame:
    """Predict the held-out images with the lungs' region altered, and the negatives of the positive class's own source.

    A model whose figures hardly fall without the lungs has not looked at them. That they fall proves little: a black
    box is nothing that the model has seen in training; `audit --full` trains one on such images.

    Args:
        learn: A fitted learner.
        cohort: The cohort that it was trained with; rows of `valid` are predicted, at most 400 of them.
        positive: The positive class; None where there are more than two, and no negative_controls then.
        fold: Written to the column `fold`.
        seed: Of the draw.

    Returns:
        A table like that of `predict` with the column `probe`: `"black centre"`, `"noise centre"` or
        `"negative control"`.
        `path` is that of the image as it was.
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
    """Write into a run's folder what the audit takes from the model itself.

    `probes.csv` holds `predict_probes`; `saliency.csv` the fraction of the class activation maps of held-out images
    that lies in the lungs' box and in the border; `saliency.png` shows some of them. Images below 128 pixels have maps
    too coarse for either.

    Args:
        learn: As in `predict_probes`.
        cohort: As in `predict_probes`.
        folder: Where to write.
        positive: As in `predict_probes`.
        fold: As in `predict_probes`.
        seed: Of the draws.

    Raises:
        ResourceError: The folder cannot be written.
    """
    run = RunFolder(folder)
    write_csv(run.probes, predict_probes(learn, cohort, positive=positive, fold=fold, seed=seed))
    held_out = cohort[cohort["split"] == "valid"].sample(frac=1, random_state=seed).head(MOST_MAPS)
    held_out = held_out[held_out["path"].map(_opens)]
    if _image_size(learn) < SMALLEST_FOR_MAPS:
        return
    try:
        write_csv(run.saliency, saliency_fraction(learn, held_out))
        shown = held_out.groupby("label", sort=False).head(-(-SHOWN // held_out["label"].nunique()))
        save_figure(run.saliency_picture, plot_saliency(learn, shown.sort_values("label"), k=SHOWN))
    except UsageError as error:
        logger.warning("No class activation maps: %s", error)


def _opens(path: str) -> bool:
    try:
        open_image(path)
    except ImageError:
        return False
    return True


def write_altered(rows: Table, folder: str | Path, *, change: str, image_size: int) -> Table:
    """Write copies of images with the lungs' region altered, squashed to the size that the model takes.

    Args:
        rows: With `path`; those that cannot be opened are left out.
        folder: A new folder.
        change: `"black centre"` or `"noise centre"`: noise of the region's own mean and spread. The region is the
            stated box, 3/16 to 13/16 of each side, and no segmentation.
        image_size: Side of the copies, pixels.

    Returns:
        The rows, `path` the copy and `original` the image.

    Raises:
        UsageError: There is no such change.
    """
    if change not in CHANGES:
        raise UsageError(f"change={change!r}.", hint=f"Choose one of {', '.join(map(repr, CHANGES))}.")
    make_folder(folder)
    copies = []
    low, high = (round(edge * image_size) for edge in CENTRAL_BOX)
    for number, path in enumerate(rows["path"]):
        try:
            pixels = np.array(open_square(path, image_size))
        except ImageError:
            copies.append("")  # read_cohort has listed it
            continue
        box = pixels[low:high, low:high]
        if change == BLIND:
            box[:] = 0
        else:
            rng = np.random.default_rng(zlib.crc32(str(path).encode("utf-8", "surrogateescape")))
            box[:] = np.clip(rng.normal(box.mean(), box.std(), box.shape), 0, 255).round()
        copies.append(str(Path(folder) / f"{number}.png"))
        Image.fromarray(pixels).save(copies[-1])
    written = rows.assign(original=rows["path"], path=copies)
    return written[written["path"] != ""]


def _image_size(learn: Learner) -> int:
    return int(learn.dls.facts.image_size)
