"""The heat of saliency maps: how much of it lies in the lung and in the border, as a table and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
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
from covid_fastai.errors import DataError
from covid_fastai.evaluation.bootstrap import patient_draws
from covid_fastai.evaluation.formatting import PERCENT, format_metric

__all__ = ["CENTRAL_BOX", "draw_heat", "share_heat", "summarise_saliency_fraction"]

# From 3/16 to 13/16 of each side: the 10 x 10 of a 16 x 16 thumbnail that the audit's "black centre" takes away. In
# synthetic radiographs (60 patients, 128 pixels) it holds 82% of the lung, and 54% of it is lung.
CENTRAL_BOX = (3 / 16, 13 / 16)
BORDER = 1 / 16  # of each side: the ring of a 16 x 16 thumbnail; 0.2% of a synthetic lung lies in it
FEWEST_PATIENTS = 10  # a bootstrap of fewer says little of the patients that were not drawn


def share_heat(
    table: pd.DataFrame, heat: np.ndarray, classes: Sequence[str], *, masks: str | Path | None = None
) -> pd.DataFrame:
    """Measure which share of each image's heat lies in the lung and in the border, beside their shares of the area.

    A map is counted in its own cells: 4 x 4 cells cannot tell the edge of a lung, and are not made to look as if they
    could.

    Args:
        table: `path`, `patient` and `label`, a row an image.
        heat: `(n, h, w)`, 0 or more.
        classes: The class that the heat of each image speaks for.
        masks: A folder of lung masks `<name>.png`; None for `CENTRAL_BOX`.

    Returns:
        As `covid_fastai.saliency.methods.saliency_fraction` says.

    Raises:
        DataError: A mask is missing.
        ImageError: A mask cannot be read.
    """
    shape = heat.shape[1:]
    border = 1 - _box_area(BORDER, 1 - BORDER, shape)
    rows = []
    for path, one in zip(table["path"], heat, strict=True):
        lung = _box_area(*CENTRAL_BOX, shape) if masks is None else _area_mean(_mask(masks, path), shape)
        total = float(one.sum())
        sums = {"inside": float((one * lung).sum()), "border": float((one * border).sum())}
        row = {name: value / total if total > 0 else np.nan for name, value in sums.items()}
        rows.append(row | {"inside_area": float(lung.mean()), "border_area": float(border.mean())})
    low, high = CENTRAL_BOX
    lung = f"central box, {low:.4g} to {high:.4g} of each side" if masks is None else "lung mask"
    about = pd.DataFrame(table)[["path", "patient", "label"]].assign(of=classes)
    return pd.concat([about, pd.DataFrame(rows).assign(lung=lung)], axis=1)


def summarise_saliency_fraction(table: pd.DataFrame, *, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Average the shares of the heat by class, with 95% intervals of a bootstrap that draws patients.

    Args:
        table: What `saliency_fraction` returned.
        n_resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        A row a class of `of` and region (`inside` the lung or the box, `border`): `images` and `patients` with any
        heat, `share` (mean, 0 to 1), `low` and `high` (NaN below 10 patients), `area` (what an even map would give) and
        `ratio` (share by area).
    """
    rows = []
    for name, part in table[table["inside"].notna()].groupby("of", sort=True):
        patients = part["patient"].nunique()
        weights = patient_draws(part["patient"], part["label"], n_resamples=n_resamples, seed=seed).astype(float)
        weights /= weights.sum(axis=1, keepdims=True)
        for region in ("inside", "border"):
            share, area = part[region].mean(), part[f"{region}_area"].mean()
            low, high = np.quantile(weights @ part[region].to_numpy(), [0.025, 0.975])
            if patients < FEWEST_PATIENTS:
                low = high = np.nan
            row = {"of": name, "region": region, "images": len(part), "patients": patients, "fraction": share}
            rows.append(row | {"low": low, "high": high, "area": area, "ratio": share / area})
    return pd.DataFrame(
        rows, columns=["of", "region", "images", "patients", "fraction", "low", "high", "area", "ratio"]
    )


def draw_heat(
    shares: pd.DataFrame, heat: np.ndarray, *, image_size: int, unit: str, masks: str | Path | None = None
) -> Figure:
    """Plot radiographs, and below each its heat laid over it, with the region that counts as lung.

    Args:
        shares: What `share_heat` returned.
        heat: `(n, h, w)`, as it was given there.
        image_size: Side of the square that images are shown in, pixels.
        unit: What the heat is, for the colour bar.
        masks: As in `share_heat`.

    Returns:
        The figure; all its maps have one scale.

    Raises:
        ImageError: An image cannot be read.
    """
    size, region = image_size, "box" if masks is None else "lung"
    figure = Figure(figsize=(1.95 * len(shares) + 0.9, 4.9), layout="constrained")
    panels = figure.subplots(2, len(shares), squeeze=False)
    top = max(float(heat.max()), 1e-9)
    for (above, below), row, one in zip(panels.T, shares.to_dict("records"), heat, strict=True):
        picture = np.asarray(open_square(row["path"], size))
        for axes in (above, below):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
        cells = Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR)
        cells = np.asarray(cells).clip(0, top)
        below.imshow(cells, cmap="viridis", vmin=0, vmax=top, alpha=0.75 * np.sqrt(cells / top))
        _outline(below, masks, row["path"], size)
        said = f"labelled {row['label']}\n" if row["label"] else ""
        above.set_title(f"{said}{shorten(Path(row['path']).name, 24)}", fontsize=8, parse_math=False)
        inside = "no heat" if np.isnan(row["inside"]) else f"{format_metric(row['inside'], spec=PERCENT)} in {region}"
        even = format_metric(row["inside_area"], spec=PERCENT)
        below.set_title(f"for {row['of']}\n{inside} (even: {even})", fontsize=8, parse_math=False)
    bar = figure.colorbar(ScalarMappable(Normalize(0, top), "viridis"), ax=panels[1].tolist(), shrink=0.9)
    bar.set_label(unit, fontsize=7)
    bar.ax.tick_params(labelsize=7)
    cells = f"{heat.shape[1]} x {heat.shape[2]} cells"
    figure.suptitle(f"Where the model looked ({cells}; outlined: the {region}). Not a diagnosis.", fontsize=9)
    return figure


def _box_area(low: float, high: float, shape: tuple[int, int]) -> np.ndarray:
    """Return which share of each cell lies in the box from `low` to `high` of both sides, `(h, w)`."""
    sides = []
    for cells in shape:
        edges = np.arange(cells + 1) / cells
        sides.append(np.diff(edges.clip(low, high)) * cells)
    return np.outer(*sides)


def _mask(folder: str | Path, path: str) -> Image.Image:
    """Return the lung mask of an image, grey, 255 where there is lung."""
    file = Path(folder) / f"{Path(path).stem}.png"
    if not file.is_file():
        raise DataError(f"There is no lung mask {file}.", hint="Give a folder with <image name>.png, or masks=None.")
    return open_image(file)


def _area_mean(mask: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """Return which share of each cell is mask, `(h, w)`."""
    lung = np.asarray(mask, dtype=np.float32) > 127
    return np.asarray(Image.fromarray(lung.astype(np.float32)).resize((shape[1], shape[0]), Image.Resampling.BOX))


def _outline(axes: Axes, masks: str | Path | None, path: str, size: int) -> None:
    """Draw the edge of what counts as lung."""
    style = {"edgecolor": "white", "linestyle": "--", "linewidth": 1.0}
    if masks is None:
        low, high = (size * place for place in CENTRAL_BOX)
        axes.add_patch(Rectangle((low - 0.5, low - 0.5), high - low, high - low, fill=False, **style))
    else:
        lung = _area_mean(_mask(masks, path), (size, size))
        axes.contour(lung, levels=[0.5], colors="white", linestyles="--", linewidths=1.0)
