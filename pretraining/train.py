"""The pretraining itself: match the teacher's features, and tell the classes of one bank apart; resumable by epoch."""

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

MEAN, STD = 0.5, 0.25  # of the grey value, 0 to 1; saved beside the weights
WARM_UP = 0.2  # share of the steps


def body() -> nn.Module:
    """Return torchvision's ResNet-18 for one grey channel, without its last layer: `(n, 1, h, w)` to `(n, 512)`."""
    model = torchvision.models.resnet18(weights=None)
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.fc = nn.Identity()
    return model


class Student(nn.Module):
    """The body with what it learns by: a projection to the teacher's features, and a classifier a bank."""

    def __init__(self, classes: dict[str, int]):
        super().__init__()
        self.body = body()
        self.project = nn.Linear(512, 1280)
        self.classify = nn.ModuleDict({bank: nn.Linear(512, n) for bank, n in classes.items()})


def views(pixels: np.ndarray, size: int, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Return one view of each image: turned, scaled, shifted, flipped, of another gamma and contrast.

    Args:
        pixels: `(n, h, w)` uint8.
        size: Side of the view, pixels.
        recipe: How far views go.
        generator: The source of chance.

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


def pretrain(seen: pd.DataFrame, pixels: np.ndarray, features: np.ndarray, out: Path, recipe: Recipe) -> nn.Module:
    """Train the student and return its body.

    After each epoch `checkpoint.pt` and `history.csv` are written; the same call goes on from there, and ends with the
    same weights up to the rounding of the machine's threads.

    Args:
        seen: `bank` and `label` of each image.
        pixels: `(n, h, w)` uint8.
        features: The teacher's, `(n, 1280)`.
        out: The folder of the run.
        recipe: The numbers.
    """
    targets = torch.from_numpy(features.astype(np.float32))
    targets = (targets - targets.mean(0)) / targets.std(0).clamp_min(1e-6)  # else all images are alike in most features
    labels = {bank: sorted(rows["label"].unique()) for bank, rows in seen.groupby("bank")}
    codes = torch.tensor([labels[row.bank].index(row.label) for row in seen.itertuples()])
    banks = {bank: torch.tensor((seen["bank"] == bank).to_numpy()) for bank in labels}
    weights = {name: getattr(recipe, name) for name in ("match", "relate", *labels)}
    torch.manual_seed(recipe.seed)
    student = Student({bank: len(names) for bank, names in labels.items()}).to(memory_format=torch.channels_last)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0}]
    )
    steps = len(seen) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps * len(recipe.sizes), pct_start=WARM_UP
    )
    history, begin = [], 0
    checkpoint = out / "checkpoint.pt"
    facts = json.dumps([dataclasses.asdict(recipe), len(seen)])
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["facts"] != facts:
            raise ValueError(f"{checkpoint} is of another recipe; name another folder.")
        student.load_state_dict(saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        history, begin = saved["history"], len(saved["history"])
    for epoch in range(begin, len(recipe.sizes)):
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
        order = torch.randperm(len(seen), generator=generator)
        student.train()
        sums, started = dict.fromkeys(weights, 0.0), time.perf_counter()
        for step in range(steps):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size].sort().values
            x = views(pixels[rows.numpy()], recipe.sizes[epoch], recipe, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                hidden = student.body(x)
            hidden = hidden.float()
            projected = functional.normalize(student.project(hidden))
            likeness = projected @ functional.normalize(targets[rows]).T
            losses = {"match": 1 - likeness.diagonal().mean()}
            if recipe.relate:
                losses["relate"] = functional.cross_entropy(likeness / recipe.temperature, torch.arange(len(rows)))
            for bank, mask in banks.items():
                there = mask[rows]
                if weights[bank] and there.any():
                    losses[bank] = functional.cross_entropy(student.classify[bank](hidden[there]), codes[rows][there])
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
        part = checkpoint.with_suffix(".part")
        state = {"student": student.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(state | {"schedule": schedule.state_dict(), "history": history, "facts": facts}, part)
        part.rename(checkpoint)
    return student.body
