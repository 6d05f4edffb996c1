"""Bootstrap resamples of patients, metrics of all resamples at once, and cross-fitting by fold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.prediction_table import has_label_and_prediction

__all__ = [
    "LARGEST_DRAWN",
    "average_precision",
    "calibration_gaps",
    "cross_fit_folds",
    "equal_mass_bins",
    "precision_at",
    "resample_by_score",
    "resample_patients",
    "roc_auc",
    "roc_auc_within",
    "sensitivity_at",
    "stratify_patients",
]

# units up to which each has a weight in each resample: 2,000 resamples of them take 80 MB, and a metric about a second
LARGEST_DRAWN = 20_000
SCORES_PER_KIND = 1000  # of positives and of negatives, at which a resampled curve is exact
BINS = 10  # of the expected calibration error; the usual number, few enough for small test sets


def resample_patients(patients: pd.Series, labels: pd.Series, *, n_resamples: int, seed: int) -> np.ndarray:
    """Resample patients with replacement, class by class, and return how often each unit is in each resample.

    All units of a patient are resampled together. Patients with the same labels form a stratum, so that each resample
    has as many patients of each class as the data.

    Args:
        patients: The patient of each unit, `(n,)`.
        labels: The true class of each unit, `(n,)`.
        n_resamples: Number of bootstrap resamples.
        seed: Seed of the random numbers.

    Returns:
        Counts, uint16 `(n_resamples, n)`.
    """
    codes, strata = stratify_patients(patients, labels)
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(strata)), dtype=np.uint16)
    for stratum in range(int(strata.max()) + 1):
        members = np.flatnonzero(strata == stratum)
        # the counts of a sample of size m with replacement from m patients are multinomial with m trials
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_resamples)
    return counts[:, codes]


def stratify_patients(patients: pd.Series, labels: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each unit's patient, `(n,)`, and the number of each patient's stratum, `(patients,)`.

    Patients with the same labels form a stratum. Both are numbered in alphabetical order.
    """
    codes, names = pd.factorize(np.asarray(patients, dtype=object), sort=True)
    label_codes, label_names = pd.factorize(np.asarray(labels, dtype=object), sort=True)
    pairs = pd.DataFrame({"patient": codes, "label": label_codes}).drop_duplicates().sort_values(["patient", "label"])
    stratum = np.asarray(label_names, dtype=object)[pairs.drop_duplicates("patient")["label"]]
    several: dict[int, list[str]] = {}
    for patient, label in pairs[pairs["patient"].duplicated(keep=False)].to_numpy().tolist():
        several.setdefault(patient, []).append(str(label_names[label]))
    for patient, its_labels in several.items():
        stratum[patient] = "\0".join(its_labels)
    return codes, pd.factorize(stratum, sort=True)[0]


def resample_by_score(
    scores: np.ndarray, of_class: np.ndarray, patients: pd.Series, labels: pd.Series, *, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resample many units as `resample_patients` does, and count those of equal class and nearly equal score together.

    A curve of thousands of units does not need the order of all of them. The scores of a thousand positives and of a
    thousand negatives, equally spaced among their kind, are kept, and units between two of them are taken as tied. The
    counts of such groups in a resample are multinomial, so that no unit needs a weight of its own; if patients have
    several units, patients are drawn one resample at a time.

    Args:
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.
        patients: The patient of each unit, `(n,)`.
        labels: The true class of each unit, `(n,)`.
        n_resamples: Number of bootstrap resamples.
        seed: Seed of the random numbers.

    Returns:
        The groups: a number that orders them as their scores are ordered, `(groups,)`, whether they are of the class,
        bool `(groups,)`, and the number of their units in each resample, `(n_resamples, groups)`.
    """
    steps = np.linspace(0, 1, SCORES_PER_KIND)
    kinds = [scores[kind] for kind in (of_class, ~of_class) if kind.any()]
    kept = np.unique(np.concatenate([np.quantile(kind, steps, method="inverted_cdf") for kind in kinds]))
    places = np.searchsorted(kept, scores)  # of the first kept score that is not below
    at_kept = kept[np.minimum(places, len(kept) - 1)] == scores
    groups, members = np.unique(2 * (2 * places + at_kept) + of_class, return_inverse=True)
    codes, strata = stratify_patients(patients, labels)
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(groups)))
    of_stratum = [np.flatnonzero(strata == stratum) for stratum in range(int(strata.max()) + 1)]
    if len(strata) == len(codes):
        for stratum in range(len(of_stratum)):
            sizes = np.bincount(members[strata[codes] == stratum], minlength=len(groups))
            counts += rng.multinomial(sizes.sum(), sizes / sizes.sum(), size=n_resamples)
        return groups // 2, groups % 2 == 1, counts
    drawn = np.zeros(len(strata))
    for resample in counts:
        for patients_of in of_stratum:
            drawn[patients_of] = np.bincount(
                rng.integers(len(patients_of), size=len(patients_of)), minlength=len(patients_of)
            )
        resample += np.bincount(members, drawn[codes], minlength=len(groups))
    return groups // 2, groups % 2 == 1, counts


def _cumulative_counts(scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of true and of false positives at each distinct score, highest first, `(d, t)` each."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last unit of each tie
    sorted_weights = weights[:, order]
    true = np.cumsum(sorted_weights * of_class[order], axis=1)[:, ends]
    return true, np.cumsum(sorted_weights, axis=1)[:, ends] - true


def roc_auc(scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the area under the ROC curve of each resample; ties count half.

    Args:
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.
        weights: How often each unit is in each resample, `(d, n)`.

    Returns:
        The areas, `(d,)`; NaN for a resample with positives or negatives only.
    """
    true, false = _cumulative_counts(scores, of_class, weights)
    true, false = np.pad(true, ((0, 0), (1, 0))), np.pad(false, ((0, 0), (1, 0)))  # the curve starts at (0, 0)
    # trapezoidal rule: a tie is a straight line between its ends, so that a tied pair counts half
    area = (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return area / (true[:, -1] * false[:, -1])


def roc_auc_within(scores: np.ndarray, of_class: np.ndarray, strata: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the fraction of the pairs within strata, such as folds, that are in order; ties count half.

    Args:
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.
        strata: The stratum of each unit, `(n,)`.
        weights: How often each unit is in each resample, `(d, n)`.

    Returns:
        The areas, `(d,)`; NaN for a resample without a stratum of both kinds.
    """
    ordered, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for stratum in np.unique(strata):
        units = strata == stratum
        within, positives = weights[:, units], of_class[units]
        if not 0 < positives.sum() < len(positives):
            continue
        counts = within[:, positives].sum(axis=1) * within[:, ~positives].sum(axis=1)
        ordered += counts * np.nan_to_num(roc_auc(scores[units], positives, within))  # NaN where there is no pair
        pairs += counts
    return np.divide(ordered, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def average_precision(scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the average precision of each resample: precision summed over steps of recall, not interpolated.

    Args:
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.
        weights: How often each unit is in each resample, `(d, n)`.

    Returns:
        The average precisions, `(d,)`; NaN for a resample without the class.
    """
    true, false = _cumulative_counts(scores, of_class, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(true / (true + false))  # 0 / 0 before the first resampled unit, where recall is 0
        return (np.diff(np.pad(true, ((0, 0), (1, 0))), axis=1) * precision).sum(axis=1) / true[:, -1]


def sensitivity_at(grid: np.ndarray, scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the sensitivity of each ROC curve at given false positive rates, interpolated linearly.

    Args:
        grid: False positive rates, 0 to 1, `(g,)`.
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.
        weights: How often each unit is in each resample, `(d, n)`.

    Returns:
        Sensitivities, `(d, g)`.
    """
    true, false = _cumulative_counts(scores, of_class, weights)
    curves = []
    for true_counts, false_counts in zip(true, false, strict=True):
        false_rates = np.append(0, false_counts / false_counts[-1])
        true_rates = np.append(0, true_counts / true_counts[-1])
        last = np.append(np.diff(false_rates) > 0, True)  # of several sensitivities at one rate, the highest
        curves.append(np.interp(grid, false_rates[last], true_rates[last]))
    return np.array(curves)


def precision_at(grid: np.ndarray, scores: np.ndarray, of_class: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute the precision at given sensitivities: that of the highest threshold which reaches each of them.

    Args:
        grid: Sensitivities, 0 to 1, `(g,)`.
        scores: Scores of the class, `(n,)`.
        of_class: Whether each unit is of the class, bool `(n,)`.
        weights: How often each unit is in each resample, `(d, n)`.

    Returns:
        Precisions, `(d, g)`.
    """
    true, false = _cumulative_counts(scores, of_class, weights)
    curves = []
    for true_counts, false_counts in zip(true, false, strict=True):
        resampled = true_counts + false_counts > 0
        true_counts, false_counts = true_counts[resampled], false_counts[resampled]
        # 1e-12: a float's rounding
        reached = np.searchsorted(true_counts / true_counts[-1], grid - 1e-12, side="left")
        precision = true_counts / (true_counts + false_counts)
        curves.append(precision[np.minimum(reached, len(precision) - 1)])
    return np.array(curves)


def equal_mass_bins(p: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Assign probabilities to bins of equal counts.

    The edges are scikit-learn's, `calibration_curve(..., strategy="quantile")`. Equal probabilities are in the same
    bin, so that the counts may differ.

    Args:
        p: Probabilities, `(n,)`.
        bins: Number of bins, 1 or more.

    Returns:
        The bin of each probability, numbered from 0, `(n,)`; empty bins have no number.
    """
    edges = np.percentile(p, np.linspace(0, 100, bins + 1))
    return np.unique(np.searchsorted(edges[1:-1], p), return_inverse=True)[1]


def calibration_gaps(p: np.ndarray, outcome: np.ndarray, weights: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Compute the calibration gap of each bin: mean probability minus observed frequency, times the bin's fraction.

    The bins are those of the data in every resample.

    Args:
        p: Probabilities, `(n,)`.
        outcome: Whether each predicted event occurred, 0 or 1, `(n,)`.
        weights: How often each unit is in each resample, `(d, n)`.
        bins: Number of bins of equal counts.

    Returns:
        Gaps, `(d, bins)`. The sum of the absolute values is the expected calibration error (ECE; Nguyen and O'Connor,
        EMNLP 2015).
    """
    number = equal_mass_bins(p, bins)
    gaps = np.zeros((len(p), int(number.max()) + 1))
    # (mean p - mean outcome) n_bin / n is the sum of p - outcome over the bin, divided by n
    gaps[np.arange(len(p)), number] = p - outcome
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ gaps / weights.sum(axis=1, keepdims=True)


def cross_fit_folds(
    evaluated: pd.DataFrame, fitted_on: pd.DataFrame | None = None
) -> Iterator[tuple[Any, pd.DataFrame, pd.DataFrame]]:
    """Yield rows to fit on and rows to evaluate, without a patient in both.

    Args:
        evaluated: What `read_predictions` returned.
        fitted_on: Predictions of other patients, such as an inner validation set; None to fit for each fold of
            `evaluated` on its other folds.

    Yields:
        The fold ("" if `fitted_on` was given), the labelled rows to fit on, and the rows to evaluate.

    Raises:
        UsageError: There is one fold only, and no `fitted_on`.
        DataError: The tables have a patient in common, or the rows to fit on are of one class.
    """
    if fitted_on is not None:
        named = (set(table.loc[table["patient_known"], "patient"]) for table in (evaluated, fitted_on))
        if common := sorted(set.intersection(*named)):
            raise DataError(
                f"{len(common)} patients are in both tables, such as {common[0]}.",
                hint="Fit on predictions of patients that are not evaluated.",
            )
        yield "", _require_two_classes(fitted_on, "the rows to fit on"), evaluated
        return
    folds = sorted(evaluated["fold"].unique())
    if len(folds) < 2:
        raise UsageError(
            f"All rows are of fold {folds[0]}: there is no other fold to fit on.",
            hint="Give out-of-fold predictions (cross_validate), or fitted_on=, predictions of other patients.",
        )
    for fold in folds:
        in_fold = evaluated["fold"] == fold
        # a patient with images in several folds is left out of the rows to fit on
        others = evaluated[~in_fold & ~evaluated["patient"].isin(evaluated.loc[in_fold, "patient"])]
        yield fold, _require_two_classes(others, f"the folds other than {fold}"), evaluated[in_fold]


def _require_two_classes(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows with a label and a prediction; raise unless they are of two classes or more."""
    rows = table[has_label_and_prediction(table)]
    if rows["label"].nunique() < 2:
        classes = ", ".join(rows["label"].unique()) or "none"
        raise DataError(
            f"{name.capitalize()} have one class only: {classes}.", hint="Give labelled rows of each class."
        )
    return rows
