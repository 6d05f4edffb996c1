"""Whether a training's choices can be carried out here: checked before any data are read."""

from __future__ import annotations

from covid_fastai.config import TrainConfig
from covid_fastai.data.hardware import resolve_device
from covid_fastai.data.metadata import check_positive
from covid_fastai.data.tables import check_encoding
from covid_fastai.data.tasks import get_task
from covid_fastai.model.distributed import batch_per_process
from covid_fastai.model.learner import body_features
from covid_fastai.model.precision import choose_precision
from covid_fastai.model.weights import resolve_weights

__all__ = ["check_environment"]


def check_environment(config: TrainConfig) -> None:
    """Raise unless the choices of a training can be carried out on this machine, as far as that is known without data.

    `TrainConfig` knows the range of each value. This function asks the machine: for the device and its number formats,
    for the packages of an architecture, and for the weights, which are fetched where necessary and verified.

    Args:
        config: The choices.

    Raises:
        UsageError: The task, the encoding or the weights do not exist, or two choices do not go together.
        ModelFormatError: The weights' file is damaged or of another architecture.
        OfflineError: The weights have to be fetched, and no network answers.
        UnavailableError: The device is not there, or a package is not installed.

    Examples:
        >>> check_environment(TrainConfig(weights=None, device="cpu"))
        >>> check_environment(TrainConfig(weights="my.pth"))
        Traceback (most recent call last):
        covid_fastai.errors.UsageError: The weights 'my.pth' do not exist. Known: auto, imagenet, cxr, a file, None.
    """
    task = get_task(config.task)
    if config.negatives_per_positive is not None:
        check_positive(task)
    if config.encoding is not None:
        check_encoding(config.encoding)
    choose_precision(config.precision, resolve_device(config.device))
    batch_per_process(config.batch_size)
    resolve_weights(config.weights, arch=config.arch)
    for size in (config.image_size, config.initial_image_size):
        if size is not None:
            body_features(config.arch, image_size=size)
