"""Compare models that start from the weights with models that start from random weights, on the same rows.

`python -m pretraining.compare covid|test|curve|options --data FOLDER --out FOLDER` can be resumed.

- `covid`: CoronaHack's COVID-19 task, five folds by patient, 1 + 1 and 5 + 5 epochs.
- `test`: the pneumonia task, trained on TRAIN; the official TEST is evaluated once.
- `curve`: the pneumonia task with 10 to 300 patients per class that the weights were not trained on, evaluated on 400
  other patients.
- `options`: the same with 100 patients per class and the package's weights, for several options of `fit`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.torch_core import no_random

from covid_fastai import (
    build_dataloaders,
    build_learner,
    cross_validate,
    evaluate,
    fit,
    predict,
    read_cohort,
    read_run,
    train_classifier,
)
from covid_fastai.evaluation.bootstrap import resample_patients, roc_auc
from covid_fastai.evaluation.metrics import score_units
from covid_fastai.files import write_csv
from pretraining.images import IMAGES_FILE

__all__ = ["compare_covid", "compare_curve", "compare_options", "compare_test", "paired_auc"]

KINDS = {"cxr": "cxr", "random": None}
PATIENTS = (10, 30, 100, 300)
SEEDS = range(5)
HELD_OUT = 200  # patients per class in the test set of the curve
VALIDATION = 5  # patients per class that are predicted after each epoch; 400 would take most of the time
N_RESAMPLES = 2000
OPTIONS = {  # of `fit`, compared with its defaults for pretrained weights
    "default": {},
    "one rate for all layers": {"lr_ratio": 1.0},
    "images of 96 pixels first": {"initial_image_size": 96},
}


def paired_auc(first: pd.DataFrame, second: pd.DataFrame, *, positive: str) -> dict[str, float]:
    """Return the difference of two models' AUC on the same patients with its 95% interval.

    Both are evaluated on the same 2,000 bootstrap resamples of the patients, stratified by class.
    """
    units = [score_units(table, positive=positive).table.set_index("patient").sort_index() for table in (first, second)]
    if not units[0].index.equals(units[1].index):
        raise ValueError("The two tables have different patients.")
    labels = units[0]["label"]
    weights = resample_patients(pd.Series(labels.index), labels, n_resamples=N_RESAMPLES, seed=0).astype(float)
    of_class = (labels == positive).to_numpy()
    scores = [table[f"p_{positive}"].to_numpy() for table in units]
    aucs = [roc_auc(score, of_class, np.ones((1, len(labels))))[0] for score in scores]
    differences = roc_auc(scores[0], of_class, weights) - roc_auc(scores[1], of_class, weights)
    low, high = np.quantile(differences, [0.025, 0.975])  # percentile bootstrap
    return {"first": aucs[0], "second": aucs[1], "difference": aucs[0] - aucs[1], "low": low, "high": high}


def finished(folder: Path) -> bool:
    """Return whether a folder has a finished run."""
    return (folder / "record.jsonl").exists() and read_run(folder).status == "finished"


def compare_covid(data: Path, out: Path) -> pd.DataFrame:
    """Cross-validate with both initial weights for 1 + 1 and 5 + 5 epochs, and return the paired differences."""
    rows = []
    for epochs in (1, 5):
        tables = []
        for kind, weights in KINDS.items():
            folder = out / f"covid-{kind}-{epochs}"
            if not finished(folder):
                options = {"task": "covid", "frozen_epochs": epochs, "unfrozen_epochs": epochs, "weights": weights}
                resume = {"resume": folder} if folder.exists() else {"out": folder, **options}
                cross_validate(None if folder.exists() else data / "coronahack-full", **resume)
            tables.append(read_run(folder).predictions)
        rows.append({"epochs": f"{epochs} + {epochs}", **paired_auc(*tables, positive="COVID-19")})
    return pd.DataFrame(rows)


def compare_test(data: Path, out: Path) -> pd.DataFrame:
    """Train on TRAIN with both initial weights, evaluate the official TEST once each, and return the metrics."""
    rows = []
    for kind, weights in KINDS.items():
        folder = out / f"test-{kind}"
        if not finished(folder):
            resume = (
                {"resume": folder} if folder.exists() else {"out": folder, "weights": weights, "evaluate_test": True}
            )
            if not folder.exists():
                resume["task"] = "pneumonia"
            train_classifier(None if folder.exists() else data / "coronahack-224", **resume)
        for split, result in read_run(folder).evaluations.items():
            for metric in ("accuracy", "auc", "sensitivity", "specificity"):
                row = result.row(metric)
                columns = ("metric", "value", "low", "high", "n")
                rows.append({"weights": kind, "split": split, **{name: row[name] for name in columns}})
    return pd.DataFrame(rows)


def unseen_cohort(data: Path, out: Path) -> pd.DataFrame:
    """Return the pneumonia task's training rows of patients that the weights were not trained on."""
    cohort = read_cohort(data / "coronahack-224", task="pneumonia", check_images=False)
    patients = set(pd.read_csv(out / IMAGES_FILE, dtype=str, keep_default_na=False)["patient"])
    return cohort[(cohort["split"] == "train") & ~cohort["patient"].isin(patients)]


def few_patients(cohort: pd.DataFrame, *, patients: int, seed: int) -> pd.DataFrame:
    """Return rows of `patients` per class in `train`, and of others, the same for a seed, in `test` and `valid`."""
    order = cohort.drop_duplicates("patient").sample(frac=1, random_state=seed)
    ranks = order.groupby("label").cumcount().to_numpy()
    ends = np.cumsum([HELD_OUT, VALIDATION, patients])  # of the ranks in test, valid and train
    split_of = dict(zip(order["patient"], np.searchsorted(ends, ranks, side="right"), strict=True))
    rows = cohort.assign(split=cohort["patient"].map(split_of).map(dict(enumerate(("test", "valid", "train")))))
    return rows[rows["split"].notna()].reset_index(drop=True)


def train_and_evaluate(rows: pd.DataFrame, *, seed: int, weights: str | None, **options: Any) -> dict[str, float]:
    """Train for 5 + 5 epochs at 128 pixels, and return accuracy, AUC and the seconds of the training."""
    with no_random(seed):
        dls = build_dataloaders(rows, image_size=128, batch_size=16, num_workers=0)
        learn = build_learner(dls, weights=weights)
        fit(learn, frozen_epochs=5, unfrozen_epochs=5, **options)
        result = evaluate(predict(learn, split="test"))
    return {metric: result.value(metric) for metric in ("accuracy", "auc")} | {
        "seconds": learn.facts.history.seconds.sum()
    }


def compute_missing(
    file: Path, experiments: Iterable[tuple[dict[str, Any], Callable[[], dict[str, float]]]]
) -> pd.DataFrame:
    """Run the experiments that a file of JSON lines does not have yet, append their rows, and return all rows."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for key, compute in experiments:
        if not any(key.items() <= row.items() for row in rows):
            rows.append(key | compute())
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
    return pd.DataFrame(rows)


def compare_curve(data: Path, out: Path) -> pd.DataFrame:
    """Train on few patients with both initial weights, and return accuracy and AUC by patients, seed and weights."""
    cohort = unseen_cohort(data, out)
    experiments = (
        (
            {"patients": patients, "seed": seed, "weights": kind},
            partial(train_and_evaluate, few_patients(cohort, patients=patients, seed=seed), seed=seed, weights=weights),
        )
        for seed, patients, (kind, weights) in product(SEEDS, PATIENTS, KINDS.items())
    )
    return compute_missing(out / "curve.jsonl", experiments)


def compare_options(data: Path, out: Path) -> pd.DataFrame:
    """Train on 100 patients per class with each option of `fit`, and return accuracy, AUC and seconds by seed."""
    cohort = unseen_cohort(data, out)
    experiments = (
        (
            {"option": name, "seed": seed},
            partial(
                train_and_evaluate, few_patients(cohort, patients=100, seed=seed), seed=seed, weights="cxr", **options
            ),
        )
        for seed, (name, options) in product(SEEDS, OPTIONS.items())
    )
    return compute_missing(out / "options.jsonl", experiments)


COMPARISONS = {
    "covid": compare_covid,
    "test": compare_test,
    "curve": compare_curve,
    "options": compare_options,
}


def main() -> None:
    """Run one comparison and write its table into the folder of the pretraining."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.compare", description=__doc__)
    parser.add_argument("what", choices=COMPARISONS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pretraining")
    options = parser.parse_args()
    table = COMPARISONS[options.what](options.data, options.out)
    write_csv(options.out / f"{options.what}.csv", table)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
