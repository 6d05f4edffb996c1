"""The full audit: networks trained again without the lungs, on the lungs alone, and on permuted labels."""

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

from covid_fastai.audit.audit import BLIND, PERMUTED, REGION, UNTRAINED
from covid_fastai.audit.baseline_models import fit_and_predict
from covid_fastai.audit.probes import CHANGES, LUNGS_ONLY, write_altered
from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import Cohort
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.splits import fold_cohort
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.moved_images import require_images
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.runs import Run, read_run
from covid_fastai.files import claim_folder, make_folder, write_csv
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.model.environment import check_environment
from covid_fastai.model.learner import build_learner, pooled_features
from covid_fastai.model.precision import full_precision
from covid_fastai.run_folder import RunFolder
from covid_fastai.training.fit_cohort import fit_cohort
from covid_fastai.training.run_start import check_crops

__all__ = ["retrain"]

logger = logging.getLogger("covid_fastai")

ALL = (UNTRAINED, *CHANGES, PERMUTED)
DEFAULT = (UNTRAINED, BLIND, LUNGS_ONLY, PERMUTED)


def retrain(folder: str | Path | Run, *, changes: Sequence[str] = DEFAULT) -> Path:
    """Train a run's network again without the lungs or without true labels, for `audit_run` to compare with the run.

    Rows, split, options and seed are those of the run; each change takes about as long as the run itself. Changes and
    folds that are finished are not repeated, so an interrupted call can be continued.

    Args:
        folder: A run with its evaluation; its images must still be at their paths.
        changes: `"lungs removed"` and `"noise for lungs"` train and evaluate on images without the lungs,
            `"lungs only"` on images with nothing else (as `write_altered` does); `"permuted labels"` permutes the
            labels among the patients, so that an AUC other than 0.5 shows an error of the protocol; `"frozen backbone"`
            is a logistic regression on the features of the initial weights.

    Returns:
        The folder that contains one folder per change, each with the held-out `predictions.csv`.

    Raises:
        UsageError: A change does not exist.
        DataError: The folder is not a run with its evaluation, its images are missing, or its options are unknown.
    """
    run = folder if isinstance(folder, Run) else read_run(folder)
    if unknown := [change for change in changes if change not in ALL]:
        raise UsageError(f"Unknown changes: {unknown!r}.", hint=f"Choose from {', '.join(ALL)}.")
    if not run.config.get("config"):
        raise DataError(f"The run {run.path} has no record of its options.", hint="Train it with train_classifier.")
    saved = run.folder.read_options()
    config = TrainConfig.from_dict(saved["config"])
    check_crops(saved, run.folder)
    check_environment(config)
    cohort = _cohort_with_images(run)
    root = make_folder(run.folder.retrained)
    with claim_folder(root):
        for change in changes:
            network = run.folder.retrained_network(change)
            if network.predictions.exists():
                continue
            logger.info("Audit: %s", change)
            make_folder(network.path)
            with tempfile.TemporaryDirectory(prefix="covid_fastai-") as images:
                rows = _altered(cohort, change, Path(images) / "altered", config)
                tables = [
                    _train_and_predict(fold, training, change, network, config)
                    for fold, training in _trainings(rows, run)
                ]
            write_csv(network.predictions, pd.concat(tables, ignore_index=True))
            run.folder.log("retrained", change=change)
    return root


def _cohort_with_images(run: Run) -> Cohort:
    """Return the training and validation rows of a run, and raise if an image is missing."""
    require_images(run)
    cohort = run.cohort
    cohort = cohort[cohort["split"].isin(["train", "valid"])].reset_index(drop=True)
    return cohort


def _altered(cohort: Cohort, change: str, folder: Path, config: TrainConfig) -> Cohort:
    """Return the cohort with its images or its labels changed; `original` is the path of the unchanged image."""
    if change in CHANGES:
        rows = write_altered(cohort, folder, change=change, image_size=config.image_size, region=config.region)
    else:
        rows = cohort.assign(original=cohort["path"])
    if change == PERMUTED:
        patients = rows.drop_duplicates("patient").set_index("patient")["label"]
        # permuted by patient, not by image, so that all images of a patient still have one label
        permuted = pd.Series(np.random.default_rng(config.seed).permutation(patients.to_numpy()), index=patients.index)
        rows["label"] = rows["patient"].map(permuted)
    return rows


def _trainings(rows: Cohort, run: Run):
    """Yield the number and cohort of each training: one, or one per fold."""
    if not run.config.get("folds"):
        yield 0, rows
        return
    for fold in range(run.config["folds"]):
        yield fold, fold_cohort(rows, fold)


def _train_and_predict(fold: int, rows: Cohort, change: str, network: RunFolder, config: TrainConfig) -> pd.DataFrame:
    """Train one network and return its held-out predictions, with the paths of the unchanged images."""
    folder = network.fold(fold)
    if folder.predictions.exists():
        return read_predictions(folder.predictions)
    make_folder(folder.path)
    with no_random(config.seed + fold):
        if change == UNTRAINED:
            table = _predict_from_frozen_features(rows, config, folder, fold=fold)
        else:
            # copies of altered images show the region already
            own = config.replace(region="frame") if change in CHANGES else config
            learn = fit_cohort(rows, own, folder, resuming=True)
            table = predict(learn, fold=fold)
            of_path = rows.set_index("path")
            if change in CHANGES:
                table[REGION] = table["path"].map(of_path[REGION])
            table["path"] = table["path"].map(of_path["original"])
    write_csv(folder.predictions, table)
    shutil.rmtree(folder.model, ignore_errors=True)
    clear_checkpoints(folder.checkpoints)
    return table


def _predict_from_frozen_features(rows: Cohort, config: TrainConfig, folder: RunFolder, *, fold: int) -> pd.DataFrame:
    """Predict the held-out rows with a logistic regression on the features of the initial weights."""
    dls = build_dataloaders(
        rows,
        image_size=config.image_size,
        region=config.region,
        batch_size=config.batch_size,
        device=config.device,
        path=folder.path,
        num_workers=0,
    )
    learn = build_learner(dls, arch=config.arch, weights=config.weights, path=folder.path)
    features = _features(learn, rows["path"])
    train, valid = (rows["split"] == split for split in ("train", "valid"))
    p = fit_and_predict(features[train], rows.loc[train, "label"], features[valid], rows.facts.classes)
    columns = ["path", "label", "patient", "patient_known", "split", "source", "view"]
    table = pd.DataFrame(rows[valid])[columns].assign(fold=fold)
    for number, name in enumerate(rows.facts.classes):
        table[f"p_{name}"] = p[:, number]
    return table.assign(status="ok")


def _features(learn: Learner, paths: pd.Series) -> np.ndarray:
    """Return the pooled features of images, float `(n, channels)`."""
    body = learn.model[0].eval()
    loader = learn.dls.test_dl(pd.DataFrame({"path": paths.tolist()}), with_labels=False)
    with torch.inference_mode(), full_precision():
        return np.concatenate([pooled_features(body(batch[0])).flatten(1).cpu().numpy() for batch in loader])
