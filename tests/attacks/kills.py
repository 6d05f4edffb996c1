"""Kill processes at random times with SIGKILL: `python -m tests.attacks.kills all --times 100`, or one of its kinds.

`train` and `save` kill the fitting and the saving of a small network, `run` whole trainings with audit and report,
`audit` repeated audits of a run, `batch` batches, `cache` processes that write to the cache. torch is imported once,
and most attempts are forks. Files that remain must be complete, and what is resumed must give the result of what was
never killed. The last line of the output is JSON: the number of kills, and counts that must be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import no_random, params
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import nn

from covid_fastai.data.dataloaders import empty_dataloaders
from covid_fastai.files import atomic_write
from covid_fastai.model.bundle import load_model, save_model
from covid_fastai.model.learner import build_learner
from covid_fastai.model.schedule import fit
from tests.attacks.kills_of_runs import fork, kill_audits, kill_batches, kill_caches, kill_runs


def train(folder: Path) -> None:
    """Train a small network with every kind of state, resuming from its checkpoints; write its weights and rates."""
    numbers = np.random.default_rng(0)
    x = torch.tensor(numbers.normal(size=(64, 1, 8, 8)), dtype=torch.float32)
    items = list(zip(x, torch.tensor(numbers.integers(0, 3, 64)), strict=True))
    with no_random(0):
        loaders = [DataLoader(items[:48], bs=4, shuffle=True, drop_last=True), DataLoader(items[48:], bs=4)]
        body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        head = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        learn = Learner(
            DataLoaders(*loaders, path=folder),
            nn.Sequential(body, head),
            loss_func=CrossEntropyLossFlat(),
            metrics=accuracy,
            splitter=lambda m: [params(m[0]), params(m[1])],
            cbs=Slow(),
        )
        fit(learn, frozen_epochs=4, unfrozen_epochs=8, learning_rate=1e-2, out=folder, resume=True)
    state = dict(learn.model.state_dict())
    state["rates"] = torch.tensor(learn.facts.steps["learning_rate"].to_numpy())
    state["losses"] = torch.tensor(learn.facts.history["valid_loss"].to_numpy())
    with atomic_write(folder / "done.safetensors", mode="wb") as file:
        file.write(save_tensors(state))


class Slow(Callback):
    """Make a step long enough to be killed in."""

    def after_batch(self):
        """Wait."""
        time.sleep(0.001)


def save_over_and_over(folder: Path) -> None:
    """Save two models in turn to one folder, until the process is killed."""
    dls = empty_dataloaders(classes=["a", "b"], image_size=32, positive="b", device="cpu")
    learn = build_learner(dls, weights=None)
    number = 0
    while True:
        number += 1
        learn.model[1][-1].bias.data.fill_(float(number % 2))
        save_model(learn, folder / "model", onnx=False)


def kill_trainings(times: int, root: Path, rng: random.Random) -> dict:
    """Kill trainings `times` times in total, finish each, and compare the results with one that was not killed."""
    undisturbed = root / "whole"
    undisturbed.mkdir()
    begun = time.monotonic()
    assert os.waitpid(fork(train, undisturbed), 0)[1] == 0, (undisturbed / "log").read_text()[-2000:]
    seconds, expected = time.monotonic() - begun, load_file(undisturbed / "done.safetensors")
    kills = runs = unreadable = different = 0
    while kills < times:
        folder = root / f"run-{runs}"
        folder.mkdir()
        runs += 1
        while kills < times and not (folder / "done.safetensors").exists():
            child = fork(train, folder)
            time.sleep(rng.uniform(0.02, 0.5) * seconds)
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if not (folder / "done.safetensors").exists():
            unreadable += os.waitpid(fork(train, folder), 0)[1] != 0
        done = folder / "done.safetensors"
        result = load_file(done) if done.exists() else {}
        different += result.keys() != expected.keys() or not all(
            torch.equal(result[key], expected[key]) for key in expected
        )
    return {"kills": kills, "runs": runs, "unreadable": unreadable, "different": different}


def kill_savings(times: int, root: Path, rng: random.Random) -> dict:
    """Kill a saving process `times` times; each time the folder must have one of the two models, complete."""
    child = fork(save_over_and_over, root)
    while not (root / "model").is_dir():
        time.sleep(0.01)
    kills = lost = 0
    for _ in range(times):
        time.sleep(rng.uniform(0, 0.5))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        try:
            bias = load_model(root / "model", device="cpu").model[1][-1].bias
            lost += bias.tolist() not in ([0.0, 0.0], [1.0, 1.0])
        except Exception as error:
            print(error, file=sys.stderr)
            lost += 1
        child = fork(save_over_and_over, root)
        time.sleep(rng.uniform(0.1, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"kills": kills, "lost": lost, "left_over": len(list(root.glob(".model.unfinished-*")))}


# each kind with its fraction of the kills of `all`
KINDS = {
    "train": (kill_trainings, 0.2),
    "save": (kill_savings, 0.15),
    "run": (kill_runs, 0.25),
    "audit": (kill_audits, 0.1),
    "batch": (kill_batches, 0.15),
    "cache": (kill_caches, 0.15),
}


# counts that may be above 0: of what was killed, and of temporary folders, which the next process removes
HARMLESS = {"kills", "runs", "batches", "left_over"}


def main() -> int:
    """Kill as often as requested, and print the counts; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.kills", description=__doc__)
    parser.add_argument("what", choices=[*KINDS, "all"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fork does not inherit other threads
    kinds = KINDS if arguments.what == "all" else {arguments.what: (KINDS[arguments.what][0], 1.0)}
    found = {}
    for name, (kill, fraction) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = kill(round(fraction * arguments.times), Path(folder), random.Random(arguments.seed))
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(json.dumps(found if arguments.what == "all" else found[arguments.what]))
    return int(any(counts[name] for counts in found.values() for name in counts.keys() - HARMLESS))


if __name__ == "__main__":
    sys.exit(main())
