"""Metrics against scikit-learn, intervals against their formula or a loop over resamples."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.intervals import delong, newcombe_auc
from covid_fastai.evaluation.metrics import Evaluation, evaluate, score_units
from covid_fastai.files import write_json

POSITIVE = "COVID-19"


def by_patient(table):
    columns = [name for name in table if name.startswith("p_")]
    return table.groupby(["patient", "label"])[columns].mean().reset_index()


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Compute Wilson's interval by its formula."""
    z = norm.ppf(0.975)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def calibration_by_hand(truth, p) -> float:
    """Compute the calibration error from scikit-learn's equal-mass bins and their counts."""
    fractions, probabilities = calibration_curve(truth, p, n_bins=10, strategy="quantile")
    edges = np.percentile(p, np.linspace(0, 100, 11))
    counts = np.bincount(np.searchsorted(edges[1:-1], p), minlength=10)
    return float(np.average(np.abs(fractions - probabilities), weights=counts[counts > 0]))


def test_metrics_of_two_classes_equal_scikit_learns(predictions):
    units = by_patient(predictions)
    truth, p = (units["label"] == POSITIVE).to_numpy(), units[f"p_{POSITIVE}"].to_numpy()
    predicted = p >= 0.5
    expected = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "sensitivity": sk.recall_score(truth, predicted),
        "specificity": sk.recall_score(~truth, ~predicted),
        "auc": sk.roc_auc_score(truth, p),
        "average_precision": sk.average_precision_score(truth, p),
        "f1": sk.f1_score(truth, predicted),
        "brier": sk.brier_score_loss(truth, p),
        "log_loss": sk.log_loss(truth, p),
        "ece": calibration_by_hand(truth, p),
    }
    result = evaluate(predictions)
    assert {name: result.value(name) for name in expected} == pytest.approx(expected)
    assert set(result.metrics["metric"]) == set(expected)
    np.testing.assert_array_equal(result.confusion, sk.confusion_matrix(truth, predicted))


def test_metrics_of_three_classes_equal_scikit_learns(three_classes):
    result, units = evaluate(three_classes), by_patient(three_classes)
    p = units[[f"p_{name}" for name in result.classes]].to_numpy()
    truth = pd.Categorical(units["label"], categories=result.classes).codes
    predicted = p.argmax(axis=1)
    assert result.value("accuracy") == pytest.approx(sk.accuracy_score(truth, predicted))
    assert result.value("balanced_accuracy") == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert result.value("auc") == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr", average="macro"))
    assert result.value("f1") == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert result.value("log_loss") == pytest.approx(sk.log_loss(truth, p))
    for k, name in enumerate(result.classes):
        assert result.value("auc", name) == pytest.approx(sk.roc_auc_score(truth == k, p[:, k]))
        assert result.value("sensitivity", name) == pytest.approx(sk.recall_score(truth == k, predicted == k))
        assert result.value("specificity", name) == pytest.approx(sk.recall_score(truth != k, predicted != k))
    assert result.positive is None and result.threshold is None


def test_ties_count_half():
    table = pd.DataFrame({"label": ["N", "N", "P", "P", "P"], "p_P": [0.5, 0.2, 0.5, 0.5, 0.9]})
    table.insert(1, "p_N", 1 - table["p_P"])
    result = evaluate(table)
    assert result.value("auc") == pytest.approx(5 / 6)
    assert result.value("auc") == pytest.approx(sk.roc_auc_score(table["label"] == "P", table["p_P"]))
    assert result.value("average_precision") == pytest.approx(
        sk.average_precision_score(table["label"] == "P", table["p_P"])
    )


def test_proportions_of_patients_have_wilsons_interval(predictions):
    result, units = evaluate(predictions), by_patient(predictions)
    correct = (units[f"p_{POSITIVE}"] >= 0.5) == (units["label"] == POSITIVE)
    row = result.row("accuracy")
    assert (row["low"], row["high"]) == pytest.approx(wilson(int(correct.sum()), len(units)))
    positive = units["label"] == POSITIVE
    row = result.row("sensitivity")
    assert (row["low"], row["high"]) == pytest.approx(wilson(int(correct[positive].sum()), int(positive.sum())))
    assert row["n"] == positive.sum() and row["method"] == "Wilson"


def test_the_average_precision_has_boyds_interval(predictions):
    """Half a positive is added; on the scale of log odds the variance is that of a proportion of the positives."""
    row, n = evaluate(predictions).row("average_precision"), (by_patient(predictions)["label"] == POSITIVE).sum()
    centre = (row["value"] * n + 0.5) / (n + 1)
    logits = np.log(centre / (1 - centre)) + np.array([-1, 1]) * norm.ppf(0.975) / math.sqrt(n * centre * (1 - centre))
    assert (row["low"], row["high"]) == pytest.approx(tuple(1 / (1 + np.exp(-logits))))


def test_f1_is_a_function_of_a_proportion(predictions):
    units = by_patient(predictions)
    truth, called = (units["label"] == POSITIVE).to_numpy(), (units[f"p_{POSITIVE}"] >= 0.5).to_numpy()
    low, high = wilson(int((truth & called).sum()), int((truth | called).sum()))
    row = evaluate(predictions).row("f1")
    assert (row["low"], row["high"]) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_balanced_accuracy_combines_the_intervals_of_the_classes(predictions):
    result = evaluate(predictions)
    row, parts = result.row("balanced_accuracy"), [result.row(name) for name in ("sensitivity", "specificity")]
    below, above = (
        math.hypot(*(part["value"] - part["low"] for part in parts)) / 2,
        math.hypot(*(part["high"] - part["value"] for part in parts)) / 2,
    )
    assert (row["low"], row["high"]) == pytest.approx((row["value"] - below, row["value"] + above))


def test_the_interval_of_a_mean_over_classes_has_the_correlation_of_the_classes(three_classes):
    result = evaluate(three_classes)
    rows = [result.row("auc", name) for name in result.classes]
    macro, below = result.row("auc", "macro"), [row["value"] - row["low"] for row in rows]
    reach = macro["value"] - macro["low"]
    assert math.hypot(*below) / 3 < reach < sum(below) / 3  # between uncorrelated and one and the same


def test_a_loss_that_was_not_observed_widens_its_interval():
    """Two classes without an error: the observed variance of the Brier score is 0."""
    rng = np.random.default_rng(0)
    p = np.r_[rng.uniform(0.0, 0.1, 20), rng.uniform(0.9, 1.0, 20)]
    table = pd.DataFrame({"label": ["N"] * 20 + ["P"] * 20, "p_N": 1 - p, "p_P": p})
    result = evaluate(table)
    for metric in ("brier", "log_loss"):
        row = result.row(metric)
        assert row["low"] < row["value"] and row["high"] > 5 * row["value"] and row["method"] == "t, log scale"


def test_the_calibration_error_of_separated_classes_has_an_interval_with_a_width():
    p = np.r_[np.full(20, 0.1), np.full(20, 0.9)]
    row = evaluate(pd.DataFrame({"label": ["N"] * 20 + ["P"] * 20, "p_N": 1 - p, "p_P": p})).row("ece")
    assert row["value"] == pytest.approx(0.1) and row["low"] == 0 and row["high"] >= row["value"]


def test_intervals_of_images_resample_whole_patients(make_predictions):
    """Ten copies of each image do not shorten the interval."""
    table = make_predictions(patients=40, seed=2)
    copies = pd.concat([table] * 10, ignore_index=True)
    single, tenfold = (evaluate(images, unit="image").row("accuracy") for images in (table, copies))
    assert tenfold["n"] == 10 * single["n"]
    assert tenfold["high"] - tenfold["low"] == pytest.approx(single["high"] - single["low"], rel=0.1)


def test_a_perfect_score_has_an_interval_with_a_width():
    table = pd.DataFrame({"label": ["N"] * 5 + ["P"] * 6, "p_N": [0.9] * 5 + [0.1] * 6})
    table["p_P"] = 1 - table["p_N"]
    result = evaluate(table)
    assert result.value("accuracy") == result.value("auc") == 1
    assert result.row("accuracy")["low"] == pytest.approx(wilson(11, 11)[0])  # 0.74
    assert result.row("auc")["low"] == pytest.approx(newcombe_auc(1.0, 6, 5)[0])  # 0.67
    assert result.row("auc")["method"] == "Newcombe"
    assert 0.3 < result.row("average_precision")["low"] < 0.7 and result.row("average_precision")["high"] == 1
    assert result.row("brier")["low"] < 0.01 < result.row("brier")["high"]


def test_one_class_has_no_auc_and_no_exception():
    table = pd.DataFrame({"label": ["P", "P"], "p_N": [0.2, 0.6], "p_P": [0.8, 0.4]})
    result = evaluate(table)
    assert math.isnan(result.value("auc")) and math.isnan(result.value("specificity"))
    assert result.value("sensitivity") == 0.5
    assert result.row("specificity")["n"] == 0


def test_the_score_of_a_patient_is_the_mean_over_the_images():
    table = pd.DataFrame(
        {"label": ["P", "P", "N"], "patient": ["a", "a", "b"], "p_N": [0.9, 0.4, 0.8], "p_P": [0.1, 0.6, 0.2]}
    )
    result = evaluate(table)
    assert result.confusion.loc["P", "N"] == 1 and result.confusion.to_numpy().sum() == 2
    scores = score_units(result.predictions, positive="P").table.set_index("patient")
    assert scores.loc["a", "p_P"] == pytest.approx(0.35) and scores.loc["a", "images"] == 2


def test_images_without_a_prediction_or_a_label_are_not_evaluated(predictions):
    predictions["status"] = "ok"
    predictions.loc[0, "status"] = "failed"
    predictions.loc[1, "label"] = ""
    result = evaluate(predictions)
    assert (result.n_failed, result.n_unlabelled, result.n_images) == (1, 1, len(predictions) - 2)
    rest = predictions.drop(index=[0, 1])
    assert result.value("auc") == evaluate(rest).value("auc")


def test_the_threshold_changes_the_sensitivity_and_not_the_auc(predictions):
    low, high = (evaluate(predictions, threshold=t) for t in (0.1, 0.9))
    assert low.value("sensitivity") > high.value("sensitivity")
    assert low.value("auc") == high.value("auc")


def test_the_other_class_can_be_positive(predictions):
    result = evaluate(predictions, positive="Normal")
    assert result.value("sensitivity") == pytest.approx(evaluate(predictions).value("specificity"))
    assert result.value("auc") == pytest.approx(evaluate(predictions).value("auc"))


def test_results_depend_on_the_seed_and_not_on_the_row_order(predictions):
    first = evaluate(predictions)
    pd.testing.assert_frame_equal(first.metrics, evaluate(predictions).metrics)
    shuffled = evaluate(predictions.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(first.metrics, shuffled.metrics)


def test_round_trip_through_json(predictions, tmp_path):
    result = evaluate(predictions)
    path = write_json(tmp_path / "metrics.json", result.to_dict())
    again = Evaluation.from_dict(json.loads(path.read_text()))
    pd.testing.assert_frame_equal(again.metrics, result.metrics)
    pd.testing.assert_frame_equal(again.confusion, result.confusion)
    assert "medical device" in repr(again) and "<table" in again._repr_html_()


@pytest.mark.parametrize(
    "options",
    [{"positive": "COVID"}, {"threshold": 1.5}, {"n_resamples": 10}, {"unit": "lung"}],
)
def test_invalid_options_raise(predictions, options):
    with pytest.raises(UsageError):
        evaluate(predictions, **options)


def test_an_unknown_metric_raises(predictions):
    with pytest.raises(UsageError, match="balanced_accuracy"):
        evaluate(predictions).value("acuracy")


def test_predictions_without_labels_raise(predictions):
    with pytest.raises(DataError, match="No row has both"):
        evaluate(predictions.assign(label=""))


@pytest.mark.slow
@pytest.mark.nightly
def test_intervals_cover_the_truth_at_their_nominal_level():
    """The AUC of two normal distributions one standard deviation apart is Phi(1 / sqrt 2)."""
    truth = norm.cdf(1 / math.sqrt(2))
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        scores = np.concatenate([rng.normal(0, 1, 60), rng.normal(1, 1, 60)])
        p = 1 / (1 + np.exp(-scores))
        table = pd.DataFrame({"label": ["N"] * 60 + ["P"] * 60, "p_N": 1 - p, "p_P": p})
        row = evaluate(table, n_resamples=500).row("auc")
        covered += row["low"] <= truth <= row["high"]
    assert 0.91 <= covered / 300 <= 0.985


def folds_with_offsets(*, offset: float, patients: int = 400, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Predictions of folds whose models have the same skill and different levels of their scores."""
    rng = np.random.default_rng(seed)
    positive, fold = rng.random(patients) < 0.4, np.arange(patients) % folds
    logits = rng.normal(size=patients) + 1.8 * positive + offset * rng.normal(size=folds)[fold]
    p = 1 / (1 + np.exp(-logits))
    labels = np.where(positive, POSITIVE, "Normal")
    return pd.DataFrame({"label": labels, "p_Normal": 1 - p, f"p_{POSITIVE}": p, "fold": fold})


def test_the_auc_of_folds_is_the_fraction_of_their_pairs_in_order():
    table = folds_with_offsets(offset=1.5)
    ordered = pairs = 0.0
    for _, rows in table.groupby("fold"):
        truth = rows["label"] == POSITIVE
        count = truth.sum() * (~truth).sum()
        ordered += sk.roc_auc_score(truth, rows[f"p_{POSITIVE}"]) * count
        pairs += count
    result = evaluate(table, n_resamples=100)
    assert result.value("auc") == pytest.approx(ordered / pairs) and "within folds" in result.row("auc")["method"]
    pooled = sk.roc_auc_score(table["label"] == POSITIVE, table[f"p_{POSITIVE}"])
    assert result.value("auc_pooled") == pytest.approx(pooled)
    assert result.value("auc") - pooled > 0.05 and "on different scales" in repr(result)
    level = evaluate(folds_with_offsets(offset=0.0), n_resamples=100)
    assert level.value("auc") == pytest.approx(level.value("auc_pooled"), abs=0.01)
    assert "on different scales" not in repr(level) and "training sets and seeds" in repr(level)


def test_the_variance_within_folds_is_that_of_the_separate_folds():
    """With many patients, it is their sum, weighted by the squared fraction of the pairs."""
    table = folds_with_offsets(offset=1.0, patients=2000)
    scores, truth = table[f"p_{POSITIVE}"].to_numpy(), (table["label"] == POSITIVE).to_numpy()
    _, covariance = delong(scores, truth, strata=table["fold"].to_numpy())
    expected, total = 0.0, 0.0
    for fold in range(5):
        units = (table["fold"] == fold).to_numpy()
        count = truth[units].sum() * (~truth[units]).sum()
        expected += count**2 * delong(scores[units], truth[units])[1][0, 0]
        total += count
    assert covariance[0, 0] == pytest.approx(expected / total**2, rel=1e-2)
    one, same = delong(scores, truth), delong(scores, truth, strata=np.zeros(len(truth)))
    np.testing.assert_allclose(one[1], same[1])


@pytest.mark.nightly
@pytest.mark.slow
def test_the_interval_within_folds_covers_the_truth_despite_offsets():
    truth, covered = norm.cdf(1.8 / math.sqrt(2)), []
    for seed in range(150):
        row = evaluate(folds_with_offsets(offset=1.0, patients=120, seed=seed), n_resamples=100).row("auc")
        covered.append(row["low"] <= truth <= row["high"])
    assert 0.9 <= np.mean(covered) <= 0.99


def test_folds_without_both_classes_have_the_pooled_auc():
    """Leave-one-out: no fold has a pair of patients."""
    table = folds_with_offsets(offset=0.0, patients=60, folds=60)
    result = evaluate(table, n_resamples=100)
    expected = sk.roc_auc_score(table["label"] == POSITIVE, table[f"p_{POSITIVE}"])
    assert result.value("auc") == pytest.approx(expected) and "auc_pooled" not in set(result.metrics["metric"])


def test_a_patient_with_two_labels_counts_once_and_is_named(predictions):
    both = predictions[predictions["label"] == "Normal"].iloc[[0]].assign(label=POSITIVE, path="later.png")
    both[["p_Normal", f"p_{POSITIVE}"]] = 0.25, 0.75
    single, result = evaluate(predictions), evaluate(pd.concat([predictions, both], ignore_index=True))
    (patient,) = both["patient"]
    assert result.two_labels == (patient,) and patient in repr(result) and single.two_labels == ()
    assert result.row("accuracy")["n"] == single.row("accuracy")["n"] == predictions["patient"].nunique()
    units = score_units(result.predictions, positive=POSITIVE).table.set_index("patient")
    assert units.loc[patient, "label"] == POSITIVE and units.loc[patient, f"p_{POSITIVE}"] == 0.75
    assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict()))).two_labels == [patient]


def test_equal_means_of_patients_tie():
    """0.1, 0.2 and 0.3 have another mean as a float in another order of the sum."""
    p = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.9, 0.05]
    patients = ["a", "a", "a", "b", "b", "b", "c", "d"]
    labels = [POSITIVE] * 3 + ["Normal"] * 3 + [POSITIVE, "Normal"]
    table = pd.DataFrame({"patient": patients, "label": labels, f"p_{POSITIVE}": p, "p_Normal": 1 - np.array(p)})
    assert evaluate(table, n_resamples=100).value("auc") == pytest.approx(3.5 / 4)


def test_metrics_of_drawings_say_so():
    rows = {"patient": list("abcd"), "label": ["Normal", "COVID-19"] * 2, "status": "ok"}
    table = pd.DataFrame(rows).assign(**{"p_Normal": [0.9, 0.1, 0.8, 0.3], "p_COVID-19": [0.1, 0.9, 0.2, 0.7]})
    drawings = evaluate(table.assign(path=[f"phantom-p000{n}-1.png" for n in range(4)]), n_resamples=100)
    assert drawings.is_synthetic and repr(drawings).startswith("The images are drawings made by this package.")
    fields = drawings.to_dict()
    assert fields["synthetic"] and Evaluation.from_dict(fields, drawings.predictions).to_dict() == fields
    for others in (table, table.assign(path=["phantom-p0000-1.png", "b.png", "c.png", "d.png"])):
        result = evaluate(others, n_resamples=100)
        assert not result.is_synthetic and "drawings" not in repr(result) and not result.to_dict()["synthetic"]
