"""The rules of the verdict, one by one, on constructed results."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import permutations

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from covid_fastai.audit.baselines import BASELINES, LUNG_FREE, OF_TABLE, SMALLEST_EFFECT, ShortcutAudit
from covid_fastai.audit.plain_words import say_plainly
from covid_fastai.audit.verdict import NEAR_CHANCE, give_verdict
from covid_fastai.evaluation.intervals import wilson

ELSEWHERE = {"source": "there", "value": 0.85, "low": 0.7, "high": 0.93, "n": 60, "thumbnail": 0.6}
ELSEWHERE |= {"difference": 0.25, "difference_low": 0.1, "difference_high": 0.4}
BLIND = {"auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "network_auc": 0.9, "difference": 0.4, "low": 0.3, "high": 0.5}
BLIND |= {"n": 80, "images": 120, "boxes": 0, "boxes_auc": 0.5}

COVERED = {"auc": 0.88, "auc_low": 0.8, "auc_high": 0.93, "network_auc": 0.9, "difference": 0.02, "low": -0.01}
COVERED |= {"high": 0.05, "n": 80}
ON_A_SPOT = COVERED | {"auc": 0.55, "auc_low": 0.45, "auc_high": 0.65, "difference": 0.35, "low": 0.25, "high": 0.45}


def controls(positives: int, images: int) -> dict[str, float]:
    fraction = positives / images
    low, high = wilson(fraction, images)
    return {"images": images, "patients": images, "called": positives, "fraction": fraction, "low": low, "high": high}


def shortcuts(**changed: dict[str, float]) -> ShortcutAudit:
    """Baselines without a shortcut, each with an AUC of 0.5; `changed` holds other values by baseline."""
    rows = [
        {"baseline": name, "sees": sees, "lung_free": name in LUNG_FREE, "auc": 0.5, "low": 0.4, "high": 0.6,
         "accuracy": 0.5, "n": 80, "p": 0.5, "p_holm": 0.5, "flagged": False} | changed.get(name.replace(" ", "_"), {})
        for name, sees in BASELINES.items()
    ]  # fmt: skip
    for row in rows:
        row["flagged"] &= row["lung_free"]  # others are not flagged, whatever they separate
    return ShortcutAudit(pd.DataFrame(rows), {"median": 0.5, "low": 0.4, "high": 0.6}, {}, 100, 0, [[12, 16, 19, 23]])


def flag(auc: float, *, width: float = 0.05) -> dict[str, float | bool]:
    return {"auc": auc, "low": auc - width, "high": auc + width, "p": 0.001, "p_holm": 0.004, "flagged": True}


def verdict_of(baselines: ShortcutAudit | None = None, *, low: float = 0.1, errorless_low: float = 0.3, **given):
    versus = {"baseline": "thumbnail", "network_auc": 0.9, "baseline_auc": 0.7, "difference": 0.2, "low": low}
    versus |= {"high": 0.3, "n": 78, "errorless_low": errorless_low}
    given = {"blind": BLIND, "external": [ELSEWHERE], "negative_controls": controls(1, 40), "marks": COVERED} | given
    given = {"network": {"value": 0.91, "low": 0.83, "high": 0.95, "n": 80}} | given
    return give_verdict(baselines or shortcuts(), versus=pd.DataFrame([versus]), **given)


def outcomes(verdict) -> list[str]:
    return [condition.outcome for condition in verdict.conditions]


def test_the_signal_is_shown_if_all_conditions_are_met():
    verdict = verdict_of()
    assert verdict.level == "shown" and verdict.sentence.startswith("Evidence of disease signal")
    assert outcomes(verdict) == ["met"] * 7
    assert outcomes(verdict_of(negative_controls=None)) == ["met"] * 4 + ["not applicable", "met", "met"]
    assert verdict_of(negative_controls=None).level == "shown"


@pytest.mark.parametrize(
    ("given", "number", "reason"),
    [
        ({"baselines": shortcuts(border_ring=flag(0.9))}, 0, "a shortcut separates the classes without the lungs"),
        ({"baselines": shortcuts(source=flag(0.9), headers=flag(0.8))}, 0, "the image source alone separates"),
        ({"low": -0.01}, 1, "not shown to be better than a 16 × 16 thumbnail"),
        ({"blind": BLIND | {"auc": 0.7, "auc_low": 0.51, "auc_high": 0.8}}, 2, "a network trained without the lungs"),
        ({"blind": BLIND | {"low": -0.05}}, 2, "not shown to be better than one trained without the lungs"),
        ({"external": [ELSEWHERE | {"value": 0.55, "low": 0.4, "high": 0.7}]}, 3, "not better than chance"),
        ({"external": [ELSEWHERE | {"value": 0.56, "low": 0.52, "high": 0.6}]}, 3, "close to chance"),
        ({"external": [ELSEWHERE | {"difference_low": -0.3, "difference_high": -0.1}]}, 3, "thumbnail is better"),
        ({"external": [ELSEWHERE] * 3 + [ELSEWHERE | {"value": 0.5, "low": 0.4, "high": 0.6}]}, 3, "close to chance"),
        ({"negative_controls": controls(11, 12)}, 4, "11 of 12 negative controls"),
        ({"marks": ON_A_SPOT}, 6, "with letters or other sharp marks covered, the network is not better than chance"),
        ({"covered": ON_A_SPOT}, 5, "with a fixed place of the image covered, the network is not better than chance"),
    ],
)
def test_each_condition_can_fail(given, number, reason):
    verdict = verdict_of(**given)
    assert verdict.level == "failed" and verdict.sentence.startswith("Disease signal not shown: ")
    assert reason in verdict.sentence
    assert [place for place, outcome in enumerate(outcomes(verdict)) if outcome == "failed"] == [number]


WEAK = {"value": 0.7, "low": 0.63, "high": 0.76, "n": 80}
HIDDEN = dict.fromkeys(("auc", "low", "high", "p", "p_holm"), math.nan)
NO_POWER = {"value": 0.85, "low": 0.45, "high": 0.98}  # of ten patients


@pytest.mark.parametrize(
    ("given", "number", "outcome", "reason"),
    [
        ({"baselines": shortcuts(border_ring={"high": 0.71})}, 0, "inconclusive", "too few patients to exclude"),
        (
            {"baselines": replace(shortcuts(), hidden=0.4)},
            0,
            "inconclusive",
            "not found in 40% of the images of a class",
        ),
        ({"baselines": shortcuts(frame=HIDDEN)}, 0, "inconclusive", "the lungs fill most images"),
        ({"baselines": shortcuts(black_centre=flag(0.98))}, 0, "inconclusive", "without its centre separates"),
        ({"baselines": shortcuts(lung_geometry=flag(0.7))}, 0, "inconclusive", "size and place of the lungs"),
        ({"baselines": shortcuts(sharp_edges=flag(0.9))}, 0, "inconclusive", "sharpest edges"),
        ({"unstated_fraction": 1.0}, 0, "inconclusive", "the sources of the images are not stated"),
        ({"unstated_fraction": 0.25}, 0, "inconclusive", "the sources of 25% of the images are not stated"),
        ({"network": WEAK}, 0, "inconclusive", "the network (AUC 0.700 (0.630 to 0.760)) is not shown to be better"),
        ({"errorless_low": -0.001, "low": -0.01}, 1, "inconclusive", "even a model without errors"),
        ({"blind": BLIND | {"auc_high": NEAR_CHANCE}}, 2, "inconclusive", "too few patients to show that a network"),
        (
            {"blind": BLIND | {"auc_low": 0.52, "boxes_auc": 0.55}},
            2,
            "inconclusive",
            "these images alone can give an AUC",
        ),
        ({"blind": None}, 2, "not tested", "audit RUN --full"),
        (
            {"external": [ELSEWHERE | {"low": None, "high": None}]},
            3,
            "inconclusive",
            "too few patients for an interval",
        ),
        ({"external": [ELSEWHERE | NO_POWER]}, 3, "inconclusive", "too few patients to exclude chance"),
        ({"external": [ELSEWHERE | {"difference_low": -0.1}]}, 3, "inconclusive", "not shown to be better than a 16"),
        ({"external": [ELSEWHERE | {"difference": None}]}, 3, "not tested", "thumbnail was not evaluated"),
        ({"external": [ELSEWHERE | {"difference": math.nan}]}, 3, "not tested", "thumbnail was not evaluated"),
        ({"external": []}, 3, "not tested", "no external data"),
        ({"external": [], "unstated": [ELSEWHERE]}, 3, "not tested", "no external data"),
        ({"negative_controls": controls(2, 12)}, 4, "inconclusive", "too few negative controls"),
        ({"baselines": shortcuts(fixed_spot=flag(0.97))}, 5, "not tested", "the best of 32 × 32 cells separates"),
        ({"baselines": shortcuts(fixed_spot={"high": 0.7})}, 5, "not tested", "not evaluated with the most telling"),
        ({"marks": None}, 6, "not tested", "not evaluated with the sharpest edges in the lungs covered"),
        ({"marks": COVERED | {"high": 0.21}}, 6, "inconclusive", "with letters or other sharp marks covered, the AUC"),
        ({"covered": COVERED | {"high": 0.21}}, 5, "inconclusive", "may be lower by 0.020 (-0.010 to 0.210)"),
        (
            {"covered": COVERED | {"network_auc": 0.48, "auc": 0.48, "auc_low": 0.1, "high": 0.0}},
            5,
            "inconclusive",
            "nothing that the most telling cells could explain, since the network ranks no better than chance",
        ),
    ],
)
def test_each_condition_can_stay_open(given, number, outcome, reason):
    verdict = verdict_of(**given)
    assert verdict.level == "not shown"
    assert verdict.sentence.startswith("Disease signal not shown: a shortcut is neither found nor excluded. Open: ")
    assert reason in verdict.sentence
    assert outcomes(verdict) == ["met"] * number + [outcome] + ["met"] * (6 - number)


def test_the_verdict_says_where_a_box_was_removed_instead_of_the_lungs():
    """A box at a fixed place may leave parts of the lungs."""

    def text(**changed):
        return verdict_of(blind=BLIND | changed).conditions[2].text

    assert "The segmented lungs were removed" in text() and "all 120 images" in text()
    assert "on 3 of 120 images they were not found, and a central box" in text(boxes=3)
    assert "found in none of 120 images: a central box" in text(boxes=120)
    assert "do not say what was removed" in text(images=math.nan, boxes=math.nan)


def test_a_weak_flag_is_mentioned_and_not_decisive():
    """With 2,000 patients an AUC of 0.54 is significant."""
    verdict = verdict_of(shortcuts(headers=flag(0.54)))
    assert verdict.level == "shown" and "headers (AUC 0.540" in verdict.conditions[0].text
    assert "too weak to explain it: headers (AUC 0.540" in verdict.sentence
    (note, *_) = shortcuts(headers=flag(0.54)).notes()
    assert note == "Lung-free baselines weakly separate the classes: headers (AUC 0.540)."
    wide = verdict_of(shortcuts(headers=flag(0.58, width=0.08)))
    assert wide.level == "not shown" and "too few patients" in wide.sentence
    assert "a weak shortcut is found, and a stronger one is not excluded" in wide.sentence


def test_images_without_lungs_lower_the_limit_of_what_is_hidden_about_them():
    """In a third of a class, they make an AUC of 0.65 one of 0.6."""
    assert verdict_of(replace(shortcuts(), hidden=0.3)).level == "shown"
    assert verdict_of(replace(shortcuts(border_ring={"high": 0.64}), hidden=0.3)).level == "shown"  # is always seen
    assert verdict_of(replace(shortcuts(frame={"high": 0.64}), hidden=0.3)).level == "not shown"


def test_every_row_of_the_table_agrees_with_the_condition():
    """A centre of 0.98 with p = 0.001 stood below "nothing that was tried separates the classes"."""
    condition = verdict_of(shortcuts(black_centre=flag(0.98))).conditions[0]
    assert condition.outcome == "inconclusive" and "without its centre separates the classes (AUC 0.980)" in str(
        condition.text
    )


def test_a_spot_that_the_network_does_not_need_is_mentioned():
    verdict = verdict_of(shortcuts(fixed_spot=flag(0.7)), covered=COVERED)
    assert verdict.level == "shown" and outcomes(verdict) == ["met"] * 7
    assert "43% from the top and 65% from the left" in verdict.conditions[5].text
    assert "0.880" in verdict.conditions[5].text and "0.900 where they are not" in verdict.conditions[5].text


@pytest.mark.parametrize("probe", ["covered", "marks"])
def test_what_is_covered_may_explain_less_than_half_of_the_performance(probe):
    """Of drawings with streaks in both lungs, the telling cells hide some: 0.987 becomes 0.888."""
    hides = {"auc": 0.888, "auc_low": 0.837, "auc_high": 0.924, "network_auc": 0.987, "n": 213}
    hides |= {"difference": 0.099, "low": 0.07, "high": 0.146}
    verdict = verdict_of(**{probe: hides})
    assert verdict.level == "shown"
    assert verdict.sentence.endswith(" are covered, the AUC is 0.888 (0.837 to 0.924).")
    assert verdict_of(**{probe: hides | {"high": 0.243}}).level == "shown"
    assert verdict_of(**{probe: hides | {"high": 0.244}}).level == "not shown"
    # of a network with an AUC of 0.7, the same drop is most of it
    weak = {"auc": 0.6, "auc_low": 0.52, "auc_high": 0.67, "network_auc": 0.7, "difference": 0.1}
    assert verdict_of(**{probe: hides | weak}).level == "not shown"


def test_all_failures_and_what_is_undecided_are_named():
    verdict = verdict_of(low=-0.002, errorless_low=-0.001, blind=BLIND | {"auc_low": 0.6, "auc_high": 0.9})
    assert verdict.level == "failed" and "a network trained without the lungs" in verdict.sentence
    assert "These data cannot decide: with 78 patients" in verdict.sentence and "AUC 0.700" in verdict.sentence


def test_metrics_of_one_sentence_are_of_the_same_patients():
    text = verdict_of().conditions[1].text
    assert "same 78 patients" in text and "0.900" in text and "0.700" in text and "0.910" not in text


def test_hospitals_without_power_are_pooled():
    open_one = ELSEWHERE | {"low": 0.48, "high": 0.97}
    single = verdict_of(external=[open_one])
    assert single.level == "not shown"
    hospitals = [open_one | {"source": name, "difference": 0.2 + 0.01 * k} for k, name in enumerate("abcdef")]
    pooled = verdict_of(external=hospitals)
    assert pooled.level == "shown" and "Pooled over 6 hospitals (random effects): AUC 0.850" in str(pooled)
    assert "95% prediction interval" in str(pooled)
    assert "Two hospitals are too few" in str(verdict_of(external=hospitals[:2]))


def test_one_hospital_that_is_open_leaves_all_of_them_open_in_any_order():
    """The first of them decided."""
    other = ELSEWHERE | NO_POWER | {"source": "elsewhere"}
    for external in permutations([ELSEWHERE, other]):
        assert verdict_of(external=external).level == "not shown"


def test_a_hospital_that_was_evaluated_twice_is_pooled_once():
    twice = [
        ELSEWHERE | {"low": 0.48, "high": 0.97},
        ELSEWHERE | {"low": 0.46, "high": 0.98, "source": " THERE", "n": 50},
    ]
    verdict = verdict_of(external=twice * 3)
    assert verdict.level == "not shown" and "Pooled" not in str(verdict)


def test_images_whose_source_is_not_stated_are_mentioned_and_decide_nothing():
    bad = ELSEWHERE | {"source": "unknown", "value": 0.5, "low": 0.4, "high": 0.6}
    verdict = verdict_of(unstated=[bad])
    assert verdict.level == "shown" and "the source is not stated" in verdict.conditions[3].text
    assert "the source is not stated" in verdict_of(external=[], unstated=[ELSEWHERE]).conditions[3].text


def test_the_verdict_as_plain_values_and_as_a_table():
    verdict = verdict_of(shortcuts(source=flag(0.9)))
    assert verdict.to_dict()["conditions"][0]["outcome"] == "failed"
    assert len(verdict.table()) == 7 and "<table" in verdict._repr_html_()


# Properties that hold whatever was measured.

UNIT = st.floats(0, 1)
SIGNED = st.floats(-1, 1)
MISSING = st.sampled_from([math.nan, None])


def ordered(numbers, names, *, missing=None):
    """Return mappings whose numbers rise in the order of the names; sometimes without bounds."""
    values = st.lists(numbers, min_size=3, max_size=3).map(sorted)
    complete = values.map(lambda three: dict(zip(names, three, strict=True)))
    if missing is None:
        return complete
    bounds = st.tuples(complete, missing).map(lambda pair: pair[0] | dict.fromkeys((names[0], names[2]), pair[1]))
    return complete | bounds


def merged(*parts):
    return st.tuples(*parts).map(lambda mappings: {key: value for each in mappings for key, value in each.items()})


COUNT = st.integers(2, 5000)
AUC = ordered(UNIT, ("low", "auc", "high"), missing=st.just(math.nan))
TEST = st.fixed_dictionaries({"p": UNIT, "p_holm": UNIT})
ROW = merged(AUC, TEST) | st.just(HIDDEN)
ALTERED_ROW = merged(
    ordered(UNIT, ("auc_low", "auc", "auc_high"), missing=st.just(math.nan)),
    ordered(SIGNED, ("low", "difference", "high"), missing=st.just(math.nan)),
    st.fixed_dictionaries({"network_auc": UNIT, "n": COUNT}),
    st.sampled_from([{"images": 90, "boxes": 0}, {"images": 90, "boxes": 7}, {"images": 1, "boxes": 1}]),
    st.fixed_dictionaries({"boxes_auc": st.floats(0.5, 1)}),
)
HOSPITAL = merged(
    st.fixed_dictionaries({"source": st.sampled_from(["a", "A ", "b", "c"]), "n": COUNT, "thumbnail": UNIT | MISSING}),
    ordered(UNIT, ("low", "value", "high"), missing=MISSING),
    ordered(SIGNED, ("difference_low", "difference", "difference_high"), missing=MISSING),
)
CONTROLS = st.tuples(st.integers(0, 30), st.integers(1, 30)).map(lambda pair: controls(min(pair), max(pair)))
EVERYTHING = st.fixed_dictionaries(
    {
        "network": merged(ordered(UNIT, ("low", "value", "high"), missing=st.just(math.nan)), st.just({"n": 80})),
        "blind": st.none() | ALTERED_ROW,
        "covered": st.none() | ALTERED_ROW,
        "marks": st.none() | ALTERED_ROW,
        "external": st.lists(HOSPITAL, max_size=4),
        "unstated": st.lists(HOSPITAL, max_size=1),
        "negative_controls": st.none() | CONTROLS,
        "unstated_fraction": UNIT,
    }
)
OF_PIXELS = [name for name in BASELINES if name not in ("prevalence", "thumbnail", "headers", "fixed spot")]


def baselines_of(rows: dict[str, dict[str, float]]) -> ShortcutAudit:
    rows = {name: row | {"flagged": row["p_holm"] < 0.05} for name, row in rows.items()}
    return shortcuts(**{name.replace(" ", "_"): row for name, row in rows.items()})


# a failing example is not shrunk: that would take minutes
GENERATE = [Phase.explicit, Phase.reuse, Phase.generate]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, phases=GENERATE, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(OF_PIXELS), ROW, max_size=4), UNIT, EVERYTHING, SIGNED, SIGNED)
def test_whatever_was_measured_the_verdict_agrees_with_it(rows, hidden, measured, low, errorless_low):
    baselines = replace(baselines_of(rows), hidden=hidden)
    verdict = verdict_of(baselines, low=low, errorless_low=errorless_low, **measured)
    found = outcomes(verdict)
    assert verdict.level == (
        "failed" if "failed" in found else "not shown" if {"inconclusive", "not tested"} & {*found} else "shown"
    )
    beginning = "Evidence of disease signal: " if verdict.level == "shown" else "Disease signal not shown: "
    assert verdict.sentence.startswith(beginning)
    for text in (verdict.sentence, *(condition.text for condition in verdict.conditions)):
        assert re.search(r"\bnan\b|\binf\b|None|;\s*[.;]|\s{2}|\.\.|\(\)", text) is None, text
        assert text.endswith(".") and not text[0].islower(), text
    for condition in verdict.conditions:
        assert (condition.reason == "") == (condition.outcome in ("met", "not applicable")), condition
        if condition.outcome == "failed" or verdict.level == "not shown":
            assert condition.reason in verdict.sentence
    reordered = verdict_of(
        baselines, low=low, errorless_low=errorless_low, **measured | {"external": measured["external"][::-1]}
    )
    assert outcomes(reordered) == found
    if "No lung-free baseline" in verdict.conditions[0].name and found[0] == "met":
        tested = [row for row in baselines.table.to_dict("records") if row["lung_free"] and row["auc"] == row["auc"]]
        assert all(row["high"] < NEAR_CHANCE for row in tested)
        assert all(row["auc"] < SMALLEST_EFFECT for row in tested if row["flagged"])
        missing = baselines.table["lung_free"] & baselines.table["auc"].isna()
        assert set(baselines.table.loc[missing, "baseline"]) <= set(OF_TABLE)
    if verdict.level == "shown":
        assert measured["network"]["low"] > NEAR_CHANCE and low > 0
        assert measured["blind"]["auc_low"] <= 0.5 and measured["blind"]["auc_high"] < NEAR_CHANCE
        assert measured["external"]
        assert measured["unstated_fraction"] < 0.1


@given(st.sampled_from(["shown", "not shown", "failed", None]), st.lists(st.text(min_size=1), min_size=2, max_size=5))
def test_only_a_passed_audit_is_called_support_in_plain_words(level, classes):
    plain = say_plainly(level, classes)
    assert ("support" in str(plain).removeprefix(str(classes))) >= (level == "shown")
    assert plain.headline.startswith(
        "On these images, the checks support" if level == "shown" else "This does not show"
    )
