"""Callbacks of a training: records of steps and epochs, the stop at NaN or infinity, checkpoints and resumption."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import get_model, rank_distrib

from covid_fastai.errors import DivergenceError
from covid_fastai.model.checkpoint import Checkpoint, restore_random, save_checkpoint
from covid_fastai.model.learner_facts import facts_of

__all__ = [
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
]

logger = logging.getLogger("covid_fastai")

FROZEN, UNFROZEN = "frozen", "unfrozen"
PHASES = (FROZEN, UNFROZEN)


@dataclass(frozen=True)
class Phase:
    """One of the two one-cycles: its name, epochs, peak learning rates, and the epochs before it."""

    name: str
    epochs: int
    learning_rate: float | slice
    before: int


@dataclass
class Record:
    """What training has left so far: a row an epoch, a row a step."""

    history: list[dict[str, Any]] = field(default_factory=list)
    phase: list[int] = field(default_factory=list)  # index in PHASES
    learning_rate: list[float] = field(default_factory=list)
    train_loss: list[torch.Tensor] = field(default_factory=list)

    def publish(self, learn: Learner) -> None:
        """Show the record as `learn.facts.history` and `learn.facts.steps`."""
        columns = ["phase", "epoch", "train_loss", "valid_loss", *learn.metrics.attrgot("name"), "seconds"]
        facts = facts_of(learn)
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
        """Return the record that a checkpoint holds; an empty one without a checkpoint."""
        if checkpoint is None:
            return cls()
        steps = checkpoint.part("steps.")
        rows = [dict(row) for row in checkpoint.facts["history"]]
        return cls(rows, steps["phase"].tolist(), steps["learning_rate"].tolist(), list(steps["train_loss"]))


class EpochLog(Callback):
    """Log a line an epoch.

    Args:
        before: Epochs of earlier phases, counted in.
        epochs: How many there are in all; those of this fit if None.
        phase: The phase's name, if it is to be said.
    """

    order, run_valid = 56, False  # after Recorder (50) has the numbers

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
        if values:  # a resumed run passes its earlier epochs by, without any
            seconds = time.perf_counter() - self.started
            epochs = self.n_epoch if self.epochs is None else self.epochs
            epoch = f"epoch {self.before + self.epoch + 1}/{epochs}" + (f" ({self.phase})" if self.phase else "")
            logger.info("%s: %s, %.0f s", epoch, ", ".join(values), seconds)


class HistoryRecorder(Callback):
    """Write down every step and epoch."""

    order = 55  # after Recorder (50) has the numbers

    def __init__(self, record: Record, phase: Phase, done: int):
        self.record, self.phase, self.done = record, phase, done

    def before_epoch(self):
        """Start the clock and remember where the steps stand."""
        self.started = time.perf_counter()

    def after_batch(self):
        """Write down a step."""
        if self.training:
            self.record.phase.append(PHASES.index(self.phase.name))
            self.record.learning_rate.append(float(self.opt.hypers[-1]["lr"]))
            self.record.train_loss.append(self.recorder.smooth_loss.value)

    def after_epoch(self):
        """Write down an epoch."""
        if self.epoch < self.done:
            return
        values = dict(zip(self.recorder.metric_names[1:], self.learn.final_record, strict=False))
        row = {"phase": self.phase.name, "epoch": self.phase.before + self.epoch + 1, **values}
        self.record.history.append(row | {"seconds": round(time.perf_counter() - self.started, 3)})
        self.record.publish(self.learn)


class NonFiniteGuard(Callback):
    """Stop at the first number that is none, and keep the model of the last good epoch to go back to."""

    order = 54  # after Recorder (50) and mixed precision (10), before the journal (55) writes down a bad epoch

    def __init__(self, learn: Learner, epoch: int):
        self.good, self.good_epoch = copied_state(learn), epoch

    def restore(self, learn: Learner) -> str:
        """Put the kept model back and say which one it is."""
        get_model(learn.model).load_state_dict(self.good)
        which = f"after epoch {self.good_epoch}" if self.good_epoch else "before the first epoch"
        return f"The model is again as it was {which}."

    def _fail(self, what: str) -> None:
        epoch, step = self.good_epoch + 1, self.iter + 1
        raise DivergenceError(
            f"Training left the numbers in epoch {epoch}, step {step}: {what}.",
            hint="Take a smaller learning_rate, or set gradient_clip.",
            details=[{"epoch": epoch, "step": step, "reason": what}],
        )

    def after_loss(self):
        """Check the loss before it reaches the weights."""
        if self.training and not bool(self.loss.isfinite().all()):  # guard: guard_loss
            self._fail(f"the loss is {float(self.loss.detach().mean())}")

    def after_train(self):
        """Check the weights."""
        for name, tensor in get_model(self.model).state_dict().items():
            if not bool(tensor.isfinite().all()):
                self._fail(f"{name} holds NaN or infinity")

    def after_epoch(self):
        """Check the validation loss and keep a good epoch's model."""
        loss = next(iter(self.learn.final_record[1:]), None)
        if self.learn.final_record and loss is not None and not math.isfinite(loss):
            self._fail(f"the validation loss is {loss}")
        if self.learn.final_record:
            self.good, self.good_epoch = copied_state(self.learn), self.good_epoch + 1


class CheckpointCallback(Callback):
    """Write a checkpoint after every epoch."""

    order = 95  # last, so that it holds what every other callback has done

    def __init__(self, record: Record, phase: Phase, folder: Path, config: dict[str, Any]):
        self.record, self.phase, self.folder, self.config = record, phase, folder, config

    def after_epoch(self):
        """Write the checkpoint."""
        if rank_distrib() or not self.learn.final_record:
            return
        done = self.epoch + 1
        save_checkpoint(
            self.learn,
            self.folder,
            phase=self.phase.name,
            done=done,
            epoch=self.phase.before + done,
            config=self.config,
            history=copy.deepcopy(self.record.history),
            steps=self.record.tensors(),
        )


class Resumption(Callback):
    """Take up a phase where a checkpoint left it: random states, smoothed loss and what the recorder knows."""

    order = 94  # after every callback that starts afresh in before_fit, before CheckpointCallback

    def __init__(self, checkpoint: Checkpoint, done: int):
        self.checkpoint, self.done, self.waiting = checkpoint, done, True

    def before_fit(self):
        """Silence the table while the epochs that are done are passed by."""
        self.kept_logger, self.learn.logger = self.learn.logger, _say_nothing
        if self.done:
            self._restore_recorder()

    def _restore_recorder(self) -> None:
        facts, recorder = self.checkpoint.facts, self.recorder
        recorder.smooth_loss.count = facts["recorder"]["count"]
        recorder.smooth_loss.val = self.checkpoint.tensors["recorder.value"].clone()
        if facts["scaler"] and getattr(self.learn, "scaler", None) is not None:
            self.learn.scaler.load_state_dict(facts["scaler"])

    def before_train(self):
        """Let the first epoch that is not done begin as it would have."""
        if not self.waiting:
            return
        self.waiting, self.learn.logger = False, self.kept_logger
        self.recorder.values, self.recorder.iters = [], []
        restore_random(self.learn, self.checkpoint)


def _say_nothing(*_: Any) -> None:
    """Take the place of a logger."""


def copied_state(learn: Learner) -> dict[str, torch.Tensor]:
    """Return a copy of the model's weights and buffers on the CPU."""
    state = get_model(learn.model).state_dict()
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}
