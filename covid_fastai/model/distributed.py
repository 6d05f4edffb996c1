"""Distributed training: each process trains on a part of every epoch's images, and the main process writes.

`accelerate launch -m covid_fastai train ...` or `torchrun` starts the processes (extra `distributed`). Tested with two
processes on a CPU (gloo); not tested on several GPUs or machines.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from fastai.learner import Learner
from fastai.torch_core import get_model, num_distrib, rank_distrib
from torch import distributed

from covid_fastai.errors import ResourceError, UnavailableError, UsageError

__all__ = [
    "batch_per_process",
    "broadcast_text",
    "check_same_everywhere",
    "data_parallel",
    "is_main_process",
    "join_processes",
    "main_process_first",
]

TIMEOUT = timedelta(minutes=60)  # of the wait for the main process, which reads the data; a dead process shows at once


def is_main_process() -> bool:
    """Return whether this process is the only one or the first of several, which alone writes files."""
    return rank_distrib() == 0


@contextmanager
def join_processes(device: str = "auto") -> Iterator[int]:
    """Join the process group of this training during a `with` block.

    Args:
        device: `"cpu"` for gloo; otherwise each process of a machine uses its own GPU, if there are any.

    Yields:
        The number of processes; 1 if the training is not distributed.

    Raises:
        UnavailableError: accelerate is not installed, or there are fewer GPUs than processes on this machine.
        ResourceError: Another process has ended.
    """
    if num_distrib() < 2 or distributed.is_initialized():
        yield max(1, num_distrib())
        return
    try:
        import accelerate  # noqa: F401 - fastai's distributed trainer needs it
    except ImportError as error:
        hint = "pip install 'covid_fastai[distributed]'"
        raise UnavailableError("Distributed training needs accelerate, which is not installed.", hint=hint) from error
    on_gpu = device != "cpu" and torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true"
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise UnavailableError(
                f"This machine has {torch.cuda.device_count()} GPUs and more processes than that.",
                hint="Start one process per GPU.",
            )
        torch.cuda.set_device(local)
    world = num_distrib()
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield world
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise ResourceError(
            f"Another process of this training has ended: {str(error).splitlines()[0][:200]}",
            hint="Read its error message, then start all processes again with --resume.",
        ) from error
    finally:
        os.environ["WORLD_SIZE"] = str(world)
        distributed.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Return whether an error comes from the process group; gloo's errors are plain `RuntimeError`s."""
    words = ("gloo", "connection closed by peer", "connection reset", "nccl", "broken pipe")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


def broadcast_text(text: str) -> str:
    """Return the main process's text in every process; it is sent as bytes, not as a pickle."""
    if num_distrib() < 2:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
    size = torch.tensor([len(content)], device=_device())
    distributed.broadcast(size, 0)
    if not is_main_process():
        content = torch.zeros(int(size), dtype=torch.uint8, device=_device())
    distributed.broadcast(content, 0)
    return bytes(content.tolist()).decode()


def check_same_everywhere(name: str, value: object) -> None:
    """Wait for all processes, and check that they have the same value.

    Args:
        name: The name of the value, for the message.
        value: An object whose `repr` identifies it.

    Raises:
        UsageError: This process has another value than the main process.
    """
    if num_distrib() < 2:
        return
    digest = hashlib.sha256(repr(value).encode()).hexdigest()
    if broadcast_text(digest) != digest:
        raise UsageError(
            f"{name} of this process ({rank_distrib()}) differs from that of the main process.",
            hint="Start all processes with the same command, on the same files.",
        )


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run a `with` block in the main process before the others, which then find the images in the cache.

    If the main process fails, the others end with a `ResourceError`.
    """
    if not is_main_process():
        broadcast_text("")
    yield
    if is_main_process():
        broadcast_text("done")


def batch_per_process(batch_size: int) -> int:
    """Return the batch size of each process.

    Raises:
        UsageError: It is below two; BatchNorm cannot normalise a batch of one image.
    """
    per_process = batch_size // max(1, num_distrib())
    if per_process < 2:
        raise UsageError(
            f"batch_size={batch_size} is too small for {num_distrib()} processes.",
            hint="Use at least two images per process.",
        )
    return per_process


@contextmanager
def data_parallel(learn: Learner) -> Iterator[None]:
    """Train a learner together with the other processes during a `with` block; a single process trains as usual.

    Gradients are averaged over the processes in every step. On GPUs BatchNorm uses the statistics of the whole batch
    (SyncBatchNorm); on CPUs, where torch has no such layer, those of the process's part.
    """
    if num_distrib() < 2:
        yield
        return
    from covid_fastai.model.distributed_trainer import CPUDistributedTrainer  # needs accelerate, which is an extra

    trainer = CPUDistributedTrainer(sync_bn=_device().type == "cuda", cpu=_device().type == "cpu")
    learn.add_cb(trainer)
    try:
        yield
    finally:  # also after an error: fastai would leave the model wrapped
        learn.remove_cb(trainer)
        learn.model = get_model(learn.model)
        os.environ["WORLD_SIZE"] = "1"  # only the main process goes on, and fastai would wait for the others


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
