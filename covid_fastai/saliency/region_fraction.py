"""The fraction of saliency that lies in the lungs and in the border, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from covid_fastai.data.exploration import shorten
from covid_fastai.data.images import open_image, open_square
from covid_fastai.data.lungs import segment_lungs
from covid_fastai.errors import DataError
from covid_fastai.evaluation.bootstrap import resample_patients
from covid_fastai.evaluation.formatting import PERCENT, format_metric

__all__ = ["BOX_NAME", "CENTRAL_BOX", "measure_region_fractions", "plot_overlays", "summarise_saliency_fraction"]

# From 3/16 to 13/16 of each side: the 10 x 10 pixels of a 16 x 16 thumbnail that the audit's "black centre" removes. In
# synthetic radiographs (60 patients, 128 pixels) the box holds 82% of the lung area, and 54% of the box is lung.
CENTRAL_BOX = (3 / 16, 13 / 16)
BOX_NAME = "central box, {:.4g} to {:.4g} of each side".format(*CENTRAL_BOX)
BORDER = 1 / 16  # of each side: the outer ring of a 16 x 16 thumbnail, with 0.2% of the synthetic lung area
REGIONS = ("inside", "box", "border")
FEWEST_PATIENTS = 10  # a bootstrap over fewer patients gives intervals that are too narrow


def measure_region_fractions(
    table: pd.DataFrame, saliency: np.ndarray, classes: Sequence[str], *, masks: str | Path | None = None
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

    Returns:
        The table of `covid_fastai.saliency.methods.saliency_fraction`.

    Raises:
        DataError: A mask is missing.
        ImageError: An image or a mask cannot be read.
    """
    shape = saliency.shape[1:]
    box, border = _box_area(*CENTRAL_BOX, shape), 1 - _box_area(BORDER, 1 - BORDER, shape)
    rows = []
    for path, cells in zip(table["path"], saliency, strict=True):
        lung = _find_region(path, masks)
        areas = {"inside": box if lung.mask is None else _area_mean(lung.mask, shape), "box": box, "border": border}
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
    fractions: pd.DataFrame, saliency: np.ndarray, *, image_size: int, unit: str, masks: str | Path | None = None
) -> Figure:
    """Plot radiographs and, below each, its saliency as an overlay with the outline of the lung region.

    Args:
        fractions: Result of `measure_region_fractions`.
        saliency: `(n, h, w)`, as given to `measure_region_fractions`.
        image_size: Side in pixels to which images are resized.
        unit: Label of the colour bar.
        masks: As in `measure_region_fractions`.

    Returns:
        The figure; all its maps have the same scale.

    Raises:
        ImageError: An image cannot be read.
    """
    size = image_size
    figure = Figure(figsize=(1.95 * len(fractions) + 0.9, 4.9), layout="constrained")
    panels = figure.subplots(2, len(fractions), squeeze=False)
    top = max(float(saliency.max()), 1e-9)
    for (above, below), row, cells in zip(panels.T, fractions.to_dict("records"), saliency, strict=True):
        image = np.asarray(open_square(row["path"], size))
        for axes in (above, below):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
        overlay = Image.fromarray(cells).resize((size, size), Image.Resampling.BILINEAR)
        overlay = np.asarray(overlay).clip(0, top)
        # opacity is the square root, which makes weak saliency visible and leaves the rest clear
        below.imshow(overlay, cmap="viridis", vmin=0, vmax=top, alpha=0.75 * np.sqrt(overlay / top))
        lung = _find_region(row["path"], masks)
        region = "box" if lung.mask is None else "lungs"
        _outline(below, lung.mask, size)
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
class _Region:
    """The lung region of an image: its mask `(h, w)` bool, None for the box, and its name."""

    mask: np.ndarray | None
    name: str


def _find_region(path: str, masks: str | Path | None) -> _Region:
    """Return the lungs of an image from its mask or by segmentation; the box where the segmentation fails."""
    if masks is not None:
        file = Path(masks) / f"{Path(path).stem}.png"
        if not file.is_file():
            raise DataError(
                f"The lung mask {file} does not exist.", hint="Give a folder with <image name>.png, or masks=None."
            )
        return _Region(np.asarray(open_image(file)) > 127, "lung mask")
    lungs = segment_lungs(path)[0]
    if not lungs.usable:  # guard: box_instead
        return _Region(None, f"{BOX_NAME}, instead of the lungs: {lungs.remark}")
    return _Region(lungs.mask, "segmented lungs")


def _area_mean(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the fraction of each cell that the mask covers, `(h, w)`."""
    covered = Image.fromarray(mask.astype(np.float32))
    return np.asarray(covered.resize((shape[1], shape[0]), Image.Resampling.BOX))


def _outline(axes: Axes, mask: np.ndarray | None, size: int) -> None:
    """Draw the outline of the lung region; None for the box."""
    style = {"edgecolor": "white", "linestyle": "--", "linewidth": 1.0}
    if mask is None:
        low, high = (size * edge for edge in CENTRAL_BOX)
        # imshow centres the first pixel at 0, so that the image begins at -0.5
        axes.add_patch(Rectangle((low - 0.5, low - 0.5), high - low, high - low, fill=False, **style))
    else:
        axes.contour(_area_mean(mask, (size, size)), levels=[0.5], colors="white", linestyles="--", linewidths=1.0)
