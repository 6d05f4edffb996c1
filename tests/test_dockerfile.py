"""The image of `covid-fastai serve`, as far as it is known without an engine: lines, files, requirements."""

from __future__ import annotations

import json
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

from typer.testing import CliRunner

REPOSITORY = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]


def requirements() -> dict[str, str]:
    lines = (REPOSITORY / "requirements-serve.txt").read_text().splitlines()
    return dict(re.split(r"(?=>=)", line) for line in lines if line and not line.startswith("#"))


def test_it_does_not_run_as_root_and_tells_its_health():
    found = dict(instructions())
    words = [word for word, _ in instructions()]
    assert re.fullmatch(r"[1-9]\d{3,}", found["USER"]) and words.index("USER") < words.index("ENTRYPOINT")
    assert found["FROM"].endswith("-slim") and "ADD" not in words
    assert "/readyz" in found["HEALTHCHECK"]
    check = json.loads(found["HEALTHCHECK"].split("CMD", 1)[1])
    compile(check[2], "HEALTHCHECK", "exec")
    assert "ORT_DISABLE_TELEMETRY=1" in found["ENV"]


def test_what_it_copies_is_there_and_not_ignored():
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for word, rest in instructions():
        if word == "COPY":
            for name in shlex.split(rest)[:-1]:
                assert (REPOSITORY / name).exists() and f"!{name}" in ignored, name
    copied = {name for word, rest in instructions() if word == "COPY" for name in shlex.split(rest)[:-1]}
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_its_command_is_one_that_the_command_line_has():
    from covid_fastai.app.cli.main import app

    command = json.loads(dict(instructions())["ENTRYPOINT"])
    assert command[:2] == ["covid-fastai", "serve"]
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0
    for option in [word for word in command if word.startswith("--")]:
        assert option in shown.output


def test_its_requirements_are_those_of_settings():
    settings = ConfigParser(delimiters=("=",), interpolation=None)
    settings.read(REPOSITORY / "settings.ini", encoding="utf-8")
    text = settings["DEFAULT"]["requirements"] + settings["extras"]["web"]
    known = dict(re.match(r"([\w\-]+)(.*)", line.strip()).groups() for line in text.splitlines() if line.strip())
    assert requirements().items() <= known.items()
    web = {
        re.match(r"[\w\-]+", line.strip()).group() for line in settings["extras"]["web"].splitlines() if line.strip()
    }
    assert web <= requirements().keys() and not {"torch", "fastai", "torchvision"} & requirements().keys()
