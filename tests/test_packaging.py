"""settings.ini is the one place of the packaging facts, and what repeats a fact agrees with it."""

from __future__ import annotations

import re
import tomllib
import warnings
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
SETTINGS = ConfigParser(delimiters=("=",), interpolation=None)
SETTINGS.read(REPOSITORY / "settings.ini", encoding="utf-8")


def test_pyproject_holds_tools_only():
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "project" not in pyproject
    assert set(pyproject) == {"build-system", "tool"}


def test_ruff_is_one_version():
    pinned = re.search(r"ruff==(\S+)", SETTINGS["extras"]["dev"]).group(1)
    assert f"rev: v{pinned}" in (REPOSITORY / ".pre-commit-config.yaml").read_text()


def test_every_core_requirement_has_a_floor():
    lines = [line for line in SETTINGS["DEFAULT"]["requirements"].splitlines() if line.strip()]
    assert len(lines) >= 10
    assert all(">=" in line for line in lines)


def test_the_constraints_hold_a_version_of_every_requirement():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    texts = [SETTINGS["DEFAULT"]["requirements"]]
    texts += [text for name, text in SETTINGS["extras"].items() if name not in ("gradio", *SETTINGS.defaults())]
    wanted = [Requirement(line) for text in texts for line in text.splitlines() if re.match(r"\s*\w", line)]
    assert len(wanted) > 40
    for requirement in wanted:
        if requirement.name != "covid_fastai":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("module", ["covid_fastai.data.splits", "tests.test_packaging", "sklearn.linear_model"])
@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_a_warning_of_our_own_making_fails_a_test(module, category):
    with pytest.raises(category, match="old"):
        warnings.warn_explicit("old", category, "a.py", 1, module=module)


def test_version_is_one_version():
    version = SETTINGS["DEFAULT"]["version"]
    assert f"version: {version}" in (REPOSITORY / "CITATION.cff").read_text()


@pytest.mark.parametrize("command", ["pip install -e '.[dev]' && pytest", "pip install -e . && covid-fastai demo"])
def test_readme_names_the_two_commands(command):
    assert command in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_readmes_test_command():
    assert "bash -c \"pip install -e '.[dev]' && pytest\"\n" in (REPOSITORY / ".ci/run").read_text()
