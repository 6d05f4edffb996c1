"""Options: a range and a message for each, the same in Python and on the command line."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import covid_fastai
from covid_fastai import options
from covid_fastai.config import TrainConfig, TrainOptions
from covid_fastai.errors import UsageError
from covid_fastai.options import (
    Arch,
    Balance,
    CheckImages,
    Device,
    GradientNorm,
    ImageSize,
    LearningRate,
    NumWorkers,
    Option,
    Probability,
    Seed,
    Switch,
    ValidPct,
    check_option,
    checked,
    describe_option,
    option_choices,
    parse_option,
    plain_type,
)

OPTION_TYPES = [name for name in options.__all__ if hasattr(getattr(options, name), "__metadata__")]
PUBLIC = [name for name in covid_fastai.__all__ if inspect.isfunction(getattr(covid_fastai, name))]
# train_classifier and cross_validate take theirs through TrainConfig
SEEDED = [name for name in PUBLIC if "seed" in inspect.signature(getattr(covid_fastai, name)).parameters]
SEEDED = [name for name in SEEDED if name not in ("train_classifier", "cross_validate")]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (Seed, "a whole number from 0 to 4294967295"),
        (ImageSize, "a whole number of pixels from 32 to 1024"),
        (ValidPct, "a number above 0 and below 1"),
        (Probability, "a number from 0 to 1"),
        (GradientNorm | None, "a number above 0, or None"),
        (NumWorkers, "a whole number, 0 or more, or 'auto'"),
        (Balance, "one of 'none', 'loss', 'sampler'"),
        (Device | torch.device, "one of 'auto', 'cpu', 'cuda', 'cuda:<number>', 'mps', or a torch.device"),
    ],
)
def test_a_range_is_put_into_words(option, words):
    assert describe_option(option) == words


@pytest.mark.parametrize("name", OPTION_TYPES)
def test_every_option_says_what_it_allows_and_has_a_hint(name):
    option = getattr(options, name)
    (mark,) = [mark for mark in option.__metadata__ if isinstance(mark, Option)]
    assert mark.hint.endswith(".") and describe_option(option)
    with pytest.raises(UsageError) as caught:
        check_option("name", object(), option)
    assert describe_option(option) in caught.value.message and mark.hint in caught.value.hint


@pytest.mark.parametrize(
    ("option", "value", "plain"),
    [
        (Seed, np.int64(7), 7),
        (ImageSize, np.uint16(64), 64),
        (LearningRate, np.float32(0.5), 0.5),
        (LearningRate, 1, 1.0),
        (Switch, np.True_, True),
        (CheckImages, False, False),
        (CheckImages, np.int32(0), 0),
        (NumWorkers, "auto", "auto"),
        (GradientNorm | None, None, None),
        (Device, "cuda:1", "cuda:1"),
        (Arch, "timm/convnext_atto", "timm/convnext_atto"),
    ],
)
def test_a_value_becomes_its_plain_type(option, value, plain):
    checked_value = check_option("name", value, option)
    assert checked_value == plain and type(checked_value) is type(plain)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((Seed, value) for value in (-1, 2**32, 1.0, "1", True, math.nan, None)),
        *((ValidPct, value) for value in (0, 1, math.nan, math.inf, "0.2", True)),
        *((LearningRate, value) for value in (0, -1e-3, math.inf, math.nan)),
        *((Balance, value) for value in ("Loss", None, ["loss"], np.arange(500))),
        *((Device, value) for value in ("gpu", "cuda:", "cuda:x", " cpu", 0)),
        *((Arch, value) for value in ("resnet19", "timm/", "resnet", None)),
        (Switch, 1),
        (NumWorkers, "aut"),
        (NumWorkers, True),
    ],
)
def test_a_value_outside_the_range_is_refused_with_its_name(option, value):
    with pytest.raises(UsageError, match="^name=.* is not ") as caught:
        check_option("name", value, option)
    assert len(caught.value.message) < 300 and "\n" not in caught.value.message


def test_the_nearest_name_is_suggested():
    with pytest.raises(UsageError, match="Did you mean 'sampler'"):
        check_option("balance", "Samplr", Balance)
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        check_option("arch", "ResNet-18", Arch)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        (Seed, "7", 7),
        (LearningRate, "1e-3", 1e-3),
        (NumWorkers, "auto", "auto"),
        (NumWorkers, "2", 2),
        (Probability, 0.5, 0.5),  # a default, which is no text
        (Seed, 3, 3),
        (Arch, "a", None),
    ],
)
def test_a_text_is_parsed(option, text, value):
    if value is None:
        with pytest.raises(UsageError, match="name='a' is not one of"):
            parse_option("name", text, option)
    else:
        assert parse_option("name", text, option) == value


def test_a_literal_has_choices():
    assert option_choices(Balance) == ("none", "loss", "sampler")
    assert option_choices(Seed) == option_choices(Device) == ()


def test_checked_checks_options_and_passes_all_else_on_untouched():
    @checked
    def function(
        rows: pd.DataFrame, *, seed: Seed = -5, clip: GradientNorm | None = None, rest: object = None
    ) -> tuple:
        """Say what came."""
        return rows, seed, clip, rest

    rows, rest = pd.DataFrame({"a": [1]}), object()
    assert function(rows)[1] == -5  # a default is trusted
    answer = function(rows, seed=np.int64(3), clip=np.float64(2), rest=rest)
    assert answer[0] is rows and answer[1:] == (3, 2.0, rest) and type(answer[1]) is int
    assert function.__doc__ == "Say what came." and function.__name__ == "function"
    with pytest.raises(UsageError, match="clip=0 is not a number above 0, or None"):
        function(rows, clip=0)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'rows'"):
        function(seed=1)


def test_an_option_that_is_not_keyword_only_is_refused():
    with pytest.raises(TypeError, match="seed is not keyword-only"):

        @checked
        def function(seed: Seed = 0) -> None: ...


@pytest.mark.parametrize("name", [*PUBLIC, "TrainConfig", "Predictor"])
def test_signatures_show_plain_types(name):
    text = str(inspect.signature(getattr(covid_fastai, name)))
    for noise in ("Annotated", "FieldInfo", "Interval", "Option(", "Validator", "Literal['auto'], "):
        assert noise not in text
    for parameter in inspect.signature(getattr(covid_fastai, name)).parameters.values():
        if parameter.annotation in OPTION_TYPES or str(parameter.annotation).removesuffix(" | None") in OPTION_TYPES:
            pytest.fail(f"{name}: {parameter} shows the option's type; is the function not checked?")


def test_train_classifier_shows_its_options_in_help():
    signature = inspect.signature(covid_fastai.train_classifier)
    assert signature.parameters["seed"].annotation is int and signature.parameters["seed"].default == 42
    assert "a whole number from 0 to 4294967295). Default 42." in covid_fastai.train_classifier.__doc__


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_refused_by_every_public_function_in_the_same_words(name):
    function = getattr(covid_fastai, name)
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    with pytest.raises(UsageError) as caught:
        function(*(None for _ in required), seed=2**40)
    assert caught.value.message.startswith(f"seed={2**40} is not a whole number from 0 to 4294967295")


def test_the_names_that_functions_know_are_those_of_the_options():
    from covid_fastai.data.augmentation import AUGMENTATIONS
    from covid_fastai.data.phantom import FINDINGS, HOSPITALS, SHORTCUTS
    from covid_fastai.model.weights import ARCHITECTURES

    assert option_choices(options.Augmentation) == tuple(AUGMENTATIONS)
    assert option_choices(options.Finding) == tuple(FINDINGS)
    assert option_choices(options.Hospital) == tuple(HOSPITALS)
    assert option_choices(options.Shortcut) == SHORTCUTS
    for name in ARCHITECTURES:
        check_option("arch", name, Arch)


def test_the_typed_dictionary_has_the_fields_of_the_config():
    typed = typing.get_type_hints(TrainOptions, include_extras=True)
    assert list(typed) == list(TrainConfig.model_fields)
    for name, option in TrainConfig.option_types().items():
        wider = str | Path | None if name in ("image_root", "weights", "join") else plain_type(option)
        assert plain_type(typed[name]) == wider, name
    assert not TrainOptions.__required_keys__


FAULTS = [
    ("seed", "-1"),
    ("seed", "many"),
    ("valid_pct", "1.5"),
    ("image_size", "3"),
    ("batch_size", "1"),
    ("balance", "much"),
    ("augmentation", "flip"),
    ("arch", "resnet19"),
    ("device", "gpu"),
    ("precision", "fp8"),
    ("num_workers", "-1"),
    ("learning_rate", "0"),
    ("lr_ratio", "0.5"),
    ("frozen_epochs", "-1"),
    ("weight_decay", "nan"),
    ("gradient_clip", "0"),
    ("negatives_per_positive", "0"),
    ("split", "hospital"),
    ("on_problem", "ignore"),
    ("classes", " "),
    ("label_columns", ","),
    ("uncertain", "maybe"),
    ("readers", "vote"),
]


@pytest.mark.parametrize(("name", "text"), FAULTS)
def test_one_fault_has_one_message_in_python_and_on_the_command_line(name, text):
    from typer.testing import CliRunner

    from covid_fastai.app.cli.main import app

    try:
        value = float(text) if "." in text or text == "nan" else int(text)
    except ValueError:
        value = text
    with pytest.raises(UsageError) as in_python:
        TrainConfig(**{name: value})
    done = CliRunner().invoke(app, ["train", "data", f"--{name.replace('_', '-')}={text}"])
    assert isinstance(done.exception, UsageError)
    assert (done.exception.message, done.exception.hint) == (in_python.value.message, in_python.value.hint)


def test_functions_and_config_say_the_same():
    for function, wrong in [
        (covid_fastai.split_by_patient, {"valid_pct": 1.0}),
        (covid_fastai.build_dataloaders, {"batch_size": 1}),
        (covid_fastai.build_dataloaders, {"device": "gpu"}),
        (covid_fastai.build_learner, {"arch": "resnet19"}),
        (covid_fastai.fit, {"learning_rate": 0}),
        (covid_fastai.read_cohort, {"seed": 2**40}),
    ]:
        with pytest.raises(UsageError) as of_config:
            TrainConfig(**wrong)
        with pytest.raises(UsageError) as of_function:
            function(None, **wrong)
        assert of_function.value.hint == of_config.value.hint
        # a function also takes a device that is no text
        assert of_function.value.message.replace(", or a torch.device.", ".") == of_config.value.message


def test_options_import_nothing_heavy():
    code = "import sys, covid_fastai.options; print(sorted({'torch', 'fastai', 'pandas', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
