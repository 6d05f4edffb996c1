"""Distributed training with two and three processes on the CPU, with gloo."""

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
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader

from covid_fastai.errors import DataError, UsageError
from covid_fastai.model.distributed import (
    _on_gpus,
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


def launch(
    processes: int, *command, cwd, launcher: str = "torchrun", accelerate: tuple[str, ...] = ()
) -> subprocess.Popen:
    if launcher == "torchrun":
        run = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
        run += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    else:
        # as for two GPUs, since accelerate starts processes on a CPU through MPI only
        run = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", str(processes)]
        run += ["--main_process_port", "0", "--dynamo_backend", "no", *accelerate]
    run = [sys.executable, "-m", *run]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*run, *map(str, command)], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def results_of(processes: int, script: str, *arguments, cwd, fails: bool = False, **options) -> list[dict]:
    """Run a script in several processes, and return what each of them wrote to `result-<rank>.json`."""
    (cwd / "script.py").write_text(textwrap.dedent(script))
    process = launch(processes, "script.py", *arguments, cwd=cwd, **options)
    _, err = process.communicate(timeout=240)
    assert fails or process.returncode == 0, err[-3000:]
    return [json.loads((cwd / f"result-{rank}.json").read_text()) for rank in range(processes)]


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
@pytest.mark.nightly
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


# A whole run, with the norms of GPUs: torch's SyncBatchNorm computes on GPUs only, so it gets the kernel of the CPU.
RUN = """
import json, os, sys
import torch
from fastai.callback.core import Callback
from torch import nn
from covid_fastai import load_model, predict, read_run, train_classifier
from covid_fastai.model import distributed_trainer
from covid_fastai.model.learner import unwrapped
from covid_fastai.model.norms import BATCH_NORMS

class Synchronised(distributed_trainer.CPUDistributedTrainer):
    def __init__(self, *, synchronise_norms, **options):
        super().__init__(synchronise_norms=True, **options)

distributed_trainer.CPUDistributedTrainer = Synchronised
nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # it refuses them on a CPU
nn.SyncBatchNorm.forward = lambda self, x: nn.functional.batch_norm(
    x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps)
found = {"norms": [], "batches": [], "autocast": [], "learning": 0}

class Watch(Callback):
    def before_batch(self):
        norms = [one for one in unwrapped(self.model)[0].modules() if isinstance(one, BATCH_NORMS)]
        if self.training:
            found["norms"] = sorted({*found["norms"], *(type(one).__name__ for one in norms)})
            found["batches"].append(len(self.xb[0]))
            found["learning"] += sum(one.training for one in norms) if self.opt.frozen_idx else 0
    def after_pred(self):
        found["autocast"].append(str(self.pred.dtype))

root, out = sys.argv[1], sys.argv[2]
options = {"weights": None, "image_size": 32, "batch_size": int(sys.argv[3]), "precision": "fp32", "num_workers": 0}
options |= {"device": "cpu", "audit": False, "frozen_epochs": 1, "unfrozen_epochs": 1}
learn = train_classifier(root, out=out, quiet=True, callbacks=[Watch()], **options)
found["kinds"] = sorted({type(one).__name__ for one in learn.model.modules() if isinstance(one, BATCH_NORMS)})
found["finished"] = read_run(out).report.exists()
if not int(os.environ["RANK"]):
    cohort = learn.dls.facts.cohort
    held_out, again = predict(learn), predict(load_model(out + "/model", device="cpu"), cohort, split="valid")
    probabilities = [name for name in held_out if name.startswith("p_")]
    found["apart"] = float((held_out[probabilities] - again[probabilities]).abs().max().max())
    found["images"] = int((read_run(out).cohort["split"] == "train").sum())
found["autocast"] = sorted(set(found["autocast"]))
with open(f"result-{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "launcher", "accelerate"),
    [(2, "torchrun", ()), (3, "torchrun", ()), (2, "accelerate", ("--mixed_precision", "bf16"))],
    ids=["two", "three", "accelerate in bfloat16"],
)
@pytest.mark.nightly
def test_a_model_of_several_processes_loads_and_answers_like_its_learner(
    processes, launcher, accelerate, phantom_root, tmp_path
):
    options = {"cwd": tmp_path, "launcher": launcher, "accelerate": accelerate}
    found = results_of(processes, RUN, phantom_root, tmp_path / "run", 4 * processes, **options)
    assert found[0]["apart"] < 1e-6
    for one in found:
        assert one["norms"] == ["SyncBatchNorm"] and one["kinds"] == ["BatchNorm1d", "BatchNorm2d"]
        assert one["learning"] == 0, "BatchNorm of a frozen body"
        assert min(one["batches"]) >= 2 and one["batches"] == found[0]["batches"]
        assert sum(one["batches"]) == 2 * -(-found[0]["images"] // processes), "each share, in two epochs"
        assert one["autocast"] == ["torch.float32"], "precision= and nothing else has the number format"
        assert one["finished"], "the other processes leave when the main one is done"


# A small learner, in a process that fails in one of the ways named by the first argument.
SMALL = """
import json, os, sys, time
import torch
from datetime import timedelta
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, Datasets
from fastai.learner import Learner
from torch import nn
from covid_fastai.data.radiograph_loader import RadiographDL
from covid_fastai.errors import CovidFastaiError
from covid_fastai.model import distributed as module
from covid_fastai.model.distributed import join_processes, main_process_first
from covid_fastai.model.schedule import fit

RANK, WORLD = int(os.environ["RANK"]), os.environ["WORLD_SIZE"]
LAST = int(WORLD) - 1

def make(folder, *callbacks):
    torch.manual_seed(5)
    x = torch.randn(24, 12)
    splits, number = [range(18), range(18, 24)], lambda i: torch.tensor(float(i))
    sets = Datasets(range(24), tfms=[[lambda i: x[i]], [number]], splits=splits)
    options = {"bs": int(sys.argv[2]) if len(sys.argv) > 2 else 2, "num_workers": 0}
    loaders = [RadiographDL(sets.train, shuffle=True, **options), RadiographDL(sets.valid, **options)]
    model = nn.Sequential(nn.Linear(12, 8), nn.Sequential(nn.Tanh(), nn.Linear(8, 1)))
    split = lambda m: [list(m[0].parameters()), list(m[1].parameters())]
    loss = lambda p, y: ((p[:, 0] - y / 9) ** 2).mean()
    return Learner(DataLoaders(*loaders, path=folder), model, loss_func=loss, splitter=split, cbs=list(callbacks))

class Fails(Callback):
    order = 20
    def after_pred(self):
        if RANK == LAST and self.training and self.train_iter == 3 and sys.argv[1] == "diverge":
            self.learn.pred = self.pred * float("nan")
        if RANK == LAST and self.training and self.train_iter == 3 and sys.argv[1] == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

class Draws(Callback):
    def before_batch(self):
        if self.training:
            drawn.append(float(torch.rand(1)))

class Ends(Callback):
    order = 99
    def before_train(self):
        if self.epoch == 1:
            raise KeyboardInterrupt

def tell(**found):
    with open(f"result-{RANK}.json", "w") as file:
        json.dump(found, file)

began = time.monotonic()
if sys.argv[1] == "wait":
    module.TIMEOUT = timedelta(seconds=2)  # of a step; the main process reads for longer, and ends later
    with join_processes("cpu"):
        with main_process_first():
            time.sleep(0 if RANK else 6)
        if not RANK:
            time.sleep(4)
    tell(seconds=time.monotonic() - began)
elif sys.argv[1] == "resume":
    with join_processes("cpu"):
        def run(folder, *callbacks, **options):
            drawn.clear()
            os.environ["WORLD_SIZE"] = WORLD  # `fit` leaves only the main process in the training
            learn = make(folder, Draws(), *callbacks)
            torch.manual_seed(100 + RANK)
            fit(learn, frozen_epochs=0, unfrozen_epochs=2, out=folder, **options)
            return list(drawn)
        drawn = []
        whole = run("whole")
        try:
            run("killed", Ends())
        except KeyboardInterrupt:
            pass
        torch.manual_seed(7)
        tell(whole=whole, resumed=run("killed", resume=True))
else:
    try:
        with join_processes("cpu"):
            learn = make("run", Fails())
            try:
                fit(learn, frozen_epochs=0, unfrozen_epochs=2, out="run")
            finally:
                finite = all(bool(p.isfinite().all()) for p in learn.model.parameters())
                loaders = sorted({type(loader).__name__ for loader in learn.dls.loaders})
    except CovidFastaiError as error:
        seconds = time.monotonic() - began
        tell(kind=type(error).__name__, message=str(error), seconds=seconds, finite=finite, loaders=loaders)
        time.sleep(0 if RANK < LAST else 20)  # the others end although this process goes on
        raise
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.nightly
def test_all_processes_stop_where_one_diverges(processes, tmp_path):
    found = results_of(processes, SMALL, "diverge", cwd=tmp_path, fails=True)
    assert {one["kind"] for one in found} == {"DivergenceError"} and all(one["finite"] for one in found)
    assert all(one["loaders"] == ["RadiographDL"] for one in found), "not those of several processes"
    step = "epoch 1, step 4" if processes == 2 else "epoch 2, step 1"  # 5 or 3 steps in an epoch; the fourth of all
    assert all(f"in {step}: the loss is " in one["message"] for one in found)
    assert "the loss is nan" in found[-1]["message"] and "in another process" in found[0]["message"]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "batch"), [(2, 2), (3, 2), (2, 4)])  # 4 could be halved, by a single process
@pytest.mark.nightly
def test_the_others_end_with_the_reason_of_a_process_whose_memory_is_full(processes, batch, tmp_path):
    found = results_of(processes, SMALL, "memory", batch, cwd=tmp_path, fails=True)
    assert {one["kind"] for one in found} == {"ResourceError"}
    assert found[-1]["message"].startswith(f"Out of memory with a batch size of {batch}: CUDA out of memory")
    for one in found[:-1]:
        reason = f"process {processes - 1}: Out of memory with a batch size of {batch}"
        assert reason in one["message"] and one["seconds"] < found[-1]["seconds"] + 10, one


@pytest.mark.slow
@pytest.mark.nightly
def test_the_others_wait_for_the_main_process_longer_than_for_a_step(tmp_path):
    found = results_of(2, SMALL, "wait", cwd=tmp_path)
    assert all(one["seconds"] >= 10 for one in found), "all leave together"


@pytest.mark.nightly
@pytest.mark.slow
def test_each_process_resumes_with_its_own_random_states(tmp_path):
    found = results_of(2, SMALL, "resume", cwd=tmp_path)
    for one in found:
        assert len(one["whole"]) == 10 and one["resumed"] == one["whole"][5:]
    assert not set(found[0]["resumed"]) & set(found[1]["resumed"])


def test_the_share_of_a_process_does_not_end_with_a_batch_of_one_image(monkeypatch):
    from covid_fastai.data.dataloaders import _fitting_batch_size

    assert _fitting_batch_size(17, 8) == (6, False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for processes in (2, 3, 5, 8):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        for images in range(processes + 1, 120):
            share = -(-images // processes)
            for batch_size in (2, 3, 8, 16):
                size, drop_last = _fitting_batch_size(images, batch_size)
                assert 2 <= size <= batch_size, (processes, images, batch_size)
                assert (drop_last and share > size) or (share - 1) % size + 1 >= 2, (processes, images, batch_size)
        with pytest.raises(DataError, match=f"{processes} training images are too few for {processes} processes"):
            _fitting_batch_size(processes, 8)


def test_processes_on_gpus_and_cpus_are_not_mixed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not _on_gpus("cpu") and not _on_gpus("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert _on_gpus("auto") and _on_gpus("cuda") and not _on_gpus("cpu")
    with pytest.raises(UsageError, match="device='cuda:0' is one GPU, and this machine has 2 processes"):
        _on_gpus("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert _on_gpus("cuda:0"), "two machines of one GPU each"
    with pytest.raises(UsageError, match="device='cuda:1' is not the GPU that this process gets"):
        _on_gpus("cuda:1")  # accelerate takes GPU 0, the LOCAL_RANK
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as accelerate launch --cpu writes it
    with pytest.raises(UsageError, match="device='auto' is cuda:0 here, and accelerate was told to use CPUs"):
        _on_gpus("auto")
    assert not _on_gpus("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UsageError, match="device='auto' is mps here"):
        _on_gpus("auto")


def test_other_ways_of_accelerate_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="accelerate was asked for FSDP"), join_processes("cpu"):
        raise AssertionError("joined")


def test_a_step_is_that_of_one_batch_whatever_accelerate_was_told(monkeypatch):
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DynamoBackend

    from covid_fastai.model.distributed_trainer import CPUDistributedTrainer

    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")  # backward would divide the loss by it
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    try:
        accelerator = CPUDistributedTrainer(synchronise_norms=False, cpu=True).accelerator
        assert accelerator.gradient_accumulation_steps == 1 and accelerator.mixed_precision == "no"
        assert accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    finally:  # they are the same for all tests of this process
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def test_loaders_of_several_processes_are_unwrapped_after_an_error():
    from covid_fastai.model.distributed_trainer import CPUDistributedTrainer, _CPUDistributedDL

    own = [DataLoader(list(range(8)), bs=2), DataLoader(list(range(4)), bs=2)]
    dls = DataLoaders(*own)
    dls.loaders = [_CPUDistributedDL(own[0], rank=0, world_size=2), own[1]]
    CPUDistributedTrainer.restore_loaders(dls)
    assert all(loader is before for loader, before in zip(dls.loaders, own, strict=True))
