"""What starting from the weights is worth when a model is trained: beside random weights, on the same rows.

`python -m pretraining.compare covid|test|curve|options --data FOLDER --out FOLDER` is resumable: nothing is done twice.

- `covid`: CoronaHack's COVID-19 task, five folds by patient, 1 + 1 and 5 + 5 epochs.
- `test`: the pneumonia task, trained on TRAIN; the official TEST is touched once.
- `curve`: the pneumonia task from 10 to 300 patients a class whom the weights have not seen, judged on 400 others.
- `options`: the same with 100 patients a class and the package's weights: which options of `fit` pay.
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

__all__ = ["compare_covid", "compare_curve", "compare_options", "compare_test", "paired_auc"]

KINDS = {"cxr": "cxr", "random": None}
PATIENTS = (10, 30, 100, 300)
SEEDS = range(5)
HELD_OUT = 200  # patients a class that the curve is judged on
WATCHED = 5  # patients a class that are predicted after each epoch: 400 every time would take most of the hours
DRAWS = 2000
OPTIONS = {  # of `fit`, beside its defaults for pretrained weights
    "default": {},
    "one rate for all layers": {"lr_ratio": 1.0},
    "images of 96 pixels first": {"initial_image_size": 96},
}


def paired_auc(first: pd.DataFrame, second: pd.DataFrame, *, positive: str) -> dict[str, float]:
    """Return the difference of two models' AUC on the same patients with its 95% interval.

    Both are judged on the same 2,000 bootstrap draws of patients, class by class.
    """
    units = [score_units(table, positive=positive).table.set_index("patient").sort_index() for table in (first, second)]
    if not units[0].index.equals(units[1].index):
        raise ValueError("the two tables are of different patients")
    labels = units[0]["label"]
    weights = resample_patients(pd.Series(labels.index), labels, n_resamples=DRAWS, seed=0).astype(float)
    of_class = (labels == positive).to_numpy()
    scores = [table[f"p_{positive}"].to_numpy() for table in units]
    once = [roc_auc(score, of_class, np.ones((1, len(labels))))[0] for score in scores]
    drawn = roc_auc(scores[0], of_class, weights) - roc_auc(scores[1], of_class, weights)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"first": once[0], "second": once[1], "difference": once[0] - once[1], "low": low, "high": high}


def finished(folder: Path) -> bool:
    """Whether a run is there and ended well."""
    return (folder / "record.jsonl").exists() and read_run(folder).status == "finished"


def compare_covid(data: Path, out: Path) -> pd.DataFrame:
    """Cross-validate from either weights for 1 + 1 and 5 + 5 epochs, and return the paired differences."""
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
    """Train on TRAIN from either weights, touch the official TEST once each, and return its figures."""
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
                figures = {name: row[name] for name in ("metric", "value", "low", "high", "n")}
                rows.append({"weights": kind, "split": split, **figures})
    return pd.DataFrame(rows)


def unseen_cohort(data: Path, out: Path) -> pd.DataFrame:
    """Return the pneumonia task's training rows of patients whom the weights have not seen."""
    cohort = read_cohort(data / "coronahack-224", task="pneumonia", check_images=False)
    seen = set(pd.read_csv(out / "seen.csv", dtype=str, keep_default_na=False)["patient"])
    return cohort[(cohort["split"] == "train") & ~cohort["patient"].isin(seen)]


def few_patients(cohort: pd.DataFrame, *, patients: int, seed: int) -> pd.DataFrame:
    """Return `patients` a class to train on, and others, the same by seed, to judge on (`test`) and watch (`valid`)."""
    order = cohort.drop_duplicates("patient").sample(frac=1, random_state=seed)
    ranks = order.groupby("label").cumcount().to_numpy()
    ends = np.cumsum([HELD_OUT, WATCHED, patients])
    split_of = dict(zip(order["patient"], np.searchsorted(ends, ranks, side="right"), strict=True))
    rows = cohort.assign(split=cohort["patient"].map(split_of).map(dict(enumerate(("test", "valid", "train")))))
    return rows[rows["split"].notna()].reset_index(drop=True)


def judge_few(rows: pd.DataFrame, *, seed: int, weights: str | None, **options: Any) -> dict[str, float]:
    """Train for 5 + 5 epochs on 128 pixels and return accuracy, AUC and what the training took."""
    with no_random(seed):
        dls = build_dataloaders(rows, image_size=128, batch_size=16, num_workers=0)
        learn = build_learner(dls, weights=weights)
        fit(learn, frozen_epochs=5, unfrozen_epochs=5, **options)
        result = evaluate(predict(learn, split="test"))
    return {metric: result.value(metric) for metric in ("accuracy", "auc")} | {
        "seconds": learn.facts.history.seconds.sum()
    }


def each_once(file: Path, wanted: Iterable[tuple[dict[str, Any], Callable[[], dict[str, float]]]]) -> pd.DataFrame:
    """Do what is wanted and not yet in the file of JSON lines, a line each, and return all rows."""
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for key, compute in wanted:
        if not any(key.items() <= row.items() for row in done):
            done.append(key | compute())
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
    return pd.DataFrame(done)


def compare_curve(data: Path, out: Path) -> pd.DataFrame:
    """Train on few patients from either weights, and return accuracy and AUC by patients, seed and weights."""
    cohort = unseen_cohort(data, out)
    wanted = (
        (
            {"patients": patients, "seed": seed, "weights": kind},
            partial(judge_few, few_patients(cohort, patients=patients, seed=seed), seed=seed, weights=weights),
        )
        for seed, patients, (kind, weights) in product(SEEDS, PATIENTS, KINDS.items())
    )
    return each_once(out / "curve.jsonl", wanted)


def compare_options(data: Path, out: Path) -> pd.DataFrame:
    """Train on 100 patients a class with each option of `fit`, and return accuracy, AUC and seconds by seed."""
    cohort = unseen_cohort(data, out)
    wanted = (
        (
            {"option": name, "seed": seed},
            partial(judge_few, few_patients(cohort, patients=100, seed=seed), seed=seed, weights="cxr", **options),
        )
        for seed, (name, options) in product(SEEDS, OPTIONS.items())
    )
    return each_once(out / "options.jsonl", wanted)


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
