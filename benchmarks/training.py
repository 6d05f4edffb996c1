"""Benchmarks: the frozen phase, an epoch of steps, and the article's experiment from command to report."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import NEITHER, instructions
from benchmarks.measuring import Measurement, compare, data_folder, fresh_cache, note, timed
from benchmarks.stock import SIZE, stock_learner, stock_loaders


def measure_frozen(*, repeats: int, quick: bool) -> list[Measurement]:
    """Compare five frozen epochs with fastai's."""
    cohort, epochs = _cohort(), 2 if quick else 5
    stock = stock_loaders(cohort, article=True)
    accuracies: dict[str, list[float]] = {"ours": [], "stock": []}

    def theirs() -> float:
        with tempfile.TemporaryDirectory() as folder:
            learn = stock_learner(stock, "resnet18", Path(folder))
            with learn.no_bar(), learn.no_logging():
                learn.freeze()
                seconds = timed(lambda: learn.fit_one_cycle(epochs, 1e-2))
            accuracies["stock"].append(float(learn.recorder.values[-1][-1]))
        return seconds

    def ours(views: int | None):
        from covid_fastai.model.schedule import fit

        def run() -> float:
            with fresh_cache(), tempfile.TemporaryDirectory() as folder:
                learn = _learner(cohort, "resnet18", folder)
                seconds = timed(lambda: fit(learn, frozen_epochs=epochs, unfrozen_epochs=0, frozen_augmentations=views))
                accuracies["ours"].append(float(learn.facts.history["accuracy"].iloc[-1]))
            return seconds

        return run

    def remark() -> str:
        means = ", ".join(f"{name} {sum(values) / len(values):.2f}" for name, values in accuracies.items())
        return f"caches cold; mean accuracy {means} {note()}".strip()

    options = {"peer": "fastai, frozen", "repeats": repeats, "warm": False, "remark": remark}
    return [
        compare(f"{epochs} frozen epochs, a fresh view each", ours(None), theirs, target=6, **options),
        compare(f"{epochs} frozen epochs, two views", ours(2), theirs, target=10, **options),
    ]


def measure_step(*, repeats: int, quick: bool) -> list[Measurement]:
    """Compare an epoch of steps with a bare PyTorch loop of the same model, batches and number format."""
    import torch

    from covid_fastai.model.precision import choose_precision
    from covid_fastai.model.schedule import fit

    cohort, measurements = _cohort(), []
    precision = choose_precision("auto", torch.device("cpu")).precision
    for arch in ["resnet18"] if quick else ["resnet18", "resnet50"]:
        with fresh_cache(), tempfile.TemporaryDirectory() as folder:
            learn = _learner(cohort, arch, folder)
            batches = [(torch.Tensor(x), torch.as_tensor(y.numpy())) for x, y in learn.dls.train]
            held_out = [(torch.Tensor(x), torch.as_tensor(y.numpy())) for x, y in learn.dls.valid]

            def ours(learn=learn) -> float:
                fit(learn, frozen_epochs=0, unfrozen_epochs=1, lr_ratio=1)
                return float(learn.facts.history["seconds"].iloc[-1])

            def bare(learn=learn, batches=batches, held_out=held_out) -> float:
                model = copy.deepcopy(learn.model).train()
                optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

                def run() -> None:
                    for x, y in batches:
                        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                            loss = torch.nn.functional.cross_entropy(model(x).float(), y)
                        loss.backward()
                        optimiser.step()
                        optimiser.zero_grad()
                    model.eval()
                    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                        for x, _ in held_out:
                            model(x)

                return timed(run)

            remark = (
                f"{len(batches)} batches of 8 in {precision}, images from the cache against tensors in memory {note()}"
            )
            measurements.append(
                compare(f"an epoch of steps, {arch}", ours, bare, peer="bare PyTorch loop", target=0.9,
                        repeats=repeats, remark=remark.strip())
            )  # fmt: skip
    return measurements


def measure_article(*, repeats: int, quick: bool, arch: str = "resnet18") -> list[Measurement]:
    """Compare the article's experiment as two commands, from the start of the process to the report on the disk.

    Ours includes the audit, which fastai does not have.
    """
    epochs = "1" if quick else "3"
    accuracies: dict[str, set[str]] = {"ours": set(), "stock": set()}
    with tempfile.TemporaryDirectory() as folder:
        cohort_csv = Path(folder) / "cohort.csv"
        _cohort().to_csv(cohort_csv, index=False)
        options = ["--preset", "article", "--arch", arch, "--weights", "none"]
        options += ["--frozen-epochs", epochs, "--unfrozen-epochs", epochs]

        def ours() -> float:
            with fresh_cache(), tempfile.TemporaryDirectory(dir=folder) as out:
                command = [sys.executable, "-m", "covid_fastai", "train", str(data_folder()), *options]
                seconds = timed(lambda: _run([*command, "--out", f"{out}/run"]))
                metrics = (Path(out) / "run" / "metrics.json").read_text(encoding="utf-8")
            accuracies["ours"].add(_accuracy(metrics))
            return seconds

        def theirs() -> float:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                command = [sys.executable, "-m", "benchmarks.stock", str(cohort_csv), arch, epochs, out]
                lines: list[str] = []
                seconds = timed(lambda: lines.append(_run(command)))
            accuracies["stock"].add(lines[-1].strip().splitlines()[-1])
            return seconds

        def remark() -> str:
            listed = "; ".join(f"{name}: {', '.join(sorted(texts))}" for name, texts in accuracies.items())
            return f"caches cold; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores; {listed} {note()}".strip()

        name = f"the article's experiment, {arch}, {epochs} + {epochs} epochs, with our audit"
        target = 1.4 if instructions() == NEITHER else 2.0
        peer = "fastai as a user writes it, no audit"
        return [compare(name, ours, theirs, peer=peer, target=target, repeats=repeats, warm=False, remark=remark)]


def _cohort():
    """Return the article's rows, split by patient as its preset does."""
    from covid_fastai.config import PRESETS
    from covid_fastai.data.metadata import read_cohort
    from covid_fastai.data.splits import split_by_patient

    ratio = PRESETS["article"]["negatives_per_positive"]
    cohort = read_cohort(data_folder(), negatives_per_positive=ratio)
    return split_by_patient(cohort, valid_pct=0.1, seed=42)


def _learner(cohort, arch: str, folder: str):
    from covid_fastai.data.dataloaders import build_dataloaders
    from covid_fastai.model.learner import build_learner

    dls = build_dataloaders(cohort, image_size=SIZE, batch_size=8, augmentation="article")
    return build_learner(dls, arch=arch, weights=None, path=folder, weight_decay=1e-4, gradient_clip=0.1)


def _run(command: list[str]) -> str:
    environment = {**os.environ, "MPLBACKEND": "agg"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}:\n{process.stderr[-2000:]}")
    return process.stdout


def _accuracy(metrics: str) -> str:
    """Return the accuracy in the text of a `metrics.json`, with its interval."""
    row = next(row for row in json.loads(metrics)["valid"]["metrics"] if row["metric"] == "accuracy")
    return f"accuracy {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}) of {row['n']} patients"
