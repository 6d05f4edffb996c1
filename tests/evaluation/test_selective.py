"""The risk-coverage curve by a plain loop; certainty by its definition; ties are answered together."""

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


def test_the_curve_is_that_of_a_plain_loop(predictions):
    units = predictions.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    p, truth = units["p_COVID-19"].to_numpy(), (units["label"] == "COVID-19").to_numpy()
    wrong, certainty = (p >= 0.5) != truth, np.abs(p - 0.5)
    found = risk_coverage(predictions, n_resamples=200)
    assert len(found.curve) == len(units)
    for n, row in enumerate(found.curve.to_dict("records"), start=1):
        best = np.argsort(-certainty)[:n]
        assert row["answered"] == n and row["errors"] == wrong[best].sum() and row["coverage"] == n / len(units)
        assert (row["low"], row["high"]) == pytest.approx(wilson(wrong[best].mean(), n))
    risks = [wrong[certainty >= own].mean() for own in certainty]  # each patient's certainty as the threshold
    assert found.value("aurc") == pytest.approx(np.mean(risks))
    assert found.value("error_rate") == pytest.approx(1 - evaluate(predictions, n_resamples=100).value("accuracy"))
    assert found.value("gain") == pytest.approx(wrong.mean() - np.mean(risks))


def test_the_interval_of_the_area_is_that_of_a_plain_bootstrap(predictions):
    units = predictions.groupby(["patient", "label"])["p_COVID-19"].mean().reset_index()
    p, truth = units["p_COVID-19"].to_numpy(), (units["label"] == "COVID-19").to_numpy()
    wrong, certainty = (p >= 0.5) != truth, np.abs(p - 0.5)
    rng, drawn = np.random.default_rng(5), []
    for _ in range(1000):
        picked = np.concatenate([rng.choice(np.flatnonzero(truth == side), (truth == side).sum()) for side in (0, 1)])
        drawn.append(np.mean([wrong[picked][certainty[picked] >= own].mean() for own in certainty[picked]]))
    row = risk_coverage(predictions).metrics.iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.015)


def test_accuracy_at_the_usual_coverages(predictions):
    found = risk_coverage(predictions, n_resamples=100)
    n = found.metrics["n"].iloc[0]
    assert found.points["fraction"].tolist() == [0.8, 0.9, 1.0]
    assert found.points["answered"].tolist() == [int(np.ceil(share * n - 1e-9)) for share in (0.8, 0.9, 1.0)]
    whole = found.points.iloc[-1]
    expected = evaluate(predictions, n_resamples=100).row("accuracy")
    assert tuple(whole[["accuracy", "low", "high"]]) == pytest.approx(
        tuple(expected[k] for k in ("value", "low", "high"))
    )


def test_patients_of_the_same_certainty_are_answered_together():
    found = risk_coverage(table_of([0.9, 0.1, 0.9, 0.6], ["P", "N", "N", "P"]), n_resamples=100)
    assert found.curve["answered"].tolist() == [3, 4] and found.curve["errors"].tolist() == [1, 1]
    assert found.points["coverage"].tolist() == [1.0, 1.0, 1.0]
    turned = risk_coverage(table_of([0.6, 0.9, 0.1, 0.9], ["P", "N", "N", "P"]), n_resamples=100)
    pd.testing.assert_frame_equal(found.curve, turned.curve)


def test_certainty_is_the_distance_to_the_threshold_by_its_side():
    table = read_predictions(table_of([0.2, 0.6, 1.0, 0.0, 0.1], ["N", "P", "P", "N", "P"]))
    units = certain_units(table, threshold=0.2).set_index("patient")
    assert units["certainty"].tolist() == pytest.approx([0, 0.5, 1, 1, 0.5])
    assert units["error"].tolist() == [1, 0, 0, 0, 1]
    assert certain_units(table, threshold=0.0)["certainty"].tolist() == pytest.approx([0.2, 0.6, 1.0, 0.0, 0.1])


def test_more_than_two_classes_are_certain_by_the_greatest_probability(three_classes):
    units = certain_units(read_predictions(three_classes)).set_index(["patient", "label"])
    columns = [name for name in three_classes if name.startswith("p_")]
    mean = three_classes.groupby(["patient", "label"])[columns].mean()
    np.testing.assert_allclose(units["certainty"], mean.max(axis=1).loc[units.index])
    assert units["error"].mean() == pytest.approx(1 - evaluate(three_classes, n_resamples=100).value("accuracy"))


def test_a_spread_orders_otherwise_and_answers_the_same(predictions):
    wrong = (predictions["p_COVID-19"] >= 0.5) != (predictions["label"] == "COVID-19")
    told = predictions.assign(spread=np.where(wrong, 0.4, 0.1) + np.arange(len(predictions)) * 1e-6)
    found, plain = (
        risk_coverage(told, uncertainty="spread", n_resamples=200),
        risk_coverage(predictions, n_resamples=200),
    )
    assert found.value("error_rate") == plain.value("error_rate") and found.value("aurc") < plain.value("aurc")
    units = certain_units(read_predictions(told), uncertainty="spread").set_index(["patient", "label"])
    mean = told.groupby(["patient", "label"])["spread"].mean()
    np.testing.assert_allclose(-units["certainty"], mean.loc[units.index])
    with pytest.raises(UsageError, match="no column 'spread'"):
        risk_coverage(predictions, uncertainty="spread")
    for bad in (-1.0, None, "much"):
        with pytest.raises(DataError, match="1 rows have no spread"):
            risk_coverage(
                told.astype({"spread": object}).assign(spread=[bad, *told["spread"][1:]]), uncertainty="spread"
            )


def test_certainty_that_says_nothing_gains_nothing(make_predictions):
    table = make_predictions(patients=400)
    table["spread"] = np.random.default_rng(3).random(len(table))
    found = risk_coverage(table, uncertainty="spread").metrics.set_index("metric").loc["gain"]
    assert found["low"] < 0 < found["high"]
    known = risk_coverage(table).metrics.set_index("metric").loc["gain"]
    assert known["low"] > 0


def test_no_error_has_an_area_of_zero_and_a_bound_on_the_error_rate():
    found = risk_coverage(table_of([0.9] * 20 + [0.1] * 20, ["P"] * 20 + ["N"] * 20), n_resamples=100)
    metrics = found.metrics.set_index("metric")
    assert found.value("aurc") == 0 and metrics.loc["aurc", "method"] == "no draw differs"
    assert metrics.loc["error_rate", "high"] == pytest.approx(wilson(0, 40)[1])


def test_wrong_questions(predictions):
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


def test_it_can_be_read_written_and_drawn(predictions):
    found = risk_coverage(predictions, n_resamples=100)
    assert json.dumps(found.to_dict()) and "medical device" in repr(found) and "<table" in found._repr_html_()
    axes = plot_risk_coverage(found).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), found.curve["risk"])
    assert len(plot_risk_coverage({"A": found, "B": found}).axes[0].get_legend().get_texts()) == 2
