"""The weights as the package reads them: 16-bit tensors under torchvision's names, and a page of facts."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save
from torch import nn

from covid_fastai.files import atomic_write, utc_now, write_json
from pretraining.config import Recipe
from pretraining.train import MEAN, STD

__all__ = ["export"]

NAME = "cxr-resnet18"


def export(model: nn.Module, seen: pd.DataFrame, out: Path, recipe: Recipe) -> Path:
    """Write `cxr-resnet18.safetensors` and `cxr-resnet18.json` into the folder, and return the first."""
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    content = save(state, metadata={"format": "pt"})
    path = out / f"{NAME}.safetensors"
    with atomic_write(path, mode="wb") as file:
        file.write(content)
    facts = {
        "arch": "resnet18",
        "sha256": hashlib.sha256(content).hexdigest(),
        "mean": MEAN,
        "std": STD,
        "image_size": recipe.sizes[-1],
        "made": utc_now(),
        "torch": torch.__version__,
        "recipe": dataclasses.asdict(recipe),
        "seen": {bank: {"images": len(rows)} for bank, rows in seen.groupby("bank")},
    }
    write_json(path.with_suffix(".json"), facts)
    return path
