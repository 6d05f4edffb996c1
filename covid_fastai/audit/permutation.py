"""The permutation test of a baseline: is it better than the same baseline on permuted labels?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import rankdata

__all__ = ["holm", "permute_labels"]

RIDGE = 1.0  # of the permutation test's regression, as a share of the features' own spread


def permute_labels(
    x: np.ndarray, rows: pd.DataFrame, classes: list[str], *, permutations: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Return the AUC of a ridge regression's out-of-fold scores by patient, and those with permuted labels.

    A ridge regression is linear in its labels: one matrix maps the labels of all patients to their out-of-fold scores,
    so that a thousand permutations cost one product of matrices.

    Args:
        x: Features, `(n, k)`.
        rows: A row an image, with `label`, `patient`, `fold` (-1 is only fitted on) and, where there is one, `group`.
        classes: All classes.
        permutations: How often the labels are permuted among the patients of a fold.
        rng: The generator of the permutations.

    Returns:
        The AUC of the true labels, and `(permutations,)` those of the permuted ones; with more than two classes the
        mean of each class against the others.
    """
    groups = rows["group"] if "group" in rows else rows["patient"]
    _, number = np.unique(groups.astype(str), return_inverse=True)
    codes = pd.Categorical(rows["label"], categories=classes).codes.astype(int)
    of_group = np.zeros(number.max() + 1, dtype=int)
    of_group[number] = codes  # a group of two classes counts with its last one
    fold = rows["fold"].to_numpy()
    weights = _hat_matrix(x, fold)
    judged = fold >= 0
    sizes = np.bincount(number[judged], minlength=len(of_group))
    held = sizes > 0
    mean = np.zeros((len(of_group), judged.sum()))
    mean[number[judged], np.arange(judged.sum())] = 1 / np.maximum(sizes[number[judged]], 1)
    weights = mean[held] @ weights[judged]  # (groups, n): from the labels of the images to the score of a group
    onto = np.zeros((len(rows), len(of_group)))
    onto[np.arange(len(rows)), number] = 1
    weights = (weights @ onto).round(12)  # (groups, all groups); features that never change leave no noise
    fold_of = np.zeros(len(of_group), dtype=int)
    fold_of[number] = fold
    dealt = np.repeat(of_group[:, None], 1 + permutations, axis=1)
    for one in np.unique(fold_of):  # within a fold, whose classes are as many as before
        own = np.flatnonzero(fold_of == one)
        dealt[own, 1:] = rng.permuted(dealt[own, 1:], axis=0)
    several = range(len(classes)) if len(classes) > 2 else [1]
    found = np.mean([_aucs(weights @ (dealt == k).astype(float), (dealt == k)[held]) for k in several], axis=0)
    return float(found[0]), found[1:]


def _hat_matrix(x: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return what makes out-of-fold ridge predictions of labels, `(n, n)`; rows that are not judged stay 0.

    The mean of the labels that were fitted on is not added: it would say of a fold what the fold itself is not.
    """
    hat = np.zeros((len(x), len(x)))
    for number in np.unique(fold[fold >= 0]):
        own, fit = fold == number, fold != number
        centre, spread = x[fit].mean(axis=0), x[fit].std(axis=0)
        spread[spread < 1e-12] = np.inf  # a feature that never changes says nothing
        a, b = (x[fit] - centre) / spread, (x[own] - centre) / spread
        n, k = a.shape
        if k <= n:
            part = b @ np.linalg.solve(a.T @ a + RIDGE * n / 10 * np.eye(k), a.T)
        else:
            part = b @ a.T @ np.linalg.inv(a @ a.T + RIDGE * n / 10 * np.eye(n))
        hat[np.ix_(own, fit)] = part - part.sum(axis=1, keepdims=True) / n  # of labels less their mean
    return hat


def _aucs(scores: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of each column, ties counting half."""
    ranks = rankdata(scores, axis=0)
    m = of_class.sum(axis=0)
    return ((ranks * of_class).sum(axis=0) - m * (m + 1) / 2) / (m * (len(scores) - m))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Correct p values for their number (Holm, Scandinavian Journal of Statistics 1979).

    Args:
        p: The p value of each hypothesis, by name.

    Returns:
        The corrected p values by name, at most 1 and in the same order of size.
    """
    corrected, largest = {}, 0.0
    for place, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, value * (len(p) - place)))
        corrected[name] = largest
    return corrected
