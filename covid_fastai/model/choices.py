"""Check options of a training against this machine without torch, so that a command refuses them at once."""

from __future__ import annotations

from covid_fastai.config import TrainConfig
from covid_fastai.data.delimited import check_encoding
from covid_fastai.data.metadata import check_positive
from covid_fastai.data.recipe_tables import task_of_config
from covid_fastai.model.weight_names import check_names

__all__ = ["check_choices"]


def check_choices(config: TrainConfig) -> None:
    """Check what of `check_environment` needs no torch: the task, the encoding and the names of weights.

    Args:
        config: The options.

    Raises:
        UsageError: The task, the encoding or the weights do not exist, or two options are mutually exclusive.
        UnavailableError: The architecture needs timm, which is not installed.
    """
    task = task_of_config(config)
    if config.negatives_per_positive is not None:
        check_positive(task)
    if config.encoding is not None:
        check_encoding(config.encoding)
    check_names(config.weights, arch=config.arch)
