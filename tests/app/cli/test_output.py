"""The output of every command on consoles of any encoding: it degrades to escapes, and no command fails."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.app import cli
from covid_fastai.app.cli import main
from covid_fastai.app.cli.output import VisibleFormatter, echo, print_json, print_table, wrap_text
from covid_fastai.data.problems import CONTROLS, visible
from tests.small_model import write_small_model

# One process that runs several commands, since each process imports pandas again.
COMMANDS = """
import json, os, sys
from covid_fastai.app.cli.main import main
for number, arguments in enumerate(json.loads(sys.argv.pop())):
    sys.argv[1:] = [os.fsdecode(argument.encode("utf-8", "surrogateescape")) for argument in arguments]
    try:
        main()
    except SystemExit as end:
        print(f"<{end.code}>", flush=True)
"""
NAMES = ["bild_\u00f6\u00df.png", "\u80ba\u708e.png", "\u0441\u043d\u0438\u043c\u043e\u043a.png", "\U0001fac1.png"]
LABELS = ["Normal", "COVID-19", "\u041a\u043e\u0432\u0438\u0434", "Normal"]
PREDICTIONS = "path,patient,label,p_Normal,p_\u041a\u043e\u0432\u0438\u0434\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("Da\u0308ta \u80ba")
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / name)
    rows = [f"{name},{label},p{number}" for number, (name, label) in enumerate(zip(NAMES, LABELS, strict=True))]
    text = "\n".join(["image,label,patient", *rows, "\u03a9 gone.png,Normal,p9"])
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    labels = ("Normal", LABELS[2])
    rows = [f"{n}.png,p{n},{labels[n % 2]},{1 - p:.2f},{p:.2f}" for n, p in enumerate(rng.uniform(size=40))]
    (folder / "predictions.csv").write_text(PREDICTIONS + "\n".join(rows), encoding="utf-8")
    write_small_model(folder / "model \u03b2")
    try:
        (folder / "bad").mkdir()
        content = (folder / NAMES[0]).read_bytes()
        Path(os.fsdecode(os.fsencode(folder / "bad") + b"/caf\xe9 \xff.png")).write_bytes(content)
    except OSError:
        pytest.skip("system: this file system takes UTF-8 names only")
    return folder


def run_commands(folder: Path, *commands: list[str], **environment: str) -> tuple[bytes, bytes]:
    variables = {**os.environ, "COVID_FASTAI_CACHE": "off", **environment}
    arguments = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(arguments, cwd=folder, env=variables, capture_output=True)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout, done.stderr


def json_of(text: str) -> dict:
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


@pytest.mark.parametrize(
    ("encoding", "terminal"),
    [
        pytest.param("cp437", True, marks=pytest.mark.slow),
        *(
            pytest.param(*other, marks=[pytest.mark.slow, pytest.mark.nightly])
            for other in [("cp1252", False), ("ascii", False), ("koi8-r", True), ("utf-8", True)]
        ),
    ],
)
def test_no_command_fails_on_a_console_of_another_encoding(encoding, terminal, folder):
    """With `FORCE_COLOR`, rich takes the pipe for a terminal and draws its tables with lines."""
    model, image = "model \u03b2", [NAMES[1], os.path.join(os.fsencode(folder), b"bad").decode()]
    commands = [
        ["check", "labels.csv"],
        ["explore", "labels.csv", "--out", "\u03b4.html"],
        ["predict", model, *image],
        ["evaluate", "predictions.csv"],
        ["cache"],
        ["check", "\u80ba gone.csv"],
        ["predict", model, "--\u80ba"],
        ["predict", "--help"],
    ]
    terminal_variables = {"FORCE_COLOR": "1"} if terminal else {"NO_COLOR": "1"}
    out, err = run_commands(folder, *commands, PYTHONIOENCODING=encoding, COLUMNS="90", **terminal_variables)
    text, errors = out.decode(encoding), err.decode(encoding)  # fails if it was written in another encoding
    assert "Unexpected error" not in errors and "Traceback" not in errors
    codes = [line for line in text.splitlines() if line.startswith("<")]
    assert codes == ["<3>", "<0>", "<0>", "<0>", "<0>", "<3>", "<2>", "<0>"], errors
    if not codecs.lookup(encoding).name.startswith("utf"):
        assert "\\u80ba" in text and "\\u80ba gone.csv" in errors


@pytest.mark.parametrize(
    "encoding",
    [
        "cp1252",
        pytest.param("ascii", marks=pytest.mark.slow),
        pytest.param("utf-8", marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_json_stays_json_on_a_console_of_another_encoding(encoding, folder):
    commands = [["check", "labels.csv", "--json"], ["predict", "model \u03b2", *NAMES, "bad", "--json"]]
    out, _ = run_commands(folder, *commands, PYTHONIOENCODING=encoding)
    check, predict = (json_of(text) for text in out.decode(encoding).split("<3>"))
    assert {NAMES[2], "\u03a9 gone.png"} <= {os.path.basename(row["path"]) for row in check["problems"]}
    assert [os.path.basename(row["path"]) for row in predict["rows"]] == [*NAMES, "caf\\udce9 \\udcff.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"LC_ALL": "C"}, marks=pytest.mark.nightly),
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_locale_without_utf8_gives_a_table_or_a_reason(variables, folder):
    """The second is Python without its UTF-8 mode, for which the names of these files are no text."""
    out, err = run_commands(
        folder, ["check", str(folder / "labels.csv")], ["predict", "model \u03b2", "bad"], **variables
    )
    assert b"Unexpected error" not in err
    if "PYTHONUTF8" in variables:
        assert b"not valid text in the encoding of file names" in err and b"PYTHONUTF8=1" in err
    else:
        assert b"unknown label" in err and b"images and patients" in out


def test_every_command_prints_through_the_module_that_degrades():
    modules = [path for path in Path(cli.__path__[0]).glob("*.py") if path.name != "output.py"]
    assert len(modules) > 8
    for path in modules:
        assert "typer.echo" not in path.read_text(encoding="utf-8"), path.name  # it writes UTF-8 to an ASCII console


HOSTILE = ["\x1b]0;owned\x07.png", "a\x1b[2J.png", "\x9b31m.png", "gnp.\u202eexe.png", "x\ny.png", "c\r.png"]
HOSTILE += ["\x7f\x08.png"]


@pytest.mark.skipif(os.name == "nt", reason="system: file names of Windows have no control characters")
@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.nightly), {"FORCE_COLOR": "1", "COLUMNS": "200"}],
)
def test_no_control_character_of_a_name_reaches_the_terminal(tmp_path, variables):
    """Of files, columns, labels and classes; the escapes that rich writes itself are SGR sequences only."""
    names = [*HOSTILE, "--\x1b[31m.png"]
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / name).write_bytes(b"no image")
    rows = [f'"{name}","{name[:-4]}"' for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows, '"gone\x1b[2J.png",Normal']))
    labels = ["Normal", "x\x1b[2J"] * 4
    scores = [f'"{name}",{label},{p}' for name, label, p in zip(names, labels, [0.1, 0.9] * 4, strict=True)]
    (tmp_path / "scores.csv").write_text("\n".join(["path,label,p_x\x1b[2J", *scores]))
    write_small_model(tmp_path / "model")
    commands = [
        ["predict", "model", "images", "--csv", "out.csv"],
        ["predict", "model", *(f"images/{name}" for name in names), "--json"],
        ["predict", "model", "labels.csv", "--image-root", "images", "--debug"],
        ["check", "labels.csv", "--image-root", "images"],
        ["check", "labels.csv", "--label-column", "no\x1b[2J"],
        ["evaluate", "scores.csv"],
        ["check", "gone\x1b[2J.csv", "--json"],
        ["predict", "model", names[-1]],
        ["\x1b[2J"],
    ]
    out, err = run_commands(tmp_path, *commands, **variables)
    text = re.sub(r"\x1b\[[\d;]*m", "", (out + err).decode())
    assert re.findall("[^\n]*[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e][^\n]*", text) == []
    assert "Unexpected error" not in text and r"\x1b[2J" in text and r"\u202e" in text
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert {os.path.basename(row["path"]) for row in table} == set(names)
    report = json_of(out.decode().split("<3>")[1])
    assert [os.path.basename(row["path"]) for row in report["rows"]] == names


def test_lines_tables_json_and_the_log_escape_control_characters(capsys):
    for name in HOSTILE:
        echo(name)
        print_table(pd.DataFrame({name: [name]}), title=name)
        print_json({name: [name]})
        record = logging.LogRecord("covid_fastai", logging.WARNING, "", 0, "%s is bad", (name,), None)
        out = capsys.readouterr().out
        assert json_of(out) == {name: [name]}
        for text in (out, VisibleFormatter("%(message)s").format(record)):
            assert not CONTROLS.search(text.replace("\n", "")) and len(text) > len(name)
        assert visible(name).isprintable() and visible(visible(name)) == visible(name)
    assert visible("a\tb\nc", lines=True) == "a\tb\nc" and visible("\u80ba \u00f6.png") == "\u80ba \u00f6.png"


@pytest.mark.parametrize("arguments", [["\x1b[2J"], ["predict", "m", "--\x1b[31m"], ["check", "-\u202e"]])
def test_a_name_that_begins_like_an_option_is_not_printed_raw(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["covid-fastai", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2 and not CONTROLS.search(capsys.readouterr().err.replace("\n", ""))


@pytest.mark.parametrize(
    "arguments", [["explore", "a", "b\x1b[2J"], ["doctor", "\u202ex"], ["export", "a", "b", "\x1b]0;t\x07"]]
)
@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}])
def test_a_name_too_many_is_not_printed_raw(tmp_path, arguments, variables):
    """As `explore *` gives in a folder of somebody else."""
    _, err = run_commands(tmp_path, arguments, **variables)
    text = re.sub(r"\x1b\[[\d;]*m", "", err.decode())
    assert "Got unexpected extra argument" in text and not CONTROLS.search(text.replace("\n", ""))


def test_warnings_and_logs_of_other_packages_are_not_printed_raw():
    code = (
        "import logging, warnings\n"
        "from covid_fastai.app.cli.output import set_up_logging\n"
        "set_up_logging(quiet=True, as_json=False)\n"
        "warnings.warn('first \\x1b[2J')\n"
        "logging.getLogger('other').warning('second \\x1b[2J')"
    )
    err = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "first" in err and "second" in err and err.count(r"\x1b[2J") >= 2
    assert not CONTROLS.search(err.replace("\n", ""))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("one two three four five", ["one two three", "four five"]),
        ("  in a/very/long/path/of-an-image.png it is", ["  in", "  a/very/long/path/of-an-image.png", "  it is"]),
        ("Do this: covid-fastai check DATA --task covid", ["Do this:", "  covid-fastai check DATA --task covid"]),
    ],
)
def test_names_and_commands_stay_whole_on_a_narrow_terminal(text, lines):
    assert wrap_text(text, 16).split("\n") == lines


def test_lines_break_by_the_columns_that_characters_take():
    """A Chinese character takes two columns, an accent of its own none."""
    text = "  \u80ba\u708e \u80ba\u708e \u80ba\u708e e\u0301e\u0301e\u0301e\u0301 e\u0301e\u0301e\u0301e\u0301"
    assert wrap_text(text, 12).split("\n") == [
        "  \u80ba\u708e \u80ba\u708e",
        "  \u80ba\u708e e\u0301e\u0301e\u0301e\u0301",
        "  e\u0301e\u0301e\u0301e\u0301",
    ]


def test_a_long_command_stands_alone_below_what_it_is_for():
    """With any number of blanks before it, as in a list of steps, and further in than its step."""
    command = "covid-fastai audit runs/20261130-061535-covid-qfkn --full"
    assert wrap_text(f"  train without the lungs:  {command}", 80).split("\n") == [
        "  train without the lungs:",
        f"    {command}",
    ]


def test_a_table_whose_words_do_not_fit_is_printed_in_blocks(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    name = "runs/20261129-221640-covid-abcd"
    print_table(pd.DataFrame({"run": [name], "verdict": ["not shown"], "started": ["2026-11-29T22:16:40Z"]}), title="t")
    assert capsys.readouterr().out.splitlines() == [
        "t",
        f"  {name}",
        "    verdict: not shown",
        "    started: 2026-11-29T22:16:40Z",
    ]
    print_table(pd.DataFrame({"run": ["r1"], "verdict": ["not shown"]}), title="t")
    assert "│ r1" in capsys.readouterr().out
