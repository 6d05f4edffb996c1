"""What this machine offers and lacks, in one table: the first thing to ask when something does not work."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement

from covid_fastai.data.hardware import resolve_device

__all__ = ["examine"]

ROOM = 2 << 30  # bytes: a ResNet-50's checkpoints, its model and a report
EXTRAS = {"batch": "pyarrow", "data": "kagglehub", "dicom": "pydicom", "ray": "ray"}
EXTRAS |= {"timm": "timm", "web": "starlette"}
MODEL_FOLDER = Path(__file__).parents[1] / "model"


def examine() -> list[dict[str, str]]:
    """Examine the machine.

    Returns:
        A dictionary a finding: `what`, `state` (`ok`, `optional` where only an extra is absent, or `missing`) and
        `details`.
    """
    parts = (_python(), _packages(), _device(), _extras(), _weights(), _folders())
    return [dict(zip(("what", "state", "details"), row, strict=True)) for part in parts for row in part]


def _python() -> Iterator[tuple[str, str, str]]:
    yield "Python", "ok" if sys.version_info >= (3, 11) else "missing", sys.version.split()[0]


def _packages() -> Iterator[tuple[str, str, str]]:
    for text in requires("covid_fastai") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield requirement.name, "missing", f"pip install '{requirement}'"
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield requirement.name, "ok" if fits else "missing", found if fits else f"{found}, needed {requirement}"


def _device() -> Iterator[tuple[str, str, str]]:
    device = resolve_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    yield "device", "ok", f"{device} ({name if device.type != 'mps' else 'Apple'})"


def _extras() -> Iterator[tuple[str, str, str]]:
    for extra, module in EXTRAS.items():
        there = find_spec(module) is not None
        yield (
            f"extra {extra}",
            "ok" if there else "optional",
            module if there else f"pip install 'covid_fastai[{extra}]'",
        )


def _weights() -> Iterator[tuple[str, str, str]]:
    own = sorted(MODEL_FOLDER.glob("cxr-*.safetensors"))
    yield "weights cxr", "ok" if own else "optional", own[0].name if own else "not in this version"
    cached = sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("resnet*-*.pth"))
    if not cached:
        yield "weights imagenet", "optional", "not in torch's cache; fetched when asked for"
    for path in cached:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        whole = digest.startswith(path.stem.rsplit("-", 1)[-1])  # torchvision names its files by their hash
        yield (
            f"weights {path.stem}",
            "ok" if whole else "missing",
            str(path) if whole else f"{path} is damaged: delete it",
        )


def _folders() -> Iterator[tuple[str, str, str]]:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            writable = True
    except OSError:
        writable = False
    yield "this folder", "ok" if writable else "missing", f"{here}{'' if writable else ' cannot be written to'}"
    free = shutil.disk_usage(here).free
    yield "room on disk", "ok" if free > ROOM else "missing", f"{free / 2**30:.1f} GiB free"
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").free
        yield (
            "/dev/shm",
            "ok" if shared > 1 << 26 else "optional",
            f"{shared / 2**20:.0f} MiB free (docker: --shm-size)",
        )
