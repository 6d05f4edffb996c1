"""Paired differences against DeLong, Newcombe, scipy and statsmodels; agreement against scikit-learn; matching."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import brunnermunzel, norm, rankdata, ttest_1samp
from scipy.stats import t as student
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.comparison import cohen_kappa, compare, corrected_t, plot_comparison
from covid_fastai.evaluation.intervals import auc_difference, auc_interval, delong, newcombe_difference
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.pairing import pair_predictions
from covid_fastai.evaluation.prediction_table import UNKNOWN_PATIENTS
from tests.prediction_fixtures import draw_predictions


def add_noise(table: pd.DataFrame, noise: float, *, seed: int = 1) -> pd.DataFrame:
    """Return predictions of the same images by a noisier model."""
    classes = [name for name in table if name.startswith("p_")]
    logits = np.log(table[classes].to_numpy()) + np.random.default_rng(seed).normal(size=(len(table), 2)) * noise
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return table.assign(**{name: p[:, k] for k, name in enumerate(classes)})


@pytest.fixture(scope="module")
def two():
    """Two tables of the same images; copy one before changing it."""
    first = draw_predictions(patients=120, skill=1.5)
    first["fold"] = first["patient"].str[1:].astype(int) % 5
    return first, add_noise(first, 1.5)


@pytest.fixture(scope="module")
def compared(two):
    return compare(*two, names=["A", "B"], n_resamples=100)


def by_patient(table):
    return table.groupby(["patient", "label"])[["p_Normal", "p_COVID-19"]].mean().reset_index()


def test_each_difference_is_that_of_the_metrics(two):
    first, second = two
    result = compare(first, second, names=["A", "B"], n_resamples=200)
    a, b = evaluate(first, n_resamples=200), evaluate(second, n_resamples=200)
    assert set(result.table["metric"]) == set(a.metrics["metric"])
    for row in result.table.to_dict("records"):
        assert row["reference_value"] == pytest.approx(a.value(row["metric"]))
        assert row["value"] == pytest.approx(b.value(row["metric"]))
        assert row["difference"] == pytest.approx(row["value"] - row["reference_value"])
        assert row["low"] <= row["difference"] <= row["high"]
    # matching sorts by path: the mean over images in another order may differ in the last digit
    pd.testing.assert_frame_equal(result.evaluations["A"].metrics, a.metrics, rtol=1e-12)
    pd.testing.assert_frame_equal(result.evaluations["A"].confusion, a.confusion)


def test_the_interval_of_an_auc_difference_uses_delongs_covariance(two, compared):
    first, second = map(by_patient, two)
    truth = (first["label"] == "COVID-19").to_numpy()
    scores = np.stack([second["p_COVID-19"], first["p_COVID-19"]])
    (area, other), covariance = delong(scores, truth)
    row = compared.row("auc_pooled")  # the folds together
    assert row["difference"] == pytest.approx(roc_auc_score(truth, scores[0]) - roc_auc_score(truth, scores[1]))
    correlation = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    (low, high, _), (other_low, other_high, _) = (auc_interval(s, truth) for s in scores)
    left = (area - low) ** 2 + (other_high - other) ** 2 - 2 * correlation * (area - low) * (other_high - other)
    right = (high - area) ** 2 + (other - other_low) ** 2 - 2 * correlation * (high - area) * (other - other_low)
    assert row["low"] == pytest.approx(area - other - math.sqrt(left))
    assert row["high"] == pytest.approx(area - other + math.sqrt(right))
    wald = norm.ppf(0.975) * math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert (row["low"], row["high"]) == pytest.approx((area - other - wald, area - other + wald), abs=0.02)


def test_the_interval_of_an_auc_has_the_degrees_of_freedom_of_brunner_and_munzel():
    rng = np.random.default_rng(3)
    truth = np.arange(60) < 12
    scores = rng.normal(size=60) + 1.5 * truth
    test = brunnermunzel(scores[~truth], scores[truth])
    degrees = brentq(lambda df: 2 * student.sf(abs(test.statistic), df) - test.pvalue, 2, 200)
    area = roc_auc_score(truth, scores)
    error = (area - 0.5) / abs(test.statistic)  # the standard error
    reach = student.ppf(0.975, degrees) * error / (area * (1 - area))
    low, high, method = auc_interval(scores, truth)
    assert (low, high) == pytest.approx((expit(logit(area) - reach), expit(logit(area) + reach)))
    assert method == "DeLong, log odds"


def test_delongs_covariance_equals_that_of_the_jackknife(two):
    first, second = map(by_patient, two)
    truth = (first["label"] == "COVID-19").to_numpy()
    scores = np.stack([first["p_COVID-19"], second["p_COVID-19"]])
    _, covariance = delong(scores, truth)
    jackknife = np.zeros((2, 2))
    for side in (truth, ~truth):
        areas = []
        for unit in np.flatnonzero(side):
            others = np.arange(len(truth)) != unit
            areas.append([roc_auc_score(truth[others], s[others]) for s in scores])
        m = side.sum()
        jackknife += (m - 1) ** 2 * np.cov(np.transpose(areas)) / m
    np.testing.assert_allclose(covariance, jackknife, rtol=1e-6)


def test_equal_rankings_have_no_difference_and_two_perfect_models_an_interval_with_a_width():
    truth = np.repeat([True, False], 15)
    scores = np.random.default_rng(0).normal(size=30) + 3 * truth
    assert auc_difference(scores, scores**3, truth) == (0.0, 0.0, "same ranking")
    perfect = np.where(truth, 2.0, 1.0) + np.linspace(0, 0.5, 30)
    other = np.where(truth, 2.0, 1.0) - np.linspace(0, 0.5, 30)
    low, high, _ = auc_difference(perfect, other, truth)
    assert low < -0.05 and high > 0.05  # both areas are 1, on 15 units of each kind


def test_proportions_have_newcombes_interval(two, compared):
    first, second = map(by_patient, two)
    correct = [(t["p_COVID-19"] >= 0.5) == (t["label"] == "COVID-19") for t in (second, first)]
    row = compared.row("accuracy")
    assert (row["low"], row["high"]) == newcombe_difference(*(c.to_numpy().astype(float) for c in correct))
    assert row["method"] == "Newcombe, paired"


def test_newcombes_published_example():
    """Table II (a) of Newcombe 1998: 36, 12, 2 and 0 of 50 pairs, method 10: 0.0569 to 0.3404."""
    first = np.r_[np.ones(48), np.zeros(2)]
    second = np.r_[np.ones(36), np.zeros(12), np.ones(2)]
    assert newcombe_difference(first, second) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.fixture(scope="module")
def precise(two):
    return compare(*two, n_resamples=500)


@pytest.fixture(scope="module")
def same(two):
    return compare(two[0], two[0], names=["A", "B"], n_resamples=100)


@pytest.mark.parametrize("metric", ["brier", "log_loss", "average_precision", "f1", "ece"])
def test_the_interval_of_a_difference_has_the_correlation_of_the_models(precise, same, metric):
    """It is shorter than that of two independent models, and has no width for one and the same model.

    That of F1 has one, as that of accuracy: models that agree on these patients may not agree on others.
    """
    row, parts = precise.row(metric), [evaluation.row(metric) for evaluation in precise.evaluations.values()]
    assert row["method"] == "recovered, paired" and row["low"] < row["difference"] < row["high"]
    if metric != "ece":  # the calibration errors of two models may be negatively correlated
        assert row["high"] - row["low"] < math.hypot(*(part["high"] - part["low"] for part in parts))
    one = same.row(metric)
    assert one["difference"] == 0 and (one["low"] == one["high"] == 0 or metric == "f1" and one["low"] < 0)


def test_a_difference_of_balanced_accuracies_combines_newcombes_intervals(compared):
    result = compared
    row, parts = result.row("balanced_accuracy"), [result.row(name) for name in ("sensitivity", "specificity")]
    below = math.hypot(*(part["difference"] - part["low"] for part in parts)) / 2
    assert row["low"] == pytest.approx(row["difference"] - below)


def test_agreement_equals_scikit_learns_kappa_and_statsmodels_mcnemar(two, compared):
    first, second = map(by_patient, two)
    predicted = [np.where(t["p_COVID-19"] >= 0.5, "COVID-19", "Normal") for t in (first, second)]
    correct = [p == first["label"] for p in predicted]
    row = compared.agreement.iloc[0]
    assert row["kappa"] == pytest.approx(cohen_kappa_score(*predicted))
    assert row["fraction"] == np.mean(predicted[0] == predicted[1])
    counts = pd.crosstab(correct[0], correct[1]).to_numpy()
    assert row["mcnemar_p"] == pytest.approx(mcnemar(counts, exact=True).pvalue)
    assert counts.tolist() == [[row["both_wrong"], row["only_model"]], [row["only_reference"], row["both_right"]]]


def test_the_interval_of_kappa_equals_statsmodels():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 200)
    second = np.where(rng.random(200) < 0.6, first, rng.integers(0, 3, 200))
    expected = cohens_kappa(pd.crosstab(first, second).to_numpy())
    assert cohen_kappa(first, second, [0, 1, 2]) == pytest.approx(
        (expected.kappa, expected.kappa_low, expected.kappa_upp)
    )
    assert math.isnan(cohen_kappa(np.zeros(5), np.zeros(5), [0, 1])[0])


def test_folds_are_tested_with_the_corrected_variance(two, compared):
    result = compared
    row = result.fold_tests.set_index("metric").loc["auc"]
    differences = []
    for fold in range(5):
        first, second = (by_patient(t[t["fold"] == fold]) for t in two)
        truth = first["label"] == "COVID-19"
        differences.append(roc_auc_score(truth, second["p_COVID-19"]) - roc_auc_score(truth, first["p_COVID-19"]))
    uncorrected = ttest_1samp(differences, 0)
    low, high = uncorrected.confidence_interval()
    factor = math.sqrt((1 / 5 + 1 / 4) / (1 / 5))  # Nadeau and Bengio's variance divided by the uncorrected one
    assert row["difference"] == pytest.approx(np.mean(differences)) and row["folds"] == 5
    assert row["high"] - row["low"] == pytest.approx((high - low) * factor)
    assert row["p"] > uncorrected.pvalue
    other = two[1].assign(fold=(two[1]["fold"] + (two[1]["patient"] == "p3")) % 5)
    assert compare(two[0], other, n_resamples=100).fold_tests.empty


def test_the_corrected_t_test_of_equal_and_of_consistent_folds():
    assert corrected_t(np.zeros(5), 0.25) == (0.0, 0.0, 1.0)
    low, high, p = corrected_t(np.array([0.1, 0.12, 0.08, 0.1, 0.11]), 0.25)
    assert low > 0 and p < 0.01 and (low + high) / 2 == pytest.approx(0.102)


def test_cases_are_the_disagreements_with_the_largest_gap_first(two, compared):
    first, second = map(by_patient, two)
    result = compared.cases
    differs = (first["p_COVID-19"] >= 0.5) != (second["p_COVID-19"] >= 0.5)
    assert set(result["patient"]) == set(first.loc[differs, "patient"])
    gap = (first["p_COVID-19"] - second["p_COVID-19"]).abs()[differs]
    assert result["gap"].tolist() == pytest.approx(sorted(gap, reverse=True))
    assert (result["A predicted"] != result["B predicted"]).all() and result["images"].between(1, 3).all()
    assert ((result["A p(COVID-19)"] - result["B p(COVID-19)"]).abs() - result["gap"]).abs().max() < 1e-12


def test_each_model_may_have_its_own_threshold(two):
    result = compare(*two, threshold=[0.5, 0.3], n_resamples=100)
    assert result.row("sensitivity")["value"] == evaluate(two[1], threshold=0.3, n_resamples=100).value("sensitivity")
    with pytest.raises(UsageError, match="3 thresholds for 2 models"):
        compare(*two, threshold=[0.5, 0.3, 0.1])


def test_images_of_one_table_only_are_left_out_and_noted(two):
    first, second = two
    short = second[second["patient"] != "p7"].sample(frac=1, random_state=0)  # in another order
    extra = short.iloc[:2].assign(path=["new0.png", "new1.png"], patient="new")
    result = compare(first, pd.concat([short, extra]), names=["A", "B"], n_resamples=100)
    n = (first["patient"] == "p7").sum()
    assert f"A: {n} of {len(first)} images are not in all tables and are left out." in result.notes
    assert f"B: 2 of {len(short) + 2} images are not in all tables and are left out." in result.notes
    common = first["patient"] != "p7"
    expected = compare(first[common], second[common], names=["A", "B"], n_resamples=100)
    pd.testing.assert_frame_equal(result.table, expected.table)


def test_a_failed_prediction_excludes_the_image_for_both_models(two):
    first, second = two
    second = second.assign(status="ok")
    second.loc[0, "status"] = "failed"
    result = compare(first, second, names=["A", "B"], n_resamples=100)
    assert "B: 1 of" in result.notes[0]
    assert result.evaluations["A"].n_images == len(first) - 1


def test_images_of_moved_folders_are_matched_by_file_name(two, compared):
    first, second = two
    second = second.assign(path=second["path"].str.replace("/data", "/elsewhere"))
    result = compare(first, second, names=["A", "B"], n_resamples=100)
    assert "Images were matched by file name." in result.notes
    pd.testing.assert_frame_equal(result.table, compared.table)


def test_other_images_of_the_same_patients_are_matched_by_patient(two):
    first, second = two
    second = second.drop_duplicates("patient").assign(path=lambda t: "other/" + t["patient"] + ".dcm")
    result = compare(first, second, n_resamples=100)
    assert any("matched by patient and label" in note for note in result.notes)
    assert result.agreement["n"].iloc[0] == 120 and result.fold_tests.empty


def test_patients_come_from_the_table_that_knows_them(two):
    first, second = two
    result = compare(first.drop(columns="patient"), second, n_resamples=100)
    assert result.agreement["n"].iloc[0] == 120
    unknown = compare(first.drop(columns="patient"), second.drop(columns="patient"), n_resamples=100)
    assert unknown.agreement["n"].iloc[0] == len(first) and UNKNOWN_PATIENTS in unknown.notes


def test_the_order_of_the_classes_does_not_matter(two, compared):
    first, second = two
    reordered = second[["path", "label", "patient", "fold", "p_COVID-19", "p_Normal"]]
    pd.testing.assert_frame_equal(compare(first, reordered, names=["A", "B"], n_resamples=100).table, compared.table)


def test_three_classes_and_three_models(three_classes):
    swapped = three_classes.rename(columns={"p_Bacterial": "p_Viral", "p_Viral": "p_Bacterial"})
    result = compare(three_classes, swapped, three_classes, names=["A", "B", "C"], n_resamples=100)
    assert set(result.table["model"]) == {"B", "C"} and "macro" in set(result.table["class"])
    assert result.row("auc", model="B")["class"] == "macro" and result.row("auc", model="C")["difference"] == 0
    assert result.row("sensitivity", of="Viral")["difference"] < 0
    assert "B p(predicted class)" in result.cases
    assert len(plot_comparison(result).axes) == 2


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda t: t.rename(columns={"p_Normal": "p_Healthy"}).replace("Normal", "Healthy"), DataError, "Healthy"),
        (lambda t: t.assign(label=["Normal", *t["label"][1:]]), DataError, "different labels for 1 images"),
        (lambda t: t.assign(path="x" + t["path"], patient="x" + t["patient"]).assign(
            path=lambda u: [f"{n}.jpg" for n in range(len(u))]), DataError, "in common"),
        (lambda t: pd.concat([t, t.iloc[:1]]), DataError, "more than one prediction of /data/p0-0.png"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_compared(two, change, error, text):
    assert two[0].loc[0, "label"] == "COVID-19"
    with pytest.raises(error, match=text):
        compare(two[0], change(two[1]), n_resamples=100)


def test_invalid_options_raise(two, compared):
    with pytest.raises(UsageError, match="two models or more"):
        compare(two[0])
    with pytest.raises(UsageError, match="names="):
        compare(*two, names=["A", "A"])
    result = compared
    with pytest.raises(UsageError, match="'roc'"):
        result.row("roc")


def test_models_read_from_files_are_named_by_folder(two, compared, tmp_path):
    for name, table in zip("ab", two, strict=True):
        (tmp_path / name).mkdir()
        table.to_csv(tmp_path / name / "predictions.csv", index=False)
    paths = [tmp_path / name / "predictions.csv" for name in "ab"]
    assert list(pair_predictions(paths).tables) == ["a/predictions", "b/predictions"]
    result = compare(*paths, n_resamples=100)
    np.testing.assert_allclose(result.table["difference"], compared.table["difference"], atol=1e-12)


def test_a_run_is_compared_on_its_held_out_patients(run_folder):
    from covid_fastai.audit.runs import read_run

    run = read_run(run_folder)
    result = compare(run_folder, run, names=["A", "B"], n_resamples=100)
    assert (result.table["difference"].dropna() == 0).all()
    assert result.evaluations["A"].value("auc") == pytest.approx(run.metrics.value("auc"))


def test_a_comparison_can_be_displayed_and_written(two):
    result = compare(*two, names=["A", "<b>"], n_resamples=100)
    assert json.dumps(result.to_dict()) and "medical device" in repr(result) and "kappa" in repr(result)
    assert "<table" in result._repr_html_() and "<b>" not in result._repr_html_()


def test_the_plot_reverses_metrics_of_which_lower_is_better(compared):
    result = compared
    higher_better, lower_better = plot_comparison(result).axes
    assert higher_better.lines[1].get_xdata()[0] == result.row("accuracy")["difference"]
    assert lower_better.lines[1].get_xdata()[0] == -result.row("brier")["difference"]
    assert "better to the right" in lower_better.get_xlabel()


@pytest.mark.slow
@pytest.mark.parametrize(("area", "other", "correlation"), [(0.7, 0.7, 0.0), (0.95, 0.85, 0.6), (0.99, 0.95, 0.6)])
def test_the_interval_of_the_difference_covers_the_truth(area, other, correlation):
    rng = np.random.default_rng(0)
    truth = np.repeat([True, False], 20)
    distance = norm.ppf([area, other]) * math.sqrt(2)
    covered = []
    for _ in range(500):
        scores = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], 40).T + np.outer(distance, truth)
        low, high, _ = auc_difference(*scores, truth)
        covered.append(low <= area - other <= high)
        assert rankdata(scores[0]).max() == 40
    assert 0.925 <= np.mean(covered) <= 1


def test_one_split_of_several_is_compared(two):
    """Training and test patients are never compared together."""
    first, second = (
        table.assign(split=np.where(table["patient"] < "p5", "train", "test"), patient=table["patient"])
        for table in two
    )
    with pytest.raises(DataError, match="several splits"):
        compare(first, second, n_resamples=100)
    result = compare(first, second, split="test", n_resamples=100)
    assert result.row("auc")["n"] == first.loc[first["split"] == "test", "patient"].nunique()


def test_the_difference_of_aucs_is_within_the_folds_of_both_models(two):
    """Offsets between the folds of one model change its pooled AUC, not its AUC within folds."""
    first, second = two
    shift = 2.0 * (second["fold"] - 2)
    logits = np.log(second["p_COVID-19"] / second["p_Normal"]) + shift
    p = 1 / (1 + np.exp(-logits))
    shifted = second.assign(**{"p_COVID-19": p, "p_Normal": 1 - p})
    plain, moved = (compare(first, table, names=["A", "B"], n_resamples=100) for table in (second, shifted))
    # the mean over a patient's images is not linear in the shift, so that a few pairs change their order
    assert moved.row("auc")["difference"] == pytest.approx(plain.row("auc")["difference"], abs=0.02)
    assert moved.row("auc_pooled")["difference"] < plain.row("auc_pooled")["difference"] - 0.05
    unpaired = compare(first, shifted.assign(fold=0), n_resamples=100)
    assert "auc_pooled" not in set(unpaired.table["metric"])  # other folds: the AUC is of all patients


def test_two_models_without_a_true_positive_may_differ():
    """An F1 of 0 in every resample is no proof that both models are the same."""
    label = np.where(np.arange(60) < 6, "COVID-19", "Normal")
    first = pd.DataFrame({"path": [f"{i}.png" for i in range(60)], "label": label, "p_COVID-19": 0.1, "p_Normal": 0.9})
    second = first.assign(**{"p_COVID-19": np.where(np.arange(60) == 59, 0.8, 0.2)})
    second["p_Normal"] = 1 - second["p_COVID-19"]
    row = compare(first, second, positive="COVID-19", n_resamples=100).row("f1")
    assert row["difference"] == 0 and row["low"] < -0.1 and row["high"] > 0.1
