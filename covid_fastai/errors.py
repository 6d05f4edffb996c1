"""The errors that this package raises: each has a message, a hint and an exit status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "CovidFastaiError",
    "DataError",
    "DivergenceError",
    "ImageError",
    "ModelFormatError",
    "NotRadiographError",
    "OfflineError",
    "ResourceError",
    "UnavailableError",
    "UsageError",
]


class CovidFastaiError(Exception):
    """Base class of every error that this package raises deliberately.

    Args:
        message: What is wrong, with the file, row or value concerned.
        hint: How to fix it, in one sentence.
        details: For faulty rows, one mapping per row with `row`, `path`, `kind`, `reason` and `remedy`.

    Attributes:
        exit_code: The command line's exit status for this kind of error
            (1 bug, 2 usage, 3 data, 4 environment).
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", details: Iterable[Mapping[str, Any]] = ()):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = [dict(row) for row in details]

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(CovidFastaiError, ValueError):
    """An argument has a value that is not allowed."""

    exit_code = 2


class DataError(CovidFastaiError):
    """A table, its rows or their labels cannot be used."""

    exit_code = 3


class ImageError(DataError):
    """A file cannot be read as a radiograph."""


class NotRadiographError(ImageError):
    """A file states that it is an image of another modality, such as CT.

    Attributes:
        reason: The modality as a reason to exclude the image.
    """

    reason = "modality is not a radiograph"


class ModelFormatError(DataError):
    """A folder or file is not a model, or not one that this version can verify and read."""


class DivergenceError(CovidFastaiError):
    """A loss or a weight became NaN or infinite during training."""


class UnavailableError(CovidFastaiError):
    """The machine lacks something: a package, a device, a network, disk space or a permission."""

    exit_code = 4


class OfflineError(UnavailableError):
    """A download is needed, and the network or the server does not answer."""


class ResourceError(UnavailableError):
    """The disk is full, a permission is missing, or another process owns the folder."""
