"""The top of a report: one plain sentence, and three pieces of evidence that agree with the verdict."""

from __future__ import annotations

import base64
import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from covid_fastai import evaluate
from covid_fastai.audit.audit import ALTERED, BATCH_EFFECT, VERSUS, Audit
from covid_fastai.audit.baselines import LUNG_FREE
from covid_fastai.audit.plain_words import REASONS, say_plainly
from covid_fastai.audit.verdict import give_verdict
from covid_fastai.plotting import COLOURS, encode_figure
from covid_fastai.reporting.cases import describe_cases
from covid_fastai.reporting.conclusion import CONDITIONS, IN_PLAIN_WORDS, describe_conclusion
from covid_fastai.reporting.external_section import MEANINGS, describe_external
from covid_fastai.reporting.glossary import WORDS, words_used
from covid_fastai.reporting.html import DARK, draw_chart, embed_svg, keep_options_whole
from covid_fastai.training.external import CONFOUNDED, NOT_STATED, ONE_CLASS, SAME, TRAINED
from tests.audit.test_verdict import BLIND, COVERED, ELSEWHERE, controls, flag, shortcuts
from tests.prediction_fixtures import draw_predictions

CLASSES = ["Normal", "COVID-19"]
NETWORK = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 80}
VERSUS_ROW = {"baseline": "thumbnail", "network_auc": 0.9, "baseline_auc": 0.6, "difference": 0.3, "low": 0.1}
VERSUS_ROW |= {"high": 0.5, "n": 80, "errorless_low": 0.2}


def test_every_baseline_without_a_lung_has_plain_words():
    assert set(IN_PLAIN_WORDS) == set(LUNG_FREE)


def audit(*, baselines=None, external=(), negative_controls=None) -> Audit:
    found = shortcuts(**baselines or {})
    versus = pd.DataFrame([VERSUS_ROW], columns=VERSUS)
    given = {"external": list(external), "negative_controls": negative_controls}
    verdict = give_verdict(found, network=NETWORK, versus=versus, blind=BLIND, marks=COVERED, **given)
    tables = {"batch_effect": pd.DataFrame(columns=BATCH_EFFECT), "altered": pd.DataFrame(columns=ALTERED)}
    return Audit(network=NETWORK, shortcuts=found, versus=versus, **tables, **given, verdict=verdict)


@pytest.fixture(scope="module")
def result():
    return evaluate(draw_predictions(), n_resamples=100)


def conclude(result, found, **options):
    return describe_conclusion(result, found, **options)["conclusion"]


def test_every_condition_of_the_cards_is_one_of_the_verdict():
    names = [condition.name for condition in audit().verdict.conditions]
    for start in CONDITIONS.values():
        assert sum(name.startswith(start) for name in names) == 1, start


@pytest.mark.parametrize("level", [level for level in REASONS if level != "shown"])
def test_only_a_passed_audit_is_said_to_support_the_model(level):
    assert say_plainly(level, CLASSES, "COVID-19").headline.startswith("This does not show that the model recognises")
    assert "support" in say_plainly("shown", CLASSES, "COVID-19").headline
    assert "does not show" in say_plainly(level, ["A", "B", "C"]).headline
    assert "the classes A, B and C" in say_plainly(level, ["A", "B", "C"]).headline


def test_drawings_show_nothing_about_patients_whatever_the_level(result):
    for level in REASONS:
        plain = say_plainly(level, CLASSES, "COVID-19", synthetic=True)
        assert plain.headline == "This shows nothing about COVID-19 in patients." and "drawings" in plain.reason
    passed = audit(external=[ELSEWHERE], negative_controls=controls(0, 40))
    assert passed.verdict.level == "shown"
    drawn = conclude(result, passed, synthetic=True)
    assert drawn["level"] == "caution"
    assert {(evidence.side, evidence.level) for evidence in drawn["evidence"]} == {("about drawings only", "caution")}
    assert {evidence.side for evidence in conclude(result, passed)["evidence"]} == {"evidence for"}
    assert conclude(result, passed)["level"] == "good"


def test_a_failed_audit_has_three_pieces_of_evidence_against_the_model(result):
    near_chance = ELSEWHERE | {"value": 0.5, "low": 0.4, "high": 0.6}
    found = audit(
        baselines={"border_ring": flag(0.99), "source": flag(1.0, width=0)},
        external=[near_chance],
        negative_controls=controls(12, 12),
    )
    assert found.verdict.level == "failed"
    top = conclude(result, found)
    assert top["headline"] == "This does not show that the model recognises COVID-19." and top["level"] == "alarm"
    lungs, hospital, others = top["evidence"]
    assert {evidence.side for evidence in top["evidence"]} == {"evidence against"}
    assert lungs.value == ""  # a large number of a program that sees no lung was read as praise of the model
    assert "program that sees the outermost edge of the image, and nothing else, ranks 99% of pairs" in lungs.text
    assert "the model 90%; guessing 50%. So the images differ in something" in lungs.text
    place = '"there" (60 patients; 95% interval 40% to 60%, which includes guessing, 50%), but '
    assert hospital.value == "50%" and place in hospital.text
    assert others.value == "12 of 12" and others.title == "Images of other findings"


def test_what_was_not_tested_is_not_known(result):
    without_audit = conclude(result, None)
    assert {evidence.side for evidence in without_audit["evidence"]} == {"not tested"}
    assert without_audit["headline"].startswith("This does not show")
    _, hospital, others = conclude(result, audit())["evidence"]
    assert hospital.side == others.side == "not tested" and hospital.value == others.value == ""
    outdated = conclude(result, audit(), external=[ELSEWHERE], outdated=True)
    assert outdated["evidence"][1].value == "85%" and outdated["evidence"][1].side == "undecided"


def test_a_hospital_with_one_patient_of_a_class_has_no_interval(result):
    """Its interval is null in the file; the report and the audit of the run could not be written."""
    alone = ELSEWHERE | dict.fromkeys(("low", "high", "difference_low", "difference_high"))
    found = audit(external=[alone])
    hospital = conclude(result, found)["evidence"][1]
    assert found.verdict.level == "not shown" and hospital.side == "undecided"
    assert "(60 patients; too few of one class for an interval)" in hospital.text


def test_an_auc_below_one_is_never_called_all_pairs(result):
    found = audit(baselines={"border_ring": flag(0.9996, width=0)})
    assert "ranks >99% of pairs" in conclude(result, found)["evidence"][0].text


def test_several_classes_have_a_conclusion(three_classes):
    top = conclude(evaluate(three_classes, n_resamples=100), None)
    assert "Normal, Bacterial and Viral" in top["headline"] and "different classes" in top["percentages"]


def test_only_wrong_images_are_worst_cases(result):
    rows = result.predictions
    described = describe_cases(result)
    assert described["n_wrong"] == (rows["label"] != rows["prediction"]).sum() > 0
    assert described["cases"] and all(case["wrong"] for case in described["cases"])
    perfect = evaluate(draw_predictions(skill=50), n_resamples=100)
    assert describe_cases(perfect) == {
        "cases": [], "n_wrong": 0, "n_evaluated": len(perfect.predictions), "has_maps": False
    }  # fmt: skip


def test_no_line_breaks_within_an_option():
    """A browser breaks after a hyphen, also after the first one of `--full`."""
    text = keep_options_whole("train it (covid-fastai audit RUN --full) <b> a--b x -- y")
    assert text == 'train it (covid-fastai audit RUN <span class="whole">--full</span>) &lt;b&gt; a--b x -- y'
    assert keep_options_whole(3) == 3


def test_the_meaning_of_every_comparison_is_said():
    assert set(MEANINGS) == {SAME, TRAINED, CONFOUNDED, NOT_STATED, ONE_CLASS}
    row = {"images of": "there", "comparison": CONFOUNDED, "metric": "auc", "value": 0.7, "low": 0.6, "high": 0.8}
    stored = {"table": [row | {"n": 50}], "thumbnail": [row | {"value": 0.4}], "overlap": 3, "not_compared": 2}
    (data,) = describe_external({"there-123456": stored})
    assert data["name"] == "there" and data["table"].loc[0, "thumbnail"] == "0.400"
    assert data["lines"][0].startswith('Image source "there": AUC 0.700 (95% interval 0.600 to 0.800, n = 50')
    assert data["lines"][0].endswith("; each class from another source")
    assert any("no evidence" in note for note in data["notes"]) and any("2 images" in note for note in data["notes"])


def test_a_chart_has_the_colours_of_the_readers_scheme():
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    left.bar(["a"], [1], color=COLOURS[0], hatch="///", edgecolor="white")
    right.plot([0, 1], color="black", label="#0072b2")
    right.set_title("a long title on the left", loc="left")
    chart = draw_chart(figure, "a chart")
    svg = base64.b64decode(chart["source"].partition(",")[2]).decode()
    assert chart["caption"] == "a long title on the left."
    assert "prefers-color-scheme:dark" in svg and "var(--c0072b2)" in svg and "var(--cffffff)" in svg
    _, _, drawn = svg.partition("</style>")
    assert not re.search(r'(fill|stroke)(: |=")#(000000|ffffff|0072b2)', drawn)
    panels = [axes.get_position() for axes in figure.axes]
    assert panels[0].y0 > panels[1].y1  # one below the other, legible on a phone


@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_of_the_palette_has_a_dark_variant(colour):
    assert colour.lower() in DARK
    assert embed_svg(encode_figure(Figure(), kind="svg")).startswith("data:image/svg+xml;base64,")


def test_a_glossary_has_the_words_of_the_page_only():
    assert [word for word, _ in words_used("<p title='ROC'>The AUC &amp; its 95% interval</p>")] == [
        "95% interval",
        "AUC",
    ]
    assert list(WORDS) == sorted(WORDS, key=str.casefold)
