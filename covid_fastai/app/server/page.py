"""The page of the web application from Jinja2 templates: text is escaped, nothing inline, nothing from elsewhere."""

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
OPACITY = 60  # percent of the overlay at first: the heat is seen and so are the ribs under it


def render_page(facts: ModelFacts, limits: Limits, *, answers: Iterable[ImageAnswer] = (), error: str = "") -> str:
    """Write the whole page.

    Args:
        facts: Of the model.
        limits: What the form says about sizes, and the script keeps to.
        answers: For a browser that runs no script.
        error: What went wrong with a form that was sent.

    Returns:
        HTML.
    """
    template = _environment().get_template("page.html")
    return template.render(facts=facts, limits=limits, answers=list(answers), error=error)


def render_answers(answers: Iterable[ImageAnswer], facts: ModelFacts) -> str:
    """Write answers as a piece of the page.

    Args:
        answers: To one file each; one with status `ok` has maps.
        facts: Of the model.

    Returns:
        An `<article>` an answer, whose `data-row` holds the row of the table in JSON.
    """
    return _environment().get_template("answers.html").render(answers=list(answers), facts=facts)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("covid_fastai.app.server"),
        autoescape=True,  # file names, model cards and labels are hostile text
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
