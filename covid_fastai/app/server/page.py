"""Render the page of the web application from Jinja2 templates, with all text escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

import jinja2

from covid_fastai.app.server.examples import EXAMPLES
from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.schemas import UNREADABLE, ImageAnswer, ModelFacts
from covid_fastai.model.package_models import package_models
from covid_fastai.notices import NO_DIAGNOSIS, OF_DRAWINGS, RESEARCH_USE
from covid_fastai.plotting import as_data_uri, encode_png
from covid_fastai.saliency.overlay import draw_legend

__all__ = ["ACCEPTED", "render_answers", "render_page"]

ACCEPTED = "image/png,image/jpeg,image/tiff,image/bmp,image/webp,application/dicom,.dcm,.dicom,.tif,.tiff,.jfif"
OPACITY = 60  # percent, the initial opacity of the overlay: both the saliency and the ribs below it are visible
LEGEND_SIZE = (120, 12)  # width and height of the colour bar of a map, pixels


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
    others = [name for name in package_models() if name != facts.name]
    return template.render(facts=facts, limits=limits, answers=list(answers), error=error, others=others)


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
        "examples": EXAMPLES,
        "legend": _draw_legend(),
        "no_diagnosis": NO_DIAGNOSIS,
        "of_drawings": OF_DRAWINGS,
        "opacity": OPACITY,
        "refused": UNREADABLE.model_copy(update={"status": "failed"}),  # the script fills in its name and reason
        "research_use": RESEARCH_USE,
        "table_row": _table_row,
        "verdict_line": _verdict_line,
    }
    return environment


def _table_row(answer: ImageAnswer, facts: ModelFacts) -> str:
    row = {"path": answer.name, **{f"p_{name}": answer.probabilities.get(name) for name in facts.classes}}
    row |= {"prediction": answer.prediction, "withheld": answer.withheld}
    row |= {"status": answer.status, "reason": answer.reason}
    row |= {"remark": " ".join(remark.text for remark in answer.remarks), "model_verdict": facts.short_verdict}
    row |= {"model_purpose": facts.purpose} if facts.purpose else {}
    return json.dumps(row)


def _verdict_line(facts: ModelFacts) -> str:
    """Return the verdict in one sentence, which stays on top of the page."""
    if facts.synthetic:
        return OF_DRAWINGS
    return facts.headline or f"Verdict on this model: {facts.short_verdict}."


def _draw_legend() -> str:
    """Return the colours of a map from 0 to its maximum, as the address of an image."""
    return as_data_uri(encode_png(draw_legend(LEGEND_SIZE), pixels_only=True), "image/png")
