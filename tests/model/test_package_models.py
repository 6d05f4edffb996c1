"""The models of the package by name: where a name leads, what every answer says, and what a model without weights
cannot do. A small hand-made model takes the place of the trained one."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError
from typer.testing import CliRunner

from covid_fastai.app.batch.run import predict_batch
from covid_fastai.app.cli.main import app
from covid_fastai.app.export import export_model
from covid_fastai.app.overlays import draw_explained
from covid_fastai.app.server.gradio import answer_file as in_app
from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.model_facts import read_facts
from covid_fastai.app.server.page import render_page
from covid_fastai.app.server.worker_process import answer_file
from covid_fastai.data.input_check import rank_pixels, shrink_picture
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.data.splits import split_by_patient
from covid_fastai.errors import ModelFormatError, UsageError
from covid_fastai.model import package_models as package_models_module
from covid_fastai.model.bundle import load_model
from covid_fastai.model.bundle_config import read_config
from covid_fastai.model.card import Population, write_card
from covid_fastai.model.hub import find_model, push_to_hub
from covid_fastai.model.package_models import package_models
from covid_fastai.model.predictor import OUTSIDE, Predictor
from covid_fastai.plotting import encode_png

NAME, PURPOSE = "pneumonia-children", "Normal against pneumonia in children of one hospital."


@pytest.fixture
def packaged(small_model, tmp_path, monkeypatch):
    """The folder of a model of the package, without weights; the working folder is another, empty one."""
    folder = tmp_path / "trained" / NAME
    shutil.copytree(small_model, folder)
    (folder / "model.safetensors").unlink()
    write_card(folder, read_config(folder / "config.json"), title=NAME, purpose=PURPOSE, verdict="Not shown.")
    monkeypatch.setattr(package_models_module, "FOLDER", tmp_path / "trained")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def scan(packaged):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 120), dtype=np.uint8)
    Image.fromarray(pixels).save("scan.png")
    return "scan.png"


def test_a_name_leads_to_the_model_of_the_package(packaged, small_model):
    assert package_models() == {NAME: packaged} and find_model(NAME) == packaged
    predictor = Predictor(NAME)
    assert predictor.findings.purpose == PURPOSE and predictor.classes == ["Normal", "COVID-19"]
    assert find_model(str(small_model)) == small_model and Predictor(small_model).findings.purpose == ""


def test_a_folder_of_the_same_name_is_never_taken_in_silence(packaged, small_model):
    shutil.copytree(small_model, NAME)
    with pytest.raises(UsageError, match="has the same name") as caught:
        find_model(NAME)
    assert f"./{NAME}" in caught.value.hint.replace("\\", "/")
    assert find_model(f"./{NAME}").resolve() != packaged  # the hint, followed
    assert Predictor(f"./{NAME}").findings.purpose == ""


@pytest.mark.parametrize("name", ["pneumonia-child", "Pneumonia_Children", "pneumonia"])
def test_a_similar_name_is_suggested(name, packaged):
    with pytest.raises(ModelFormatError, match=f"no folder {name}") as caught:
        Predictor(name)
    assert f"Did you mean '{NAME}'" in caught.value.hint
    with pytest.raises(ModelFormatError, match="runs/first"):  # nothing alike
        Predictor("runs/first/model")


def test_a_revision_is_for_the_hub_only(packaged):
    with pytest.raises(UsageError, match="is a model of the package"):
        Predictor(NAME, revision="main")


def test_it_predicts_and_cannot_be_trained_exported_or_pushed(packaged, scan, tmp_path):
    assert Predictor(NAME).predict(scan)["status"].tolist() == ["ok"]
    calls = [lambda: load_model(NAME), lambda: export_model(NAME, tmp_path / "out")]
    calls.append(lambda: push_to_hub(packaged, "user/model", license="other"))
    for call in calls:
        with pytest.raises(ModelFormatError, match=r"without model\.safetensors") as caught:
            call()
        assert "Predictor" in caught.value.hint


def test_predict_says_what_the_model_is_for(packaged, scan):
    result = CliRunner().invoke(app, ["predict", NAME, scan])
    assert result.exit_code == 0 and f"This model is for: {PURPOSE}" in result.output.replace("\n", " ")
    result = CliRunner().invoke(app, ["predict", NAME, scan, "--json"])
    assert json.loads(result.output)["purpose"] == PURPOSE


def test_the_page_says_what_the_model_is_for(packaged, scan, small_model):
    facts = read_facts(packaged, name=NAME)
    answer = answer_file(Predictor(NAME), Path(scan).read_bytes(), maps=True, max_pixels=10**6)
    page = render_page(facts, Limits(), answers=[answer.model_copy(update={"name": "scan.png"})])
    # above the form, in the answer, and in the rows of the table to download: this one, and one for refused files
    assert page.count(PURPOSE) == 4
    assert f"covid-fastai serve {NAME}" not in page
    other = render_page(read_facts(small_model), Limits())
    assert f"covid-fastai serve {NAME}" in other and PURPOSE not in other


def test_every_row_of_a_table_says_what_the_model_is_for(packaged, scan, small_model, tmp_path):
    Path("broken.png").write_bytes(b"no image")
    table = Predictor(NAME).predict([scan, "broken.png"])
    assert table["model_purpose"].tolist() == [PURPOSE] * 2 and "model_purpose" not in Predictor(small_model).predict(
        scan
    )
    predict_batch(NAME, [scan, "broken.png"], tmp_path / "table.csv", workers=1)
    assert pd.read_csv(tmp_path / "table.csv")["model_purpose"].tolist() == [PURPOSE] * 2
    facts = read_facts(packaged, name=NAME)
    for file in (scan, "broken.png"):
        answer = answer_file(Predictor(NAME), Path(file).read_bytes(), maps=True, max_pixels=10**6)
        page = render_page(facts, Limits(), answers=[answer.model_copy(update={"name": file})])
        assert html.unescape(page).count(f'"model_purpose": "{PURPOSE}"') == 2  # as above


def test_the_app_says_what_the_model_is_for_whatever_the_answer(packaged, scan):
    facts, predictor = read_facts(packaged, name=NAME), Predictor(NAME)
    Path("broken.png").write_bytes(b"no image")
    upright = draw_phantom(np.random.default_rng(3), image_size=256).image
    for name, pixels in {"upright.png": upright, "turned.png": upright[::-1, ::-1]}.items():
        Image.fromarray(pixels.copy()).save(name)
    texts = {name: in_app(predictor, facts, name)[2] for name in ("upright.png", "turned.png", "broken.png")}
    assert "Predicted class" in texts["upright.png"] and "withheld" in texts["turned.png"]
    assert "No prediction" in texts["broken.png"] and all(PURPOSE in text for text in texts.values())


def test_the_overlay_says_what_the_model_is_for():
    grey, saliency = Image.new("L", (400, 300), 90), np.ones((4, 4))
    drawn = [
        draw_explained(grey, saliency, name="Pneumonia", probability=0.9, purpose=purpose) for purpose in ("", PURPOSE)
    ]
    assert drawn[1].height > drawn[0].height and drawn[1].width == drawn[0].width


def test_the_class_of_an_image_outside_of_the_population_is_withheld(packaged):
    image = draw_phantom(np.random.default_rng(3), image_size=256).image
    grey = Image.fromarray(image)
    weights = rank_pixels(shrink_picture(grey)[None])[0]  # most of all like this image
    score, config = float(weights @ weights), read_config(packaged / "config.json")
    for limit, outside in ((score - 0.1, True), (score + 0.1, False)):
        population = Population(weights=tuple(map(float, weights)), limit=limit)
        write_card(packaged, config, title=NAME, purpose=PURPOSE, population=population)
        examination = Predictor(NAME).examine(image)
        assert examination.row["withheld"] == outside == (examination.row["prediction"] == "")
        assert ("population" in {remark.kind for remark in examination.remarks}) == outside
        assert (OUTSIDE in examination.row["remark"]) == outside
    answer = answer_file(Predictor(NAME), encode_png(grey), maps=False, max_pixels=10**6)
    assert not answer.withheld
    with pytest.raises(ValidationError, match="weights"):
        Population(weights=(1.0,), limit=0.0)
    turned = Predictor(NAME).examine(image[::-1, ::-1].copy())  # withheld for another reason, which is enough
    assert "population" not in {remark.kind for remark in turned.remarks}


def test_the_card_has_the_purpose(packaged):
    assert f"- **For**: {PURPOSE}" in (packaged / "README.md").read_text(encoding="utf-8")


def test_the_models_that_come_with_the_package_are_complete():
    """Their files open without torch, and every one has its purpose, verdict, limits, card and metrics."""
    assert NAME in package_models()
    for name, folder in package_models().items():
        assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
        assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "findings.json", "model.onnx"}
        predictor = Predictor(name)  # its self-test compares the output with that of the training
        assert predictor.findings.purpose and predictor.findings.verdict and predictor.findings.limits
        assert any("class is withheld" in limit for limit in predictor.findings.limits)
        drawing = draw_phantom(np.random.default_rng(5), image_size=256).image
        assert predictor.predict(drawing)["withheld"].all()  # no child's radiograph
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert (
            predictor.findings.verdict in card and "official TEST" in card and predictor.config.fingerprint[:16] in card
        )


@pytest.mark.realdata
@pytest.mark.slow
def test_the_metrics_of_the_card_are_those_of_the_model(real_data):
    """Thirty held-out images of each class; the recipe evaluates all of them."""
    rows = split_by_patient(read_cohort(real_data / "coronahack-224", task="pneumonia", check_images=False), seed=0)
    rows = rows[rows["split"] == "valid"].groupby("label").head(30)
    table = Predictor(NAME).predict(rows)
    assert (table["prediction"].to_numpy() == rows["label"].to_numpy()).mean() > 0.9
