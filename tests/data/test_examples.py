"""Data of the walk-throughs."""

from __future__ import annotations

import pytest

from covid_fastai.data import examples
from covid_fastai.data.examples import ENVIRONMENT, example_data
from covid_fastai.errors import DataError

PHANTOM = {"patients": {"COVID-19": 2, "Normal": 2}, "image_size": 32}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(examples, "KAGGLE_FOLDER", tmp_path / "no kaggle")


def test_phantoms_are_generated_without_real_data(tmp_path):
    assert example_data(out=tmp_path / "phantom", **PHANTOM) == tmp_path / "phantom"
    assert (tmp_path / "phantom" / "Chest_xray_Corona_Metadata.csv").exists()


def test_the_argument_takes_precedence(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "elsewhere"))
    assert example_data(phantom_root, out=tmp_path / "phantom") == phantom_root
    assert not (tmp_path / "phantom").exists()


def test_the_variable_can_be_a_data_set_or_a_folder_of_several(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(phantom_root))
    assert example_data(out=tmp_path / "phantom") == phantom_root
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "coronahack-224").symlink_to(phantom_root)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "several"))
    assert example_data(out=tmp_path / "phantom") == tmp_path / "several" / "coronahack-224"


def test_the_kaggle_folder_is_used(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setattr(examples, "KAGGLE_FOLDER", phantom_root)
    assert example_data(out=tmp_path / "phantom") == phantom_root


def test_a_missing_folder_raises_and_no_phantoms_are_generated(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "lost"))
    with pytest.raises(DataError, match="lost"):
        example_data(out=tmp_path / "phantom")
