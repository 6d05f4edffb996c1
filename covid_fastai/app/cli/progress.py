"""A progress bar for a terminal: fastai's own prints broken lines outside notebooks."""

from __future__ import annotations

from fastai.callback.core import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TerminalProgress"]


class TerminalProgress(Callback):
    """Show one bar an epoch, with the smoothed training loss; the line of each epoch stays above it.

    Args:
        console: The terminal.
    """

    order = 60  # after Recorder (50), whose smoothed loss it shows
    run_valid = True

    def __init__(self, console: Console):
        self.console, self.bar = console, None

    def before_fit(self):
        """Open the bar; not for the short runs of lr_find and predictions."""
        if hasattr(self.learn, "lr_finder") or hasattr(self.learn, "gather_preds"):
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.bar.start()
        self.task = self.bar.add_task("")

    def before_train(self):
        """Begin an epoch."""
        self._begin("training")

    def before_validate(self):
        """Begin its validation."""
        self._begin("validation")

    def after_batch(self):
        """Move on by a batch."""
        if self.bar is not None:
            loss = f", loss {float(self.recorder.smooth_loss.value):.3f}" if self.training else ""
            text = f"{self._what}{loss}"
            self.bar.update(self.task, advance=1, description=text)

    def after_fit(self):
        """Close the bar."""
        self.close()

    def after_cancel_fit(self):
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal; also for an error, which fastai's own end is not called for."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _begin(self, what: str) -> None:
        if self.bar is not None:
            phase = "frozen" if self.opt.frozen_idx else "unfrozen"
            self._what = f"{phase} epoch {self.epoch + 1}/{self.n_epoch}, {what}"
            self.bar.reset(self.task, total=len(self.dl), description=self._what)
