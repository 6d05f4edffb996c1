"""The names of initial weights, refused without torch, whose import takes seconds."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from covid_fastai.errors import UnavailableError, UsageError
from covid_fastai.model.bundle_config import WEIGHTS_FILE

__all__ = ["NAMES", "TIMM_PREFIX", "check_names", "check_package_weights", "find_weights_file"]

NAMES = ("auto", "imagenet", "cxr")
FILE_SUFFIXES = (".safetensors", ".pth", ".pt")
TIMM_PREFIX = "timm/"
PACKAGE_ARCH = "resnet18"  # of the package's own weights


def check_names(weights: str | Path | None, *, arch: str) -> None:
    """Raise for weights and architectures that cannot exist on this machine, before torch is imported.

    Args:
        weights: As in `resolve_weights`.
        arch: A name of an architecture whose form is valid.

    Raises:
        UsageError: There are no such weights, or the package has none for this architecture.
        UnavailableError: The architecture needs timm, which is not installed.
    """
    if arch.startswith(TIMM_PREFIX) and importlib.util.find_spec("timm") is None:
        raise UnavailableError("timm is not installed.", hint='Run: pip install "covid_fastai[timm]"')
    if weights == "cxr":
        check_package_weights(arch)
    elif weights is not None and weights not in NAMES:
        find_weights_file(weights, arch=arch)


def check_package_weights(arch: str) -> None:
    """Raise for an architecture for which the package has no weights of its own."""
    if arch != PACKAGE_ARCH:
        raise UsageError(
            f"The package's own weights are for {PACKAGE_ARCH}, not {arch}.", hint="Use weights='imagenet'."
        )


def find_weights_file(weights: str | Path, *, arch: str) -> Path:
    """Return the file that weights name by its path or by the folder of a saved model.

    Args:
        weights: A path.
        arch: The architecture that they are for.

    Raises:
        UsageError: There is no such file, or its suffix is not that of weights for this architecture.
    """
    path = Path(weights)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    if not path.is_file():
        near = difflib.get_close_matches(str(path), NAMES, n=1)
        known = f"Known: {', '.join(NAMES)}, the path of a file, or weights=None for random weights."
        hint = f"Did you mean {near[0]!r}?" if near else known
        raise UsageError(f"The weights {str(path)!r} do not exist.", hint=hint)
    if path.suffix not in FILE_SUFFIXES:
        raise UsageError(f"{path} is not a weights file.", hint=f"Its name must end in {', '.join(FILE_SUFFIXES)}.")
    if arch.startswith(TIMM_PREFIX) and path.suffix != FILE_SUFFIXES[0]:
        raise UsageError(
            f"{path} is not a {FILE_SUFFIXES[0]} file, which timm's architectures need.", hint="Convert it."
        )
    return path
