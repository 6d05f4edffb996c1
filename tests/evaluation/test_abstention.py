"""The certainty for a stated risk: by brute force, never chosen on what it is judged on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from covid_fastai.errors import UsageError
from covid_fastai.evaluation.formatting import MISSING
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.selective import abstain_by_fold, certain_units, choose_certainty


def draw(n: int = 300, *, seed: int = 0, folds: int = 5, distance: float = 4.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    p = 1 / (1 + np.exp(-rng.normal(distance * (label - 0.5), 1.5)))
    table = pd.DataFrame({"label": np.where(label, "P", "N"), "p_N": 1 - p, "p_P": p, "fold": np.arange(n) % folds})
    return table.assign(patient=[f"q{i}" for i in range(n)], path=[f"{i}.png" for i in range(n)])


@pytest.mark.parametrize("risk", [0.03, 0.05, 0.1, 0.3])
def test_it_is_the_least_certainty_that_keeps_the_risk(risk):
    units = certain_units(read_predictions(draw()))
    cut = choose_certainty(units, risk=risk)
    allowed = []
    for own in units["certainty"]:
        given = units[units["certainty"] >= own]
        if (given["error"].sum() + 1) / (len(given) + 1) <= risk:
            allowed.append(own)
    below = units.loc[units["certainty"] < min(allowed), "certainty"]
    assert cut == pytest.approx((min(allowed) + (below.max() if len(below) else min(allowed))) / 2)


def test_a_few_patients_without_an_error_promise_nothing():
    units = pd.DataFrame({"certainty": np.linspace(0.5, 1, 18), "error": 0.0})
    assert choose_certainty(units, risk=0.05) is None
    units = pd.DataFrame({"certainty": np.linspace(0.5, 1, 19), "error": 0.0})
    assert choose_certainty(units, risk=0.05) == 0.5


def test_folds_are_chosen_on_the_others_and_judged_on_their_own():
    table = draw()
    found = abstain_by_fold(table, risk=0.05)
    answered = errors = 0
    for row in found.folds.to_dict("records"):
        own = (table["fold"] == row["fold"]).to_numpy()
        rest = certain_units(read_predictions(table[~own]))
        assert row["certainty"] == choose_certainty(rest, risk=0.05) and row["judged"] == 60
        units = certain_units(read_predictions(table[own]))
        given = units[units["certainty"] >= row["certainty"]]
        assert (row["answered"], row["errors"]) == (len(given), given["error"].sum())
        answered, errors = answered + len(given), errors + given["error"].sum()
    assert found.value("coverage") == answered / 300 and found.value("risk") == pytest.approx(errors / answered)
    row = found.metrics.iloc[1]
    assert (row["low"], row["high"]) == pytest.approx(wilson(errors / answered, answered)) and row["n"] == answered
    assert found.certainty == choose_certainty(certain_units(read_predictions(table)), risk=0.05)


def test_the_risk_is_kept_on_the_average_of_new_patients():
    new = certain_units(read_predictions(draw(20_000, seed=99)))
    risks = []
    for seed in range(40):
        cut = choose_certainty(certain_units(read_predictions(draw(150, seed=seed))), risk=0.1)
        risks.append(new.loc[new["certainty"] >= cut, "error"].mean())
    assert 0.06 < np.mean(risks) < 0.105


def test_other_patients_can_be_chosen_on():
    inner, outer = draw(seed=1, folds=1), draw(seed=2, folds=1)
    outer["patient"] = "o" + outer["patient"]
    found = abstain_by_fold(outer, fitted_on=inner, risk=0.1)
    assert found.folds["certainty"].tolist() == [found.certainty]
    with pytest.raises(UsageError, match="fold 0"):
        abstain_by_fold(inner)


def test_where_no_certainty_is_enough_nobody_is_answered():
    found = abstain_by_fold(draw(60, distance=0.0), risk=0.01)
    assert found.certainty is None and found.value("coverage") == 0 and np.isnan(found.value("risk"))
    assert "nobody is answered" in found.describe() and found.folds["certainty"].isna().all()
    assert MISSING in repr(found)


def test_a_risk_that_was_exceeded_is_said():
    table = draw(400, folds=2)
    spoiled = (table["fold"] == 1) & (np.arange(400) % 3 == 0)
    table.loc[spoiled, "label"] = table.loc[spoiled, "label"].map({"N": "P", "P": "N"})
    assert "The risk was exceeded." in abstain_by_fold(table, risk=0.1).describe()
    assert "exceeded" not in abstain_by_fold(draw(), risk=0.05).describe()


def test_a_spread_serves_as_well():
    table = draw()
    wrong = (table["p_P"] >= 0.5) != (table["label"] == "P")
    table["spread"] = np.where(wrong, 0.3, 0.1)
    found = abstain_by_fold(table, risk=0.05, uncertainty="spread")
    assert found.value("risk") == 0 and found.value("coverage") == pytest.approx(1 - wrong.mean())
    assert found.certainty == pytest.approx(-0.2)


def test_wrong_questions_and_what_can_be_written():
    for risk in (0, 1, -0.1):
        with pytest.raises(UsageError, match="risk="):
            abstain_by_fold(draw(), risk=risk)
    found = abstain_by_fold(draw())
    assert json.dumps(found.to_dict()) and "medical device" in repr(found) and "<table" in found._repr_html_()
    with pytest.raises(UsageError, match="'auc'"):
        found.value("auc")
