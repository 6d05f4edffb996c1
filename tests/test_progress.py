"""Long work logs how much of it is done."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from covid_fastai import progress
from covid_fastai.data.fingerprints import fingerprint_images
from covid_fastai.progress import ProgressLog, logged


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by ten seconds at each look."""
    seconds = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))


def test_lines_appear_after_three_seconds_and_then_less_often(clock, caplog):
    """The clock advances by ten seconds at each look: at 10, 20, 40, 70 and then every 30 seconds."""
    caplog.set_level(logging.INFO, logger="covid_fastai")
    assert list(logged(range(60), "Images opened", 60)) == list(range(60))
    lines = [record.message for record in caplog.records]
    assert lines[0] == "Images opened: 1 of 60, about 10 minutes left."
    assert [int(line.split()[2]) for line in lines] == [1, 2, 4, *range(7, 60, 3)]
    assert lines[-1] == "Images opened: 58 of 60, about 20 seconds left."


def test_an_epoch_has_no_early_lines(clock, caplog):
    caplog.set_level(logging.INFO, logger="covid_fastai")
    log = ProgressLog("Batches", 9, first=30)
    for _ in range(9):
        log.advance()
    assert [int(record.message.split()[1]) for record in caplog.records] == [3, 6]


def test_short_work_is_silent(caplog):
    caplog.set_level(logging.INFO, logger="covid_fastai")
    log = ProgressLog("Images opened", 3)
    for _ in range(3):
        log.advance()
    assert log.done == 3 and not caplog.records


def test_opening_images_logs_its_progress(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    caplog.set_level(logging.INFO, logger="covid_fastai")
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((64, 64), 9 * number, dtype=np.uint8)).save(path)
    assert len(fingerprint_images(paths)) == 4
    assert [record.message.split(",")[0] for record in caplog.records] == [
        f"Images opened: {k} of 4" for k in (1, 2, 3)
    ]
