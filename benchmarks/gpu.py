"""`python -m benchmarks gpu`: check and time the package on one GPU, in under eight minutes.

One JSON line for each check: `check`, `ok` (null where nothing could be asked), `seconds`, and what was found. What
fails does not stop the rest; the exit status is then 1. Where torch sees no GPU, it says so and ends with status 2.
With `--quick`, it runs small on the CPU, which tests the checks and not a GPU.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from torch import nn

from benchmarks.gpu_checks import CHECKS, Bench, Found
from benchmarks.measuring import Measurement, compare, fresh_cache, timed
from benchmarks.recording import write_results
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.model.precision import choose_precision
from covid_fastai.model.schedule import fit

__all__ = ["main"]

SECONDS = 420  # after which no further check begins, so that the last one ends within eight minutes
FAILED, NO_GPU = 1, 2  # exit statuses


def main(*, quick: bool, out: Path) -> int:
    """Run every check; return the exit status."""
    if not quick and not torch.cuda.is_available():
        print(
            f"No GPU: torch {torch.__version__} sees no CUDA device on this machine, so nothing was checked. "
            "With --quick, the checks run small on the CPU.",
            file=sys.stderr,
        )
        return NO_GPU
    started, failed, measured = time.perf_counter(), [], []
    with fresh_cache(), tempfile.TemporaryDirectory(prefix="covid_fastai-gpu-") as work:
        bench = Bench("cpu" if quick else "cuda:0", quick=quick, work=Path(work))
        for function, needs in [*CHECKS, *((speed, "") for speed in SPEEDS)]:
            begun = time.perf_counter()
            late = None if quick else _out_of_time(begun - started)
            found = _missing(needs) or late or _run(function, bench)
            measured += found.pop("measurements", [])
            if found["ok"] is False:
                failed.append(function.__name__)
            seconds = round(time.perf_counter() - begun, 1)
            print(json.dumps({"check": function.__name__, "seconds": seconds, **found}, default=str), flush=True)
            bench.free()
    if measured and not quick:
        write_results(out, "gpu", [one.to_dict() for one in measured], machine=_describe())
    total = round(time.perf_counter() - started)
    print(json.dumps({"check": "all", "ok": not failed, "seconds": total, "failed": failed}), flush=True)
    return FAILED if failed else 0


def _missing(needs: str) -> Found | None:
    gpus = torch.cuda.device_count()
    missing = gpus < {"": 0, "one GPU": 1, "two GPUs": 2}[needs]
    return {"ok": None, "skipped": f"needs {needs}, torch sees {gpus}"} if missing else None


def _out_of_time(seconds: float) -> Found | None:
    return {"ok": None, "skipped": f"{seconds:.0f} s are spent"} if seconds > SECONDS else None


def _run(function, bench: Bench) -> Found:
    """Run one check; an error in it is what was found."""
    try:
        return function(bench)
    except Exception as error:  # noqa: BLE001 - whatever is raised is what was found
        lines = traceback.format_exc().strip().splitlines()[-6:-1]
        return {"ok": False, "error": f"{type(error).__name__}: {str(error)[:400]}", "where": lines}


def _describe() -> dict[str, str]:
    name, device = torch.cuda.get_device_name(0), torch.device("cuda:0")
    software = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return {
        "machine": f"{name}, {software}",
        "instructions": name,
        "format": choose_precision("auto", device).precision,
    }


# how fast


class TimeEpochs(Callback):
    """Time the training part of each epoch, the device's work included."""

    order, needs_body = 200, False

    def __init__(self, device: str):
        self.device, self.seconds = device, []

    def before_train(self):
        """Start the clock."""
        _wait(self.device)
        self.begun = time.perf_counter()

    def after_train(self):
        """Stop the clock."""
        _wait(self.device)
        self.seconds.append(time.perf_counter() - self.begun)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def step_resnet18(bench: Bench) -> Found:
    """Compare an epoch of the package's defaults with a bare loop: ResNet-18, 128 pixels, 32 images."""
    return _step(bench, "resnet18", size=64 if bench.quick else 128, batch=8 if bench.quick else 32)


def step_resnet50(bench: Bench) -> Found:
    """Compare an epoch of ResNet-50 at 224 pixels with a bare loop."""
    return {"ok": None, "skipped": "not with --quick"} if bench.quick else _step(bench, "resnet50", size=224, batch=64)


def _step(bench: Bench, arch: str, *, size: int, batch: int) -> Found:
    clock = TimeEpochs(bench.device)
    learn = bench.learner(
        bench.many, arch=arch, size=size, batch=batch, workers=0 if bench.quick else "auto", callbacks=[clock]
    )
    batches = [(torch.Tensor(x).clone(), torch.as_tensor(y).clone()) for x, y in learn.dls.train]  # fills the cache
    chosen = choose_precision("auto", torch.device(bench.device)).precision

    def ours() -> float:
        fit(learn, frozen_epochs=0, unfrozen_epochs=1, lr_ratio=1)
        return clock.seconds[-1]

    def bare() -> float:
        return _bare_epoch(copy.deepcopy(learn.model), batches, bench.device, chosen)

    name = f"an epoch of {len(batches)} steps, {arch}, {size} px, {batch} images"
    remark = f"{chosen}, images from the cache against batches on the device"
    result = compare(name, ours, bare, peer="bare PyTorch loop", target=0.9, repeats=3, remark=remark)
    return {"ok": None, **_brief(result, len(batches) * batch), "measurements": [result]}


def _bare_epoch(model: nn.Module, batches: list[Any], device: str, precision: str) -> float:
    """Return the seconds of an epoch of a plain loop with PyTorch's fused AdamW, in the same number format."""
    kind = torch.device(device).type
    model, form = model.to(device).train(), torch.float16 if precision == "fp16" else torch.bfloat16
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16")

    def run() -> None:
        for x, y in batches:
            with torch.autocast(kind, dtype=form, enabled=precision != "fp32"):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
        _wait(device)

    return timed(run)


def optimiser_step(bench: Bench) -> Found:
    """Compare an update of all parameters with torch's own fused AdamW."""
    learn = bench.learner(arch="resnet18" if bench.quick else "resnet50")
    learn.unfreeze()
    learn.create_opt()
    for parameter in learn.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    theirs = torch.optim.AdamW(learn.model.parameters(), fused=True)

    def repeated(step):
        def run() -> None:
            for _ in range(20):
                step()
            _wait(bench.device)

        return run

    result = compare(
        "20 updates of the optimiser",
        repeated(learn.opt.step),
        repeated(theirs.step),
        peer="torch's fused AdamW",
        repeats=5,
    )
    return {"ok": None, **_brief(result), "measurements": [result]}


def loader(bench: Bench) -> Found:
    """Time later passes of the training loader, images from the cache, with and without augmentation."""
    found: Found = {"ok": None}
    results = []
    for augmentation in ("standard", "strong", "none"):
        dls = build_dataloaders(
            bench.many, image_size=64 if bench.quick else 224, batch_size=8 if bench.quick else 64,
            num_workers=0 if bench.quick else "auto", device=bench.device, augmentation=augmentation,
        )  # fmt: skip
        images = len(dls.train) * dls.train.bs

        def run(dls=dls) -> None:
            for _ in dls.train:
                pass
            _wait(bench.device)

        result = compare(f"loader of {images} images, augmentation {augmentation}", run, repeats=3)
        found[augmentation] = _brief(result, images)
        results.append(result)
    return {**found, "measurements": results}


def article(bench: Bench) -> Found:
    """Compare the article's experiment as two commands on this GPU."""
    from benchmarks.training import measure_article

    arch = "resnet18" if bench.quick else "resnet50"
    (result,) = measure_article(repeats=1, quick=bench.quick, arch=arch)
    return {"ok": None, **_brief(result), "measurements": [result]}


def _brief(result: Measurement, images: int | None = None) -> Found:
    """Return a measurement as a line shows it."""
    found: Found = {"ours_s": round(result.ours, 4)}
    if result.theirs is not None and result.ratio is not None:
        found |= {"theirs_s": round(result.theirs, 4), "ratio": round(result.ratio, 3)}
    return found if images is None else {**found, "images_per_s": round(images / result.ours)}


SPEEDS = [step_resnet18, step_resnet50, optimiser_step, loader, article]
