"""Calibration slope, intercept and the smooth curve, against statsmodels."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit

from covid_fastai.evaluation.calibration_curve import calibration_curve


def simulate(n: int, *, scale: float = 1.0, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Patients whose predicted log odds are `scale` times the true ones, plus `shift`."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, n)
    p = expit(scale * truth + shift)
    label = np.where(rng.random(n) < expit(truth), "P", "N")
    return pd.DataFrame({"label": label, "p_N": 1 - p, "p_P": p})


def test_slope_and_intercept_equal_those_of_statsmodels():
    table = simulate(200, scale=2.0, shift=0.5)
    outcome, log_odds = (table["label"] == "P").astype(float), logit(table["p_P"])
    fit = calibration_curve(table)
    slope = sm.Logit(outcome, sm.add_constant(log_odds)).fit(disp=0)
    low, high = slope.conf_int().iloc[1]
    row = fit.metrics.iloc[0]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((slope.params.iloc[1], low, high), rel=1e-5)
    family = sm.families.Binomial()
    intercept = sm.GLM(outcome, np.ones(len(outcome)), family=family, offset=log_odds).fit()
    assert fit.value("intercept") == pytest.approx(intercept.params.iloc[0], rel=1e-5)


def test_overconfident_and_shifted_probabilities_are_recognised():
    fit = calibration_curve(simulate(20_000, scale=2.0))
    assert fit.value("slope") == pytest.approx(0.5, abs=0.03) and fit.value("intercept") == pytest.approx(0, abs=0.06)
    assert calibration_curve(simulate(20_000, shift=1.0)).value("intercept") == pytest.approx(-1, abs=0.06)


def test_the_curve_follows_the_true_frequencies():
    """The true frequency at p is expit(logit(p) / 2); beyond the data there is no curve."""
    curve = calibration_curve(simulate(20_000, scale=2.0)).curve
    inner = curve[curve["probability"].between(0.02, 0.98)]
    truth = expit(logit(inner["probability"]) / 2)
    assert np.abs(inner["fraction"] - truth).max() < 0.03
    assert ((inner["low"] < inner["fraction"]) & (inner["fraction"] < inner["high"])).all()


@pytest.mark.slow
def test_the_band_covers_the_true_frequency():
    covered = []
    for seed in range(100):
        curve = calibration_curve(simulate(150, seed=seed)).curve
        row = curve.iloc[(curve["probability"] - 0.5).abs().argmin()]
        covered.append(row["low"] <= row["probability"] <= row["high"])
    assert 0.9 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("labels", [["N"] * 10 + ["P"] * 10, ["P"] * 20])
def test_what_cannot_be_estimated_is_said(labels):
    """The slope of separated outcomes is infinite."""
    p = np.linspace(0.05, 0.95, 20)
    fit = calibration_curve(pd.DataFrame({"label": labels, "p_N": 1 - p, "p_P": p}))
    assert np.isnan(fit.value("slope")) and fit.curve.empty
    assert "not estimable" in fit.metrics["method"].iloc[0]
    assert json.dumps(fit.to_dict()) and "–" in fit.describe() and "<table" in fit._repr_html_()


def test_few_patients_get_a_straight_line(three_classes, predictions):
    few = calibration_curve(simulate(30))
    slopes = np.diff(logit(few.curve["fraction"])) / np.diff(logit(few.curve["probability"]))
    assert slopes == pytest.approx(few.value("slope"))
    assert calibration_curve(three_classes).event == "correct" and calibration_curve(predictions).event == "COVID-19"
