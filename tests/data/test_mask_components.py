"""Connected components against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from covid_fastai.data.mask_components import fill_holes, label_components, largest_component


def masks():
    rng = np.random.default_rng(0)
    for number in range(60):
        shape = rng.integers(1, 40, 2)
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), number % 4 / 2)
        yield smooth > 0.1 * rng.normal()


def test_components_are_those_of_scipy():
    for mask in masks():
        labels, sizes = label_components(mask)
        expected, n = ndimage.label(mask)
        assert len(sizes) == n + 1 and sizes.tolist() == np.bincount(labels.ravel(), minlength=n + 1).tolist()
        assert len(set(zip(labels.ravel(), expected.ravel(), strict=True))) == len(np.unique(expected))  # one to one


def test_holes_are_those_of_scipy():
    for mask in masks():
        assert (fill_holes(mask) == ndimage.binary_fill_holes(mask)).all()


def test_the_largest_component_remains():
    for mask in masks():
        labels, n = ndimage.label(mask)
        largest = largest_component(mask)
        sizes = ndimage.sum_labels(mask, labels, np.arange(1, n + 1)) if n else np.zeros(1)
        assert largest.sum() == sizes.max() and not (largest & ~mask).any()


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks(value):
    mask = np.full((5, 7), value)
    assert (largest_component(mask) == mask).all() and (fill_holes(mask) == mask).all()
