"""Saliency maps of a model: class activation map, Grad-CAM and occlusion; the fraction of a map that lies in the lungs;
and a check of whether the map depends on the learnt weights. A map explains the model, not the patient.
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
from scipy.stats import spearmanr
from torch import nn

from covid_fastai.data.cached_regions import region_pixels
from covid_fastai.data.regions import Crop
from covid_fastai.errors import DataError, UsageError
from covid_fastai.figures import Figure
from covid_fastai.model.learner_facts import require_facts
from covid_fastai.model.precision import full_precision
from covid_fastai.options import Repeats, SaliencyMethod, Seed, TopK, checked
from covid_fastai.saliency.maps import (
    activation_maps,
    evaluating,
    gradient_maps,
    occlusion_maps,
    randomise_weights,
    stages,
)
from covid_fastai.saliency.overlay import against_rest
from covid_fastai.saliency.region_fraction import measure_region_fractions, plot_overlays

__all__ = [
    "class_activation_map",
    "grad_cam",
    "occlusion_map",
    "plot_saliency",
    "randomisation_check",
    "saliency_fraction",
]

BATCH = 16  # images per pass; a pass with gradients needs several times the memory of one without
UNITS = {
    "cam": "class activation (log odds);\nits signed mean + bias is the log odds",
    "grad_cam": "Grad-CAM (log odds):\ngradient x activation",
    "occlusion": "decrease of the log odds\nwith this patch grey",
}


def class_activation_map(learn: Learner, rows: pd.DataFrame | Sequence[str | Path]) -> np.ndarray:
    """Compute class activation maps (Zhou et al., CVPR 2016), an exact decomposition of the logits.

    The head is linear: the mean of a class's map over its cells, plus the bias of `map_weights`, is the logit.

    Args:
        learn: A learner of `train_classifier`, `build_learner` or `load_model`.
        rows: A table with `path`, such as a cohort or predictions, or a list of files. Rows of a table with `status`
            are used only if it is `ok`.

    Returns:
        float32 `(n, classes, h, w)`, in logits; for a ResNet, h and w are the image size divided by 32.

    Raises:
        UsageError: The learner was not made by this package, or its body returns no maps.
        ImageError: An image cannot be read.
    """
    return _explain(learn, _image_table(rows), "cam", {})[0]


def grad_cam(learn: Learner, rows: pd.DataFrame | Sequence[str | Path], *, layer: str = "0") -> np.ndarray:
    """Compute Grad-CAM (Selvaraju et al., ICCV 2017) at any layer, without its last step, the ReLU.

    Without the ReLU the map is linear: the map of a difference of logits is the difference of the maps.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `class_activation_map`.
        layer: The name of a layer that returns `(n, channels, h, w)`, as in `learn.model.named_modules()`: `"0"` is
            the whole body, `"0.6"` the third stage of a ResNet, whose cells are half as wide.

    Returns:
        float32 `(n, classes, h, w)`; positive where the layer's activations increase the logit.

    Raises:
        UsageError: The layer does not exist or returns no maps; otherwise as in `class_activation_map`.
        ImageError: An image cannot be read.
    """
    return _explain(learn, _image_table(rows), "grad_cam", {"layer": layer})[0]


def occlusion_map(
    learn: Learner,
    rows: pd.DataFrame | Sequence[str | Path],
    *,
    patch_size: int | None = None,
    stride: int | None = None,
) -> np.ndarray:
    """Measure the decrease of each logit when a square of the image is made grey (Zeiler and Fergus, ECCV 2014).

    The grey is the mean of the normalisation. The value of a pixel is the mean over the squares that cover it.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `class_activation_map`.
        patch_size: Side of the square in pixels of the model's input; None for an eighth of the image.
        stride: Distance between squares in pixels, at most `patch_size`; None for half of `patch_size`.

    Returns:
        float32 `(n, classes, image_size, image_size)`, in logits; positive where the logit decreases.

    Raises:
        UsageError: `patch_size` or `stride` is not allowed; otherwise as in `class_activation_map`.
        ImageError: An image cannot be read.
    """
    return _explain(learn, _image_table(rows), "occlusion", {"patch_size": patch_size, "stride": stride})[0]


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
    """Measure the fractions of each image's saliency that lie in the lungs, in a central box and in the border.

    The saliency of a class is the positive part of its map minus the mean map of the other classes: the evidence for
    this class rather than another. The fractions of the image area are given for comparison.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `class_activation_map`; `label` and `patient` are optional.
        method: `"cam"`, `"grad_cam"` or `"occlusion"`.
        of: The class whose saliency is measured; None for the predicted class of each image.
        masks: A folder of lung masks `<name>.png`, as written by `write_phantom(..., masks=True)`; None to segment
            the lungs (`segment_lungs`). On an image whose lungs are not found, `CENTRAL_BOX` takes their place.
        **options: Options of the method, such as `layer` or `patch_size`.

    Returns:
        One row per image: `path`, `patient`, `label`, `of`; `inside` (the lungs), `box` (`CENTRAL_BOX`) and `border`,
        fractions of the saliency, 0 to 1, NaN for an image without saliency; `inside_area`, `box_area` and
        `border_area`, fractions of the area, which a uniform map would have; and `lung`, the region of `inside`: a
        lung mask, the segmented lungs, or the central box with the reason. `summarise_saliency_fraction` averages them.

    Raises:
        UsageError: `method` or `of` is unknown; otherwise as in the method.
        DataError: A mask is missing.
        ImageError: An image or a mask cannot be read.
    """
    table = _image_table(rows)
    saliency, classes = _saliency(learn, table, method=method, of=of, options=options)
    return measure_region_fractions(table, saliency, classes, masks=masks, crops=_crops(learn, table))


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
    """Compare the maps with those of the same model with randomised weights (Adebayo et al., NeurIPS 2018).

    The stages are randomised one after another, from the head to the first layer, and stay random. A map that depends
    on the learnt weights is uncorrelated with the original by the last row. A map that still correlates shows the edges
    of the image or the architecture of the network.

    Args:
        learn: As in `class_activation_map`; it is not changed.
        rows: As in `class_activation_map`; a dozen images are enough.
        method: As in `saliency_fraction`.
        of: As in `saliency_fraction`; None for the class predicted by the trained model.
        repeats: Number of randomisations, 1 or more.
        seed: Seed of the random weights.
        **options: Options of the method.

    Returns:
        One row per step: `randomised` (the stage randomised last), `correlation` (Spearman's, of the signed maps, mean
        over images and repeats), `absolute` (mean absolute correlation, which is above 0 by chance for a map with few
        cells), `images`, `repeats` and `flat` (number of constant maps, which have no correlation).

    Raises:
        UsageError: `method`, `of` or `repeats` is not allowed; otherwise as in the method.
        ImageError: An image cannot be read.
    """
    size, classes, model = _model_facts(learn)
    function, table = _map_function(method, options, size), _image_table(rows)
    x = torch.cat(list(_batches(table["path"].tolist(), size, learn)))
    original, logits = _compute_maps(model, function, x)
    targets = _target_classes(logits, classes, of)
    original = against_rest(original, targets)
    correlations: dict[str, list[list[float]]] = {}
    for repeat in range(repeats):
        randomised = copy.deepcopy(model).cpu()  # on the CPU a seed gives the same weights on every machine
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + repeat)
            for name, stage in stages(randomised):
                randomise_weights(stage.cpu())
                maps = against_rest(_compute_maps(randomised.to(x.device), function, x)[0], targets)
                pairs = zip(original, maps, strict=True)
                correlations.setdefault(name, []).append([_rank_correlation(*pair) for pair in pairs])
    return pd.DataFrame([_summarise_stage(name, np.array(values)) for name, values in correlations.items()])


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
    """Plot radiographs and, below each, its saliency as an overlay with the outline of the lung region.

    Args:
        learn: As in `class_activation_map`.
        rows: As in `saliency_fraction`, such as rows of `top_losses` or of the predictions.
        k: Number of images, from the first row on.
        method: As in `saliency_fraction`.
        of: As in `saliency_fraction`.
        masks: As in `saliency_fraction`.
        **options: Options of the method.

    Returns:
        The figure; all its maps have the same scale.

    Raises:
        UsageError: There is no image to plot; otherwise as in `saliency_fraction`.
        DataError: A mask is missing.
        ImageError: An image or a mask cannot be read.

    Examples:
        >>> figure = plot_saliency(learn, cohort["path"].head(2), k=2)
        >>> sum(bool(axes.images) for axes in figure.axes)
        4
    """
    table = _image_table(rows).head(k)
    saliency, classes = _saliency(learn, table, method=method, of=of, options=options)
    where = {"masks": masks, "crops": _crops(learn, table)}
    fractions = measure_region_fractions(table, saliency, classes, **where)
    return plot_overlays(fractions, saliency, image_size=_model_facts(learn)[0], unit=UNITS[method], **where)


# images to maps


def _image_table(rows: pd.DataFrame | Sequence[str | Path]) -> pd.DataFrame:
    """Return path, label and patient of the images to explain."""
    if not isinstance(rows, pd.DataFrame):
        rows = pd.DataFrame({"path": [str(path) for path in rows]})
    if "path" not in rows:
        raise DataError("The rows have no column 'path'.", hint="Give a cohort, predictions, or a list of files.")
    if "status" in rows:
        rows = rows[rows["status"] == "ok"]
    if rows.empty:
        raise UsageError("There is no image to explain.", hint="Give at least one image that can be read.")
    table = pd.DataFrame({"path": rows["path"].astype(str)})
    table["label"] = rows["label"].fillna("").astype(str) if "label" in rows else ""
    table["patient"] = rows["patient"].astype(str) if "patient" in rows else table["path"]
    return table.reset_index(drop=True)


def _model_facts(learn: Learner) -> tuple[int, list[str], nn.Module]:
    """Return the image size, the classes and the unwrapped model."""
    _, _, loaders = require_facts(learn)
    return loaders.image_size, [str(name) for name in learn.dls.vocab], get_model(learn.model)


def _crops(learn: Learner, table: pd.DataFrame) -> list[Crop]:
    """Return the part of each image that the model sees, and that its maps cover."""
    _, _, loaders = require_facts(learn)
    return [region_pixels(path, loaders.image_size, loaders.region)[1] for path in table["path"]]


def _batches(paths: Sequence[str], size: int, learn: Learner) -> Iterator[torch.Tensor]:
    """Yield images `(n, 1, size, size)` on the model's device, normalised with the mean and SD of its weights."""
    device, (_, weights, loaders) = next(learn.model.parameters()).device, require_facts(learn)
    region = loaders.region
    for begin in range(0, len(paths), BATCH):
        pixels = [region_pixels(path, size, region)[0] for path in paths[begin : begin + BATCH]]
        batch = torch.from_numpy(np.stack(pixels)).float()[:, None].to(device) / 255
        yield (batch - weights.mean) / weights.std


def _map_function(method: str, options: dict[str, Any], size: int) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """Return the function from a model and a batch to maps; raise `UsageError` for an unknown option."""
    allowed = {"cam": set(), "grad_cam": {"layer"}, "occlusion": {"patch_size", "stride"}}
    if unknown := sorted(options.keys() - allowed[method]):
        listed = ", ".join(sorted(allowed[method])) or "none"
        raise UsageError(f"method={method!r} has no option {unknown[0]!r}.", hint=f"Its options: {listed}.")
    if method == "cam":
        return activation_maps
    if method == "grad_cam":
        return partial(gradient_maps, **options)
    patch_size = size // 8 if options.get("patch_size") is None else options["patch_size"]
    stride = max(1, patch_size // 2) if options.get("stride") is None else options["stride"]
    if not 1 <= patch_size < size or not 1 <= stride <= patch_size:
        raise UsageError(
            f"patch_size={patch_size!r} and stride={stride!r} do not fit an image of {size} pixels.",
            hint="Give 1 <= stride <= patch_size < image size.",
        )
    return partial(occlusion_maps, patch_size=patch_size, stride=stride)


def _compute_maps(model: nn.Module, function: Callable, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return maps `(n, classes, h, w)` and logits `(n, classes)`, computed in batches."""
    maps, logits = [], []
    with evaluating(model), full_precision():
        for batch in x.split(BATCH):
            maps.append(function(model, batch).float().cpu().numpy())
            with torch.no_grad():
                logits.append(model(batch).float().cpu().numpy())
    return np.concatenate(maps), np.concatenate(logits)


def _explain(
    learn: Learner, table: pd.DataFrame, method: str, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return maps `(n, classes, h, w)` and logits `(n, classes)` of the images of a table."""
    size, _, model = _model_facts(learn)
    function = _map_function(method, options, size)
    results = [_compute_maps(model, function, batch) for batch in _batches(table["path"].tolist(), size, learn)]
    maps, logits = zip(*results, strict=True)
    return np.concatenate(maps), np.concatenate(logits)


# maps to saliency


def _target_classes(logits: np.ndarray, classes: list[str], of: str | None) -> np.ndarray:
    """Return the index of the class to explain for each image."""
    if of is None:
        return logits.argmax(axis=1)
    if of not in classes:
        raise UsageError(f"of={of!r} is not a class of the model.", hint=f"Its classes: {', '.join(classes)}.")
    return np.full(len(logits), classes.index(of))


def _saliency(
    learn: Learner, table: pd.DataFrame, *, method: str, of: str | None, options: dict[str, Any]
) -> tuple[np.ndarray, list[str]]:
    """Return the saliency `(n, h, w)`, 0 or more, and the class that it supports in each image."""
    maps, logits = _explain(learn, table, method, options)
    classes = _model_facts(learn)[1]
    targets = _target_classes(logits, classes, of)
    return np.clip(against_rest(maps, targets), 0, None), [classes[number] for number in targets]


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation of two maps; NaN if one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def _summarise_stage(name: str, values: np.ndarray) -> dict[str, Any]:
    """Return a row of `randomisation_check` from correlations `(repeats, images)`."""
    finite = values[np.isfinite(values)]
    mean, absolute = (finite.mean(), np.abs(finite).mean()) if finite.size else (np.nan, np.nan)
    row = {"randomised": name, "correlation": mean, "absolute": absolute}
    return row | {"images": values.shape[1], "repeats": len(values), "flat": int(values.size - finite.size)}
