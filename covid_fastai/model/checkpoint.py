"""What a run resumes from: the state after an epoch, written atomically, verified on reading, none of it a pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner
from fastai.optimizer import Optimizer
from fastai.torch_core import get_model
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from covid_fastai.errors import ModelFormatError, ResourceError, UsageError
from covid_fastai.files import atomic_write

__all__ = [
    "Checkpoint",
    "check_room",
    "clear_checkpoints",
    "list_checkpoints",
    "read_checkpoint",
    "restore_model",
    "restore_optimiser",
    "restore_random",
    "save_checkpoint",
]

logger = logging.getLogger("covid_fastai")

FORMAT = 1
KEPT = 2  # the newest may be the one that a failing disk damaged


@dataclass(frozen=True)
class Checkpoint:
    """Hold the state of a training after a whole epoch.

    Attributes:
        path: The JSON file that it was read from.
        facts: `phase`, `done` (epochs of that phase), `epoch` (of all phases), `history` (a mapping a row),
            `optimiser`, `random`, `recorder`, `scaler`: plain values.
        tensors: The tensors, their names beginning with `model.`, `optimiser.`, `random.` or `steps.`.
    """

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors under a prefix, without it."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(
    learn: Learner,
    folder: str | Path,
    *,
    phase: str,
    done: int,
    epoch: int,
    config: Mapping[str, Any],
    history: list[dict[str, Any]],
    steps: Mapping[str, torch.Tensor],
) -> Path:
    """Write the state after an epoch, and remove all but the last two checkpoints.

    Args:
        learn: The learner in training, between two epochs.
        folder: Where to write; must exist.
        phase: The phase's name.
        done: How many epochs of this phase are done.
        epoch: How many epochs of all phases are done.
        config: What makes this run this run; a resumed run must have the same.
        history: One mapping an epoch so far.
        steps: Numbers of each step so far, as tensors of one dimension.

    Returns:
        The JSON file; the tensors lie beside it in a file of the same name ending in `.safetensors`.

    Raises:
        ResourceError: The disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    facts, tensors = _random_state(learn)
    facts = {"random": facts, "phase": phase, "done": done, "epoch": epoch, "config": dict(config), "history": history}
    tensors |= {f"model.{key}": value for key, value in get_model(learn.model).state_dict().items()}
    tensors |= {f"steps.{key}": value for key, value in steps.items()}
    facts["optimiser"], optimiser_tensors = _optimiser_state(learn.opt)
    facts["recorder"] = {"count": learn.recorder.smooth_loss.count}
    tensors |= optimiser_tensors | {"recorder.value": learn.recorder.smooth_loss.val}
    scaler = getattr(learn, "scaler", None)  # of fp16; bfloat16 needs none
    facts["scaler"] = scaler.state_dict() if scaler is not None else {}

    target = Path(folder) / f"epoch-{epoch:04d}.json"
    content = save_safetensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    with atomic_write(target.with_suffix(".safetensors"), mode="wb") as file:
        file.write(content)
    facts |= {"format": FORMAT, "tensors_sha256": hashlib.sha256(content).hexdigest()}
    text = _canonical(facts)
    with atomic_write(target) as file:  # last, so that a checkpoint with a JSON file is whole
        file.write(json.dumps({"sha256": _sha256(text), "checkpoint": json.loads(text)}))
    for old in list_checkpoints(folder)[KEPT:]:
        _remove(old)
    return target


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints' JSON files, the newest first; whether they can be read is not looked at."""
    return sorted(Path(folder).glob("epoch-[0-9][0-9][0-9][0-9].json"), reverse=True)


def clear_checkpoints(folder: str | Path) -> None:
    """Remove every checkpoint, as one may when the finished model is saved."""
    for path in list_checkpoints(folder):
        _remove(path)


def _remove(path: Path) -> None:
    path.unlink()  # first, for without it the other file counts as nothing
    path.with_suffix(".safetensors").unlink(missing_ok=True)


def read_checkpoint(folder: str | Path, *, config: Mapping[str, Any]) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; a damaged one is named in a warning and the one before it is read.

    Args:
        folder: Where they lie.
        config: What makes this run this run.

    Returns:
        The checkpoint; None where there is none.

    Raises:
        ModelFormatError: There are checkpoints and none can be read.
        UsageError: The checkpoint belongs to a run with other settings; the message names them.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            checkpoint = _read(path)
        except ModelFormatError as error:
            logger.warning("%s The checkpoint before it is taken.", error.message)
            continue
        _check_config(checkpoint, config)
        return checkpoint
    if paths:
        raise ModelFormatError(f"No checkpoint in {folder} can be read.", hint="Start a new run.")
    return None


def _read(path: Path) -> Checkpoint:
    try:
        outer = json.loads(path.read_text(encoding="utf-8"))
        facts = outer["checkpoint"]
        content = path.with_suffix(".safetensors").read_bytes()
        whole = outer["sha256"] == _sha256(_canonical(facts)) and facts["tensors_sha256"] == _sha256(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFormatError(f"{path} cannot be read: {error}.") from error
    if not whole:  # guard: checkpoint_hash
        raise ModelFormatError(f"{path} or its .safetensors is damaged: the sha256 differs.")
    if facts["format"] != FORMAT:
        raise ModelFormatError(f"{path} has format {facts['format']}; this version reads {FORMAT}.")
    return Checkpoint(path, facts, load_safetensors(content))


def _check_config(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    now, before = json.loads(_canonical(config)), checkpoint.facts["config"]
    odd = [key for key in now.keys() | before.keys() if now.get(key) != before.get(key)]
    if odd:  # guard: checkpoint_config
        changes = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in sorted(odd))
        raise UsageError(f"{checkpoint.path} is of another run: {changes}.", hint="Resume with the same settings.")


def check_room(learn: Learner, folder: str | Path) -> None:
    """Raise unless the disk has room for the checkpoints to come.

    Raises:
        ResourceError: It has not.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in learn.model.parameters())
    needed = 3 * size * (KEPT + 1)  # a model and Adam's two moments, in the kept ones and the one being written
    free = shutil.disk_usage(folder).free
    if free < needed:  # guard: room
        raise ResourceError(
            f"{folder}: {free >> 20} MiB are free, the checkpoints need {needed >> 20} MiB.", hint="Free some space."
        )


def restore_model(learn: Learner, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into the model.

    Raises:
        ModelFormatError: They are of another model.
    """
    try:
        get_model(learn.model).load_state_dict(checkpoint.part("model."))
    except RuntimeError as error:
        raise ModelFormatError(f"{checkpoint.path} is of another model: {error}.", hint="Start a new run.") from error


def _optimiser_state(opt: Optimizer) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Part fastai's optimiser state in plain values and tensors."""
    if not isinstance(opt, Optimizer):
        raise UsageError(
            f"Checkpoints know fastai's optimisers only, not {type(opt).__name__}.",
            hint="Use fastai's Adam or SGD, or out=None.",
        )
    state, plain, tensors = opt.state_dict(), [], {}
    for number, values in enumerate(state["state"]):
        plain.append({key: value for key, value in values.items() if not isinstance(value, torch.Tensor)})
        found = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
        tensors |= {f"optimiser.{number}.{key}": value for key, value in found.items()}
    return {"hypers": [dict(hyper) for hyper in state["hypers"]], "state": plain}, tensors


def restore_optimiser(learn: Learner, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's moments, step counts and hyper-parameters into the optimiser, which must exist."""
    plain, tensors = checkpoint.facts["optimiser"], checkpoint.part("optimiser.")
    states = [dict(values) for values in plain["state"]]
    parameters = [parameter for parameter, *_ in learn.opt.all_params()]
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        # in the parameter's own device and memory format, which channels-last models are faster with
        states[int(number)][name] = torch.empty_like(like, requires_grad=False).copy_(value)
    learn.opt.load_state_dict({"state": states, "hypers": learn.opt.hypers})
    for hyper, values in zip(learn.opt.hypers, plain["hypers"], strict=True):
        hyper.update(values)


def _random_state(learn: Learner) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Take the state of every generator that training draws from: Python's, numpy's, torch's and the loaders'."""
    facts, tensors = {}, {}
    generators = {"python": random, **{f"loader{i}": loader.rng for i, loader in enumerate(learn.dls.loaders)}}
    for name, generator in generators.items():
        version, numbers, gauss = generator.getstate()
        facts[name], tensors[f"random.{name}"] = [version, gauss], torch.tensor(numbers, dtype=torch.int64)
    kind, numbers, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - fastai draws from numpy's global generator
    facts["numpy"], tensors["random.numpy"] = [kind, *rest], torch.from_numpy(np.asarray(numbers).astype(np.int64))
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random.cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return facts, tensors


def restore_random(learn: Learner, checkpoint: Checkpoint) -> None:
    """Set every generator to where it stood when the checkpoint was taken."""
    facts, tensors = checkpoint.facts["random"], checkpoint.part("random.")
    generators = {"python": random, **{f"loader{i}": loader.rng for i, loader in enumerate(learn.dls.loaders)}}
    for name, generator in generators.items():
        version, gauss = facts[name]
        generator.setstate((version, tuple(tensors[name].tolist()), gauss))
    kind, *rest = facts["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))  # noqa: NPY002 - see above
    torch.set_rng_state(tensors["torch"])
    cuda = sorted(key for key in tensors if key.startswith("cuda"))
    for index, key in enumerate(cuda[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(tensors[key], index)


def _canonical(value: Any) -> str:
    """Write plain values as JSON with sorted keys; a float comes back as the same float, NaN included."""
    return json.dumps(
        value, sort_keys=True, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item)
    )


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
