"""Train the lung segmentation: `python -m pretraining.lungs --data DATA --out OUT`; the same command resumes it.

A teacher learns from the masks. It then labels radiographs of other hospitals without masks. A student, which starts
from the teacher's weights, learns from the masks and these labels together (self-training; Xie et al. 2020). Finally it
learns from the masks alone, on views that change less, so that its boundaries become exact.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from covid_fastai.files import write_csv
from pretraining.lung_images import list_masked, list_unmasked, read_lungs, read_pixels
from pretraining.lung_views import Ranges, draw_views

__all__ = ["LungNet", "LungRecipe", "label_lungs", "train_lungs"]

logger = logging.getLogger("pretraining")

NARROW = Ranges(
    degrees=8,
    log_zoom=0.2,
    log_aspect=0.12,
    shear=0.03,
    shift=0.08,
    bend=0.006,
    log_gamma=0.35,
    saturated=0.05,
    opacities=0.1,
    effusions=0.03,
    collimated=0.08,
    markers=0.1,
    noise=0.03,
    halved=0.04,
    negatives=0.08,
)


@dataclass(frozen=True)
class LungRecipe:
    """The hyperparameters of the segmentation.

    Attributes:
        seed: Seed of the parts, the initial weights, the order of the images and their views.
        masks: The sets whose masks the teacher learns from: montgomery, shenzhen.
        student_masks: Those whose masks the student learns from; images of the others are used without masks.
        size: Side of the views, pixels.
        widths: Channels of each level of the network, from half of the side down.
        batch_size: Images per step.
        teacher_epochs: Epochs of `images_per_epoch` images that learn from masks only.
        final_epochs: Epochs of the last stage, which starts from the student's weights and learns from masks alone.
        final_averaged: Decay of the moving average of the weights in the last stage; 0 for none, as it is too short.
        student_epochs: Epochs of the student, which starts from the teacher's weights; 0 to stop after the teacher.
        images_per_epoch: Images per epoch, drawn anew in each.
        masked: Fraction of the student's images that have masks.
        per_bank: Images without masks per class of each bank.
        kept: Fraction of the images without masks whose labels are the most certain, and are learnt from.
        learning_rate: Peak learning rate of the teacher's one-cycle schedule.
        student_rate: That of the student and of the last stage.
        weight_decay: Weight decay of AdamW.
        averaged: Decay of the moving average of the weights, which is what is evaluated and exported.
        ranges: The ranges of the teacher's random views.
        student_ranges: Those of the student's.
        final_ranges: Those of the last stage.
    """

    seed: int = 0
    masks: tuple[str, ...] = ("montgomery",)
    student_masks: tuple[str, ...] = ("montgomery",)
    size: int = 128
    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    batch_size: int = 16
    teacher_epochs: int = 30
    student_epochs: int = 20
    final_epochs: int = 12
    final_averaged: float = 0.0
    images_per_epoch: int = 400
    masked: float = 0.5
    per_bank: int = 400
    kept: float = 0.85
    learning_rate: float = 4e-3
    student_rate: float = 2e-3
    weight_decay: float = 0.01
    averaged: float = 0.995
    ranges: Ranges = field(default_factory=Ranges)
    student_ranges: Ranges = field(default_factory=lambda: Ranges(halved=0.06, negatives=0.1))
    final_ranges: Ranges = field(default_factory=lambda: NARROW)


Part = tuple[np.ndarray, np.ndarray]  # images `(n, h, w)` and their lungs `(n, 2, h, w)`, uint8
STUDENT = (
    "student_masks",
    "student_epochs",
    "student_rate",
    "student_ranges",
    "masked",
    "per_bank",
    "kept",
)  # fields that the teacher does not depend on
FINAL = ("final_epochs", "final_averaged", "final_ranges")  # fields that only the last stage depends on


class LungNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) for speed: `(n, 1, h, w)` from 0 to 1 to `(n, 3, h, w)` logits.

    The image enters as 2 x 2 blocks (space to depth) and the logits leave in the same way, and a coarse level is added
    to a finer one instead of concatenated (as in LinkNet). Each image is standardised first, so that its brightness and
    contrast do not matter. The classes are the lung on the left side of the image, the lung on its right side, and what
    is no lung.
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.blocks = nn.PixelUnshuffle(2)
        self.down = nn.ModuleList(
            nn.Sequential(*_layer(before, after), *_layer(after, after))
            for before, after in zip((4, *widths[:-1]), widths, strict=True)
        )
        steps = list(zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Sequential(*_layer(fine, fine)) for fine, _ in steps)
        self.classify = nn.Conv2d(widths[0], 12, 1)
        self.pixels = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images from 0 to 1."""
        centred = x - x.mean((2, 3), keepdim=True)
        x = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-4).sqrt()
        x = self.blocks(x)
        skipped = []
        for number, level in enumerate(self.down):
            x = level(functional.max_pool2d(x, 2) if number else x)
            skipped.append(x)
        skipped.pop()
        for narrow, level in zip(self.narrow, self.up, strict=True):
            x = level(functional.interpolate(narrow(x), scale_factor=2.0, mode="nearest") + skipped.pop())
        return self.pixels(self.classify(x))


def _layer(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


def main() -> None:
    """Train the teacher, label the images without masks, and train the student."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.lungs", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with lungs-256 and the other data sets")
    parser.add_argument("--out", type=Path, required=True, help="the folder of this training")
    parser.add_argument(
        "--student-masks",
        nargs="+",
        default=LungRecipe.student_masks,
        choices=["montgomery", "shenzhen"],
        help="the sets whose masks the student learns from; those of shenzhen are non-commercial",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    train_lungs(options.data, options.out, LungRecipe(student_masks=tuple(options.student_masks)))


def train_lungs(data: Path, out: Path, recipe: LungRecipe) -> LungNet:
    """Train the teacher and the student, or resume them, and return the network to export.

    Args:
        data: The folder with lungs-256, coronahack-224 and radiography-224.
        out: The folder of this training.
        recipe: The hyperparameters.

    Returns:
        The network of the last stage, or the teacher if the recipe has no student.
    """
    out.mkdir(parents=True, exist_ok=True)
    images = list_masked(data, seed=recipe.seed)
    write_csv(out / "masked.csv", images)
    teacher = _fit(out / "teacher", recipe, *_read_parts(images, recipe.masks))
    if not recipe.student_epochs:
        return teacher
    paths = list_unmasked(data, out, seed=recipe.seed, per_bank=recipe.per_bank)["path"]
    without = images[~images["bank"].isin(recipe.student_masks) & (images["part"] == "train")]["path"]
    pixels = read_pixels(pd.concat([paths, without], ignore_index=True))
    lungs, certainty = label_lungs(teacher, pixels, recipe.size)
    chosen = certainty >= np.quantile(certainty, 1 - recipe.kept)
    logger.info("labelled %d images without masks, kept %d", len(pixels), chosen.sum())
    parts = _read_parts(images, recipe.student_masks)
    student = _fit(out / "student", recipe, *parts, start=teacher, labelled=(pixels[chosen], lungs[chosen]), seed=500)
    return _fit(out / "final", recipe, *parts, start=student, seed=800)


def _read_parts(images: pd.DataFrame, banks: tuple[str, ...]) -> tuple[Part, Part]:
    """Return the images and lungs of the training and of the validation part of some sets."""
    train, valid = (images[images["bank"].isin(banks) & (images["part"] == part)] for part in ("train", "valid"))
    return (read_pixels(train["path"]), read_lungs(train["mask"])), (
        read_pixels(valid["path"]),
        read_lungs(valid["mask"]),
    )


@torch.inference_mode()
def label_lungs(model: LungNet, pixels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Label images by the mean prediction over four views of each: as it is, mirrored, smaller, and brighter.

    Args:
        model: The teacher.
        pixels: `(n, h, w)` uint8.
        size: Side of the views, pixels.

    Returns:
        The lungs, `(n, 2, h, w)` uint8, and the certainty of each image: the mean Dice of the four predictions with
        their mean, `(n,)`.
    """
    model.eval()
    lungs, certainty = [], []
    for start in range(0, len(pixels), 32):
        x = torch.from_numpy(np.ascontiguousarray(pixels[start : start + 32]))[:, None].float().div_(255)
        side = x.shape[-1]
        x = functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        wide = functional.pad(x, (size // 8,) * 4, mode="replicate")
        views = [
            _probabilities(model, x),
            _probabilities(model, x.flip(3)).flip(3).flip(1),
            _probabilities(model, functional.interpolate(wide, size=(size, size), mode="bilinear", antialias=True)),
            _probabilities(model, x.sqrt()),
        ]
        inner = size * size // (size + size // 4)  # the part of the padded view that is the image
        margin = (size - inner) // 2
        cut = views[2][:, :, margin : margin + inner, margin : margin + inner]
        views[2] = functional.interpolate(cut, size=(size, size), mode="bilinear", align_corners=False)
        mean = torch.stack(views).mean(0)
        certainty.append(torch.stack([_dice(view, (mean > 0.5).float()) for view in views]).mean(0).numpy())
        mean = functional.interpolate(mean, size=(side, side), mode="bilinear", align_corners=False)
        lungs.append((mean * 255).round().byte().numpy())
    return np.concatenate(lungs), np.concatenate(certainty)


def _probabilities(model: LungNet, x: torch.Tensor) -> torch.Tensor:
    return model(x.contiguous(memory_format=torch.channels_last)).softmax(1)[:, :2]


def _dice(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the soft Dice coefficient of each image, over both lungs, `(n,)`."""
    overlap = (predicted * target).sum((1, 2, 3))
    return (2 * overlap + 1) / (predicted.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)


def _fit(
    out: Path,
    recipe: LungRecipe,
    masked: Part,
    judged: Part,
    *,
    start: LungNet | None = None,
    labelled: Part | None = None,
    seed: int = 0,
) -> LungNet:
    """Train one network and return it with the averaged weights of its best epoch, by Dice on the validation part.

    After each epoch `checkpoint.pt` and `history.csv` are written; the same call resumes from them.

    Args:
        out: The folder of the network.
        recipe: The hyperparameters.
        masked: Images with masks, `(n, h, w)` and `(n, 2, h, w)` uint8.
        judged: The validation part, of the same shapes.
        start: The network of the stage before, from whose weights this one starts; None for the teacher.
        labelled: For the student: images with the teacher's labels, of the same shapes.
        seed: Added to the seed of the views, so that each stage has its own.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = LungNet(recipe.widths).to(memory_format=torch.channels_last)
    epochs, rate, ranges = recipe.teacher_epochs, recipe.learning_rate, recipe.ranges
    settings, decay = dataclasses.asdict(recipe), recipe.averaged
    if start is None:
        settings = {name: value for name, value in settings.items() if name not in (*STUDENT, *FINAL)}
    else:
        model.load_state_dict(start.state_dict())
        epochs, rate, ranges = recipe.final_epochs, recipe.student_rate, recipe.final_ranges
        decay = recipe.final_averaged
    if labelled is not None:
        settings = {name: value for name, value in settings.items() if name not in FINAL}
        epochs, ranges, decay = recipe.student_epochs, recipe.student_ranges, recipe.averaged
    logger.info("%s: %d parameters", out.name, sum(parameter.numel() for parameter in model.parameters()))
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True
    )
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
    steps = recipe.images_per_epoch // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps * epochs, pct_start=0.15)
    parts = {"model": model, "averaged": averaged, "optimiser": optimiser, "schedule": schedule}
    history, best = [], {"dice": -1.0, "epoch": 0, "weights": None}
    checkpoint = out / "checkpoint.pt"
    n_labelled = 0 if labelled is None else len(labelled[0])
    facts = json.dumps([settings, len(masked[0]), n_labelled])
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["facts"] != facts:
            raise ValueError(f"{checkpoint} belongs to another recipe. Name another folder.")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        history, best = saved["history"], saved["best"]
    for epoch in range(len(history), epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch + seed)
        model.train()
        total, started = 0.0, time.perf_counter()
        for _ in range(steps):
            pixels, lungs = _draw_batch(masked, labelled, recipe, generator)
            x, target = draw_views(pixels, lungs, recipe.size, ranges, generator)
            logits = model(x.contiguous(memory_format=torch.channels_last))
            target = torch.cat([target, (1 - target.sum(1, keepdim=True)).clamp(0, 1)], 1)
            loss = functional.cross_entropy(logits, target) + 1 - _dice(logits.softmax(1)[:, :2], target[:, :2]).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            averaged.update_parameters(model)
            total += float(loss.detach()) / steps
        dice = _validate(averaged.module, judged, recipe.size)
        row = {"epoch": epoch + 1, "loss": total, "dice": float(dice.mean()), "dice_p5": float(np.quantile(dice, 0.05))}
        history.append(row | {"seconds": time.perf_counter() - started})
        logger.info("%s %s", out.name, {key: round(value, 4) for key, value in history[-1].items()})
        if row["dice"] > best["dice"]:
            weights = {name: tensor.clone() for name, tensor in averaged.module.state_dict().items()}
            best = {"dice": row["dice"], "epoch": row["epoch"], "weights": weights}
        write_csv(out / "history.csv", pd.DataFrame(history))
        temporary = checkpoint.with_suffix(".part")
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"history": history, "best": best, "facts": facts}, temporary)
        temporary.rename(checkpoint)
    model.load_state_dict(best["weights"])
    return model.eval()


def _draw_batch(
    masked: Part,
    labelled: Part | None,
    recipe: LungRecipe,
    generator: torch.Generator,
) -> Part:
    """Draw images with masks, and with the teacher's labels in the fraction of the recipe."""
    n_masked = recipe.batch_size if labelled is None else round(recipe.masked * recipe.batch_size)
    rows = torch.randint(len(masked[0]), (n_masked,), generator=generator).numpy()
    pixels, lungs = masked[0][rows], masked[1][rows]
    if labelled is None:
        return pixels, lungs
    rows = torch.randint(len(labelled[0]), (recipe.batch_size - n_masked,), generator=generator).numpy()
    return np.concatenate([pixels, labelled[0][rows]]), np.concatenate([lungs, labelled[1][rows]])


@torch.inference_mode()
def _validate(model: nn.Module, judged: Part, size: int) -> np.ndarray:
    """Return the Dice coefficient of each image of the validation part, both lungs as one mask."""
    model.eval()
    dice = []
    for start in range(0, len(judged[0]), 32):
        x = torch.from_numpy(judged[0][start : start + 32])[:, None].float().div_(255)
        target = torch.from_numpy(judged[1][start : start + 32]).float().div_(255).sum(1, keepdim=True) > 0.5
        x = functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        lungs = model(x.contiguous(memory_format=torch.channels_last)).softmax(1)[:, :2].sum(1, keepdim=True)
        lungs = functional.interpolate(lungs, size=target.shape[-2:], mode="bilinear", align_corners=False) > 0.5
        dice.append(_dice(lungs.float(), target.float()).numpy())
    return np.concatenate(dice)


if __name__ == "__main__":
    main()
