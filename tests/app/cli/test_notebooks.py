"""Copying the tutorial notebooks."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from covid_fastai.app.cli import notebooks
from covid_fastai.app.cli.notebooks import copy_notebooks
from covid_fastai.errors import ResourceError, UnavailableError


def test_the_notebooks_are_copied(tmp_path):
    copies = copy_notebooks(tmp_path / "mine")
    assert [path.name[:2] for path in copies] == [f"{number:02}" for number in range(len(copies))]
    assert all(path.read_bytes() == (notebooks.notebook_folder() / path.name).read_bytes() for path in copies)


def test_a_users_copy_is_not_overwritten(tmp_path):
    copies = copy_notebooks(tmp_path)
    copies[-1].write_text("mine")
    copies[0].unlink()
    with pytest.raises(ResourceError, match=copies[1].name):
        copy_notebooks(tmp_path)
    assert copies[-1].read_text() == "mine"
    assert not copies[0].exists()


def test_the_error_names_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        copy_notebooks(tmp_path / "file" / "below")


def test_an_install_without_notebooks_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks.covid_fastai, "__file__", str(tmp_path / "site" / "covid_fastai" / "__init__.py"))
    with pytest.raises(UnavailableError, match="not installed"):
        copy_notebooks(tmp_path / "mine")


@pytest.mark.slow
def test_the_wheel_holds_the_notebooks(tmp_path):
    repository = Path(__file__).parents[3]
    build = [sys.executable, "-m", "build", "-q", "--outdir", str(tmp_path), str(repository)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if n.startswith("covid_fastai/notebooks/")] == [
        f"covid_fastai/notebooks/{path.name}" for path in sorted((repository / "nbs").glob("[0-9]*.ipynb"))
    ]
