"""The Gradio app: its predictions, and the error without the package gradio."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from covid_fastai.app.server.gradio import answer_file, gradio_app
from covid_fastai.app.server.model_facts import read_facts
from covid_fastai.errors import UnavailableError
from covid_fastai.model.predictor import Predictor


def test_the_answer_is_the_prediction_of_the_predictor(small_model, phantom_cohort):
    predictor, facts = Predictor(small_model), read_facts(small_model)
    path = phantom_cohort["path"].iloc[0]
    probabilities, overlay, text = answer_file(predictor, facts, path)
    row = predictor.predict(path).iloc[0]
    assert probabilities == {name: row[f"p_{name}"] for name in predictor.classes}
    assert isinstance(overlay, Image.Image) and row["prediction"] in text and "Research use only" in text


def test_an_unreadable_file_has_no_prediction(small_model, tmp_path):
    (tmp_path / "letter.txt").write_text("not an image")
    probabilities, overlay, text = answer_file(Predictor(small_model), read_facts(small_model), tmp_path / "letter.txt")
    assert probabilities == {} and overlay is None and text.startswith("No prediction: ")


def test_without_gradio_the_error_names_the_extra(small_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UnavailableError, match="gradio") as error:
        gradio_app(small_model)
    assert "covid_fastai[gradio]" in error.value.hint


@pytest.mark.slow  # needs an extra that [dev] does not have
def test_the_app_can_be_built(small_model):
    pytest.importorskip("gradio", reason="gradio is not installed; pip install 'covid_fastai[gradio]'")
    kinds = {component["type"] for component in gradio_app(small_model).get_config_file()["components"]}
    assert {"file", "label", "image", "markdown"} <= kinds
