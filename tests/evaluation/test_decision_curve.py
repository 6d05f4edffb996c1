"""Predictive values against Bayes' rule and statsmodels' score interval; net benefit against its definition."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.decision_curve import decision_curve, plot_decision_curve, predictive_values
from covid_fastai.evaluation.intervals import ratio_interval
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.thresholds import thresholds_by_fold


def from_counts(true_positives: int, positives: int, false_positives: int, negatives: int) -> pd.DataFrame:
    """Return predictions with these counts at a threshold of 0.5."""
    p = [0.9] * true_positives + [0.1] * (positives - true_positives)
    p += [0.9] * false_positives + [0.1] * (negatives - false_positives)
    table = pd.DataFrame({"label": ["P"] * positives + ["N"] * negatives, "p_P": p})
    table.insert(1, "p_N", 1 - table["p_P"])
    return table


@pytest.mark.parametrize("counts", [(45, 50, 3, 60), (0, 50, 10, 60), (50, 50, 0, 60), (50, 50, 1, 3)])
def test_ratios_have_the_score_interval_of_statsmodels(counts):
    expected = confint_proportions_2indep(*counts, method="score", compare="ratio", correction=False)
    assert ratio_interval(*counts) == pytest.approx(tuple(map(float, expected)), rel=1e-6)


def test_ratios_of_counts_of_zero_and_of_all():
    assert ratio_interval(0, 9, 0, 8) == (0.0, math.inf)
    low, high = ratio_interval(50, 50, 60, 60)
    assert low < 1 < high and ratio_interval(60, 60, 50, 50) == pytest.approx((1 / high, 1 / low))
    assert ratio_interval(45, 50, 3, 60)[0] == pytest.approx(1 / ratio_interval(3, 60, 45, 50)[1])


def test_predictive_values_follow_bayes_rule():
    table = predictive_values(from_counts(45, 50, 6, 60), prevalences=(0.01, 0.3)).set_index(["prevalence", "metric"])
    for p in (0.01, 0.3):
        assert table.loc[(p, "ppv"), "value"] == pytest.approx(p * 0.9 / (p * 0.9 + (1 - p) * 0.1))
        assert table.loc[(p, "npv"), "value"] == pytest.approx((1 - p) * 0.9 / ((1 - p) * 0.9 + p * 0.1))
    low, high = confint_proportions_2indep(45, 50, 6, 60, method="score", compare="ratio", correction=False)
    bounds = [0.01 * ratio / (0.01 * ratio + 0.99) for ratio in (low, high)]
    assert table.loc[(0.01, "ppv"), ["low", "high"]].tolist() == pytest.approx(bounds, rel=1e-6)
    low, high = confint_proportions_2indep(5, 50, 54, 60, method="score", compare="ratio", correction=False)
    bounds = [0.7 / (0.7 + 0.3 * ratio) for ratio in (high, low)]
    assert table.loc[(0.3, "npv"), ["low", "high"]].tolist() == pytest.approx(bounds, rel=1e-6)


def test_at_the_prevalence_of_the_data_they_are_the_fractions_in_the_table():
    table = predictive_values(from_counts(45, 50, 6, 60), prevalences=[50 / 110]).set_index("metric")
    assert table.loc["ppv", "value"] == pytest.approx(45 / 51) and table.loc["npv", "value"] == pytest.approx(54 / 59)


def test_without_an_error_the_interval_still_has_a_width():
    table = predictive_values(from_counts(39, 39, 0, 100), prevalences=(0.01,)).set_index("metric")
    assert table.loc["ppv", "value"] == 1 and table.loc["ppv", "high"] == 1 and table.loc["ppv", "low"] < 0.25
    assert table.loc["npv", "value"] == 1 and 0.99 < table.loc["npv", "low"] < 1


def test_a_predicted_class_without_patients_has_no_predictive_value():
    table = predictive_values(from_counts(0, 10, 0, 10), prevalences=(0.1,)).set_index("metric")
    assert math.isnan(table.loc["ppv", "value"]) and table.loc["npv", "value"] == pytest.approx(0.9)
    one_class = predictive_values(from_counts(5, 10, 0, 0))
    assert one_class[["value", "low", "high"]].isna().all(axis=None)
    assert set(one_class["method"]) == {"no unit of some class"}


def test_predictive_values_of_an_operating_point(make_predictions):
    table = make_predictions(patients=100)
    table["fold"] = table["patient"].str[1:].astype(int) % 4
    point = thresholds_by_fold(table)
    table = predictive_values(point, prevalences=(0.05,)).set_index("metric")
    odds = 0.05 / 0.95 * point.value("sensitivity") / (1 - point.value("specificity"))
    assert table.loc["ppv", "value"] == pytest.approx(odds / (1 + odds))


def test_invalid_options_of_predictive_values_raise(three_classes, predictions):
    with pytest.raises(UsageError, match="prevalences=0"):
        predictive_values(predictions, prevalences=(0, 0.1))
    with pytest.raises(UsageError, match="more than two classes"):
        predictive_values(three_classes)
    with pytest.raises(UsageError, match="count images"):
        predictive_values(evaluate(predictions, unit="image", n_resamples=100))
    result = evaluate(three_classes, n_resamples=100)
    assert predictive_values(result, positive="Viral")["value"].between(0, 1).all()


def test_intervals_of_likelihood_ratios_cover_the_truth():
    """1,000 simulations of 39 and 200 patients, with proportions near 1, where the Wald interval of the log fails."""
    rng = np.random.default_rng(0)
    for sensitivity, specificity in ((0.7, 0.9), (0.9, 0.99), (0.99, 0.99)):
        true = sensitivity / (1 - specificity)
        covered = 0
        for true_positives, false_positives in zip(
            rng.binomial(39, sensitivity, 1000), rng.binomial(200, 1 - specificity, 1000), strict=True
        ):
            low, high = ratio_interval(true_positives, 39, false_positives, 200)
            covered += low <= true <= high
        assert 0.925 <= covered / 1000 <= 0.98, (sensitivity, specificity)


def test_net_benefit_equals_its_definition(predictions):
    units = predictions.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    truth, p = (units["label"] == "COVID-19").to_numpy(), units["p_COVID-19"].to_numpy()
    n = len(units)
    curve = decision_curve(predictions, thresholds=(0.1, 0.35, 0.5, 0.8))
    for row in curve.to_dict("records"):
        t = row["threshold"]
        true_positives, false_positives = ((p >= t) & truth).sum(), ((p >= t) & ~truth).sum()
        assert row["net_benefit"] == pytest.approx(true_positives / n - false_positives / n * t / (1 - t))
        assert row["treat_all"] == pytest.approx(truth.mean() - (1 - truth.mean()) * t / (1 - t))
        assert row["treat_none"] == 0 and row["low"] <= row["net_benefit"] <= row["high"]
        assert row["gain"] == pytest.approx(row["net_benefit"] - max(row["treat_all"], 0))
    assert set(curve["positive"]) == {"COVID-19"} and set(curve["n"]) == {n}
    assert curve["prevalence"].tolist() == pytest.approx([truth.mean()] * len(curve))


def test_a_given_prevalence_weights_the_classes():
    """Ten times as many negatives equal a prevalence ten times as low."""
    rare = decision_curve(from_counts(45, 50, 60, 500), thresholds=(0.2, 0.5))
    stated = decision_curve(from_counts(45, 50, 6, 50), thresholds=(0.2, 0.5), prevalence=50 / 550)
    np.testing.assert_allclose(rare["net_benefit"], stated["net_benefit"])
    np.testing.assert_allclose(rare["treat_all"], stated["treat_all"])


def test_the_band_agrees_with_a_bootstrap_except_at_the_extremes(make_predictions):
    predictions = make_predictions(patients=600)
    units = predictions.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    truth, predicted = (units["label"] == "COVID-19").to_numpy(), units["p_COVID-19"].to_numpy() >= 0.5
    rng, n = np.random.default_rng(0), len(units)
    true, false = (predicted & truth).mean(), (predicted & ~truth).mean()  # of all patients: the prevalence varies, too
    counts = rng.multinomial(n, [true, false, 1 - true - false], size=20_000) / n
    low, high = np.quantile(counts[:, 0] - counts[:, 1], [0.025, 0.975])
    row = decision_curve(predictions, thresholds=[0.5]).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.006)
    given = decision_curve(predictions, thresholds=[0.5], prevalence=float(truth.mean())).iloc[0]
    assert given["net_benefit"] == pytest.approx(row["net_benefit"])
    assert given["high"] - given["low"] < row["high"] - row["low"]
    perfect = decision_curve(from_counts(20, 20, 0, 20), thresholds=[0.5]).iloc[0]
    assert perfect["net_benefit"] == 0.5 and perfect["low"] < 0.42  # that of a bootstrap would be 0.5 too


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("given", [0.5, None])
def test_intervals_of_net_benefit_cover_the_truth(given):
    """Given a prevalence, and with that of the data, which varies from sample to sample."""
    rng = np.random.default_rng(1)
    truth = 0.5 * 0.95 - 0.5 * 0.05 * 0.25 / 0.75
    gain = truth - (0.5 - 0.5 * 0.25 / 0.75)
    rows = []
    for _ in range(300):
        positives = 30 if given else rng.binomial(60, 0.5)
        hits, alarms = rng.binomial(positives, 0.95), rng.binomial(60 - positives, 0.05)
        table = from_counts(hits, positives, alarms, 60 - positives)
        rows.append(decision_curve(table, thresholds=[0.25], prevalence=given).iloc[0])
    assert 0.91 <= np.mean([row["low"] <= truth <= row["high"] for row in rows]) <= 0.99
    assert 0.91 <= np.mean([row["gain_low"] <= gain <= row["gain_high"] for row in rows]) <= 0.99


def test_invalid_options_of_a_decision_curve_raise(predictions):
    for options, text in (({"thresholds": (0.5, 1)}, "thresholds"), ({"prevalence": 1.0}, "prevalence=1.0")):
        with pytest.raises(UsageError, match=text):
            decision_curve(predictions, **options)
    with pytest.raises(UsageError, match="thresholds"):
        decision_curve(predictions, thresholds=())
    with pytest.raises(DataError, match="of one kind"):
        decision_curve(from_counts(3, 5, 0, 0))


def test_the_plot_shows_the_curves(predictions, make_predictions):
    curve = decision_curve(predictions)
    axes = plot_decision_curve(curve).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), curve["net_benefit"])
    other = decision_curve(make_predictions(seed=1), prevalence=0.1)
    with pytest.raises(UsageError, match="prevalences"):
        plot_decision_curve({"one": curve, "other": other})
    texts = plot_decision_curve({"one": curve, "other": curve}).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["one", "other", "act on all", "act on none"]
