"""What the shell completes, and the panels of the help."""

from __future__ import annotations

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from covid_fastai.app.cli.main import COMMANDS, app
from covid_fastai.app.cli.options import OUTPUT, PANELS
from covid_fastai.config import TrainConfig
from covid_fastai.run_folder import RunFolder


def complete(*words: str) -> list[str]:
    """Return what bash offers for the last word."""
    environment = {"_COVID_FASTAI_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["covid-fastai", *words])}
    environment["COMP_CWORD"] = str(len(words))
    result = CliRunner().invoke(app, [], env=environment, prog_name="covid-fastai")
    assert result.exit_code == 0, result.output
    return result.output.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--task", ""], ["covid", "pneumonia", "etiology"]),
        (["train", "--arch", "resnet3"], ["resnet34"]),
        (["train", "--device", ""], ["auto", "cpu", "cuda", "mps"]),
        (["train", "--weights", "c"], ["cxr"]),
        (["train", "--preset", ""], ["article"]),
        (["check", "--recipe", "nih"], ["nih-chestxray14"]),
        (["evaluate", "--unit", "p"], ["patient"]),
        (["batch", "--engine", ""], ["local", "ray"]),
        (["predict", "pneu"], ["pneumonia-children"]),
        (["au"], ["audit"]),
    ],
)
def test_values_are_completed(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complete(*words) == expected


def test_runs_and_models_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/20260101-covid-abcd", "runs/phantoms-0", "elsewhere/mine"):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(parents=True)
        if "phantoms" not in name:
            folder.config.write_text("{}")
            folder.record.write_text("")
    assert complete("validate", "") == ["runs/20260101-covid-abcd"]
    assert complete("predict", "") == ["pneumonia-children", "runs/20260101-covid-abcd"]
    assert complete("serve", "elsewhere/") == ["elsewhere/mine"]
    assert complete("train", "--resume", "runs/2") == ["runs/20260101-covid-abcd"]


def test_the_help_is_grouped():
    """Every command and every option of a training stands in one panel."""
    group = get_command(app)
    assert sorted(name.replace("-", "_") for name in group.commands) == sorted(
        command.__name__ for commands in COMMANDS.values() for command in commands
    )
    named = [name for names in PANELS.values() for name in names]
    assert sorted(named) == sorted(TrainConfig.model_fields)
    output = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).output
    titles = [line.strip("╭╮─ ") for line in output.splitlines() if line.startswith("╭")]
    assert titles == ["Arguments", "Options", OUTPUT, *PANELS] and max(map(len, output.splitlines())) <= 80
