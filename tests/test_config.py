"""One frozen object for every choice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from covid_fastai.config import PRESETS, TrainConfig, merge_options
from covid_fastai.data.tasks import Task, get_task
from covid_fastai.errors import UsageError


def test_config_is_frozen():
    with pytest.raises(ValidationError):
        TrainConfig().seed = 1


@pytest.mark.parametrize(
    "choice", [{"valid_pct": 1.5}, {"batch_size": 1}, {"balance": "all"}, {"learning_rate": float("nan")}]
)
def test_impossible_values_are_named(choice):
    with pytest.raises(UsageError, match=next(iter(choice))):
        TrainConfig.build(**choice)


def test_all_impossible_values_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        TrainConfig(seed=-1, batch_size=1)
    assert "seed=-1 is not a whole number from 0 to 4294967295." in caught.value.message
    assert "batch_size=1 is not a whole number of images from 2 to 4096." in caught.value.message


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"frozen_epochs": 0, "unfrozen_epochs": 0}, "are both 0"),
        ({"image_size": 64, "initial_image_size": 64}, "initial_image_size=64 is not below image_size=64"),
    ],
)
def test_values_that_make_no_training_together_are_refused(choices, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**choices)


@pytest.mark.parametrize("name", ["image_root", "positive", "path_column", "weights", "join", "encoding", "recipe"])
def test_an_empty_text_is_refused(name):
    """A shell gives it for a variable that is not set; an empty path would be the current folder."""
    with pytest.raises(UsageError, match=f"{name}=' ' is empty"):
        TrainConfig(**{name: " "})


def test_numbers_of_numpy_and_paths_become_plain():
    config = TrainConfig(seed=np.int64(3), learning_rate=np.float32(0.5), image_root=Path("data"), audit=np.False_)
    assert config.to_dict() == TrainConfig(seed=3, learning_rate=0.5, image_root="data", audit=False).to_dict()
    json.dumps(config.to_dict())


def test_replace_checks_again():
    assert TrainConfig(seed=1, arch="resnet34").replace(seed=2) == TrainConfig(seed=2, arch="resnet34")
    with pytest.raises(UsageError, match="seed=-2"):
        TrainConfig().replace(seed=-2)


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(UsageError, match="frozen_epochs"):
        TrainConfig.build(frozen_epoch=3)


def test_a_choice_replaces_the_preset():
    config = TrainConfig.build(preset="article", batch_size=16)
    assert (config.arch, config.batch_size, config.gradient_clip) == ("resnet50", 16, 0.1)
    assert round(54 * config.negatives_per_positive) == 61


def test_presets_are_valid():
    for name in PRESETS:
        TrainConfig.build(preset=name)
    with pytest.raises(UsageError, match="article"):
        TrainConfig.build(preset="articel")


def test_python_and_command_line_are_equivalent():
    config = TrainConfig.build(task="pneumonia", evaluate_test=True, weights=None)
    assert config.to_python("data", "out") == (
        "train_classifier('data', task='pneumonia', evaluate_test=True, weights=None, out='out')"
    )
    assert (
        config.to_command("my data") == "covid-fastai train 'my data' --task pneumonia --evaluate-test --weights none"
    )


def test_an_option_that_is_on_is_turned_off_by_its_no():
    config = TrainConfig.build(exclude_pretraining_overlap=False)
    assert config.to_command("data") == "covid-fastai train data --no-exclude-pretraining-overlap"
    assert config.to_python("data") == "train_classifier('data', exclude_pretraining_overlap=False)"
    assert TrainConfig().exclude_pretraining_overlap and "guard" not in TrainConfig.build(
        exclude_pretraining_overlap=True
    ).to_command("data")


def test_round_trip():
    config = TrainConfig.build(preset="article")
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_a_task_object_becomes_its_fields():
    task = Task(name="own", classes=("Normal", "Fibrosis"))
    config = TrainConfig.build(task=task)
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.task_name == config.task_name == "own" and get_task(again.task) == task
    assert again.to_dict() == config.to_dict()


def test_every_field_has_a_description():
    for name, field in TrainConfig.model_fields.items():
        assert field.description and field.description.endswith("."), name


def test_options_replace_those_of_a_config():
    config = TrainConfig(seed=3, arch="resnet34")
    assert TrainConfig(**merge_options(config, {"seed": 4})) == TrainConfig(seed=4, arch="resnet34")
    assert merge_options(None, {"seed": 4}, preset="article") == {"seed": 4}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"preset": "article"}, "config and preset='article' are mutually exclusive"),
        ({"resume": Path("run")}, "config and resume='run' are mutually exclusive"),
    ],
)
def test_a_config_stands_alone(other, message):
    with pytest.raises(UsageError, match=message):
        merge_options(TrainConfig(), {}, **other)


def test_a_config_is_a_train_config():
    with pytest.raises(UsageError, match="config is a dict"):
        merge_options({"seed": 3}, {})
