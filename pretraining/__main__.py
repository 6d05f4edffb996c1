"""Pretrain the weights: `python -m pretraining --data FOLDER --out FOLDER`; the same command resumes it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pretraining.config import Recipe
from pretraining.export import export
from pretraining.images import choose_images, store_pixels
from pretraining.teacher import teacher_features
from pretraining.train import pretrain


def main() -> None:
    """Choose and store the images, compute the teacher's features, pretrain, and export the weights."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with coronahack-224 and radiography-224")
    parser.add_argument("--out", type=Path, required=True, help="the folder of this pretraining")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe, out = Recipe(), options.out
    out.mkdir(parents=True, exist_ok=True)
    images = choose_images(options.data, out, kermany_fraction=recipe.kermany_fraction, seed=recipe.seed)
    pixels = store_pixels(images, out / "pixels.u8", size=recipe.stored_size)
    features = teacher_features(images["path"], out / "teacher.npy")
    model = pretrain(images, pixels, features, out, recipe)
    export(model, images, out, recipe)


if __name__ == "__main__":
    main()
