"""The line that says what a command is doing: on terminals only, gone before results, and harmless to forks."""

from __future__ import annotations

import io
import logging
import os
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from covid_fastai.app.cli import activity as activity_module
from covid_fastai.app.cli.activity import Activity
from covid_fastai.progress import LIVE, ProgressLog

logger = logging.getLogger("covid_fastai")


@pytest.fixture
def activity(monkeypatch):
    monkeypatch.setattr(activity_module, "PERIOD", 0.01)
    activity = Activity(Console(file=io.StringIO(), force_terminal=True, width=60))
    for log in (logger, LIVE):
        log.addHandler(activity)
        monkeypatch.setattr(log, "level", logging.INFO)
    logger.manager._clear_cache()
    yield activity
    activity.stop()
    for log in (logger, LIVE):
        log.removeHandler(activity)
    logger.manager._clear_cache()


def shown(activity, text: str, *, after: int = 0) -> bool:
    """Wait until a text is shown after the first characters of what was."""
    deadline = time.monotonic() + 10
    while text not in activity.console.file.getvalue()[after:] and time.monotonic() < deadline:
        time.sleep(0.01)
    return text in activity.console.file.getvalue()[after:]


def test_the_line_says_what_is_done_and_for_how_long(activity, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(activity_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    activity.start()
    assert shown(activity, "Working (0 s)")
    progress = ProgressLog("Images opened", 5000)
    progress.advance(1200)
    now[0] += 75
    assert shown(activity, "Images opened: 1200 of 5000 (75 s)")
    before = len(activity.console.file.getvalue())
    logger.info("The next step.")
    assert shown(activity, "Working (0 s)", after=before), "the line still says what the last step did"


def test_the_line_is_removed(activity):
    activity.start()
    assert shown(activity, "Working")
    activity.stop()
    length = len(activity.console.file.getvalue())
    time.sleep(0.05)
    assert len(activity.console.file.getvalue()) == length
    activity.start()
    assert shown(activity, "Working", after=length)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="system: no fork")
def test_a_forked_process_can_print(activity):
    """It inherits no lock of the console, whenever it is forked."""
    activity.start()
    for _ in range(20):
        process = os.fork()
        if process == 0:
            activity.console.print("child")
            os._exit(0)
        deadline = time.monotonic() + 10
        while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert ended == (process, 0), "the process waits for a lock"
