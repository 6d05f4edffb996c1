"""The progress bar for terminals: it shows progress, and is removed afterwards."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from covid_fastai import build_learner, fit
from covid_fastai.app.cli.activity import Activity
from covid_fastai.app.cli.progress import TerminalProgress


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_the_bar_shows_phase_epoch_and_loss(covid_dls, console, tmp_path):
    bar = TerminalProgress(Activity(console))
    learn = build_learner(covid_dls, weights=None, path=tmp_path, callbacks=[bar])
    fit(learn, frozen_epochs=1, unfrozen_epochs=1)
    text = console.file.getvalue()
    assert "unfrozen epoch 1/1, training, loss" in text and " validation" in text
    assert bar.bar is None
    learn.get_preds(dl=covid_dls.valid)
    assert console.file.getvalue() == text, "a prediction showed a bar"


def test_the_bar_is_removed_after_an_error(covid_dls, console, tmp_path):
    from fastai.callback.core import Callback

    class Stop(Callback):
        def after_batch(self):
            raise ValueError("stop")

    bar = TerminalProgress(Activity(console))
    learn = build_learner(covid_dls, weights=None, path=tmp_path, callbacks=[bar, Stop()])
    with pytest.raises(ValueError, match="stop"):
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert bar.bar is not None
    bar.close()
    assert bar.bar is None
