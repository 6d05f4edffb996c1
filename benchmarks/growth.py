"""Benchmarks of each step from rows to report for growing data: predictions of up to a million, and drawn images.

Times are the processor time of one process, all of its threads together, so that other work on the machine counts
little; each step states the peak of its memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measuring import Measurement

PREDICTIONS = (10_000, 100_000, 1_000_000)
IMAGES = (1_000, 10_000, 100_000)
IMAGES_PER_PATIENT = 1.5  # of `write_phantom`
EVALUATED = ("read_predictions", "evaluate", "evaluate_subgroups", "risk_coverage", "compare", "write_evaluation")
TRAINED = (
    "read_cohort",
    "split_by_patient",
    "fit_cohort",
    "predict",
    "evaluate",
    "write_results",
    "write_probes",
    "audit_run",
)
TRAINED += ("write_report", "write_documents")

# Both scripts show the processor time and the peak memory of each step as it ends, and print all of them at the end.
STEPS = """
import json, resource, sys, time
from contextlib import contextmanager
steps = {}
@contextmanager
def step(name):
    begun = time.process_time()
    yield
    steps[name] = (time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"{name}: {steps[name][0]:.1f} s, {steps[name][1]:.0f} MB", file=sys.stderr, flush=True)
"""

EVALUATE = (
    STEPS
    + """
from covid_fastai.evaluation.comparison import compare
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.selective import risk_coverage
from covid_fastai.evaluation.subgroups import evaluate_subgroups
from covid_fastai.reporting.report import write_evaluation
first, second, page = sys.argv[1:]
with step("read_predictions"):
    table = read_predictions(first)
with step("evaluate"):
    result = evaluate(table)
with step("evaluate_subgroups"):
    evaluate_subgroups(table)
with step("risk_coverage"):
    risk_coverage(table)
with step("compare"):
    compare(table, read_predictions(second))
with step("write_evaluation"):
    write_evaluation(result, page)
print(json.dumps(steps))
"""
)

TRAIN = (
    STEPS
    + """
import covid_fastai.training.train as train
def timed(name, function):
    def call(*arguments, **options):
        with step(name):
            return function(*arguments, **options)
    return call
for name in sys.argv[3:]:
    setattr(train, name, timed(name, getattr(train, name)))
train.train_classifier(
    sys.argv[1], out=sys.argv[2], arch="resnet18", weights=None, image_size=64, batch_size=64, frozen_epochs=0,
    unfrozen_epochs=1, exclude_pretraining_overlap=False, quiet=True,
)
print(json.dumps(steps))
"""
)


def measure_predictions(*, repeats: int, quick: bool) -> list[Measurement]:
    """Read, evaluate and compare predictions of growing size, and write the page; a patient has one to three images."""
    measurements = []
    for rows in PREDICTIONS[:1] if quick else PREDICTIONS:
        with tempfile.TemporaryDirectory(prefix="covid_fastai-growth-") as folder:
            paths = [Path(folder) / name for name in ("first.csv", "second.csv", "page.html")]
            for path, table in zip(paths, simulate_predictions(rows), strict=False):
                table.to_csv(path, index=False)
            steps = _run(EVALUATE, paths)
            size = f"page of {paths[-1].stat().st_size / 1e6:.1f} MB"
        measurements += _as_measurements(steps, EVALUATED, rows, "predictions", {"write_evaluation": size})
    return measurements


def measure_images(*, repeats: int, quick: bool) -> list[Measurement]:
    """Train a ResNet-18 for one epoch on growing numbers of drawings of 64 pixels, with audit and report."""
    from covid_fastai.data.phantom import write_phantom

    measurements = []
    for images in IMAGES[:1] if quick else IMAGES:
        with tempfile.TemporaryDirectory(prefix="covid_fastai-growth-") as folder:
            root = Path(folder) / "images"
            write_phantom(root, patients=round(images / IMAGES_PER_PATIENT), image_size=64, seed=0)
            steps = _run(TRAIN, [root, Path(folder) / "run", *TRAINED], cache=Path(folder) / "cache")
            report = (Path(folder) / "run" / "report.html").stat().st_size / 1e6
        measurements += _as_measurements(steps, TRAINED, images, "images", {"write_report": f"{report:.1f} MB"})
    return measurements


def simulate_predictions(rows: int, *, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the predictions of two models for the same images, 20% of the patients with COVID-19."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(rows), rng.choice([1, 2, 3], size=rows, p=[0.6, 0.3, 0.1]))[:rows]
    patients = int(patient[-1]) + 1
    positive = rng.random(patients) < 0.2
    first = 0.8 * rng.normal(size=patients) + 1.6 * positive - 2
    about = pd.DataFrame({"path": [f"/data/{number // 1000:04d}/{number:07d}.png" for number in range(rows)]})
    about["label"] = np.where(positive, "COVID-19", "Normal")[patient]
    about["patient"] = [f"p{number:07d}" for number in patient]
    about["source"] = rng.choice([f"hospital-{letter}" for letter in "ABCD"], patients)[patient]
    about["sex"], about["age"] = rng.choice(["F", "M"], patients)[patient], rng.integers(18, 90, patients)[patient]
    tables = []
    for scores in (first, 0.9 * first + 0.5 * rng.normal(size=patients)):
        p = (1 / (1 + np.exp(-scores[patient] - 0.6 * rng.normal(size=rows)))).round(6)
        tables.append(about.assign(**{"p_Normal": 1 - p, "p_COVID-19": p}))
    return tables[0], tables[1]


def _run(script: str, arguments: list, *, cache: Path | None = None) -> dict[str, tuple[float, float]]:
    """Run a script in a process of its own, and return processor seconds and peak memory, MB, of each step."""
    import os

    environment = os.environ | ({} if cache is None else {"COVID_FASTAI_CACHE": str(cache)})
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)  # each step is shown
    if process.returncode:
        raise RuntimeError(f"The process of the steps ended with status {process.returncode}.")
    return json.loads(process.stdout.splitlines()[-1])


def _as_measurements(
    steps: dict[str, tuple[float, float]], names: tuple[str, ...], size: int, unit: str, remarks: dict[str, str]
) -> list[Measurement]:
    measurements = []
    for name in names:
        seconds, memory = steps[name]
        remark = "; ".join(["processor time", f"{memory:.0f} MB at most", *filter(None, [remarks.get(name)])])
        title = f"{name} of {size:,} {unit}"
        measurements.append(Measurement(title, "", seconds, 0.0, None, None, None, None, None, None, 1, remark, size))
    return measurements
