"""Where models say the same, who is right where they do not, and for which patients that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from covid_fastai.evidence.intervals import Z, wilson
from covid_fastai.evidence.prediction_table import PROBABILITY

__all__ = ["AGREEMENT_COLUMNS", "agreement_of", "cases_of", "kappa"]

AGREEMENT_COLUMNS = ["model", "share", "low", "high", "kappa", "kappa_low", "kappa_high", "n"]
AGREEMENT_COLUMNS += ["both_right", "only_reference", "only_model", "both_wrong", "mcnemar_p"]


def agreement_of(first: pd.DataFrame, second: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """Count where two models say the same, and who is right where they do not.

    Args:
        first: `Scores.table` of the reference.
        second: The same of the model, its patients in the same order.
        classes: All classes.

    Returns:
        A row of `Comparison.agreement`, without the model's name. `mcnemar_p` is the exact binomial probability, two
        sided, that patients for whom only one is right fall to them so unevenly (McNemar, Psychometrika 1947).
    """
    here, there = second["predicted"].to_numpy(), first["predicted"].to_numpy()
    right, right_there = here == first["label"].to_numpy(), there == first["label"].to_numpy()
    share, n = float((here == there).mean()), len(here)
    only_reference, only_model = int((right_there & ~right).sum()), int((right & ~right_there).sum())
    apart = only_reference + only_model
    p = float(binomtest(only_model, apart).pvalue) if apart else 1.0
    both = (int((right & right_there).sum()), only_reference, only_model, int((~right & ~right_there).sum()))
    row = (share, *wilson(share, n), *kappa(there, here, classes), n, *both, p)
    return dict(zip(AGREEMENT_COLUMNS[1:], row, strict=True))


def cases_of(units: dict[str, pd.DataFrame], classes: list[str], positive: str | None) -> pd.DataFrame:
    """List the patients for whom models say different classes, the strongest disagreement first.

    Args:
        units: `Scores.table` by model, their patients in the same order.
        classes: All classes.
        positive: The class whose probability is shown; None for that of each model's most probable class.

    Returns:
        `Comparison.cases`; its `gap` is the greatest total variation distance between two models' probabilities.
    """
    names, first = list(units), next(iter(units.values()))
    p = np.stack([part[[PROBABILITY + name for name in classes]].to_numpy() for part in units.values()])
    gaps = np.abs(p[:, None] - p[None]).sum(axis=-1).max(axis=(0, 1)) / 2  # total variation, the greatest of any two
    said = np.stack([part["predicted"].to_numpy() for part in units.values()])
    table = first[["patient", "label", "images"]].assign(gap=gaps)
    for number, name in enumerate(names):
        of = positive or "its class"
        column = classes.index(positive) if positive else None
        table[f"{name} says"] = said[number]
        table[f"{name} p({of})"] = p[number].max(axis=1) if column is None else p[number][:, column]
    parted = table[(said != said[0]).any(axis=0)]
    return parted.sort_values("gap", ascending=False, kind="stable").reset_index(drop=True)


def kappa(first: np.ndarray, second: np.ndarray, classes: Sequence[str]) -> tuple[float, float, float]:
    """Compute Cohen's kappa, agreement beyond chance, with its large-sample interval (Fleiss, Cohen, Everitt 1969).

    Args:
        first: What one model says, `(n,)`.
        second: What the other says, `(n,)`.
        classes: All classes.

    Returns:
        Kappa and the bounds of its 95% interval; NaN where both say one class only.
    """
    counts = pd.crosstab(pd.Categorical(first, classes), pd.Categorical(second, classes), dropna=False).to_numpy()
    n, p = counts.sum(), counts / counts.sum()
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if chance >= 1:
        return math.nan, math.nan, math.nan
    value = (observed - chance) / (1 - chance)
    pulls = rows[None, :] + columns[:, None]  # of a cell: how often its column's class is said first, its row's second
    agree = (np.diag(p) * (1 - np.diag(pulls) * (1 - value)) ** 2).sum()
    part = (1 - value) ** 2 * ((p - np.diag(np.diag(p))) * pulls**2).sum()
    variance = (agree + part - (value - chance * (1 - value)) ** 2) / ((1 - chance) ** 2 * n)
    half = Z * math.sqrt(max(float(variance), 0.0))
    return value, value - half, min(value + half, 1.0)
