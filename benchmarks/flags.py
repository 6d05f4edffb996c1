"""Error rates of the shortcut audit: `python -m benchmarks.flags --datasets 200` tries that many data sets per kind.

Each data set has 40 patients per class and about 130 images of 48 pixels, generated from its own seed. The table has
the fraction of data sets that are flagged; a flag of a clean data set is a false alarm. Results are written to the file
`--out`, so that an interrupted run can be continued.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from pathlib import Path

import pandas as pd

from covid_fastai.audit.baselines import find_shortcuts
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.phantom import write_phantom
from covid_fastai.data.splits import split_by_patient
from covid_fastai.evaluation.intervals import wilson

PATIENTS = {"COVID-19": 40, "Normal": 40}
PLANS = [("clean", 0.0), ("clean, no signal", 0.0)]
PLANS += [
    (kind, strength) for kind in ("corner", "border", "jpeg_quality", "aspect", "gain") for strength in (0.5, 0.8)
]


def find_flags(kind: str, strength: float, seed: int) -> list[str]:
    """Generate a data set and return the shortcuts that the audit flags in it."""
    planted = None if kind.startswith("clean") else kind
    with tempfile.TemporaryDirectory() as folder:
        options = {"image_size": 48, "seed": seed, "signal": kind != "clean, no signal"}
        root = write_phantom(Path(folder) / "data", patients=PATIENTS, shortcut=planted, strength=strength, **options)
        cohort = read_cohort(root, task="covid", on_problem="skip")  # two drawings of 48 pixels may look like copies
        cohort = split_by_patient(cohort, seed=seed)
        return find_shortcuts(cohort, permutations=299, seed=seed).flags


def main() -> None:
    """Generate the data sets, run the audit on each, and print the fraction that is flagged by kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs") / "flags.csv")
    arguments = parser.parse_args()
    logging.getLogger("covid_fastai").setLevel(logging.ERROR)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if arguments.out.exists():
        rows = pd.read_csv(arguments.out, keep_default_na=False)
        done = set(zip(rows["kind"], rows["strength"].astype(float), rows["seed"].astype(int), strict=True))
    with open(arguments.out, "a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(["kind", "strength", "seed", "flags"])
        for seed in range(arguments.datasets):
            for kind, strength in PLANS:
                if (kind, strength, seed) not in done:
                    writer.writerow([kind, strength, seed, "; ".join(find_flags(kind, strength, seed))])
                    file.flush()
    table = pd.read_csv(arguments.out, keep_default_na=False)
    for (kind, strength), rows in table.groupby(["kind", "strength"], sort=False):
        fraction = rows["flags"].ne("").mean()
        low, high = wilson(fraction, len(rows))
        suffix = "" if strength == 0 else f", strength {strength:g}"
        print(f"{kind + suffix:30} flagged in {fraction:6.1%} of {len(rows)} ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
