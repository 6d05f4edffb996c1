"""The docs site: its list of pages is whole, and every link between them leads somewhere."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import covid_fastai

REPOSITORY = Path(__file__).parents[1]
NBS = REPOSITORY / "nbs"
SITE = yaml.safe_load((NBS / "_quarto.yml").read_text(encoding="utf-8"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
IN_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def referenced() -> list[str]:
    return [name for section in SITE["quartodoc"]["sections"] for name in section["contents"]]


def hrefs(node) -> list[str]:
    """Every page that navbar and sidebar name, in their order."""
    if isinstance(node, str):
        return [node] if node.endswith((".qmd", ".ipynb")) else []
    if isinstance(node, list):
        return [page for part in node for page in hrefs(part)]
    return hrefs(node.get("href", "")) + hrefs(node.get("contents", [])) if isinstance(node, dict) else []


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """A copy of nbs/ with the pages that come from Markdown files."""
    folder = tmp_path_factory.mktemp("site") / "nbs"
    shutil.copytree(NBS, folder, ignore=shutil.ignore_patterns("*.qmd", "reference"))
    runpy.run_path(str(NBS / "_site.py"))["write_pages"](folder)
    return folder


def test_the_reference_lists_every_public_name():
    values = {name: getattr(covid_fastai, name) for name in covid_fastai.__all__ if name != "__version__"}
    listed = {path.rsplit(".", 1)[1]: path.rsplit(".", 1)[0] for path in referenced()}
    assert sorted(listed) == sorted(values) and len(referenced()) == len(values)
    for name, module in listed.items():
        assert getattr(importlib.import_module(f"covid_fastai.{module}"), name) is values[name]


def test_the_sidebar_follows_the_story(pages):
    listed = [page for page in hrefs(SITE["website"]["sidebar"]["contents"]) if page.endswith(".ipynb")]
    assert listed == sorted(path.name for path in NBS.glob("[0-9]*.ipynb"))


def test_navigation_leads_to_pages(pages):
    website = SITE["website"]
    for page in hrefs(website["navbar"]["right"]) + hrefs(website["sidebar"]["contents"]):
        assert page == "reference/index.qmd" or (pages / page).exists(), page


def test_links_between_pages_resolve(pages):
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages.glob("*.qmd")}
    for path in pages.glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [(page, link) for page, text in texts.items() for link in LINK.findall(IN_CODE.sub("", text))]
    inside = [(page, link) for page, link in links if "://" not in link and not link.startswith("mailto:")]
    assert len(inside) >= 5
    lost = [f"{page}: {link}" for page, link in inside if not (pages / link).exists()]
    assert not lost


CARDS = ("covid_fastai/model/cxr-resnet18.md", "covid_fastai/data/lungs.md")


def test_links_in_the_repository_resolve():
    for name in ("README.md", "CONTRIBUTING.md", "pretraining/README.md", *CARDS):
        text = IN_CODE.sub("", (REPOSITORY / name).read_text(encoding="utf-8"))
        for link in LINK.findall(text):
            assert "://" in link or (REPOSITORY / name).parent.joinpath(link).exists(), f"{name}: {link}"


def test_the_workflow_builds_what_make_builds():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/docs.yml").read_text(encoding="utf-8"))
    assert {"run": "make docs"} in workflow["jobs"]["build"]["steps"]
    assert "nbdev-docs" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def test_the_reference_is_written_from_the_docstrings(pages):
    quartodoc = Path(sys.executable).with_name("quartodoc")
    done = subprocess.run([quartodoc, "build"], cwd=pages, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in referenced():
        page = pages / "reference" / f"{name}.qmd"
        assert page.exists(), name
    text = (pages / "reference/data.metadata.read_cohort.qmd").read_text(encoding="utf-8")
    assert "| on_problem" in text  # the table of the arguments


CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_map_of_the_package_lists_every_module():
    rows = [line.strip("| ").split(" | ") for line in CONTRIBUTING.splitlines() if line.startswith("| `")]
    listed = {folder.strip("`/"): set(re.findall(r"`([a-z_]+)`", modules)) for folder, _, modules in rows}
    listed["."] = set(re.findall(r"`([a-z_]+)`", next(r for r in CONTRIBUTING.splitlines() if "| top level" in r)))
    package = REPOSITORY / "covid_fastai"
    for folder, modules in listed.items():
        found = {path.stem for path in (package / folder).glob("*.py") if not path.stem.startswith("__")}
        assert found <= modules, f"{folder}: {sorted(found - modules)} are not in CONTRIBUTING.md"
    folders = {str(path.parent.relative_to(package)) for path in package.rglob("*.py") if path.stem != "__init__"}
    assert folders == set(listed)


def test_what_to_change_names_files_that_exist():
    table = CONTRIBUTING[CONTRIBUTING.index("## Where to change what") : CONTRIBUTING.index("## Rules")]
    paths = re.findall(r"`((?:[a-z_]+/)+[a-z_.]*|[a-z_]+\.py)`", table)
    assert len(paths) > 60
    lost = [path for path in paths if not any((REPOSITORY / root / path).exists() for root in ("", "covid_fastai"))]
    assert not lost
