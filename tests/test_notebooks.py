"""The walk-throughs: their form, their committed outputs, and that a claim which does not hold is noticed.

That they run is what `nbdev-test nbs` shows, in CI and in `make check`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "nbs").glob("[0-9]*.ipynb"))
LARGEST = 400_000  # bytes, outputs and all, so that they open on the web
STORY = ["quickstart", "metadata", "images", "augmentation", "dataloaders", "training", "evaluation", "the_article"]
STORY += ["audit"]

INSTALL = """#| eval: false
# Only on Colab or Kaggle: choose a runtime with a GPU, upload this repository as covid_fastai.zip, and run this cell.
%pip install -q ./covid_fastai.zip
!nvidia-smi -L"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path: Path, kind: str | None = None) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if kind in (None, cell["cell_type"])]


def test_they_follow_the_story():
    assert [path.stem for path in NOTEBOOKS] == [f"{number:02}_{name}" for number, name in enumerate(STORY)]


@each_notebook
def test_it_begins_as_all_do(path):
    title, install, imports, parameters, data = cells_of(path)[:5]
    assert "".join(title["source"]).startswith("# ")
    assert "research use only" in "".join(title["source"]).casefold()
    assert "".join(install["source"]) == INSTALL
    assert "import" in "".join(imports["source"]) and "*" not in "".join(imports["source"])
    assert parameters["metadata"]["tags"] == ["parameters"]
    assert "".join(parameters["source"]).startswith("data = None")
    assert re.search(r"example_data\(\s*data", "".join(data["source"]))


@each_notebook
def test_it_says_what_a_real_data_set_changes(path):
    assert any("".join(cell["source"]).startswith("## With a real data set\n") for cell in cells_of(path, "markdown"))


@each_notebook
def test_it_asserts_what_it_claims(path):
    assert sum(line.startswith("assert ") for cell in cells_of(path, "code") for line in cell["source"]) >= 3


@each_notebook
def test_what_is_committed_is_small_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    outputs = [output for cell in cells_of(path, "code") for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) or "image/jpeg" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    shown = json.dumps([{k: v for k, v in o.get("data", {}).items() if "image" not in k} for o in outputs])
    assert not re.search(r"/(home|root|Users|work|tmp|var)/", shown + json.dumps([o.get("text", "") for o in outputs]))


@each_notebook
def test_it_is_clean(path, tmp_path):
    (tmp_path / "nbs").mkdir()
    copy = Path(shutil.copy(path, tmp_path / "nbs"))
    shutil.copy(path.parents[1] / "pyproject.toml", tmp_path)
    nbdev_clean = Path(sys.executable).with_name("nbdev-clean")
    subprocess.run([nbdev_clean, "--fname", copy], cwd=tmp_path, check=True, capture_output=True)
    assert copy.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), "run nbdev-clean"


@pytest.mark.slow
@pytest.mark.nightly
def test_a_broken_claim_fails(tmp_path):
    notebook = json.loads(NOTEBOOKS[1].read_text(encoding="utf-8"))
    claims = [
        (cell, number)
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for number, line in enumerate(cell["source"])
        if re.fullmatch(r"assert [^,]*\n?", line)
    ]
    cell, number = claims[0]
    cell["source"][number] = "assert not (" + cell["source"][number].removeprefix("assert ").rstrip("\n") + ")\n"
    (tmp_path / "nbs").mkdir()
    shutil.copy(NOTEBOOKS[1].parents[1] / "pyproject.toml", tmp_path)
    broken = tmp_path / "nbs" / NOTEBOOKS[1].name
    broken.write_text(json.dumps(notebook), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("nbdev-test"), broken, "--n-workers", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "agg"},
    )
    assert done.returncode != 0
    assert "AssertionError" in done.stdout + done.stderr
