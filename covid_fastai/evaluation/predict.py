"""The predictions table, a row an image: what all of `evidence/` judges, from a `Learner` or from anyone's CSV."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.learner import Learner
from fastai.torch_core import no_random

from covid_fastai.data.images import open_image
from covid_fastai.errors import DataError, ImageError, UsageError
from covid_fastai.evaluation.prediction_table import PROBABILITY

__all__ = ["predict"]

logger = logging.getLogger("covid_fastai")

TTA_SEED = 0  # test-time augmentation draws at random; the same images shall get the same probabilities


def predict(
    learn: Learner,
    cohort: pd.DataFrame | Sequence[str | Path] | None = None,
    *,
    split: str | None = None,
    fold: int = 0,
    tta: bool = False,
) -> pd.DataFrame:
    """Predict images and return the predictions table, a row an image in the order given.

    An image that cannot be read keeps its row, with status `unreadable` and no probabilities; one for which the model
    returns a number that is none has the status `failed`, and no class.

    Args:
        learn: A learner of `train_classifier`, `build_learner` or `load_model`.
        cohort: Rows with `path`, and where they are known `label`, `patient`, `patient_known`, `split`, `source`,
            `view`; or a list of files. None for the rows that the learner was trained with.
        split: Only the rows of that split; None for all rows of `cohort`, or for `valid` where no cohort is given.
        fold: Written to the column `fold`: which model of a cross-validation has predicted.
        tta: Average over augmented copies of each image (fastai's test-time augmentation), about five times the work.

    Returns:
        The columns `path`, `label` ("" where unknown), `patient` (the path where none is named), `patient_known`
        (bool), `split`, `source`, `view`, `fold`, a `p_<class>` for each class in the order of the vocabulary (0 to 1,
        sum 1, NaN where there is no prediction), `prediction` (the most probable class) and `status` (`ok`,
        `unreadable` or `failed`).

    Raises:
        UsageError: No row has that split.
        DataError: The rows have no `path`, or a label that is no class of the model.

    Examples:
        >>> predictions = predict(learn)
        >>> predictions["split"].unique().tolist(), predictions["status"].unique().tolist()
        (['valid'], ['ok'])
        >>> [name for name in predictions if name.startswith("p_")]
        ['p_Normal', 'p_COVID-19']
    """
    rows = _rows(learn, cohort, split)
    classes = [str(name) for name in learn.dls.vocab]
    unknown = sorted(set(rows["label"]) - set(classes) - {""})
    if unknown:
        raise DataError(
            f"The model does not know the label {', '.join(map(repr, unknown))}; its classes: {', '.join(classes)}.",
            hint="Read the data with the task that the model was trained for.",
        )
    status = pd.Series("ok", index=rows.index)
    try:
        probabilities = _probabilities(learn, rows["path"], tta=tta)
    except ImageError:  # some image cannot be read: find out which, and predict the others
        status = rows["path"].map(_status)
        readable = (status == "ok").to_numpy()
        probabilities = np.full((len(rows), len(classes)), np.nan)
        if readable.any():
            probabilities[readable] = _probabilities(learn, rows.loc[readable, "path"], tta=tta)
    wild = (status == "ok").to_numpy() & ~np.isfinite(probabilities).all(axis=1)
    status[wild], probabilities[wild] = "failed", np.nan  # guard: wild
    table = rows.assign(fold=fold)
    for number, name in enumerate(classes):
        table[PROBABILITY + name] = probabilities[:, number]
    best = np.where(np.isfinite(probabilities), probabilities, -1).argmax(axis=1)
    table["prediction"] = np.where(status == "ok", np.array(classes)[best], "")
    table["status"] = status
    if (lost := int((status != "ok").sum())) > 0:
        logger.warning("%d of %d images have no prediction; see the column status.", lost, len(table))
    return table


def _rows(learn: Learner, cohort: Any, split: str | None) -> pd.DataFrame:
    """Return the rows to predict with the columns that a prediction carries on."""
    if cohort is None:
        cohort, split = learn.dls.facts.cohort, split or "valid"
    if not isinstance(cohort, pd.DataFrame):
        cohort = pd.DataFrame({"path": [str(path) for path in cohort]})
    if "path" not in cohort:
        raise DataError("The rows have no column path.", hint="Make them with read_cohort, or give a list of files.")
    if split is not None:
        found = cohort["split"].unique().tolist() if "split" in cohort else []
        if split not in found:
            raise UsageError(f"No row has the split {split!r}.", hint=f"There are: {', '.join(found) or 'none'}.")
        cohort = cohort[cohort["split"] == split]
    rows = pd.DataFrame({"path": cohort["path"].astype(str)})
    for name in ("label", "patient", "patient_known", "split", "source", "view"):
        rows[name] = cohort[name].fillna("").astype(str) if name in cohort else ""
    named = rows["patient"] != ""
    rows["patient_known"] = named & (cohort["patient_known"].eq(True) if "patient_known" in cohort else True)
    rows["patient"] = rows["patient"].where(named, rows["path"])
    return rows.reset_index(drop=True)


def _probabilities(learn: Learner, paths: pd.Series, *, tta: bool) -> np.ndarray:
    """Return probabilities `(n, classes)`."""
    loader = learn.dls.test_dl(pd.DataFrame({"path": paths.tolist()}), with_labels=False)
    with learn.no_bar(), learn.no_logging():
        if tta:
            with no_random(TTA_SEED):
                found = learn.tta(dl=loader)[0]
        else:
            found = learn.get_preds(dl=loader)[0]
    return np.asarray(found.detach().cpu().double())


def _status(path: str) -> str:
    try:
        open_image(path)
    except ImageError as error:
        logger.warning("%s", error)
        return "unreadable"
    return "ok"
