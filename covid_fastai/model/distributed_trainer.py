"""fastai's distributed trainer, extended to CPUs; importing it needs the extra `distributed`."""

from __future__ import annotations

import math

import torch
from accelerate.utils import GradientAccumulationPlugin
from fastai.data.core import DataLoaders
from fastai.distributed import DistributedDL, DistributedTrainer
from torch import distributed

from covid_fastai.model.norms import restore_norms, synchronise_norms

__all__ = ["CPUDistributedTrainer"]


class _CPUDistributedDL(DistributedDL):
    """fastai's `DistributedDL`, on CPUs too, with the random generator of the loader, which checkpoints save."""

    @property
    def rng(self):
        """The random generator of the wrapped loader."""
        return self.dl.rng

    def __len__(self) -> int:
        """Return the number of batches of this process's share; fastai's number is higher if one is dropped."""
        share = math.ceil(self.dl.n / self.world_size)
        return share // self.bs if self.drop_last else math.ceil(share / self.bs)

    def _broadcast(self, t: list[int], rank: int) -> list[int]:
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"  # fastai's method requires CUDA
        indices = torch.tensor(t, dtype=torch.int64, device=device)
        distributed.broadcast(indices, rank)
        return indices.tolist()


class CPUDistributedTrainer(DistributedTrainer):
    """fastai's `DistributedTrainer`, with loaders that also work on CPUs, and BatchNorm restored after each fit.

    The number format is `precision`'s, and a step is that of one batch: accelerate would add `--mixed_precision`,
    `--gradient_accumulation_steps` and `--dynamo_backend` of `accelerate launch`.

    Args:
        synchronise_norms: Whether BatchNorm uses the statistics of the batches of all processes during a fit.
        **kwargs: As for accelerate's `Accelerator`.
    """

    def __init__(self, *, synchronise_norms: bool, **kwargs):
        # what is not given here, accelerate reads from the environment that `accelerate launch` has made
        # guard: one_step
        plain = {"gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1), "dynamo_backend": "no"}
        super().__init__(sync_bn=False, mixed_precision="no", **plain, **kwargs)  # guard: one_autocast
        self.synchronise_norms, self.norms = synchronise_norms, []

    def before_fit(self):
        """Wrap the model and the loaders."""
        if self.synchronise_norms:
            self.norms = synchronise_norms(self.model)
        super().before_fit()

    def after_fit(self):
        """Unwrap them."""
        super().after_fit()
        self.restore_norms()

    def restore_norms(self) -> None:
        """Put the BatchNorm layers back, which are also those of the saved model; nothing to do a second time."""
        restore_norms(self.norms)
        self.norms = []

    @staticmethod
    def restore_loaders(dls: DataLoaders) -> None:
        """Put the loaders of this process alone back; nothing to do where a fit has ended without an error."""
        dls.loaders = [loader.dl if isinstance(loader, DistributedDL) else loader for loader in dls.loaders]

    def _wrap_dl(self, dl):
        return dl if isinstance(dl, DistributedDL) else _CPUDistributedDL(dl, device=self.learn.model.device)
