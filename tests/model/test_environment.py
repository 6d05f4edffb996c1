"""Options that do not work on this machine are refused before data are read and before a run has a folder."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from covid_fastai import cross_validate, train_classifier
from covid_fastai.app.cli import main
from covid_fastai.config import TrainConfig
from covid_fastai.errors import CovidFastaiError, ModelFormatError, OfflineError, UnavailableError, UsageError
from covid_fastai.model import weights
from covid_fastai.model.environment import check_environment

NO_TIMM = importlib.util.find_spec("timm") is None
WRONG = [
    ({"task": "covd"}, UsageError, "There is no task 'covd'"),
    ({"task": "etiology", "negatives_per_positive": 1.0}, UsageError, "needs a task of two classes"),
    ({"encoding": "utf-99"}, UsageError, "encoding='utf-99' is not known"),
    ({"device": "cuda:99"}, UnavailableError, "Device 'cuda:99' is not available"),
    ({"device": "gpu"}, UsageError, "device='gpu' is not one of"),
    ({"device": "cpu", "precision": "fp16"}, UsageError, "precision='fp16'"),
    ({"precision": "fp8"}, UsageError, "precision='fp8' is not one of"),
    ({"augmentation": "flip"}, UsageError, "augmentation='flip' is not one of"),
    ({"balance": "much"}, UsageError, "balance='much' is not one of"),
    ({"arch": "resnet19"}, UsageError, "arch='resnet19' is not one of"),
    ({"arch": "timm/no_such_network"}, UnavailableError if NO_TIMM else UsageError, "timm"),
    ({"weights": "imagnet"}, UsageError, "Did you mean 'imagenet'"),
    ({"weights": "gone.safetensors"}, UsageError, "The weights 'gone.safetensors' do not exist"),
    ({"weights": "cxr", "arch": "resnet50"}, UsageError, "for resnet18, not resnet50"),
    ({"weights": "notes.txt"}, UsageError, "notes.txt is not a weights file"),
    ({"weights": "damaged.safetensors"}, ModelFormatError, "damaged.safetensors is not a safetensors file"),
    ({"weights": "other.safetensors"}, ModelFormatError, "other.safetensors is not a resnet18"),
    ({"weights": "imagenet"}, OfflineError, "no network"),
    ({"initial_image_size": 256}, UsageError, "is not below image_size=128"),
    ({"frozen_epochs": 0, "unfrozen_epochs": 0}, UsageError, "both 0"),
]
IDS = ["-".join(f"{name}={value}" for name, value in choices.items()) for choices, _, _ in WRONG]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to a folder with invalid weights, without a network; reading data fails the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")
    (tmp_path / "damaged.safetensors").write_text("no weights either")
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "other.safetensors")

    def offline(*arguments, **options):
        raise OfflineError("no network")

    def read(*arguments, **options):
        raise AssertionError("data were read")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(weights, "download", offline)
    monkeypatch.setattr("covid_fastai.data.metadata.read_rows", read)
    return tmp_path


@pytest.mark.parametrize(("choices", "error", "message"), WRONG, ids=IDS)
@pytest.mark.parametrize("function", [train_classifier, cross_validate])
def test_invalid_options_are_refused_before_data_are_read(here, phantom_root, function, choices, error, message):
    before = sorted(here.rglob("*"))
    with pytest.raises(error, match=message):
        function(phantom_root, **choices)
    assert sorted(here.rglob("*")) == before, "a run that cannot begin left something behind"


@pytest.mark.parametrize(("choices", "error", "message"), WRONG, ids=IDS)
def test_the_command_line_has_the_same_errors(here, phantom_root, choices, error, message, monkeypatch):
    monkeypatch.setattr(main, "set_up_logging", lambda **options: None)  # it would change all tests
    words = [f"--{name.replace('_', '-')}={value}" for name, value in choices.items()]
    before = sorted(here.rglob("*"))
    done = CliRunner().invoke(main.app, ["train", str(phantom_root), *words])
    assert isinstance(done.exception, error)
    with pytest.raises(error, match=message) as in_python:
        train_classifier(phantom_root, **choices)
    assert (done.exception.message, done.exception.hint) == (in_python.value.message, in_python.value.hint)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"weights": None, "arch": "resnet50", "device": "cpu", "precision": "bf16"},
        {"encoding": "cp1252", "negatives_per_positive": 1.0, "task": "pneumonia"},
        {"encoding": "utf-16"},
    ],
)
def test_valid_options_pass(choices):
    check_environment(TrainConfig(**choices))


def test_options_are_checked_before_a_missing_data_set(here):
    with pytest.raises(UsageError, match="The weights .* do not exist"):
        train_classifier("gone", weights="gone.pth")
    with pytest.raises(CovidFastaiError, match="gone does not exist"):
        train_classifier("gone", weights=None)


def test_a_run_whose_weights_are_missing_is_not_resumed(phantom_root, tmp_path, monkeypatch):
    from covid_fastai.training import train

    saved = tmp_path / "first.safetensors"
    save_file(weights.empty_body("resnet18").to_empty(device="cpu").state_dict(), saved)
    monkeypatch.setattr("covid_fastai.training.run_context.check_environment", lambda config: None)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "read_cohort", stop)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(phantom_root, weights=saved, out=tmp_path / "run", quiet=True)
    monkeypatch.undo()
    saved.unlink()
    monkeypatch.setattr("covid_fastai.data.metadata.read_rows", stop)
    with pytest.raises(UsageError, match="The weights .* do not exist"):
        train_classifier(resume=tmp_path / "run", quiet=True)
