"""`python -m benchmarks.carry_over`: which options make a model carry over to other framings, hospitals and batches.

Each training is judged on images that differ from those it was trained on, and none of the choices reads the official
TEST of CoronaHack:

- `clusters`: pneumonia in children. CoronaHack's TRAIN patients are clustered by the framing of their images (the box
  of the lungs) and by traits of the capture (intensity, border, sharpness); one whole cluster is held out.
- `crossed`: the same clusters. In some, nearly all patients have one class; their patients of the other class are held
  out, such as healthy children whose images are framed like those with pneumonia. A model that relies on framing fails.
- `hospitals`: tuberculosis in adults. Trained on Shenzhen, judged on Montgomery County, and the other way round.
- `patients`: pneumonia in children, patients of TRAIN held out at random, as a training does by default. With
  `--official-test`, the same models are judged on TEST too: only for the final choice and for the defaults beside it.

Images that the package's weights were pretrained on are never judged on. The results are rows of `carry_over.csv`, one
per training and part; a finished row is not computed again, and an interrupted training continues from its last epoch.
COVID_FASTAI_DATA is the folder of the images.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
RESULTS = HERE / "carry_over.csv"
CLUSTERS = 5
SEED_OF_CLUSTERS = 0
USUAL = 0.7  # of a cluster's images: its usual class
SIDE = 128  # pixels, of the images that the traits are measured on
REGIONS, AUGMENTATIONS = ("frame", "lungs"), ("standard", "strong")
# With the body unfrozen, after 5 on features of the frozen body; few images need more epochs
EPOCHS = {"clusters": 5, "crossed": 5, "patients": 5, "hospitals": 10}
HOSPITALS = {"MCUCXR": "Montgomery", "CHNCXR": "Shenzhen"}
TEST_NOTE = "official TEST, which an earlier trial looked at four times"


@dataclass(frozen=True)
class Training:
    """One training, and what is held out from it."""

    protocol: str
    held_out: str
    region: str
    augmentation: str
    image_size: int
    seed: int
    most: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "-".join(str(value) for value in asdict(self).values()).replace(" ", "_")


def main() -> None:
    """Run the trainings that are missing in the results, in the order of the arguments, or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.carry_over", description=__doc__.split("\n")[0])
    parser.add_argument("protocol", choices=[*EPOCHS, "tables"], help="which trainings to run; tables only prints")
    parser.add_argument("--held-out", nargs="+", help="clusters by number, or hospitals; default: all")
    parser.add_argument("--regions", nargs="+", default=REGIONS, choices=REGIONS)
    parser.add_argument("--augmentations", nargs="+", default=AUGMENTATIONS, choices=AUGMENTATIONS)
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--most", type=int, default=0, help="train on about so many images of whole patients; 0: on all"
    )
    parser.add_argument("--official-test", action="store_true", help="judge on TEST too; for the final choice only")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("carry-over"), help="folder of checkpoints and models")
    arguments = parser.parse_args()
    if arguments.protocol == "tables":
        print(summarise(pd.read_csv(arguments.results)).to_string(index=False))
        return
    cohort = read_hospitals() if arguments.protocol == "hospitals" else read_children()
    for training in plan(arguments, cohort):
        parts = ["valid", "test"] if arguments.official_test else ["valid"]
        run(training, cohort, parts=parts, out=arguments.out, results=arguments.results)


def plan(arguments: argparse.Namespace, cohort: pd.DataFrame) -> Iterator[Training]:
    """Yield the trainings of the command line."""
    held_out = (
        arguments.held_out
        or {
            "clusters": lambda: [str(number) for number in range(CLUSTERS)],
            "crossed": lambda: ["framed as the other class"],
            "hospitals": lambda: sorted(HOSPITALS.values()),
            "patients": lambda: ["random patients"],
        }[arguments.protocol]()
    )
    values = (arguments.seeds, held_out, arguments.image_sizes, arguments.augmentations, arguments.regions)
    for seed, part, image_size, augmentation, region in itertools.product(*values):
        yield Training(arguments.protocol, part, region, augmentation, image_size, seed, arguments.most)


def data_folder() -> Path:
    """Return the folder of the images."""
    return Path(os.environ.get("COVID_FASTAI_DATA") or HERE.parent.parent / "shared" / "data")


def read_children() -> pd.DataFrame:
    """Read CoronaHack's pneumonia task, with the column `cluster`; -1 outside of TRAIN."""
    from covid_fastai import read_cohort

    cohort = read_cohort(data_folder() / "coronahack-224", task="pneumonia")
    rows = cohort["split"] == "train"
    cohort["cluster"] = -1
    cohort.loc[rows, "cluster"] = cluster_patients(measure_traits(cohort[rows]), cohort.loc[rows, "group"])
    return cohort


def read_hospitals() -> pd.DataFrame:
    """Read the radiographs of adults with and without tuberculosis; each image is a patient."""
    from covid_fastai.data.cohort import as_cohort

    files = sorted((data_folder() / "lungs-256" / "images").glob("*.jpg"))
    table = pd.DataFrame({"path": [str(file) for file in files], "patient": [file.stem for file in files]})
    table["label"] = ["Tuberculosis" if file.stem.endswith("_1") else "Normal" for file in files]
    table["source"] = [HOSPITALS[file.stem.split("_")[0]] for file in files]
    return as_cohort(table.assign(split="train", patient_known=True, view="", group=table["patient"]))


def measure_traits(rows: pd.DataFrame) -> pd.DataFrame:
    """Measure framing and capture: the lungs' box, and intensity, contrast, border, black area and sharpness."""
    from covid_fastai.data.cache import square_pixels
    from covid_fastai.data.cached_regions import measure_crops

    crops = measure_crops(rows["path"], image_size=SIDE)
    traits = crops[["left", "top", "right", "bottom"]].set_index(rows.index)
    measured = []
    for path in rows["path"]:
        pixels = square_pixels(path, SIDE).astype(np.float32) / 255
        border = np.concatenate([edge.ravel() for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:])])
        fine = np.abs(np.diff(pixels, axis=0)).mean() / pixels.std()
        measured.append([pixels.mean(), pixels.std(), border.mean(), (pixels < 0.05).mean(), fine])
    traits[["mean", "std", "border", "black", "sharpness"]] = measured
    return traits


def cluster_patients(traits: pd.DataFrame, group: pd.Series) -> pd.Series:
    """Cluster patients by the mean traits of their images (k-means); return the cluster of each image.

    The clusters are numbered by size, the largest first.
    """
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import StandardScaler

    patients = traits.groupby(group).mean()
    scaled = StandardScaler().fit_transform(patients)
    found = KMeans(CLUSTERS, n_init=10, random_state=SEED_OF_CLUSTERS).fit_predict(scaled)
    order = pd.Series(found).value_counts().index.tolist()
    return group.map(pd.Series([order.index(number) for number in found], index=patients.index))


def hold_out(cohort: pd.DataFrame, training: Training) -> pd.DataFrame:
    """Return the cohort split for a training: `valid` is what it is judged on."""
    from covid_fastai import split_by_patient

    if training.protocol == "patients":
        return split_by_patient(cohort, valid_pct=0.2, seed=training.seed)
    cohort = cohort.copy()
    rows = cohort["split"] == "train"
    if training.protocol == "crossed":
        there = rows & _has_rare_class(cohort[rows]).reindex(cohort.index, fill_value=False)
    else:
        column = "source" if training.protocol == "hospitals" else "cluster"
        there = rows & (cohort[column].astype(str) == training.held_out)
    cohort.loc[there, "split"] = "valid"
    if "in_pretraining" in cohort:  # whole groups, as in every split of the package
        seen = cohort["group"].isin(cohort.loc[cohort["in_pretraining"], "group"])
        cohort.loc[there & seen, "split"] = "excluded"
    return cohort


def _has_rare_class(rows: pd.DataFrame) -> pd.Series:
    """Return which images do not have the class of most images of their cluster, in clusters that have such a class."""
    fractions = pd.crosstab(rows["cluster"], rows["label"], normalize="index")
    usual = fractions.idxmax(axis=1)[fractions.max(axis=1) >= USUAL]
    expected = rows["cluster"].map(usual)
    return expected.notna() & (rows["label"] != expected)


def limit(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Exclude whole patients at random, the same for every choice of options, until about `most` images train."""
    train = rows["split"] == "train"
    if not most or train.sum() <= most:
        return rows
    patients = rows.loc[train, "group"].drop_duplicates().sample(frac=1, random_state=0)
    images = rows.loc[train, "group"].value_counts().reindex(patients).cumsum()
    rows = rows.copy()
    rows.loc[train & ~rows["group"].isin(images.index[images <= most]), "split"] = "excluded"
    return rows


def run(training: Training, cohort: pd.DataFrame, *, parts: list[str], out: Path, results: Path) -> None:
    """Train once, save the model, and add a row per part to the results; nothing is done twice."""
    missing = [part for part in parts if not is_done(results, training, part)]
    if not missing:
        print(f"{training.name}: done before", flush=True)
        return
    from fastai.torch_core import no_random

    from covid_fastai import TrainConfig, save_model
    from covid_fastai.evaluation.predict import predict
    from covid_fastai.model.bundle import load_model
    from covid_fastai.model.checkpoint import clear_checkpoints
    from covid_fastai.run_folder import RunFolder
    from covid_fastai.training.fit_cohort import fit_cohort

    folder = RunFolder(out / training.name)
    folder.path.mkdir(parents=True, exist_ok=True)
    rows = limit(hold_out(cohort, training), training.most)
    config = TrainConfig(
        region=training.region,
        augmentation=training.augmentation,
        image_size=training.image_size,
        seed=training.seed,
        frozen_augmentations=1,
        unfrozen_epochs=EPOCHS[training.protocol],
    )
    wall, cpu = time.perf_counter(), time.process_time()
    if folder.model.exists():
        learn = load_model(folder.model)
    else:
        with no_random(training.seed):
            learn = fit_cohort(rows, config, folder, resuming=True)
        save_model(learn, folder.model)
    minutes = {"minutes": (time.perf_counter() - wall) / 60, "cpu_minutes": (time.process_time() - cpu) / 60}
    for part in missing:
        predictions = predict(learn, rows, split=part)
        predictions.to_csv(folder.path / f"{part}.csv", index=False)
        facts = {"trained_on": int((rows["split"] == "train").sum()), **minutes}
        add_row(results, asdict(training) | {"part": part} | judge(predictions) | facts)
    clear_checkpoints(folder.checkpoints)


def judge(predictions: pd.DataFrame) -> dict[str, float]:
    """Return accuracy, AUC, sensitivity and specificity at the threshold 0.5, by image and by patient."""
    from covid_fastai import evaluate

    row: dict[str, float] = {}
    for unit in ("image", "patient"):
        result = evaluate(predictions, unit=unit, n_resamples=100)
        row[f"{unit}s"] = int(result.row("accuracy")["n"])
        for name in ("accuracy", "auc", "sensitivity", "specificity"):
            row[f"{name}_{unit}"] = round(float(result.value(name)), 4)
    return row


def is_done(results: Path, training: Training, part: str) -> bool:
    """Return whether the results have a row."""
    if not results.exists():
        return False
    table = pd.read_csv(results, dtype=str)
    wanted = {name: str(value) for name, value in (asdict(training) | {"part": part}).items()}
    return bool(np.logical_and.reduce([table[name] == value for name, value in wanted.items()]).any())


def add_row(results: Path, row: dict) -> None:
    """Append a row to the results."""
    row = {name: round(value, 2) if name.endswith("minutes") else value for name, value in row.items()}
    pd.DataFrame([row]).to_csv(results, mode="a", header=not results.exists(), index=False)
    print(pd.Series(row).to_string(), flush=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average the seeds of each protocol, held-out set, part and choice of options, with the range of the accuracy."""
    options = ["protocol", "held_out", "part", "image_size", "region", "augmentation"]
    metrics = [name for name in table if name.endswith(("_image", "_patient"))]
    groups = table.groupby(options, sort=False)
    means = groups[[*metrics, "minutes", "cpu_minutes"]].mean().round(4)
    lowest, highest = groups["accuracy_image"].min(), groups["accuracy_image"].max()
    return means.assign(lowest=lowest, highest=highest, seeds=groups.size()).reset_index()


if __name__ == "__main__":
    pd.set_option("display.width", 250)
    pd.set_option("display.max_columns", 30)
    main()
