"""What cannot be right is refused at once: before torch is imported, which takes seconds, and before data are read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from covid_fastai.app.cli.evaluate import runs
from covid_fastai.app.cli.main import app
from covid_fastai.app.cli.output import print_table
from covid_fastai.audit.leaks import name_others
from covid_fastai.config import TrainConfig
from covid_fastai.errors import DataError, UsageError
from covid_fastai.files import write_json
from covid_fastai.run_folder import FINISHED, RunFolder

TRAIN = ["train", "data"]
REFUSED = [  # the words of a command, and what its error says; `run` is a finished run, `begun` an unfinished one
    ([*TRAIN, "--weights", "imagnet"], "Did you mean 'imagenet'"),
    ([*TRAIN, "--weights", "None"], "--weights none for random weights"),
    ([*TRAIN, "--weights", "gone.pth"], "The weights 'gone.pth' do not exist"),
    ([*TRAIN, "--weights", "notes.txt"], "notes.txt is not a weights file"),
    ([*TRAIN, "--weights", "cxr", "--arch", "resnet50"], "for resnet18, not resnet50"),
    ([*TRAIN, "--weights", "w.pth", "--arch", "timm/densenet121"], "timm"),
    ([*TRAIN, "--arch", "resnet19"], "--arch resnet19 is not one of"),
    ([*TRAIN, "--task", "covd"], "There is no task 'covd'"),
    ([*TRAIN, "--recipe", "kaggle"], "kaggle"),
    ([*TRAIN, "--recipe", "covidx"], "lacks what the recipe covidx needs"),
    ([*TRAIN, "--encoding", "utf-99"], "--encoding utf-99 is not known"),
    ([*TRAIN, "--task", "etiology", "--negatives-per-positive", "1"], "needs a task of two classes"),
    ([*TRAIN, "--image-root", "gone"], "--image-root gone is not a folder"),
    ([*TRAIN, "--join", "gone.csv", "--on", "id"], "gone.csv does not exist"),
    ([*TRAIN, "--frozen-epochs", "0", "--unfrozen-epochs", "0"], "both 0"),
    ([*TRAIN, "--folds", "5", "--split", "image"], "cannot be combined"),
    ([*TRAIN, "--folds", "5", "--evaluate-test"], "cannot be combined"),
    ([*TRAIN, "--folds", "1"], "--folds 1 is not a whole number, 2 or more"),
    ([*TRAIN, "--n-jobs", "2"], "--folds 5"),
    ([*TRAIN, "--out", "full"], "full exists and is not empty"),
    ([*TRAIN, "--out", "notes.txt"], "notes.txt exists and is not empty"),
    (["train", "runs"], "runs holds the folders of runs, not data"),
    (["train", "run"], "run is the folder of a run, not data"),
    (["check", "empty"], "The folder empty is empty"),
    (["predict", "pneumonia-children", "empty"], "The folder empty is empty"),
    (["evaluate", "empty"], "empty is a folder, not a table"),
    (["train", "--resume", "gone"], "gone is not a run that can be resumed"),
    (["train", "--resume", "run"], "The run run is finished"),
    (["train", "--resume", "begun", "--seed", "1"], "A resumed run keeps its own options"),
    (["train", "--resume", "begun", "--folds", "5"], "was begun with train_classifier"),
    (["train", "--resume", "begun"], "which do not exist"),
    (["train", "gone", "--resume", "begun"], "gone does not exist"),
    (["demo", "--out", "full"], "full exists and is not empty"),
    (["check", "data", "--image-root", "gone"], "--image-root gone is not a folder"),
    (["explore", "data", "--out", "gone/page.html"], "there is no folder gone"),
    (["validate", "gone", "data"], "gone"),
    (["validate", "run", "gone"], "gone does not exist"),
    (["validate", "run", "data", "--image-root", "gone"], "--image-root gone is not a folder"),
    (["audit", "data", "--full"], "not the folder of a run"),
    (["audit", "data", "--against", "gone"], "gone is not a folder"),
    (["audit", "data", "--against", "full", "--against", "./full"], "is given twice"),
    (["audit", "run", "--task", "pneumonia"], "Omit --task"),
    (["audit", "run", "--out", "page.html"], "Omit --out"),
    (["export", "gone", "new"], "gone"),
    (["predict", "gone", "scan.png"], "There is no folder gone"),
    (["batch", "gone", "scans", "out.csv"], "There is no folder gone"),
    (["evaluate", "gone.csv"], "gone.csv"),
    (["compare", "gone.csv"], "two models or more"),
]
PROGRAM = """
import json, logging, sys
from typer.testing import CliRunner
from covid_fastai.app.cli.main import app
from covid_fastai.app.cli.wording import as_options
for words in json.load(sys.stdin):
    logging.getLogger("covid_fastai").handlers.clear()
    error = CliRunner().invoke(app, words).exception
    print(json.dumps([type(error).__name__, as_options(str(error)), sorted({"torch", "fastai"} & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "data").mkdir()
    (folder / "full").mkdir()
    (folder / "empty").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "notes.txt").write_text("no weights")
    (folder / "w.pth").write_text("no weights either")
    for name in ("run", "begun"):
        run = RunFolder(folder / name)
        run.path.mkdir()
        write_json(run.config, {"data": "moved", "config": TrainConfig(weights=None).to_dict(), "python": ""})
        run.log(FINISHED if name == "run" else "started")
    shutil.copytree(folder / "run", folder / "runs" / "run")
    return folder


@pytest.fixture(scope="module")
def answers(place):
    """The errors of all commands, in one process, each with the heavy packages that were imported by then."""
    before = sorted(place.rglob("*"))
    words = json.dumps([words for words, _ in REFUSED])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=words, capture_output=True, text=True, cwd=place, check=True
    )
    assert sorted(place.rglob("*")) == before, "a command that was refused left something behind"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    return dict(zip((" ".join(words) for words, _ in REFUSED), lines, strict=True))


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_right_is_refused_before_torch_is_imported(answers, words, text):
    kind, message, imported = answers[" ".join(words)]
    assert text in message, f"{kind}: {message}"
    assert not imported


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "data", "--lr", "1e-3"], "No such option: --lr. fastai's lr is --learning-rate here."),
        (["train", "data", "--bs", "8"], "fastai's bs is --batch-size here."),
        (["train", "data", "--epochs", "3"], "fastai's epochs is --frozen-epochs and --unfrozen-epochs here."),
        (["train", "data", "--loss-func", "x"], "loss_func is code, which only Python can take"),
        (["train", "data", "--cbs", "x"], "callbacks is code, which only Python can take"),
        (["train", "data", "--moms", "x"], "fastai's moms is an option of vision_learner"),
        (["check", "data", "--fn-col", "x"], "fastai's fn_col is --path-column here."),
        (["check", "data", "--bs", "8"], "No such option: --bs"),
        (["check", "data", "--loss-func", "8"], "No such option: --loss-func"),
    ],
)
def test_the_command_line_knows_the_names_of_fastai(words, text):
    shown = " ".join(CliRunner().invoke(app, words, terminal_width=200).output.replace("│", " ").split())
    assert text in shown and ("here." in text or "Possible options: --arch" not in shown)
    assert "code" in text or "is code" not in shown


def test_a_folder_without_runs_is_called_so(tmp_path, capsys):
    runs(tmp_path)
    assert capsys.readouterr().out.startswith(
        f"There is no run in {tmp_path}. A training writes one: covid-fastai train"
    )
    print_table(pd.DataFrame({"a": []}), title="Duplicate images")
    assert capsys.readouterr().out == "Duplicate images: none\n"


def test_other_folders_of_an_audit_have_names_of_their_own(tmp_path):
    inner = tmp_path / "a" / "scans"
    inner.mkdir(parents=True)
    (tmp_path / "scans").mkdir()
    named = name_others([tmp_path / "scans", inner], name="cohort")
    assert list(named) == ["scans", str(inner.resolve())]
    assert list(name_others([inner], name="scans")) == [str(inner.resolve())]  # the remedy was no option before
    with pytest.raises(UsageError, match="given twice"):
        name_others([inner, inner], name="cohort")
    with pytest.raises(DataError, match="is not a folder"):
        name_others([tmp_path / "gone"], name="cohort")
