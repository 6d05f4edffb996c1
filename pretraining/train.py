"""Pretrain: match the teacher's features, and classify the images of each bank; can be resumed after every epoch."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import nn
from torch.nn import functional

from covid_fastai.files import write_csv
from pretraining.config import Recipe

__all__ = ["MEAN", "STD", "body", "pretrain", "views"]

logger = logging.getLogger("pretraining")

MEAN, STD = 0.5, 0.25  # normalisation of pixel intensities from 0 to 1; saved with the weights
WARM_UP = 0.2  # fraction of the steps


def body() -> nn.Module:
    """Return torchvision's ResNet-18 for one grey channel, without its last layer: `(n, 1, h, w)` to `(n, 512)`."""
    model = torchvision.models.resnet18(weights=None)
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.fc = nn.Identity()
    return model


class Student(nn.Module):
    """The body with the layers of its losses: a projection to the teacher's features, and one classifier per bank."""

    def __init__(self, classes: dict[str, int]):
        super().__init__()
        self.body = body()
        self.project = nn.Linear(512, 1280)
        self.classify = nn.ModuleDict({bank: nn.Linear(512, n) for bank, n in classes.items()})


def views(pixels: np.ndarray, size: int, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Return one view of each image, with random rotation, scale, shift, flip, gamma and contrast.

    Args:
        pixels: `(n, h, w)` uint8.
        size: Side of the view, pixels.
        recipe: The ranges of the transforms.
        generator: The random generator.

    Returns:
        `(n, 1, size, size)` float, normalised.
    """
    n = len(pixels)
    x = torch.from_numpy(np.ascontiguousarray(pixels))[:, None].float().div_(255)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle = torch.deg2rad(uniform(-recipe.degrees, recipe.degrees))
    scale = 1 / uniform(*recipe.scale)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    # affine_grid's coordinates run from -1 to 1, so a shift by the whole side is 2
    shift_x, shift_y = (uniform(-2 * recipe.shift, 2 * recipe.shift) for _ in range(2))
    affine = torch.stack([torch.stack([flip * cos, -sin, shift_x], 1), torch.stack([flip * sin, cos, shift_y], 1)], 1)
    grid = functional.affine_grid(affine, (n, 1, size, size), align_corners=False)
    x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gamma = torch.exp(torch.randn(n, generator=generator) * recipe.gamma)
    x = x.clamp_(1e-3, 1) ** gamma[:, None, None, None]
    contrast = 1 + uniform(-recipe.contrast, recipe.contrast)
    centre = x.mean((2, 3), keepdim=True)
    x = (x - centre) * contrast[:, None, None, None] + centre
    return ((x - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def pretrain(images: pd.DataFrame, pixels: np.ndarray, features: np.ndarray, out: Path, recipe: Recipe) -> nn.Module:
    """Train the student and return its body.

    After each epoch `checkpoint.pt` and `history.csv` are written. The same call resumes from them and ends with the
    same weights, up to rounding that depends on the number of threads.

    Args:
        images: `bank` and `label` of each image.
        pixels: `(n, h, w)` uint8.
        features: The teacher's features, `(n, 1280)`.
        out: The folder of the pretraining.
        recipe: The hyperparameters.
    """
    targets = torch.from_numpy(features.astype(np.float32))
    # standardised, since most of the teacher's features hardly differ between radiographs
    targets = (targets - targets.mean(0)) / targets.std(0).clamp_min(1e-6)
    labels = {bank: sorted(rows["label"].unique()) for bank, rows in images.groupby("bank")}
    codes = torch.tensor([labels[row.bank].index(row.label) for row in images.itertuples()])
    banks = {bank: torch.tensor((images["bank"] == bank).to_numpy()) for bank in labels}
    weights = {name: getattr(recipe, name) for name in ("match", "relate", *labels)}
    torch.manual_seed(recipe.seed)
    student = Student({bank: len(names) for bank, names in labels.items()}).to(memory_format=torch.channels_last)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0}]
    )
    steps = len(images) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps * len(recipe.sizes), pct_start=WARM_UP
    )
    history, begin = [], 0
    checkpoint = out / "checkpoint.pt"
    facts = json.dumps([dataclasses.asdict(recipe), len(images)])
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["facts"] != facts:
            raise ValueError(f"{checkpoint} belongs to another recipe. Name another folder.")
        student.load_state_dict(saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        history, begin = saved["history"], len(saved["history"])
    for epoch in range(begin, len(recipe.sizes)):
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
        order = torch.randperm(len(images), generator=generator)
        student.train()
        sums, started = dict.fromkeys(weights, 0.0), time.perf_counter()
        for step in range(steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size].sort().values
            x = views(pixels[rows.numpy()], recipe.sizes[epoch], recipe, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                hidden = student.body(x)
            hidden = hidden.float()
            projected = functional.normalize(student.project(hidden))
            similarity = projected @ functional.normalize(targets[rows]).T  # cosines of student (rows) and teacher
            losses = {"match": 1 - similarity.diagonal().mean()}
            if recipe.relate:  # InfoNCE: the teacher's features of the same image are the positive example
                losses["relate"] = functional.cross_entropy(similarity / recipe.temperature, torch.arange(len(rows)))
            for bank, mask in banks.items():
                of_bank = mask[rows]
                if weights[bank] and of_bank.any():
                    logits = student.classify[bank](hidden[of_bank])
                    losses[bank] = functional.cross_entropy(logits, codes[rows][of_bank])
            loss = sum(weights[name] * value for name, value in losses.items())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            for name, value in losses.items():
                sums[name] += float(value.detach()) / steps
        row = {"epoch": epoch + 1, "size": recipe.sizes[epoch], **sums, "seconds": time.perf_counter() - started}
        history.append(row)
        logger.info("%s", {key: round(value, 4) for key, value in row.items()})
        write_csv(out / "history.csv", pd.DataFrame(history))
        temporary = checkpoint.with_suffix(".part")
        state = {"student": student.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(state | {"schedule": schedule.state_dict(), "history": history, "facts": facts}, temporary)
        temporary.rename(checkpoint)
    return student.body
