"""Render the page of the web application from Jinja2 templates, with all text escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

import jinja2

from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.schemas import ImageAnswer, ModelFacts
from covid_fastai.notices import NO_DIAGNOSIS, RESEARCH_USE

__all__ = ["ACCEPTED", "render_answers", "render_page"]

ACCEPTED = "image/png,image/jpeg,image/tiff,image/bmp,image/webp,application/dicom,.dcm,.dicom,.tif,.tiff,.jfif"
OPACITY = 60  # percent, the initial opacity of the overlay: both the saliency and the ribs below it are visible


def render_page(facts: ModelFacts, limits: Limits, *, answers: Iterable[ImageAnswer] = (), error: str = "") -> str:
    """Render the whole page.

    Args:
        facts: The facts of the model.
        limits: The limits that the form states and the script checks.
        answers: The answers to the form of a browser without scripts.
        error: The reason why such a form was rejected.

    Returns:
        The HTML document.
    """
    template = _environment().get_template("page.html")
    return template.render(facts=facts, limits=limits, answers=list(answers), error=error)


def render_answers(answers: Iterable[ImageAnswer], facts: ModelFacts) -> str:
    """Render answers as a fragment of the page.

    Args:
        answers: One per file; an answer with the status `ok` has maps.
        facts: The facts of the model.

    Returns:
        One `<article>` per answer, whose attribute `data-row` holds its row of the CSV as JSON.
    """
    return _environment().get_template("answers.html").render(answers=list(answers), facts=facts)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("covid_fastai.app.server"),
        autoescape=True,  # file names, model cards and labels are untrusted text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "accepted": ACCEPTED,
        "no_diagnosis": NO_DIAGNOSIS,
        "opacity": OPACITY,
        "research_use": RESEARCH_USE,
        "table_row": _table_row,
    }
    return environment


def _table_row(answer: ImageAnswer, facts: ModelFacts) -> str:
    row = {"path": answer.name, **{f"p_{name}": answer.probabilities.get(name) for name in facts.classes}}
    row |= {"prediction": answer.prediction, "status": answer.status, "reason": answer.reason}
    row |= {"remark": " ".join(remark.text for remark in answer.remarks)}
    return json.dumps(row)
