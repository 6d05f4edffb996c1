"""The rules of the verdict, one by one, on constructed results."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from covid_fastai.audit.baselines import BASELINES, LUNG_FREE, ShortcutAudit
from covid_fastai.audit.verdict import give_verdict

ELSEWHERE = {"source": "there", "value": 0.85, "low": 0.7, "high": 0.93, "n": 60, "thumbnail": 0.6}
BLIND = {"difference": 0.3, "low": 0.2, "high": 0.4}
NEGATIVE_CONTROLS = {"images": 12, "called": 2, "fraction": 2 / 12}


def shortcuts(*flagged: str, thumbnail: float = 0.6) -> ShortcutAudit:
    rows = [
        {"baseline": name, "sees": sees, "lung_free": name in LUNG_FREE, "auc": 0.9 if name in flagged else 0.5,
         "low": 0.4, "high": 0.6, "accuracy": 0.5, "n": 80, "p": 0.5, "p_holm": 0.5, "flagged": name in flagged}
        for name, sees in BASELINES.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[table["baseline"] == "thumbnail", "auc"] = thumbnail
    return ShortcutAudit(table, {"median": 0.5, "low": 0.4, "high": 0.6}, {}, 100, 0)


def verdict_of(*flagged: str, low: float = 0.1, errorless_low: float = 0.3, thumbnail: float = 0.6, **given):
    versus = {"baseline": "thumbnail", "difference": 0.2, "low": low, "high": 0.3, "n": 80}
    given = {"blind": BLIND, "external": [ELSEWHERE], "negative_controls": NEGATIVE_CONTROLS} | given
    network = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 80}
    table = pd.DataFrame([versus | {"errorless_low": errorless_low}])
    return give_verdict(shortcuts(*flagged, thumbnail=thumbnail), network=network, versus=table, **given)


def outcomes(verdict) -> list[str]:
    return [condition.outcome for condition in verdict.conditions]


def test_the_signal_is_shown_if_all_conditions_are_met():
    verdict = verdict_of()
    assert verdict.level == "shown" and verdict.sentence.startswith("Evidence of disease signal")
    assert outcomes(verdict) == ["met"] * 5
    assert outcomes(verdict_of(negative_controls=None)) == ["met"] * 4 + ["not applicable"]
    assert verdict_of(negative_controls=None).level == "shown"


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({"low": -0.01}, 1),
        ({"blind": BLIND | {"low": -0.05}}, 2),
        ({"external": [ELSEWHERE | {"low": 0.45}]}, 3),
        ({"external": [ELSEWHERE | {"thumbnail": 0.9}]}, 3),
        ({"external": [ELSEWHERE, ELSEWHERE | {"low": 0.3}]}, 3),
        ({"negative_controls": {"images": 12, "called": 4, "fraction": 4 / 12}}, 4),
    ],
)
def test_each_condition_can_fail(given, number):
    verdict = verdict_of(**given)
    assert verdict.level == "failed" and verdict.sentence.startswith("Disease signal not shown")
    assert f'the condition "{verdict.conditions[number].name}" is not met' in verdict.sentence
    assert [place for place, outcome in enumerate(outcomes(verdict)) if outcome == "failed"] == [number]


def test_two_failed_conditions_are_both_named():
    verdict = verdict_of(low=-0.01, blind=BLIND | {"low": -0.05})
    names = [condition.name for condition in verdict.conditions[1:3]]
    assert f'the conditions "{names[0]}" and "{names[1]}" are not met' in verdict.sentence


def test_a_quarter_of_the_negative_controls_may_be_positive():
    assert verdict_of(negative_controls={"images": 12, "called": 3, "fraction": 0.25}).level == "shown"


def test_a_flag_is_named_with_its_auc():
    verdict = verdict_of("border ring")
    assert "a shortcut separates the classes" in verdict.sentence and "border ring (AUC 0.900)" in str(verdict)
    assert verdict_of("source", "headers").sentence.endswith("the image source alone separates the classes.")


def test_the_data_cannot_decide_if_the_thumbnail_is_almost_perfect():
    verdict = verdict_of(low=-0.002, errorless_low=-0.001, thumbnail=0.996)
    assert verdict.level == "not shown" and "data cannot decide" in verdict.sentence and "0.996" in verdict.sentence
    flagged = verdict_of("source", low=-0.002, errorless_low=-0.001, thumbnail=0.996)
    assert flagged.level == "failed" and "data cannot decide" in flagged.sentence
    assert outcomes(verdict)[1] == "inconclusive"


def test_untested_conditions_are_named():
    verdict = verdict_of(blind=None, external=[])
    assert verdict.level == "not shown"
    assert "no external data" in verdict.sentence and "audit RUN --full" in verdict.sentence
    assert outcomes(verdict).count("not tested") == 2


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_thumbnail_at_another_hospital_is_no_failure(missing):
    assert verdict_of(external=[ELSEWHERE | {"thumbnail": missing}]).level == "shown"


def test_the_verdict_as_plain_values_and_as_a_table():
    verdict = verdict_of("source")
    assert verdict.to_dict()["conditions"][0]["outcome"] == "failed"
    assert len(verdict.table()) == 5 and "<table" in verdict._repr_html_()
