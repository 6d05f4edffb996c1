"""Linear probe: evaluate frozen features on patients and hospitals that the weights were not trained on.

`python -m pretraining.probe --data FOLDER --out FOLDER` compares the weights in `--out` with random ones, the teacher
and a 16x16 thumbnail: a logistic regression on frozen features, five folds by patient, the same rows and folds for all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from covid_fastai.data.images import open_image, resize_image
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import fold_by_patient
from covid_fastai.data.tasks import Task
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.files import write_csv
from pretraining.export import NAME, add_metrics
from pretraining.images import IMAGES_FILE
from pretraining.teacher import teacher_features
from pretraining.train import MEAN, STD, body

__all__ = ["COHORTS", "body_features", "metric_rows", "probe", "thumbnails"]

FOLDS = 5
COPIES = ("COVID-00020.jpg", "COVID-00022.jpg")  # images of external-adult that are re-encoded images of CoronaHack
EXTERNAL = Task(
    name="external",
    classes=("negative", "COVID-19"),
    positive="COVID-19",
    labels={"positive": "COVID-19", "no finding": "negative"},
    frontal_only=False,
    excluded={"pneumonia": "not a class of this comparison"},
)


def external(data: Path, *names: str) -> pd.DataFrame:
    """Return the cohorts of other hospitals as one; the weights were trained on none of them."""
    cohorts = [read_cohort(data / name / "labels.csv", task=EXTERNAL, check_images=False) for name in names]
    cohort = pd.concat(cohorts, ignore_index=True)
    return cohort[~cohort["image"].isin(COPIES)].reset_index(drop=True)


def coronahack(folder: Path, images: pd.DataFrame, *, task: str) -> pd.DataFrame:
    """Return the TRAIN rows of a task, without the patients that the weights were trained on."""
    cohort = read_cohort(folder, task=task, check_images=False)
    unseen = ~cohort["in_pretraining"] & ~cohort["patient"].isin(images["patient"])
    return cohort[(cohort["split"] == "train") & unseen].reset_index(drop=True)


COHORTS = {
    "external-adult + actualmed": lambda data, images: external(data, "external-adult", "external-actualmed"),
    "Kermany, unseen patients": lambda data, images: coronahack(data / "coronahack-224", images, task="etiology"),
    "CoronaHack covid": lambda data, images: coronahack(data / "coronahack-full", images, task="covid"),
}


@torch.inference_mode()
def body_features(model: nn.Module, paths: pd.Series, *, size: int, batch_size: int = 64) -> np.ndarray:
    """Return the body's pooled features, `(n, 512)`."""
    model = model.eval().to(memory_format=torch.channels_last)
    rows = []
    for start in range(0, len(paths), batch_size):
        images = [np.asarray(resize_image(open_image(path), size)) for path in paths[start : start + batch_size]]
        x = (torch.from_numpy(np.stack(images)).float().div(255)[:, None] - MEAN) / STD
        rows.append(model(x).numpy())
    return np.concatenate(rows)


def thumbnails(paths: pd.Series) -> np.ndarray:
    """Return the pixel intensities of each image at 16x16 pixels, `(n, 256)`, as a baseline without a network."""
    return np.stack([np.asarray(resize_image(open_image(path), 16), dtype=float).ravel() for path in paths])


def probe(features: np.ndarray, cohort: pd.DataFrame, *, seed: int = 0) -> Evaluation:
    """Evaluate features by a logistic regression in five folds by patient, with the penalty chosen inside each fold."""
    cohort = fold_by_patient(cohort, folds=FOLDS, seed=seed)
    classes = cohort.facts.classes
    probabilities = np.zeros((len(cohort), len(classes)))
    for fold in range(FOLDS):
        held_out = (cohort["fold"] == fold).to_numpy()
        inner = fold_by_patient(cohort[~held_out].reset_index(drop=True), folds=3, seed=seed)["fold"].to_numpy()
        splits = [(np.flatnonzero(inner != k), np.flatnonzero(inner == k)) for k in range(3)]
        regression = LogisticRegressionCV(
            Cs=np.logspace(-4, 1, 6),
            l1_ratios=(0,),  # an L2 penalty
            cv=splits,
            scoring="neg_log_loss",
            max_iter=3000,
            use_legacy_attributes=False,
        )
        model = make_pipeline(StandardScaler(), regression)
        model.fit(features[~held_out], cohort.loc[~held_out, "label"])
        order = [list(model.classes_).index(name) for name in classes]
        probabilities[held_out] = model.predict_proba(features[held_out])[:, order]
    table = pd.DataFrame(cohort)[["path", "label", "patient"]].copy()
    for number, name in enumerate(classes):
        table[f"p_{name}"] = probabilities[:, number]
    return evaluate(table, positive=cohort.facts.positive)


def metric_rows(result: Evaluation) -> list[dict]:
    """Return accuracy, AUC and log loss of an evaluation with their intervals, one row each."""
    rows = [result.row(metric) for metric in ("accuracy", "auc", "log_loss")]
    return [{key: row[key] for key in ("metric", "value", "low", "high", "n")} for row in rows]


def main() -> None:
    """Compare the weights with random ones, the teacher and the thumbnail, and write `probe.csv`."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.probe", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pretraining")
    parser.add_argument("--weights", type=Path, help="the .safetensors file of a body; by default the one in --out")
    parser.add_argument("--size", type=int, default=128, help="side of the images, pixels")
    options = parser.parse_args()
    images = pd.read_csv(options.out / IMAGES_FILE, dtype=str, keep_default_na=False)
    torch.manual_seed(0)
    trained, random = body(), body()
    state = load_file(options.weights or options.out / f"{NAME}.safetensors")
    trained.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    )
    rows = []
    for name, read in COHORTS.items():
        cohort = read(options.data, images)
        paths = cohort["path"]
        features_of = {
            "cxr": body_features(trained, paths, size=options.size),
            "random": body_features(random, paths, size=options.size),
            "teacher (ImageNet)": teacher_features(paths, None).astype(float),
            "thumbnail": thumbnails(paths),
        }
        for kind, features in features_of.items():
            metrics = metric_rows(probe(features, cohort))
            rows += [{"cohort": name, "features": kind, **row} for row in metrics]
            print(name, kind, {row["metric"]: round(row["value"], 4) for row in metrics}, flush=True)
    table = pd.DataFrame(rows)
    write_csv(options.out / "probe.csv", table)
    if options.weights is None:
        add_metrics(options.out, table)


if __name__ == "__main__":
    main()
