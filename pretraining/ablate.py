"""Ablation of the recipe's losses: short pretrainings, each evaluated by a linear probe on frozen features.

`python -m pretraining.ablate --data FOLDER --out FOLDER` can be resumed; it writes `ablation.csv`. The cohorts are
those of the probe: patients and hospitals that no variant was trained on.
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
from pretraining.probe import COHORTS, body_features, metric_rows, probe
from pretraining.teacher import teacher_features
from pretraining.train import pretrain

__all__ = ["SIZES", "VARIANTS", "ablate"]

SIZES = (96,) * 4  # of the views: enough epochs to distinguish the variants, and short enough for two cores
BASELINE = {"match": 1.0, "kermany": 0.3, "radiography": 0.3, "relate": 0.0}
VARIANTS = {
    "match + both class losses": BASELINE,
    "without radiography-224's classes": {**BASELINE, "radiography": 0.0},
    "with the contrastive loss": {**BASELINE, "relate": 0.3},
    "match alone": {**BASELINE, "kermany": 0.0, "radiography": 0.0},
    "both class losses alone": {**BASELINE, "match": 0.0},
    "contrastive, without radiography-224's classes": {**BASELINE, "relate": 0.3, "radiography": 0.0},
}


def ablate(data: Path, out: Path) -> pd.DataFrame:
    """Pretrain each variant for a few epochs, and return the metrics of its frozen features on each cohort.

    Args:
        data: The folder with the data sets.
        out: The folder of the pretraining, whose images, pixels and teacher's features are used.
    """
    base = Recipe()
    images = choose_images(data, out, kermany_fraction=base.kermany_fraction, seed=base.seed)
    pixels = store_pixels(images, out / "pixels.u8", size=base.stored_size)
    features = teacher_features(images["path"], out / "teacher.npy")
    cohorts = {name: read(data, images) for name, read in COHORTS.items()}
    file = out / "ablation.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    for variant, changes in VARIANTS.items():
        if variant in {row["variant"] for row in rows}:
            continue
        folder = out / "ablation" / variant.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        recipe = dataclasses.replace(base, sizes=SIZES, **changes)
        model = pretrain(images, pixels, features, folder, recipe)
        for name, cohort in cohorts.items():
            result = probe(body_features(model, cohort["path"], size=128), cohort)
            rows += [{"variant": variant, "cohort": name, **row} for row in metric_rows(result)]
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
