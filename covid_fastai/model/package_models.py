"""The trained models that come with the package, by name: `Predictor("pneumonia-children")`."""

from __future__ import annotations

import difflib
from pathlib import Path

from covid_fastai.model.bundle_config import CONFIG_FILE

__all__ = ["package_models", "suggest_package_model"]

FOLDER = Path(__file__).with_name("trained")


def package_models() -> dict[str, Path]:
    """Return the folders of the package's models by name; `pretraining/` has their recipes."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob(f"*/{CONFIG_FILE}"))}


def suggest_package_model(name: str) -> str:
    """Return a hint that names the package's model that is meant by a name that does not exist; empty if none is."""
    near = difflib.get_close_matches(name.casefold(), package_models(), n=1)
    return f"Did you mean {near[0]!r}, a model of this package?" if near else ""
