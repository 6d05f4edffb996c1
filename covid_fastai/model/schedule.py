"""Train in two one-cycle phases, the first with a frozen body; training can be resumed after every epoch."""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.imports import IN_NOTEBOOK
from fastai.learner import Learner
from fastai.torch_core import default_device, get_model, num_distrib
from torch.nn import functional

from covid_fastai.data.dataloaders import loader_facts, set_batch_size
from covid_fastai.errors import DataError, DivergenceError, ResourceError, UsageError
from covid_fastai.files import make_folder, write_csv
from covid_fastai.model.callbacks import (
    FROZEN,
    UNFROZEN,
    BatchLog,
    CheckpointCallback,
    EpochLog,
    HistoryRecorder,
    NonFiniteGuard,
    Phase,
    Record,
    Resumption,
    copied_state,
    smooth_loss_on_device,
)
from covid_fastai.model.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    check_room,
    clear_checkpoints,
    list_checkpoints,
    read_checkpoint,
    restore_model,
    restore_optimiser,
)
from covid_fastai.model.distributed import (
    check_same_everywhere,
    data_parallel,
    is_main_process,
    main_process_first,
)
from covid_fastai.model.features import features_of_frozen_body, needs_body
from covid_fastai.model.freed_memory import keep_freed_memory
from covid_fastai.model.learner import FrozenBody
from covid_fastai.model.learner_facts import facts_of, log_model
from covid_fastai.model.random_states import read_random_states, restore_random_states
from covid_fastai.options import (
    Epochs,
    FrozenAugmentations,
    ImageSize,
    LearningRate,
    LearningRateRatio,
    Switch,
    checked,
)
from covid_fastai.run_folder import BATCH_HALVED, RunFolder

__all__ = ["ProgressiveResizing", "fit", "is_out_of_memory"]

logger = logging.getLogger("covid_fastai")

OUT_OF_MEMORY = (  # texts of errors, in small letters
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "insufficient memory"),
    "invalid buffer size",  # MPS: a tensor is larger than the device allows
)
OUT_OF_MEMORY += (  # of libraries that allocate on their own; guard: library_memory
    *("_alloc_failed", "allocation_failed", "statusallocfailed", "status_memory_error"),  # CUDA's, cuDNN 9's, ROCm's
    *("out_of_device_memory", "out_of_host_memory", "error_out_of_resources"),  # SYCL's
    # where not even their first buffer finds room
    *("cublas_status_not_initialized", "cudnn_status_not_initialized"),
    "unable to find an engine to execute",  # torch passes over each algorithm of cuDNN that finds no room
)
HALVINGS = 3  # of the batch size; with less than an eighth of it, BatchNorm's statistics are too noisy
PRETRAINED_LR_RATIO = 100.0  # as in fastai's fine_tune: pretrained first layers need the smallest changes
CYCLES = {  # fraction of steps in the warm-up, and the divisor of the peak rate that it starts from
    FROZEN: {"pct_start": 0.25, "div": 25.0},  # as in fastai's fit_one_cycle
    UNFROZEN: {"pct_start": 0.3, "div": 5.0},  # as in fastai's fine_tune: starts higher, since the head is trained
}


@checked
def fit(
    learn: Learner,
    *,
    frozen_epochs: Epochs = 5,
    unfrozen_epochs: Epochs = 5,
    learning_rate: LearningRate = 2e-3,
    unfrozen_learning_rate: LearningRate | None = None,
    lr_ratio: LearningRateRatio | None = None,
    frozen_augmentations: FrozenAugmentations | None = None,
    initial_image_size: ImageSize | None = None,
    out: str | Path | None = None,
    resume: Switch = False,
    stop_on_divergence: Switch = True,
) -> None:
    """Train in two one-cycle phases: the head on a frozen body, then all layers.

    In the first phase no tensor of the body changes, BatchNorm's statistics included. In the second the groups of
    layers learn at rates from `unfrozen_learning_rate / lr_ratio` (first layers) to `unfrozen_learning_rate`
    (head), in equal factors. (One-cycle: Smith, arXiv:1803.09820; discriminative rates: Howard and Ruder, ACL 2018.)

    After the training, and also after an error, `learn.facts.history` is a table with one row per epoch (phase, epoch
    counted from 1 over both phases, train_loss, valid_loss, the metrics, seconds) and `learn.facts.steps` one with one
    row per step (step, phase, learning_rate of the head, smoothed train_loss). Each epoch is logged; a progress bar is
    shown in notebooks only.

    When out of memory, training starts again with half the batch size, up to three times; this is logged and recorded
    in the run. In a distributed training (`join_processes`), each process trains on its part of every batch.

    Args:
        learn: A learner of `build_learner`.
        frozen_epochs: Epochs of the first phase; 0 to skip it.
        unfrozen_epochs: Epochs of the second phase; 0 to skip it.
        learning_rate: The peak learning rate of the first phase, above 0.
        unfrozen_learning_rate: The peak learning rate of the head in the second phase; None for half of
            `learning_rate`.
        lr_ratio: The ratio of the head's learning rate to that of the first layers, 1 or more; None for 100 with
            pretrained weights and 1 with random ones.
        frozen_augmentations: Number of augmented views of each image in the frozen phase, 1 or more; None for a new
            view in each epoch. A frozen body always returns the same features for a view, so they are computed once
            per view (and once for validation), and the head trains on them: the result is the same, and training is
            faster. With callbacks that may need images or the body (`needs_body`), the body runs in every step, and
            the log gives the reason.
        initial_image_size: Side of the training images in the first half of the unfrozen epochs, pixels (progressive
            resizing); None for the loaders' size. Validation always uses the loaders' size.
        out: The run's folder, for a checkpoint after each epoch (in `checkpoints/`, of which the last two remain),
            `history.csv` and `steps.csv`; None to write nothing.
        resume: Continue from the newest checkpoint in `out`, or start from the beginning if there is none. The state
            of other callbacks is not in a checkpoint.
        stop_on_divergence: Stop when a loss or a weight becomes NaN or infinite, and restore the model of the last
            good epoch. False continues, for debugging.

    Raises:
        UsageError: An argument has a value that is not allowed, or the checkpoint belongs to a run with other settings.
        DataError: There are fewer training images than one batch.
        DivergenceError: A loss or a weight became NaN or infinite; the message has the epoch and the step.
        ResourceError: The folder has checkpoints of another run, the disk is full, or memory is insufficient for an
            eighth of the batch size.
        ModelFormatError: No checkpoint in `out` can be read.

    Examples:
        >>> from covid_fastai import build_learner
        >>> learn = build_learner(dls, weights=None)
        >>> fit(learn, frozen_epochs=1, unfrozen_epochs=1, learning_rate=1e-3)
        >>> learn.facts.history[["phase", "epoch"]]
              phase  epoch
        0    frozen      1
        1  unfrozen      2
    """
    phases = _plan(learn, frozen_epochs, unfrozen_epochs, learning_rate, unfrozen_learning_rate, lr_ratio)
    _check_data(learn)
    plan = _Plan(
        phases,
        views=_views(frozen_augmentations, frozen_epochs),
        resizing=_resizing(learn, initial_image_size, unfrozen_epochs),
        choices={"initial_image_size": initial_image_size, "frozen_augmentations": frozen_augmentations},
        out=None if out is None else RunFolder(out),
        stop_on_divergence=stop_on_divergence,
    )
    if not any(isinstance(callback, FrozenBody) for callback in learn.cbs):
        learn.add_cb(FrozenBody())
    learn.train_bn = False  # read when the optimiser is created; freezes the BatchNorm layers of a frozen body
    # as fastai does, but before the optimiser exists, whose state is restored where the parameters are
    learn.model.to(getattr(learn.dls, "device", default_device()))  # guard: fit_on_device
    if plan.out is not None and is_main_process():
        make_folder(plan.out.path)
        log_model(learn, plan.out)
    initial, batch_size = _InitialState(learn), learn.dls.train.bs
    processes = num_distrib()  # `data_parallel` leaves this process alone, also after an error; guard: oom_alone
    for halvings in range(HALVINGS + 1):
        try:
            with keep_freed_memory(), data_parallel(learn):
                _fit_phases(learn, plan, resume=resume and not halvings)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):  # guard: oom
                raise
            if halvings == HALVINGS or learn.dls.train.bs < 4 or processes > 1:  # guard: oom_end
                raise ResourceError(
                    f"Out of memory with a batch size of {learn.dls.train.bs}: {_words_of_memory(error)}",
                    hint="Use a smaller batch_size or image_size, or another device.",
                ) from error
        # outside of `except`, since the error refers to the tensors that filled the memory
        initial.restore(learn)
        set_batch_size(learn.dls, learn.dls.train.bs // 2)
        logger.warning("Out of memory: training starts again with a batch size of %d.", learn.dls.train.bs)
        if plan.out is not None:
            plan.out.log(BATCH_HALVED, batch_size=learn.dls.train.bs, asked=batch_size)
            clear_checkpoints(plan.out.checkpoints)  # those of the larger batch size


@dataclass(frozen=True)
class _Plan:
    """The checked options of a call of `fit`."""

    phases: list[Phase]
    views: int
    resizing: list[Callback]
    choices: dict[str, Any]
    out: RunFolder | None
    stop_on_divergence: bool


class _InitialState:
    """The state of a learner before its training, to start again from: weights and random generators."""

    def __init__(self, learn: Learner):
        self.weights = copied_state(learn)
        self.random = read_random_states(learn)

    def restore(self, learn: Learner) -> None:
        """Restore the state, and free the memory of the training."""
        learn.opt = learn.loss_grad = None  # the loss holds the activations of the failed step
        learn._end_cleanup()  # as fastai does where a fit ends without an error  # guard: oom_release
        learn.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()
        get_model(learn.model).load_state_dict(self.weights)
        restore_random_states(learn, *self.random)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory: torch's own has a type; the others are known by their text."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _tells_of_memory(str(error))


def _tells_of_memory(text: str) -> bool:
    return any(word in text.lower() for word in OUT_OF_MEMORY)


def _words_of_memory(error: BaseException) -> str:
    """Return the line of an error that tells of memory; fastai adds lines to the errors of callbacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if _tells_of_memory(line)), lines[-1])[:200].rstrip(".") + "."


def _fit_phases(learn: Learner, plan: _Plan, *, resume: bool) -> None:
    """Train the phases; a resumed training continues from the newest checkpoint."""
    config = _describe(learn, plan.phases) | {name: value for name, value in plan.choices.items() if value}
    checkpoint = _open_checkpoints(learn, plan.out, resume=resume, config=config)
    learn.opt = None
    if checkpoint is not None:
        restore_model(learn, checkpoint)
    record = Record.of(checkpoint)
    guard = NonFiniteGuard(learn, checkpoint.facts["epoch"] if checkpoint else 0) if plan.stop_on_divergence else None
    try:
        with _logging_only(learn), smooth_loss_on_device(learn), CheckpointWriter() as writer:
            for phase in plan.phases:
                done = _done(phase, checkpoint)
                if done < phase.epochs:
                    callbacks = [
                        HistoryRecorder(record, phase, done),
                        EpochLog(phase.before, sum(p.epochs for p in plan.phases), phase.name),
                        BatchLog(),
                    ]
                    callbacks += [guard] if guard else []
                    callbacks += plan.resizing if phase.name == UNFROZEN else []
                    if plan.out is not None:
                        callbacks.append(CheckpointCallback(writer, record, phase, plan.out.checkpoints, config))
                    with _without_body(learn, plan.views) if phase.name == FROZEN else nullcontext([]) as feeding:
                        _run(learn, phase, done=done, checkpoint=checkpoint, callbacks=[*callbacks, *feeding])
    except DivergenceError as error:
        assert guard is not None  # only the guard raises DivergenceError
        learn.opt = None  # its moments may be NaN too
        restored = guard.restore(learn)
        raise DivergenceError(f"{error.message} {restored}", hint=error.hint, details=error.details) from None
    finally:
        if hasattr(learn, "training_precision"):
            learn.training_precision.leave()  # guard: leave
        record.publish(learn)
        if plan.out is not None and is_main_process():  # also the epochs before an error
            for file, table in ((plan.out.history, facts_of(learn).history), (plan.out.steps, facts_of(learn).steps)):
                if table is not None:  # `publish` has just written both
                    write_csv(file, table)


def _plan(learn, frozen_epochs, unfrozen_epochs, learning_rate, unfrozen_learning_rate, lr_ratio) -> list[Phase]:
    """Return the phases that have epochs."""
    if frozen_epochs + unfrozen_epochs == 0:
        raise UsageError("frozen_epochs and unfrozen_epochs are both 0.", hint="Train for at least one epoch.")
    pretrained = getattr(facts_of(learn).weights, "pretrained", True)
    ratio = (PRETRAINED_LR_RATIO if pretrained else 1.0) if lr_ratio is None else lr_ratio
    peak = learning_rate / 2 if unfrozen_learning_rate is None else unfrozen_learning_rate
    rates = peak if ratio == 1 else slice(peak / ratio, peak)  # fastai interpolates geometrically between groups
    plan = [Phase(FROZEN, frozen_epochs, learning_rate, 0), Phase(UNFROZEN, unfrozen_epochs, rates, frozen_epochs)]
    return [phase for phase in plan if phase.epochs]


def _views(frozen_augmentations: int | None, frozen_epochs: int) -> int:
    """Return the number of views of each image in the frozen phase, at most one per epoch."""
    return frozen_epochs if frozen_augmentations is None else min(frozen_augmentations, frozen_epochs)


@contextmanager
def _without_body(learn: Learner, views: int) -> Iterator[list[Callback]]:
    """Train the frozen phase on precomputed features unless something needs the body, and log which."""
    if reason := needs_body(learn):
        logger.info("The frozen body runs in every step: %s.", reason)
        yield []
        return
    logger.info("The frozen body runs once for validation and once for each of %d views.", views)
    with features_of_frozen_body(learn, views=views) as callback:
        yield [callback]


def _resizing(learn: Learner, size: int | None, epochs: int) -> list[Callback]:
    """Check the size, and return the callback that downsizes the images in the first half of the epochs."""
    if size is None:
        return []
    loaders = loader_facts(learn.dls)
    if loaders is not None and size >= loaders.image_size:
        raise UsageError(
            f"initial_image_size={size} is not below image_size={loaders.image_size}.",
            hint="Use a smaller initial_image_size, or leave it out.",
        )
    return [ProgressiveResizing(size, epochs // 2)]


def _check_data(learn: Learner) -> None:
    """Raise if the training images do not fill one batch, and warn if there are no validation images."""
    if len(learn.dls.train) == 0:
        raise DataError(
            f"{learn.dls.train.n} training images do not fill one batch of {learn.dls.train.bs}.",
            hint="Use a smaller batch_size, or more images.",
        )
    if len(learn.dls.valid) == 0:
        logger.warning("There are no validation images: valid_loss and the metrics will be empty.")


def _describe(learn: Learner, phases: list[Phase]) -> dict[str, Any]:
    """Return the schedule, model and data that identify a run, for its checkpoints."""
    learner, loaders = facts_of(learn), loader_facts(learn.dls)
    weights, cohort = learner.weights, loaders.cohort if loaders else None
    facts = {phase.name: [phase.epochs, str(phase.learning_rate)] for phase in phases}
    facts |= {
        "arch": learner.arch,
        "weight_decay": learn.wd,
        "batch_size": learn.dls.train.bs * max(1, num_distrib()),
    }
    if learner.parts:  # a run that was begun with other parts is not continued
        facts["parts"] = learner.parts
    facts |= {"weights": (weights.sha256 or weights.name) if weights else "", "images": learn.dls.train.n}
    facts |= {"classes": [str(name) for name in getattr(learn.dls, "vocab", [])]}
    if cohort is not None:
        rows = zip(cohort["path"].map(lambda path: Path(str(path)).name), cohort["label"], cohort["split"], strict=True)
        facts["rows"] = hashlib.sha256(repr(list(rows)).encode()).hexdigest()
    return facts


def _open_checkpoints(
    learn: Learner, out: RunFolder | None, *, resume: bool, config: dict[str, Any]
) -> Checkpoint | None:
    """Create the folder of the checkpoints, and return the checkpoint to resume from, if there is one."""
    if out is None:
        if resume:
            raise UsageError("resume=True needs the run's folder.", hint="Pass the folder to resume as out.")
        return None
    folder = make_folder(out.checkpoints)
    if list_checkpoints(folder) and not resume:
        raise ResourceError(
            f"{folder} has checkpoints of another training.", hint="Name another folder, or use resume=True."
        )
    check_room(learn, folder)
    checkpoint = None
    if resume:
        with main_process_first():  # the only one that writes checkpoints
            checkpoint = read_checkpoint(folder, config=config)
        check_same_everywhere("The checkpoint", None if checkpoint is None else checkpoint.facts["epoch"])
    if checkpoint is not None:
        logger.info("Resuming after epoch %d (%s).", checkpoint.facts["epoch"], checkpoint.path.name)
    elif resume:
        logger.info("There is no checkpoint in %s yet: training starts from the beginning.", folder)
    return checkpoint


def _done(phase: Phase, checkpoint: Checkpoint | None) -> int:
    """Return how many epochs of a phase are finished according to the checkpoint."""
    return 0 if checkpoint is None else min(max(checkpoint.facts["epoch"] - phase.before, 0), phase.epochs)


def _run(learn: Learner, phase: Phase, *, done: int, checkpoint: Checkpoint | None, callbacks: list[Callback]) -> None:
    """Train one phase from epoch `done` on."""
    if phase.name == FROZEN:
        learn.freeze()
    else:
        learn.unfreeze()
    if checkpoint is not None and checkpoint.facts["epoch"] == phase.before + done:
        if done:  # otherwise the phase begins with a new optimiser, as in an uninterrupted run
            restore_optimiser(learn, checkpoint)  # guard: resume_optimiser
        callbacks = [*callbacks, Resumption(checkpoint, done)]
    learn.fit_one_cycle(phase.epochs, phase.learning_rate, start_epoch=done, cbs=callbacks, **CYCLES[phase.name])


@contextmanager
def _logging_only(learn: Learner) -> Iterator[None]:
    """Disable fastai's progress bar and table outside notebooks, where they print broken lines."""
    with ExitStack() as stack:
        if not (IN_NOTEBOOK and hasattr(learn, "progress")):
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
        yield


class ProgressiveResizing(Callback):
    """Downsize the training batches of the first epochs on the device; validation always uses the full size.

    Source: fast.ai's DAWNBench entry of 2018; Howard and Gugger, Deep Learning for Coders with fastai, chapter 7.

    Args:
        size: Side of the downsized images, pixels.
        epochs: Number of epochs with downsized images, from the first epoch of the fit.
    """

    order = 10  # before MixedPrecision and other callbacks that use the batch

    def __init__(self, size: int, epochs: int):
        self.size, self.epochs = size, epochs

    def before_batch(self):
        """Downsize the images of a training batch."""
        if self.training and self.epoch < self.epochs:
            options = {"size": (self.size, self.size), "mode": "bilinear", "antialias": True}
            self.learn.xb = tuple(functional.interpolate(x, **options) for x in self.xb)
