"""Correlations between metrics over bootstrap resamples, for any number of units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from covid_fastai.evaluation.bootstrap import LARGEST_DRAWN, resample_patients, stratify_patients
from covid_fastai.evaluation.influence import gap_influence
from covid_fastai.evaluation.weighted_metrics import WeightedMetric, compute_in_blocks

__all__ = ["Resamples", "correlate"]


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap resamples of patients, which are drawn only if a metric needs them.

    Up to 20,000 units, metrics are computed in each resample. A weight for each of a million units in 2,000 resamples
    would take 4 GB and minutes. With more units, variances and covariances of metrics are therefore those of their
    influence values, the infinitesimal jackknife (Efron, The Jackknife, the Bootstrap and Other Resampling Plans, SIAM
    1982, chapter 6), to which those of resamples converge; the seed and the number of resamples then have no effect on
    them.

    Attributes:
        patients: The patient of each unit, `(n,)`.
        labels: The true class of each unit, `(n,)`.
        n_resamples: Number of bootstrap resamples.
        seed: Seed of the random numbers.
    """

    patients: pd.Series
    labels: pd.Series
    n_resamples: int
    seed: int
    _computed: dict[WeightedMetric, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def are_drawn(self) -> bool:
        """Whether the units are few enough to give each of them a weight in each resample."""
        return len(self.patients) <= LARGEST_DRAWN

    @cached_property
    def weights(self) -> np.ndarray:
        """How often each unit is in each resample, `(n_resamples, n)`."""
        return resample_patients(self.patients, self.labels, n_resamples=self.n_resamples, seed=self.seed)

    @cached_property
    def _patients_and_strata(self) -> tuple[np.ndarray, np.ndarray]:
        return stratify_patients(self.patients, self.labels)

    def compute(self, metric: WeightedMetric) -> np.ndarray:
        """Compute a metric in each resample, `(n_resamples,)`."""
        if metric not in self._computed:
            self._computed[metric] = compute_in_blocks(metric.compute, self.weights)
        return self._computed[metric]

    def correlate(self, metrics: Sequence[WeightedMetric]) -> np.ndarray:
        """Return the correlations of finite metrics over the resamples, `(k, k)`; 0 where a metric does not vary.

        Calibration errors can be correlated with each other only.
        """
        if self.are_drawn:
            return correlate([self.compute(metric) for metric in metrics])
        if all(metric.gap_terms is not None for metric in metrics):
            return correlate([np.abs(gaps).sum(axis=1) for gaps in self.resample_gaps(metrics)])
        influences = [metric.influence() for metric in metrics if metric.influence is not None]
        return correlate(self._sum_by_patient(np.stack(influences, axis=1)).T)

    def resample_gaps(self, metrics: Sequence[WeightedMetric]) -> list[np.ndarray]:
        """Return the gaps of the bins of calibration errors in each resample, `(n_resamples, bins)` for each metric.

        With more than 20,000 units they are drawn from the normal distribution that they approach.
        """
        if self.are_drawn:
            return [compute_in_blocks(metric.gaps, self.weights) for metric in metrics if metric.gaps is not None]
        terms = [metric.gap_terms for metric in metrics if metric.gap_terms is not None]
        means = [np.bincount(*each) / len(self.patients) for each in terms]
        sums = self._sum_by_patient(np.concatenate([gap_influence(*each) for each in terms], axis=1))
        rng = np.random.default_rng(self.seed)
        drawn = rng.multivariate_normal(np.concatenate(means), sums.T @ sums, size=self.n_resamples)
        return np.split(drawn, np.cumsum([len(mean) for mean in means])[:-1], axis=1)

    def _sum_by_patient(self, influences: np.ndarray) -> np.ndarray:
        """Return the sum over the units of each patient, less the mean of the patient's stratum, `(patients, k)`."""
        codes, strata = self._patients_and_strata
        sizes = np.bincount(strata)
        columns = []
        for values in influences.T:
            sums = np.bincount(codes, values)
            columns.append(sums - (np.bincount(strata, sums) / sizes)[strata])
        return np.stack(columns, axis=1)


def correlate(samples: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the correlations of metrics over resamples, `(k, k)`; 0 where a metric does not vary.

    Args:
        samples: The metrics, `(k, d)`; resamples in which one of them is not finite are left out.
    """
    table = np.stack(list(samples))
    table = table[:, np.isfinite(table).all(axis=0)]
    if table.shape[1] < 2:
        return np.eye(len(samples))
    centred = table - table.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    # differences up to this are a float's rounding
    scale = np.where(norms > 1e-9, norms, np.inf)
    correlation = centred @ centred.T / scale[:, None] / scale
    np.fill_diagonal(correlation, 1.0)
    return correlation
