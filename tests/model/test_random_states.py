"""Random states: those of every device are kept; a block with a seed of its own leaves them alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from covid_fastai.model.random_states import read_random_states, restore_random_states, seeded


@pytest.fixture
def learn(tmp_path):
    loaders = DataLoaders(DataLoader([1, 2], bs=1), DataLoader([3], bs=1), path=tmp_path)
    return Learner(loaders, nn.Linear(1, 1), loss_func=nn.MSELoss())


@pytest.fixture
def mps(monkeypatch):
    """An MPS device whose generator is a list with one number."""
    state = [torch.tensor([1, 2, 3], dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0].clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: state.__setitem__(0, new.clone()))
    return state


def draw(learn):
    numbers = random.random(), np.random.rand(), float(torch.rand(1))  # noqa: NPY002 - fastai uses the global generator
    return [*numbers, *(loader.rng.random() for loader in learn.dls.loaders)]


def test_every_generator_continues_from_its_state(learn, mps):
    states = read_random_states(learn)
    first = draw(learn)
    mps[0] = torch.tensor([9], dtype=torch.uint8)
    restore_random_states(learn, *states)
    assert draw(learn) == first and draw(learn) != first and mps[0].tolist() == [1, 2, 3]


def test_a_state_of_mps_is_of_no_use_elsewhere(learn, mps, monkeypatch):
    states = read_random_states(learn)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    mps[0] = torch.tensor([9], dtype=torch.uint8)
    restore_random_states(learn, *states)
    assert mps[0].tolist() == [9]


def test_a_block_with_a_seed_leaves_the_generators_alone(learn, mps):
    before = torch.get_rng_state()
    with seeded(4):
        first, mps[0] = torch.rand(3), torch.tensor([9], dtype=torch.uint8)
    with seeded(4):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before) and mps[0].tolist() == [1, 2, 3]
