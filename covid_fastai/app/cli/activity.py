"""A line on the terminal that says what a command is doing and for how long, whenever nothing else is printed."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from covid_fastai.progress import LIVE

__all__ = ["Activity"]

PERIOD = 1.0  # seconds between two updates; a spinner of more would take time from the work


class Activity(logging.Handler):
    """Show the current step of the log and the seconds since it began, on a line that is overwritten.

    A log line begins a new step; the log of `covid_fastai.progress.LIVE` replaces the text of the line.

    Args:
        console: The console of the terminal.
    """

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self._text, self._since = "", time.monotonic()
        self._live: Live | None = None
        self._drawing = threading.Lock()
        self._ended = threading.Event()
        if hasattr(os, "register_at_fork"):
            # a process that is forked while the line is drawn would inherit a lock of the console that nobody releases
            hold, release = self._drawing.acquire, self._drawing.release
            os.register_at_fork(before=hold, after_in_parent=release, after_in_child=self._forget)
        atexit.register(self.stop)

    def start(self) -> None:
        """Show the line from now on."""
        if self._live is None:
            self._since = time.monotonic()
            self._live = Live(
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,  # results do not go to standard error
                redirect_stderr=False,
            )
            self._live.start()
            self._ended = threading.Event()
            threading.Thread(target=self._tick, args=(self._ended,), daemon=True).start()

    def stop(self) -> None:
        """Remove the line."""
        self._ended.set()
        with self._drawing:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def emit(self, record: logging.LogRecord) -> None:
        """Begin a new step, or say how far it is; an empty text says that it is done."""
        if record.name == LIVE.name and record.getMessage():
            self._text = record.getMessage()
        else:
            self._text, self._since = "", time.monotonic()

    def _tick(self, ended: threading.Event) -> None:
        while not ended.wait(PERIOD):
            with self._drawing:
                if self._live is not None:
                    seconds = time.monotonic() - self._since
                    line = f"{self._text or 'Working'} ({seconds:.0f} s)"
                    text = Text(line, style="dim", overflow="ellipsis", no_wrap=True)
                    self._live.update(text, refresh=True)

    def _forget(self) -> None:
        """In a forked process, which has no thread that draws."""
        self._live = None
        self._drawing.release()
