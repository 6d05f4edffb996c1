"""The model of a baseline: a logistic regression, and its predictions of the rows that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covid_fastai.audit.fixed_spots import most_telling
from covid_fastai.evaluation.prediction_table import PROBABILITY

__all__ = ["build_predictions_table", "fit_and_predict", "predict_out_of_fold"]

PENALTY = 0.1  # scikit-learn's C: strong regularisation, since there may be more features than patients


def fit_and_predict(
    x: np.ndarray, labels: Sequence[str] | pd.Series, others: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Fit a logistic regression with balanced class weights and predict other rows.

    Args:
        x: Features to fit on, `(n, k)`; they are standardised first.
        labels: Classes of the fitted rows, `(n,)`.
        others: Features to predict, `(m, k)`.
        classes: All classes, in the order of the columns.

    Returns:
        Probabilities, `(m, classes)`; 0 for a class without fitted rows.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=2000))
    model.fit(x, labels)
    p = np.zeros((len(others), len(classes)))
    p[:, [list(classes).index(name) for name in model.classes_]] = model.predict_proba(others)
    return p


def predict_out_of_fold(
    x: np.ndarray, rows: pd.DataFrame, classes: list[str], *, best_column: bool = False
) -> pd.DataFrame:
    """Return the predictions of each row by the model that was fitted on the other folds, or on their best column."""
    p = np.full((len(rows), len(classes)), np.nan)
    label, fold = rows["label"].to_numpy(), rows["fold"].to_numpy()
    for number in np.unique(fold[fold >= 0]):
        held_out, fit = fold == number, fold != number
        if x.shape[1]:
            columns = [most_telling(x[fit], label[fit], classes)] if best_column else slice(None)
            p[held_out] = fit_and_predict(x[fit][:, columns], label[fit], x[held_out][:, columns], classes)
        else:
            prevalence = np.array([(label == name).mean() for name in classes])
            # rounded to a multiple of 2^-20, whose mean over a patient's images is exact: all patients tie
            p[held_out] = (prevalence * 2**20).round() / 2**20
    predicted = fold >= 0
    columns = ["path", "label", "patient", "split", "source", "view", "fold"]
    about = rows.reindex(columns=columns)[predicted].reset_index(drop=True)
    # each row is predicted by a model that was not fitted on it, whatever split it has
    return build_predictions_table(about, p[predicted], classes).assign(status="ok", split="valid")


def build_predictions_table(about: pd.DataFrame, p: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return a table of predictions like that of `predict`, without its status.

    Args:
        about: One row per image with the other columns.
        p: Probabilities, `(n, classes)`; NaN for an image that was not predicted.
        classes: All classes.
    """
    table = pd.DataFrame(about).copy()
    for number, name in enumerate(classes):
        table[PROBABILITY + name] = p[:, number]
    return table.assign(prediction=np.array(classes, dtype=object)[np.nan_to_num(p, nan=-1.0).argmax(axis=1)])
