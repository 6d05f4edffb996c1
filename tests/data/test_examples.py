"""The data of a walk-through."""

from __future__ import annotations

import pytest

from covid_fastai.data import examples
from covid_fastai.data.examples import ENVIRONMENT, example_data
from covid_fastai.errors import DataError

DRAWING = {"patients": {"COVID-19": 2, "Normal": 2}, "image_size": 32}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(examples, "KAGGLE_FOLDER", tmp_path / "no kaggle")


def test_it_draws_where_there_are_no_real_ones(tmp_path):
    assert example_data(out=tmp_path / "drawn", **DRAWING) == tmp_path / "drawn"
    assert (tmp_path / "drawn" / "Chest_xray_Corona_Metadata.csv").exists()


def test_what_is_named_wins(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "elsewhere"))
    assert example_data(phantom_root, out=tmp_path / "drawn") == phantom_root
    assert not (tmp_path / "drawn").exists()


def test_the_variable_names_a_data_set_or_the_folder_of_several(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(phantom_root))
    assert example_data(out=tmp_path / "drawn") == phantom_root
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "coronahack-224").symlink_to(phantom_root)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "several"))
    assert example_data(out=tmp_path / "drawn") == tmp_path / "several" / "coronahack-224"


def test_kaggles_folder_is_found(tmp_path, phantom_root, monkeypatch):
    monkeypatch.setattr(examples, "KAGGLE_FOLDER", phantom_root)
    assert example_data(out=tmp_path / "drawn") == phantom_root


def test_a_wrong_name_is_no_reason_to_draw(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "lost"))
    with pytest.raises(DataError, match="lost"):
        example_data(out=tmp_path / "drawn")
