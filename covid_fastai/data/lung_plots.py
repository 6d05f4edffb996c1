"""Plots of segmented lungs, and their area and place by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from covid_fastai.data.exploration import plot_pictures, shorten
from covid_fastai.data.image_inputs import as_image_list, name_image
from covid_fastai.data.images import Source, open_square
from covid_fastai.data.lung_tables import LUNG_MEASURES, framing_of_lungs, sample_lungs
from covid_fastai.data.lungs import MASK_SIZE, LungQuality, segment_lungs
from covid_fastai.errors import DataError
from covid_fastai.figures import Figure
from covid_fastai.options import TopK, checked
from covid_fastai.plotting import COLOURS, class_colours

__all__ = ["lung_facts", "plot_lung_facts", "plot_lungs"]


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
        lungs = segment_lungs([image])[0]
        shown.append(np.asarray(open_square(image, MASK_SIZE)))
        results.append(lungs)
        titles.append(f"{shorten(Path(name).name, 24)}\n{lungs.quality}, {lungs.area:.0%} of the image")
    figure = plot_pictures(shown, titles)
    for axes, lungs in zip(figure.axes, results, strict=False):
        for mask, style, colour in zip(lungs.masks, ("-", "--"), (COLOURS[1], COLOURS[5]), strict=True):
            if mask.any() and not mask.all():
                axes.contour(mask, levels=[0.5], colors=colour, linestyles=style, linewidths=1.2)
    return figure


def lung_facts(cohort: pd.DataFrame, *, most: int = 200, seed: int = 0) -> pd.DataFrame:
    """Return the lungs of a cohort or of a sample of each class; if their place differs by class, it can be a shortcut.

    Args:
        cohort: What `read_cohort` returned; excluded rows are omitted. With `check_lungs=True` its own columns are
            used, for all images.
        most: Size of the random sample of each class, images.
        seed: Seed of the random sample.

    Returns:
        One row per image that can be read: the columns of `sample_lungs`, and `area`, `width`, `height`, `x` and `y` of
        the lungs in % of the image, NaN unless the quality is "fine" or "cut off".

    Raises:
        DataError: No image can be read.
    """
    facts = sample_lungs(cohort, most=most, seed=seed)
    facts = facts[facts["lung_quality"] != "unreadable"].reset_index(drop=True)  # read_cohort has reported them
    if facts.empty:
        raise DataError("No image of the cohort can be read.", hint="cohort.facts.problem_table() lists the reasons.")
    return facts.join(framing_of_lungs(facts))


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
    qualities.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3)
    for axes, (column, label) in zip(panels, LUNG_MEASURES.items(), strict=True):
        values = facts[column].dropna()
        bins = np.linspace(values.min() - 1, values.max() + 1, 25) if len(values) else 1
        for name in classes:
            of_class = facts.loc[facts["label"] == name, column].dropna()
            weights = np.full(len(of_class), 100 / max(len(of_class), 1))
            axes.hist(of_class, bins=bins, weights=weights, color=colours[name], alpha=0.6, label=name)
        axes.set_xlabel(label, fontsize=9)
        axes.set_ylabel("images of the class (%)", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
