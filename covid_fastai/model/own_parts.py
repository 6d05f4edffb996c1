"""Parts of a learner that users bring: their own loss, and learners that fastai's `vision_learner` made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.data.transforms import Normalize
from fastai.imports import IN_NOTEBOOK
from fastai.learner import AvgMetric, Learner, Metric
from fastai.losses import BaseLoss
from fastai.metrics import AccumMetric, accuracy
from fastai.optimizer import Optimizer, _BaseOptimizer
from fastai.torch_core import to_detach
from fastcore.foundation import L
from torch import nn

from covid_fastai.data.dataloaders import OwnTransforms
from covid_fastai.errors import UsageError
from covid_fastai.model.weights import ARCHITECTURES, Weights
from covid_fastai.options import Augmentation, check_option
from covid_fastai.run_folder import RunFolder

__all__ = [
    "LossOfLogits",
    "OwnParts",
    "check_callbacks",
    "check_loss",
    "check_metrics",
    "check_optimiser",
    "describe_part",
    "history_of_recorder",
    "weights_of_vision_learner",
]

UNFROZEN = "unfrozen"  # the phase of `fit` in which all layers are trained
EXAMPLE = [[2.0, -1.0], [0.5, 0.25]]  # logits of two images, for two classes; more classes get 0
HINT_OF_LOSS = "Give a loss of logits (n, classes) and class indices (n,), such as FocalLossFlat()."
HINT_OF_METRICS = "Give functions of predictions and targets, such as error_rate, or fastai's with brackets: F1Score()."
HINT_OF_OPTIMISER = "Give a function that makes an optimiser of fastai, such as SGD or ranger."


@dataclass(frozen=True)
class OwnParts:
    """What a caller brings to a training as code, which has no place in a `TrainConfig`; see `build_learner`.

    Attributes:
        callbacks: fastai callbacks.
        loss_func: A loss of logits.
        metrics: Metrics of the history.
        opt_func: An optimiser.
        augmentation: Transforms in place of a named augmentation; None for that of the options.
    """

    callbacks: Sequence[Callback] = ()
    loss_func: Callable[..., Any] | None = None
    metrics: Sequence[Any] | Any = accuracy
    opt_func: Callable[..., Any] | None = None
    augmentation: Sequence[Any] | None = None

    @classmethod
    def take(cls, options: dict[str, Any], *, resuming: bool, **parts: Any) -> OwnParts:
        """Return the parts, and take transforms out of the options.

        Args:
            options: The options of a training; `augmentation` may hold transforms, which become `"none"` there, since
                config.json cannot hold code, or are left out in a run that keeps its own options.
            resuming: Whether the run was begun before.
            **parts: The other attributes.

        Raises:
            UsageError: A part cannot be used, as far as this shows without the data.
        """
        _check_files(check_callbacks(parts.get("callbacks", ())))
        _check_without_data(parts.get("loss_func"), parts.get("metrics"))
        check_optimiser(parts.get("opt_func"))
        transforms = options.get("augmentation", "")
        if isinstance(transforms, str):
            return cls(**parts)
        check_option("augmentation", transforms, Augmentation | OwnTransforms)
        options.pop("augmentation")
        if not resuming:
            options["augmentation"] = "none"
        return cls(**parts, augmentation=transforms)

    @property
    def of_loaders(self) -> dict[str, Any]:
        """The arguments of `build_dataloaders`."""
        return {} if self.augmentation is None else {"augmentation": self.augmentation}

    @property
    def of_learner(self) -> dict[str, Any]:
        """The arguments of `build_learner`."""
        parts = {"callbacks": self.callbacks, "loss_func": self.loss_func}
        return {**parts, "metrics": self.metrics, "opt_func": self.opt_func}


class LossOfLogits(nn.Module):
    """A loss of logits that has no activation of its own, with the softmax that the package's predictions need.

    Args:
        loss: A function of logits `(n, classes)` and targets `(n,)` that returns a number.
    """

    def __init__(self, loss: Callable[..., torch.Tensor]):
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        """Return the loss."""
        return self.loss(logits, targets, **options)

    def activation(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities."""
        return logits.softmax(dim=-1)

    def decodes(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the index of the most probable class."""
        return probabilities.argmax(dim=-1)


def _move_weights(loss_func: object, device: Any) -> None:
    """Move the class weights of a loss to a device; fastai leaves those of `FocalLossFlat` where they are."""
    module = getattr(loss_func, "func", None) if isinstance(loss_func, BaseLoss) else loss_func
    if isinstance(module, nn.Module):
        module.to(device)
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):
                setattr(module, name, value.to(device))


def check_loss(loss_func: Callable[..., torch.Tensor], *, classes: int, device: Any = "cpu") -> Callable:
    """Return a loss that `build_learner` can use, or raise.

    Args:
        loss_func: A loss of logits `(n, classes)` and class indices `(n,)`, such as fastai's `FocalLossFlat()` or
            `torch.nn.functional.cross_entropy`.
        classes: Number of classes.
        device: Where its weights are.

    Returns:
        The loss, with `activation` and `decodes`.

    Raises:
        UsageError: It cannot be computed, is no single number, or its activation is not the softmax, so that its
            outputs would not be the probabilities of the classes.
    """
    hint = HINT_OF_LOSS
    _check_callable(loss_func)
    _move_weights(loss_func, device)  # guard: loss_on_device
    logits, targets = _example(classes, device)
    try:
        value = loss_func(logits.clone().requires_grad_(), targets)
    except Exception as error:  # a user's function may raise anything
        raise UsageError(f"loss_func={describe_part(loss_func)} cannot be computed: {error}.", hint=hint) from error
    _check_value(loss_func, value)
    activation = getattr(loss_func, "activation", None)
    if activation is None:
        return LossOfLogits(loss_func)
    if not torch.allclose(torch.as_tensor(activation(logits)), logits.softmax(-1), atol=1e-5):  # guard: own_activation
        raise UsageError(
            f"The activation of loss_func={describe_part(loss_func)} is not the softmax over the classes, so that its "
            "outputs are not probabilities of classes that exclude each other.",
            hint=hint,
        )
    return loss_func


def _example(classes: int, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits and targets of two images."""
    logits = torch.zeros(len(EXAMPLE), classes, device=device)
    logits[:, :2] = torch.tensor(EXAMPLE, device=device)
    return logits, torch.tensor([0, 1], device=device)


def _check_value(loss_func: Any, value: Any) -> None:
    """Raise for the value of a loss that is not one finite number."""
    if isinstance(value, torch.Tensor) and value.ndim:
        raise UsageError(
            f"loss_func={describe_part(loss_func)} returns {value.numel()} numbers for two images, not one.",
            hint="Give it reduction='mean'.",
        )
    if not isinstance(value, torch.Tensor) or not bool(value.isfinite()):
        raise UsageError(
            f"loss_func={describe_part(loss_func)} returns {value!r}, not one finite number.", hint=HINT_OF_LOSS
        )


def _check_callable(loss_func: Any) -> None:
    """Raise for a class in place of a loss, and for what is no function at all."""
    if not callable(loss_func) or isinstance(loss_func, type):
        raise UsageError(
            f"loss_func={loss_func!r} is not a loss: it cannot be called.", hint=f"{HINT_OF_LOSS} With brackets."
        )


def _check_without_data(loss_func: Any, metrics: Any) -> None:
    """Raise for a loss and metrics that cannot be right, whatever the classes are; the others are checked later."""
    logits, targets = _example(2)
    if loss_func is not None:
        _check_callable(loss_func)
        value = None
        with suppress(Exception):  # it may be made for more classes
            value = loss_func(logits, targets)
        if value is not None:
            _check_value(loss_func, value)
    for metric in L(metrics):
        if not callable(metric) and not isinstance(metric, Metric):
            raise UsageError(f"metrics has {metric!r}, which is no metric: it cannot be called.", hint=HINT_OF_METRICS)
        value = None
        if not isinstance(metric, (type, Metric)):
            with suppress(Exception):
                value = metric(logits, targets)
        _refuse_maker(metric, value)


def _refuse_maker(metric: Any, value: Any) -> None:
    """Raise for a function that makes a metric in place of computing one, such as `F1Score` without brackets."""
    if isinstance(value, Metric):
        name = describe_part(metric)
        raise UsageError(f"metrics has {name}, a function that makes a metric.", hint=f"Call it: metrics=[{name}()].")


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return callbacks as a list, or raise.

    Args:
        callbacks: Callbacks of fastai or their classes, or only one.

    Raises:
        UsageError: One of them is no callback.
    """
    listed = list(L(callbacks))
    for callback in listed:
        if not isinstance(callback, Callback) and not _is_class_of(callback, Callback):
            raise UsageError(
                f"callbacks has {callback!r}, which is no callback of fastai.",
                hint="Give callbacks such as SaveModelCallback() from fastai.callback.tracker.",
            )
        if not IN_NOTEBOOK and (isinstance(callback, ShowGraphCallback) or callback is ShowGraphCallback):
            raise UsageError(
                "ShowGraphCallback draws beside the progress bar of a notebook, and this is none.",
                hint="Leave it out; plot_history(learn) draws the same after the training.",
            )
    return listed


def _check_files(callbacks: Iterable[Any]) -> None:
    """Raise for a callback that writes to the file of the run's history: it empties it when it is used again."""
    for callback in callbacks:
        logs = isinstance(callback, CSVLogger) or _is_class_of(callback, CSVLogger)
        if logs and str(getattr(callback, "fname", RunFolder.history)) == RunFolder.history:
            raise UsageError(
                f"CSVLogger writes {RunFolder.history}, which is a file of the run with the same content.",
                hint='Leave it out, or give it another name: CSVLogger("log.csv").',
            )


def check_metrics(metrics: Iterable[Metric], *, classes: int, device: Any = "cpu") -> None:
    """Raise for a metric that would end a training after its first epoch.

    Metrics that are functions of the predictions and targets are computed on an example; other ones are not tried.

    Args:
        metrics: The metrics of a learner.
        classes: Number of classes.
        device: Where predictions and targets are.

    Raises:
        UsageError: It cannot be computed, or is no single number.
    """
    targets = torch.arange(classes, device=device).repeat(2)
    logits = torch.zeros(len(targets), classes, device=device)  # one image of each class is right and one is wrong
    logits[range(len(targets)), [*range(classes), *range(1, classes), 0]] = 1.0
    batch = SimpleNamespace(pred=logits, y=targets, yb=(targets,), to_detach=partial(to_detach, gather=False))
    for metric in metrics:
        if type(metric) not in (AvgMetric, AccumMetric):
            continue
        try:
            metric.reset()
            if isinstance(metric, AvgMetric):
                _refuse_maker(metric, metric.func(logits, targets))
            metric.accumulate(batch)
            _ = float(metric.value), metric.name
        except UsageError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise UsageError(
                f"metrics has {describe_part(metric)}, which cannot be computed for {classes} classes as one number: "
                f"{error}.",
                hint=HINT_OF_METRICS + (" For more than two classes: F1Score(average='macro')." if classes > 2 else ""),
            ) from error
        finally:
            metric.reset()


def _is_class_of(value: Any, kind: type) -> bool:
    return isinstance(value, type) and issubclass(value, kind)


def check_optimiser(opt_func: Callable[..., Any] | None, *, is_saved: bool = True) -> None:
    """Raise before a training for what makes no optimiser, or one whose state checkpoints could not hold.

    Args:
        opt_func: Makes the optimiser; None for the package's own.
        is_saved: Whether the training writes checkpoints.

    Raises:
        UsageError: It makes no optimiser of fastai, or an `OptimWrapper`, whose state is not saved.
    """
    if opt_func is None:
        return
    if not callable(opt_func):
        raise UsageError(f"opt_func={opt_func!r} makes no optimiser: it cannot be called.", hint=HINT_OF_OPTIMISER)
    try:
        made = opt_func([nn.Parameter(torch.zeros(1))], lr=1e-3)
    except Exception as error:  # a user's function may raise anything
        raise UsageError(
            f"opt_func={describe_part(opt_func)} makes no optimiser: {error}.", hint=HINT_OF_OPTIMISER
        ) from error
    if not isinstance(made, _BaseOptimizer):
        wrapped = f"partial(OptimWrapper, opt={describe_part(opt_func)})"
        of_torch = f" One of torch is given as {wrapped}." if isinstance(made, torch.optim.Optimizer) else ""
        raise UsageError(
            f"opt_func={describe_part(opt_func)} makes a {type(made).__name__}, which is no optimiser of fastai.",
            hint=HINT_OF_OPTIMISER + ("" if is_saved else of_torch),
        )
    if is_saved and not isinstance(made, Optimizer):
        raise UsageError(
            f"opt_func={describe_part(opt_func)} makes a {type(made).__name__}, whose state cannot be saved to resume "
            "the run.",
            hint="Use an optimiser of fastai, such as SGD or ranger, or the single steps: fit(learn, out=None).",
        )


def describe_part(part: Any) -> str:
    """Return the name of a loss, metric, optimiser or transform."""
    if isinstance(part, partial):
        options = ", ".join(f"{name}={describe_part(value)}" for name, value in part.keywords.items())
        return f"{describe_part(part.func)}({options})"
    name = part.name if isinstance(part, Metric) else getattr(part, "__name__", None)
    return str(part) if isinstance(part, (bool, int, float, str)) else name or type(part).__name__


def weights_of_vision_learner(learn: Learner) -> tuple[str, Weights] | None:
    """Return the architecture and the facts about the initial weights of a learner of fastai's `vision_learner`.

    Args:
        learn: Any learner.

    Returns:
        The name of the architecture and the facts; None for a learner that was made in another way, has another
        architecture, or does not normalise its images once.
    """
    arch = getattr(learn, "arch", None)
    name = getattr(arch, "__name__", "") if callable(arch) else str(arch or "")
    steps = [step for step in learn.dls.valid.after_batch.fs if isinstance(step, Normalize)]
    if name not in ARCHITECTURES or len(steps) != 1:
        return None
    mean, std = (float(value.mean()) for value in (steps[0].mean, steps[0].std))
    pretrained = bool(getattr(learn, "pretrained", False))
    origin = "fastai vision_learner" + (", weights of torchvision" if pretrained else "")
    facts = {"mean": mean, "std": std, "origin": origin, "sha256": "", "arch": name}
    return name, Weights("imagenet" if pretrained else "random", None, **facts)


def history_of_recorder(learn: Learner) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return the history and the steps that fastai's recorder holds of the last training, as `fit` returns them.

    Args:
        learn: A learner.

    Returns:
        `history` and `steps`, whose seconds are unknown; None if there was no training.
    """
    recorder: Any = getattr(learn, "recorder", None)
    # a prediction adds a row without a training loss
    values = [row for row in getattr(recorder, "values", ()) if len(row) and None not in list(row)]
    if not values:
        return None
    names = [str(name) for name in recorder.metric_names[1:-1]]  # without epoch and time
    history = pd.DataFrame([[float(value) for value in row] for row in values], columns=names)
    history.insert(0, "epoch", range(1, len(history) + 1))
    history.insert(0, "phase", UNFROZEN)
    losses = [float(loss) for loss in recorder.losses]
    rates = [float(rate) for rate in recorder.lrs]
    steps = pd.DataFrame({"step": range(1, len(losses) + 1), "phase": UNFROZEN})
    return history.assign(seconds=float("nan")), steps.assign(learning_rate=rates, train_loss=losses)
