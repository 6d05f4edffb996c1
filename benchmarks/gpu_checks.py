"""What must be right on a GPU: each check returns what it found, with `ok` first."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.torch_core import no_random
from PIL import Image

from covid_fastai import (
    Predictor,
    TrainConfig,
    build_dataloaders,
    build_learner,
    fit,
    load_model,
    predict,
    read_cohort,
    read_run,
    save_model,
    split_by_patient,
    train_classifier,
    write_phantom,
)
from covid_fastai.errors import ResourceError
from covid_fastai.model.own_parts import OwnParts
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.methods import class_activation_map, grad_cam, occlusion_map, randomisation_check
from covid_fastai.training.fit_cohort import fit_cohort
from covid_fastai.training.retrain import retrain

__all__ = ["CHECKS", "Bench", "Found", "furthest", "state_of"]

Found = dict[str, Any]
CLOSE = 1e-4  # between probabilities of two devices in 32 bits


@dataclass
class Bench:
    """The device, the sizes and the images of the checks.

    Attributes:
        device: `"cuda"`, or `"cpu"` to test the checks themselves.
        quick: Sizes that a CPU manages in seconds.
        work: A folder for everything that is written.
    """

    device: str
    quick: bool = False
    work: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="covid_fastai-gpu-")))

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")

    @cached_property
    def drawings(self) -> Path:
        """The folder of synthetic radiographs."""
        patients: Any = {"COVID-19": 10, "Normal": 10} if self.quick else 60
        return write_phantom(self.folder("drawings"), patients=patients, image_size=64 if self.quick else 128, seed=0)

    @cached_property
    def cohort(self):
        """A split cohort of the drawings."""
        return split_by_patient(read_cohort(self.drawings), valid_pct=0.25, seed=0)

    @cached_property
    def many(self):
        """A cohort of many small files, all different, that are quick to write: for throughput and full memory."""
        number, side = (48, 64) if self.quick else (4096, 224)
        folder, rng, rows = self.folder("many"), np.random.default_rng(0), []
        first = [np.array(Image.open(path).convert("L").resize((side, side))) for path in self.cohort["path"].head(16)]
        for n in range(number):
            pixels = first[n % len(first)].copy()
            pixels[-2:] = rng.integers(0, 255, (2, side))  # another file, another entry of the cache
            Image.fromarray(pixels).save(folder / f"{n:05d}.png", compress_level=1)
            rows.append({"path": str(folder / f"{n:05d}.png"), "label": "ab"[n % 2], "patient": str(n)})
        return pd.DataFrame(rows).assign(split=np.where(np.arange(number) // 2 % 8 == 7, "valid", "train"))

    def folder(self, name: str) -> Path:
        """Return a new folder."""
        return Path(tempfile.mkdtemp(dir=self.work, prefix=f"{name}-"))

    def learner(
        self,
        cohort=None,
        *,
        size=None,
        batch=8,
        workers: Any = 0,
        augmentation: Any = "standard",
        device=None,
        **options,
    ):
        """Return a learner on the device, from a seed."""
        with no_random(0):
            dls = build_dataloaders(
                self.cohort if cohort is None else cohort,
                image_size=size or (64 if self.quick else 128),
                batch_size=batch,
                num_workers=workers,
                augmentation=augmentation,
                device=device or self.device,
            )
            return build_learner(dls, weights=None, path=self.folder("learner"), **options)

    @cached_property
    def trained(self):
        """The learner of a whole run."""
        size, epochs = (64, 1) if self.quick else (128, 2)
        return train_classifier(
            self.drawings, out=self.folder("runs") / "run", quiet=True, device=self.device, weights=None, seed=0,
            image_size=size, batch_size=16, frozen_epochs=epochs, unfrozen_epochs=epochs, audit=not self.quick,
        )  # fmt: skip

    def free(self) -> None:
        """Release what earlier checks have left on the device."""
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def state_of(module) -> dict[str, torch.Tensor]:
    """Return a copy of a module's state on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two states."""
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def _fit(learn, **options):
    with no_random(0):
        fit(learn, **options)
    return learn


def environment(bench: Bench) -> Found:
    """State the GPU and the software."""
    found: Found = {"ok": True, "torch": torch.__version__, "python": sys.version.split()[0]}
    if bench.on_cuda:
        facts = torch.cuda.get_device_properties(bench.device)
        found |= {"gpu": facts.name, "memory_gb": facts.total_memory >> 30, "cuda": torch.version.cuda}
        found |= {"gpus": torch.cuda.device_count(), "cudnn": torch.backends.cudnn.version()}
    return found


def model_is_on_the_device(bench: Bench) -> Found:
    """Check where the parameters are as soon as the learner is built."""
    learn = bench.learner()
    found = {parameter.device.type for parameter in learn.model.parameters()}
    return {"ok": found == {torch.device(bench.device).type}, "devices": sorted(found)}


def a_run_finishes(bench: Bench) -> Found:
    """Check that a whole run ends with finite weights and a report."""
    run = read_run(bench.trained.path)
    finite = all(bool(value.isfinite().all()) for value in bench.trained.model.state_dict().values())
    losses = run.history[["phase", "train_loss", "valid_loss", "seconds"]].round(4).to_dict("records")
    return {"ok": finite and run.report.exists(), "built": run.built, "history": losses}


def answers_are_those_of_the_cpu(bench: Bench) -> Found:
    """Compare the probabilities of the device, of the reloaded model on the CPU, and of its ONNX file."""
    learn = bench.trained
    cohort = learn.dls.facts.cohort
    rows = cohort[cohort["split"] == "valid"]
    columns = [f"p_{name}" for name in learn.dls.vocab]
    here = predict(learn, rows)[columns].to_numpy()
    cpu = predict(load_model(learn.path / "model", device="cpu"), rows)[columns].to_numpy()
    onnx = Predictor(learn.path / "model").predict(rows["path"].tolist())[columns].to_numpy()
    found = {"device_to_cpu": float(np.abs(here - cpu).max()), "onnx_to_cpu": float(np.abs(onnx - cpu).max())}
    return {"ok": max(found.values()) < CLOSE, **found}


def a_frozen_body_stays(bench: Bench) -> Found:
    """Check that no bit of a frozen body changes, on stored features and step by step."""

    class NeedsBody(Callback):
        needs_body = True

    found: Found = {}
    for name, callbacks in {"features": [], "every step": [NeedsBody()]}.items():
        learn = bench.learner(augmentation="none", callbacks=callbacks)
        before = state_of(learn.model[0])
        _fit(learn, frozen_epochs=1, unfrozen_epochs=0)
        after = state_of(learn.model[0])
        found[name] = all(torch.equal(before[key], after[key]) for key in before)
    return {"ok": all(found.values()), **found}


def formats_are_finite(bench: Bench) -> Found:
    """Train in each number format; predictions are in 32 bits, and a clipped gradient is no longer than asked."""

    class Watch(Callback):
        order = 12  # after the gradient is unscaled and clipped

        def before_fit(self):
            self.hook = self.model[0].register_forward_hook(lambda module, given, output: seen.add(str(output.dtype)))

        def before_step(self):
            gradients = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
            norms.append(float(torch.stack(gradients).norm()))

        def after_fit(self):
            self.hook.remove()

    found: Found = {}
    for asked in ["auto", "fp32", "bf16", *(["fp16"] if bench.on_cuda else [])]:
        seen: set[str] = set()
        norms: list[float] = []
        learn = bench.learner(precision=asked, gradient_clip=0.1, callbacks=[Watch()])
        _fit(learn, frozen_epochs=1, unfrozen_epochs=1)
        trained_in, finite = sorted(seen), all(bool(v.isfinite().all()) for v in learn.model.state_dict().values())
        seen.clear()
        predict(learn)
        found[asked] = {"finite": finite, "trains_in": trained_in, "predicts_in": sorted(seen), "norm": max(norms)}
    ok = all(
        one["finite"] and one["predicts_in"] == ["torch.float32"] and one["norm"] < 0.101 for one in found.values()
    )
    return {"ok": ok, **found}


class KillAfter(Callback):
    """End the training after a number of epochs, as a plug that is pulled would."""

    order, needs_body = 96, False  # the frozen phase stays on stored features, as without the callback

    def __init__(self, epochs: int):
        self.left = epochs

    def after_epoch(self):
        """Count the epochs."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def _resumed(bench: Bench, kill_after: int, *, device=None, **options) -> dict[str, torch.Tensor]:
    """Return the state of a training that was killed and resumed."""
    out, epochs = bench.folder("killed"), {"frozen_epochs": 2, "unfrozen_epochs": 2}
    learn = bench.learner(callbacks=[KillAfter(kill_after)], **options)
    try:
        _fit(learn, out=out, **epochs)
    except KeyboardInterrupt:
        pass
    del learn
    bench.free()
    return state_of(_fit(bench.learner(device=device, **options), out=out, resume=True, **epochs).model)


def a_killed_training_resumes(bench: Bench) -> Found:
    """Compare trainings that were killed in each phase with one that was not."""
    found, ok = {}, True
    for precision in ["auto", *(["fp16"] if bench.on_cuda else [])]:  # whose scaler is in the checkpoint, too
        options: dict[str, Any] = {"precision": precision}
        whole, again = (
            state_of(_fit(bench.learner(**options), frozen_epochs=2, unfrozen_epochs=2).model) for _ in range(2)
        )
        twice = found[f"{precision}, the same seed twice"] = furthest(whole, again)
        for kill_after in (1, 3):
            apart = found[f"{precision}, killed after {kill_after}"] = furthest(
                whole, _resumed(bench, kill_after, **options)
            )
            ok = ok and apart <= max(1e-6, 3 * twice)
    return {"ok": ok, **found}


def a_training_resumes_on_the_cpu(bench: Bench) -> Found:
    """Continue a training of the GPU on the CPU."""
    state = _resumed(bench, 3, device="cpu", precision="fp32")
    return {"ok": all(bool(value.isfinite().all()) for value in state.values())}


def full_memory_halves_the_batch(bench: Bench) -> Found:
    """Fill the memory; also with a user's callback, which keeps the failed learner alive."""

    class FullAbove(Callback):
        """Stand in for a full memory where there is no GPU."""

        def after_pred(self):
            if self.training and len(self.xb[0]) > batch // 2:
                raise torch.OutOfMemoryError("CUDA out of memory (pretended).")

    found, batch = {}, 16 if bench.quick else 256
    config = TrainConfig(
        batch_size=batch, image_size=64 if bench.quick else 224, weights=None, frozen_epochs=0, unfrozen_epochs=1,
        device=bench.device, num_workers=0,
    )  # fmt: skip
    for name, callbacks in {"no callback": [], "a callback": [Callback()]}.items():
        bench.free()
        if bench.on_cuda:
            allowed = torch.cuda.memory_reserved() + 1.5 * 2**30
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, allowed / torch.cuda.get_device_properties(bench.device).total_memory)
            )
        else:
            callbacks = [*callbacks, FullAbove()]
        try:
            with no_random(0):
                learn = fit_cohort(
                    bench.many,
                    config,
                    RunFolder(bench.folder("full")),
                    own=OwnParts(callbacks=callbacks),
                    resuming=False,
                )
            found[name] = learn.dls.train.bs
            del learn
        except ResourceError as error:
            found[name] = str(error)
        finally:
            if bench.on_cuda:
                torch.cuda.set_per_process_memory_fraction(1.0)
    sizes = set(found.values())
    return {"ok": len(sizes) == 1 and all(isinstance(size, int) and size < batch for size in sizes), **found}


def fastais_methods_work(bench: Bench) -> Found:
    """Use the learner as fastai's documentation does."""
    learn = bench.learner()
    with learn.no_bar(), learn.no_logging():
        rate = float(learn.lr_find(end_lr=1e-2, num_it=12, stop_div=False, show_plot=False).valley)
        learn.fine_tune(1)
        shape = list(learn.tta(n=2)[0].shape)
        answer = str(learn.predict(bench.cohort["path"].iloc[0])[0])
        learn.save("kept")
        learn.load("kept")
        learn.fit_one_cycle(1, 1e-3)
    return {"ok": shape[1] == len(learn.dls.vocab) and answer in learn.dls.vocab, "lr_find": rate, "tta": shape}


def maps_are_finite(bench: Bench) -> Found:
    """Compute every kind of map."""
    cohort = bench.trained.dls.facts.cohort
    rows, found = cohort[cohort["split"] == "valid"].head(2), {}
    for function in (class_activation_map, grad_cam, occlusion_map):
        found[function.__name__] = bool(np.isfinite(function(bench.trained, rows)).all())
    found["randomisation_check"] = len(randomisation_check(bench.trained, rows, repeats=1)) > 0
    retrain(bench.trained.path, changes=["frozen backbone"])
    found["frozen backbone"] = RunFolder(bench.trained.path).retrained_network("frozen backbone").predictions.exists()
    return {"ok": all(found.values()), **found}


def an_unreadable_image_is_named(bench: Bench) -> Found:
    """Predict with a broken file among others, in worker processes."""
    broken = bench.folder("broken") / "broken.png"
    broken.write_bytes(b"no picture")
    rows = pd.DataFrame({"path": [*bench.cohort["path"].head(8), str(broken)]})
    status = predict(bench.learner(workers=2), rows)["status"].tolist()
    return {"ok": status == ["ok"] * 8 + ["unreadable"], "status": status[-1]}


def a_step_waits(bench: Bench) -> Found:
    """Count how often a training waits for the GPU, where it would go on preparing the next step."""
    learn = bench.learner(bench.many, batch=32)
    _fit(learn, frozen_epochs=0, unfrozen_epochs=1)  # puts the images on the device
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing CUDA operation" in str(one.message) for one in said)
    steps = len(learn.dls.train)
    return {"ok": None, "steps": steps, "waits": waits, "waits_per_step": round(waits / steps, 2)}


def memory_is_given_back(bench: Bench) -> Found:
    """Check that three trainings hold no more memory than one."""
    bench.free()
    before, held = torch.cuda.memory_allocated(), []
    for _ in range(3):
        _fit(bench.learner(), frozen_epochs=1, unfrozen_epochs=1)
        gc.collect()
        held.append((torch.cuda.memory_allocated() - before) >> 20)
    return {"ok": held[-1] - held[0] < 32, "mb": held}


def two_gpus_train_one_model(bench: Bench) -> Found:
    """Train with `torchrun` on two GPUs, and reload the model."""
    out = bench.folder("two") / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "covid_fastai", "train", str(bench.drawings), "--out", str(out), "--weights", "none"]
    command += ["--no-audit", "--frozen-epochs", "1", "--unfrozen-epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if done.returncode:
        return {"ok": False, "error": done.stderr[-600:]}
    return {"ok": len(load_model(out / "model", device="cpu").dls.vocab) == 2}


def a_model_saves_without_onnx(bench: Bench) -> Found:
    """Save from the device and load on the CPU, to the same weights."""
    learn = bench.learner()
    loaded = load_model(save_model(learn, bench.folder("saved") / "model", onnx=False), device="cpu")
    return {"ok": furthest(state_of(learn.model), state_of(loaded.model)) == 0}


CHECKS: list[tuple[Callable[[Bench], Found], str]] = [  # and what each needs
    (environment, ""),
    (model_is_on_the_device, ""),
    (a_run_finishes, ""),
    (answers_are_those_of_the_cpu, ""),
    (a_frozen_body_stays, ""),
    (formats_are_finite, ""),
    (a_killed_training_resumes, ""),
    (a_training_resumes_on_the_cpu, "one GPU"),
    (full_memory_halves_the_batch, ""),
    (fastais_methods_work, ""),
    (maps_are_finite, ""),
    (an_unreadable_image_is_named, ""),
    (a_model_saves_without_onnx, ""),
    (a_step_waits, "one GPU"),
    (memory_is_given_back, "one GPU"),
    (two_gpus_train_one_model, "two GPUs"),
]
