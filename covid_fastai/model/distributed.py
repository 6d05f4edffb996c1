"""Distributed training: each process trains on a part of every epoch's images, and the main process writes.

`accelerate launch -m covid_fastai train ...` or `torchrun` starts the processes (extra `distributed`). Tested with two
processes on a CPU (gloo); not tested on several GPUs or machines.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import torch
from fastai.learner import Learner
from fastai.torch_core import defaults, get_model, num_distrib, rank_distrib
from torch import distributed

from covid_fastai.data.hardware import resolve_device
from covid_fastai.errors import ResourceError, UnavailableError, UsageError

__all__ = [
    "alone",
    "batch_per_process",
    "broadcast_text",
    "check_same_everywhere",
    "data_parallel",
    "gather_bytes",
    "is_main_process",
    "join_processes",
    "lowest_anywhere",
    "main_process_first",
]

TIMEOUT = timedelta(minutes=10)  # of a training step of the other processes; torch's default for GPUs
PATIENCE = timedelta(days=7)  # of the wait for the main process, which reads and judges; a dead process shows at once
OTHER_WAYS = {  # of accelerate, by the variable with which `accelerate launch` asks for them
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
NOT_USED = {  # options of `accelerate launch` that are not used: the variable, its name, and what it says by default
    "ACCELERATE_MIXED_PRECISION": ("mixed precision", "no", "precision= has the number format"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo backend", "no", "the model is not compiled"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient accumulation", "1", "each batch is a step; see batch_size="),
}
FAILURE = "covid_fastai/failure"  # the key under which a process that fails leaves its reason

logger = logging.getLogger("covid_fastai")


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
        UsageError: The processes cannot train together on this device, or were started for another way of training.
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
    _check_launch()
    on_gpu = _on_gpus(device)
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
    finished = False
    try:
        yield world
        os.environ["WORLD_SIZE"] = str(world)  # `data_parallel` has set it to 1
        broadcast_text("")  # the others wait until the main process is done, then all leave
        finished = True
    except Exception as error:
        if _is_lost(error):
            raise ResourceError(
                f"Another process of this training has ended: {_failure() or str(error).splitlines()[0][:200]}",
                hint="Read its error message, then start all processes again with `resume`.",
            ) from error
        _leave_reason(error)
        raise
    finally:
        os.environ["WORLD_SIZE"] = str(world)
        _leave(finished=finished)


def _is_set(variable: str) -> bool:
    """Return whether an environment variable is true, as accelerate reads it."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "t", "on")


def _check_launch() -> None:
    """Raise if `accelerate launch` has started the processes for another way of training than a model in each."""
    asked = [name for variable, name in OTHER_WAYS.items() if _is_set(variable)]
    if asked:  # guard: other_ways
        raise UsageError(
            f"accelerate was asked for {' and '.join(asked)}, which this package does not support.",
            hint="Every process trains a whole model: start them with accelerate launch --multi_gpu, or with torchrun.",
        )


def _on_gpus(device: str) -> bool:
    """Return whether the processes compute on GPUs, each on its own; raise if they cannot train together on a device.

    Args:
        device: As for `join_processes`.
    """
    kind, _, number = device.partition(":")
    without = _is_set("ACCELERATE_USE_CPU") or defaults.use_cuda is False
    if kind in ("auto", "cuda") and torch.cuda.is_available() and not without:
        neighbours = int(os.environ.get("LOCAL_WORLD_SIZE") or num_distrib())
        if number and neighbours > 1:  # guard: one_gpu_each
            raise UsageError(
                f"device={device!r} is one GPU, and this machine has {neighbours} processes of the training.",
                hint="Use device='cuda': each process takes its own.",
            )
        if number and number != os.environ.get("LOCAL_RANK", "0"):  # guard: gpu_of_accelerate
            raise UsageError(
                f"device={device!r} is not the GPU that this process gets.",
                hint="Use device='cuda', and CUDA_VISIBLE_DEVICES to choose the GPU.",
            )
        return True
    found = resolve_device(device)
    if found.type != "cpu":  # guard: joined_on_cpu
        why = ", and accelerate was told to use CPUs" if found.type == "cuda" else ""
        raise UsageError(
            f"Several processes train on NVIDIA GPUs or on CPUs; device={device!r} is {found} here{why}.",
            hint="Use device='cpu', or one process.",
        )
    return False


def _leave(*, finished: bool) -> None:
    """End this process's part in the group, so that processes that wait for it see it at once."""
    _CONTROL.clear()
    if finished or distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
    else:  # NCCL's destroy waits for what the others have begun, and they wait for this process
        distributed.distributed_c10d._abort_process_group()


def _leave_reason(error: Exception) -> None:
    """Leave the reason of a failure where the other processes find it; the first one counts."""
    text = f"process {rank_distrib()}: {error}"
    try:
        distributed.distributed_c10d._get_default_store().compare_set(FAILURE, "", text[:1000])
    except RuntimeError:  # DistNetworkError: the process that kept the store has ended, and the others see that
        logger.info("The other processes could not be told the reason.")


def _failure() -> str:
    """Return the reason that a failed process has left; empty if there is none, or the main process took it along."""
    store = distributed.distributed_c10d._get_default_store()
    try:
        return store.get(FAILURE).decode() if store.check([FAILURE]) else ""
    except RuntimeError:  # DistNetworkError: the store ended with the process that kept it
        return ""


def _is_lost(error: Exception) -> bool:
    """Return whether an error comes from the process group; gloo's errors are plain `RuntimeError`s."""
    words = ("gloo", "connection closed by peer", "connection reset", "nccl", "broken pipe")
    known = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    return known or isinstance(error, distributed.DistError)


_CONTROL: list[tuple[object, distributed.ProcessGroup]] = []


def _control() -> distributed.ProcessGroup:
    """Return the group for text and agreement, on the CPU: waiting in it occupies no GPU, and has `PATIENCE`."""
    if not _CONTROL or _CONTROL[0][0] is not distributed.group.WORLD:
        group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=PATIENCE))
        _CONTROL[:] = [(distributed.group.WORLD, group)]
    return _CONTROL[0][1]


def broadcast_text(text: str) -> str:
    """Return the main process's text in every process; it is sent as bytes, not as a pickle."""
    if num_distrib() < 2:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    size = torch.tensor([len(content)])
    distributed.broadcast(size, 0, group=_control())
    if not is_main_process():
        content = torch.zeros(int(size), dtype=torch.uint8)
    distributed.broadcast(content, 0, group=_control())
    return bytes(content.tolist()).decode()


def gather_bytes(content: bytes) -> list[bytes]:
    """Return the bytes of every process, in their order, in each of them."""
    if num_distrib() < 2:
        return [content]
    own = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(num_distrib())]
    distributed.all_gather(sizes, torch.tensor([len(own)]), group=_control())
    longest = int(max(sizes))
    contents = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    padded = torch.nn.functional.pad(own, (0, longest - len(own)))
    distributed.all_gather(contents, padded, group=_control())
    return [bytes(part[: int(size)].tolist()) for part, size in zip(contents, sizes, strict=True)]


def lowest_anywhere(number: int) -> int:
    """Return the lowest number of all processes, each of which must call this."""
    if num_distrib() < 2:
        return number
    lowest = torch.tensor([number], dtype=torch.int64)
    distributed.all_reduce(lowest, distributed.ReduceOp.MIN, group=_control())
    return int(lowest)


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

    for variable, (name, default, why) in NOT_USED.items():
        if (asked := os.environ.get(variable, default)).lower() != default:
            logger.warning("accelerate's %s %s is not used: %s.", name, asked, why)
    trainer = CPUDistributedTrainer(synchronise_norms=_device().type == "cuda", cpu=_device().type == "cpu")
    learn.add_cb(trainer)
    try:
        yield
    finally:  # also after an error: fastai would leave the model and the loaders wrapped
        learn.remove_cb(trainer)
        learn.model = get_model(learn.model)
        trainer.restore_norms()
        trainer.restore_loaders(learn.dls)  # guard: unwrapped_loaders
        os.environ["WORLD_SIZE"] = "1"  # only the main process goes on, and fastai would wait for the others


@contextmanager
def alone() -> Iterator[None]:
    """Compute in this process only during a `with` block; fastai would gather the results of all that were started."""
    started = os.environ.get("WORLD_SIZE")
    if started is not None:
        os.environ["WORLD_SIZE"] = "1"
    try:
        yield
    finally:
        if started is not None:
            os.environ["WORLD_SIZE"] = started


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
