"""What a command is doing is said: on a line of terminals, gone before results and harmless to forks, or in the log."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from covid_fastai.app.cli import activity as activity_module
from covid_fastai.app.cli.activity import Activity, Heartbeat
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


@pytest.fixture
def heartbeat(monkeypatch):
    """A heartbeat whose clock advances as long as it waits; `run` returns what it logs, and when."""
    seconds, lines = [0.0], []
    monkeypatch.setattr(activity_module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    log = logging.Handler()
    log.emit = lambda record: lines.append((seconds[0], record.getMessage()))
    heartbeat = Heartbeat(log)

    def run(until: float) -> list[tuple[float, str]]:
        def wait(timeout: float) -> bool:
            seconds[0] += timeout
            return seconds[0] > until

        heartbeat._ended = SimpleNamespace(wait=wait, set=lambda: None)
        lines.clear()
        heartbeat._tick()
        return list(lines)

    heartbeat.run = run
    return heartbeat


def live(text: str, **extra) -> logging.LogRecord:
    return logging.makeLogRecord({"name": LIVE.name, "msg": text, **extra})


def test_a_log_is_not_silent_for_more_than_three_seconds(heartbeat):
    heartbeat.emit(live("Searching for copies of images"))
    lines = heartbeat.run(until=100)
    assert lines[0] == (3, "Searching for copies of images (3 s)")
    assert [second for second, _ in lines] == [3, 6, 12, 24, 48, 78]
    heartbeat.emit(logging.makeLogRecord({"name": logger.name, "msg": "The next step."}))
    assert heartbeat.run(until=106) == [(104, "Working (3 s)")]
    heartbeat.emit(live(""))  # a step that was too short for a line of its own
    assert heartbeat.run(until=108) == [(108, "Working (7 s)")]  # since the last line, not since that step


def test_a_log_of_a_count_is_left_to_the_count(heartbeat):
    """It has lines of its own, but one item may take long."""
    heartbeat.emit(live("Images opened: 1 of 9", counts=True))
    assert heartbeat.run(until=20) == []
    heartbeat.emit(logging.makeLogRecord({"name": logger.name, "msg": "Images opened: 2 of 9, ...", "counts": True}))
    assert heartbeat.run(until=60) == [(54, "Images opened: 1 of 9 (54 s)")]


def test_a_command_without_a_terminal_says_what_it_does():
    """As a user of a pipe sees it: the log of a command that takes long."""
    code = (
        "import time; from covid_fastai.app.cli.output import echo, set_up_logging\n"
        "from covid_fastai.progress import LIVE\n"
        "assert set_up_logging(quiet=False, as_json=False) is None\n"
        "LIVE.info('Searching'); time.sleep(4.5); echo('done'); time.sleep(4)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n" and re.fullmatch(r"Searching \(\d+ s\)\n", done.stderr)
