"""The permutation test of a baseline: whether it is better than the same baseline on permuted labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import rankdata

__all__ = ["PERMUTATIONS", "auc_of_ranks", "group_codes", "holm", "permute_groups", "permute_labels"]

PERMUTATIONS = 999  # the smallest p-value is 0.001, which stays below 0.05 after Holm's correction for ten tests
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
    group_of_row = group_codes(rows)
    n_groups = int(group_of_row.max()) + 1
    fold = rows["fold"].to_numpy()
    predicted = fold >= 0
    sizes = np.bincount(group_of_row[predicted], minlength=n_groups)
    scored = sizes > 0  # groups with at least one predicted image
    # (groups, predicted rows): the mean score over the images of each group
    mean = np.zeros((n_groups, predicted.sum()))
    mean[group_of_row[predicted], np.arange(predicted.sum())] = 1 / np.maximum(sizes[group_of_row[predicted]], 1)
    # (n, groups): gives each image the label of its group
    expand = np.zeros((len(rows), n_groups))
    expand[np.arange(len(rows)), group_of_row] = 1
    # (scored groups, all groups): from group labels to group scores; rounding removes the noise of constant features
    weights = (mean[scored] @ _hat_matrix(x, fold)[predicted] @ expand).round(12)
    permuted = permute_groups(rows, group_of_row, classes, permutations=permutations, rng=rng)
    targets = range(len(classes)) if len(classes) > 2 else [1]
    aucs = [_aucs(weights @ (permuted == k).astype(float), (permuted == k)[scored]) for k in targets]
    mean_auc = np.mean(aucs, axis=0)
    return float(mean_auc[0]), mean_auc[1:]


def group_codes(rows: pd.DataFrame) -> np.ndarray:
    """Return the number of each row's group, or of its patient without groups, `(n,)`."""
    groups = rows["group"] if "group" in rows else rows["patient"]
    return np.unique(groups.astype(str), return_inverse=True)[1]


def permute_groups(
    rows: pd.DataFrame, codes: np.ndarray, classes: list[str], *, permutations: int, rng: np.random.Generator
) -> np.ndarray:
    """Permute the labels among the groups of each fold, which keeps the number of each class in it.

    Args:
        rows: As in `permute_labels`.
        codes: Result of `group_codes`.
        classes: All classes.
        permutations: Number of permutations.
        rng: The random number generator.

    Returns:
        The class number of each group, `(groups, 1 + permutations)`; column 0 holds the true labels.
    """
    labels, fold_of_group = np.zeros((2, codes.max() + 1), dtype=int)
    # a group with two classes counts with the last one
    labels[codes] = pd.Categorical(rows["label"], categories=classes).codes
    fold_of_group[codes] = rows["fold"].to_numpy()
    permuted = np.repeat(labels[:, None], 1 + permutations, axis=1)
    for number in np.unique(fold_of_group):
        members = np.flatnonzero(fold_of_group == number)
        permuted[members, 1:] = rng.permuted(permuted[members, 1:], axis=0)
    return permuted


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


def auc_of_ranks(ranks: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """Return the AUC of each feature for each labelling.

    Args:
        ranks: The ranks of the features, `(n, k)`.
        of_class: Whether each unit is of the class, bool `(n, p)`.

    Returns:
        The AUCs, `(p, k)`.
    """
    m = of_class.sum(axis=0)[:, None].astype(float)
    return (of_class.T.astype(float) @ ranks - m * (m + 1) / 2) / (m * (len(ranks) - m))


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
