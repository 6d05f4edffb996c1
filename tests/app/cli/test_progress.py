"""The bar of a terminal: it moves, and it is gone afterwards."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from covid_fastai import build_learner, fit
from covid_fastai.app.cli.progress import TerminalProgress


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_it_names_phase_epoch_and_loss(covid_dls, console, tmp_path):
    bar = TerminalProgress(console)
    learn = build_learner(covid_dls, weights=None, path=tmp_path, callbacks=[bar])
    fit(learn, frozen_epochs=1, unfrozen_epochs=1)
    text = console.file.getvalue()
    assert "unfrozen epoch 1/1, training, loss" in text and " validation" in text
    assert bar.bar is None
    before = len(text)
    learn.get_preds(dl=covid_dls.valid)
    assert len(console.file.getvalue()) == before, "predicting is no training"


def test_it_is_taken_off_after_an_error(covid_dls, console, tmp_path):
    from fastai.callback.core import Callback

    class Stop(Callback):
        def after_batch(self):
            raise ValueError("stop")

    bar = TerminalProgress(console)
    learn = build_learner(covid_dls, weights=None, path=tmp_path, callbacks=[bar, Stop()])
    with pytest.raises(ValueError, match="stop"):
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert bar.bar is not None
    bar.close()
    assert bar.bar is None
