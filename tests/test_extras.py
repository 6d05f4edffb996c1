"""The main job needs what settings.ini requires and nothing more, though the tests' environment has more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement

from tests.test_packaging import SETTINGS

WITHOUT = """
import sys

blocked = frozenset(sys.argv.pop(1).split(","))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
from covid_fastai.app.cli.main import main
main()
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    """Return the distributions that a plain install brings: the requirements, and what they require."""
    found: set[str] = {"covid-fastai", "pip", "setuptools"}
    waiting = [Requirement(line) for line in SETTINGS["DEFAULT"]["requirements"].splitlines() if re.match(r"\w", line)]
    while waiting:
        one = waiting.pop()
        name = normal(one.name)
        if name in found and not one.extras:
            continue
        found.add(name)
        try:
            more = [Requirement(text) for text in requires(one.name) or []]
        except PackageNotFoundError:  # of another system
            continue
        wanted = one.extras or {""}
        waiting += [
            each for each in more if each.marker is None or any(each.marker.evaluate({"extra": x}) for x in wanted)
        ]
    return found


def absent() -> set[str]:
    """Return the modules that are installed here and would not be by a plain install."""
    plain = required()
    return {
        module for module, names in packages_distributions().items() if not {normal(name) for name in names} & plain
    }


@pytest.mark.slow
def test_a_training_and_a_prediction_need_no_extra(phantom_root, tmp_path):
    blocked = absent()
    assert {"accelerate", "pytest", "pydicom", "statsmodels"} <= blocked
    assert not {"torch", "fastai", "numpy", "fastcore", "onnxruntime", "spacy", "huggingface_hub", "filelock"} & blocked
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", WITHOUT, ",".join(sorted(blocked)), *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    quick = ["--image-size", "32", "--batch-size", "8", "--frozen-epochs", "1", "--unfrozen-epochs", "1"]
    trained = run("train", str(phantom_root), "--out", "run", "--weights", "none", *quick)
    assert trained.returncode == 0, trained.stderr
    picture = next(phantom_root.rglob("*.jp*g"), None) or next(phantom_root.rglob("*.png"))
    predicted = run("predict", "run", str(picture))
    assert predicted.returncode == 0 and "ok" in predicted.stdout, predicted.stderr
