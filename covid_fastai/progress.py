"""Log lines of long work, so that no step is silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["LIVE", "LOADING", "ProgressLog", "logged"]

logger = logging.getLogger("covid_fastai")
LIVE = logging.getLogger("covid_fastai.live")  # every step of a work, for a line of a terminal that is overwritten
LIVE.setLevel(logging.WARNING)  # nothing listens, except a line of a terminal
LIVE.propagate = False  # a log would have thousands of lines

LOADING = "Loading PyTorch and fastai"
FIRST = 3.0  # seconds until the first line; work that ends before has none
INTERVAL = 30.0  # seconds between two lines at most; the first ones follow each other faster
T = TypeVar("T")


class ProgressLog:
    """Log how much of a work is done, and how long the rest takes: after 3 seconds, 6, 12 and so on, then every 30.

    Args:
        work: The work and what is counted, such as `"Images opened"`.
        total: Their number.
        first: Seconds until the first line.
    """

    def __init__(self, work: str, total: int, *, first: float = FIRST):
        self.work, self.total, self.first, self.done = work, total, first, 0
        self.started = self.logged = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count items that are done."""
        self.done += count
        if LIVE.isEnabledFor(logging.INFO):
            text = f"{self.work}: {self.done} of {self.total}" if self.done < self.total else ""
            LIVE.info("%s", text)
        now = time.monotonic()
        if now - self.logged >= min(INTERVAL, max(self.first, self.logged - self.started)) and self.done < self.total:
            self.logged = now
            left = (now - self.started) / self.done * (self.total - self.done)
            rest = f"{left / 60:.0f} minutes" if left >= 90 else f"{left:.0f} seconds"
            logger.info("%s: %d of %d, about %s left.", self.work, self.done, self.total, rest)


def logged(items: Iterable[T], work: str, total: int) -> Iterator[T]:
    """Yield items, and log how many are done as `ProgressLog` does.

    Args:
        items: The items.
        work: As in `ProgressLog`.
        total: Their number.
    """
    progress = ProgressLog(work, total)
    for item in items:
        yield item
        progress.advance()
