"""Recipes: public data sets are recognised, read with their settings, and never read by a guess."""

from __future__ import annotations

import inspect
import json
import shlex

import pandas as pd
import pytest

from covid_fastai import list_recipes, read_cohort
from covid_fastai.app.cli import main  # noqa: F401 - makes the options of the commands known
from covid_fastai.app.cli.wording import as_options
from covid_fastai.config import TrainConfig
from covid_fastai.data.recipe_tables import task_of_config
from covid_fastai.data.recipes import get_recipe, recognise_recipe
from covid_fastai.errors import DataError, UsageError
from tests.app.cli.commands import run_command
from tests.data.public_layouts import build_covidx, build_nih, build_radiography_database, write_images

NAMES = list_recipes()["recipe"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_consists_of_options_that_exist(name):
    recipe, options = get_recipe(name), inspect.signature(read_cohort).parameters
    assert set(recipe.options) <= set(options) and set(recipe.example) <= set(TrainConfig.model_fields)
    TrainConfig(**{key: value for key, value in {**recipe.options, **recipe.example}.items()})
    assert recipe.source.startswith("https://") and recipe.citation and recipe.terms and recipe.notes and recipe.files
    words = shlex.split(recipe.command("D"))
    assert words[:5] == ["covid-fastai", "train", "D", "--recipe", name] and recipe.finding == ("--positive" in words)


def test_an_unknown_recipe_is_refused_with_a_similar_one():
    with pytest.raises(UsageError, match="no recipe 'nih'") as caught:
        read_cohort("anything", recipe="nih")
    assert "nih-chestxray14" in caught.value.hint


@pytest.fixture(scope="module")
def nih(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nih")
    build_nih(folder)
    return folder


@pytest.mark.parametrize("missing", ["Data_Entry_2017.csv", "test_list.txt", "train_val_list.txt"])
def test_a_missing_file_is_named_with_its_source(tmp_path, missing):
    build_nih(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=f"lacks what the recipe nih-chestxray14 needs: .*{missing}") as caught:
        read_cohort(tmp_path, recipe="nih-chestxray14", positive="Pneumonia")
    assert "https://nihcc" in caught.value.hint


def test_a_folder_of_another_kind_is_no_public_data_set(tmp_path):
    write_images(tmp_path, ["Normal/1.png", "COVID/2.png", "train/NORMAL/3.png"])
    assert recognise_recipe(tmp_path) is None and recognise_recipe(pd.DataFrame()) is None
    with pytest.raises(DataError, match="stage_2_train_labels.csv"):
        read_cohort(tmp_path, recipe="rsna-pneumonia")
    with pytest.raises(UsageError, match="DataFrame"):
        read_cohort(pd.DataFrame({"a": [1]}), recipe="rsna-pneumonia")


def test_a_data_set_of_many_findings_asks_for_one(nih):
    with pytest.raises(UsageError, match="many findings") as caught:
        read_cohort(nih, recipe="nih-chestxray14")
    assert "positive='Pneumonia'" in caught.value.hint


@pytest.mark.parametrize("place", ["", "inner", "outer/inner", "inner/Data_Entry_2017.csv"])
def test_a_data_set_is_recognised_where_an_archive_unpacks_it(tmp_path, place):
    inner = tmp_path / place.removesuffix("/Data_Entry_2017.csv")
    build_nih(inner)
    for data in {tmp_path, tmp_path / place}:
        assert recognise_recipe(data).name == "nih-chestxray14"
        assert get_recipe("nih-chestxray14").require(data) == inner


def test_an_error_names_the_recipe_in_the_language_of_the_caller(tmp_path):
    build_covidx(tmp_path)
    with pytest.raises(DataError) as caught:
        read_cohort(tmp_path)
    assert "It is read with recipe='covidx'.\n" in caught.value.hint
    assert "It is read with --recipe covidx.\n" in as_options(caught.value.hint)


@pytest.mark.slow
def test_check_names_the_recipe(nih, tmp_path):
    done = run_command("check", nih / "Data_Entry_2017.csv", cwd=tmp_path)
    assert "--recipe nih-chestxray14 --positive Pneumonia" in done.stdout + done.stderr


def test_the_recipes_are_listed_on_the_command_line(tmp_path):
    listed = run_command("recipes", cwd=tmp_path)
    assert listed.returncode == 0 and all(name in listed.stdout for name in NAMES)
    one = run_command("recipes", "chexpert", cwd=tmp_path)
    assert "valid.csv" in one.stdout and "https://stanford" in one.stdout and "covid-fastai train FOLDER" in one.stdout


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"recipe": "kermany-chest-xray"}, ("Normal", "Pneumonia")),
        ({"recipe": "chexpert", "positive": "Edema"}, ("No Edema", "Edema")),
        ({"recipe": "rsna-pneumonia"}, ("No pneumonia", "Pneumonia")),
        ({"positive": "Edema"}, ("No Edema", "Edema")),
        ({}, ("Normal", "COVID-19")),
    ],
)
def test_a_run_has_the_task_of_its_recipe_and_options(options, classes):
    config = TrainConfig(**options)
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))  # as `validate` reads a run's config.json
    assert task_of_config(again).classes == task_of_config(config).classes == classes


# options that are given


@pytest.fixture(scope="module")
def radiography(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radiography")
    build_radiography_database(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, {"Normal": 12, "COVID-19": 10, "Lung opacity": 8, "Viral pneumonia": 6}),
        (
            {"classes": ("Normal", "COVID-19"), "labels": {"Lung_Opacity": "", "Viral Pneumonia": ""}},
            {"Normal": 12, "COVID-19": 10},
        ),
        ({"positive": "COVID"}, {"No COVID": 12, "COVID": 10}),
        ({"labels": {"Viral Pneumonia": ""}}, {"Normal": 12, "COVID-19": 10, "Lung opacity": 8}),
        (
            {"labels": {"Viral Pneumonia": "Opacity", "Lung_Opacity": "Opacity"}},
            {"Normal": 12, "COVID-19": 10, "Opacity": 14},
        ),
    ],
)
def test_options_that_are_given_replace_those_of_the_recipe(radiography, options, counts):
    cohort = read_cohort(radiography, recipe="covid-radiography-database", check_images=False, **options)
    assert cohort.loc[cohort["split"] != "excluded", "label"].value_counts().to_dict() == counts
