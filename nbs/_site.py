"""Write the pages of the docs site that are no notebooks: `python nbs/_site.py [FOLDER]`.

They come from Markdown files of the repository, and one from the recipes of public data sets. They are written as
`.qmd` beside the notebooks (git ignores them), with their links turned to the site's own pages.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from covid_fastai.data.recipes import list_recipes

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.qmd",
    "covid_fastai/model/cxr-resnet18.md": "weights.qmd",
    "covid_fastai/data/lungs.md": "lungs.qmd",
    "pretraining/README.md": "pretraining.qmd",
    "CONTRIBUTING.md": "contributing.qmd",
    "CHANGELOG.md": "changelog.qmd",
    "SECURITY.md": "security.qmd",
    "tests/attacks/FAULTS.md": "faults.qmd",
    "benchmarks/results.md": "speed.qmd",
}
FILES = ("CITATION.cff", "benchmarks/results.png", "benchmarks/growth.png")  # that pages link to, as they are


def write_pages(folder: Path) -> list[Path]:
    """Write every page into the folder and return their paths."""
    written = []
    for source, page in PAGES.items():
        title, _, body = (REPOSITORY / source).read_text(encoding="utf-8").partition("\n")
        for other, its_page in PAGES.items():
            body = body.replace(f"]({other})", f"]({its_page})").replace(f"](../{other})", f"]({its_page})")
        body = body.replace("](nbs/", "](")
        path = folder / page
        path.write_text(f"---\ntitle: {title.removeprefix('# ')!r}\n---\n{body}", encoding="utf-8")
        written.append(path)
    written.append(folder / "recipes.qmd")
    written[-1].write_text(describe_recipes(), encoding="utf-8")
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    return written


def describe_recipes() -> str:
    """Return the page of the public data sets with one command for each, as Markdown."""
    lines = ["---", "title: 'Public data sets'", "---", "", "A recipe reads a public data set as it is unpacked: its"]
    lines += [
        "tables, columns, official split and patients. `covid-fastai check FOLDER` recognises these data sets and"
    ]
    lines += [
        "prints the command; `covid-fastai recipes` lists them. Options that you add replace those of the recipe."
    ]
    lines += ["Research use only: the terms of each data set apply, and its source has the binding ones.", ""]
    for recipe in list_recipes().itertuples(index=False):
        source = " or ".join(f"<{address}>" for address in recipe.source.split(" or "))
        lines += [f"## {recipe.title}", "", f"    {recipe.command}", "", recipe.notes, ""]
        lines += [f"- Files: {recipe.files}.", f"- Source: {source}", f"- Citation: {recipe.citation}."]
        lines += [f"- Terms: {recipe.terms}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "nbs")
