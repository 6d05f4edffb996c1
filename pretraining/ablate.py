"""Which part of the recipe pays: each left out or added in turn, in short pretrainings judged by frozen features.

`python -m pretraining.ablate --data FOLDER --out FOLDER` is resumable; it writes `ablation.csv`. The cohorts are
the probe's: patients and hospitals that no variant has seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import pandas as pd

from covid_fastai.files import write_csv
from pretraining.config import Recipe
from pretraining.images import choose_images, store_pixels
from pretraining.probe import COHORTS, body_features, figures_of, probe
from pretraining.teacher import teacher_features
from pretraining.train import pretrain

__all__ = ["SIZES", "VARIANTS", "ablate"]

SIZES = (96,) * 4  # of each variant's views: long enough to tell variants apart, short enough for two cores
PLAIN = {"match": 1.0, "kermany": 0.3, "radiography": 0.3, "relate": 0.0}
VARIANTS = {
    "match + both class losses": PLAIN,
    "without radiography-224's classes": {**PLAIN, "radiography": 0.0},
    "with the contrastive loss": {**PLAIN, "relate": 0.3},
    "match alone": {**PLAIN, "kermany": 0.0, "radiography": 0.0},
    "both class losses alone": {**PLAIN, "match": 0.0},
    "contrastive, without radiography-224's classes": {**PLAIN, "relate": 0.3, "radiography": 0.0},
}


def ablate(data: Path, out: Path) -> pd.DataFrame:
    """Pretrain each variant shortly, and return what its frozen features are worth on each cohort.

    Args:
        data: The folder of the image folders.
        out: The folder of the pretraining, whose choice of images, pixels and teacher's features are used.
    """
    base = Recipe()
    seen = choose_images(data, out, kermany_share=base.kermany_share, seed=base.seed)
    pixels = store_pixels(seen, out / "pixels.u8", size=base.stored_size)
    features = teacher_features(seen["path"], out / "teacher.npy")
    cohorts = {name: read(data, seen) for name, read in COHORTS.items()}
    file = out / "ablation.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for variant, changes in VARIANTS.items():
        if variant in {row["variant"] for row in rows}:
            continue
        folder = out / "ablation" / variant.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        recipe = dataclasses.replace(base, sizes=SIZES, **changes)
        model = pretrain(seen, pixels, features, folder, recipe)
        for name, cohort in cohorts.items():
            result = probe(body_features(model, cohort["path"], size=128), cohort)
            rows += [{"variant": variant, "cohort": name, **figure} for figure in figures_of(result)]
        write_csv(file, pd.DataFrame(rows))
    return pd.DataFrame(rows)


def main() -> None:
    """Run the ablation and print its table."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.ablate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pretraining")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    print(ablate(options.data, options.out).to_string(index=False))


if __name__ == "__main__":
    main()
