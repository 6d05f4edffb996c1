"""Plot augmentations: what a training sees of an image."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from fastai.torch_core import TensorImageBW, no_random

from covid_fastai.data.augmentation import augmentation
from covid_fastai.data.cached_regions import region_pixels
from covid_fastai.data.exploration import plot_pictures
from covid_fastai.errors import DataError
from covid_fastai.figures import Figure
from covid_fastai.options import Augmentation, ImageSize, Region, Seed, TopK, checked

__all__ = ["plot_augmentations"]


@checked
def plot_augmentations(
    paths: Sequence[str | os.PathLike[str]],
    *,
    names: Sequence[Augmentation] = ("standard", "strong"),
    views: TopK = 5,
    image_size: ImageSize = 128,
    region: Region = "frame",
    seed: Seed = 0,
) -> Figure:
    """Plot images and random views of them, one row per image and augmentation.

    Args:
        paths: Image files.
        names: Names in `AUGMENTATIONS`.
        views: Number of random views in a row.
        image_size: Side of the images, pixels, as in a training.
        region: What a model sees of an image, as in a training.
        seed: Seed of the views.

    Returns:
        The figure; the first image of each row is not changed.

    Raises:
        DataError: There is no image.
        ImageError: An image cannot be read.

    Examples:
        >>> figure = plot_augmentations(cohort["path"].head(1), views=3)
        >>> len(figure.axes)
        8
    """
    if len(paths) == 0:
        raise DataError("There is no image to plot.", hint="Give one path or more.")
    pictures, titles = [], []
    for path in paths:
        pixels = region_pixels(path, image_size, region)[0]
        for name in names:
            batch = TensorImageBW(torch.from_numpy(pixels.copy()).float()[None, None].repeat(views, 1, 1, 1) / 255)
            with no_random(seed):
                for transform in augmentation(name):
                    batch = transform(batch, split_idx=0)
            changed = (batch[:, 0].numpy() * 255).round().clip(0, 255).astype(np.uint8)
            pictures += [pixels, *changed]
            titles += ["unchanged", *[str(name)] * views]
    return plot_pictures(pictures, titles, columns=views + 1)
