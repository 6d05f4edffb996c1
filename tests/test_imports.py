"""Imports without the garbage collector."""

from __future__ import annotations

import gc

import pytest

from covid_fastai.imports import importing


@pytest.fixture(autouse=True)
def collector():
    """Leave the collector as it was."""
    running = gc.isenabled()
    yield
    (gc.enable if running else gc.disable)()
    gc.unfreeze()


@pytest.mark.parametrize("running", [True, False])
def test_the_collector_is_paused_and_then_as_before(running):
    (gc.enable if running else gc.disable)()
    with pytest.raises(ImportError), importing():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() is running


def test_only_a_program_exempts_its_objects():
    gc.unfreeze()
    with importing():
        pass
    assert gc.get_freeze_count() == 0
    with importing(keep=True):
        pass
    assert gc.get_freeze_count() > 10_000


def test_a_public_name_is_loaded_without_the_collector(monkeypatch):
    import covid_fastai

    seen = []
    monkeypatch.setattr(covid_fastai, "_load", lambda name: seen.append((name, gc.isenabled())))
    covid_fastai.__getattr__("train_classifier")
    assert seen == [("train_classifier", False)]
