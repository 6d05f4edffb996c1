"""How often 95% intervals hold the truth, over true figures from 0.5 to 0.99, at 40 and at 400 patients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from covid_fastai.evaluation.bootstrap import roc_auc
from covid_fastai.evaluation.intervals import auc_interval, delong, newcombe_auc, percentile_interval, wilson

TRUTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
Z = float(norm.ppf(0.975))


def cover_proportion(truth: float, patients: int, *, draws: int, seed: int = 0) -> float:
    hits = np.random.default_rng(seed).binomial(patients, truth, draws)
    bounds = [wilson(count / patients, patients) for count in hits]
    return float(np.mean([low <= truth <= high for low, high in bounds]))


def cover_auc(truth: float, patients: int, *, draws: int, seed: int = 0, resamples: int = 300) -> dict[str, float]:
    """Half of the patients are of the class; scores are normal, so that the true area is known."""
    rng = np.random.default_rng(seed)
    half = patients // 2
    of_class = np.repeat([True, False], half)
    distance = norm.ppf(truth) * np.sqrt(2)
    held: dict[str, list[bool]] = {"log odds": [], "DeLong": [], "Newcombe": []} | (
        {"bootstrap": []} if resamples else {}
    )
    for _ in range(draws):
        scores = rng.normal(size=patients) + distance * of_class
        low, high, _ = auc_interval(scores, of_class)
        held["log odds"].append(low <= truth <= high)
        areas, covariance = delong(scores, of_class)
        held["DeLong"].append(abs(areas[0] - truth) <= Z * np.sqrt(covariance[0, 0]))
        low, high = newcombe_auc(float(areas[0]), half, half)
        held["Newcombe"].append(low <= truth <= high)
        if resamples:
            sides = [rng.multinomial(half, np.full(half, 1 / half), size=resamples) for _ in range(2)]
            low, high = percentile_interval(roc_auc(scores, of_class, np.hstack(sides).astype(float)))
            held["bootstrap"].append(low <= truth <= high)
    return {name: float(np.mean(found)) for name, found in held.items()}


@pytest.mark.parametrize("patients", [40, 400])
def test_wilsons_interval_holds_a_proportion(patients):
    """A single true share may fall between two counts; on the average over shares the level is kept."""
    held = [cover_proportion(truth, patients, draws=2000) for truth in np.linspace(0.5, 0.99, 50)]
    assert 0.935 <= np.mean(held) <= 0.97 and min(held) > 0.87


@pytest.mark.slow
@pytest.mark.parametrize("patients", [40, 400])
def test_the_interval_of_an_auc_holds_it(patients):
    """DeLong's on log odds is what `evaluate` gives."""
    held = [cover_auc(truth, patients, draws=300, resamples=0)["log odds"] for truth in TRUTHS]
    assert 0.93 <= np.mean(held) <= 0.975 and min(held) > 0.9


@pytest.mark.slow
def test_what_evaluate_does_not_use_for_an_auc_is_too_short_near_one():
    held = cover_auc(0.99, 40, draws=300, resamples=200)
    assert held["DeLong"] < 0.9 and held["bootstrap"] < 0.9 < held["log odds"]
