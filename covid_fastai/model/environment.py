"""Check the options of a training against this machine, before any data are read."""

from __future__ import annotations

from covid_fastai.config import TrainConfig
from covid_fastai.data.hardware import resolve_device
from covid_fastai.model.choices import check_choices
from covid_fastai.model.distributed import batch_per_process
from covid_fastai.model.learner import body_features
from covid_fastai.model.precision import choose_precision
from covid_fastai.model.weights import resolve_weights

__all__ = ["check_environment"]


def check_environment(config: TrainConfig) -> None:
    """Check that the options of a training work on this machine, as far as this can be known without data.

    `TrainConfig` checks the range of each value. This function checks the device and its number formats, the packages
    of the architecture, and the weights, which are downloaded if necessary and verified.

    Args:
        config: The options.

    Raises:
        UsageError: The task, the encoding or the weights do not exist, or two options are mutually exclusive.
        ModelFormatError: The weights' file is damaged or of another architecture.
        OfflineError: The weights have to be downloaded, and the network or the server does not answer.
        UnavailableError: The device does not exist, or a package is not installed.

    Examples:
        >>> check_environment(TrainConfig(weights=None, device="cpu"))
        >>> check_environment(TrainConfig(weights="my.pth"))
        Traceback (most recent call last):
        covid_fastai.errors.UsageError: The weights 'my.pth' do not exist. Known: auto, ...
    """
    check_choices(config)
    choose_precision(config.precision, resolve_device(config.device))
    batch_per_process(config.batch_size)
    resolve_weights(config.weights, arch=config.arch)
    for size in (config.image_size, config.initial_image_size):
        if size is not None:
            body_features(config.arch, image_size=size)
