"""Where a model looked: class activation map, Grad-CAM and occlusion, how much of it lies in the lung, and whether the
map depends on what was learnt at all. A map explains the model, not the patient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from fastai.torch_core import get_model
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn

from covid_fastai.data.images import open_square
from covid_fastai.errors import DataError, UsageError
from covid_fastai.model.learner_facts import require_facts
from covid_fastai.options import Repeats, SaliencyMethod, Seed, TopK, checked
from covid_fastai.saliency.maps import activation_maps, draw_anew, evaluating, gradient_maps, occlusion_maps, stages
from covid_fastai.saliency.overlay import against_rest
from covid_fastai.saliency.region_fraction import draw_heat, share_heat

__all__ = [
    "class_activation_map",
    "grad_cam",
    "occlusion_map",
    "plot_saliency",
    "randomisation_check",
    "saliency_fraction",
]

BATCH = 16  # images in a pass with gradients
UNITS = {
    "cam": "class activation (log odds);\nits signed mean + bias is the answer",
    "grad_cam": "Grad-CAM (log odds):\ngradient x activation",
    "occlusion": "fall of the log odds\nwith this patch grey",
}


def class_activation_map(learn: Learner, rows: pd.DataFrame | Sequence[str | Path]) -> np.ndarray:
    """Compute the class activation maps (Zhou et al., CVPR 2016), which explain the logits exactly.

    The head is linear, so a class's map, averaged over its cells, plus the bias of `map_weights`, is its logit.

    Args:
        learn: A learner of `train_classifier`, `build_learner` or `load_model`.
        rows: A table with `path`, such as a cohort or predictions, or a list of files. Of a table with `status`, the
            rows that are `ok`.

    Returns:
        float32 `(n, classes, h, w)`, in logits; a ResNet's h and w are the image size by 32.

    Raises:
        UsageError: The learner was not made by this package, or its body returns no maps.
        ImageError: An image cannot be read.
    """
    return _explain(learn, _table(rows), "cam", {})[0]


def grad_cam(learn: Learner, rows: pd.DataFrame | Sequence[str | Path], *, layer: str = "0") -> np.ndarray:
    """Compute Grad-CAM (Selvaraju et al., ICCV 2017) at any layer, without its last step, the cut at zero.

    Without the cut the map is linear in what it explains: that of a difference of logits is the difference of the maps.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `class_activation_map`.
        layer: The name of a layer that returns `(n, channels, h, w)`, as in `learn.model.named_modules()`: `"0"` is
            the whole body, `"0.6"` a ResNet's third stage, with cells half as wide.

    Returns:
        float32 `(n, classes, h, w)`; positive where the layer's activations speak for the class.

    Raises:
        UsageError: There is no such layer, or it returns no maps; else as in `class_activation_map`.
        ImageError: An image cannot be read.
    """
    return _explain(learn, _table(rows), "grad_cam", {"layer": layer})[0]


def occlusion_map(
    learn: Learner,
    rows: pd.DataFrame | Sequence[str | Path],
    *,
    patch_size: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """Measure how far each logit falls when a square of the image is made grey (Zeiler and Fergus, ECCV 2014).

    The grey is the mean of the normalisation. A pixel's value is the mean over the squares that covered it.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `class_activation_map`.
        patch_size: Side of the square, pixels of the model's input; None for an eighth of the image.
        stride: From one square to the next, pixels, `patch_size` at most; None for half of `patch_size`.

    Returns:
        float32 `(n, classes, image_size, image_size)`, in logits; positive where the class loses.

    Raises:
        UsageError: A number is not allowed; else as in `class_activation_map`.
        ImageError: An image cannot be read.
    """
    return _explain(learn, _table(rows), "occlusion", {"patch_size": patch_size, "stride": stride})[0]


@checked
def saliency_fraction(
    learn: Learner,
    rows: pd.DataFrame | Sequence[str | Path],
    *,
    method: SaliencyMethod = "cam",
    of: str | None = None,
    masks: str | Path | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Measure which share of an image's heat lies in the lung and which in the border, beside their shares of the area.

    The heat of a class is the positive part of its map minus the mean map of the other classes: what speaks for this
    class rather than another.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `class_activation_map`; `label` and `patient` are taken where they are.
        method: `"cam"`, `"grad_cam"` or `"occlusion"`.
        of: The class whose heat is counted; None for the one that the model gives to each image.
        masks: A folder of lung masks `<name>.png`, as `write_phantom(..., masks=True)` writes; None for `CENTRAL_BOX`,
            where a frontal radiograph has most of its lungs.
        **options: Of the method, such as `layer` or `patch_size`.

    Returns:
        A row an image: `path`, `patient`, `label`, `of`, `inside` and `border` (shares of the heat, 0 to 1, NaN where
        nothing speaks for the class), `inside_area` and `border_area` (what an even map would give). See
        `summarise_saliency_fraction`. `lung` says what `inside` is: the central box, or a lung mask.

    Raises:
        UsageError: `method` or `of` is not known; else as in the method.
        DataError: A mask is missing.
        ImageError: An image or a mask cannot be read.
    """
    table = _table(rows)
    heat, classes = _heat(learn, table, method=method, of=of, options=options)
    return share_heat(table, heat, classes, masks=masks)


@checked
def randomisation_check(
    learn: Learner,
    rows: pd.DataFrame | Sequence[str | Path],
    *,
    method: SaliencyMethod = "cam",
    of: str | None = None,
    repeats: Repeats = 5,
    seed: Seed = 0,
    **options: Any,
) -> pd.DataFrame:
    """Compare the maps with those of the same model after its weights were drawn anew (Adebayo et al., NeurIPS 2018).

    From the head down to the first layer, stage after stage is drawn anew and stays so. A map that shows what was
    learnt has lost its likeness by the last row; one that has not shows the image's edges or the network's form.

    Args:
        learn: As in `class_activation_map`; it is not changed.
        rows: As in `class_activation_map`; a dozen images will do.
        method: As in `saliency_fraction`.
        of: As in `saliency_fraction`; where None, the class that the trained model gives.
        repeats: How often the weights are drawn anew, 1 or more.
        seed: Of the weights.
        **options: Of the method.

    Returns:
        A row a step: `randomised` (the last stage drawn anew), `correlation` (Spearman's, of the signed maps, mean over
        images and repeats), `absolute` (the mean of its absolute value; a map of 16 cells has some by chance),
        `images`, `repeats` and `flat` (how many maps were even, and have no correlation).

    Raises:
        UsageError: `method`, `of` or `repeats` is not allowed; else as in the method.
        ImageError: An image cannot be read.
    """
    size, classes, model = _facts(learn)
    function, table = _function(method, options, size), _table(rows)
    x = torch.cat(list(_batches(table["path"].tolist(), size, learn)))
    original, logits = _run(model, function, x)
    wanted = _wanted(logits, classes, of)
    original = against_rest(original, wanted)
    found: dict[str, list[list[float]]] = {}
    for repeat in range(repeats):
        twin = copy.deepcopy(model).cpu()  # where one seed gives the same weights whatever the device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + repeat)
            for name, stage in stages(twin):
                draw_anew(stage.cpu())
                maps = against_rest(_run(twin.to(x.device), function, x)[0], wanted)
                found.setdefault(name, []).append([_likeness(*pair) for pair in zip(original, maps, strict=True)])
    return pd.DataFrame([_likeness_row(name, np.array(values)) for name, values in found.items()])


@checked
def plot_saliency(
    learn: Learner,
    rows: pd.DataFrame | Sequence[str | Path],
    *,
    k: TopK = 6,
    method: SaliencyMethod = "cam",
    of: str | None = None,
    masks: str | Path | None = None,
    **options: Any,
) -> Figure:
    """Plot radiographs, and below each the heat laid over it, with the region that `saliency_fraction` counts as lung.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `saliency_fraction`, such as rows of `top_losses` or of the predictions.
        k: How many, from the first row on.
        method: As in `saliency_fraction`, like `of` and `masks`.
        of: The class.
        masks: The folder of lung masks.
        **options: Of the method.

    Returns:
        The figure; all its maps have one scale.

    Raises:
        UsageError: There is no image to plot; else as in `saliency_fraction`.
        DataError: A mask is missing.
        ImageError: An image or a mask cannot be read.
    """
    table = _table(rows).head(k)
    heat, classes = _heat(learn, table, method=method, of=of, options=options)
    shares = share_heat(table, heat, classes, masks=masks)
    return draw_heat(shares, heat, image_size=_facts(learn)[0], unit=UNITS[method], masks=masks)


# images to maps


def _table(rows: pd.DataFrame | Sequence[str | Path]) -> pd.DataFrame:
    """Return path, label and patient of the images that can be explained."""
    if not isinstance(rows, pd.DataFrame):
        rows = pd.DataFrame({"path": [str(path) for path in rows]})
    if "path" not in rows:
        raise DataError("The rows have no column path.", hint="Give a cohort, predictions, or a list of files.")
    if "status" in rows:
        rows = rows[rows["status"] == "ok"]
    if rows.empty:
        raise UsageError("There is no image to explain.", hint="Give rows of images that can be read.")
    table = pd.DataFrame({"path": rows["path"].astype(str)})
    table["label"] = rows["label"].fillna("").astype(str) if "label" in rows else ""
    table["patient"] = rows["patient"].astype(str) if "patient" in rows else table["path"]
    return table.reset_index(drop=True)


def _facts(learn: Learner) -> tuple[int, list[str], nn.Module]:
    """Return the image size, the classes and the model out of its wrapper."""
    _, _, loaders = require_facts(learn)
    return loaders.image_size, [str(name) for name in learn.dls.vocab], get_model(learn.model)


def _batches(paths: Sequence[str], size: int, learn: Learner) -> Iterator[torch.Tensor]:
    """Yield normalised images `(n, 1, size, size)`, by the numbers of the model's own weights, on its device."""
    device, (_, weights, _) = next(learn.model.parameters()).device, require_facts(learn)
    for begin in range(0, len(paths), BATCH):
        pixels = [np.asarray(open_square(path, size)) for path in paths[begin : begin + BATCH]]
        batch = torch.from_numpy(np.stack(pixels)).float()[:, None].to(device) / 255
        yield (batch - weights.mean) / weights.std


def _function(method: str, options: dict[str, Any], size: int) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """Return what makes maps of a model and a batch, or raise for a method or option that does not exist."""
    allowed = {"cam": set(), "grad_cam": {"layer"}, "occlusion": {"patch_size", "stride"}}
    if odd := sorted(options.keys() - allowed[method]):
        known = ", ".join(sorted(allowed[method])) or "none"
        raise UsageError(f"{method} has no option {odd[0]!r}.", hint=f"Its options: {known}.")
    if method == "cam":
        return activation_maps
    if method == "grad_cam":
        return partial(gradient_maps, **options)
    patch_size = size // 8 if options.get("patch_size") is None else options["patch_size"]
    stride = max(1, patch_size // 2) if options.get("stride") is None else options["stride"]
    if not 1 <= patch_size < size or not 1 <= stride <= patch_size:
        raise UsageError(
            f"patch_size={patch_size!r}, stride={stride!r} do not fit an image of {size} pixels.",
            hint="Give 1 <= stride <= patch_size < image size.",
        )
    return partial(occlusion_maps, patch_size=patch_size, stride=stride)


def _run(model: nn.Module, function: Callable, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return maps `(n, classes, h, w)` and logits `(n, classes)`, batch after batch."""
    maps, logits = [], []
    with evaluating(model):
        for batch in x.split(BATCH):
            maps.append(function(model, batch).float().cpu().numpy())
            with torch.no_grad():
                logits.append(model(batch).float().cpu().numpy())
    return np.concatenate(maps), np.concatenate(logits)


def _explain(
    learn: Learner, table: pd.DataFrame, method: str, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return maps `(n, classes, h, w)` and logits `(n, classes)` of a table's images."""
    size, _, model = _facts(learn)
    function = _function(method, options, size)
    found = [_run(model, function, batch) for batch in _batches(table["path"].tolist(), size, learn)]
    maps, logits = zip(*found, strict=True)
    return np.concatenate(maps), np.concatenate(logits)


# maps to heat, and heat to shares


def _wanted(logits: np.ndarray, classes: list[str], of: str | None) -> np.ndarray:
    """Return the number of the class to explain in each image."""
    if of is None:
        return logits.argmax(axis=1)
    if of not in classes:
        raise UsageError(f"of={of!r} is no class of the model.", hint=f"Its classes: {', '.join(classes)}.")
    return np.full(len(logits), classes.index(of))


def _heat(
    learn: Learner, table: pd.DataFrame, *, method: str, of: str | None, options: dict[str, Any]
) -> tuple[np.ndarray, list[str]]:
    """Return the heat `(n, h, w)`, 0 or more, and the class that it speaks for in each image."""
    maps, logits = _explain(learn, table, method, options)
    classes = _facts(learn)[1]
    wanted = _wanted(logits, classes, of)
    return np.clip(against_rest(maps, wanted), 0, None), [classes[number] for number in wanted]


def _likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation of two maps; NaN where one of them is even."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def _likeness_row(name: str, values: np.ndarray) -> dict[str, Any]:
    """Return a row of the check from correlations `(repeats, images)`."""
    known = values[np.isfinite(values)]
    mean, absolute = (known.mean(), np.abs(known).mean()) if known.size else (np.nan, np.nan)
    row = {"randomised": name, "correlation": mean, "absolute": absolute}
    return row | {"images": values.shape[1], "repeats": len(values), "flat": int(values.size - known.size)}
