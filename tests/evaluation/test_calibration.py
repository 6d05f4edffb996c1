"""Temperatures against scikit-learn's logistic regression, cross-fitting by fold, and reliability."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.bootstrap import calibration_gaps, cross_fit_folds, equal_mass_bins
from covid_fastai.evaluation.calibration import (
    apply_temperature,
    calibrate,
    fit_temperature,
    plot_reliability,
    reliability_table,
)
from covid_fastai.evaluation.metrics import evaluate, score_units
from covid_fastai.evaluation.prediction_table import read_predictions


def simulate_folds(*, patients: int = 120, certainty: float = 3.0, folds: int = 5, seed: int = 0, images: int = 1):
    """Simulate predictions whose log odds are the calibrated ones times `certainty`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, patients)
    true = rng.normal(np.where(label, 1.0, -1.0), np.sqrt(2.0))  # such log odds are calibrated
    p = 1 / (1 + np.exp(-certainty * true))
    table = pd.DataFrame({"label": np.where(label, "P", "N"), "patient": [f"p{i}" for i in range(patients)]})
    table = table.assign(fold=np.arange(patients) % folds, p_N=1 - p, p_P=p)
    table = table.loc[table.index.repeat(images)].reset_index(drop=True)
    return table.assign(path=[f"{i}.png" for i in range(len(table))])


def test_the_temperature_equals_that_of_logistic_regression():
    """One slope on the log odds and no intercept; label smoothing as weighted rows of the other class."""
    table = read_predictions(simulate_folds())
    x = np.log(table["p_P"] / table["p_N"]).to_numpy()
    y = (table["label"] == "P").to_numpy()
    other = 1 / (np.where(y, y.sum(), (~y).sum()) + 2)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8)
    model.fit(np.r_[x, x][:, None], np.r_[y, ~y], np.r_[1 - other, other])
    assert fit_temperature(table) == pytest.approx(1 / model.coef_[0, 0], rel=1e-4)
    assert fit_temperature(table) == pytest.approx(3, rel=0.35)


def test_ten_copies_of_an_image_count_once():
    assert fit_temperature(read_predictions(simulate_folds(images=10))) == pytest.approx(
        fit_temperature(read_predictions(simulate_folds()))
    )


def test_separated_classes_have_a_finite_temperature():
    table = pd.DataFrame({"label": ["N"] * 10 + ["P"] * 10, "p_N": [0.9] * 10 + [0.1] * 10})
    table["p_P"] = 1 - table["p_N"]
    scaled = apply_temperature(table, fit_temperature(read_predictions(table)))
    assert scaled["p_P"].iloc[-1] == pytest.approx(11 / 12, abs=1e-4)  # Laplace's rule of succession


def test_scaling_preserves_the_class_and_the_sum(three_classes):
    table = read_predictions(three_classes)
    scaled = apply_temperature(table, 2.5)
    columns = [name for name in table if name.startswith("p_")]
    np.testing.assert_allclose(scaled[columns].sum(axis=1), 1)
    np.testing.assert_array_equal(scaled[columns].to_numpy().argmax(1), table[columns].to_numpy().argmax(1))
    pd.testing.assert_frame_equal(apply_temperature(scaled, 1 / 2.5)[columns], table[columns])
    with pytest.raises(UsageError):
        apply_temperature(table, 0.0)


def test_the_temperature_of_a_fold_is_fitted_on_the_other_folds():
    table = simulate_folds()
    result = calibrate(table, n_resamples=200)
    for row in result.folds.to_dict("records"):
        others = read_predictions(table[table["fold"] != row["fold"]])
        assert row["temperature"] == pytest.approx(fit_temperature(others))
        assert row["fitted_on"] + row["evaluated"] == 120
    in_fold = table["fold"] == 2
    swapped = table.copy()
    swapped.loc[in_fold, "label"] = swapped.loc[in_fold, "label"].map({"N": "P", "P": "N"})
    again = calibrate(swapped, n_resamples=200)
    first, second = (result.after.predictions.loc[in_fold, "p_P"] for result in (result, again))
    pd.testing.assert_series_equal(second, first)
    assert again.temperature == pytest.approx(fit_temperature(read_predictions(swapped)))


def test_a_patient_in_two_folds_is_used_for_fitting_in_neither():
    table = simulate_folds(images=2)
    table.loc[1, "fold"] = 1  # the first patient's second image
    for _, fit, evaluated in cross_fit_folds(read_predictions(table)):
        assert not set(fit["patient"]) & set(evaluated["patient"])


def test_overconfident_probabilities_improve():
    result = calibrate(simulate_folds(patients=400), n_resamples=300)
    table = result.table.set_index(["metric", "when"])
    assert result.temperature == pytest.approx(3, rel=0.2)
    for metric in ("brier", "log_loss", "ece"):
        assert table.loc[(metric, "difference"), "value"] == pytest.approx(
            table.loc[(metric, "after"), "value"] - table.loc[(metric, "before"), "value"]
        )
        assert table.loc[(metric, "difference"), "high"] < 0
    assert table.loc[("ece", "after"), "low"] < 0.02
    assert result.after.value("auc") == pytest.approx(result.before.value("auc"), abs=0.01)
    assert json.dumps(result.to_dict()) and "medical device" in repr(result) and "<table" in result._repr_html_()


def test_the_temperature_can_be_fitted_on_other_patients():
    inner, outer = simulate_folds(seed=1, folds=1), simulate_folds(seed=2, folds=1)
    outer["patient"] = "o" + outer["patient"]
    result = calibrate(outer, fitted_on=inner, n_resamples=200)
    assert result.folds["temperature"].tolist() == [result.temperature] == [fit_temperature(read_predictions(inner))]
    with pytest.raises(DataError, match="in both tables"):
        calibrate(inner, fitted_on=inner)
    with pytest.raises(UsageError, match="fold 0"):
        calibrate(inner)
    with pytest.raises(DataError, match="one class only"):
        calibrate(outer, fitted_on=inner[inner["label"] == "P"])


def test_bins_equal_those_of_scikit_learn():
    p = np.random.default_rng(0).beta(0.5, 0.5, 87).round(2)  # with ties
    outcome = (np.random.default_rng(1).random(87) < p).astype(float)
    fraction, probability = calibration_curve(outcome, p, n_bins=10, strategy="quantile")
    number = equal_mass_bins(p)
    np.testing.assert_allclose(np.bincount(number, p) / np.bincount(number), probability)
    np.testing.assert_allclose(np.bincount(number, outcome) / np.bincount(number), fraction)
    gaps = calibration_gaps(p, outcome, np.ones((1, 87)))[0]
    np.testing.assert_allclose(gaps, (probability - fraction) * np.bincount(number) / 87)


def test_the_reliability_table_counts_patients(predictions):
    table, units = reliability_table(predictions), score_units(read_predictions(predictions)).table
    assert table["n"].sum() == len(units)
    assert (table["low"] <= table["fraction"]).all() and (table["fraction"] <= table["high"]).all()
    ece = (table["n"] / table["n"].sum() * (table["fraction"] - table["probability"]).abs()).sum()
    assert ece == pytest.approx(evaluate(predictions).value("ece"))
    with pytest.raises(UsageError):
        reliability_table(predictions, bins=1)


def test_the_plot_shows_the_table(predictions, three_classes):
    axes = plot_reliability(predictions).axes[0]
    plotted = axes.containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(
        np.asarray(plotted, dtype=float), reliability_table(predictions)["fraction"].astype(float)
    )
    assert "ECE" in axes.get_legend().get_texts()[0].get_text()
    assert len(plot_reliability(calibrate(simulate_folds(), n_resamples=200)).axes[0].get_legend().get_texts()) == 2
    assert plot_reliability(three_classes).axes[0].get_ylabel() == "fraction that is correct"


@pytest.mark.slow
@pytest.mark.parametrize("certainty", [1.0, 1.5, 3.0])
@pytest.mark.nightly
def test_the_intervals_of_the_calibration_error_cover_the_truth(certainty):
    """Bootstrap percentiles include the 0 of a calibrated model in none of 500 simulations of 40 patients."""
    large = read_predictions(simulate_folds(patients=200_000, certainty=certainty))
    truth = np.abs(calibration_gaps(large["p_P"].to_numpy(), (large["label"] == "P").to_numpy(), np.ones((1, 200_000))))
    truth = 0.0 if certainty == 1 else float(truth.sum())
    rows = [
        evaluate(simulate_folds(patients=40, certainty=certainty, seed=s), n_resamples=300).row("ece")
        for s in range(200)
    ]
    assert np.mean([row["low"] <= truth <= row["high"] for row in rows]) > 0.85
