"""The output of every command on consoles of any encoding: it degrades to escapes, and no command fails."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covid_fastai.app import cli
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
        ("cp1252", False),
        ("cp437", True),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in [("ascii", False), ("koi8-r", True), ("utf-8", True)]
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


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_stays_json_on_a_console_of_another_encoding(encoding, folder):
    commands = [["check", "labels.csv", "--json"], ["predict", "model \u03b2", *NAMES, "bad", "--json"]]
    out, _ = run_commands(folder, *commands, PYTHONIOENCODING=encoding)
    check, predict = (json_of(text) for text in out.decode(encoding).split("<3>"))
    assert {NAMES[2], "\u03a9 gone.png"} <= {os.path.basename(row["path"]) for row in check["problems"]}
    assert [os.path.basename(row["path"]) for row in predict["rows"]] == [*NAMES, "caf\\udce9 \\udcff.png"]


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
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
