"""Hardware of this machine: the device for computations, and the number of processes that open images."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from fastai.torch_core import defaults

from covid_fastai.errors import UnavailableError
from covid_fastai.options import Device, check_option, refuse_option

__all__ = ["fits_in_memory", "free_memory", "resolve_device", "resolve_workers", "share_devices"]

logger = logging.getLogger("covid_fastai")

_CGROUP = Path("/sys/fs/cgroup")
CONTAINER_MEMORY = [  # files of the limit and the use of memory, bytes
    (_CGROUP / "memory.max", _CGROUP / "memory.current"),
    (_CGROUP / "memory/memory.limit_in_bytes", _CGROUP / "memory/memory.usage_in_bytes"),
]
_sharing = {"cpu": 1, "gpu": 1}  # trainings that use the same device at the same time
SMALL_ROWS, SMALL_BYTES = 500, 64 << 20  # below both, one process opens the images of an epoch in a few seconds


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the torch device of a name.

    Args:
        device: `"auto"` for CUDA, else Apple's MPS, else the CPU (always the CPU after fastai's
            `default_device(False)`); or a device's name, or a device.

    Raises:
        UsageError: The type of device is not supported.
        UnavailableError: This machine has no such device.
    """
    device = check_option("device", device, Device | torch.device)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if defaults.use_cuda is False:  # fastai then moves every batch to the CPU, whatever the device of its loader
        available.update(cuda=False, mps=False)
    if device == "auto":
        device = next(name for name, is_available in available.items() if is_available)
    device = torch.device(device)
    if device.type not in available:
        raise refuse_option("device", str(device), Device)
    if not available[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UnavailableError(
            f"Device {str(device)!r} is not available to torch {torch.__version__} on this machine.",
            hint="Use device='auto' or 'cpu', or install a build of torch for it.",
        )
    if device.type == "cuda" and device.index is None:
        return torch.device(
            "cuda", torch.cuda.current_device()
        )  # fastai compares devices, and cuda differs from cuda:0
    return device


def fits_in_memory(size: int, device: torch.device) -> bool:
    """Return whether data take less than a third of a device's free memory, so that they can stay there in a training.

    The processes of a distributed training on one machine share the memory of the CPU, and folds that are trained at
    the same time share that of every device (`share_devices`).

    Args:
        size: Bytes.
        device: The device.
    """
    processes = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    processes *= _sharing["gpu" if device.type == "cuda" else "cpu"]  # guard: shared_device
    return size * processes * 3 < free_memory(device)


def share_devices(trainings: int, *, gpus: int) -> None:
    """Note that this process is one of several trainings that go on at the same time on the same machine.

    Args:
        trainings: Their number.
        gpus: The number of GPUs that they are distributed over; 0 if there are none.
    """
    _sharing.update(cpu=max(1, trainings), gpu=max(1, -(-trainings // max(1, gpus))))


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device, bytes; on Apple's MPS, which shares it, that of the CPU.

    The limit of a container counts (control groups 1 and 2).

    Args:
        device: The device.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used in CONTAINER_MEMORY:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # there is no such file, or the limit is "max"
            continue
    return max(free, 0)


def resolve_workers(num_workers: int | str, paths: Sequence[str], *, batch_bytes: int, device: torch.device) -> int:
    """Return the number of processes that open images.

    Args:
        num_workers: A number, which is returned unchanged, or `"auto"`. Automatic is 0 on Windows and macOS, for small
            data, and for training on the CPU, where the loader's threads suffice (each process takes half a second per
            epoch, and after the first epoch images come from the cache). Otherwise it is up to 4, limited by the
            processors and by the space in /dev/shm, through which processes pass their batches.
        paths: The image files.
        batch_bytes: Size of one batch in /dev/shm, bytes.
        device: Device of the training.
    """
    if num_workers != "auto":
        return int(num_workers)
    if device.type == "cpu" or sys.platform in ("win32", "darwin"):
        return 0  # each process would import torch again, and fastai supports none on macOS
    if len(paths) < SMALL_ROWS and sum(_file_bytes(path) for path in paths) < SMALL_BYTES:
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(0, min(4, cpus - 1))  # one CPU remains for training; more than 4 processes rarely help one GPU
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return workers
    room = shutil.disk_usage(shared).free // (
        4 * batch_bytes
    )  # a process holds two finished batches and one in progress
    if room < workers:
        logger.warning("/dev/shm has room for %d of %d processes that open images (docker: --shm-size).", room, workers)
    return int(min(workers, room))  # guard: shm


def _file_bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0  # opening the file raises the error
