"""The documentation: every public name is in the reference, and every link leads somewhere."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import covid_fastai
from covid_fastai.config import TrainConfig

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
IN_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
CARDS = ("covid_fastai/model/cxr-resnet18.md", "covid_fastai/data/lungs.md")
CARDS += ("covid_fastai/model/trained/pneumonia-children/README.md",)
MADE = {"data-sets.md", "options.md", "words.md", "reference/training.md"}  # pages of the site that docs/hooks.py makes


def test_the_reference_lists_every_public_name():
    values = {name: getattr(covid_fastai, name) for name in covid_fastai.__all__ if name != "__version__"}
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    referenced = re.findall(r"^::: covid_fastai\.(\S+)$", text, re.MULTILINE)
    listed = {path.rsplit(".", 1)[1]: path.rsplit(".", 1)[0] for path in referenced}
    assert sorted(listed) == sorted(values) and len(referenced) == len(values)
    for name, module in listed.items():
        assert getattr(importlib.import_module(f"covid_fastai.{module}"), name) is values[name]


def test_the_navigation_follows_the_story():
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = [line.strip(" -") for line in text.splitlines() if line.endswith(".ipynb")]
    assert listed == sorted(f"nbs/{path.name}" for path in (REPOSITORY / "nbs").glob("[0-9]*.ipynb"))


def test_links_in_the_repository_resolve():
    pages = [path.relative_to(REPOSITORY).as_posix() for path in DOCS.glob("*.md")]
    assert len(pages) > 8
    hooks = (DOCS / "hooks.py").read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "pretraining/README.md", *CARDS, *pages):
        text = IN_CODE.sub("", (REPOSITORY / name).read_text(encoding="utf-8"))
        for link in LINK.findall(text):
            found = "://" in link or (REPOSITORY / name).parent.joinpath(link).exists()
            assert found or (name in pages and link in MADE), f"{name}: {link}"
            if name in pages and found and link.endswith(".md") and "://" not in link:
                target = (REPOSITORY / name).parent.joinpath(link).resolve().relative_to(REPOSITORY).as_posix()
                on_site = target.startswith("docs/") or f'"{target}": ' in hooks  # else `mkdocs build --strict` fails
                assert on_site, f"{name}: {link} is no page of the site"


def test_the_pictures_are_those_of_the_screenshots_and_small():
    shown = {
        name for path in DOCS.glob("*.md") for name in re.findall(r"\]\((images/[^)]+)\)", path.read_text("utf-8"))
    }
    widths, schemes = (1200, 390), ("light", "dark")  # as tests/screenshots.py has them
    expected = {
        f"images/{of}-{width}-{scheme}.webp" for of in ("report", "page") for width in widths for scheme in schemes
    }
    assert shown == expected == {path.relative_to(DOCS).as_posix() for path in (DOCS / "images").iterdir()}
    assert all((DOCS / name).stat().st_size < 150_000 for name in expected)


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_workflow_builds_what_make_builds():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/docs.yml").read_text(encoding="utf-8"))
    assert {"run": "make docs"} in workflow["jobs"]["build"]["steps"]
    assert "mkdocs build --strict" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


class _Links(HTMLParser):
    """The links of a page, and the anchors that links can lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in {"href", "src"} and value:
                self.links.append(value)
            elif key == "id" and value:
                self.anchors.add(value)


@pytest.mark.slow
def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path):
    """No page loads anything from another host."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: _Links(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 30
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                assert anchor in pages[target].anchors or anchor.startswith("__"), f"{path.name}: {link}"
                checked += 1
    assert checked > 300
    options = (tmp_path / "options.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in options for name in TrainConfig.model_fields)
    assert "on_problem" in (tmp_path / "reference/data.html").read_text(encoding="utf-8")
    # a section of several lines is one text, not a row per line
    training = (tmp_path / "reference/training.html").read_text(encoding="utf-8")
    returned = training.partition('id="covid_fastai.training.cross_validate.cross_validate"')[2]
    returned = " ".join(returned.partition("Returns:")[2].partition("</table>")[0].split())
    assert returned.count("<tr") == 2 and "of them together" in returned


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
