"""The risk-coverage curve against a loop, certainty against its definition, and ties."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.selective import certain_units, plot_risk_coverage, risk_coverage


def table_of(p, labels, **columns) -> pd.DataFrame:
    p = np.asarray(p, dtype=float)
    return pd.DataFrame({"label": labels, "p_N": 1 - p, "p_P": p, **columns})


def test_the_curve_equals_that_of_a_loop(predictions):
    units = predictions.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    p, truth = units["p_COVID-19"].to_numpy(), (units["label"] == "COVID-19").to_numpy()
    wrong, certainty = (p >= 0.5) != truth, np.abs(p - 0.5)
    result = risk_coverage(predictions, n_resamples=200)
    assert len(result.curve) == len(units)
    for n, row in enumerate(result.curve.to_dict("records"), start=1):
        best = np.argsort(-certainty)[:n]
        assert row["answered"] == n and row["errors"] == wrong[best].sum() and row["coverage"] == n / len(units)
        assert (row["low"], row["high"]) == pytest.approx(wilson(wrong[best].mean(), n))
    risks = [wrong[certainty >= lowest].mean() for lowest in certainty]  # each patient's certainty as the threshold
    assert result.value("aurc") == pytest.approx(np.mean(risks))
    assert result.value("error_rate") == pytest.approx(1 - evaluate(predictions, n_resamples=100).value("accuracy"))
    assert result.value("gain") == pytest.approx(wrong.mean() - np.mean(risks))


def test_the_interval_of_the_area_equals_that_of_a_loop_over_resamples(predictions):
    units = predictions.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    p, truth = units["p_COVID-19"].to_numpy(), (units["label"] == "COVID-19").to_numpy()
    wrong, certainty = (p >= 0.5) != truth, np.abs(p - 0.5)
    rng, resampled = np.random.default_rng(5), []
    for _ in range(1000):
        sample = np.concatenate([rng.choice(np.flatnonzero(truth == side), (truth == side).sum()) for side in (0, 1)])
        areas = [wrong[sample][certainty[sample] >= lowest].mean() for lowest in certainty[sample]]
        resampled.append(np.mean(areas))
    row = risk_coverage(predictions).metrics.iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.015)


def test_accuracy_at_given_coverages(predictions):
    result = risk_coverage(predictions, n_resamples=100)
    n = result.metrics["n"].iloc[0]
    assert result.points["fraction"].tolist() == [0.8, 0.9, 1.0]
    assert result.points["answered"].tolist() == [int(np.ceil(fraction * n - 1e-9)) for fraction in (0.8, 0.9, 1.0)]
    all_answered = result.points.iloc[-1]
    expected = evaluate(predictions, n_resamples=100).row("accuracy")
    assert tuple(all_answered[["accuracy", "low", "high"]]) == pytest.approx(
        tuple(expected[k] for k in ("value", "low", "high"))
    )


def test_patients_with_equal_certainty_are_answered_together():
    result = risk_coverage(table_of([0.9, 0.1, 0.9, 0.6], ["P", "N", "N", "P"]), n_resamples=100)
    assert result.curve["answered"].tolist() == [3, 4] and result.curve["errors"].tolist() == [1, 1]
    assert result.points["coverage"].tolist() == [1.0, 1.0, 1.0]
    reordered = risk_coverage(table_of([0.6, 0.9, 0.1, 0.9], ["P", "N", "N", "P"]), n_resamples=100)
    pd.testing.assert_frame_equal(result.curve, reordered.curve)


def test_certainty_is_the_distance_to_the_threshold_relative_to_its_side():
    table = read_predictions(table_of([0.2, 0.6, 1.0, 0.0, 0.1], ["N", "P", "P", "N", "P"]))
    units = certain_units(table, threshold=0.2).set_index("patient")
    assert units["certainty"].tolist() == pytest.approx([0, 0.5, 1, 1, 0.5])
    assert units["error"].tolist() == [1, 0, 0, 0, 1]
    assert certain_units(table, threshold=0.0)["certainty"].tolist() == pytest.approx([0.2, 0.6, 1.0, 0.0, 0.1])


def test_with_more_than_two_classes_certainty_is_the_greatest_probability(three_classes):
    units = certain_units(read_predictions(three_classes)).set_index(["patient", "label"])
    columns = [name for name in three_classes if name.startswith("p_")]
    mean = three_classes.groupby(["patient", "label"])[columns].mean()
    np.testing.assert_allclose(units["certainty"], mean.max(axis=1).loc[units.index])
    assert units["error"].mean() == pytest.approx(1 - evaluate(three_classes, n_resamples=100).value("accuracy"))


def test_the_spread_changes_the_order_but_not_the_predictions(predictions):
    wrong = (predictions["p_COVID-19"] >= 0.5) != (predictions["label"] == "COVID-19")
    with_spread = predictions.assign(spread=np.where(wrong, 0.4, 0.1) + np.arange(len(predictions)) * 1e-6)
    result, plain = (
        risk_coverage(with_spread, uncertainty="spread", n_resamples=200),
        risk_coverage(predictions, n_resamples=200),
    )
    assert result.value("error_rate") == plain.value("error_rate") and result.value("aurc") < plain.value("aurc")
    units = certain_units(read_predictions(with_spread), uncertainty="spread").set_index(["patient", "label"])
    mean = with_spread.groupby(["patient", "label"])["spread"].mean()
    np.testing.assert_allclose(-units["certainty"], mean.loc[units.index])
    with pytest.raises(UsageError, match="no column 'spread'"):
        risk_coverage(predictions, uncertainty="spread")
    for invalid in (-1.0, None, "much"):
        with pytest.raises(DataError, match="1 rows have no spread"):
            risk_coverage(
                with_spread.astype({"spread": object}).assign(spread=[invalid, *with_spread["spread"][1:]]),
                uncertainty="spread",
            )


def test_random_certainty_has_no_gain(make_predictions):
    table = make_predictions(patients=400)
    table["spread"] = np.random.default_rng(3).random(len(table))
    result = risk_coverage(table, uncertainty="spread").metrics.set_index("metric").loc["gain"]
    assert result["low"] < 0 < result["high"]
    informative = risk_coverage(table).metrics.set_index("metric").loc["gain"]
    assert informative["low"] > 0


def test_without_an_error_the_area_is_zero_and_the_error_rate_has_a_bound():
    result = risk_coverage(table_of([0.9] * 20 + [0.1] * 20, ["P"] * 20 + ["N"] * 20), n_resamples=100)
    metrics = result.metrics.set_index("metric")
    assert result.value("aurc") == 0 and metrics.loc["aurc", "method"] == "all resamples equal"
    assert metrics.loc["error_rate", "high"] == pytest.approx(wilson(0, 40)[1])


def test_invalid_options_raise(predictions):
    for options, text in (
        ({"uncertainty": "entropy"}, "entropy"),
        ({"positive": "X"}, "'X'"),
        ({"threshold": -1}, "threshold=-1"),
        ({"n_resamples": 1}, "n_resamples=1"),
    ):
        with pytest.raises(UsageError, match=text):
            risk_coverage(predictions, **options)
    with pytest.raises(UsageError, match="'auc'"):
        risk_coverage(predictions, n_resamples=100).value("auc")


def test_results_can_be_displayed_written_and_plotted(predictions):
    result = risk_coverage(predictions, n_resamples=100)
    assert json.dumps(result.to_dict()) and "medical device" in repr(result) and "<table" in result._repr_html_()
    axes = plot_risk_coverage(result).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), result.curve["risk"])
    assert len(plot_risk_coverage({"A": result, "B": result}).axes[0].get_legend().get_texts()) == 2
