"""Thresholds against scikit-learn's ROC curve, cross-fitting by fold, and the target on new patients."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_curve

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.thresholds import choose_threshold, positive_scores, thresholds_by_fold


def table_of(positives, negatives, *, folds: int = 1) -> pd.DataFrame:
    """Return one image per patient with these probabilities of P."""
    table = pd.DataFrame({"label": ["P"] * len(positives) + ["N"] * len(negatives), "p_P": [*positives, *negatives]})
    table.insert(1, "p_N", 1 - table["p_P"])
    names = [f"q{number}" for number in range(len(table))]
    return table.assign(patient=names, path=names, fold=np.arange(len(table)) % folds)


def simulate(n: int, *, seed: int, folds: int = 1, distance: float = 2.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    scores = norm.cdf(rng.normal([[distance / 2], [-distance / 2]], size=(2, n)))
    return table_of(*scores, folds=folds)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95])
def test_the_threshold_is_the_first_point_of_the_roc_curve_that_meets_the_target(target):
    table = simulate(60, seed=1)
    k = int(np.ceil(target * 61))
    false_rates, true_rates, cutoffs = roc_curve(table["label"] == "P", table["p_P"], drop_intermediate=False)
    place = np.flatnonzero(true_rates >= k / 60 - 1e-9)[0]
    threshold = choose_threshold(table, sensitivity=target)
    result = evaluate(table, threshold=threshold, n_resamples=100)
    assert result.value("sensitivity") == pytest.approx(true_rates[place]) and true_rates[place] >= target
    assert result.value("specificity") == pytest.approx(1 - false_rates[place])
    assert cutoffs[place + 1] < threshold < cutoffs[place]


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
def test_a_target_specificity_is_a_target_sensitivity_of_the_other_class(target):
    table = simulate(60, seed=2)
    swapped = table.rename(columns={"p_P": "p_N", "p_N": "p_P"}).replace({"label": {"P": "N", "N": "P"}})
    other = choose_threshold(swapped[["label", "p_N", "p_P", "patient"]], sensitivity=target)
    assert choose_threshold(table, specificity=target) == pytest.approx(1 - other)


def test_a_whole_count_is_not_rounded_up():
    """0.9 * (9 + 1) is 9.000000000000002 in some orders of the operations."""
    table = table_of(np.linspace(0.91, 0.99, 9), [0.1, 0.2])
    assert choose_threshold(table, sensitivity=0.9) == pytest.approx((0.91 + 0.2) / 2)
    table = table_of(np.linspace(0.90, 0.99, 10), [0.1, 0.2])
    assert choose_threshold(table, sensitivity=0.8) == pytest.approx((0.91 + 0.90) / 2)


def test_ties_and_extreme_scores():
    assert choose_threshold(table_of([0.5, 0.5, 0.5], [0.5, 0.5]), sensitivity=0.5) == 0.25  # no score is lower
    assert choose_threshold(table_of([0.5, 0.5, 0.5], [0.5, 0.5]), specificity=0.5) == 0.75  # no score is higher
    assert choose_threshold(table_of([0.0, 0.8], [0.4]), sensitivity=1.0) == 0.0
    with pytest.raises(DataError, match="specificity of 0.9"):
        choose_threshold(table_of([0.9], [0.2, 1.0]), specificity=0.9)


def test_a_patient_counts_once_with_the_mean_over_their_images():
    table = pd.concat([table_of([0.2, 0.6, 0.9], [0.1, 0.3])] * 2, ignore_index=True)
    table.loc[0, ["p_N", "p_P"]] = 0.4, 0.6  # the mean of 0.6 and 0.2 is 0.4
    assert choose_threshold(table, sensitivity=1.0) == pytest.approx((0.4 + 0.3) / 2)
    units, positive = positive_scores(read_predictions(table))
    assert positive == "P" and sorted(units["images"]) == [2] * 5


@pytest.mark.slow
def test_the_target_is_met_on_average_on_new_patients():
    """20 patients to choose on: the plain quantile, k = 18, would give 18 / 21 = 0.857."""
    new = norm.cdf(np.random.default_rng(9).normal(1.0, size=20_000))
    sensitivities = [(new >= choose_threshold(simulate(20, seed=seed), sensitivity=0.9)).mean() for seed in range(150)]
    assert 0.9 <= np.mean(sensitivities) < 0.945  # about (k + 0.5) / (n + 1) with k = 19


def test_thresholds_are_chosen_on_the_other_folds_and_evaluated_on_their_own():
    table = simulate(50, seed=3, folds=5)
    point = thresholds_by_fold(table, sensitivity=0.9)
    correct = {"P": 0, "N": 0}
    for row in point.folds.to_dict("records"):
        in_fold = table["fold"] == row["fold"]
        assert row["threshold"] == choose_threshold(table[~in_fold], sensitivity=0.9)
        assert (row["chosen_on"], row["evaluated"]) == (80, 20)
        predicted = np.where(table.loc[in_fold, "p_P"] >= row["threshold"], "P", "N")
        for name in correct:
            correct[name] += int(((predicted == name) & (table.loc[in_fold, "label"] == name)).sum())
    assert point.value("sensitivity") == correct["P"] / 50 and point.value("specificity") == correct["N"] / 50
    row = point.row("sensitivity")
    assert (row["low"], row["high"]) == pytest.approx(wilson(correct["P"] / 50, 50)) and row["method"] == "Wilson"
    assert point.threshold == choose_threshold(table, sensitivity=0.9)


def test_the_labels_of_a_fold_do_not_change_its_own_threshold():
    table = simulate(50, seed=3, folds=5)
    swapped = table.copy()
    in_fold = swapped["fold"] == 2
    swapped.loc[in_fold, "label"] = swapped.loc[in_fold, "label"].map({"N": "P", "P": "N"})
    first, second = (thresholds_by_fold(t).folds.set_index("fold")["threshold"] for t in (table, swapped))
    assert first[2] == second[2] and (first.drop(2) != second.drop(2)).any()


def test_thresholds_can_be_chosen_on_other_patients():
    inner, outer = simulate(30, seed=4), simulate(30, seed=5)
    outer["patient"] = "o" + outer["patient"]
    point = thresholds_by_fold(outer, fitted_on=inner, specificity=0.8)
    assert point.folds["threshold"].tolist() == [point.threshold] == [choose_threshold(inner, specificity=0.8)]
    assert point.target == "specificity" and "On other patients" in point.describe()
    with pytest.raises(DataError, match="in both tables"):
        thresholds_by_fold(inner, fitted_on=inner)
    with pytest.raises(UsageError, match="fold 0"):
        thresholds_by_fold(inner)


def test_rows_without_a_prediction_are_ignored():
    table = simulate(40, seed=6, folds=4)
    table["status"] = "ok"
    failed = table.assign(status="failed", fold="lost", path="f" + table["path"], patient="f" + table["patient"])
    both = pd.concat([table.astype({"fold": str}), failed], ignore_index=True)
    pd.testing.assert_frame_equal(thresholds_by_fold(both).metrics, thresholds_by_fold(table).metrics)


def test_a_patient_of_two_folds_widens_the_interval():
    table = simulate(40, seed=7, folds=2, distance=0.5)
    again = table.assign(fold=1 - table["fold"], path="again " + table["path"])  # each patient in both folds
    with pytest.raises(DataError):
        thresholds_by_fold(pd.concat([table, again], ignore_index=True))  # no patient is left to choose on
    repeated = table["patient"].isin(["q0", "q1", "q2", "q3"])
    point = thresholds_by_fold(pd.concat([table, again[repeated]], ignore_index=True))
    assert point.row("sensitivity")["method"] == "Wilson, effective n"


def test_the_description_states_the_target_and_whether_it_was_met():
    met = thresholds_by_fold(simulate(100, seed=8, folds=5))
    assert met.met and "sensitivity of 0.9" in repr(met) and "not met" not in repr(met)
    assert "medical device" in repr(met)
    table = simulate(200, seed=8, folds=2)
    low = (table["fold"] == 1) & (table["label"] == "P")
    table.loc[low, "p_P"] /= 4  # images of another hospital, all with lower probabilities
    table["p_N"] = 1 - table["p_P"]
    missed = thresholds_by_fold(table, sensitivity=0.9)
    assert missed.met is False and "The target was not met." in missed.describe()
    assert json.dumps(missed.to_dict()) and "<table" in missed._repr_html_()
    with pytest.raises(UsageError, match="metric 'auc'"):
        missed.row("auc")


def test_three_classes_require_the_positive_class(three_classes):
    with pytest.raises(UsageError, match="3 classes"):
        choose_threshold(three_classes)
    threshold = choose_threshold(three_classes, positive="Viral", sensitivity=0.8)
    units, _ = positive_scores(read_predictions(three_classes), positive="Viral")
    assert (units.loc[units["of_class"], "score"] >= threshold).mean() >= 0.8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sensitivity": 0.9, "specificity": 0.9}, "mutually exclusive"),
        ({"sensitivity": 0.0}, "sensitivity=0.0"),
        ({"specificity": 1.1}, "specificity=1.1"),
        ({"positive": "X"}, "'X' is not a class"),
    ],
)
def test_invalid_options_raise(options, text):
    with pytest.raises(UsageError, match=text):
        choose_threshold(simulate(5, seed=0), **options)


def test_patients_of_one_class_raise():
    with pytest.raises(DataError, match="patients of P and other classes; all 2"):
        choose_threshold(table_of([0.5, 0.6], []))
