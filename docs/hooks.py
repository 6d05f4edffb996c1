"""Pages of the documentation that are made from other files: notebooks, Markdown files, options, recipes and words."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from covid_fastai.config import TrainConfig
from covid_fastai.data.recipes import list_recipes
from covid_fastai.options import describe_option
from covid_fastai.reporting.glossary import WORDS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "covid_fastai/model/cxr-resnet18.md": "weights.md",
    "covid_fastai/model/trained/pneumonia-children/README.md": "pneumonia-children.md",
    "covid_fastai/data/lungs.md": "lungs.md",
    "pretraining/README.md": "pretraining.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "tests/attacks/FAULTS.md": "faults.md",
    "benchmarks/results.md": "speed.md",
    "benchmarks/adversary.md": "adversary.md",
    "benchmarks/copies.md": "copies.md",
}
COPIED = ("nbs/[0-9]*.ipynb", "benchmarks/*.png", "benchmarks/*.csv", "CITATION.cff")
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files, and the files that pages show or link to."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for pattern in COPIED:
        for path in sorted(REPOSITORY.glob(pattern)):
            name = path.relative_to(REPOSITORY).as_posix()
            files.append(File(name, str(REPOSITORY), config.site_dir, use_directory_urls=False))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page in `docs/`, which work in the repository, into those of the site."""
    return markdown if page.file.generated_by else move_links(markdown, f"docs/{page.file.src_uri}")


def pages() -> dict[str, str]:
    """Return the generated pages, name to Markdown."""
    made = {
        page: move_links((REPOSITORY / source).read_text(encoding="utf-8"), source) for source, page in PAGES.items()
    }
    return made | {"options.md": describe_options(), "data-sets.md": describe_recipes(), "words.md": explain_words()}


def move_links(text: str, source: str) -> str:
    """Turn the links of a Markdown file of the repository into those of the documentation.

    Args:
        text: The file's content; its page lies at the top of the documentation.
        source: The file's path in the repository.
    """

    def moved(match: re.Match) -> str:
        before, link, after = match.groups()
        if "://" in link or link.startswith("mailto:"):
            return match.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
        target = PAGES.get(path, path.removeprefix("docs/"))
        here = posixpath.dirname(PAGES.get(source, source.removeprefix("docs/")))
        return before + posixpath.relpath(target, here or ".") + after

    return LINK.sub(moved, text)


def describe_options() -> str:
    """Return the page of all options of a training, from `TrainConfig`, as Markdown."""
    lines = ["# Options of a training", "", "Each is a keyword of `train_classifier` and `cross_validate`, a field of"]
    lines += [
        "[`TrainConfig`](reference/training.md), and an option of `covid-fastai train` with hyphens: `--image-size`.",
        "",
    ]
    lines += ["| option | default | what it is | allowed |", "| --- | --- | --- | --- |"]
    kinds = get_type_hints(TrainConfig, include_extras=True)
    for name, field in TrainConfig.model_fields.items():
        allowed = "" if kinds[name] is Any else describe_option(kinds[name]).replace("a str", "text")
        allowed = allowed.replace("|", "\\|")
        lines.append(f"| `{name}` | `{field.default!r}` | {field.description} | {allowed} |")
    return "\n".join([*lines, ""])


def describe_recipes() -> str:
    """Return the page of the public data sets, with one command for each, as Markdown."""
    lines = [
        "# Public data sets",
        "",
        "A recipe reads a public data set as it is unpacked: its tables, columns, official",
    ]
    lines += ["split and patients. `covid-fastai check FOLDER` recognises these data sets and prints the command;"]
    lines += [
        "`covid-fastai recipes` lists them. Options that you add replace those of the recipe. Research use only: the"
    ]
    lines += ["terms of each data set apply, and its source has the binding ones.", ""]
    for recipe in list_recipes().itertuples(index=False):
        source = " or ".join(f"<{address}>" for address in recipe.source.split(" or "))
        lines += [f"## {recipe.title}", "", f"    {recipe.command}", "", recipe.notes, ""]
        lines += [f"- Files: {recipe.files}.", f"- Source: {source}", f"- Citation: {recipe.citation}."]
        lines += [f"- Terms: {recipe.terms}", ""]
    return "\n".join(lines)


def explain_words() -> str:
    """Return the page of all words that reports explain, as Markdown."""
    lines = [
        "# Words used",
        "",
        "Reports and this documentation use these words. Each report explains those that it uses.",
        "",
    ]
    return "\n".join(
        [*lines, "| word | meaning |", "| --- | --- |"] + [f"| {word} | {WORDS[word][1]} |" for word in WORDS] + [""]
    )
