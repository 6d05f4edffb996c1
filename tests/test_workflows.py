"""The workflows: actions are pinned by commit, and a release is of the version in settings.ini, compared as text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_a_commit_with_its_tag_beside_it(workflow):
    uses = re.findall(r"uses: (.+)$", workflow.read_text(encoding="utf-8"), re.MULTILINE)
    assert uses and all(PINNED.fullmatch(use) for use in uses)


def test_one_action_is_one_commit_everywhere():
    uses = {use for path in WORKFLOWS for use in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))}
    assert len({use.partition("@")[0] for use in uses}) == len(uses)


@pytest.mark.skipif(shutil.which("bash") is None, reason="system: there is no bash here")
@pytest.mark.parametrize(
    ("tag", "same"), [("v0.1.0", True), ("v0x1.0", False), ("v0.1.", False), ("v.*", False), ("vv0.1.0", False)]
)
def test_a_tag_is_compared_as_text(tmp_path, tag, same):
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["build"]["steps"]
    (script,) = (step["run"] for step in steps if "GITHUB_REF_NAME" in step.get("run", ""))
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nname = covid_fastai\nversion = 0.1.0\n")
    command = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env={**os.environ, "GITHUB_REF_NAME": tag})
    assert (command.returncode == 0) == same


def test_no_workflow_can_write_to_the_repository():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        granted = [workflow["permissions"], *(job.get("permissions", {}) for job in workflow["jobs"].values())]
        assert all(
            scope in ("pages", "id-token") for grants in granted for scope, level in grants.items() if level == "write"
        )
