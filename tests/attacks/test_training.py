"""Trainings that are killed, out of memory or disk space, or given planted files (section 4d)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from covid_fastai import read_run, train_classifier
from covid_fastai.errors import DataError, DivergenceError, ResourceError

QUICK = {"image_size": 32, "batch_size": 16, "frozen_epochs": 1, "unfrozen_epochs": 1, "weights": None}
QUICK |= {"num_workers": 0, "device": "cpu", "precision": "fp32", "audit": False, "quiet": True}
OPTIONS = ["--image-size", "32", "--batch-size", "16", "--weights", "none", "--device", "cpu", "--precision", "fp32"]
OPTIONS += ["--no-audit", "--num-workers", "0", "--frozen-epochs", "1"]
ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="system: to mount a small disk takes root"
)


class FillsTheMemory(Callback):
    """Raise an out-of-memory error in every training batch with more than `most` images."""

    order = 80

    def __init__(self, most: int, error: Exception):
        self.most, self.error, self.sizes = most, error, []

    def before_batch(self):
        self.sizes.append(len(self.xb[0]))
        if self.training and len(self.xb[0]) > self.most:
            raise self.error


KINDS = ["CUDA", "the CPU's allocator", "Python"]
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("no room"),  # with a text: fastai needs the first argument of an exception in a callback
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [MEMORY[0], *(pytest.param(error, marks=pytest.mark.nightly) for error in MEMORY[1:])], ids=KINDS
)
def test_out_of_memory_halves_the_batch_and_is_reported(error, phantom_root, tmp_path, caplog):
    callback = FillsTheMemory(5, error)
    learn = train_classifier(phantom_root, out=tmp_path / "run", callbacks=[callback], **QUICK)
    run = read_run(learn.path)
    halved = [event for event in run.record if event["event"] == "batch halved"]
    assert [event["batch_size"] for event in halved] == [8, 4] and halved[0]["asked"] == 16
    assert learn.dls.train.bs <= 5 and len(run.history) == 2 and run.config["config"]["batch_size"] == 16
    assert "Out of memory: the batch size was reduced from 16 to 4." in run.report.read_text(encoding="utf-8")
    assert "starts again with a batch size of 4" in caplog.text


@pytest.mark.slow
def test_too_little_memory_for_any_batch_is_an_error_with_a_hint(phantom_root, tmp_path):
    with pytest.raises(ResourceError, match="Out of memory with a batch size of 2") as caught:
        train_classifier(phantom_root, out=tmp_path / "run", callbacks=[FillsTheMemory(0, MEMORY[0])], **QUICK)
    assert "image_size" in caught.value.hint and not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_another_runtime_error_is_not_treated_as_out_of_memory(phantom_root, tmp_path):
    with pytest.raises(RuntimeError, match="another matter"):
        callback = FillsTheMemory(0, RuntimeError("another matter"))
        train_classifier(phantom_root, out=tmp_path / "run", callbacks=[callback], **QUICK)


@pytest.mark.slow
def test_a_run_with_halved_batches_resumes_with_them(phantom_root, tmp_path):
    class Interrupts(FillsTheMemory):
        def before_train(self):
            if self.epoch == 0 and getattr(self.learn.facts.history, "__len__", int)() == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(phantom_root, out=tmp_path / "run", callbacks=[Interrupts(8, MEMORY[0])], **QUICK)
    learn = train_classifier(resume=tmp_path / "run", callbacks=[FillsTheMemory(8, MEMORY[0])], quiet=True)
    events = [event["event"] for event in read_run(learn.path).record]
    assert events.count("batch halved") == 1 and events[-1] == "finished" and learn.dls.train.bs <= 8


@pytest.mark.slow
def test_a_planted_model_file_is_never_loaded(phantom_root, tmp_path):
    """fastai's SaveModelCallback would load `models/model.pth` if no epoch was the best one."""
    canary = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(canary),))

    class Plants(Callback):
        def before_fit(self):
            (self.learn.path / "models").mkdir(exist_ok=True)
            torch.save(Hostile(), self.learn.path / "models" / "model.pth")

    with pytest.raises(DivergenceError):
        train_classifier(phantom_root, out=tmp_path / "run", callbacks=[Plants()], **QUICK | {"learning_rate": 1e30})
    assert not canary.exists() and not (tmp_path / "run" / "model").exists()
    events = [event["event"] for event in map(json.loads, open(tmp_path / "run" / "record.jsonl", encoding="utf-8"))]
    assert events[-1] == "diverged"


def test_a_class_with_a_single_patient_stops_before_training(phantom_root, tmp_path):
    rows = pd.read_csv(phantom_root / "Chest_xray_Corona_Metadata.csv", keep_default_na=False)
    ill = rows["Label_2_Virus_category"] == "COVID-19"
    single = rows[(rows["Label"] == "Normal") | (rows["patient"] == rows.loc[ill, "patient"].iloc[0])]
    shutil.copytree(phantom_root, tmp_path / "data", symlinks=True)
    single.to_csv(tmp_path / "data" / "Chest_xray_Corona_Metadata.csv", index=False)
    with pytest.raises(DataError, match="COVID-19"):
        train_classifier(tmp_path / "data", out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run" / "checkpoints").exists()


def start(phantom_root: Path, run: Path, *more: str, epochs: int = 40) -> subprocess.Popen:
    command = [sys.executable, "-m", "covid_fastai", "train", str(phantom_root), "--out", str(run), *OPTIONS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--unfrozen-epochs", str(epochs)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )


def wait_for_a_checkpoint(process: subprocess.Popen, run: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/*.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, id="SIGINT", marks=pytest.mark.nightly),
    ],
)
def test_a_signal_ends_a_training_cleanly(number, status, phantom_root, tmp_path):
    process = start(phantom_root, tmp_path / "run")
    wait_for_a_checkpoint(process, tmp_path / "run")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status and b"Continue with --resume" in err and b"Traceback" not in err
    events = [json.loads(line)["event"] for line in open(tmp_path / "run" / "record.jsonl", encoding="utf-8")]
    assert events[-1] == "interrupted"
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) >= 1
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.slow
@ROOT
def test_a_full_disk_damages_no_existing_file(phantom_root, tmp_path):
    """The checkpoints of a ResNet-18 do not fit on a disk of 60 MB, which is detected before training."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "none", str(disk)]).returncode:
        pytest.skip("system: no small disk can be mounted here")
    try:
        with pytest.raises(ResourceError, match="MiB are free, the checkpoints need"):
            train_classifier(phantom_root, out=disk / "run", **QUICK)
        existing = disk / "run" / "cohort.csv"
        before = existing.read_bytes()
        with open(disk / "filler", "wb") as file, pytest.raises(OSError):
            while True:
                file.write(bytes(1 << 20))
        from covid_fastai.files import write_csv

        with pytest.raises(ResourceError, match="could not be written|cannot be written"):
            write_csv(existing, pd.DataFrame({"a": range(100_000)}))
        assert existing.read_bytes() == before and not list(disk.rglob("*.part"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@ROOT
def test_a_read_only_folder_is_an_error_before_training(phantom_root, tmp_path):
    (tmp_path / "fixed").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(tmp_path / "fixed")]).returncode:
        pytest.skip("system: no read-only disk can be mounted here")
    try:
        with pytest.raises(ResourceError, match="cannot be created"):
            train_classifier(phantom_root, out=tmp_path / "fixed" / "run", **QUICK)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "fixed")], check=True)
