"""The page of the web application as FastHTML components: text is escaped, nothing inline, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fasthtml.components import (
    H1,
    H2,
    H3,
    Article,
    Aside,
    Body,
    Button,
    Dd,
    Details,
    Div,
    Dl,
    Dt,
    Figcaption,
    Figure,
    Footer,
    Form,
    Head,
    Header,
    Html,
    Img,
    Input,
    Label,
    Li,
    Link,
    Main,
    Meta,
    Meter,
    P,
    Script,
    Section,
    Span,
    Strong,
    Summary,
    Title,
    Ul,
    to_xml,
)

from covid_fastai.app.cli.output import RESEARCH_USE
from covid_fastai.app.server.model_facts import ModelFacts
from covid_fastai.app.server.uploads import Limits

__all__ = ["ACCEPTED", "render_answer", "render_page"]

ACCEPTED = "image/png,image/jpeg,image/tiff,image/bmp,image/webp,application/dicom,.dcm,.dicom,.tif,.tiff,.jfif"
OPACITY = 60  # percent of the overlay at first: the heat is seen and so are the ribs under it
NO_DIAGNOSIS = "A model's output, not a statement about a person's health."


def render_page(facts: ModelFacts, limits: Limits, *, answers: Iterable[str] = (), error: str = "") -> str:
    """Write the whole page.

    Args:
        facts: Of the model.
        limits: What the form says about sizes, and the script keeps to.
        answers: Of `render_answer`, for a browser that runs no script.
        error: What went wrong with a form that was sent.

    Returns:
        HTML.
    """
    answers = [_Raw(answer) for answer in answers]
    head = Head(
        Meta(charset="utf-8"),
        Meta(name="viewport", content="width=device-width, initial-scale=1"),
        Meta(name="color-scheme", content="light dark"),
        Title(f"{facts.name} - covid_fastai"),
        Link(rel="icon", href="/icon.svg", type="image/svg+xml"),
        Link(rel="stylesheet", href="/app.css"),
        Script(src="/app.js", defer=True),
    )
    top = Header(
        H1("Ask a model about chest radiographs"),
        P(Strong(RESEARCH_USE), " ", NO_DIAGNOSIS, cls="research"),
    )
    main = Main(
        _form(limits),
        P(error, id="state", role="status", aria_live="polite", cls="error" if error else ""),
        Section(
            H2("Answers", id="answers-title"),
            Div(
                Button("Download the table (CSV)", type="button", id="table"),
                Button("Clear", type="button", id="clear", cls="quiet"),
                id="tools",
                hidden=True,
            ),
            Div(*answers, id="answers"),
            id="results",
            aria_labelledby="answers-title",
            hidden=not answers,
        ),
        _about(facts),
    )
    privacy = "Pictures are read in memory and forgotten: nothing is kept, and nothing is sent to another machine."
    page = Html(head, Body(top, main, Footer(P(privacy))), lang="en")
    return to_xml(page)


def render_answer(name: str, answer: Mapping[str, Any], facts: ModelFacts) -> str:
    """Write the answer to one file.

    Args:
        name: The file's.
        answer: Of `answer_file`.
        facts: Of the model.

    Returns:
        An `<article>`, whose `data-row` holds the row of the table in JSON.
    """
    texts = [remark["text"] for remark in answer["remarks"]]
    row = {"path": name, **{f"p_{cls}": answer["probabilities"].get(cls) for cls in facts.classes}}
    row |= {"prediction": answer["prediction"], "status": answer["status"], "reason": answer["reason"]}
    row |= {"remark": " ".join(texts)}
    title = H3(name or "A file without a name")
    if answer["status"] != "ok":
        parts = [Div(title, P("No answer: ", answer["reason"], cls="remark"), cls="words")]
        kind = "answer bad"
    else:
        parts = [Div(title, *_words(answer, facts), cls="words"), _pictures(answer)]
        kind = "answer"
    return to_xml(Article(*parts, cls=kind, tabindex="-1", data_row=json.dumps(row)))


def _form(limits: Limits) -> Any:
    size = f"up to {limits.file_bytes >> 20} MiB and {limits.pixels / 1e6:.3g} million pixels each"
    kinds = "PNG, JPEG, TIFF, BMP, WebP or DICOM"
    return Form(
        Label("Frontal chest radiographs", _for="files", cls="big"),
        P(f"Choose files, or drop them anywhere on this page: {kinds}, {size}.", id="kinds"),
        Div(
            Input(
                type="file",
                name="files",
                id="files",
                multiple=True,
                required=True,
                accept=ACCEPTED,
                aria_describedby="kinds",
            ),
            Button("Ask the model", type="submit"),
            cls="row",
        ),
        action="/",
        method="post",
        enctype="multipart/form-data",
        id="ask",
        data_file_bytes=str(limits.file_bytes),
    )


def _words(answer: Mapping[str, Any], facts: ModelFacts) -> list[Any]:
    numbers = Dl(
        *(
            part
            for name, p in answer["probabilities"].items()
            for part in (
                Dt(name),
                Dd(Meter(f"{p:.3f}", min="0", max="1", value=f"{p:.4f}", aria_hidden="true"), Span(f"{p:.3f}")),
            )
        ),
        cls="classes",
        aria_label="Probabilities, as the model gives them",
    )
    remarks = [P(remark["text"], cls="remark") for remark in answer["remarks"]]
    worth = Dl(
        Dt("Verdict on this model"), Dd(facts.verdict), Dt("Its limits"), Dd(" ".join(facts.limits)), cls="worth"
    )
    if answer["withheld"]:
        told = [
            P("The model names no class.", cls="call"),
            *remarks,
            Details(Summary("Its numbers, which say little about such a picture"), numbers),
        ]
    else:
        rule = f"It names {facts.rule}."
        told = [P("Model output: ", Strong(answer["prediction"]), cls="call"), *remarks, numbers, P(rule, cls="small")]
    return [*told, worth, P(RESEARCH_USE, " ", NO_DIAGNOSIS, cls="small")]


def _pictures(answer: Mapping[str, Any]) -> Any:
    picture = Img(
        src=_data(answer["radiograph"]), alt="The radiograph as the model's opener reads it", cls="radiograph"
    )
    if answer["withheld"]:  # a map would name the class that the page does not
        return Figure(Div(picture, cls="stack"), Figcaption("The picture as it was read."))
    rows, columns = answer["heat_cells"]
    top, shown = answer["heat_top"], answer["heat_of"]
    caption = f"Class activation map: what speaks for {shown}, in {rows} x {columns} cells"
    caption += f"; brightest: {top:.2f} logits. " if top > 0 else "; nothing does. "
    heat = Img(src=_data(answer["heat"]), alt=f"Overlay: what speaks for {shown}", cls="heat")
    slider = Label(
        Span("Overlay"),
        Input(type="range", min="0", max="100", value=str(OPACITY), cls="opacity", aria_label="Overlay, percent"),
        cls="row slider",
        hidden=True,  # a script unhides it: without one it would move nothing
    )
    caption = Figcaption(caption, "It shows what moved the output, not where a disease is.")
    return Figure(Div(picture, heat, cls="stack"), slider, caption)


def _about(facts: ModelFacts) -> Any:
    rows = {
        "Classes": ", ".join(facts.classes),
        "Rule": facts.rule,
        "Sees": f"{facts.image_size} x {facts.image_size} grey pixels, whatever the file has",
        "Architecture": f"{facts.arch}, first weights: {facts.weights}",
        "Calibration": f"temperature {facts.temperature:.3g}" if facts.temperature != 1 else "none",
        "Verdict": facts.verdict,
        "Saved by": f"covid_fastai {facts.saved_by}, fingerprint {facts.fingerprint[:16]}",
    }
    return Aside(
        H2(f"The model: {facts.name}", id="model-title"),
        Dl(*(part for name, text in rows.items() for part in (Dt(name), Dd(text)))),
        H3("Limits"),
        Ul(*(Li(limit) for limit in facts.limits)),
        aria_labelledby="model-title",
    )


def _data(png: str) -> str:
    return f"data:image/png;base64,{png}"


class _Raw:
    """HTML of `render_answer`, not to be escaped again."""

    def __init__(self, html: str):
        self._html = html

    def __ft__(self) -> Any:
        from fastcore.xml import Safe

        return Safe(self._html)
