"""The worst cases of a report: held-out images that were classified wrongly, each beside its class activation map."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from covid_fastai.data.exploration import shorten
from covid_fastai.data.regions import crop_of_row
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import ModelFormatError
from covid_fastai.evaluation.formatting import format_metric
from covid_fastai.evaluation.interpretation import open_for_display, top_losses
from covid_fastai.evaluation.metrics import Evaluation
from covid_fastai.evaluation.prediction_table import has_label_and_prediction
from covid_fastai.model.bundle_config import CONFIG_FILE, ONNX_FILE
from covid_fastai.model.predictor import Predictor
from covid_fastai.plotting import embed_image
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.overlay import against_rest, crop_pixels, draw_layer

__all__ = ["describe_cases", "describe_images"]

logger = logging.getLogger("covid_fastai")

CASES = 12  # wrongly classified images that are shown


def describe_cases(
    result: Evaluation, folder: RunFolder | None = None, *, unopened: Collection[str] = ()
) -> dict[str, Any]:
    """Return the variables of `worst.html`: the wrongly classified images with the largest loss.

    Args:
        result: The evaluation, with its predictions.
        folder: The run, whose saved models draw the class activation maps; None for predictions of an unknown model.
        unopened: Paths that are not opened.

    Returns:
        `cases`, the number of wrong images `n_wrong` and of evaluated images `n_evaluated`, and `has_maps`.
    """
    rows = result.predictions[has_label_and_prediction(result.predictions)]
    wrong = rows[rows["label"] != rows["prediction"]]
    shown = top_losses(wrong, k=CASES) if len(wrong) else wrong.assign(predicted="", probability=0.0)
    about = wrong.drop_duplicates("path").set_index("path")
    shown = shown.assign(source=shown["path"].map(about["source"]), fold=shown["path"].map(about["fold"]))
    cases = describe_images(shown, folder, unopened=unopened)
    has_maps = any(case["overlay"] for case in cases)
    return {"cases": cases, "n_wrong": len(wrong), "n_evaluated": len(rows), "has_maps": has_maps}


def describe_images(
    rows: pd.DataFrame, folder: RunFolder | None, *, unopened: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return images as mappings for the macro `case`, each with the class activation map of its predicted class.

    Args:
        rows: `path`, `label`, `predicted`, `probability` (of the true class), `source` and `fold`.
        folder: As in `describe_cases`.
        unopened: As in `describe_cases`.

    Returns:
        One mapping per row; `image` is None for an image that is not there, `overlay` for one without a map, and
        `is_empty` says that no region raised the predicted class.
    """
    predictors = _Predictors(folder)
    cases = []
    for row in as_rows(rows):
        pixels = None if row["path"] in unopened else open_for_display(row["path"])
        overlay, is_empty = (None, False) if pixels is None else predictors.draw(row, pixels)
        cases.append(
            {
                "image": None if pixels is None else embed_image(Image.fromarray(pixels)),
                "overlay": overlay,
                "is_empty": is_empty,
                "label": row["label"],
                "predicted": row["predicted"],
                "wrong": row["label"] != row["predicted"],
                "probability": format_metric(row["probability"]),
                "hospital": row["source"],
                "file": shorten(Path(row["path"]).name, 34),
            }
        )
    return cases


class _Predictors:
    """The saved models of a run by fold, each opened once."""

    def __init__(self, folder: RunFolder | None):
        self.folder = folder
        self.opened: dict[int, Predictor | None] = {}

    def draw(self, row: Mapping[str, Any], pixels: np.ndarray) -> tuple[str | None, bool]:
        """Return the image below the map of its predicted class, as a `data:` address, and whether the map is empty.

        The address is None without a map.
        """
        predictor = self._of_fold(int(row["fold"]))
        if predictor is None or row["predicted"] not in predictor.classes:
            return None, False
        table, maps = predictor.explain([row["path"]])
        if table.loc[0, "status"] != "ok":
            return None, False
        saliency = against_rest(maps, [predictor.classes.index(row["predicted"])])[0]
        picture = Image.fromarray(pixels).convert("RGBA")
        crop = crop_of_row(as_rows(table)[0])  # what the model saw, which the map covers
        picture.alpha_composite(draw_layer(saliency, picture.size, crop=crop[:4]))
        if not crop.is_whole:
            left, top, right, bottom = crop_pixels(crop[:4], picture.size)
            ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline="white")
        return embed_image(picture.convert("RGB")), bool(saliency.max() <= 0)

    def _of_fold(self, fold: int) -> Predictor | None:
        if self.folder is None:
            return None
        if fold not in self.opened:
            of_fold = self.folder.fold(fold).model
            model = of_fold if of_fold.is_dir() else self.folder.model
            is_complete = all((model / name).is_file() for name in (CONFIG_FILE, ONNX_FILE))
            try:
                self.opened[fold] = Predictor(model) if is_complete else None
            except ModelFormatError as error:
                logger.warning("The report has no class activation maps. %s", error)
                self.opened[fold] = None
        return self.opened[fold]
