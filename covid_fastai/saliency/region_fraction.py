"""The fraction of saliency that lies in the lungs and in the border, as a table and as a figure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from PIL import Image

from covid_fastai.data.exploration import shorten
from covid_fastai.data.images import open_image, open_square
from covid_fastai.data.lungs import cached_lungs
from covid_fastai.data.regions import FRAME, Crop
from covid_fastai.errors import DataError
from covid_fastai.evaluation.bootstrap import resample_patients
from covid_fastai.evaluation.formatting import PERCENT, format_metric
from covid_fastai.figures import Figure
from covid_fastai.saliency.overlay import area_mean

__all__ = [
    "BORDER",
    "BOX_NAME",
    "CENTRAL_BOX",
    "LungRegion",
    "find_lung_region",
    "measure_region_fractions",
    "plot_overlays",
    "summarise_saliency_fraction",
]

# From 3/16 to 13/16 of each side: the 10 x 10 pixels of a 16 x 16 thumbnail that the audit's "black centre" removes. In
# synthetic radiographs (60 patients, 128 pixels) the box holds 82% of the lung area, and 54% of the box is lung.
CENTRAL_BOX = (3 / 16, 13 / 16)
BOX_NAME = "central box, {:.4g} to {:.4g} of each side".format(*CENTRAL_BOX)
BORDER = 1 / 16  # of each side: the outer ring of a 16 x 16 thumbnail, with 0.2% of the synthetic lung area
REGIONS = ("inside", "box", "border")
FEWEST_PATIENTS = 10  # a bootstrap over fewer patients gives intervals that are too narrow


def measure_region_fractions(
    table: pd.DataFrame,
    saliency: np.ndarray,
    classes: Sequence[str],
    *,
    masks: str | Path | None = None,
    crops: Sequence[Crop] | None = None,
) -> pd.DataFrame:
    """Measure the fractions of saliency in the lungs, in a central box and in the border, and those of the area.

    A map is measured in its own cells and not interpolated, since a map of 4 x 4 cells cannot resolve the edge of a
    lung.

    Args:
        table: `path`, `patient` and `label`, one row per image.
        saliency: `(n, h, w)`, 0 or more.
        classes: The class that the saliency of each image supports.
        masks: A folder of lung masks `<name>.png`; None to segment the lungs. On an image whose lungs are not found,
            `CENTRAL_BOX` takes their place, and `lung` says so.
        crops: The part of each image that the model saw and its saliency covers; None for whole images. Box and border
            are those of this part.

    Returns:
        The table of `covid_fastai.saliency.methods.saliency_fraction`.

    Raises:
        DataError: A mask is missing.
        ImageError: An image or a mask cannot be read.
    """
    shape = saliency.shape[1:]
    box, border = _box_area(*CENTRAL_BOX, shape), 1 - _box_area(BORDER, 1 - BORDER, shape)
    rows = []
    crops = [FRAME] * len(table) if crops is None else crops
    for path, cells, crop in zip(table["path"], saliency, crops, strict=True):
        lung = find_lung_region(path, masks)
        inside = box if lung.mask is None else area_mean(lung.mask, shape, crop[:4])
        areas = {"inside": inside, "box": box, "border": border}
        total = float(cells.sum())
        row = {name: float((cells * area).sum()) / total if total > 0 else np.nan for name, area in areas.items()}
        row |= {f"{name}_area": float(area.mean()) for name, area in areas.items()}
        rows.append(row | {"lung": lung.name})
    about = pd.DataFrame(table)[["path", "patient", "label"]].assign(of=classes)
    return pd.concat([about, pd.DataFrame(rows)], axis=1)


def summarise_saliency_fraction(table: pd.DataFrame, *, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Average the fractions of saliency by class, with 95% bootstrap intervals over patients.

    Args:
        table: Result of `saliency_fraction`.
        n_resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        One row per class of `of` and region (`inside` the lungs, `box`, `border`): `images` and `patients` with any
        saliency, `fraction` (mean, 0 to 1), `low` and `high` (NaN below 10 patients), `area` (fraction of the area,
        which a uniform map would have) and `ratio` (fraction divided by area).
    """
    rows = []
    for name, images in table[table["inside"].notna()].groupby("of", sort=True):
        patients = images["patient"].nunique()
        counts = resample_patients(images["patient"], images["label"], n_resamples=n_resamples, seed=seed)
        weights = counts.astype(float)
        weights /= weights.sum(axis=1, keepdims=True)  # each resample then gives a weighted mean over images
        for region in REGIONS:
            fraction, area = images[region].mean(), images[f"{region}_area"].mean()
            low, high = np.quantile(weights @ images[region].to_numpy(), [0.025, 0.975])
            if patients < FEWEST_PATIENTS:
                low = high = np.nan
            row = {"of": name, "region": region, "images": len(images), "patients": patients, "fraction": fraction}
            rows.append(row | {"low": low, "high": high, "area": area, "ratio": fraction / area})
    return pd.DataFrame(
        rows, columns=["of", "region", "images", "patients", "fraction", "low", "high", "area", "ratio"]
    )


def plot_overlays(
    fractions: pd.DataFrame,
    saliency: np.ndarray,
    *,
    image_size: int,
    unit: str,
    masks: str | Path | None = None,
    crops: Sequence[Crop] | None = None,
) -> Figure:
    """Plot radiographs and, below each, its saliency as an overlay with the outline of the lung region.

    Args:
        fractions: Result of `measure_region_fractions`.
        saliency: `(n, h, w)`, as given to `measure_region_fractions`.
        image_size: Side in pixels to which images are resized.
        unit: Label of the colour bar.
        masks: As in `measure_region_fractions`.
        crops: As in `measure_region_fractions`; the overlay of an image lies on this part, which has a dotted outline.

    Returns:
        The figure; all its maps have the same scale.

    Raises:
        ImageError: An image cannot be read.
    """
    size = image_size
    figure = Figure(figsize=(1.95 * len(fractions) + 0.9, 4.9), layout="constrained")
    panels = figure.subplots(2, len(fractions), squeeze=False)
    top = max(float(saliency.max()), 1e-9)
    crops = [FRAME] * len(fractions) if crops is None else crops
    for (above, below), row, cells, crop in zip(panels.T, fractions.to_dict("records"), saliency, crops, strict=True):
        image = np.asarray(open_square(row["path"], size))
        for axes in (above, below):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
        overlay = Image.fromarray(cells).resize((size, size), Image.Resampling.BILINEAR)
        overlay = np.asarray(overlay).clip(0, top)
        # opacity is the square root, which makes weak saliency visible and leaves the rest clear
        left, upper, right, lower = (edge - 0.5 for edge in crop.pixels(size, size))  # imshow centres pixel 0 at 0
        extent = (left, right, lower, upper)
        below.imshow(overlay, cmap="viridis", vmin=0, vmax=top, alpha=0.75 * np.sqrt(overlay / top), extent=extent)
        below.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
        if not crop.is_whole:
            style = {"edgecolor": "white", "linestyle": ":", "linewidth": 0.8}
            below.add_patch(Rectangle((left, upper), right - left, lower - upper, fill=False, **style))
        lung = find_lung_region(row["path"], masks)
        region = "box" if lung.mask is None else "lungs"
        _outline(below, lung.mask, size, crop)
        label = f"labelled {row['label']}\n" if row["label"] else ""
        above.set_title(f"{label}{shorten(Path(row['path']).name, 24)}", fontsize=8, parse_math=False)
        inside = "no saliency"
        if not np.isnan(row["inside"]):
            inside = f"{format_metric(row['inside'], spec=PERCENT)} in {region}"
        uniform = format_metric(row["inside_area"], spec=PERCENT)
        below.set_title(f"for {row['of']}\n{inside} (uniform: {uniform})", fontsize=8, parse_math=False)
    bar = figure.colorbar(ScalarMappable(Normalize(0, top), "viridis"), ax=panels[1].tolist(), shrink=0.9)
    bar.set_label(unit, fontsize=7)
    bar.ax.tick_params(labelsize=7)
    resolution = f"{saliency.shape[1]} x {saliency.shape[2]} cells"
    figure.suptitle(f"Saliency of the model ({resolution}; outline: lungs or box). Not a diagnosis.", fontsize=9)
    return figure


def _box_area(low: float, high: float, shape: tuple[int, int]) -> np.ndarray:
    """Return the fraction of each cell that lies in the box from `low` to `high` of both sides, `(h, w)`."""
    sides = []
    for cells in shape:
        edges = np.arange(cells + 1) / cells
        sides.append(np.diff(edges.clip(low, high)) * cells)
    return np.outer(*sides)


@dataclass(frozen=True, eq=False)
class LungRegion:
    """The region of the lungs of an image.

    Attributes:
        mask: `(h, w)` bool; None for `CENTRAL_BOX`, which takes their place where the segmentation fails.
        name: What the region is; of the box, with the reason.
    """

    mask: np.ndarray | None
    name: str


def find_lung_region(path: str | os.PathLike[str], masks: str | Path | None = None) -> LungRegion:
    """Return the lungs of an image from its mask or by segmentation; the box where the segmentation fails.

    Args:
        path: The image file.
        masks: As in `measure_region_fractions`.

    Returns:
        The region.

    Raises:
        DataError: A mask is missing.
        ImageError: The image or the mask cannot be read.
    """
    if masks is not None:
        file = Path(masks) / f"{Path(path).stem}.png"
        if not file.is_file():
            raise DataError(
                f"The lung mask {file} does not exist.", hint="Give a folder with <image name>.png, or masks=None."
            )
        return LungRegion(np.asarray(open_image(file)) > 127, "lung mask")
    lungs = cached_lungs(path)
    if not lungs.usable:  # guard: box_instead
        return LungRegion(None, f"{BOX_NAME}, instead of the lungs: {lungs.remark}")
    return LungRegion(lungs.mask, "segmented lungs")


def _outline(axes: Axes, mask: np.ndarray | None, size: int, crop: Crop) -> None:
    """Draw the outline of the lung region; None for the box of the crop."""
    style = {"edgecolor": "white", "linestyle": "--", "linewidth": 1.0}
    if mask is None:
        left, top, right, bottom = crop.pixels(size, size)
        low, high = CENTRAL_BOX
        across, down = right - left, bottom - top
        # imshow centres the first pixel at 0, so that the image begins at -0.5
        corner = (left + low * across - 0.5, top + low * down - 0.5)
        axes.add_patch(Rectangle(corner, (high - low) * across, (high - low) * down, fill=False, **style))
    else:
        axes.contour(area_mean(mask, (size, size)), levels=[0.5], colors="white", linestyles="--", linewidths=1.0)
