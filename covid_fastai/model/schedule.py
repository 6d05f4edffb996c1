"""The training: two one-cycles, the first with the body frozen; watched, logged, and resumable after every epoch."""

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
from fastai.torch_core import get_model, get_random_states, num_distrib, set_random_states
from torch.nn import functional

from covid_fastai.data.dataloaders import loader_facts, set_batch_size
from covid_fastai.errors import DataError, DivergenceError, ResourceError, UsageError
from covid_fastai.files import make_folder, write_csv
from covid_fastai.model.callbacks import (
    FROZEN,
    UNFROZEN,
    CheckpointCallback,
    EpochLog,
    HistoryRecorder,
    NonFiniteGuard,
    Phase,
    Record,
    Resumption,
    copied_state,
)
from covid_fastai.model.checkpoint import (
    Checkpoint,
    check_room,
    clear_checkpoints,
    list_checkpoints,
    read_checkpoint,
    restore_model,
    restore_optimiser,
)
from covid_fastai.model.distributed import data_parallel, is_main_process
from covid_fastai.model.features import features_of_frozen_body, needs_body
from covid_fastai.model.learner import FrozenBody
from covid_fastai.model.learner_facts import facts_of, log_model
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

HALVINGS = 3  # of the batch: below an eighth of what was asked for, BatchNorm learns little
PRETRAINED_SPREAD = 100.0  # fastai's fine_tune: the first layers, which changed least, learn 100 times slower
CYCLES = {  # share of the warm-up, and where it begins as a part of the peak
    FROZEN: {"pct_start": 0.25, "div": 25.0},  # fastai's fit_one_cycle
    UNFROZEN: {"pct_start": 0.3, "div": 5.0},  # fastai's fine_tune: begins nearer to the peak, for the head is warm
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
    """Train in two one-cycles: the head on a body that is truly frozen, then everything.

    In the first phase no tensor of the body changes, BatchNorm's statistics included. In the second the groups of
    layers learn at rates from `unfrozen_learning_rate / lr_ratio` (first layers) to `unfrozen_learning_rate`
    (head), in equal factors. (One-cycle: Smith, arXiv:1803.09820; discriminative rates: Howard and Ruder, ACL 2018.)

    Afterwards, and after an error too, `learn.facts.history` is a table with a row an epoch (phase, epoch counted from
    1 over both phases, train_loss, valid_loss, the metrics, seconds) and `learn.facts.steps` one with a row a step
    (step, phase, learning_rate of the head, train_loss smoothed). Each epoch is logged; a bar is shown in a notebook
    only.

    Out of memory, the training begins anew with half as many images in a step, up to three times; the log and the
    run's record say so. Where several processes have joined (`join_processes`), each trains on its part of every batch.

    Args:
        learn: The learner, as `build_learner` makes it.
        frozen_epochs: Epochs of the first phase, 0 to leave it out.
        unfrozen_epochs: Epochs of the second phase, 0 to leave it out.
        learning_rate: The head's peak rate in the first phase, above 0.
        unfrozen_learning_rate: Its peak rate in the second phase; half of `learning_rate` if None.
        lr_ratio: How many times slower the first layers learn than the head, 1 or more; if None, 100 for
            pretrained weights and 1 for random ones, whose first layers have as much to learn.
        frozen_augmentations: How many augmented views of each image the frozen epochs share, 1 or more; a fresh one
            each epoch if None. A frozen body says the same of the same picture, so it runs once a view (and once for
            validation), and the head learns from what it said: the same training at a fraction of the work. Callbacks
            that may look at images or into the body (`needs_body`) get the slow way, and the log says why.
        initial_image_size: Side of the training images in the first half of the unfrozen epochs, pixels (progressive
            resizing); None for the loaders' own size throughout. Validation sees the loaders' own size always.
        out: The run's folder, for a checkpoint after each epoch (in `checkpoints/`, the last two are kept),
            `history.csv` and `steps.csv`; None to write nothing.
        resume: Continue from the newest checkpoint there; from the beginning, where there is none yet. Callbacks of
            one's own and what they remember are not in it.
        stop_on_divergence: Stop at the first loss or weight that is not a finite number, and go back to the model of
            the last good epoch. False is for looking at what happens.

    Raises:
        UsageError: An argument has a value that is not allowed, or the checkpoint is of a run with other settings.
        DataError: The training images are fewer than one batch.
        DivergenceError: A loss or a weight became NaN or infinite; says at which epoch and step.
        ResourceError: The folder holds another run's checkpoints, the disk has no room, or the memory is too small for
            an eighth of the batch, too.
        ModelFormatError: No checkpoint there can be read.

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
    learn.train_bn = False  # read when the optimiser is made: a frozen body's BatchNorm is frozen too
    if plan.out is not None and is_main_process():
        make_folder(plan.out.path)
        log_model(learn, plan.out)
    start, batch_size = _Start(learn), learn.dls.train.bs
    for halvings in range(HALVINGS + 1):
        try:
            with data_parallel(learn):
                _fit_phases(learn, plan, resume=resume and not halvings)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):  # guard: oom
                raise
            if halvings == HALVINGS or learn.dls.train.bs < 4 or num_distrib() > 1:  # guard: oom_end
                raise ResourceError(
                    f"Out of memory, with {learn.dls.train.bs} images in a step.",
                    hint="Take a smaller batch_size or image_size, or another device.",
                ) from error
        # outside of `except`, whose error holds the tensors that filled the memory
        start.restore(learn)
        set_batch_size(learn.dls, learn.dls.train.bs // 2)
        logger.warning("Out of memory: the training begins anew with %d images in a step.", learn.dls.train.bs)
        if plan.out is not None:
            plan.out.log(BATCH_HALVED, batch_size=learn.dls.train.bs, asked=batch_size)
            clear_checkpoints(plan.out.checkpoints)  # of the larger batches


@dataclass(frozen=True)
class _Plan:
    """What a call of `fit` has chosen, checked."""

    phases: list[Phase]
    views: int
    resizing: list[Callback]
    choices: dict[str, Any]
    out: RunFolder | None
    stop_on_divergence: bool


class _Start:
    """The state of a learner before its training, to begin anew from: weights and random numbers."""

    def __init__(self, learn: Learner):
        self.weights = copied_state(learn)
        self.random = get_random_states()
        self.shuffling = [loader.rng.getstate() for loader in learn.dls.loaders]

    def restore(self, learn: Learner) -> None:
        """Put the state back, and free the memory that the training took."""
        learn.opt = None
        learn.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        get_model(learn.model).load_state_dict(self.weights)
        set_random_states(**self.random)
        for loader, state in zip(learn.dls.loaders, self.shuffling, strict=True):
            loader.rng.setstate(state)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is one of memory: CUDA's has a type, MPS's and the CPU allocator's have words."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error).lower() for word in words)


def _fit_phases(learn: Learner, plan: _Plan, *, resume: bool) -> None:
    """Train the phases, from the newest checkpoint on where a training is resumed."""
    config = _describe(learn, plan.phases) | {name: value for name, value in plan.choices.items() if value}
    checkpoint = _open_checkpoints(learn, plan.out, resume=resume, config=config)
    learn.opt = None
    if checkpoint is not None:
        restore_model(learn, checkpoint)
    record = Record.of(checkpoint)
    guard = NonFiniteGuard(learn, checkpoint.facts["epoch"] if checkpoint else 0) if plan.stop_on_divergence else None
    try:
        with _logging_only(learn):
            for phase in plan.phases:
                done = _done(phase, checkpoint)
                if done < phase.epochs:
                    callbacks = [
                        HistoryRecorder(record, phase, done),
                        EpochLog(phase.before, sum(p.epochs for p in plan.phases), phase.name),
                    ]
                    callbacks += [guard] if guard else []
                    callbacks += plan.resizing if phase.name == UNFROZEN else []
                    if plan.out is not None:
                        callbacks.append(CheckpointCallback(record, phase, plan.out.checkpoints, config))
                    with _without_body(learn, plan.views) if phase.name == FROZEN else nullcontext([]) as feeding:
                        _run(learn, phase, done=done, checkpoint=checkpoint, callbacks=[*callbacks, *feeding])
    except DivergenceError as error:
        assert guard is not None  # it is what raises them
        learn.opt = None  # its moments are NaN, too
        back = guard.restore(learn)
        raise DivergenceError(f"{error.message} {back}", hint=error.hint, details=error.details) from None
    finally:
        if hasattr(learn, "training_precision"):
            learn.training_precision.leave()  # guard: leave
        record.publish(learn)
        if plan.out is not None and is_main_process():  # the epochs that there were, also where the last one failed
            write_csv(plan.out.history, facts_of(learn).history)
            write_csv(plan.out.steps, facts_of(learn).steps)


def _plan(learn, frozen_epochs, unfrozen_epochs, learning_rate, unfrozen_learning_rate, lr_ratio) -> list[Phase]:
    """Return the phases that have epochs."""
    if frozen_epochs + unfrozen_epochs == 0:
        raise UsageError("frozen_epochs and unfrozen_epochs are both 0.", hint="Train for at least one epoch.")
    pretrained = getattr(facts_of(learn).weights, "pretrained", True)
    spread = (PRETRAINED_SPREAD if pretrained else 1.0) if lr_ratio is None else lr_ratio
    peak = learning_rate / 2 if unfrozen_learning_rate is None else unfrozen_learning_rate
    rates = peak if spread == 1 else slice(peak / spread, peak)
    plan = [Phase(FROZEN, frozen_epochs, learning_rate, 0), Phase(UNFROZEN, unfrozen_epochs, rates, frozen_epochs)]
    return [phase for phase in plan if phase.epochs]


def _views(frozen_augmentations: int | None, frozen_epochs: int) -> int:
    """Return how many views of each image there are."""
    return frozen_epochs if frozen_augmentations is None else min(frozen_augmentations, frozen_epochs)


@contextmanager
def _without_body(learn: Learner, views: int) -> Iterator[list[Callback]]:
    """Let the frozen phase learn from features where nothing needs the body, and say which way it goes."""
    if reason := needs_body(learn):
        logger.info("The frozen body runs in every step: %s.", reason)
        yield []
        return
    logger.info("The frozen body runs once for validation and once for each of %d views; the head learns.", views)
    with features_of_frozen_body(learn, views=views) as callback:
        yield [callback]


def _resizing(learn: Learner, size: int | None, epochs: int) -> list[Callback]:
    """Check the size and return what shrinks the images of the first half of the epochs."""
    if size is None:
        return []
    loaders = loader_facts(learn.dls)
    if loaders is not None and size >= loaders.image_size:
        raise UsageError(
            f"initial_image_size={size} is not below image_size={loaders.image_size}.", hint="Leave it out."
        )
    return [ProgressiveResizing(size, epochs // 2)]


def _check_data(learn: Learner) -> None:
    if len(learn.dls.train) == 0:
        raise DataError(
            f"{learn.dls.train.n} training images do not fill one batch of {learn.dls.train.bs}.",
            hint="Take a smaller batch_size, or more images.",
        )
    if len(learn.dls.valid) == 0:
        logger.warning("There are no validation images: valid_loss and the metrics stay empty.")


def _describe(learn: Learner, phases: list[Phase]) -> dict[str, Any]:
    """Say what makes this run this run, for its checkpoints: the schedule, the model, the data."""
    own, loaders = facts_of(learn), loader_facts(learn.dls)
    weights, cohort = own.weights, loaders.cohort if loaders else None
    facts = {phase.name: [phase.epochs, str(phase.learning_rate)] for phase in phases}
    facts |= {
        "arch": own.arch,
        "weight_decay": learn.wd,
        "batch_size": learn.dls.train.bs * max(1, num_distrib()),
    }
    facts |= {"weights": (weights.sha256 or weights.name) if weights else "", "images": learn.dls.train.n}
    facts |= {"classes": [str(name) for name in getattr(learn.dls, "vocab", [])]}
    if cohort is not None:
        rows = zip(cohort["path"].map(lambda path: Path(str(path)).name), cohort["label"], cohort["split"], strict=True)
        facts["rows"] = hashlib.sha256(repr(list(rows)).encode()).hexdigest()
    return facts


def _open_checkpoints(
    learn: Learner, out: RunFolder | None, *, resume: bool, config: dict[str, Any]
) -> Checkpoint | None:
    """Make the folder ready and return the checkpoint to resume from, if there is one."""
    if out is None:
        if resume:
            raise UsageError("resume=True needs the run's folder.", hint="Pass the folder to resume as out.")
        return None
    folder = make_folder(out.checkpoints)
    if list_checkpoints(folder) and not resume:
        raise ResourceError(
            f"{folder} holds the checkpoints of another training.", hint="Name another folder, or resume=True."
        )
    check_room(learn, folder)
    checkpoint = read_checkpoint(folder, config=config) if resume else None
    if checkpoint is not None:
        logger.info("Resuming after epoch %d (%s).", checkpoint.facts["epoch"], checkpoint.path.name)
    elif resume:
        logger.info("There is no checkpoint in %s yet: training begins at the beginning.", folder)
    return checkpoint


def _done(phase: Phase, checkpoint: Checkpoint | None) -> int:
    """Return how many epochs of a phase the checkpoint has behind it."""
    return 0 if checkpoint is None else min(max(checkpoint.facts["epoch"] - phase.before, 0), phase.epochs)


def _run(learn: Learner, phase: Phase, *, done: int, checkpoint: Checkpoint | None, callbacks: list[Callback]) -> None:
    """Train one phase from epoch `done` on."""
    if phase.name == FROZEN:
        learn.freeze()
    else:
        learn.unfreeze()
    if checkpoint is not None and checkpoint.facts["epoch"] == phase.before + done:
        if done:  # else the phase begins, with an optimiser that knows nothing, as in a run without a break
            restore_optimiser(learn, checkpoint)  # guard: resume_optimiser
        callbacks = [*callbacks, Resumption(checkpoint, done)]
    learn.fit_one_cycle(phase.epochs, phase.learning_rate, start_epoch=done, cbs=callbacks, **CYCLES[phase.name])


@contextmanager
def _logging_only(learn: Learner) -> Iterator[None]:
    """Outside a notebook show no bar and print no table: a terminal gets broken lines from them."""
    with ExitStack() as stack:
        if not (IN_NOTEBOOK and hasattr(learn, "progress")):
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
        yield


class ProgressiveResizing(Callback):
    """Shrink the training batches of the first epochs on the device; validation always sees the full size.

    Source: fast.ai's DAWNBench entry of 2018; Howard and Gugger, Deep Learning for Coders with fastai, chapter 7.

    Args:
        size: Side that images are shrunk to, pixels.
        epochs: How many epochs see them so, from the first one of the fit on.
    """

    order = 10  # before MixedPrecision and all that looks at the batch

    def __init__(self, size: int, epochs: int):
        self.size, self.epochs = size, epochs

    def before_batch(self):
        """Shrink the images of a training batch."""
        if self.training and self.epoch < self.epochs:
            shrink = {"size": (self.size, self.size), "mode": "bilinear", "antialias": True}
            self.learn.xb = tuple(functional.interpolate(x, **shrink) for x in self.xb)
