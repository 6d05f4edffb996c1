"""Write the pages of the docs site that come from Markdown files of the repository: `python nbs/_site.py [FOLDER]`.

They are written as `.qmd` beside the notebooks (git ignores them), with their links turned to the site's own pages.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.qmd",
    "covid_fastai/model/cxr-resnet18.md": "weights.qmd",
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
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    return written


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "nbs")
