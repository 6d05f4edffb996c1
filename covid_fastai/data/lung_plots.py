"""Plots of segmented lungs, and their area and place by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from covid_fastai.data.exploration import plot_pictures, shorten
from covid_fastai.data.image_inputs import as_image_list, name_image
from covid_fastai.data.images import Source, open_square
from covid_fastai.data.lungs import MASK_SIZE, LungQuality, find_lungs, measure_lungs
from covid_fastai.errors import DataError
from covid_fastai.options import TopK, checked
from covid_fastai.plotting import COLOURS, class_colours

__all__ = ["LUNG_MEASURES", "lung_facts", "plot_lung_facts", "plot_lungs"]

LUNG_MEASURES = {  # of `lung_facts`, and their axis labels
    "area": "lung area (% of the image)",
    "width": "width of the lungs' box (% of the image)",
    "height": "height of the lungs' box (% of the image)",
    "x": "centre of the box from the left (%)",
    "y": "centre of the box from the top (%)",
}


@checked
def plot_lungs(images: Source | Sequence[Source] | pd.DataFrame, *, k: TopK = 8) -> Figure:
    """Plot radiographs with the outlines of their lungs, and the quality of each segmentation.

    Args:
        images: As in `segment_lungs`.
        k: Number of images that are shown, the first ones.

    Returns:
        The figure; the lung on the left side of the image has a solid outline, the one on the right side a dashed one.
        Images are squashed to a square, as models see them.

    Raises:
        UsageError: There are no images.
        ImageError: An image cannot be read.
        DataError: A table has no column `path`.
    """
    shown, titles, results = [], [], []
    for number, image in enumerate(as_image_list(images)[:k], start=1):
        name = name_image(image, number)
        grey = open_square(image, MASK_SIZE)
        lungs = find_lungs(grey)
        shown.append(np.asarray(grey))
        results.append(lungs)
        titles.append(f"{shorten(Path(name).name, 24)}\n{lungs.quality}, {lungs.area:.0%} of the image")
    figure = plot_pictures(shown, titles)
    for axes, lungs in zip(figure.axes, results, strict=False):
        for mask, style, colour in zip(lungs.masks, ("-", "--"), (COLOURS[1], COLOURS[5]), strict=True):
            if mask.any() and not mask.all():
                axes.contour(mask, levels=[0.5], colors=colour, linestyles=style, linewidths=1.2)
    return figure


def lung_facts(cohort: pd.DataFrame, *, most: int = 200, seed: int = 0) -> pd.DataFrame:
    """Measure the lungs of a sample of each class; if area or place differ by class, they can act as shortcuts.

    Args:
        cohort: What `read_cohort` returned; excluded rows are omitted.
        most: Size of the random sample of each class, images.
        seed: Seed of the random sample.

    Returns:
        One row per image: `path`, `label`, the columns of `measure_lungs`, and `area`, `width`, `height`, `x` and `y`
        of the lungs in % of the image, NaN unless the quality is "fine" or "cut off".

    Raises:
        DataError: No image of the sample can be read.
    """
    rows = cohort[cohort["split"] != "excluded"]
    sample = rows.sample(frac=1, random_state=seed).groupby("label", sort=True).head(most).sort_index()
    facts = measure_lungs(sample["path"])
    facts.insert(1, "label", sample["label"].to_numpy())
    facts = facts[facts["lung_quality"] != "unreadable"].reset_index(drop=True)  # read_cohort has reported them
    if facts.empty:
        raise DataError("No image of the cohort can be read.", hint="cohort.facts.problem_table() lists the reasons.")
    usable = facts["lung_quality"].isin(["fine", "cut off"])
    left, top, right, bottom = (
        facts[f"lung_{side}"].where(usable) * 100 for side in ("left", "top", "right", "bottom")
    )
    return facts.assign(
        area=facts["lung_area"].where(usable) * 100,
        width=right - left,
        height=bottom - top,
        x=(left + right) / 2,
        y=(top + bottom) / 2,
    )


def plot_lung_facts(facts: pd.DataFrame, *, classes: Sequence[str] | None = None) -> Figure:
    """Plot the quality of the segmentation, and the area and the place of the lungs by class.

    Args:
        facts: What `lung_facts` returned.
        classes: The classes in the order of the plot; None for alphabetical order.

    Returns:
        The figure, six panels.
    """
    classes = list(classes or sorted(facts["label"].unique()))
    colours = class_colours(classes)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    qualities, *panels = figure.subplots(2, 3).flat
    fractions = pd.crosstab(facts["label"], facts["lung_quality"], normalize="index").reindex(classes).fillna(0)
    left = np.zeros(len(fractions))
    for number, name in enumerate([quality for quality in get_args(LungQuality) if quality in fractions]):
        qualities.barh(classes, 100 * fractions[name], left=100 * left, color=COLOURS[number], label=name)
        left += fractions[name].to_numpy()
    qualities.set(xlabel="images (%)", title="Segmentation", xlim=(0, 100))
    qualities.invert_yaxis()
    qualities.legend(fontsize=7, frameon=False)
    for axes, (column, label) in zip(panels, LUNG_MEASURES.items(), strict=True):
        values = facts[column].dropna()
        bins = np.linspace(values.min() - 1, values.max() + 1, 25) if len(values) else 1
        for name in classes:
            of_class = facts.loc[facts["label"] == name, column].dropna()
            weights = np.full(len(of_class), 100 / max(len(of_class), 1))
            axes.hist(of_class, bins=bins, weights=weights, color=colours[name], alpha=0.6, label=name)
        axes.set(xlabel=label, ylabel="images of the class (%)")
    panels[0].legend(fontsize=8, frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
