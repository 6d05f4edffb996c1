"""The schedule: the frozen body, the learning rates, the recorded history, and the stop at divergence."""

from __future__ import annotations

import hashlib
import logging
import math
import weakref
from contextlib import contextmanager

import numpy as np
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

from covid_fastai.errors import DataError, DivergenceError, ResourceError, UsageError
from covid_fastai.model import schedule
from covid_fastai.model.callbacks import STEPS_BETWEEN_CHECKS, BatchLog, EpochLog
from covid_fastai.model.learner_facts import LearnerFacts
from covid_fastai.model.schedule import fit, is_out_of_memory
from covid_fastai.model.weights import Weights
from tests.simulated_device import DEVICE, SimulatedDevice

STEPS = 7  # batches in an epoch


def make_learner(tmp_path, *, name="imagenet", images=28, side=8, callbacks=()) -> Learner:
    """Return a small network whose body has two groups and BatchNorm, on noise whose mean depends on the class."""
    numbers = np.random.default_rng(0)
    y = torch.tensor(numbers.integers(0, 2, images + 12))
    x = torch.tensor(numbers.normal(size=(images + 12, 1, side, side)), dtype=torch.float32) + y[:, None, None, None]
    items = list(zip(x, y, strict=True))
    with no_random(0):
        loaders = [DataLoader(items[:images], bs=4, shuffle=True, drop_last=True), DataLoader(items[images:], bs=4)]
        body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    learn = Learner(
        DataLoaders(*loaders, path=tmp_path),
        nn.Sequential(body, head),
        loss_func=CrossEntropyLossFlat(),
        metrics=accuracy,
        splitter=lambda m: [params(m[0][:3]), params(m[0][3:]), params(m[1])],
        cbs=list(callbacks),
    )
    learn.facts = LearnerFacts("", Weights(name, None, 0.5, 0.25, "", "", "tiny"))
    return learn


def digest(module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in module.state_dict().values())).hexdigest()


class Digests(Callback):
    """Record digests of the body and the head after each epoch, and the learning rates at each step."""

    def before_fit(self):
        self.learn.noted = getattr(self.learn, "noted", [])
        self.learn.rates = getattr(self.learn, "rates", [])

    def after_batch(self):
        if self.training:
            self.learn.rates.append([hyper["lr"] for hyper in self.opt.hypers])

    def after_epoch(self):
        self.learn.noted.append((digest(self.model[0]), digest(self.model[1])))


def test_the_frozen_body_stays_bit_identical(tmp_path):
    learn = make_learner(tmp_path, callbacks=[Digests()])
    body = digest(learn.model[0])
    fit(learn, frozen_epochs=3, unfrozen_epochs=2)
    bodies, heads = zip(*learn.noted, strict=True)
    assert bodies[:3] == (body,) * 3 and len(set(bodies)) == 3 and len(set(heads)) == 5


def test_learning_rates_are_one_cycle_and_discriminative(tmp_path):
    learn = make_learner(tmp_path, callbacks=[Digests()])
    fit(learn, frozen_epochs=2, unfrozen_epochs=3, learning_rate=0.02, unfrozen_learning_rate=0.01)
    rates = np.array(learn.rates)
    head, unfrozen = rates[:, -1], rates[2 * STEPS :]
    assert head[0] == pytest.approx(0.02 / 25) and head[: 2 * STEPS].max() == pytest.approx(0.02, rel=0.05)
    assert head[2 * STEPS] == pytest.approx(0.01 / 5) and head[2 * STEPS :].max() == pytest.approx(0.01, rel=0.05)
    assert np.allclose(unfrozen[:, -1] / unfrozen[:, 0], 100) and np.allclose(unfrozen[:, -1] / unfrozen[:, 1], 10)
    assert head[-1] < 0.01 / 50


@pytest.mark.parametrize(("name", "lr_ratio", "ratio"), [("random", None, 1), ("imagenet", 9.0, 9)])
def test_random_weights_have_one_learning_rate(name, lr_ratio, ratio, tmp_path):
    learn = make_learner(tmp_path, name=name, callbacks=[Digests()])
    fit(learn, frozen_epochs=0, unfrozen_epochs=1, learning_rate=0.02, lr_ratio=lr_ratio)
    rates = np.array(learn.rates)
    assert np.allclose(rates[:, -1] / rates[:, 0], ratio) and rates.max() < 0.0101, "half of learning_rate"


class Sides(Callback):
    """Record every batch: (frozen or not, training or not, epoch, side in pixels)."""

    order = 50

    def before_batch(self):
        frozen = not next(self.model.parameters()).requires_grad
        self.learn.seen_sides = {
            *getattr(self.learn, "seen_sides", ()),
            (frozen, self.training, self.epoch, self.x.shape[-1]),
        }


def test_the_first_unfrozen_epochs_use_smaller_images(tmp_path):
    learn = make_learner(tmp_path, side=40, callbacks=[Sides()])
    fit(learn, frozen_epochs=1, unfrozen_epochs=3, initial_image_size=32)
    small = {(frozen, training, epoch) for frozen, training, epoch, side in learn.seen_sides if side == 32}
    assert small == {(False, True, 0)}, "half of three epochs, rounded down; validation never"
    assert {side for *_, side in learn.seen_sides} == {32, 40}


def test_training_reduces_the_loss_and_records_its_history(tmp_path, caplog, capsys):
    learn = make_learner(tmp_path)
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        fit(learn, frozen_epochs=2, unfrozen_epochs=4, learning_rate=0.02)
    history, steps = learn.facts.history, learn.facts.steps
    assert list(history) == ["phase", "epoch", "train_loss", "valid_loss", "accuracy", "seconds"]
    assert list(history["phase"]) == ["frozen"] * 2 + ["unfrozen"] * 4 and list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
    assert history["valid_loss"].iloc[-1] < history["valid_loss"].iloc[0] and (history["seconds"] >= 0).all()
    assert list(steps) == ["step", "phase", "learning_rate", "train_loss"] and len(steps) == 6 * STEPS
    assert list(steps["step"]) == list(range(1, 6 * STEPS + 1)) and steps["train_loss"].notna().all()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch ")]
    assert len(lines) == 6 and lines[2].startswith("epoch 3/6 (unfrozen): train loss ") and "accuracy" in lines[2]
    assert capsys.readouterr().out == ""
    with learn.no_bar():
        assert history["accuracy"].iloc[-1] == pytest.approx(float(learn.validate()[1]))


@pytest.mark.parametrize(("frozen", "unfrozen"), [(1, 0), (0, 1)])
def test_either_phase_can_be_skipped(frozen, unfrozen, tmp_path):
    learn = make_learner(tmp_path)
    fit(learn, frozen_epochs=frozen, unfrozen_epochs=unfrozen)
    assert list(learn.facts.history["phase"]) == ["frozen" if frozen else "unfrozen"]


def test_a_second_fit_starts_a_new_history(tmp_path):
    learn = make_learner(tmp_path)
    fit(learn, frozen_epochs=1, unfrozen_epochs=1)
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert (
        len(learn.facts.history) == 1
        and learn.fit_one_cycle
        and sum(type(c).__name__ == "FrozenBody" for c in learn.cbs) == 1
    )


def test_epoch_log_works_alone(tmp_path, caplog):
    learn = make_learner(tmp_path)
    with caplog.at_level(logging.INFO, logger="covid_fastai"), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, cbs=EpochLog())
    assert [record.getMessage()[:10] for record in caplog.records] == ["epoch 1/2:", "epoch 2/2:"]


def test_long_epochs_and_predictions_log_their_batches(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("covid_fastai.progress.INTERVAL", 0.0)
    learn = make_learner(tmp_path)
    with caplog.at_level(logging.INFO, logger="covid_fastai"), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, cbs=BatchLog())
        learn.get_preds(cbs=BatchLog("Batches predicted"))
    lines = [record.getMessage().split(",")[:2] for record in caplog.records]
    assert ["Batches of epoch 1 of 1", f" training: 1 of {STEPS}"] == lines[0]
    assert lines[-1][0] == f"Batches predicted: {len(learn.dls.valid) - 1} of {len(learn.dls.valid)}"


class Poison(Callback):
    """Make the loss, a weight or the validation loss NaN or infinite at a given epoch."""

    order = 20

    def __init__(self, what, epoch, value=math.nan):
        self.what, self.at, self.value, self.epochs_done = what, epoch, value, 0

    def after_pred(self):
        on = self.epochs_done == self.at and self.iter == 2
        if on and (self.training, self.what) in ((True, "loss"), (False, "valid")):
            self.learn.pred = self.pred * self.value

    def after_step(self):
        if self.what == "weight" and self.epochs_done == self.at and self.iter == 2:
            self.model[1][-1].bias.data[0] = self.value

    def after_epoch(self):
        self.epochs_done += 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "weight", "valid"])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_divergence_stops_and_restores_the_last_good_model(what, epoch, value, tmp_path):
    learn = make_learner(tmp_path, callbacks=[Digests(), Poison(what, epoch, value)])
    before = digest(learn.model[0]), digest(learn.model[1])
    which = f"restored to its state after epoch {epoch}" if epoch else "before the first epoch"
    with pytest.raises(DivergenceError, match=f"in epoch {epoch + 1}, step .*{which}") as caught:
        fit(learn, frozen_epochs=2, unfrozen_epochs=3)
    good = before if epoch == 0 else learn.noted[epoch - 1]
    assert (digest(learn.model[0]), digest(learn.model[1])) == good
    assert len(learn.facts.history) == epoch and learn.facts.history.drop(columns="phase").notna().all().all()
    assert caught.value.details[0]["epoch"] == epoch + 1 and "learning_rate" in caught.value.hint
    assert caught.value.details[0]["step"] == 3 or what != "loss"
    learn.remove_cb(learn.poison)
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert learn.facts.history["valid_loss"].notna().all()


def test_a_too_large_learning_rate_diverges(tmp_path):
    learn = make_learner(tmp_path)
    with pytest.raises(DivergenceError):
        fit(learn, frozen_epochs=0, unfrozen_epochs=3, learning_rate=1e38, lr_ratio=1)
    assert all(bool(tensor.isfinite().all()) for tensor in learn.model.state_dict().values())


def test_training_can_continue_after_divergence(tmp_path):
    learn = make_learner(tmp_path, callbacks=[Poison("loss", 0)])
    fit(learn, frozen_epochs=0, unfrozen_epochs=1, stop_on_divergence=False, out=tmp_path / "c")
    assert learn.facts.history["train_loss"].isna().all()
    resumed = make_learner(tmp_path)
    fit(resumed, frozen_epochs=0, unfrozen_epochs=1, out=tmp_path / "c", resume=True)
    assert resumed.facts.history["train_loss"].isna().all(), "NaN survives a checkpoint"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"frozen_epochs": 0, "unfrozen_epochs": 0}, "both 0"),
        ({"frozen_epochs": -1}, "frozen_epochs=-1"),
        ({"unfrozen_epochs": 1.5}, "unfrozen_epochs=1.5"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"unfrozen_learning_rate": -1e-3}, "unfrozen_learning_rate=-0.001"),
        ({"lr_ratio": 0.5}, "lr_ratio=0.5"),
        ({"initial_image_size": 16}, "initial_image_size=16"),
    ],
)
def test_options_that_are_not_allowed(option, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        fit(make_learner(tmp_path), **option)


def test_too_few_images_is_an_error_and_no_validation_a_warning(tmp_path, caplog):
    with pytest.raises(DataError, match="3 training images do not fill one batch of 4"):
        fit(make_learner(tmp_path, images=3))
    learn = make_learner(tmp_path)
    learn.dls.valid = DataLoader([], bs=4)
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert "no validation images" in caplog.text and learn.facts.history["valid_loss"].isna().all()


class PlacesOfState(Callback):
    """Record where the parameters and the state of the optimiser are at each step."""

    def before_step(self):
        values = [value for *_, state, _ in self.opt.all_params() for value in state.values()]
        tensors = [*self.model.parameters(), *filter(torch.is_tensor, values)]
        self.learn.places = getattr(self.learn, "places", set()) | {tensor.device for tensor in tensors}


@pytest.mark.filterwarnings("ignore:for .*meta parameter in the current model")  # it has no values to load
@pytest.mark.parametrize("kill_after", [1, 3])
def test_a_resumed_training_continues_on_the_device_of_its_loaders(kill_after, tmp_path):
    class Killed(Callback):
        order, left = 99, kill_after

        def after_epoch(self):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    options = {"frozen_epochs": 2, "unfrozen_epochs": 2, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        fit(make_learner(tmp_path, callbacks=[Killed()]), **options)
    learn = make_learner(tmp_path, callbacks=[PlacesOfState()])
    learn.dls.to(DEVICE)  # as if the CPU's checkpoint were resumed on a GPU
    with SimulatedDevice():
        fit(learn, resume=True, **options)
    assert learn.places == {DEVICE} and len(learn.facts.history) == 4


class Held(torch.autograd.Function):
    """Hold an object in the graph, as activations are held on a device."""

    @staticmethod
    def forward(ctx, x, held):
        ctx.memory = Memory()
        held.append(weakref.ref(ctx.memory))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Memory:
    """What a step occupies."""


def test_halving_the_batch_frees_the_memory_of_the_failed_step(tmp_path):
    held, alive = [], []

    class Fills(Callback):  # like each callback, it keeps its learner
        def before_backward(self):
            if len(self.xb[0]) == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. (pretended)")

        def before_train(self):
            alive.append(sum(reference() is not None for reference in held))

    learn = make_learner(tmp_path, callbacks=[Fills()])
    learn.model[1].register_forward_hook(lambda module, inputs, output: Held.apply(output, held))
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert learn.dls.train.bs == 2 and alive == [0, 0] and len(held) > 2


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("MPS backend out of memory (MPS allocated: 17.90 GB)", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("cuFFT error: CUFFT_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("FIND was unable to find an engine to execute this computation", True),
        ("Invalid buffer size: 17.58 GiB", True),
        ("XPU out of memory. Tried to allocate 2.00 GiB", True),
        ("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", True),
        ("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)", True),
        ("HIP out of memory. Tried to allocate 2.00 GiB", True),
        ("miopenStatusAllocFailed", True),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`", False),
        ("out of resource: shared memory, Required: 131072, Hardware limit: 101376", False),
        ("CUDA error: too many resources requested for launch", False),
    ],
)
def test_a_library_that_cannot_allocate_is_out_of_memory(text, memory):
    assert is_out_of_memory(RuntimeError(text)) == memory


def test_a_process_of_several_does_not_go_on_alone_with_half_of_the_batch(tmp_path, monkeypatch):
    @contextmanager
    def with_others(learn):
        try:
            yield
        finally:
            monkeypatch.setenv("WORLD_SIZE", "1")  # as `data_parallel` does, so that the main process can go on

    class Full(Callback):
        def before_batch(self):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    learn = make_learner(tmp_path, callbacks=[Full()])
    monkeypatch.setattr(schedule, "data_parallel", with_others)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "batch size of 4: CUDA out of memory. Tried to allocate"
    with pytest.raises(ResourceError, match=message):
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert learn.dls.train.bs == 4


@pytest.mark.filterwarnings("ignore:for .*meta parameter in the current model")
@pytest.mark.slow
def test_a_step_neither_copies_to_the_device_nor_waits_for_it(tmp_path):
    counts = []
    for images in (28, 28 + 4 * STEPS_BETWEEN_CHECKS // 2):
        learn = make_learner(tmp_path, images=images)
        learn.dls.to(DEVICE)
        with SimulatedDevice() as device:
            fit(learn, frozen_epochs=0, unfrozen_epochs=1)
        batches = len(learn.dls.train)
        counts.append((batches, device.counts["to"] - 2 * batches, device.counts["from"]))
    assert counts[1][0] == counts[0][0] + STEPS_BETWEEN_CHECKS // 2
    assert counts[1][1:] == counts[0][1:], "besides the images and targets of a batch"


@pytest.mark.parametrize("step", [2, STEPS_BETWEEN_CHECKS + 3])
def test_the_step_of_a_divergence_is_known_though_it_is_read_later(step, tmp_path, monkeypatch):
    class Breaks(Callback):
        order, last = 20, 0

        def after_loss(self):
            if self.training:
                self.last = self.train_iter + 1
                self.learn.loss = self.loss * (math.nan if self.last == step else 1)

    monkeypatch.setattr("covid_fastai.model.callbacks.num_distrib", lambda: 2)  # as in several processes
    learn = make_learner(tmp_path, images=4 * (STEPS_BETWEEN_CHECKS + 8), callbacks=[Breaks()])
    with pytest.raises(DivergenceError, match=f"in epoch 1, step {step}: the loss is nan"):
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert learn.breaks.last == (STEPS_BETWEEN_CHECKS if step == 2 else STEPS_BETWEEN_CHECKS + 8)


def test_the_recorder_has_its_own_smooth_loss_after_a_training(tmp_path):
    learn = make_learner(tmp_path)
    before = learn.recorder.smooth_loss
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert learn.recorder.smooth_loss is before and before.count == STEPS
    assert float(before.value) == pytest.approx(learn.facts.steps["train_loss"].iloc[-1])
