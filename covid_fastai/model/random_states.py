"""The random generators that a training uses: Python's, NumPy's, torch's on each device, and the loaders'."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner
from fastai.torch_core import no_random

__all__ = ["read_random_states", "restore_random_states", "seeded"]


def read_random_states(learn: Learner) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the states as values that JSON can hold, and as tensors; both by the generator's name."""
    facts, tensors = {}, {}
    for name, generator in _python_generators(learn).items():
        version, numbers, gauss = generator.getstate()
        facts[name], tensors[name] = [version, gauss], torch.tensor(numbers, dtype=torch.int64)
    kind, numbers, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - fastai uses NumPy's global generator
    facts["numpy"], tensors["numpy"] = [kind, *rest], torch.from_numpy(np.asarray(numbers).astype(np.int64))
    tensors["torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    return facts, tensors


def restore_random_states(learn: Learner, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore what `read_random_states` returned; states of devices that this machine lacks are left out."""
    for name, generator in _python_generators(learn).items():
        version, gauss = facts[name]
        generator.setstate((version, tuple(tensors[name].tolist()), gauss))
    kind, *rest = facts["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))  # noqa: NPY002 - see above
    torch.set_rng_state(tensors["torch"])
    cuda = sorted(key for key in tensors if key.startswith("cuda"))
    for index, key in enumerate(cuda[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(tensors[key], index)
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])  # guard: mps_random


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all global generators during a `with` block, and restore their states; fastai forgets that of MPS."""
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with no_random(seed, reproducible=False):
            yield
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)


def _python_generators(learn: Learner) -> dict[str, Any]:
    return {"python": random, **{f"loader{i}": loader.rng for i, loader in enumerate(learn.dls.loaders)}}
