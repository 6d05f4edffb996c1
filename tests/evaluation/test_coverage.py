"""Coverage of 95% intervals, for true values from 0.5 to 0.99 with 40 and with 400 patients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from covid_fastai.evaluation.bootstrap import roc_auc
from covid_fastai.evaluation.intervals import auc_interval, delong, newcombe_auc, percentile_interval, wilson

TRUTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
Z = float(norm.ppf(0.975))


def cover_proportion(truth: float, patients: int, *, simulations: int, seed: int = 0) -> float:
    counts = np.random.default_rng(seed).binomial(patients, truth, simulations)
    bounds = [wilson(count / patients, patients) for count in counts]
    return float(np.mean([low <= truth <= high for low, high in bounds]))


def cover_auc(
    truth: float, patients: int, *, simulations: int, seed: int = 0, resamples: int = 300
) -> dict[str, float]:
    """Half of the patients are of the class, and their scores are normal, so that the true area is known."""
    rng = np.random.default_rng(seed)
    half = patients // 2
    of_class = np.repeat([True, False], half)
    distance = norm.ppf(truth) * np.sqrt(2)
    covered: dict[str, list[bool]] = {"log odds": [], "DeLong": [], "Newcombe": []} | (
        {"bootstrap": []} if resamples else {}
    )
    for _ in range(simulations):
        scores = rng.normal(size=patients) + distance * of_class
        low, high, _ = auc_interval(scores, of_class)
        covered["log odds"].append(low <= truth <= high)
        areas, covariance = delong(scores, of_class)
        covered["DeLong"].append(abs(areas[0] - truth) <= Z * np.sqrt(covariance[0, 0]))
        low, high = newcombe_auc(float(areas[0]), half, half)
        covered["Newcombe"].append(low <= truth <= high)
        if resamples:
            sides = [rng.multinomial(half, np.full(half, 1 / half), size=resamples) for _ in range(2)]
            low, high = percentile_interval(roc_auc(scores, of_class, np.hstack(sides).astype(float)))
            covered["bootstrap"].append(low <= truth <= high)
    return {name: float(np.mean(flags)) for name, flags in covered.items()}


@pytest.mark.parametrize("patients", [40, 400])
def test_wilsons_interval_covers_a_proportion(patients):
    """Coverage varies with the true proportion, since counts are discrete; its mean over proportions is the level."""
    covered = [cover_proportion(truth, patients, simulations=2000) for truth in np.linspace(0.5, 0.99, 50)]
    assert 0.935 <= np.mean(covered) <= 0.97 and min(covered) > 0.87


@pytest.mark.slow
@pytest.mark.parametrize("patients", [40, 400])
def test_the_interval_of_an_auc_covers_it(patients):
    """`evaluate` uses DeLong's interval on log odds."""
    covered = [cover_auc(truth, patients, simulations=300, resamples=0)["log odds"] for truth in TRUTHS]
    assert 0.93 <= np.mean(covered) <= 0.975 and min(covered) > 0.9


@pytest.mark.slow
def test_other_intervals_of_an_auc_are_too_short_near_one():
    covered = cover_auc(0.99, 40, simulations=300, resamples=200)
    assert covered["DeLong"] < 0.9 and covered["bootstrap"] < 0.9 < covered["log odds"]
