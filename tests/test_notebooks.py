"""The walk-throughs run from top to bottom, offline, and are committed without outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "nbs").glob("[0-9]*.ipynb"))


def test_there_are_some():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_committed(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    (tmp_path / "nbs").mkdir()
    shutil.copy(path, tmp_path / "nbs")
    shutil.copy(path.parents[1] / "pyproject.toml", tmp_path)
    nbdev_test = Path(sys.executable).with_name("nbdev-test")
    done = subprocess.run(
        [nbdev_test, tmp_path / "nbs" / path.name, "--n-workers", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Success" in done.stdout + done.stderr
