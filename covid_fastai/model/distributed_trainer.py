"""fastai's distributed trainer, which works on CPUs here too; to import it needs the extra `distributed`."""

from __future__ import annotations

import torch
from fastai.distributed import DistributedDL, DistributedTrainer
from torch import distributed

__all__ = ["SharingTrainer"]


class _Share(DistributedDL):
    """fastai's share of a loader, on CPUs too, with the loader's generator, which checkpoints hold."""

    @property
    def rng(self):
        """The loader's own generator."""
        return self.dl.rng

    def _broadcast(self, t: list[int], rank: int) -> list[int]:
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        shared = torch.tensor(t, dtype=torch.int64, device=device)
        distributed.broadcast(shared, rank)
        return shared.tolist()


class SharingTrainer(DistributedTrainer):
    """fastai's distributed trainer, with shares that work on CPUs."""

    def _wrap_dl(self, dl):
        return dl if isinstance(dl, DistributedDL) else _Share(dl, device=self.learn.model.device)
