"""The verdict's rules, one by one, on figures made for them."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from covid_fastai.audit.baseline_features import BASELINES, LUNG_FREE
from covid_fastai.audit.baselines import ShortcutAudit
from covid_fastai.audit.verdict import give_verdict

ELSEWHERE = {"source": "there", "value": 0.85, "low": 0.7, "high": 0.93, "n": 60, "thumbnail": 0.6}
BLIND = {"difference": 0.3, "low": 0.2, "high": 0.4}
TRIPWIRES = {"images": 12, "called": 2, "fraction": 2 / 12}


def shortcuts(*flagged: str, thumbnail: float = 0.6) -> ShortcutAudit:
    rows = [
        {"baseline": name, "sees": sees, "lung_free": name in LUNG_FREE, "auc": 0.9 if name in flagged else 0.5,
         "low": 0.4, "high": 0.6, "accuracy": 0.5, "n": 80, "p": 0.5, "p_holm": 0.5, "flagged": name in flagged}
        for name, sees in BASELINES.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[table["baseline"] == "thumbnail", "auc"] = thumbnail
    return ShortcutAudit(table, {"median": 0.5, "low": 0.4, "high": 0.6}, {}, 100, 0)


def judge(*flagged: str, low: float = 0.1, errorless_low: float = 0.3, thumbnail: float = 0.6, **given):
    versus = {"baseline": "thumbnail", "difference": 0.2, "low": low, "high": 0.3, "n": 80}
    given = {"blind": BLIND, "external": [ELSEWHERE], "negative_controls": TRIPWIRES} | given
    network = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 80}
    table = pd.DataFrame([versus | {"errorless_low": errorless_low}])
    return give_verdict(shortcuts(*flagged, thumbnail=thumbnail), network=network, versus=table, **given)


def outcomes(verdict) -> list[str]:
    return [condition.outcome for condition in verdict.conditions]


def test_all_conditions_hold():
    verdict = judge()
    assert verdict.level == "shown" and verdict.sentence.startswith("Evidence of disease signal")
    assert outcomes(verdict) == ["met"] * 5
    assert outcomes(judge(negative_controls=None)) == ["met"] * 4 + ["does not apply"]
    assert judge(negative_controls=None).level == "shown"


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"low": -0.01}, 1),
        ({"blind": BLIND | {"low": -0.05}}, 2),
        ({"external": [ELSEWHERE | {"low": 0.45}]}, 3),
        ({"external": [ELSEWHERE | {"thumbnail": 0.9}]}, 3),
        ({"external": [ELSEWHERE, ELSEWHERE | {"low": 0.3}]}, 3),
        ({"negative_controls": {"images": 12, "called": 4, "fraction": 4 / 12}}, 4),
    ],
)
def test_each_condition_can_fail(given, place):
    verdict = judge(**given)
    assert verdict.level == "refuted" and "disease signal not shown" in verdict.sentence
    assert [number for number, outcome in enumerate(outcomes(verdict)) if outcome == "failed"] == [place]


def test_three_of_twelve_are_allowed():
    assert judge(negative_controls={"images": 12, "called": 3, "fraction": 0.25}).level == "shown"


def test_a_flag_is_named_with_its_figure():
    verdict = judge("border ring")
    assert verdict.sentence.startswith("A shortcut is open") and "border ring (AUC 0.900)" in str(verdict)
    assert judge("source", "headers").sentence.startswith("Separates sources")


def test_a_thumbnail_that_leaves_no_room():
    verdict = judge(low=-0.002, errorless_low=-0.001, thumbnail=0.996)
    assert verdict.level == "not shown" and "data cannot tell" in verdict.sentence and "0.996" in verdict.sentence
    flagged = judge("source", low=-0.002, errorless_low=-0.001, thumbnail=0.996)
    assert flagged.level == "refuted" and "data cannot tell" in flagged.sentence


def test_what_was_not_tried_is_named():
    verdict = judge(blind=None, external=[])
    assert verdict.level == "not shown"
    assert "no external set" in verdict.sentence and "audit --full" in verdict.sentence
    assert outcomes(verdict).count("not shown") == 2


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_thumbnail_that_could_not_be_tried_elsewhere(missing):
    assert judge(external=[ELSEWHERE | {"thumbnail": missing}]).level == "shown"


def test_plain_values():
    verdict = judge("source")
    assert verdict.to_dict()["conditions"][0]["outcome"] == "failed"
    assert len(verdict.table()) == 5 and "<table" in verdict._repr_html_()
