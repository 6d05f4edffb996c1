"""Plots of a cohort, the article's first two steps: patients and classes in the data, and examples of its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from covid_fastai.data.cohort import COHORT_COLUMNS, as_cohort
from covid_fastai.data.images import describe_header, open_square
from covid_fastai.errors import DataError, ImageError, UsageError
from covid_fastai.figures import Figure
from covid_fastai.options import Seed, checked
from covid_fastai.plotting import COLOURS, class_colours

if TYPE_CHECKING:
    from fastai.data.core import DataLoaders

__all__ = [
    "header_facts",
    "plot_batch",
    "plot_class_counts",
    "plot_header_facts",
    "plot_images_per_patient",
    "plot_missing_values",
    "plot_pictures",
    "plot_samples",
]

SHOWN = 256  # side of an image in a figure, pixels
SPLITS = ("train", "valid", "test", "excluded")
HATCHES = {"train": "", "valid": "///", "test": "xxx", "excluded": "..."}


def plot_missing_values(cohort: pd.DataFrame) -> Figure:
    """Plot the fraction of empty cells in each original column of the data.

    Args:
        cohort: What `read_cohort` returned.

    Returns:
        The figure, bars from 0 to 100%.
    """
    columns = [name for name in cohort if name not in COHORT_COLUMNS] or ["label", "patient", "source", "view"]
    fractions = pd.Series({name: (cohort[name].isna() | (cohort[name].astype(str) == "")).mean() for name in columns})
    figure, axes = _figure(height=0.9 + 0.32 * len(fractions))
    bars = axes.barh(fractions.index[::-1].astype(str), 100 * fractions[::-1], color=COLOURS[0])
    axes.bar_label(bars, [f"{100 * value:.0f}%" for value in fractions[::-1]], padding=3)
    axes.set(xlabel="empty cells (%)", xlim=(0, 112), title=f"Missing values, {len(cohort)} images")
    return figure


def plot_class_counts(cohort: pd.DataFrame) -> Figure:
    """Plot the numbers of images and patients by class and split.

    Args:
        cohort: What `read_cohort` or a split returned; excluded rows are omitted.

    Returns:
        The figure: images on the left, patients on the right.
    """
    cohort = as_cohort(cohort)
    rows, classes = cohort[cohort["split"] != "excluded"], cohort.facts.classes
    splits = [split for split in SPLITS if (rows["split"] == split).any()]
    figure = Figure(figsize=(8, 0.9 + 0.5 * len(classes) * max(1, len(splits)) / 1.6), layout="constrained")
    colours = class_colours(classes)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit in zip(panels, ("images", "patients"), strict=True):
        for position, split in enumerate(splits):
            by_class = rows[rows["split"] == split].groupby("label")["patient"]
            counts = (by_class.size() if unit == "images" else by_class.nunique()).reindex(classes, fill_value=0)
            height = 0.8 / len(splits)
            bars = axes.barh(
                np.arange(len(classes)) - 0.4 + height * (position + 0.5),
                counts,
                height=height,
                color=[colours[name] for name in classes],
                hatch=HATCHES[split],
                edgecolor="white",
                label=split,
            )
            axes.bar_label(bars, [f"{n:,} {split}" for n in counts], padding=3, fontsize=8)
        axes.set(xlabel=unit, title=unit.capitalize(), yticks=range(len(classes)), yticklabels=classes)
        axes.margins(x=0.28)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure


def plot_images_per_patient(cohort: pd.DataFrame) -> Figure:
    """Plot the distribution of images per patient; a split by image leaks patients who have several.

    Args:
        cohort: What `read_cohort` returned; excluded rows are omitted.

    Returns:
        The figure, one bar for each number of images; 8 and more are one bar.
    """
    rows = cohort[cohort["split"] != "excluded"]
    numbers = rows.groupby("patient").size()
    counts = numbers.clip(upper=8).value_counts().reindex(range(1, int(min(numbers.max(), 8)) + 1), fill_value=0)
    figure, axes = _figure()
    bars = axes.bar([f"{n}" if n < 8 else "8+" for n in counts.index], counts, color=COLOURS[0])
    axes.bar_label(bars, [f"{n:,}" for n in counts], fontsize=8)
    several = int((numbers > 1).sum())
    axes.set(xlabel="images per patient", ylabel="patients")
    axes.set_title(f"{several:,} of {len(numbers):,} patients have several images")
    return figure


@checked
def plot_samples(cohort: pd.DataFrame, *, each: int = 6, seed: Seed = 0) -> Figure:
    """Plot random images of each class as the model receives them: 8-bit greyscale, squashed to a square.

    Args:
        cohort: What `read_cohort` returned; excluded rows are omitted.
        each: Images per class, at most one per patient.
        seed: Seed of the random sample.

    Returns:
        The figure, one row per class.

    Raises:
        ImageError: A sampled image cannot be read.
    """
    cohort = as_cohort(cohort)
    rows, classes = cohort[cohort["split"] != "excluded"], cohort.facts.classes
    images, titles = [], []
    for name in classes:
        sample = rows[rows["label"] == name].sample(frac=1, random_state=seed).drop_duplicates("patient").head(each)
        for row in sample.to_dict("records"):
            images.append(_open_shown(row["path"]))
            titles.append(f"{name}\n{shorten(row['source'], 22)}")
        images += [None] * (each - len(sample))
        titles += [""] * (each - len(sample))
    return plot_pictures(images, titles, columns=each)


def plot_pictures(pictures: Sequence[np.ndarray | None], titles: Sequence[str], *, columns: int = 4) -> Figure:
    """Plot greyscale images in a grid, 0 as black.

    Args:
        pictures: Arrays `(h, w)` of 0 to 255; None leaves a gap.
        titles: The title of each image.
        columns: Images per row.

    Returns:
        The figure.

    Raises:
        UsageError: `pictures` is empty.
    """
    if not pictures:
        raise UsageError("There are no images to plot: pictures is empty.", hint="Give at least one image.")
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(1.75 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes in grid:
        axes.set_axis_off()
    for axes, picture, title in zip(figure.axes, pictures, titles, strict=False):
        if picture is not None:
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=8, parse_math=False)  # a file name can contain dollar signs
    return figure


def plot_batch(dls: DataLoaders, *, images: int = 8, columns: int = 8) -> Figure:
    """Plot images of a training batch after augmentation, with the normalisation reversed.

    Args:
        dls: What `build_dataloaders` returned.
        images: Maximum number of images.
        columns: Images per row.

    Returns:
        The figure.
    """
    x, y = dls.train.one_batch()
    mean, std = dls.facts.mean, dls.facts.std
    batch = np.asarray((x[:images, 0].detach().cpu() * std + mean) * 255).clip(0, 255)
    titles = [str(dls.vocab[int(label)]) for label in y[:images]]
    return plot_pictures(list(batch), titles, columns=min(columns, len(batch)))


def header_facts(cohort: pd.DataFrame, *, most: int = 400, seed: int = 0) -> pd.DataFrame:
    """Return facts of the files' headers; if they differ by class, they can act as shortcuts.

    Args:
        cohort: What `read_cohort` returned; excluded rows are omitted.
        most: Size of the random sample of each class, images.
        seed: Seed of the random sample.

    Returns:
        A table with one row per image: `path`, `label`, `source`, `format`, `mode`, `bits`, `width`, `height` (pixels),
        `megabytes`.

    Raises:
        DataError: No image of the sample can be read.
    """
    rows = cohort[cohort["split"] != "excluded"]
    sample = rows.sample(frac=1, random_state=seed).groupby("label", sort=True).head(most).sort_index()
    facts = []
    for row in sample.to_dict("records"):
        try:
            header = describe_header(row["path"])
        except ImageError:
            continue  # read_cohort has recorded it as a problem
        size = Path(row["path"]).stat().st_size / 1e6
        facts.append(
            {name: row[name] for name in ("path", "label", "source")}
            | {name: getattr(header, name) for name in ("format", "mode", "bits", "width", "height")}
            | {"megabytes": size}
        )
    if not facts:
        raise DataError("No image of the cohort can be read.", hint="cohort.facts.problem_table() lists the reasons.")
    return pd.DataFrame(facts)


def plot_header_facts(facts: pd.DataFrame, *, classes: Sequence[str] | None = None) -> Figure:
    """Plot format, colour mode, size and shape of the files by class.

    Args:
        facts: What `header_facts` returned.
        classes: The classes in the order of the plot; None for alphabetical order.

    Returns:
        The figure, four panels.
    """
    classes = list(classes or sorted(facts["label"].unique()))
    colours = class_colours(classes)
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    kinds, modes, areas, shapes = figure.subplots(2, 2).flat
    for axes, column, title in ((kinds, "format", "File format"), (modes, "mode", "Colour mode")):
        fractions = pd.crosstab(facts["label"], facts[column], normalize="index").reindex(classes).fillna(0)
        left = np.zeros(len(fractions))
        for number, value in enumerate(fractions):
            bars = axes.barh(
                classes, 100 * fractions[value], left=100 * left, color=COLOURS[number % 6], label=str(value)
            )
            axes.bar_label(
                bars, [str(value) if x > 0.12 else "" for x in fractions[value]], label_type="center", size=8
            )
            left += fractions[value]
        axes.set(xlabel="images (%)", title=title, xlim=(0, 100))
        axes.invert_yaxis()
    area = facts["width"] * facts["height"] / 1e6
    bins = np.geomspace(max(area.min(), 1e-3) * 0.95, area.max() * 1.05, 30)
    for name in classes:
        of_class = facts["label"] == name
        areas.hist(area[of_class], bins=bins, color=colours[name], alpha=0.6, label=name)
        shapes.scatter(
            facts.loc[of_class, "width"], facts.loc[of_class, "height"], s=8, color=colours[name], alpha=0.5, label=name
        )
    areas.set(xscale="log", xlabel="megapixels", ylabel="images", title="Image size")
    areas.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    areas.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    areas.xaxis.set_minor_formatter(NullFormatter())  # otherwise the labels of minor ticks overlap
    shapes.set(xlabel="width (pixels)", ylabel="height (pixels)", title="Shape")
    areas.legend(fontsize=8, frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def shorten(text: object, most: int) -> str:
    """Return `text`; if it is longer than `most` characters, its middle is replaced by an ellipsis."""
    whole, half = str(text), (most - 1) // 2
    return whole if len(whole) <= most else f"{whole[:half]}…{whole[-half:]}"


def _open_shown(path: str) -> np.ndarray:
    """Return an image at the size of the plots, `(256, 256)`."""
    return np.asarray(open_square(path, SHOWN))


def _figure(*, height: float = 3.0):
    """Return a figure with one pair of axes (height in inches)."""
    figure = Figure(figsize=(6, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
