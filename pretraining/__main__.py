"""Make the weights: `python -m pretraining --data FOLDER --out FOLDER`; run again, it goes on where it was stopped."""

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
    """Choose, store, ask the teacher, train, export."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds coronahack-224 and radiography-224")
    parser.add_argument("--out", type=Path, required=True, help="the folder of this pretraining")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe, out = Recipe(), options.out
    out.mkdir(parents=True, exist_ok=True)
    seen = choose_images(options.data, out, kermany_share=recipe.kermany_share, seed=recipe.seed)
    pixels = store_pixels(seen, out / "pixels.u8", size=recipe.stored_size)
    features = teacher_features(seen["path"], out / "teacher.npy")
    model = pretrain(seen, pixels, features, out, recipe)
    export(model, seen, out, recipe)


if __name__ == "__main__":
    main()
