"""One training on several processes: each has its share of every epoch's images, one of them writes.

`accelerate launch -m covid_fastai train ...` or `torchrun` starts the processes (extra `distributed`). Tested with two
of them on a CPU (gloo); on several GPUs or machines it has not been run.
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
    "agree",
    "batch_per_process",
    "broadcast_text",
    "data_parallel",
    "is_main_process",
    "join_processes",
    "main_process_first",
]

TIMEOUT = timedelta(minutes=60)  # others wait so long for the one that reads the data; a dead one shows at once


def is_main_process() -> bool:
    """Say whether this process writes: the only one, or the first of several."""
    return rank_distrib() == 0


@contextmanager
def join_processes(device: str = "auto") -> Iterator[int]:
    """Join the other processes of this training, for the time of a `with` block.

    Args:
        device: `"cpu"` for gloo; otherwise each process of a machine takes a GPU of its own, where there are any.

    Yields:
        How many processes there are; 1 where nobody has started more.

    Raises:
        UnavailableError: accelerate is not installed, or there are fewer GPUs than processes on this machine.
        ResourceError: Another process is gone.
    """
    if num_distrib() < 2 or distributed.is_initialized():
        yield max(1, num_distrib())
        return
    try:
        import accelerate  # noqa: F401 - fastai's trainer is built on it
    except ImportError as error:
        hint = "pip install 'covid_fastai[distributed]'"
        raise UnavailableError("Training on several processes needs accelerate.", hint=hint) from error
    on_gpu = device != "cpu" and torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true"
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise UnavailableError(
                f"There are {torch.cuda.device_count()} GPUs for more processes.", hint="Start one process a GPU."
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
            f"Another process of this training is gone: {str(error).splitlines()[0][:200]}",
            hint="Look for its own message, and start as many again with --resume, from the last whole epoch.",
        ) from error
    finally:
        os.environ["WORLD_SIZE"] = str(world)
        distributed.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Say whether an error is that of a process group; gloo's own has no type."""
    words = ("gloo", "connection closed by peer", "connection reset", "nccl", "broken pipe")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


def broadcast_text(text: str) -> str:
    """Return the first process's text in every process; plain bytes go through the network, no pickle."""
    if num_distrib() < 2:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
    size = torch.tensor([len(content)], device=_device())
    distributed.broadcast(size, 0)
    if not is_main_process():
        content = torch.zeros(int(size), dtype=torch.uint8, device=_device())
    distributed.broadcast(content, 0)
    return bytes(content.tolist()).decode()


def agree(what: str, value: object) -> None:
    """Wait for all processes, and make sure that they have the same.

    Args:
        what: Its name, for the message.
        value: Anything whose `repr` tells it from others.

    Raises:
        UsageError: They have not.
    """
    if num_distrib() < 2:
        return
    own = hashlib.sha256(repr(value).encode()).hexdigest()
    if broadcast_text(own) != own:
        raise UsageError(
            f"{what} of this process ({rank_distrib()}) is not that of the first one.",
            hint="Start all of them with the same command, on the same files.",
        )


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the first process run a `with` block before the others, which then find its images in the cache.

    Where the first one fails, the others end with a `ResourceError` that says so.
    """
    if not is_main_process():
        broadcast_text("")
    yield
    if is_main_process():
        broadcast_text("done")


def batch_per_process(batch_size: int) -> int:
    """Return how many images of a step each process takes.

    Raises:
        UsageError: They are fewer than two, of which BatchNorm learns nothing.
    """
    share = batch_size // max(1, num_distrib())
    if share < 2:
        raise UsageError(
            f"batch_size={batch_size} is too small for {num_distrib()} processes.", hint="Give each two images or more."
        )
    return share


@contextmanager
def data_parallel(learn: Learner) -> Iterator[None]:
    """Let a learner train as one of several, for the time of a `with` block; alone, nothing changes.

    Gradients are averaged over the processes in every step. On GPUs BatchNorm sees the whole batch (SyncBatchNorm); on
    CPUs, where torch has no such layer, each process's own share.
    """
    if num_distrib() < 2:
        yield
        return
    from covid_fastai.model.distributed_trainer import SharingTrainer  # needs accelerate, which is an extra

    trainer = SharingTrainer(sync_bn=_device().type == "cuda", cpu=_device().type == "cpu")
    learn.add_cb(trainer)
    try:
        yield
    finally:  # also after an error, for which fastai unwraps nothing
        learn.remove_cb(trainer)
        learn.model = get_model(learn.model)
        os.environ["WORLD_SIZE"] = "1"  # what follows is the first one's alone: fastai would wait for the others


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
