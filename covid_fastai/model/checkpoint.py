"""Checkpoints that a run resumes from: the state after an epoch, written atomically, verified on reading, no pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastai.learner import Learner
from fastai.optimizer import Optimizer
from fastai.torch_core import get_model, rank_distrib
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from covid_fastai.errors import ModelFormatError, ResourceError, UsageError
from covid_fastai.files import atomic_write
from covid_fastai.model.distributed import gather_bytes
from covid_fastai.model.random_states import read_random_states, restore_random_states

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "check_room",
    "clear_checkpoints",
    "list_checkpoints",
    "random_states",
    "read_checkpoint",
    "restore_model",
    "restore_optimiser",
    "restore_random",
    "save_checkpoint",
]

logger = logging.getLogger("covid_fastai")

FORMAT = 2
N_CHECKPOINTS = 2  # a failing disk may have damaged the newest one


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a complete epoch.

    Attributes:
        path: The JSON file that it was read from.
        facts: Values that JSON can hold: `phase`, `done` (finished epochs of that phase), `epoch` (finished epochs of
            all phases), `history` (one mapping per row), `optimiser`, `random` (one mapping per process), `recorder`
            and `scaler`.
        tensors: The tensors; their names start with `model.`, `optimiser.`, `random.`, `recorder.` or `steps.`.
    """

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the tensors whose names start with a prefix, by their names without it."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(
    writer: CheckpointWriter,
    learn: Learner,
    folder: str | Path,
    *,
    phase: str,
    done: int,
    epoch: int,
    config: Mapping[str, Any],
    history: list[dict[str, Any]],
    steps: Mapping[str, torch.Tensor],
    random: Sequence[bytes],
) -> None:
    """Begin to write the state after an epoch; then all but the last two checkpoints are removed.

    Args:
        writer: Writes it, while the training goes on.
        learn: The learner in training, between two epochs.
        folder: An existing folder.
        phase: The phase's name.
        done: Number of finished epochs of this phase.
        epoch: Number of finished epochs of all phases.
        config: The settings that identify the run; a resumed run must have the same.
        history: One mapping per epoch so far.
        steps: Values of each step so far, as tensors with one dimension.
        random: The random states of every process, from `random_states`.

    Raises:
        ResourceError: The checkpoint before this one could not be written; earlier ones are unchanged.
    """
    facts: dict[str, Any] = {"phase": phase, "done": done, "epoch": epoch, "config": dict(config), "history": history}
    facts["random"], tensors = _join_random_states(random)
    tensors |= {f"model.{key}": value for key, value in get_model(learn.model).state_dict().items()}
    tensors |= {f"steps.{key}": value for key, value in steps.items()}
    facts["optimiser"], optimiser_tensors = _optimiser_state(learn.opt)
    facts["recorder"] = {"count": learn.recorder.smooth_loss.count}
    tensors |= optimiser_tensors | {"recorder.value": learn.recorder.smooth_loss.val}
    scaler = getattr(learn, "scaler", None)  # of fp16; bfloat16 needs none
    facts["scaler"] = scaler.state_dict() if scaler is not None else {}

    target = Path(folder) / f"epoch-{epoch:04d}.json"
    writer.write(target, facts, {key: value.detach().cpu().contiguous() for key, value in tensors.items()})


class CheckpointWriter:
    """Write checkpoints in a thread, one at a time: the next epoch does not wait for the disk.

    At the end of a `with` block every checkpoint is on the disk, also after an error or an interrupt.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def write(self, target: Path, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the values, and write them after the checkpoint before them.

        Args:
            target: The JSON file; the tensors are in a file of the same name that ends in `.safetensors`.
            facts: Values that JSON can hold.
            tensors: Tensors on the CPU.

        Raises:
            ResourceError: The checkpoint before this one could not be written.
        """
        self.wait()
        content = save_safetensors(dict(tensors))  # a copy: the training changes the tensors
        self._pending = self._thread.submit(_write, target, _canonical(facts), content)

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            ResourceError: The disk is full or the folder cannot be written to; earlier checkpoints are unchanged.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except ResourceError as error:
            if kind is None:
                raise
            logger.warning("%s %s", error.message, error.hint)  # the first error is the one to raise
        finally:
            self._thread.shutdown()


def _write(target: Path, facts: str, content: bytes) -> None:
    """Write the tensors and then the facts, a text of JSON, so that a checkpoint with a JSON file is complete."""
    with atomic_write(target.with_suffix(".safetensors"), mode="wb") as file:
        file.write(content)
    complete = json.loads(facts) | {"format": FORMAT, "tensors_sha256": hashlib.sha256(content).hexdigest()}
    with atomic_write(target) as file:
        file.write(json.dumps({"sha256": _sha256(_canonical(complete)), "checkpoint": complete}))
    for old in list_checkpoints(target.parent)[N_CHECKPOINTS:]:
        _remove(old)


def _join_random_states(states: Sequence[bytes]) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return the plain values and the tensors of all processes, the tensors as `random.<process>.<generator>`."""
    facts, tensors = [], {}
    for process, content in enumerate(states):
        header, _, rest = content.partition(b"\0")
        facts.append(json.loads(header))
        tensors |= {f"random.{process}.{name}": value for name, value in load_safetensors(rest).items()}
    return facts, tensors


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Return the JSON files of the checkpoints, the newest first, without checking that they can be read."""
    return sorted(Path(folder).glob("epoch-[0-9][0-9][0-9][0-9].json"), reverse=True)


def clear_checkpoints(folder: str | Path) -> None:
    """Remove all checkpoints; the saved model of a finished run replaces them."""
    for path in list_checkpoints(folder):
        _remove(path)


def _remove(path: Path) -> None:
    path.unlink()  # first, since a tensor file without its JSON file is ignored
    path.with_suffix(".safetensors").unlink(missing_ok=True)


def read_checkpoint(folder: str | Path, *, config: Mapping[str, Any]) -> Checkpoint | None:
    """Read the newest complete checkpoint; a damaged one gives a warning, and the one before it is read.

    Args:
        folder: The folder of the checkpoints.
        config: The settings that identify the run.

    Returns:
        The checkpoint; None if there is none.

    Raises:
        ModelFormatError: There are checkpoints, but none can be read.
        UsageError: The checkpoint belongs to a run with other settings; the message names them.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            checkpoint = _read(path)
        except ModelFormatError as error:
            logger.warning("%s The checkpoint before it is used.", error.message)
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
        intact = outer["sha256"] == _sha256(_canonical(facts)) and facts["tensors_sha256"] == _sha256(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFormatError(f"{path} cannot be read: {error}.") from error
    if not intact:  # guard: checkpoint_hash
        raise ModelFormatError(f"{path} or its .safetensors file is damaged: the sha256 differs.")
    if facts["format"] != FORMAT:
        raise ModelFormatError(f"{path} has format {facts['format']}; this version reads {FORMAT}.")
    return Checkpoint(path, facts, load_safetensors(content))


def _check_config(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    now, before = json.loads(_canonical(config)), checkpoint.facts["config"]
    changed = [key for key in now.keys() | before.keys() if now.get(key) != before.get(key)]
    if changed:  # guard: checkpoint_config
        changes = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in sorted(changed))
        raise UsageError(
            f"{checkpoint.path} belongs to a run with other settings: {changes}.", hint="Resume with the same settings."
        )


def check_room(learn: Learner, folder: str | Path) -> None:
    """Check that the disk has enough space for the checkpoints.

    Raises:
        ResourceError: The free space is too small.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in learn.model.parameters())
    # three values per parameter (the weight and Adam's two moments), and one checkpoint more while it is written
    needed = 3 * size * (N_CHECKPOINTS + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:  # guard: room
        raise ResourceError(
            f"On the disk of {folder} {free >> 20} MiB are free, the checkpoints need {needed >> 20} MiB.",
            hint="Free some space.",
        )


def restore_model(learn: Learner, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights into the model.

    Raises:
        ModelFormatError: The weights belong to another model.
    """
    try:
        get_model(learn.model).load_state_dict(checkpoint.part("model."))
    except RuntimeError as error:
        raise ModelFormatError(
            f"{checkpoint.path} belongs to another model: {error}.", hint="Start a new run."
        ) from error


def _optimiser_state(opt: Optimizer) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Split the state of fastai's optimiser into plain values and tensors."""
    if not isinstance(opt, Optimizer):
        raise UsageError(
            f"The optimiser {type(opt).__name__} cannot be saved: checkpoints support fastai's optimisers only.",
            hint="Use fastai's Adam or SGD, or out=None.",
        )
    state, plain, tensors = opt.state_dict(), [], {}
    for number, values in enumerate(state["state"]):
        plain.append({key: value for key, value in values.items() if not isinstance(value, torch.Tensor)})
        moments = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
        tensors |= {f"optimiser.{number}.{key}": value for key, value in moments.items()}
    return {"hypers": [dict(hyper) for hyper in state["hypers"]], "state": plain}, tensors


def restore_optimiser(learn: Learner, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's moments, step counts and hyperparameters into the optimiser, which must exist."""
    plain, tensors = checkpoint.facts["optimiser"], checkpoint.part("optimiser.")
    states = [dict(values) for values in plain["state"]]
    parameters = [parameter for parameter, *_ in learn.opt.all_params()]
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        # on the parameter's device and in its memory format: channels-last models train faster so
        states[int(number)][name] = torch.empty_like(like, requires_grad=False).copy_(value)
    learn.opt.load_state_dict({"state": states, "hypers": learn.opt.hypers})
    for hyper, values in zip(learn.opt.hypers, plain["hypers"], strict=True):
        hyper.update(values)


def random_states(learn: Learner) -> list[bytes]:
    """Return the random states of every process of the training, in their order; all processes must call this."""
    facts, tensors = read_random_states(learn)
    return gather_bytes(_canonical(facts).encode() + b"\0" + save_safetensors(tensors))  # JSON has no zero byte


def restore_random(learn: Learner, checkpoint: Checkpoint) -> None:
    """Restore this process's random states; a process that the saved training did not have keeps its own."""
    process = rank_distrib()
    if process >= len(checkpoint.facts["random"]):
        logger.info("Process %d was not part of the saved training: its random states are new.", process)
        return
    # guard: random_of_process
    restore_random_states(learn, checkpoint.facts["random"][process], checkpoint.part(f"random.{process}."))


def _canonical(value: Any) -> str:
    """Return plain values as JSON with sorted keys; floats, NaN included, are read back unchanged."""
    return json.dumps(
        value, sort_keys=True, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item)
    )


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
