"""What a command is doing and for how long, whenever nothing else is printed: a line on a terminal, or a log."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from covid_fastai.progress import FIRST, INTERVAL, LIVE

__all__ = ["Activity", "Heartbeat"]

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


class Heartbeat(logging.Handler):
    """Log the current step whenever a log would be silent: after 3 seconds, 6, 12 and so on, then every 30.

    While `ProgressLog` counts, its own lines say how far it is.

    Args:
        log: The handler of the log.
    """

    def __init__(self, log: logging.Handler):
        super().__init__()
        self.log = log
        self._text, self._counts = "", False
        self._since = self._logged = self._lined = time.monotonic()
        self._ended = threading.Event()
        atexit.register(self.stop)

    def start(self) -> None:
        """Log from now on."""
        self._since = self._logged = self._lined = time.monotonic()
        threading.Thread(target=self._tick, daemon=True).start()

    def stop(self) -> None:
        """Log nothing more."""
        self._ended.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Begin a new step, or note how far it is; an empty text says that it is done."""
        now, counts = time.monotonic(), getattr(record, "counts", False)
        if record.name != LIVE.name:
            self._logged = self._lined = now
            if not counts:
                self._text, self._counts, self._since = "", False, now
        else:
            self._text, self._counts = record.getMessage(), counts
            if not counts:
                self._since = now if self._text else self._lined  # work without a name began with the last line

    def _tick(self) -> None:
        while not self._ended.wait(PERIOD):
            now = time.monotonic()
            wait = min(INTERVAL, max(FIRST, self._logged - self._since))
            if self._counts:
                wait = INTERVAL + FIRST  # later than the count itself
            if now - self._logged >= wait:
                self._logged = now
                text = f"{self._text or 'Working'} ({now - self._since:.0f} s)"
                self.log.handle(logging.LogRecord("covid_fastai", logging.INFO, __file__, 0, text, None, None))
