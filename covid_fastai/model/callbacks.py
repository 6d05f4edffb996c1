"""Training callbacks: the history of steps and epochs, the stop at NaN or infinity, checkpoints and resumption."""

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

    def _fail(self, reason: str) -> None:
        epoch, step = self.good_epoch + 1, self.iter + 1
        raise DivergenceError(
            f"Training diverged in epoch {epoch}, step {step}: {reason}.",
            hint="Use a smaller learning_rate, or set gradient_clip.",
            details=[{"epoch": epoch, "step": step, "reason": reason}],
        )

    def after_loss(self):
        """Check the loss before the optimiser step, which would change the weights."""
        if self.training and not bool(self.loss.isfinite().all()):  # guard: guard_loss
            self._fail(f"the loss is {float(self.loss.detach().mean())}")

    def after_train(self):
        """Check the weights."""
        for name, tensor in get_model(self.model).state_dict().items():
            if not bool(tensor.isfinite().all()):
                self._fail(f"the weight {name} is NaN or infinite")

    def after_epoch(self):
        """Check the validation loss, and copy the model after a good epoch."""
        loss = next(iter(self.learn.final_record[1:]), None)
        if self.learn.final_record and loss is not None and not math.isfinite(loss):
            self._fail(f"the validation loss is {loss}")
        if self.learn.final_record:
            self.good, self.good_epoch = copied_state(self.learn), self.good_epoch + 1


class CheckpointCallback(Callback):
    """Write a checkpoint after every epoch."""

    order = 95  # last, so that the checkpoint has the effects of all other callbacks

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
