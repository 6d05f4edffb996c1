"""The full audit: networks trained anew on images without the lungs, and on labels dealt out at random."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from fastai.torch_core import no_random

from covid_fastai.audit.audit import PERMUTED, UNTRAINED
from covid_fastai.audit.baselines import fit_and_predict
from covid_fastai.audit.probes import CHANGES, write_altered
from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import Cohort
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.splits import fold_cohort
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import claim_folder, make_folder, write_csv
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.model.environment import check_environment
from covid_fastai.model.learner import build_learner
from covid_fastai.run_folder import RunFolder
from covid_fastai.training.fit_cohort import fit_cohort

__all__ = ["retrain"]

logger = logging.getLogger("covid_fastai")

ALL = (UNTRAINED, *CHANGES, PERMUTED)


def retrain(folder: str | Path | Run, *, changes: Sequence[str] = ALL) -> Path:
    """Train a run's network anew with what should matter taken away, for `audit_run` to set beside it.

    Same rows, split, options and seed; each change takes about as long as the run itself took. A change that is done is
    not done again, so that an interrupted call goes on with the next one; so do the folds of a cross-validation.

    Args:
        folder: A run that was judged; its images must still be where it found them.
        changes: `"black centre"` and `"noise centre"`: trained and judged on images without the lungs' region;
            `"permuted labels"`: the labels dealt out anew among the patients, where an AUC off 0.5 is a fault of the
            protocol; `"frozen backbone"`: a logistic regression on the features of the weights that the run began from.

    Returns:
        The folder with a folder a change, each with the held-out `predictions.csv`.

    Raises:
        UsageError: There is no such change.
        DataError: The folder is no run that was judged, its images are gone, or it was made by hand.
    """
    run = folder if isinstance(folder, Run) else read_run(folder)
    if unknown := [change for change in changes if change not in ALL]:
        raise UsageError(f"changes={unknown!r}.", hint=f"Choose from {', '.join(ALL)}.")
    if not run.config.get("config"):
        raise DataError(f"{run.path} does not say how it was trained.", hint="Train with train_classifier.")
    config = TrainConfig.from_dict(run.config["config"])
    check_environment(config)
    cohort = _cohort(run)
    root = make_folder(run.folder.retrained)
    with claim_folder(root):
        for change in changes:
            own = run.folder.retrained_network(change)
            if own.predictions.exists():
                continue
            logger.info("Audit: %s", change)
            make_folder(own.path)
            with tempfile.TemporaryDirectory(prefix="covid_fastai-") as images:
                rows = _altered(cohort, change, Path(images) / "altered", config)
                tables = [_one(fold, part, change, own, config) for fold, part in _parts(rows, run)]
            write_csv(own.predictions, pd.concat(tables, ignore_index=True))
            run.folder.log("retrained", change=change)
    return root


def _cohort(run: Run) -> Cohort:
    """Return the rows of a run that take part in its training; their images must still be there."""
    cohort = run.cohort
    cohort = cohort[cohort["split"].isin(["train", "valid"])].reset_index(drop=True)
    gone = [path for path in cohort["path"] if not Path(path).is_file()]
    if gone:
        raise DataError(
            f"{len(gone)} images of {run.path} are gone, such as {gone[0]}.", hint="Put the data back where they were."
        )
    return cohort


def _altered(cohort: Cohort, change: str, folder: Path, config: TrainConfig) -> Cohort:
    """Return the cohort with its images or its labels changed; `original` names the image as it was."""
    if change in CHANGES:
        rows = write_altered(cohort, folder, change=change, image_size=config.image_size)
    else:
        rows = cohort.assign(original=cohort["path"])
    if change == PERMUTED:
        patients = rows.drop_duplicates("patient").set_index("patient")["label"]
        dealt = pd.Series(np.random.default_rng(config.seed).permutation(patients.to_numpy()), index=patients.index)
        rows["label"] = rows["patient"].map(dealt)
    return rows


def _parts(rows: Cohort, run: Run):
    """Yield the cohort of each training: one, or one a fold."""
    if not run.config.get("folds"):
        yield 0, rows
        return
    for fold in range(run.config["folds"]):
        yield fold, fold_cohort(rows, fold)


def _one(fold: int, rows: Cohort, change: str, own: RunFolder, config: TrainConfig) -> pd.DataFrame:
    """Train one network and return its held-out predictions, with the paths of the images as they were."""
    part = own.fold(fold)
    if part.predictions.exists():
        return read_predictions(part.predictions)
    make_folder(part.path)
    with no_random(config.seed + fold):
        if change == UNTRAINED:
            table = _frozen(rows, config, part, fold=fold)
        else:
            learn = fit_cohort(rows, config, part, resuming=True)
            table = predict(learn, fold=fold)
            held_out = rows.set_index("path")["original"]
            table["path"] = table["path"].map(held_out)
    write_csv(part.predictions, table)
    shutil.rmtree(part.model, ignore_errors=True)
    clear_checkpoints(part.checkpoints)
    return table


def _frozen(rows: Cohort, config: TrainConfig, part: RunFolder, *, fold: int) -> pd.DataFrame:
    """Predict the held-out rows by a logistic regression on the features of the first weights."""
    dls = build_dataloaders(
        rows,
        image_size=config.image_size,
        batch_size=config.batch_size,
        device=config.device,
        path=part.path,
        num_workers=0,
    )
    learn = build_learner(dls, arch=config.arch, weights=config.weights, path=part.path)
    features = _features(learn, rows["path"])
    train, valid = (rows["split"] == split for split in ("train", "valid"))
    p = fit_and_predict(features[train], rows.loc[train, "label"], features[valid], rows.facts.classes)
    about = ["path", "label", "patient", "patient_known", "split", "source", "view"]
    table = pd.DataFrame(rows[valid])[about].assign(fold=fold)
    for number, name in enumerate(rows.facts.classes):
        table[f"p_{name}"] = p[:, number]
    return table.assign(status="ok")


def _features(learn: Learner, paths: pd.Series) -> np.ndarray:
    """Return the pooled features of images, float `(n, channels)`."""
    body = learn.model[0].eval()
    loader = learn.dls.test_dl(pd.DataFrame({"path": paths.tolist()}), with_labels=False)
    with torch.inference_mode():
        return np.concatenate([body(batch[0]).mean(dim=(2, 3)).cpu().numpy() for batch in loader])
