"""The certainty for a target risk against brute force, and cross-fitting by fold."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from covid_fastai.errors import UsageError
from covid_fastai.evaluation.formatting import MISSING
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.selective import abstain_by_fold, certain_units, choose_certainty


def simulate(n: int = 300, *, seed: int = 0, folds: int = 5, distance: float = 4.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    p = 1 / (1 + np.exp(-rng.normal(distance * (label - 0.5), 1.5)))
    table = pd.DataFrame({"label": np.where(label, "P", "N"), "p_N": 1 - p, "p_P": p, "fold": np.arange(n) % folds})
    return table.assign(patient=[f"q{i}" for i in range(n)], path=[f"{i}.png" for i in range(n)])


@pytest.mark.parametrize("risk", [0.04, 0.06, 0.1, 0.3])
def test_the_certainty_passes_an_exact_test_and_the_next_lower_one_does_not(risk):
    units = certain_units(read_predictions(simulate(distance=6.0)))
    ordered = units.sort_values("certainty", ascending=False)
    passed = []
    for n in np.linspace(300, np.log(0.005) / np.log(1 - risk), 10):
        answered = ordered.head(int(np.ceil(n - 1e-9)) if n == 300 else int(round(n)))
        p = binomtest(int(answered["error"].sum()), len(answered), risk, alternative="less").pvalue
        if p <= 0.005:
            passed.append(answered["certainty"].min())
    lowest = choose_certainty(units, risk=risk)
    assert lowest == pytest.approx(min(passed), abs=0.02)


def test_a_few_patients_without_an_error_are_not_enough():
    """0.95^n <= 0.05 / 10 needs 104 answers without an error."""
    units = pd.DataFrame({"certainty": np.linspace(0.5, 1, 103), "error": 0.0})
    assert choose_certainty(units, risk=0.05) is None
    units = pd.DataFrame({"certainty": np.linspace(0.5, 1, 104), "error": 0.0})
    assert choose_certainty(units, risk=0.05) == 0.5


def test_certainties_are_chosen_on_the_other_folds_and_evaluated_on_their_own():
    table = simulate(distance=6.0)
    result = abstain_by_fold(table, risk=0.06)
    n_answered = n_errors = 0
    for row in result.folds.to_dict("records"):
        in_fold = (table["fold"] == row["fold"]).to_numpy()
        others = certain_units(read_predictions(table[~in_fold]))
        assert row["certainty"] == choose_certainty(others, risk=0.06) and row["evaluated"] == 60
        units = certain_units(read_predictions(table[in_fold]))
        answered = units[units["certainty"] >= row["certainty"]]
        assert (row["answered"], row["errors"]) == (len(answered), answered["error"].sum())
        n_answered, n_errors = n_answered + len(answered), n_errors + answered["error"].sum()
    assert result.value("coverage") == n_answered / 300
    assert result.value("risk") == pytest.approx(n_errors / n_answered)
    row = result.metrics.iloc[1]
    assert (row["low"], row["high"]) == pytest.approx(wilson(n_errors / n_answered, n_answered))
    assert row["n"] == n_answered
    assert result.certainty == choose_certainty(certain_units(read_predictions(table)), risk=0.06)


@pytest.mark.slow
def test_the_risk_is_met_with_the_stated_confidence_on_new_patients():
    """A plain estimate of the risk exceeds the target in about half of the draws."""
    new = certain_units(read_predictions(simulate(50_000, seed=99)))
    exceeded = []
    for seed in range(60):
        lowest = choose_certainty(certain_units(read_predictions(simulate(300, seed=seed))), risk=0.1, confidence=0.9)
        exceeded.append(lowest is not None and new.loc[new["certainty"] >= lowest, "error"].mean() > 0.1)
    assert np.mean(exceeded) <= 0.17  # at most 0.1; 0.17 leaves room for 60 draws


def test_the_certainty_can_be_chosen_on_other_patients():
    inner, outer = simulate(seed=1, folds=1), simulate(seed=2, folds=1)
    outer["patient"] = "o" + outer["patient"]
    result = abstain_by_fold(outer, fitted_on=inner, risk=0.1)
    assert result.folds["certainty"].tolist() == [result.certainty]
    with pytest.raises(UsageError, match="fold 0"):
        abstain_by_fold(inner)


def test_no_patient_is_answered_if_no_certainty_meets_the_risk():
    result = abstain_by_fold(simulate(60, distance=0.0), risk=0.01)
    assert result.certainty is None and result.value("coverage") == 0 and np.isnan(result.value("risk"))
    assert "no patient is answered" in result.describe() and result.folds["certainty"].isna().all()
    assert MISSING in repr(result)


def test_a_missed_target_is_reported():
    table = simulate(400, folds=2)
    mislabelled = (table["fold"] == 1) & (np.arange(400) % 3 == 0)
    table.loc[mislabelled, "label"] = table.loc[mislabelled, "label"].map({"N": "P", "P": "N"})
    assert "The target was not met." in abstain_by_fold(table, risk=0.1).describe()
    assert "not met" not in abstain_by_fold(simulate(), risk=0.05).describe()


def test_the_certainty_can_be_taken_from_the_spread():
    table = simulate()
    wrong = (table["p_P"] >= 0.5) != (table["label"] == "P")
    table["spread"] = np.where(wrong, 0.3, 0.1)
    result = abstain_by_fold(table, risk=0.05, uncertainty="spread")
    assert result.value("risk") == 0 and result.value("coverage") == pytest.approx(1 - wrong.mean())
    assert result.certainty == pytest.approx(-0.1)


def test_invalid_options_raise_and_results_can_be_written():
    for risk in (0, 1, -0.1):
        with pytest.raises(UsageError, match="risk="):
            abstain_by_fold(simulate(), risk=risk)
    result = abstain_by_fold(simulate())
    assert json.dumps(result.to_dict()) and "medical device" in repr(result) and "<table" in result._repr_html_()
    with pytest.raises(UsageError, match="'auc'"):
        result.value("auc")
