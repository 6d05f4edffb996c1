"""Predict images with a `Learner` into a predictions table, one row per image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from fastai.torch_core import no_random

from covid_fastai.data.images import open_image
from covid_fastai.data.radiograph_loader import RadiographDL
from covid_fastai.errors import DataError, ImageError, UsageError
from covid_fastai.evaluation.prediction_table import PROBABILITY
from covid_fastai.model.callbacks import BatchLog
from covid_fastai.model.distributed import alone
from covid_fastai.model.freed_memory import keep_freed_memory
from covid_fastai.model.learner_facts import check_seen_region, remember_training
from covid_fastai.model.precision import full_precision

__all__ = ["predict"]

logger = logging.getLogger("covid_fastai")

TTA_SEED = 0  # test-time augmentation is random; a fixed seed gives the same images the same probabilities


def predict(
    learn: Learner,
    cohort: pd.DataFrame | Sequence[str | Path] | None = None,
    *,
    split: str | None = None,
    fold: int = 0,
    tta: bool = False,
) -> pd.DataFrame:
    """Predict images and return the predictions table, one row per image in the given order.

    The row of an image that cannot be read has the status `unreadable` and no probabilities. If the model returns a
    probability that is NaN or infinite, the row has the status `failed` and no predicted class.

    Args:
        learn: A learner of `train_classifier`, `build_learner` or `load_model`.
        cohort: A table with the column `path` and, if known, `label`, `patient`, `patient_known`, `split`, `source`
            and `view`; or a list of files. None for the cohort that the learner was trained with.
        split: Only the rows of this split; None for all rows of `cohort`, or for `valid` if `cohort` is None.
        fold: The value of the column `fold`: the number of the model in a cross-validation.
        tta: Whether to average over augmented copies of each image (fastai's test-time augmentation), which takes about
            five times as long.

    Returns:
        The columns `path`, `label` ("" if unknown), `patient` (the path if unknown), `patient_known` (bool), `split`,
        `source`, `view`, `fold`, a column `p_<class>` for each class in the order of the vocabulary (0 to 1, sum 1; NaN
        without a prediction), `prediction` (the most probable class) and `status` (`ok`, `unreadable` or `failed`).

    Raises:
        UsageError: No row has this split, or a loaded model got loaders that show another region of each image.
        DataError: The table has no column `path`, or a label that is not a class of the model.

    Examples:
        >>> predictions = predict(learn)
        >>> predictions["split"].unique().tolist(), predictions["status"].unique().tolist()
        (['valid'], ['ok'])
        >>> [name for name in predictions if name.startswith("p_")]
        ['p_Normal', 'p_COVID-19']
    """
    check_seen_region(learn)
    rows = _select_rows(learn, cohort, split)
    classes = [str(name) for name in learn.dls.vocab]
    unknown = sorted(set(rows["label"]) - set(classes) - {""})
    if unknown:
        raise DataError(
            f"The model has no class {', '.join(map(repr, unknown))}; its classes: {', '.join(classes)}.",
            hint="Read the data with the task that the model was trained for.",
        )
    probabilities, unreadable = _predict_probabilities(learn, rows["path"], tta=tta)
    for path in rows.loc[unreadable, "path"]:
        _log_reason(path)
    status = np.where(unreadable, "unreadable", "ok").astype(object)
    probabilities[unreadable] = np.nan  # guard: black_image
    non_finite = (status == "ok") & ~np.isfinite(probabilities).all(axis=1)
    status[non_finite], probabilities[non_finite] = "failed", np.nan  # guard: wild
    table = rows.assign(fold=fold)
    for number, name in enumerate(classes):
        table[PROBABILITY + name] = probabilities[:, number]
    most_probable = np.where(np.isfinite(probabilities), probabilities, -1).argmax(axis=1)
    table["prediction"] = np.where(status == "ok", np.array(classes)[most_probable], "")
    table["status"] = status.tolist()
    if (n_failed := int((status != "ok").sum())) > 0:
        logger.warning("%d of %d images have no prediction; see the column status.", n_failed, len(table))
    return table


def _select_rows(learn: Learner, cohort: Any, split: str | None) -> pd.DataFrame:
    """Return the rows to predict, with the columns that are copied into the predictions table."""
    if cohort is None:
        cohort, split = learn.dls.facts.cohort, split or "valid"
    if not isinstance(cohort, pd.DataFrame):
        cohort = pd.DataFrame({"path": [str(path) for path in cohort]})
    if "path" not in cohort:
        raise DataError("The table has no column path.", hint="Read it with read_cohort, or give a list of files.")
    if split is not None:
        splits = cohort["split"].unique().tolist() if "split" in cohort else []
        if split not in splits:
            raise UsageError(f"No row has the split {split!r}.", hint=f"Splits: {', '.join(splits) or 'none'}.")
        cohort = cohort[cohort["split"] == split]
    rows = pd.DataFrame({"path": cohort["path"].astype(str)})
    for name in ("label", "patient", "patient_known", "split", "source", "view"):
        rows[name] = cohort[name].fillna("").astype(str) if name in cohort else ""
    named = rows["patient"] != ""
    rows["patient_known"] = named & (cohort["patient_known"].eq(True) if "patient_known" in cohort else True)
    rows["patient"] = rows["patient"].where(named, rows["path"])
    return rows.reset_index(drop=True)


def _predict_probabilities(learn: Learner, paths: pd.Series, *, tta: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of the images, `(n, classes)`, and which of them cannot be read, bool `(n,)`."""
    remember_training(learn)
    loader = learn.dls.test_dl(pd.DataFrame({"path": paths.tolist()}), with_labels=False)
    own = isinstance(loader, RadiographDL)  # else an unreadable image raises the error of the user's loaders
    unreadable = loader.mark_unreadable() if own else torch.zeros(len(paths), dtype=torch.bool)
    with learn.no_bar(), learn.no_logging(), full_precision(), keep_freed_memory(), alone():
        if tta:
            with no_random(TTA_SEED):
                probabilities = learn.tta(dl=loader)[0]
        else:
            probabilities = learn.get_preds(dl=loader, cbs=BatchLog("Batches predicted"))[0]
    values = probabilities.detach().cpu().double().numpy().copy()
    sums = values[np.isfinite(values).all(axis=1)].sum(axis=1)
    if not np.allclose(sums, 1, atol=1e-3):  # guard: not_probabilities
        raise UsageError(
            f"The outputs of this learner are not probabilities: those of an image sum to {sums[0]:.3g}.",
            hint="Its loss has no softmax as activation. Set learn.loss_func = LossOfLogits(loss), from "
            "covid_fastai.model.own_parts, or use CrossEntropyLossFlat().",
        )
    return values, unreadable.numpy()


def _log_reason(path: str) -> None:
    """Log why an image cannot be read."""
    try:
        open_image(path)
    except ImageError as error:
        logger.warning("%s", error)
    else:
        logger.warning("%s could not be read before, and can be read now.", path)
