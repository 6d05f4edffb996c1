"""The field's terms: words that were replaced do not come back, in code, documentation or notebooks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# each replaced term, as a regular expression, and the term to use
REPLACED = {
    r"grey values?": "pixel intensities",
    r"\bn_draws\b|\bdraws=": "n_resamples",
    r"heat_share|heat share": "saliency_fraction",
    r"stands? aside|set aside|put aside": "excluded",
    r"guard_seen|\bseen_images\b|\bis_seen\b": "in_pretraining",
    r"touch_test|touches the test": "evaluate_test",
    r"tripwires?": "negative control",
    r"placebos?": "batch-effect check",
    r"strangeness": "out-of-distribution score",
    r"\bdiscriminative=": "lr_ratio",
    r"frozen_views": "frozen_augmentations",
    r"\bat_once\b": "n_jobs",
    r"\bclass (Guard|Journal|Keeper|Gate|Door|Refused|Diverged|EnvironmentProblem)\b": "see TERMS",
    r"\b(leads|follows)\(\)": "is_main_process",
    r"held_back|held back|holds back": "withheld",
    r"settle_run|own_run": "resolve_run, run_context",
    r"\busefulness\b": "decision curve, net benefit",
    r"goes on working|go on working": "remains available",
    r"cannot be had together": "are mutually exclusive",
    r"left the numbers": "became NaN or infinite",
    r"memory is full": "out of memory",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(tell|tells|told) (\w+ ){1,4}apart\b": "distinguish or separate",
    r"figures? (is|are) worth": "model evaluation",
    r"they part on": "patients on whom the models disagree",
    r"not in this way": "method not allowed",
    r"there is no form": "malformed request body",
    r"may be called by": "requires the allowed host names",
}

FILES = [
    *sorted((ROOT / "covid_fastai").rglob("*.py")),
    *sorted((ROOT / "covid_fastai").rglob("*.html")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "settings.ini")),
    *sorted((ROOT / "nbs").glob("*.ipynb")),
]


def words_of(path: Path) -> str:
    """Return the text that people read: of a notebook its sources, of any other file everything."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


TEXTS = {path: words_of(path) for path in FILES}


@pytest.mark.parametrize("term", REPLACED)
def test_a_replaced_term_does_not_come_back(term):
    hits = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path, text in TEXTS.items()
        for match in re.finditer(term, text, flags=re.IGNORECASE)
    ]
    assert not hits, f"use {REPLACED[term]!r}: {hits}"


def test_everything_that_people_read_is_searched():
    names = {path.name for path in FILES}
    assert {"metadata.py", "run.html", "README.md", "settings.ini", "00_quickstart.ipynb"} <= names
    assert all(text or path.name == "__init__.py" for path, text in TEXTS.items())
    assert re.search(next(iter(REPLACED)), "the Grey Values of", flags=re.IGNORECASE)
