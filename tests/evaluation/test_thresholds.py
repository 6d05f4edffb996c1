"""Thresholds against scikit-learn's ROC curve; no fold is judged by what was chosen on it; promises on new patients."""

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
    """One image a patient with these probabilities of P."""
    table = pd.DataFrame({"label": ["P"] * len(positives) + ["N"] * len(negatives), "p_P": [*positives, *negatives]})
    table.insert(1, "p_N", 1 - table["p_P"])
    names = [f"q{number}" for number in range(len(table))]
    return table.assign(patient=names, path=names, fold=np.arange(len(table)) % folds)


def draw(n: int, *, seed: int, folds: int = 1, distance: float = 2.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    scores = norm.cdf(rng.normal([[distance / 2], [-distance / 2]], size=(2, n)))
    return table_of(*scores, folds=folds)


@pytest.mark.parametrize("promised", [0.5, 0.8, 0.9, 0.95])
def test_it_is_the_cheapest_point_of_the_roc_curve_that_keeps_the_promise(promised):
    table = draw(60, seed=1)
    k = int(np.ceil(promised * 61))
    alarms, found, cuts = roc_curve(table["label"] == "P", table["p_P"], drop_intermediate=False)
    place = np.flatnonzero(found >= k / 60 - 1e-9)[0]
    threshold = choose_threshold(table, sensitivity=promised)
    result = evaluate(table, threshold=threshold, n_resamples=100)
    assert result.value("sensitivity") == pytest.approx(found[place]) and found[place] >= promised
    assert result.value("specificity") == pytest.approx(1 - alarms[place])
    assert cuts[place + 1] < threshold < cuts[place]


@pytest.mark.parametrize("promised", [0.5, 0.8, 0.95])
def test_a_specificity_is_a_sensitivity_seen_from_the_other_side(promised):
    table = draw(60, seed=2)
    turned = table.rename(columns={"p_P": "p_N", "p_N": "p_P"}).replace({"label": {"P": "N", "N": "P"}})
    other = choose_threshold(turned[["label", "p_N", "p_P", "patient"]], sensitivity=promised)
    assert choose_threshold(table, specificity=promised) == pytest.approx(1 - other)


def test_a_count_that_is_whole_is_not_rounded_up():
    """0.9 of 9 + 1 patients is 9.000000000000002 in some arrangements of the sum."""
    table = table_of(np.linspace(0.91, 0.99, 9), [0.1, 0.2])
    assert choose_threshold(table, sensitivity=0.9) == pytest.approx((0.91 + 0.2) / 2)
    table = table_of(np.linspace(0.90, 0.99, 10), [0.1, 0.2])
    assert choose_threshold(table, sensitivity=0.8) == pytest.approx((0.91 + 0.90) / 2)


def test_ties_and_ends():
    assert choose_threshold(table_of([0.5, 0.5, 0.5], [0.5, 0.5]), sensitivity=0.5) == 0.25  # nobody is below
    assert choose_threshold(table_of([0.5, 0.5, 0.5], [0.5, 0.5]), specificity=0.5) == 0.75  # nobody is above
    assert choose_threshold(table_of([0.0, 0.8], [0.4]), sensitivity=1.0) == 0.0
    with pytest.raises(DataError, match="specificity of 0.9"):
        choose_threshold(table_of([0.9], [0.2, 1.0]), specificity=0.9)


def test_a_patient_counts_once_with_the_mean_over_their_images():
    table = pd.concat([table_of([0.2, 0.6, 0.9], [0.1, 0.3])] * 2, ignore_index=True)
    table.loc[0, ["p_N", "p_P"]] = 0.4, 0.6  # 0.6 and 0.2: on the mean 0.4
    assert choose_threshold(table, sensitivity=1.0) == pytest.approx((0.4 + 0.3) / 2)
    units, positive = positive_scores(read_predictions(table))
    assert positive == "P" and sorted(units["images"]) == [2] * 5


def test_the_promise_holds_on_the_average_of_new_patients():
    """20 patients to choose on: the plain quantile, k = 18, would give 18 / 21 = 0.857."""
    new = norm.cdf(np.random.default_rng(9).normal(1.0, size=20_000))
    got = [(new >= choose_threshold(draw(20, seed=seed), sensitivity=0.9)).mean() for seed in range(150)]
    assert 0.9 <= np.mean(got) < 0.945  # (k + the gap's half) / (n + 1), k = 19


def test_folds_are_chosen_on_the_others_and_judged_on_their_own():
    table = draw(50, seed=3, folds=5)
    found = thresholds_by_fold(table, sensitivity=0.9)
    right = {"P": 0, "N": 0}
    for row in found.folds.to_dict("records"):
        own = table["fold"] == row["fold"]
        assert row["threshold"] == choose_threshold(table[~own], sensitivity=0.9)
        assert (row["chosen_on"], row["judged"]) == (80, 20)
        said = np.where(table.loc[own, "p_P"] >= row["threshold"], "P", "N")
        for name in right:
            right[name] += int(((said == name) & (table.loc[own, "label"] == name)).sum())
    assert found.value("sensitivity") == right["P"] / 50 and found.value("specificity") == right["N"] / 50
    row = found.row("sensitivity")
    assert (row["low"], row["high"]) == pytest.approx(wilson(right["P"] / 50, 50)) and row["method"] == "Wilson"
    assert found.threshold == choose_threshold(table, sensitivity=0.9)


def test_labels_of_a_fold_do_not_move_its_own_threshold():
    table = draw(50, seed=3, folds=5)
    turned = table.copy()
    own = turned["fold"] == 2
    turned.loc[own, "label"] = turned.loc[own, "label"].map({"N": "P", "P": "N"})
    first, second = (thresholds_by_fold(t).folds.set_index("fold")["threshold"] for t in (table, turned))
    assert first[2] == second[2] and (first.drop(2) != second.drop(2)).any()


def test_other_patients_can_be_chosen_on():
    inner, outer = draw(30, seed=4), draw(30, seed=5)
    outer["patient"] = "o" + outer["patient"]
    found = thresholds_by_fold(outer, fitted_on=inner, specificity=0.8)
    assert found.folds["threshold"].tolist() == [found.threshold] == [choose_threshold(inner, specificity=0.8)]
    assert found.promise == "specificity" and "on other patients" in found.describe()
    with pytest.raises(DataError, match="in both tables"):
        thresholds_by_fold(inner, fitted_on=inner)
    with pytest.raises(UsageError, match="fold 0"):
        thresholds_by_fold(inner)


def test_rows_without_a_prediction_do_not_count():
    table = draw(40, seed=6, folds=4)
    table["status"] = "ok"
    failed = table.assign(status="failed", fold="lost", path="f" + table["path"], patient="f" + table["patient"])
    both = pd.concat([table.astype({"fold": str}), failed], ignore_index=True)
    pd.testing.assert_frame_equal(thresholds_by_fold(both).metrics, thresholds_by_fold(table).metrics)


def test_a_patient_of_two_folds_widens_the_interval():
    table = draw(40, seed=7, folds=2, distance=0.5)
    again = table.assign(fold=1 - table["fold"], path="again " + table["path"])  # each patient in both folds
    with pytest.raises(DataError):
        thresholds_by_fold(pd.concat([table, again], ignore_index=True))  # nobody is left to choose on
    one = table["patient"].isin(["q0", "q1", "q2", "q3"])
    found = thresholds_by_fold(pd.concat([table, again[one]], ignore_index=True))
    assert found.row("sensitivity")["method"] == "Wilson, effective n"


def test_what_was_promised_and_what_came_is_said():
    kept = thresholds_by_fold(draw(100, seed=8, folds=5))
    assert kept.kept and "0.9" in repr(kept) and "not kept" not in repr(kept) and "medical device" in repr(kept)
    table = draw(200, seed=8, folds=2)
    low = (table["fold"] == 1) & (table["label"] == "P")
    table.loc[low, "p_P"] /= 4  # another hospital's images, all less certain
    table["p_N"] = 1 - table["p_P"]
    broken = thresholds_by_fold(table, sensitivity=0.9)
    assert broken.kept is False and "The promise was not kept." in broken.describe()
    assert json.dumps(broken.to_dict()) and "<table" in broken._repr_html_()
    with pytest.raises(UsageError, match="figure 'auc'"):
        broken.row("auc")


def test_three_classes_need_the_one_that_is_meant(three_classes):
    with pytest.raises(UsageError, match="3 classes"):
        choose_threshold(three_classes)
    threshold = choose_threshold(three_classes, positive="Viral", sensitivity=0.8)
    units, _ = positive_scores(read_predictions(three_classes), positive="Viral")
    assert (units.loc[units["of_class"], "score"] >= threshold).mean() >= 0.8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sensitivity": 0.9, "specificity": 0.9}, "Both"),
        ({"sensitivity": 0.0}, "sensitivity=0.0"),
        ({"specificity": 1.1}, "specificity=1.1"),
        ({"positive": "X"}, "'X' is no class"),
    ],
)
def test_wrong_options(options, text):
    with pytest.raises(UsageError, match=text):
        choose_threshold(draw(5, seed=0), **options)


def test_one_class_alone_has_no_threshold():
    with pytest.raises(DataError, match="patients of P and others"):
        choose_threshold(table_of([0.5, 0.6], []))
