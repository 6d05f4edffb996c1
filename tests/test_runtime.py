"""ONNX Runtime sends no telemetry, and stores no identifier of the machine."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import covid_fastai

PACKAGE = Path(covid_fastai.__file__).parent
PREDICT = """
import sys
import numpy as np
from covid_fastai.model.predictor import Predictor
Predictor(sys.argv[1]).predict(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
"""
UNGUARDED = """
import os, sys, onnxruntime
onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
os._exit(0)  # its end would wait for an answer from its maker
"""


def leavings(code: str, model: Path, home: Path) -> list[str]:
    """Run code in a process with an empty home and temporary folder, and return the files that it writes there."""
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    environment |= {"PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code, model], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


@pytest.mark.skipif(sys.platform == "win32", reason="system: on Windows it writes events, no files")
def test_a_prediction_writes_no_telemetry(small_model, tmp_path):
    assert leavings(PREDICT, small_model, tmp_path / "ours") == []
    if not leavings(UNGUARDED, small_model, tmp_path / "unguarded"):
        pytest.skip("this build of ONNX Runtime leaves nothing of itself, so the test says little")


def test_it_is_imported_in_one_place():
    places = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "onnxruntime" for name in names):
                places.add(str(path.relative_to(PACKAGE)))
    assert places == {"runtime.py"}
