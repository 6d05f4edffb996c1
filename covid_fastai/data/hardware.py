"""What this machine offers: the device to compute on, and processes that open images."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from fastai.torch_core import defaults

from covid_fastai.errors import UnavailableError
from covid_fastai.options import Device, check_option, refuse_option

__all__ = ["resolve_device", "resolve_workers"]

logger = logging.getLogger("covid_fastai")

SMALL_ROWS, SMALL_BYTES = 500, 64 << 20  # below both, one process opens an epoch's images in a few seconds


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device of that name.

    Args:
        device: `"auto"` for CUDA, else Apple's MPS, else the CPU (always the CPU after fastai's
            `default_device(False)`); or a device's name, or a device.

    Raises:
        UsageError: There is no such kind of device.
        UnavailableError: This machine has none of that kind.
    """
    device = check_option("device", device, Device | torch.device)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if defaults.use_cuda is False:  # fastai then moves every batch to the CPU, whatever its loader says
        available.update(cuda=False, mps=False)
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    device = torch.device(device)
    if device.type not in available:
        raise refuse_option("device", str(device), Device)
    if not available[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UnavailableError(
            f"There is no device {str(device)!r} that torch {torch.__version__} can use here.",
            hint="Use device='auto' or 'cpu', or install a torch that is built for it.",
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # fastai compares devices, and cuda is not cuda:0
    return device


def resolve_workers(num_workers: int | str, paths: Sequence[str], *, batch_bytes: int, device: torch.device) -> int:
    """Return how many processes shall open images.

    Args:
        num_workers: A number, which stands, or `"auto"`: none on Windows and macOS, none for small data, and none for a
            training on the CPU, where the loader's own threads do (a process costs half a second an epoch, and the
            images come from the cache after the first); else up to 4, as far as there are processors and room in
            /dev/shm, through which they hand over their batches.
        paths: The images' files.
        batch_bytes: What one batch takes in /dev/shm.
        device: Where the training computes.
    """
    if num_workers != "auto":
        return int(num_workers)
    if device.type == "cpu" or sys.platform in ("win32", "darwin"):
        return 0  # each would import torch anew, and fastai has none on macOS
    if len(paths) < SMALL_ROWS and sum(_file_bytes(path) for path in paths) < SMALL_BYTES:
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = max(0, min(4, cpus - 1))  # one stays for the training itself; more than four seldom help one GPU
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return wanted
    room = shutil.disk_usage(shared).free // (4 * batch_bytes)  # each has two batches ready and one in its hands
    if room < wanted:
        logger.warning("/dev/shm has room for %d of %d processes that open images (docker: --shm-size).", room, wanted)
    return int(min(wanted, room))  # guard: shm


def _file_bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0  # opening it will say what is wrong
