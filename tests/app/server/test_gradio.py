"""The Gradio app: its answers are the predictor's; without gradio it says what to install."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from covid_fastai.app.server.gradio import answer_file, gradio_app
from covid_fastai.app.server.model_facts import read_facts
from covid_fastai.errors import UnavailableError
from covid_fastai.model.predictor import Predictor


def test_the_answer_is_the_predictors(small_model, phantom_cohort):
    predictor, facts = Predictor(small_model), read_facts(small_model)
    path = phantom_cohort["path"].iloc[0]
    p, picture, said = answer_file(predictor, facts, path)
    row = predictor.predict(path).iloc[0]
    assert p == {name: row[f"p_{name}"] for name in predictor.classes}
    assert isinstance(picture, Image.Image) and row["prediction"] in said and "Research use only" in said


def test_a_file_that_is_no_picture_is_said_to_be_none(small_model, tmp_path):
    (tmp_path / "letter.txt").write_text("no picture")
    p, picture, said = answer_file(Predictor(small_model), read_facts(small_model), tmp_path / "letter.txt")
    assert p == {} and picture is None and said.startswith("No answer")


def test_without_gradio_it_names_the_extra(small_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UnavailableError, match="gradio") as error:
        gradio_app(small_model)
    assert "covid_fastai[gradio]" in error.value.hint


@pytest.mark.slow  # needs an extra that [dev] does not have
def test_the_app_can_be_built(small_model):
    pytest.importorskip("gradio", reason="gradio is not installed; pip install 'covid_fastai[gradio]'")
    kinds = {component["type"] for component in gradio_app(small_model).get_config_file()["components"]}
    assert {"file", "label", "image", "markdown"} <= kinds
