"""The permutation test of a baseline: whether it is better than the same baseline on permuted labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import rankdata

__all__ = ["holm", "permute_labels"]

ROWS_PER_PENALTY = 10  # the ridge penalty is the number of fitted rows divided by this; the features are standardised


def permute_labels(
    x: np.ndarray, rows: pd.DataFrame, classes: list[str], *, permutations: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Compute the AUC of a ridge regression by patient, for the true labels and for permuted labels.

    Ridge regression is linear in the labels. One matrix maps the labels of all patients to their out-of-fold scores, so
    that all permutations together cost one matrix product.

    Args:
        x: Features, `(n, k)`.
        rows: One row per image, with `label`, `patient`, `fold` (-1: used for fitting in every fold, never predicted)
            and, optionally, `group`.
        classes: All classes.
        permutations: Number of permutations of the labels among the patients of each fold.
        rng: The random number generator.

    Returns:
        The AUC of the true labels, and the AUCs of the permuted labels, `(permutations,)`. With more than two classes
        it is the mean of each class against the rest.
    """
    groups = rows["group"] if "group" in rows else rows["patient"]
    _, group_of_row = np.unique(groups.astype(str), return_inverse=True)
    codes = pd.Categorical(rows["label"], categories=classes).codes.astype(int)
    labels = np.zeros(group_of_row.max() + 1, dtype=int)
    labels[group_of_row] = codes  # a group with two classes counts with the last one
    fold = rows["fold"].to_numpy()
    predicted = fold >= 0
    sizes = np.bincount(group_of_row[predicted], minlength=len(labels))
    scored = sizes > 0  # groups with at least one predicted image
    # (groups, predicted rows): the mean score over the images of each group
    mean = np.zeros((len(labels), predicted.sum()))
    mean[group_of_row[predicted], np.arange(predicted.sum())] = 1 / np.maximum(sizes[group_of_row[predicted]], 1)
    # (n, groups): gives each image the label of its group
    expand = np.zeros((len(rows), len(labels)))
    expand[np.arange(len(rows)), group_of_row] = 1
    # (scored groups, all groups): from group labels to group scores; rounding removes the noise of constant features
    weights = (mean[scored] @ _hat_matrix(x, fold)[predicted] @ expand).round(12)
    fold_of_group = np.zeros(len(labels), dtype=int)
    fold_of_group[group_of_row] = fold
    permuted = np.repeat(labels[:, None], 1 + permutations, axis=1)  # column 0 holds the true labels
    for number in np.unique(fold_of_group):  # within each fold, which keeps the number of each class in it
        members = np.flatnonzero(fold_of_group == number)
        permuted[members, 1:] = rng.permuted(permuted[members, 1:], axis=0)
    targets = range(len(classes)) if len(classes) > 2 else [1]
    aucs = [_aucs(weights @ (permuted == k).astype(float), (permuted == k)[scored]) for k in targets]
    mean_auc = np.mean(aucs, axis=0)
    return float(mean_auc[0]), mean_auc[1:]


def _hat_matrix(x: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the matrix that maps labels to out-of-fold ridge predictions, `(n, n)`; rows never predicted are 0.

    The hat matrix of ridge regression with penalty a is `Z (X'X + a I)^-1 X'`, with Z the predicted and X the fitted
    features. The mean of the fitted labels is left out of the predictions: it differs between folds and is negatively
    correlated with the labels of the predicted fold.
    """
    hat = np.zeros((len(x), len(x)))
    for number in np.unique(fold[fold >= 0]):
        held_out, fit = fold == number, fold != number
        centre, scale = x[fit].mean(axis=0), x[fit].std(axis=0)
        scale[scale < 1e-12] = np.inf  # a constant feature becomes 0
        fitted, predicted = (x[fit] - centre) / scale, (x[held_out] - centre) / scale
        n, k = fitted.shape
        if k <= n:
            block = predicted @ np.linalg.solve(fitted.T @ fitted + n / ROWS_PER_PENALTY * np.eye(k), fitted.T)
        else:  # the dual form X' (XX' + a I)^-1 is the same and inverts the smaller matrix
            block = predicted @ fitted.T @ np.linalg.inv(fitted @ fitted.T + n / ROWS_PER_PENALTY * np.eye(n))
        hat[np.ix_(held_out, fit)] = block - block.sum(axis=1, keepdims=True) / n  # centres the fitted labels
    return hat


def _aucs(scores: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of each column from rank sums (Mann-Whitney U); ties count half."""
    ranks = rankdata(scores, axis=0)
    m = of_class.sum(axis=0)
    return ((ranks * of_class).sum(axis=0) - m * (m + 1) / 2) / (m * (len(scores) - m))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for multiple testing (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p: The p-value of each hypothesis, by name.

    Returns:
        The corrected p-values by name, at most 1 and in the same order of size.
    """
    corrected, largest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        # the smallest p-value is multiplied by their number, the next by one less; the maximum keeps the order
        largest = max(largest, min(1.0, value * (len(p) - rank)))
        corrected[name] = largest
    return corrected
