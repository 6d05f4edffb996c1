"""Random-effects pooling, against statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t
from statsmodels.stats.meta_analysis import combine_effects

from covid_fastai.evaluation.pooling import pool_aucs, pool_random_effects

ESTIMATES, VARIANCES = [0.9, 1.6, 0.4, 1.2, 2.1], [0.04, 0.09, 0.02, 0.05, 0.2]


@pytest.mark.filterwarnings("ignore:`use_t=True` requires")  # for the single studies, which are not compared
def test_the_pooled_mean_equals_that_of_statsmodels():
    pooled = pool_random_effects(ESTIMATES, VARIANCES)
    expected = combine_effects(np.array(ESTIMATES), np.array(VARIANCES), method_re="iterated", use_t=True)
    frame = expected.summary_frame()
    assert pooled.value == pytest.approx(expected.mean_effect_re, abs=1e-4)
    assert pooled.tau**2 == pytest.approx(expected.tau2, rel=1e-3)
    interval = frame.loc["random effect wls", ["ci_low", "ci_upp"]]  # Hartung and Knapp
    assert (pooled.low, pooled.high) == pytest.approx(tuple(interval), abs=1e-3)
    standard_error = (pooled.high - pooled.value) / t.ppf(0.975, 4)
    reach = t.ppf(0.975, 3) * math.hypot(pooled.tau, standard_error)
    assert pooled.predicted_high - pooled.value == pytest.approx(reach)


def test_equal_estimates_keep_the_width_of_the_fixed_effect():
    """Hartung and Knapp's interval alone would be 1.0 to 1.0."""
    pooled = pool_random_effects([1.0, 1.0, 1.0], [0.03, 0.03, 0.03])
    assert pooled.tau == 0 and pooled.high - 1 == pytest.approx(t.ppf(0.975, 2) * 0.1)


def test_two_data_sets_predict_nothing():
    pooled = pool_aucs([0.8, 0.9], [0.7, 0.8], [0.87, 0.95])
    assert 0.8 < pooled.value < 0.9 and math.isnan(pooled.predicted_low) and 0 < pooled.low < pooled.high < 1


def test_a_perfect_area_can_be_pooled():
    pooled = pool_aucs([1.0, 0.9, 0.95], [0.8, 0.8, 0.85], [1.0, 0.96, 0.99])
    assert 0.85 < pooled.value < 1


@pytest.mark.parametrize(
    "area",
    [(1.0, 0.9996, 1.0), (0.9997, 0.9992, 0.9999), (0.0, 0.0, 4e-32), (5e-324, 0.0, 1e-9), (1.0, 1.0, 1.0), (0.3,) * 3],
)
def test_an_interval_close_to_an_end_or_without_a_width_can_be_pooled(area):
    values, lows, highs = zip(area, (0.9, 0.8, 0.96), (0.7, 0.6, 0.78), strict=True)
    pooled = pool_aucs(values, lows, highs)
    assert 0 <= pooled.low <= pooled.value <= pooled.high <= 1
    assert min(values) < pooled.value < max(values)


def test_a_narrow_interval_close_to_one_outweighs_a_wide_one():
    narrow, wide = (pool_aucs([1.0, 0.9996], [low, 0.999], [1.0, 0.9999]) for low in (0.9996, 0.9))
    assert narrow.value > wide.value
