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
    assert "ADD" not in words
    assert "/readyz" in found["HEALTHCHECK"]
    check = json.loads(found["HEALTHCHECK"].split("CMD", 1)[1])
    compile(check[2], "HEALTHCHECK", "exec")
    assert "ORT_DISABLE_TELEMETRY=1" in found["ENV"]


def test_its_base_is_pinned_and_another_digest_can_be_given():
    (argument, base), (word, image) = instructions()[:2]
    assert (argument, word, image) == ("ARG", "FROM", "${BASE}")
    assert re.fullmatch(r"BASE=python:3\.12-slim@sha256:[0-9a-f]{64}", base)
    text = (REPOSITORY / "Dockerfile").read_text()
    assert "--build-arg BASE=python:3.12-slim@sha256:" in text and "docker buildx imagetools inspect" in text


def test_every_package_that_it_installs_has_one_version():
    (install,) = (rest for word, rest in instructions() if word == "RUN" and "requirements-serve.txt" in rest)
    words = shlex.split(install)
    assert words[:5] == ["pip", "install", "-c", "/tmp/constraints.txt", "-r"]
    pinned = {line.partition("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}
    named = {re.sub(r"[-_.]+", "-", name).lower() for name in (*requirements(), *words[6:])}
    assert {"pydicom", "python-gdcm"} <= named <= {re.sub(r"[-_.]+", "-", name) for name in pinned}


def test_it_builds_the_package_with_a_version_that_is_stated():
    commands = [shlex.split(command) for word, rest in instructions() if word == "RUN" for command in rest.split("&&")]
    installs = [command for command in commands if command[:2] == ["pip", "install"]]
    assert len(installs) == 3
    for command in installs:
        is_built = {"--no-deps", "--no-build-isolation"} <= {*command}
        assert is_built or command[2:4] == ["-c", "/tmp/constraints.txt"], command
    assert installs[1][4:] == ["setuptools"] and "--no-build-isolation" in installs[2]
    assert "\nsetuptools==" in (REPOSITORY / "constraints.txt").read_text()


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
