"""Messages on the command line name its own options."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

import covid_fastai.app.cli.main  # noqa: F401 - its commands have the options
from covid_fastai.app.cli.wording import OptionFormatter, as_options, remedies_as_options

PACKAGE = Path(__file__).parents[3] / "covid_fastai"

AS_OPTIONS = {
    'Fix them, or set on_problem="skip".': "Fix them, or set --on-problem skip.",
    "Set split='official' and folds=5.": "Set --split official and --folds 5.",
    "image_root=/data/x is not a folder.": "--image-root /data/x is not a folder.",
    "Start again with resume=False, or write another table.": "Start again with --no-resume, or write another table.",
    "Use weights=None or a file.": "Use --weights none or a file.",
    "evaluate_test=False.": "no --evaluate-test.",
    "audit=False saves time.": "--no-audit saves time.",
    "Continue with resume='runs/x y'.": "Continue with --resume 'runs/x y'.",
    "classes=['A', 'B c'].": "--classes 'A,B c'.",
    "labels={'a': 'b', 'c': 'd'}": "--label a=b --label c=d",
    "Give positive=, one of A, B.": "Give --positive, one of A, B.",
    "Name it with `positive`.": "Name it with --positive.",
    "Choose a smaller batch_size or image_size.": "Choose a smaller --batch-size or --image-size.",
    "valid_pct=1.5 is not a number above 0": "--valid-pct 1.5 is not a number above 0",
}
UNCHANGED = [
    "read_cohort('x', on_problem='skip') does it.",  # a call of Python
    "row 3: split=train/x.png is missing.",  # paths and names of the data
    "'image_size=64' is a column.",
    "image_size.png is unreadable.",
    "The split by patient has a task and a seed.",  # words that are options, too
    "other_name=3 is unknown.",
    "covid-fastai train DATA --on-problem skip",
    "",
]


@pytest.mark.parametrize("text", AS_OPTIONS)
def test_options_of_python_become_those_of_the_command_line(text):
    assert as_options(text) == AS_OPTIONS[text]


@pytest.mark.parametrize("text", UNCHANGED)
def test_calls_data_and_prose_stay(text):
    assert as_options(text) == text


def test_remedies_and_warnings_follow_and_reasons_stay():
    row = {"row": 2, "path": "a.png", "reason": "split=train", "remedy": "Set on_problem='skip'."}
    assert remedies_as_options([row]) == [row | {"remedy": "Set --on-problem skip."}]
    formatter = OptionFormatter("%(message)s")
    record = logging.LogRecord("covid_fastai", logging.WARNING, "", 0, "Continue with resume=%r.", ("runs/a",), None)
    assert formatter.format(record) == "Continue with --resume runs/a."
    record.levelno = logging.INFO
    assert formatter.format(record) == "Continue with resume='runs/a'."


def test_the_library_names_no_option_of_the_command_line_in_brackets():
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if "app/cli" not in path.as_posix() and path.name != "html.py"  # CSS variables
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\(--[a-z][a-z-]+", line)
    ]
    assert not found
