"""Networks that are retrained for the audit: their images and labels, resumption, and the verdict."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

from benchmarks.planting import KINDS
from covid_fastai import cross_validate, read_cohort, train_classifier
from covid_fastai.audit.audit import audit_run
from covid_fastai.audit.runs import read_run
from covid_fastai.config import TrainConfig
from covid_fastai.data.cohort import load_cohort, save_cohort
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.phantom import write_phantom
from covid_fastai.errors import DataError, UsageError
from covid_fastai.model.learner import build_learner
from covid_fastai.training.external import validate
from covid_fastai.training.retrain import _altered, _cohort_with_images, _features, retrain
from tests.simulated_device import DEVICE, SimulatedDevice

QUICK = {"image_size": 32, "batch_size": 8, "frozen_epochs": 0, "unfrozen_epochs": 1, "weights": None, "num_workers": 0}


@pytest.fixture(scope="module")
def trained(phantom_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auditing") / "run"
    train_classifier(phantom_root, out=folder, quiet=True, audit=False, **QUICK)
    return folder


@pytest.mark.slow
def test_networks_are_retrained_once(trained):
    root = retrain(trained)
    found = {path.parent.name for path in root.glob("*/predictions.csv")}
    assert found == {"lungs-removed", "lungs-only", "permuted-labels", "frozen-backbone"}
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/predictions.csv")}
    retrain(trained)
    assert before == {path: path.stat().st_mtime_ns for path in root.glob("*/predictions.csv")}
    held_out = set(read_run(trained).metrics.predictions["path"])
    for path in root.glob("*/predictions.csv"):
        assert set(pd.read_csv(path)["path"]) == held_out  # the images as they were named
    assert not list(root.rglob("*.png")) and not list(root.rglob("*.safetensors"))
    assert {"frozen backbone", "permuted labels"} <= set(audit_run(trained).altered["change"])


def test_labels_are_permuted_by_patient(run_folder):
    cohort = _cohort_with_images(read_run(run_folder))
    permuted = _altered(cohort, "permuted labels", run_folder, TrainConfig())
    assert permuted.groupby("patient")["label"].nunique().max() == 1
    assert (permuted["label"] != cohort["label"]).mean() > 0.2
    patients = [table.drop_duplicates("patient")["label"].value_counts() for table in (cohort, permuted)]
    pd.testing.assert_series_equal(patients[0], patients[1], check_like=True)


@pytest.mark.slow
def test_a_cross_validation_is_retrained_fold_by_fold(phantom_root, tmp_path):
    run = cross_validate(phantom_root, folds=2, out=tmp_path / "run", quiet=True, audit=False, **QUICK)
    retrain(run, changes=["frozen backbone"])
    table = pd.read_csv(tmp_path / "run" / "retrained" / "frozen-backbone" / "predictions.csv")
    assert sorted(table["fold"].unique()) == [0, 1] and set(table["path"]) == set(run.predictions["path"])


def test_runs_that_cannot_be_retrained_are_refused(run_folder, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "run")
    with pytest.raises(UsageError, match="upside down"):
        retrain(copy, changes=["upside down"])
    cohort = load_cohort(copy)
    cohort.loc[cohort["split"] == "train", "path"] += ".gone"
    save_cohort(cohort, copy)
    with pytest.raises(DataError, match="are missing"):
        retrain(copy)


LEVELS = {None: "shown"}
CASES = [None, "corner", "blur, 0.7 pixels", "letters in the lung"]


def write_hospital(root, *, shortcut, patients, seed):
    """Streaks are too fine for a thumbnail; without the signal, only a shortcut separates the classes."""
    corner = shortcut if shortcut == "corner" else None
    counts = {"virus" if shortcut is None else "COVID-19": patients, "Normal": patients}
    options = {"image_size": 64, "severity": 1.5, "shortcut": corner, "signal": shortcut is None}
    data = write_phantom(root, patients=counts, seed=seed, **options)
    if shortcut in KINDS:
        rng, rows = np.random.default_rng(seed), read_cohort(data, task="covid")
        for path, label in zip(rows["path"], rows["label"], strict=True):
            pixels = np.asarray(Image.open(path).convert("L"))
            pixels = KINDS[shortcut].plant(pixels, rng) if label == "COVID-19" else pixels
            Image.fromarray(pixels).save(path, quality=95)  # each image is compressed anew
    return data


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shortcut", CASES)
def test_a_true_signal_gets_the_positive_verdict_and_a_planted_one_does_not(shortcut, tmp_path):
    """With 240 held-out patients, the AUC of a network without the lungs can be bounded by 0.65."""
    task = "pneumonia" if shortcut is None else "covid"
    data = write_hospital(tmp_path / "data", shortcut=shortcut, patients=300, seed=0)
    other = write_hospital(tmp_path / "other", shortcut=shortcut, patients=100, seed=1)
    schedule = {"frozen_epochs": 0, "unfrozen_epochs": 5, "learning_rate": 1e-2, "valid_pct": 0.4}
    schedule |= {"weights": None, "image_size": 64, "batch_size": 16, "augmentation": "none", "task": task}
    learn = train_classifier(data, out=tmp_path / "run", quiet=True, **schedule)
    retrain(learn.path, changes=["lungs removed"])
    rows = read_cohort(other, task=task)
    rows = rows[rows["split"] != "excluded"]
    rows = pd.DataFrame({"path": rows["path"], "label": rows["label"], "patient": "other-" + rows["patient"]})
    found = validate(learn.path, rows.assign(source="another hospital"))
    assert len(found.same_source()) == 1 and np.isfinite(found.same_source()[0]["thumbnail"])
    audit = audit_run(learn.path)
    assert audit.network["low"] > 0.8, "the network has not learnt what separates the classes"
    assert audit.verdict.level == LEVELS.get(shortcut, "failed"), str(audit.verdict)


@pytest.mark.parametrize("pooled", [False, True], ids=["feature maps", "a body that pools"])
def test_features_of_a_frozen_backbone_are_computed_on_its_device(pooled, phantom_cohort, tmp_path):
    dls = build_dataloaders(phantom_cohort, image_size=32, batch_size=8, num_workers=0, device="cpu", path=tmp_path)
    with SimulatedDevice():
        learn = build_learner(dls.to(DEVICE), weights=None, path=tmp_path)
        if pooled:  # as timm's networks may be
            learn.model[0].add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        assert _features(learn, phantom_cohort["path"].head(11)).shape == (11, 512)
