"""Predictions made from a seed, and a small run that was trained once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock


def draw_predictions(*, patients: int = 60, classes=("Normal", "COVID-19"), seed: int = 0, skill: float = 1.0):
    """A table of one to three images a patient, whose probabilities know the class as well as `skill` says."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        label = int(rng.integers(len(classes)))
        for image in range(int(rng.integers(1, 4))):
            logits = rng.normal(size=len(classes)) + skill * np.eye(len(classes))[label]
            p = np.exp(logits) / np.exp(logits).sum()
            row = {"path": f"/data/p{patient}-{image}.png", "label": classes[label], "patient": f"p{patient}"}
            rows.append(row | {f"p_{name}": value for name, value in zip(classes, p, strict=True)})
    return pd.DataFrame(rows)


@pytest.fixture
def make_predictions():
    return draw_predictions


@pytest.fixture
def predictions():
    return draw_predictions()


@pytest.fixture
def three_classes():
    return draw_predictions(patients=90, classes=("Normal", "Bacterial", "Viral"), skill=1.5)


@pytest.fixture(scope="session")
def run_folder(covid_dataset, tmp_path_factory):
    """The folder of a run of two short epochs, trained once for all processes of the tests; not to be changed."""
    from covid_fastai import train_classifier
    from covid_fastai.run_folder import RunFolder

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "evidence" / "run"
    quick = {"image_size": 32, "batch_size": 8, "frozen_epochs": 1, "unfrozen_epochs": 1, "weights": None}
    with FileLock(root / "evidence.lock"):
        if not RunFolder(folder).is_finished():
            train_classifier(covid_dataset, out=folder, quiet=True, num_workers=0, **quick)
    before = _moments(folder)
    yield folder
    assert _moments(folder) == before, "a test has changed the run that other tests, of another process, copy and read"


def _moments(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
