"""Check this machine: Python, packages, device, extras, weights, folders; with or without torch."""

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

from packaging.requirements import Requirement

from covid_fastai.model.package_models import package_models

__all__ = ["examine"]

DISK_SPACE = 2 << 30  # bytes, enough for the checkpoints and model of a ResNet-50 and a report
SHARED_MEMORY = 1 << 26  # bytes, Docker's default for /dev/shm; with no more, worker processes can run out of it
EXTRAS = {"batch": "pyarrow", "data": "kagglehub", "dicom": "pydicom", "distributed": "accelerate", "gradio": "gradio"}
EXTRAS |= {"ray": "ray", "tables": "openpyxl", "timm": "timm", "web": "starlette"}
MODEL_FOLDER = Path(__file__).parents[1] / "model"
FOR_PREDICTION = {  # what an installation without torch has, which can predict only: requirements-predict.txt
    *("annotated-types", "filelock", "huggingface_hub", "lazy_loader", "numpy", "onnxruntime", "pandas", "pillow"),
    *("pydantic", "rich", "safetensors", "tifffile", "typer"),
}


def examine() -> list[dict[str, str]]:
    """Check what this machine provides.

    Returns:
        One dictionary per finding with the keys `what`, `state` and `details`. The state is `ok`, `optional` (only an
        extra is absent) or `missing`.
    """
    trains = find_spec("torch") is not None and find_spec("fastai") is not None
    checks = (_python(), _packages(trains), _device(trains), _extras(), _weights(trains), _folders())
    return [dict(zip(("what", "state", "details"), row, strict=True)) for rows in checks for row in rows]


def _python() -> Iterator[tuple[str, str, str]]:
    yield "Python", "ok" if sys.version_info >= (3, 11) else "missing", sys.version.split()[0]


def _packages(trains: bool) -> Iterator[tuple[str, str, str]]:
    can = "trains and predicts" if trains else "predicts only; for a training: pip install covid_fastai"
    yield "installation", "ok", can
    for text in requires("covid_fastai") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not trains and requirement.name not in FOR_PREDICTION:
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield requirement.name, "missing", f"pip install '{requirement}'"
            continue
        allowed = requirement.specifier.contains(installed, prereleases=True)
        details = installed if allowed else f"{installed} is installed, {requirement} is required"
        yield requirement.name, "ok" if allowed else "missing", details


def _device(trains: bool) -> Iterator[tuple[str, str, str]]:
    if not trains:
        yield "device", "ok", f"cpu ({os.cpu_count()} cores, ONNX Runtime)"
        return
    import torch

    from covid_fastai.data.hardware import resolve_device

    device = resolve_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    yield "device", "ok", f"{device} ({name if device.type != 'mps' else 'Apple'})"


def _extras() -> Iterator[tuple[str, str, str]]:
    for extra, module in EXTRAS.items():
        installed = find_spec(module) is not None
        yield (
            f"extra {extra}",
            "ok" if installed else "optional",
            module if installed else f"pip install 'covid_fastai[{extra}]'",
        )


def _weights(trains: bool) -> Iterator[tuple[str, str, str]]:
    yield "models of the package", "ok", ", ".join(package_models())
    if not trains:
        return
    import torch

    included = sorted(MODEL_FOLDER.glob("cxr-resnet*[0-9].safetensors"))
    yield "weights cxr", "ok" if included else "optional", included[0].name if included else "not in this version"
    cached = sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("resnet*-*.pth"))
    if not cached:
        yield "weights imagenet", "optional", "not in the cache of torch; downloaded when needed"
    for path in cached:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        intact = digest.startswith(path.stem.rsplit("-", 1)[-1])  # torchvision ends file names with the sha256's start
        details = str(path) if intact else f"{path} is damaged: delete it"
        yield f"weights {path.stem}", "ok" if intact else "missing", details


def _folders() -> Iterator[tuple[str, str, str]]:
    folder = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=folder):
            writable = True
    except OSError:
        writable = False
    yield "working folder", "ok" if writable else "missing", f"{folder}{'' if writable else ' is not writable'}"
    free = shutil.disk_usage(folder).free
    yield "disk space", "ok" if free > DISK_SPACE else "missing", f"{free / 2**30:.1f} GiB free"
    if os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm").free
        yield (
            "/dev/shm",
            "ok" if shared > SHARED_MEMORY else "optional",
            f"{shared / 2**20:.0f} MiB free (docker: --shm-size)",
        )
