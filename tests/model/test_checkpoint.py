"""Checkpoints: a killed training resumes to the same result, and damaged checkpoints are detected."""

from __future__ import annotations

import json
import logging
import random
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import no_random, params
from torch import nn

from covid_fastai.errors import ModelFormatError, ResourceError, UsageError
from covid_fastai.model import checkpoint as module
from covid_fastai.model.checkpoint import (
    check_room,
    clear_checkpoints,
    list_checkpoints,
    read_checkpoint,
    restore_random,
)
from covid_fastai.model.schedule import fit

CLASSES = 3


class Killed(Exception):
    """Raised in place of the end of a process."""


class KillAfter(Callback):
    """End the training at the first step after a number of epochs of all phases."""

    order = 99

    def __init__(self, epochs):
        self.left = epochs

    def before_batch(self):
        if self.left == 0 and self.training and self.iter == 1:
            raise Killed("as by a power cut")

    def after_epoch(self):
        self.left -= 1


class Jitter(Callback):
    """Use all three global random generators, as augmentations do."""

    def before_batch(self):
        if self.training:
            noise = random.random() + np.random.rand()  # noqa: NPY002
            self.learn.xb = (self.xb[0] + 0.01 * noise * torch.randn_like(self.xb[0]),)


def make_learner(tmp_path, seed=0) -> Learner:
    """Return a small network with every kind of state: BatchNorm, dropout, two groups, shuffled batches."""
    numbers = np.random.default_rng(0)
    x = torch.tensor(numbers.normal(size=(40, 1, 8, 8)), dtype=torch.float32)
    items = list(zip(x, torch.tensor(numbers.integers(0, CLASSES, 40)), strict=True))
    with no_random(seed):
        loaders = [DataLoader(items[:28], bs=4, shuffle=True, drop_last=True), DataLoader(items[28:], bs=4)]
        body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = nn.Sequential(body, nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, CLASSES)))
    return Learner(
        DataLoaders(*loaders, path=tmp_path),
        model.to(memory_format=torch.channels_last),
        loss_func=CrossEntropyLossFlat(),
        metrics=accuracy,
        splitter=lambda m: [params(m[0]), params(m[1])],
        cbs=Jitter(),
        wd=0.01,
    )


def run(tmp_path, *, seed=0, kill_after=None, resume=False, folder=".", callbacks=(), **options) -> Learner:
    learn = make_learner(tmp_path, seed)
    learn.add_cbs(callbacks)
    options = {"frozen_epochs": 3, "unfrozen_epochs": 4, "learning_rate": 1e-2, "lr_ratio": 4.0} | options
    if kill_after is not None:
        learn.add_cb(KillAfter(kill_after))
    with no_random(seed):
        try:
            fit(learn, out=tmp_path / folder, resume=resume, **options)
        except Killed:
            assert kill_after is not None
    return learn


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"))


def equal_states(first, second) -> bool:
    first, second = first.model.state_dict(), second.model.state_dict()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kill_after", [0, 1, 2, 3, 4, 6], ids=lambda n: f"killed-after-{n}")
def test_a_killed_training_resumes_to_the_same_model(kill_after, tmp_path, undisturbed):
    killed = run(tmp_path, kill_after=kill_after)
    assert len(killed.facts.history) == kill_after
    resumed = run(tmp_path, seed=0 if kill_after == 0 else 99, resume=True)
    assert equal_states(resumed, undisturbed)
    columns = ["phase", "epoch", "train_loss", "valid_loss", "accuracy"]
    pd.testing.assert_frame_equal(resumed.facts.history[columns], undisturbed.facts.history[columns], check_exact=True)
    pd.testing.assert_frame_equal(resumed.facts.steps, undisturbed.facts.steps, check_exact=True)


def test_a_training_that_is_killed_twice_resumes_to_the_same_model(tmp_path, undisturbed):
    run(tmp_path, kill_after=2)
    run(tmp_path, seed=5, kill_after=2, resume=True)  # the epochs that are passed by count here too
    assert equal_states(run(tmp_path, seed=6, resume=True), undisturbed)


def test_resuming_a_finished_training_changes_nothing(tmp_path, undisturbed):
    run(tmp_path)
    again = run(tmp_path, seed=3, resume=True)
    assert equal_states(again, undisturbed) and len(again.facts.history) == 7 and len(again.facts.steps) == 49


def test_another_seed_gives_another_model(tmp_path, undisturbed):
    assert not equal_states(run(tmp_path, seed=1), undisturbed), "the equalities above would prove nothing"


def test_two_checkpoints_remain_and_none_is_a_pickle(tmp_path):
    run(tmp_path)
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert files == [f"epoch-000{n}.{suffix}" for n in (6, 7) for suffix in ("json", "safetensors")]
    facts = json.loads((tmp_path / "checkpoints/epoch-0007.json").read_text())["checkpoint"]
    assert (facts["phase"], facts["done"], facts["epoch"]) == ("unfrozen", 4, 7)
    clear_checkpoints(tmp_path / "checkpoints")
    assert not list((tmp_path / "checkpoints").iterdir())


def spoil(path, kind):
    tensors = path.with_suffix(".safetensors")
    if kind == "bit flip":
        content = bytearray(tensors.read_bytes())
        content[-5] ^= 1
        tensors.write_bytes(content)
    elif kind == "half the tensors":
        tensors.write_bytes(tensors.read_bytes()[:1000])
    elif kind == "no tensors":
        tensors.unlink()
    elif kind == "half the text":
        path.write_text(path.read_text()[:200])
    elif kind == "changed number":
        outer = json.loads(path.read_text())
        outer["checkpoint"]["done"] += 1
        path.write_text(json.dumps(outer))
    elif kind == "another thing":
        path.write_text("[]")


@pytest.mark.parametrize(
    "kind", ["bit flip", "half the tensors", "no tensors", "half the text", "changed number", "another thing"]
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(kind, tmp_path, undisturbed, caplog):
    run(tmp_path, kill_after=5)
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    spoil(newest, kind)
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        resumed = run(tmp_path, seed=7, resume=True)
    assert any(newest.name in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "Resuming after epoch 4" in caplog.text and equal_states(resumed, undisturbed)


def test_no_readable_checkpoint_is_an_error(tmp_path):
    run(tmp_path, kill_after=3)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        spoil(path, "bit flip")
    with pytest.raises(ModelFormatError, match="No checkpoint in"):
        run(tmp_path, resume=True)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    run(tmp_path, kill_after=1)
    monkeypatch.undo()
    with pytest.raises(ModelFormatError):
        read_checkpoint(tmp_path / "checkpoints", config={})


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path, kill_after=2)
    with pytest.raises(UsageError, match=r"frozen was \[3, '0.01'\], is \[3, '0.02'\]"):
        run(tmp_path, resume=True, learning_rate=2e-2)
    with pytest.raises(ResourceError, match="of another training"):
        run(tmp_path)


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path, undisturbed, caplog):
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        learn = run(tmp_path, resume=True)
    assert "no checkpoint" in caplog.text and equal_states(learn, undisturbed)
    with pytest.raises(UsageError, match="needs the run's folder"):
        fit(learn, resume=True)


def test_random_generators_continue_from_their_saved_states(tmp_path):
    def draw(learn):
        loader = learn.dls.train
        return random.random(), np.random.rand(), float(torch.rand(1)), loader.rng.random(), random.gauss(0, 1)  # noqa: NPY002

    learn = run(tmp_path, kill_after=1)
    checkpoint = module._read(list_checkpoints(tmp_path / "checkpoints")[0])
    restore_random(learn, checkpoint)
    first = draw(learn)
    restore_random(learn, checkpoint)
    assert draw(learn) == first and draw(learn) != first


def test_a_full_disk_is_detected_before_training(tmp_path, monkeypatch):
    from shutil import _ntuple_diskusage

    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: _ntuple_diskusage(10, 9, 1))
    with pytest.raises(ResourceError, match="MiB are free"):
        check_room(make_learner(tmp_path), tmp_path)


def test_a_failed_write_leaves_the_earlier_checkpoints(tmp_path, monkeypatch, undisturbed):
    def full(tensors):
        raise ResourceError("No space left on device.")

    run(tmp_path, kill_after=2)
    with monkeypatch.context() as patch, pytest.raises(ResourceError):
        patch.setattr(module, "save_safetensors", full)
        run(tmp_path, resume=True)
    assert [path.stem for path in list_checkpoints(tmp_path / "checkpoints")] == ["epoch-0002", "epoch-0001"]
    assert equal_states(run(tmp_path, resume=True), undisturbed)


def test_a_slow_disk_gets_the_state_at_the_end_of_the_epoch(tmp_path, monkeypatch, undisturbed):
    """The training goes on while a checkpoint is written."""
    changed, write = threading.Event(), module._write

    class Release(Callback):
        def before_batch(self):
            if self.training and self.iter == 1:  # the first step has changed the weights
                changed.set()

    def held(target, *content):
        if target.stem == "epoch-0002":
            assert changed.wait(60), "the training waits for the disk"
        write(target, *content)

    class Forget(Callback):
        order = 90  # before the checkpoint

        def after_epoch(self):
            changed.clear()

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", held)
        run(tmp_path, kill_after=2, callbacks=[Release(), Forget()])
    assert list_checkpoints(tmp_path / "checkpoints")[0].stem == "epoch-0002", "an error waits for the disk"
    assert equal_states(run(tmp_path, resume=True), undisturbed)


@pytest.mark.parametrize("failing", ["epoch-0003", "epoch-0007"])
def test_a_checkpoint_that_cannot_be_written_ends_the_training(failing, tmp_path, monkeypatch, undisturbed):
    write = module._write

    def full(target, *content):
        if target.stem == failing:
            raise ResourceError("No space left on device.")
        write(target, *content)

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="No space"):
        patch.setattr(module, "_write", full)
        run(tmp_path)
    assert int(failing[-1]) - 1 == int(list_checkpoints(tmp_path / "checkpoints")[0].stem[-1])
    assert equal_states(run(tmp_path, resume=True), undisturbed)


def test_the_first_of_two_errors_is_raised(tmp_path, monkeypatch, caplog):
    def full(*content):
        raise ResourceError("No space left on device.")

    monkeypatch.setattr(module, "_write", full)
    learn = make_learner(tmp_path)
    learn.add_cb(KillAfter(1))
    with caplog.at_level(logging.WARNING), pytest.raises(Killed):
        fit(learn, frozen_epochs=0, unfrozen_epochs=2, out=tmp_path)
    assert "No space left on device." in caplog.text
