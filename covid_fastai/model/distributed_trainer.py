"""fastai's distributed trainer, extended to CPUs; importing it needs the extra `distributed`."""

from __future__ import annotations

import torch
from fastai.distributed import DistributedDL, DistributedTrainer
from torch import distributed

__all__ = ["CPUDistributedTrainer"]


class _CPUDistributedDL(DistributedDL):
    """fastai's `DistributedDL`, on CPUs too, with the random generator of the loader, which checkpoints save."""

    @property
    def rng(self):
        """The random generator of the wrapped loader."""
        return self.dl.rng

    def _broadcast(self, t: list[int], rank: int) -> list[int]:
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"  # fastai's method requires CUDA
        indices = torch.tensor(t, dtype=torch.int64, device=device)
        distributed.broadcast(indices, rank)
        return indices.tolist()


class CPUDistributedTrainer(DistributedTrainer):
    """fastai's `DistributedTrainer`, with loaders that also work on CPUs."""

    def _wrap_dl(self, dl):
        return dl if isinstance(dl, DistributedDL) else _CPUDistributedDL(dl, device=self.learn.model.device)
