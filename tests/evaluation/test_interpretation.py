"""Interpretation from a learner and from a table agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix as oracle

from covid_fastai import evaluate, predict
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.interpretation import (
    confusion_matrix,
    plot_confusion_matrix,
    plot_top_losses,
    top_losses,
)


def test_learner_and_table_have_the_same_confusion_matrix(covid_learner):
    table = predict(covid_learner)
    pd.testing.assert_frame_equal(confusion_matrix(covid_learner), confusion_matrix(table))
    np.testing.assert_array_equal(
        confusion_matrix(table), oracle(table["label"], table["prediction"], labels=["Normal", "COVID-19"])
    )


def test_learner_and_table_have_the_same_top_losses(covid_learner):
    ours, fastais = top_losses(predict(covid_learner), k=5), top_losses(covid_learner, k=5)
    assert ours["path"].tolist() == fastais["path"].tolist()
    np.testing.assert_allclose(ours["loss"], fastais["loss"], atol=1e-5)
    assert ours["predicted"].tolist() == fastais["predicted"].tolist()
    assert ours["loss"].is_monotonic_decreasing


def test_the_loss_is_the_cross_entropy(predictions):
    worst = top_losses(predictions, k=1).iloc[0]
    row = predictions[predictions["path"] == worst["path"]].iloc[0]
    assert worst["loss"] == pytest.approx(-np.log(row[f"p_{row['label']}"]))
    assert len(top_losses(predictions, k=10_000)) == len(predictions)


def test_an_absent_class_has_a_row_without_fractions(predictions):
    figure = plot_confusion_matrix(predictions[predictions["label"] == "Normal"])
    assert any("n = 0" in text.get_text() for text in figure.axes[0].texts)


def test_an_evaluation_counts_its_units(predictions):
    result = evaluate(predictions)
    assert confusion_matrix(result).to_numpy().sum() == predictions["patient"].nunique()
    assert confusion_matrix(predictions).to_numpy().sum() == len(predictions)


def test_top_losses_are_plotted_with_names_and_missing_files_leave_a_gap(covid_learner, predictions):
    figure = plot_top_losses(covid_learner, k=4)
    assert sum(bool(axes.images) for axes in figure.axes) == 4
    assert "p(true)" in figure.axes[0].get_title()
    assert not any(axes.images for axes in plot_top_losses(predictions, k=4).axes)


def test_top_losses_without_labels_raise(predictions):
    with pytest.raises(UsageError):
        top_losses(predictions.assign(label=""))


def test_a_file_of_predictions_is_accepted(predictions, tmp_path):
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    pd.testing.assert_frame_equal(confusion_matrix(tmp_path / "predictions.csv"), confusion_matrix(predictions))
    pd.testing.assert_frame_equal(top_losses(str(tmp_path / "predictions.csv"), k=4), top_losses(predictions, k=4))
