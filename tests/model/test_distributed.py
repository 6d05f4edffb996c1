"""Distributed training with two processes on the CPU, with gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from covid_fastai.errors import UsageError
from covid_fastai.model.distributed import (
    batch_per_process,
    broadcast_text,
    check_same_everywhere,
    is_main_process,
    join_processes,
)

pytest.importorskip("accelerate", reason="the extra distributed is not installed")

OPTIONS = ["--image-size", "32", "--batch-size", "16", "--weights", "none", "--device", "cpu", "--precision", "fp32"]
OPTIONS += ["--no-audit", "--num-workers", "0", "--frozen-epochs", "1"]

# A model without BatchNorm and one step per epoch: two processes must take exactly the step of one.
LEARN = """
import json, os, sys
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, Datasets
from fastai.learner import Learner
from fastai.torch_core import no_random
from torch import nn
from covid_fastai.data.radiograph_loader import RadiographDL
from covid_fastai.model.distributed import batch_per_process, check_same_everywhere, data_parallel
from covid_fastai.model.distributed import is_main_process, join_processes
from covid_fastai.model.schedule import fit

N = 16

class BatchRecorder(Callback):
    order = 90
    def before_fit(self): self.learn.targets = []
    def after_batch(self):
        if self.training: self.learn.targets[-1].extend(self.yb[0].tolist())
    def before_train(self): self.learn.targets.append([])

with join_processes("cpu") as world, no_random(0):
    torch.manual_seed(5)
    x = torch.randn(N + 6, 12)
    splits = [list(range(N)), list(range(N, N + 6))]
    sets = Datasets(range(N + 6), tfms=[[lambda i: x[i]], [lambda i: torch.tensor(float(i))]], splits=splits)
    options = {"bs": batch_per_process(N), "num_workers": 0}
    loaders = [RadiographDL(sets.train, shuffle=True, **options), RadiographDL(sets.valid, **options)]
    torch.manual_seed(0 if is_main_process() else 77)  # the others get the weights of the main process
    model = nn.Sequential(nn.Linear(12, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 1)))
    loss = lambda p, y: ((p[:, 0] - y / 9) ** 2).mean()
    split = lambda m: [list(m[0].parameters()), list(m[1].parameters())]
    learn = Learner(DataLoaders(*loaders, path=sys.argv[1]), model, loss_func=loss, splitter=split, cbs=BatchRecorder())
    check_same_everywhere("The data", x.tolist())
    fit(learn, frozen_epochs=2, unfrozen_epochs=3, lr_ratio=1, out=sys.argv[1])
    result = {"targets": learn.targets, "weights": [p.flatten().tolist() for p in learn.model.parameters()],
              "world": world, "losses": learn.facts.history["valid_loss"].tolist(), "kind": type(learn.model).__name__}
    with open(f"{sys.argv[1]}/result-{os.environ.get('RANK', 0)}.json", "w") as file:
        json.dump(result, file)
"""


def launch(processes: int, *command, cwd) -> subprocess.Popen:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    run += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*run, *map(str, command)], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    (tmp_path / "learn.py").write_text(textwrap.dedent(LEARN))
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        process = launch(processes, "learn.py", folder, cwd=tmp_path)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-3000:]
        results[processes] = [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(processes)]
    alone, (first, second) = results[1][0], results[2]
    assert (alone["world"], first["world"], first["kind"]) == (1, 2, "Sequential")
    for mine, theirs, whole in zip(first["targets"], second["targets"], alone["targets"], strict=True):
        assert len(mine) == len(theirs) == 8 and sorted(mine + theirs) == sorted(whole) == list(map(float, range(16)))
    assert first["weights"] == second["weights"]
    for ours, theirs in zip(first["weights"], alone["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-4)
    assert len(list((tmp_path / "2" / "checkpoints").glob("*.json"))) == 2


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_can_be_resumed(phantom_root, tmp_path):
    from covid_fastai import read_run

    command = ["-m", "covid_fastai", "train", phantom_root, "--out", tmp_path / "run", *OPTIONS]
    process = launch(2, *command, "--unfrozen-epochs", "30", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.1)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and ("has ended" in err or "SIGKILL" in err or "Signal 9" in err), err[-3000:]
    assert list(tmp_path.glob("run/checkpoints/*.safetensors")) and not (tmp_path / "run" / "model").exists()

    resumed = launch(2, "-m", "covid_fastai", "train", "--resume", tmp_path / "run", cwd=tmp_path)
    out, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err[-3000:]
    assert out.count("Held-out patients") == 1, "only the main process prints the metrics"
    run = read_run(tmp_path / "run")
    used, held_out = run.cohort[run.cohort["split"].isin(["train", "valid"])], run.cohort.query("split == 'valid'")
    assert used.groupby("patient")["split"].nunique().max() == 1
    assert run.predictions["path"].tolist() == held_out["path"].tolist(), "every image once, in order"
    assert run.history["epoch"].tolist() == list(range(1, 32)) and run.report.exists()
    assert [event["event"] for event in run.record if event["event"] in ("started", "resumed", "finished")] == [
        "started",
        "resumed",
        "finished",
    ]


def test_a_single_process_needs_no_process_group():
    with join_processes("cpu") as world:
        assert world == 1 and is_main_process() and broadcast_text("a") == "a" and check_same_everywhere("x", 1) is None
    assert not torch.distributed.is_initialized()


def test_the_batch_of_a_process_has_two_images_or_more(monkeypatch):
    assert batch_per_process(8) == 8
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert batch_per_process(32) == 8
    with pytest.raises(UsageError, match="batch_size=7 is too small for 4 processes"):
        batch_per_process(7)
