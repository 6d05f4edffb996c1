"""SIGKILL, a few times; `python -m tests.attacks.kills` kills more often."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from covid_fastai.errors import ModelFormatError
from covid_fastai.files import restore_folder
from covid_fastai.model.predictor import Predictor
from tests.small_model import write_small_model

HARMLESS = {"kills", "runs", "batches"}
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="system: there is no fork here")


def kill(what: str, times: int) -> dict:
    command = [sys.executable, "-m", "tests.attacks.kills", what, "--times", str(times)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["."])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@FORKS
@pytest.mark.nightly
@pytest.mark.slow
def test_a_training_that_is_killed_repeatedly_resumes_to_the_same_model():
    found = kill("train", 3)
    assert found["kills"] == 3 and found["unreadable"] == found["different"] == 0


@FORKS
@pytest.mark.nightly
@pytest.mark.slow
def test_a_model_that_is_saved_repeatedly_is_complete_at_any_time():
    assert kill("save", 3) | {"left_over": 0} == {"kills": 3, "lost": 0, "left_over": 0}


@FORKS
@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "audit", "batch", "cache"])
def test_whole_commands_that_are_killed_lose_nothing_and_resume_to_the_same_result(what):
    found = kill(what, 3)
    assert found["kills"] >= 3 and not [name for name in found.keys() - HARMLESS if found[name]]


def test_a_model_that_was_being_replaced_is_restored(tmp_path):
    """Between the two renames there is no model of that name."""
    model = write_small_model(tmp_path / "model")
    model.rename(tmp_path / ".model.unfinished-abc-old")
    (tmp_path / ".model.unfinished-abc").mkdir()
    assert Predictor(tmp_path / "model").classes == ["Normal", "COVID-19"]
    restore_folder(tmp_path / "other")
    with pytest.raises(ModelFormatError, match="There is no folder"):
        Predictor(tmp_path / "other")
