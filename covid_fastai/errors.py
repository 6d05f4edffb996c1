"""Errors that name what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "CovidFastaiError",
    "DataError",
    "DivergenceError",
    "ImageError",
    "ModelFormatError",
    "OfflineError",
    "ResourceError",
    "UnavailableError",
    "UsageError",
]


class CovidFastaiError(Exception):
    """The base of every error that this package raises on purpose.

    Args:
        message: What happened, with the file, row or value it happened to.
        hint: The remedy, one sentence.
        details: One mapping a faulty row (`row`, `path`, `kind`, `reason`, `remedy`), where there are rows.

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
    """A table, its rows or their labels cannot be used as they are."""

    exit_code = 3


class ImageError(DataError):
    """A file is not an image that can be read as a radiograph."""


class ModelFormatError(DataError):
    """A folder or file is not a model, or not one that this version can trust and read."""


class DivergenceError(CovidFastaiError):
    """Training left the numbers: a loss or a weight became NaN or infinite."""


class UnavailableError(CovidFastaiError):
    """The machine lacks something: a package, a network, room, a permission."""

    exit_code = 4


class OfflineError(UnavailableError):
    """Something has to be fetched and no network answers."""


class ResourceError(UnavailableError):
    """No room, no permission, or another process owns the folder."""
