"""Probes of a trained model: images without the lungs, the lungs alone, fixed spots covered, and negative controls."""

from __future__ import annotations

import logging
import os
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from PIL import Image

from covid_fastai.audit.audit import BLIND, COVERED, MARKS, NEGATIVE_CONTROL, REGION, SPOTS, negative_control_rows
from covid_fastai.audit.baselines import find_cohort_spots
from covid_fastai.audit.fixed_spots import Box, cover_image, find_edges, format_boxes
from covid_fastai.audit.lung_region import thorax_region, within_lungs
from covid_fastai.data.cached_regions import region_pixels
from covid_fastai.data.fastai_types import seeing
from covid_fastai.data.images import open_image, open_square
from covid_fastai.data.lungs import cached_lungs
from covid_fastai.data.regions import crop_square, decoded_size
from covid_fastai.errors import ImageError, UsageError
from covid_fastai.evaluation.predict import predict
from covid_fastai.files import make_folder, write_csv
from covid_fastai.options import Region
from covid_fastai.plotting import save_figure
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.methods import plot_saliency, saliency_fraction

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = ["CHANGES", "predict_probes", "write_altered", "write_covered", "write_probes"]

logger = logging.getLogger("covid_fastai")

Table = TypeVar("Table", bound=pd.DataFrame)  # a cohort in, a cohort out

NOISE, LUNGS_ONLY = "noise for lungs", "lungs only"
CHANGES = (BLIND, NOISE, LUNGS_ONLY)
SMALLEST_FOR_MAPS = 128  # pixels; below it a ResNet's map has fewer than 4 x 4 cells, too few to locate anything
MOST_MAPS = 200  # held-out images whose maps are measured
SHOWN = 6  # of these are plotted
MOST = 400  # held-out images that are predicted for each change


def predict_probes(
    learn: Learner, cohort: pd.DataFrame, *, positive: str | None, fold: int = 0, seed: int = 0
) -> pd.DataFrame:
    """Predict held-out images without the lungs, with the lungs alone and with fixed spots covered, and the controls.

    A model that performs almost as well without the lungs does not use them. A lower performance proves little: the
    model never saw a black box in training. `covid-fastai audit --full` trains a network on such images. The fixed
    spots are the places that separate the classes best (`find_cohort_spots`). Their surroundings are blurred over them,
    so that a model that does not need them hardly changes. In another copy, the three places with the sharpest edges in
    the lungs of each image are covered: letters, wires and clips lie at other places in each image.

    Args:
        learn: A fitted learner.
        cohort: The cohort of its training; at most 400 rows of `valid` are predicted.
        positive: The positive class; None if there are more than two classes, which have no negative controls.
        fold: Value of the column `fold`.
        seed: Seed of the sample of held-out images.

    Returns:
        A table like that of `predict` with the columns `probe`: a change of `write_altered`, `"fixed spots covered"`,
        `"sharpest edges covered"` or `"negative control"`, `lung_region`: the region that was altered, and `spots`:
        which fixed spots were covered, as `format_boxes`. `path` names the original image.
    """
    held_out = cohort[cohort["split"] == "valid"]
    held_out = held_out.sample(min(MOST, len(held_out)), random_state=seed).sort_index()
    tables, options = [], {"image_size": _image_size(learn), "region": learn.dls.facts.region}
    with tempfile.TemporaryDirectory(prefix="covid_fastai-") as folder:
        for change in CHANGES:
            rows = write_altered(held_out, Path(folder) / change, change=change, **options)
            with seeing(learn.dls, "frame"):  # the copies are crops already; guard: altered_whole
                table = predict(learn, rows, fold=fold)
            of_rows = {"path": rows["original"].to_numpy(), REGION: rows[REGION].to_numpy()}
            tables.append(table.assign(**of_rows, probe=change))
        spots = find_cohort_spots(cohort, seed=seed)
        for probe, boxes in {COVERED: spots, MARKS: None}.items():
            if boxes == ():
                continue
            rows = write_covered(held_out, Path(folder) / probe, boxes=boxes, **options)
            with seeing(learn.dls, "frame"):  # guard: covered_whole
                table = predict(learn, rows, fold=fold).assign(path=rows["original"].to_numpy())
            tables.append(table.assign(probe=probe, **{SPOTS: format_boxes(boxes or ())}))
    if positive is not None:
        rows = negative_control_rows(cohort, positive=positive)
        if len(rows):
            table = predict(learn, rows.assign(label=""), fold=fold)
            tables.append(table.assign(label=rows["label"].to_numpy(), probe=NEGATIVE_CONTROL))
    return pd.concat(tables, ignore_index=True).fillna({REGION: "", SPOTS: ""})


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
    logger.info("Audit: predicting altered images.")
    write_csv(run.probes, predict_probes(learn, cohort, positive=positive, fold=fold, seed=seed))
    held_out = cohort[cohort["split"] == "valid"].sample(frac=1, random_state=seed).head(MOST_MAPS)
    if _image_size(learn) < SMALLEST_FOR_MAPS:
        return
    held_out = held_out[[_can_be_opened(learn, path) for path in held_out["path"]]]
    try:
        write_csv(run.saliency, saliency_fraction(learn, held_out))
        per_class = -(-SHOWN // held_out["label"].nunique())  # rounded up
        shown = held_out.groupby("label", sort=False).head(per_class)
        save_figure(run.saliency_picture, plot_saliency(learn, shown.sort_values("label"), k=SHOWN))
    except UsageError as error:
        logger.warning("Class activation maps were not written: %s", error)


def _can_be_opened(learn: Learner, path: str) -> bool:
    try:
        region_pixels(path, _image_size(learn), learn.dls.facts.region)
    except ImageError:
        return False
    return True


def write_altered(rows: Table, folder: str | Path, *, change: str, image_size: int, region: Region = "frame") -> Table:
    """Write copies of images without the lungs or with the lungs alone, resized to the model's input size.

    The region of the lungs is that of `thorax_region`: the convex hull of the segmented lungs with a margin, or a
    central box on an image whose lungs are not found.

    Args:
        rows: With `path`; rows whose image cannot be opened are left out.
        folder: A new folder.
        change: `"lungs removed"` (the region is black), `"noise for lungs"` (it is Gaussian noise with its own mean and
            standard deviation) or `"lungs only"` (everything else is black).
        image_size: Side of the copies in pixels.
        region: What the model sees of an image. The copies show this part only, so that they are the model's own input,
            and a central box is that of this part.

    Returns:
        The rows; `path` is the copy, `original` the original image, and `lung_region` what was altered.

    Raises:
        UsageError: `change` is unknown.
    """
    if change not in CHANGES:
        raise UsageError(f"change={change!r} is unknown.", hint=f"Choose one of {', '.join(map(repr, CHANGES))}.")
    folder = make_folder(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        write = partial(_write_copy, folder, change, image_size, region)
        copies = list(pool.map(write, range(len(rows)), rows["path"]))
    names = {"path": [path for path, _ in copies], "original": rows["path"], REGION: [region for _, region in copies]}
    written = rows.assign(**names)
    return written[written["path"] != ""]


def write_covered(
    rows: Table, folder: str | Path, *, boxes: Sequence[Sequence[int]] | None, image_size: int, region: Region = "frame"
) -> Table:
    """Write copies of images as a model sees them, with places covered by their blurred surroundings.

    A crop to the lungs is that of the unchanged image: if the lungs were searched for again, a copy would differ by its
    crop too.

    Args:
        rows: As in `write_altered`.
        folder: A new folder.
        boxes: The places in the whole image, as `SpotTest.boxes`; None for those of each image with the sharpest edges
            in its lungs, or in the whole image if the lungs are not found.
        image_size: Side of the copies in pixels.
        region: What the model sees of an image, and the copy shows.

    Returns:
        The rows; `path` is the copy and `original` the original image.
    """
    folder, copies = make_folder(folder), []
    for number, path in enumerate(rows["path"]):
        try:
            places = _find_marks(path) if boxes is None else boxes
            if region == "frame":
                copy = cover_image(open_square(path, image_size), places, side=image_size)
            else:
                side, crop = decoded_size(image_size, region), region_pixels(path, image_size, region)[1]
                whole = cover_image(open_image(path, image_size=side), places, side=side)
                copy = crop_square(whole, image_size, crop)
        except ImageError:
            copies.append("")  # read_cohort has reported it
            continue
        copies.append(str(folder / f"{number}.png"))
        copy.save(copies[-1])
    written = rows.assign(original=rows["path"], path=copies)
    return written[written["path"] != ""]


def _find_marks(path: str) -> tuple[Box, ...]:
    """Return the places with the sharpest edges in the lungs of an image."""
    return find_edges(np.asarray(open_image(path)), within_lungs(cached_lungs(path)))


def _write_copy(folder: Path, change: str, image_size: int, seen: Region, number: int, path: str) -> tuple[str, str]:
    """Write the altered copy of one image, and return its path and the name of the region; empty if unreadable."""
    try:
        pixels, crop = region_pixels(path, image_size, seen)
        pixels = pixels.copy()
        region, name = thorax_region(path, image_size, crop)
    except ImageError:
        return "", ""  # read_cohort has reported it
    if change == LUNGS_ONLY:
        pixels[~region] = 0
    elif change == BLIND:
        pixels[region] = 0
    else:
        # seeded by the path, so that an image gets the same noise in every call
        rng = np.random.default_rng(zlib.crc32(str(path).encode("utf-8", "surrogateescape")))
        values = pixels[region]
        pixels[region] = np.clip(rng.normal(values.mean(), values.std(), len(values)), 0, 255).round()
    copy = folder / f"{number}.png"
    Image.fromarray(pixels).save(copy)
    return str(copy), name


def _image_size(learn: Learner) -> int:
    return int(learn.dls.facts.image_size)
