"""Many units: influence values against finite differences, and limits of the bootstrap against resamples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from covid_fastai.evaluation import plots, resamples, selective
from covid_fastai.evaluation.bootstrap import (
    precision_at,
    resample_by_score,
    resample_patients,
    sensitivity_at,
    stratify_patients,
)
from covid_fastai.evaluation.comparison import compare
from covid_fastai.evaluation.influence import gap_influence
from covid_fastai.evaluation.metrics import evaluate, score_units
from covid_fastai.evaluation.plots import plot_precision_recall, plot_probabilities, plot_roc
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.resamples import Resamples
from covid_fastai.evaluation.selective import plot_risk_coverage, risk_coverage
from covid_fastai.evaluation.weighted_metrics import list_weighted_metrics


def simulate(n: int, *, seed: int = 0, images: int = 1, classes: str = "NP") -> pd.DataFrame:
    """Return predictions of n patients, with probabilities of two digits so that scores are tied."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(len(classes), size=n)
    logits = rng.normal(size=(n, images, len(classes)))
    logits[np.arange(n), :, truth] += 1
    p = expit(logits)
    p = (p / p.sum(axis=2, keepdims=True)).round(2)
    p[:, :, 0] += 1 - p.sum(axis=2)
    table = pd.DataFrame({"patient": np.repeat([f"p{number}" for number in range(n)], images)})
    table["label"] = np.repeat(np.array(list(classes))[truth], images)
    table["fold"] = np.repeat(np.arange(n) % 3, images)
    return table.assign(**{f"p_{name}": p[:, :, k].ravel() for k, name in enumerate(classes)})


def all_drawn(monkeypatch, largest: int) -> None:
    """Set the number of units up to which each has a weight in each resample."""
    for module in (resamples, plots, selective):
        monkeypatch.setattr(module, "LARGEST_DRAWN", largest)


@pytest.mark.parametrize("classes", ["NP", "NPQ"])
def test_influence_values_are_derivatives_by_the_weights(classes):
    table = read_predictions(simulate(60, classes=classes))
    positive = "P" if classes == "NP" else None
    units = score_units(table, positive=positive).table
    metrics = list_weighted_metrics(units, list(classes), positive)
    assert {"auc", "auc_pooled", "average_precision", "f1", "ece", "brier"} <= {metric.metric for metric in metrics}
    step = 1e-6
    changed = np.concatenate([np.ones((len(units), len(units))) + sign * step * np.eye(len(units)) for sign in (1, -1)])
    for metric in metrics:
        if metric.metric == "ece":  # not differentiable; its gaps are
            gaps = metric.gaps(changed)
            slopes = (gaps[: len(units)] - gaps[len(units) :]) / (2 * step)
            np.testing.assert_allclose(gap_influence(*metric.gap_terms), slopes, atol=1e-7)
            continue
        up, down = np.split(metric.compute(changed), 2)
        np.testing.assert_allclose(metric.influence(), (up - down) / (2 * step), atol=1e-7, err_msg=metric.metric)


def test_correlations_of_influence_values_are_those_of_resamples(monkeypatch):
    tables = [read_predictions(simulate(1500, seed=seed)) for seed in (0, 0, 1)]
    p = 0.7 * tables[0]["p_P"] + 0.3 * tables[2]["p_P"]  # another model, which agrees in part
    tables[1] = read_predictions(tables[0].assign(p_P=p, p_N=1 - p))
    units = [score_units(table, positive="P").table for table in tables[:2]]
    metrics = [list_weighted_metrics(each, ["N", "P"], "P") for each in units]
    drawn = Resamples(units[0]["patient"], units[0]["label"], 1000, 0)
    limit = Resamples(units[0]["patient"], units[0]["label"], 1000, 0)
    for names in (("average_precision", "f1", "auc"), ("ece",)):
        chosen = [metric for of_model in metrics for metric in of_model if metric.metric in names]
        expected = drawn.correlate(chosen)
        with monkeypatch.context() as patch:
            all_drawn(patch, 100)
            assert not limit.are_drawn
            # the standard error of a correlation over 1,000 resamples is up to 0.03
            np.testing.assert_allclose(limit.correlate(chosen), expected, atol=0.08)
    assert "weights" not in vars(limit)


def test_intervals_of_many_images_are_those_of_resampled_patients(monkeypatch):
    table = simulate(1500, images=2)
    expected = evaluate(table, unit="image", n_resamples=500)
    all_drawn(monkeypatch, 100)
    result = evaluate(table, unit="image", n_resamples=500)
    for bound in ("low", "high"):
        np.testing.assert_allclose(result.metrics[bound], expected.metrics[bound], atol=0.004)
    assert result.row("ece")["method"] == "normal noise of patients, inverted"


def test_intervals_of_differences_and_of_means_are_those_of_resamples(monkeypatch):
    first, second = simulate(500, classes="NPQ"), simulate(500, classes="NPQ", seed=2)
    second = second.assign(label=first["label"])
    expected = compare(first, second, n_resamples=300)
    all_drawn(monkeypatch, 100)
    result = compare(first, second, n_resamples=300)
    for bound in ("low", "high"):
        np.testing.assert_allclose(result.table[bound], expected.table[bound], atol=0.015)


@pytest.mark.parametrize("images", [1, 2])
def test_bands_of_grouped_scores_are_those_of_resamples(images):
    table = read_predictions(simulate(1500, images=images))
    units = score_units(table, positive="P", unit="image" if images == 2 else "patient").table
    scores, of_class = units["p_P"].to_numpy(), (units["label"] == "P").to_numpy()
    options = {"n_resamples": 400, "seed": 1}
    weights = resample_patients(units["patient"], units["label"], **options).astype(float)
    grouped = resample_by_score(scores, of_class, units["patient"], units["label"], **options)
    assert len(grouped[0]) < 2 * 2 * 102 and grouped[2].sum(axis=1).tolist() == [len(units)] * 400
    grid = np.linspace(0.05, 0.95, 19)
    for curve in (sensitivity_at, precision_at):
        expected = np.quantile(curve(grid, scores, of_class, weights), [0.025, 0.975], axis=0)
        band = np.quantile(curve(grid, *grouped), [0.025, 0.975], axis=0)
        np.testing.assert_allclose(band, expected, atol=0.025)


def test_grouped_scores_keep_the_scores_of_few_positives_apart():
    rng = np.random.default_rng(0)
    of_class = np.arange(30_000) < 5
    scores = np.where(of_class, 0.999, rng.random(30_000)) + np.arange(30_000) * 1e-9
    patients, labels = pd.Series(np.arange(30_000)), pd.Series(np.where(of_class, "P", "N"))
    groups, positive, counts = resample_by_score(scores, of_class, patients, labels, n_resamples=100, seed=0)
    grid = np.array([0.1, 0.5, 0.9])  # the first, third and fifth positive
    exact = precision_at(grid, scores, of_class, np.ones((1, len(scores))))
    sizes = counts.mean(axis=0, keepdims=True)
    assert positive.sum() == 5 and len(np.unique(groups[positive])) == 5
    np.testing.assert_allclose(precision_at(grid, groups, positive, sizes), exact, rtol=0.3)


def test_the_curve_of_many_certainties_is_thinned_out_and_its_points_are_exact(monkeypatch):
    table = simulate(4000)
    rng = np.random.default_rng(0)
    p = np.clip(table["p_P"] + rng.uniform(-0.004, 0.004, len(table)), 0, 1)
    table = table.assign(p_P=p, p_N=1 - p)
    expected = risk_coverage(table, n_resamples=200)
    all_drawn(monkeypatch, 1000)
    result = risk_coverage(table, n_resamples=200)
    assert len(result.curve) < 2100 < len(expected.curve)
    pd.testing.assert_frame_equal(result.points, expected.points)
    rows = expected.curve.set_index("answered").loc[result.curve["answered"]].reset_index()
    pd.testing.assert_frame_equal(rows[result.curve.columns.tolist()], result.curve)
    np.testing.assert_allclose(result.metrics["value"], expected.metrics["value"])
    np.testing.assert_allclose(result.metrics[["low", "high"]], expected.metrics[["low", "high"]], atol=0.004)
    assert len(plot_risk_coverage(result).axes[0].lines[0].get_xdata()) == len(result.curve)


def test_figures_of_many_patients_say_that_dots_are_drawn_at_random(monkeypatch):
    result = evaluate(simulate(3000))
    assert "at random" not in plot_probabilities(result).axes[0].get_title()
    monkeypatch.setattr(plots, "MOST_DOTS", 500)
    axes = plot_probabilities(result).axes[0]
    assert [len(points.get_offsets()) for points in axes.collections] == [500, 500]
    assert axes.get_title() == "One dot per patient,\n500 of a class at most, drawn at random"
    assert sum(int(label.get_text().split("n = ")[1]) for label in axes.get_yticklabels()) == 3000
    all_drawn(monkeypatch, 1000)
    for plot in (plot_roc, plot_precision_recall):
        assert "n = 3000 patients" in plot(result).axes[0].get_title()


def test_patients_with_the_same_labels_form_a_stratum():
    patients, labels = pd.Series(list("bbacca")), pd.Series(list("YXXYXX"))
    codes, strata = stratify_patients(patients, labels)
    assert codes.tolist() == [1, 1, 0, 2, 2, 0] and strata.tolist() == [0, 1, 1]
