"""What the examples in docstrings may use: synthetic data, a table of predictions, one trained run; each made once.

An example runs in an empty folder of its own. What it names is made for it: `data`, `cohort`, `dls`, `learn`, `run`,
`predictions`.
"""

from __future__ import annotations

import doctest
import inspect
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.doctest import DoctestItem

NAMES = re.compile(r"\b(data|cohort|dls|learn|run|predictions)\b")
QUICK = {"image_size": 32, "batch_size": 8, "frozen_epochs": 0, "unfrozen_epochs": 1, "weights": None, "num_workers": 0}

_from_module = doctest.DocTestFinder._from_module


def _from_module_unwrapped(self: doctest.DocTestFinder, module: Any, value: Any) -> bool:
    return _from_module(self, module, inspect.unwrap(value) if inspect.isfunction(value) else value)


# Else doctest takes a decorated function for one of the module that the decorator stands in, and leaves it out.
doctest.DocTestFinder._from_module = _from_module_unwrapped


@pytest.fixture(scope="session")
def _example_values(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return what makes the value of a name, once."""
    values: dict[str, Any] = {}

    def run() -> Path:
        from covid_fastai import train_classifier

        out = tmp_path_factory.mktemp("examples") / "run"
        return train_classifier(request.getfixturevalue("covid_dataset"), out=out, quiet=True, **QUICK).path

    def predictions() -> Any:
        from tests.prediction_fixtures import draw_predictions

        table = draw_predictions()
        return table.assign(fold=table["patient"].str[1:].astype(int) % 3)  # as of a cross-validation

    makers: dict[str, Callable[[], Any]] = {
        "data": lambda: request.getfixturevalue("covid_dataset"),
        "cohort": lambda: request.getfixturevalue("covid_cohort"),
        "dls": lambda: request.getfixturevalue("covid_dls"),
        "learn": lambda: request.getfixturevalue("covid_learner"),
        "run": run,
        "predictions": predictions,
    }

    def value_of(name: str) -> Any:
        if name not in values:
            values[name] = makers[name]()
        return values[name]

    return value_of


@pytest.fixture(autouse=True)
def _example(request: pytest.FixtureRequest) -> None:
    """Give an example its folder and what it names; other tests are left alone."""
    item = request.node
    if not isinstance(item, DoctestItem):
        return
    source = "".join(example.source for example in item.dtest.examples)
    value_of = request.getfixturevalue("_example_values")
    for name in sorted(set(NAMES.findall(source))):
        item.dtest.globs[name] = value_of(name)
    monkeypatch, folder = request.getfixturevalue("monkeypatch"), request.getfixturevalue("tmp_path")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COVID_FASTAI_CACHE", str(folder.parent / "cache"))
    monkeypatch.delenv("COVID_FASTAI_DATA", raising=False)
    monkeypatch.setattr(logging.getLogger("covid_fastai"), "disabled", True)
