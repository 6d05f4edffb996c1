"""The device and the number of worker processes on simulated machines."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.torch_core import default_device, defaults

from covid_fastai.data import hardware
from covid_fastai.data.hardware import resolve_device, resolve_workers
from covid_fastai.errors import UnavailableError, UsageError


def resolve(paths, **options):
    return resolve_workers("auto", paths, **{"batch_bytes": 32 * 224**2, "device": torch.device("cuda"), **options})


def test_automatic_number_of_workers(tmp_path, monkeypatch, caplog):
    small = tmp_path / "small"
    small.write_bytes(b"x")
    big = tmp_path / "big"
    with open(big, "wb") as file:
        file.truncate(80 << 20)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(Path, "is_dir", lambda self: str(self) == "/dev/shm")
    room = SimpleNamespace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    assert resolve([small] * 499) == 0
    assert resolve([small] * 500) == 4
    assert resolve([big, "gone"]) == 4 and resolve([big], device=torch.device("cpu")) == 0
    room.free = 64 << 20  # docker's default
    assert resolve([big]) == 4
    room.free = 8 << 20
    assert resolve([big]) == 1 and "--shm-size" in caplog.text
    room.free = 1 << 20
    assert resolve([big]) == 0
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: {0})
    assert resolve([big]) == 0
    for system in ("win32", "darwin"):
        monkeypatch.setattr(hardware.sys, "platform", system)
        assert resolve([small] * 5000) == 0


def test_devices_of_a_machine_with_one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert resolve_device("auto") == torch.device("cuda:0") == resolve_device("cuda")
    assert resolve_device("cpu") == torch.device("cpu") == resolve_device(torch.device("cpu"))
    with pytest.raises(UnavailableError, match="cuda:3"):
        resolve_device("cuda:3")
    monkeypatch.setattr(defaults, "use_cuda", None)
    default_device(False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UnavailableError, match="'cuda'"):
        resolve_device("cuda")
    with pytest.raises(UsageError, match="meta"):
        resolve_device("meta")
