"""Cross-validation: sequential folds, and parallel folds on Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from covid_fastai.errors import UsageError

QUICK = {"image_size": 32, "batch_size": 16, "frozen_epochs": 1, "unfrozen_epochs": 1, "weights": None}
QUICK |= {"num_workers": 0, "device": "cpu", "precision": "fp32", "audit": False, "quiet": True}


def test_repeats_without_folds_are_refused(tmp_path):
    command = [sys.executable, "-m", "covid_fastai", "train", "data", "--repeats", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Give --folds 5, too." in done.stderr


@pytest.mark.slow
def test_folds_are_trained_with_the_parts_of_the_caller(phantom_root, tmp_path):
    from fastai.vision.all import Flip, FocalLossFlat, ranger

    from covid_fastai import cross_validate

    parts = {"loss_func": FocalLossFlat(), "opt_func": ranger, "augmentation": [Flip()]}
    run = cross_validate(phantom_root, folds=2, out=tmp_path / "run", **parts, **{**QUICK, "frozen_epochs": 0})
    records = [fold.record.read_text() for fold in run.folder.folds()]
    assert all("FocalLossFlat" in record and "ranger" in record and "Flip" in record for record in records)


def test_a_number_that_is_none(phantom_root, tmp_path):
    from covid_fastai import cross_validate

    with pytest.raises(UsageError, match="n_jobs=0"):
        cross_validate(phantom_root, folds=2, n_jobs=0, out=tmp_path / "run", **QUICK)


def test_folds_on_ray_take_no_numbered_gpu(phantom_root, tmp_path, monkeypatch):
    from covid_fastai import cross_validate
    from covid_fastai.training import run_start

    monkeypatch.setattr(run_start, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="device='cuda:1' and n_jobs=2 are mutually exclusive"):
        cross_validate(phantom_root, folds=2, n_jobs=2, out=tmp_path / "run", **QUICK | {"device": "cuda:1"})


@pytest.mark.slow
def test_the_folds_of_the_data_are_kept(tmp_path):
    from covid_fastai import cross_validate
    from tests.data.test_field_data import write_rows

    patients = [f"p{number // 2}" for number in range(24)]
    labels = ["Normal" if number % 4 < 2 else "COVID-19" for number in range(24)]
    rows = write_rows(tmp_path, label=labels, patient=patients, kfold=[1 + number // 8 for number in range(24)])
    quick = {**QUICK, "batch_size": 8, "frozen_epochs": 0}
    run = cross_validate(rows, folds=3, split="official", out=tmp_path / "run", **quick)
    folds = run.predictions.set_index("path")["fold"].to_dict()
    assert folds == {path: number // 8 for number, path in enumerate(rows["path"])}
    with pytest.raises(UsageError, match="holds 3 folds"):
        cross_validate(rows, folds=2, split="official", out=tmp_path / "other", **quick)


@pytest.mark.slow
def test_the_command_cross_validates(phantom_root, tmp_path):
    options = [
        "--image-size",
        "32",
        "--frozen-epochs",
        "1",
        "--unfrozen-epochs",
        "0",
        "--weights",
        "none",
        "--no-audit",
    ]
    command = [sys.executable, "-m", "covid_fastai", "train", str(phantom_root), "--folds", "2", *options, "--no-audit"]
    done = subprocess.run([*command, "--out", "run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Held-out patients" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["folds"] == 2 and config["command"].endswith("--folds 2")
    assert config["python"].startswith("cross_validate(") and config["python"].endswith(", folds=2)")


@pytest.mark.nightly
@pytest.mark.slow
def test_parallel_folds_give_the_results_of_sequential_ones(phantom_root, tmp_path):
    """If a process is killed in its first fold, Ray starts another one, which trains that fold again."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    psutil = pytest.importorskip("psutil")
    from covid_fastai import cross_validate

    one_by_one = cross_validate(phantom_root, folds=3, out=tmp_path / "one", **QUICK)
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 100
        while not killed and time.monotonic() < deadline:
            if list(tmp_path.glob("run/fold-*/cohort.csv")) or list(tmp_path.glob("run/fold-*/record.jsonl")):
                lines = {
                    process.pid: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
                }
                for pid in [pid for pid, line in lines.items() if "_fold_task" in line][:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        run = cross_validate(phantom_root, folds=3, n_jobs=2, out=tmp_path / "run", **QUICK)
    finally:
        ray.shutdown()
    assert killed and not killer.is_alive()
    columns = ["path", "fold", "prediction", "status"]
    pd.testing.assert_frame_equal(run.predictions[columns], one_by_one.predictions[columns])
    probabilities = [column for column in run.predictions if column.startswith("p_")]
    pd.testing.assert_frame_equal(
        run.predictions[probabilities], one_by_one.predictions[probabilities], rtol=1e-3, atol=1e-4
    )
    assert run.metrics.value("auc") == pytest.approx(one_by_one.metrics.value("auc"), abs=1e-3)
