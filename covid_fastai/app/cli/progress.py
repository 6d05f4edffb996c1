"""A progress bar for terminals, where the bar of fastai prints broken lines."""

from __future__ import annotations

from fastai.callback.core import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from covid_fastai.app.cli.activity import Activity

__all__ = ["TerminalProgress"]


class TerminalProgress(Callback):
    """Show one bar per epoch with the smoothed training loss, below the lines of the completed epochs.

    Args:
        activity: The line of the terminal, which the bar replaces meanwhile.
    """

    order = 60  # after Recorder (50), whose smoothed loss it shows
    run_valid = True

    def __init__(self, activity: Activity):
        self.activity, self.bar = activity, None

    def before_fit(self):
        """Open the bar, except for `lr_find` and predictions."""
        if hasattr(self.learn, "lr_finder") or hasattr(self.learn, "gather_preds"):
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.activity.console, transient=True)
        self.activity.stop()
        self.bar.start()
        self.task = self.bar.add_task("")

    def before_train(self):
        """Reset the bar for the training part of an epoch."""
        self._reset("training")

    def before_validate(self):
        """Reset the bar for the validation part of an epoch."""
        self._reset("validation")

    def after_batch(self):
        """Advance the bar by one batch."""
        if self.bar is not None:
            loss = f", loss {float(self.recorder.smooth_loss.value):.3f}" if self.training else ""
            self.bar.update(self.task, advance=1, description=f"{self._description}{loss}")

    def after_fit(self):
        """Close the bar after training."""
        self.close()

    def after_cancel_fit(self):
        """Close the bar after a cancelled training."""
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal; call this after an error, for which fastai calls no `after_fit`."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
            self.activity.start()

    def _reset(self, part: str) -> None:
        if self.bar is not None:
            phase = "frozen" if self.opt.frozen_idx else "unfrozen"
            self._description = f"{phase} epoch {self.epoch + 1}/{self.n_epoch}, {part}"
            self.bar.reset(self.task, total=len(self.dl), description=self._description)
