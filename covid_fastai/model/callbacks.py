"""Training callbacks: the history of steps and epochs, the stop at NaN or infinity, checkpoints and resumption."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import AvgSmoothLoss, Learner
from fastai.torch_core import get_model, num_distrib, rank_distrib, to_detach

from covid_fastai.errors import DivergenceError
from covid_fastai.model.checkpoint import Checkpoint, CheckpointWriter, random_states, restore_random, save_checkpoint
from covid_fastai.model.distributed import lowest_anywhere
from covid_fastai.model.learner_facts import facts_of
from covid_fastai.progress import FIRST, INTERVAL, ProgressLog

__all__ = [
    "BatchLog",
    "CheckpointCallback",
    "EpochLog",
    "FROZEN",
    "HistoryRecorder",
    "NonFiniteGuard",
    "PHASES",
    "Phase",
    "Record",
    "Resumption",
    "UNFROZEN",
    "copied_state",
    "smooth_loss_on_device",
]

logger = logging.getLogger("covid_fastai")

FROZEN, UNFROZEN = "frozen", "unfrozen"
PHASES = (FROZEN, UNFROZEN)
NEVER = 2**62  # as the number of a step
STEPS_BETWEEN_CHECKS = 32  # of the loss, where reading it waits for a GPU or for other processes


@dataclass(frozen=True)
class Phase:
    """One of the two training phases: its name, epochs, peak learning rates, and the number of epochs before it."""

    name: str
    epochs: int
    learning_rate: float | slice
    before: int


@dataclass
class Record:
    """The history of a training so far: one row per epoch, one entry per step."""

    history: list[dict[str, Any]] = field(default_factory=list)
    phase: list[int] = field(default_factory=list)  # index in PHASES
    learning_rate: list[float] = field(default_factory=list)
    train_loss: list[torch.Tensor] = field(default_factory=list)

    def publish(self, learn: Learner) -> None:
        """Set `learn.facts.history` and `learn.facts.steps` from the record."""
        columns = ["phase", "epoch", "train_loss", "valid_loss", *learn.metrics.attrgot("name"), "seconds"]
        facts = facts_of(learn)
        self.train_loss = read_together(self.train_loss)
        facts.history = pd.DataFrame(self.history, columns=columns)
        facts.steps = pd.DataFrame(
            {
                "step": range(1, len(self.phase) + 1),
                "phase": [PHASES[index] for index in self.phase],
                "learning_rate": self.learning_rate,
                "train_loss": [float(loss) for loss in self.train_loss],
            }
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the steps as tensors."""
        return {
            "phase": torch.tensor(self.phase, dtype=torch.uint8),
            "learning_rate": torch.tensor(self.learning_rate, dtype=torch.float64),
            "train_loss": torch.tensor([float(loss) for loss in self.train_loss], dtype=torch.float32),
        }

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> Record:
        """Return the record of a checkpoint; an empty record if there is no checkpoint."""
        if checkpoint is None:
            return cls()
        steps = checkpoint.part("steps.")
        rows = [dict(row) for row in checkpoint.facts["history"]]
        return cls(rows, steps["phase"].tolist(), steps["learning_rate"].tolist(), list(steps["train_loss"]))


class BatchLog(Callback):
    """Log the progress of long epochs and predictions.

    Args:
        work: What the batches are of; empty for the number of the epoch.
    """

    order, run_valid = 56, True

    def __init__(self, work: str = ""):
        self.work = work

    def before_train(self):
        """Begin the training part of an epoch."""
        self._begin("training")

    def before_validate(self):
        """Begin the validation part of an epoch, or a prediction."""
        self._begin("validation")

    def after_batch(self):
        """Count a batch."""
        self.progress.advance()

    def _begin(self, part: str) -> None:
        work = self.work or f"Batches of epoch {self.epoch + 1} of {self.n_epoch}, {part}"
        self.progress = ProgressLog(
            work, len(self.dl), first=FIRST if self.work else INTERVAL
        )  # an epoch has its own line


class EpochLog(Callback):
    """Log one line per epoch.

    Args:
        before: Number of epochs of earlier phases.
        epochs: Number of epochs of all phases; None for those of this fit.
        phase: The phase's name; empty to leave it out of the line.
    """

    order, run_valid = 56, False  # after Recorder (50), which computes the values

    def __init__(self, before: int = 0, epochs: int | None = None, phase: str = ""):
        self.before, self.epochs, self.phase = before, epochs, phase

    def before_epoch(self):
        """Start the clock."""
        self.started = time.perf_counter()

    def after_epoch(self):
        """Log the epoch."""
        values = [
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in zip(self.recorder.metric_names[1:], self.learn.final_record, strict=False)
            if isinstance(value, float)
        ]
        if values:  # a resumed run skips its finished epochs, which have no values
            seconds = time.perf_counter() - self.started
            epochs = self.n_epoch if self.epochs is None else self.epochs
            epoch = f"epoch {self.before + self.epoch + 1}/{epochs}" + (f" ({self.phase})" if self.phase else "")
            logger.info("%s: %s, %.0f s", epoch, ", ".join(values), seconds)


class HistoryRecorder(Callback):
    """Record every step and epoch."""

    order = 55  # after Recorder (50), which computes the values

    def __init__(self, record: Record, phase: Phase, done: int):
        self.record, self.phase, self.done = record, phase, done

    def before_epoch(self):
        """Start the clock."""
        self.started = time.perf_counter()

    def after_batch(self):
        """Record a step."""
        if self.training:
            self.record.phase.append(PHASES.index(self.phase.name))
            self.record.learning_rate.append(float(self.opt.hypers[-1]["lr"]))
            self.record.train_loss.append(self.recorder.smooth_loss.value)

    def after_epoch(self):
        """Record an epoch."""
        if self.epoch < self.done:
            return
        values = dict(zip(self.recorder.metric_names[1:], self.learn.final_record, strict=False))
        row = {"phase": self.phase.name, "epoch": self.phase.before + self.epoch + 1, **values}
        self.record.history.append(row | {"seconds": round(time.perf_counter() - self.started, 3)})
        self.record.publish(self.learn)
        self.recorder.losses = read_together(self.recorder.losses)  # fastai's plots need them on the CPU


class NonFiniteGuard(Callback):
    """Stop at the first NaN or infinite value, and keep a copy of the model after the last good epoch."""

    order = 54  # after Recorder (50) and mixed precision (10), before HistoryRecorder (55) records a bad epoch

    def __init__(self, learn: Learner, epoch: int):
        self.good, self.good_epoch = copied_state(learn), epoch

    def restore(self, learn: Learner) -> str:
        """Restore the copied model and return a sentence about it."""
        get_model(learn.model).load_state_dict(self.good)
        state = f"after epoch {self.good_epoch}" if self.good_epoch else "before the first epoch"
        return f"The model was restored to its state {state}."

    def _fail(self, reason: str, step: int | None = None) -> None:
        epoch, step = self.good_epoch + 1, self.iter + 1 if step is None else step
        raise DivergenceError(
            f"Training diverged in epoch {epoch}, step {step}: {reason}.",
            hint="Use a smaller learning_rate, or set gradient_clip.",
            details=[{"epoch": epoch, "step": step, "reason": reason}],
        )

    def _stop_everywhere(self, reason: str) -> None:
        """Raise in every process of the training if one of them has a reason; else the others would wait for it."""
        if lowest_anywhere(0 if reason else 1) == 0:  # guard: stop_everywhere
            self._fail(reason or "the same in another process")

    def before_train(self):
        """Begin an epoch without losses."""
        self.losses = {}

    def after_loss(self):
        """Check the loss: on one CPU before the optimiser step, elsewhere now and then, since reading it waits."""
        if not self.training:
            return
        self.losses[self.iter + 1] = self.loss.detach().mean()
        alone = self.loss.device.type == "cpu" and num_distrib() < 2
        if alone or len(self.losses) >= STEPS_BETWEEN_CHECKS:
            self._check_losses()

    def _check_losses(self) -> None:
        """Stop at the first step, in any process, whose loss was NaN or infinite."""
        values = dict(zip(self.losses, map(float, read_together(self.losses.values())), strict=True))
        self.losses = {}
        step = lowest_anywhere(min((step for step, value in values.items() if not math.isfinite(value)), default=NEVER))
        if step < NEVER:  # guard: guard_loss
            here = values.get(step, 0.0)
            self._fail(f"the loss is {'NaN or infinite in another process' if math.isfinite(here) else here}", step)

    def after_train(self):
        """Check the losses that were not yet read, and the weights."""
        self._check_losses()
        state = get_model(self.model).state_dict()
        finite = read_together(tensor.isfinite().all() for tensor in state.values())
        name = next((name for name, good in zip(state, finite, strict=True) if not bool(good)), "")
        self._stop_everywhere(f"the weight {name} is NaN or infinite" if name else "")

    def after_epoch(self):
        """Check the validation loss, and copy the model after a good epoch."""
        loss = next(iter(self.learn.final_record[1:]), None)
        wrong = self.learn.final_record and loss is not None and not math.isfinite(loss)
        self._stop_everywhere(f"the validation loss is {loss}" if wrong else "")
        if self.learn.final_record:
            self.good, self.good_epoch = copied_state(self.learn), self.good_epoch + 1


class CheckpointCallback(Callback):
    """Write a checkpoint after every epoch."""

    order = 95  # last, so that the checkpoint has the effects of all other callbacks

    def __init__(self, writer: CheckpointWriter, record: Record, phase: Phase, folder: Path, config: dict[str, Any]):
        self.writer, self.record, self.phase, self.folder, self.config = writer, record, phase, folder, config

    def after_epoch(self):
        """Begin to write the checkpoint, in the main process, with the random states of all."""
        if not self.learn.final_record:
            return
        random = random_states(self.learn)
        if rank_distrib():
            return
        done = self.epoch + 1
        save_checkpoint(
            self.writer,
            self.learn,
            self.folder,
            phase=self.phase.name,
            done=done,
            epoch=self.phase.before + done,
            config=self.config,
            history=self.record.history,
            steps=self.record.tensors(),
            random=random,
        )


class Resumption(Callback):
    """Continue a phase from a checkpoint: random states, smoothed loss and the recorder's state."""

    order = 94  # after every callback that resets itself in before_fit, before CheckpointCallback

    def __init__(self, checkpoint: Checkpoint, done: int):
        self.checkpoint, self.done, self.waiting = checkpoint, done, True

    def before_fit(self):
        """Silence fastai's table of epochs while the finished epochs are skipped."""
        self.epoch_logger, self.learn.logger = self.learn.logger, _discard
        if self.done:
            self._restore_recorder()

    def _restore_recorder(self) -> None:
        facts, recorder = self.checkpoint.facts, self.recorder
        recorder.smooth_loss.count = facts["recorder"]["count"]
        recorder.smooth_loss.val = self.checkpoint.tensors["recorder.value"].clone()
        if facts["scaler"] and getattr(self.learn, "scaler", None) is not None:
            self.learn.scaler.load_state_dict(facts["scaler"])

    def before_train(self):
        """Restore logger, recorder and random states before the first epoch that is not finished."""
        if not self.waiting:
            return
        self.waiting, self.learn.logger = False, self.epoch_logger
        self.recorder.values, self.recorder.iters = [], []
        restore_random(self.learn, self.checkpoint)


def _discard(*_: Any) -> None:
    """Do nothing, in place of a logger."""


def copied_state(learn: Learner) -> dict[str, torch.Tensor]:
    """Return a copy of the model's weights and buffers on the CPU."""
    state = get_model(learn.model).state_dict()
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}


class _SmoothLossOnDevice(AvgSmoothLoss):
    """fastai's smoothed loss, kept where the loss is; fastai's own waits for a GPU in each step, to copy the loss."""

    def accumulate(self, learn):
        """Add the loss of a step."""
        loss = to_detach(learn.loss.mean(), cpu=False)
        self.count += 1
        self.val = torch.lerp(loss, self.val.to(loss.device), self.beta)


@contextmanager
def smooth_loss_on_device(learn: Learner) -> Iterator[None]:
    """Smooth the training loss on the device of the training during a `with` block."""
    previous = learn.recorder.smooth_loss
    if type(previous) is not AvgSmoothLoss:  # another one of the user's
        yield
        return
    current = _SmoothLossOnDevice(beta=previous.beta)
    # in the recorder itself: fastai warns where a callback gets an attribute that the learner has too
    vars(learn.recorder)["smooth_loss"] = current
    try:
        yield
    finally:
        vars(learn.recorder)["smooth_loss"] = previous
        previous.count, previous.val = current.count, current.val.cpu()


def read_together(values: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors without dimensions on the CPU; those of a device, which is one, are copied at once."""
    result = list(values)
    away = [place for place, value in enumerate(result) if value.device.type != "cpu"]
    if away:
        for place, value in zip(away, torch.stack([result[place] for place in away]).cpu().unbind(), strict=True):
            result[place] = value
    return result
