"""The plotted curves equal those of the tables and of scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from covid_fastai.errors import UsageError
from covid_fastai.evaluation.bootstrap import precision_at, sensitivity_at
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.plots import (
    plot_history,
    plot_learning_rate,
    plot_precision_recall,
    plot_probabilities,
    plot_roc,
)


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "phase": ["frozen", "unfrozen", "unfrozen"],
            "epoch": [1, 2, 3],
            "train_loss": [0.9, 0.5, 0.4],
            "valid_loss": [0.8, 0.6, 0.5],
            "accuracy": [0.5, 0.7, 0.8],
            "seconds": [1.0, 2.0, 2.0],
        }
    )


def test_the_roc_curve_equals_scikit_learns(predictions):
    of_class, scores = (predictions["label"] == "COVID-19").to_numpy(), predictions["p_COVID-19"].to_numpy()
    false, true, _ = roc_curve(of_class, scores, drop_intermediate=False)
    grid = np.unique(false)
    expected = [true[false == rate].max() for rate in grid]
    np.testing.assert_allclose(sensitivity_at(grid, scores, of_class, np.ones((1, len(scores))))[0], expected)


def test_the_precision_recall_curve_equals_scikit_learns(predictions):
    of_class, scores = (predictions["label"] == "COVID-19").to_numpy(), predictions["p_COVID-19"].to_numpy()
    precision, recall, _ = precision_recall_curve(of_class, scores)
    grid = np.unique(recall[recall > 0])
    first = [precision[np.flatnonzero(recall >= r)[-1]] for r in grid]  # scikit-learn's recall is decreasing
    np.testing.assert_allclose(precision_at(grid, scores, of_class, np.ones((1, len(scores))))[0], first)


def test_the_band_includes_the_curve_and_the_legend_the_interval(predictions):
    result = evaluate(predictions)
    axes = plot_roc(result).axes[0]
    text = axes.get_legend().get_texts()[0].get_text()
    assert f"{result.value('auc'):.3f}" in text and f"{result.row('auc')['low']:.3f}" in text
    curve = axes.lines[1].get_ydata()
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() <= curve.min() + 0.05 and band.max() >= curve.max() - 0.05


def test_more_than_two_classes_have_a_curve_each(three_classes):
    result = evaluate(three_classes)
    assert len(plot_roc(result).axes[0].get_legend().get_texts()) == 3
    assert len(plot_precision_recall(result).axes[0].get_legend().get_texts()) == 3
    assert len(plot_probabilities(result).axes[0].collections) == 3


def test_each_patient_is_a_dot(predictions):
    result = evaluate(predictions)
    dots = sum(len(points.get_offsets()) for points in plot_probabilities(result).axes[0].collections)
    assert dots == predictions["patient"].nunique()


def test_history_has_a_panel_a_metric_and_shades_the_frozen_phase(history):
    figure = plot_history(history)
    assert len(figure.axes) == 2
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), history["valid_loss"])
    assert any("frozen" in text.get_text() for text in figure.axes[0].texts)
    folds = pd.concat([history.assign(fold=0), history.assign(fold=1)])
    assert len(plot_history(folds).axes[0].lines) == 4


def test_learning_rate(history):
    steps = pd.DataFrame(
        {
            "step": range(1, 5),
            "phase": ["frozen"] * 2 + ["unfrozen"] * 2,
            "learning_rate": [1, 2, 2, 1],
            "train_loss": [1.0] * 4,
        }
    )
    np.testing.assert_array_equal(plot_learning_rate(steps).axes[0].lines[0].get_ydata(), [1, 2, 2, 1])


def test_an_evaluation_without_predictions_cannot_be_plotted(predictions):
    bare = Evaluation.from_dict(evaluate(predictions).to_dict())
    with pytest.raises(UsageError, match="metrics only"):
        plot_roc(bare)


def test_no_figure_is_registered_in_pyplot(predictions):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_roc(evaluate(predictions))
    assert plt.get_fignums() == before


def test_roc_takes_predictions_too(predictions, tmp_path):
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    expected = plot_roc(evaluate(predictions)).axes[0].get_legend().get_texts()[0].get_text()
    for source in (predictions, tmp_path / "predictions.csv"):
        assert plot_roc(source).axes[0].get_legend().get_texts()[0].get_text() == expected


def test_history_takes_a_learner_too(history):
    from types import SimpleNamespace

    learn = SimpleNamespace(facts=SimpleNamespace(history=history))
    assert len(plot_history(learn).axes) == len(plot_history(history).axes)
    with pytest.raises(UsageError, match="no history"):
        plot_history(SimpleNamespace(facts=SimpleNamespace(history=None)))
