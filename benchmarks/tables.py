"""Benchmarks of growing size: cohorts of up to a million rows, bootstrap intervals, and the search for copies."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measuring import Measurement, compare, data_folder, fresh_cache, note

ROWS = (10_000, 100_000, 1_000_000)

# Run in a separate process, so that its peak memory is that of this work.
READ = """
import json, resource, sys, time
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import split_by_patient
begun = time.perf_counter()
cohort = read_cohort(sys.argv[1], task="covid", image_root=sys.argv[2], check_images=int(sys.argv[3]))
read = time.perf_counter()
cohort = split_by_patient(cohort, valid_pct=0.2, seed=0)
split = time.perf_counter()
assert cohort.groupby("patient")["split"].nunique().max() == 1
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"rows": len(cohort), "read": read - begun, "split": split - read, "memory": memory}))
"""


def measure_rows(*, repeats: int, quick: bool) -> list[Measurement]:
    """Read and split cohorts of growing size with two images per patient; the files exist, and a sample is opened."""
    measurements = []
    for rows in ROWS[:1] if quick else ROWS:
        with tempfile.TemporaryDirectory(prefix="covid_fastai-rows-") as folder:
            csv = write_rows(Path(folder), rows)
            outputs: list[dict] = []

            def ours(csv=csv, outputs=outputs) -> float:
                process = subprocess.run(
                    [sys.executable, "-c", READ, str(csv), str(csv.parent), "1000"], capture_output=True, text=True
                )
                if process.returncode:
                    raise RuntimeError(process.stderr[-2000:])
                outputs.append(json.loads(process.stdout))
                return outputs[-1]["read"] + outputs[-1]["split"]

            def remark(outputs=outputs) -> str:
                last = outputs[-1]
                return f"read {last['read']:.1f} s, split {last['split']:.1f} s, {last['memory']:.0f} MB at most"

            options = {"repeats": min(repeats, 3) if rows < 1_000_000 else 1, "warm": False, "remark": remark}
            measurements.append(compare(f"cohort of {rows:,} rows", ours, **options, size=rows))
    return measurements


def write_rows(folder: Path, rows: int) -> Path:
    """Write a CSV of that many rows with a file for each: hard links to 1,000 synthetic images, 1,000 per folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for number in range(1000):
        small = Image.fromarray(rng.integers(0, 255, (6, 6), dtype=np.uint8))
        images.append(folder / f"drawn-{number}.png")
        small.resize((64, 64), Image.Resampling.BICUBIC).save(images[-1])
    names = [f"{number // 1000:04d}/{number:07d}.png" for number in range(rows)]
    for number, name in enumerate(names):
        if number % 1000 == 0:
            (folder / name).parent.mkdir()
        (folder / name).hardlink_to(images[number % 1000])
    table = pd.DataFrame({"image": names, "patient": [f"p{number // 2:07d}" for number in range(rows)]})
    table["label"] = np.where(np.arange(rows) % 1000 < 100, "COVID-19", "Normal")  # equal images have equal labels
    table.to_csv(folder / "rows.csv", index=False)
    return folder / "rows.csv"


# Measures the memory of a training in addition to that after its model is built.
TRAIN = """
import json, os, resource, sys
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import split_by_patient
from covid_fastai.evaluation.predict import predict
from covid_fastai.model.learner import build_learner
from covid_fastai.model.schedule import fit
cohort = read_cohort(sys.argv[1], task="covid", exclude_pretraining_overlap=False)
cohort = split_by_patient(cohort, valid_pct=0.2, seed=0)
learn = build_learner(build_dataloaders(cohort, image_size=256, batch_size=32), weights=None, path=sys.argv[2])
with open("/proc/self/statm") as file:
    built = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
fit(learn, frozen_epochs=1, unfrozen_epochs=1)
predict(learn)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(json.dumps({"images": len(cohort), "built": built, "peak": peak}))
"""


def measure_memory(*, repeats: int, quick: bool) -> list[Measurement]:
    """Train on full-resolution images and on ten copies of them: memory must not grow with the number of images."""
    from covid_fastai.data.metadata import read_cohort

    rows = read_cohort(data_folder(), exclude_pretraining_overlap=False, check_images=False)
    rows = rows[rows["split"] == "train"][["path", "label", "patient"]]
    measurements = []
    for copies in (1, 2) if quick else (1, 10):
        with tempfile.TemporaryDirectory(prefix="covid_fastai-memory-") as folder:
            csv = Path(folder) / "rows.csv"
            pd.concat([_copies(rows, Path(folder) / str(copy), copy) for copy in range(copies)]).to_csv(
                csv, index=False
            )
            outputs: list[dict] = []

            def ours(csv=csv, outputs=outputs) -> None:
                command = [sys.executable, "-c", TRAIN, str(csv), str(csv.parent)]
                process = subprocess.run(command, capture_output=True, text=True)
                if process.returncode:
                    raise RuntimeError(process.stderr[-2000:])
                outputs.append(json.loads(process.stdout.splitlines()[-1]))

            def remark(outputs=outputs) -> str:
                last = outputs[-1]
                additional = last["peak"] - last["built"]
                return f"{additional:.0f} MB in addition to the model ({last['built']:.0f} MB with all imports)"

            name = f"memory of 1 + 1 epochs on {copies * len(rows):,} full-resolution images"
            measurements.append(compare(name, ours, repeats=1, warm=False, remark=remark))
    return measurements


def _copies(rows: pd.DataFrame, folder: Path, copy: int) -> pd.DataFrame:
    """Copy the files for other patients, with one byte appended to each, so that the cache does not have them."""
    folder.mkdir()
    paths = []
    for number, path in enumerate(rows["path"]):
        paths.append(folder / f"{number}{Path(path).suffix}")
        paths[-1].write_bytes(Path(path).read_bytes() + bytes([copy]))
    return rows.assign(path=[str(path) for path in paths], patient=[f"{name}-{copy}" for name in rows["patient"]])


def measure_bootstrap(*, repeats: int, quick: bool) -> list[Measurement]:
    """Compare the bootstrap of an average precision with a loop over scikit-learn's."""
    from sklearn.metrics import average_precision_score

    from covid_fastai.evaluation.metrics import evaluate

    rng = np.random.default_rng(0)
    n, n_resamples = 500, 200 if quick else 2000
    label = rng.random(n) < 0.3
    p = np.clip(0.3 + 0.25 * label + rng.normal(0, 0.2, n), 0.001, 0.999)
    table = pd.DataFrame({"path": [f"{number}.png" for number in range(n)], "patient": [f"p{i}" for i in range(n)]})
    table = table.assign(label=np.where(label, "COVID-19", "Normal"), p_Normal=1 - p, status="ok")
    table["p_COVID-19"] = p

    def loop() -> None:
        strata = np.flatnonzero(label), np.flatnonzero(~label)
        for _ in range(n_resamples):
            resample = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
            average_precision_score(label[resample], p[resample])

    return [
        compare(
            f"bootstrap of {n} patients, {n_resamples:,} resamples",
            lambda: evaluate(table, positive="COVID-19", n_resamples=n_resamples),
            loop, peer="loop over scikit-learn, one metric", repeats=repeats,
            remark="ours: every metric of the report",
        )
    ]  # fmt: skip


def measure_search(*, repeats: int, quick: bool) -> list[Measurement]:
    """Time the search for candidates among growing numbers of images, whose keypoints are drawn.

    The keypoints are those of 200 drawn radiographs, mixed, each with a quarter of the bits of its code changed at
    random. Fingerprinting and the confirmation of candidates are not included.
    """
    from covid_fastai.data.alignment import fewest_keypoints, least_evidence
    from covid_fastai.data.keypoint_search import match_images
    from covid_fastai.data.keypoints import COUNT, SCALES, SIDE, find_keypoints
    from covid_fastai.data.phantom import draw_phantom

    rng = np.random.default_rng(0)
    pool = np.concatenate([find_keypoints(draw_phantom(rng, image_size=SIDE).image) for _ in range(200)])
    measurements = []
    for images in (500,) if quick else (1_000, 10_000, 20_000, 100_000):
        keypoints = rng.choice(pool, (images, COUNT))
        for scale in range(len(SCALES)):
            changed = rng.integers(0, 2**64, (2, images, COUNT), dtype=np.uint64)
            keypoints["codes"][:, :, scale] ^= changed[0] & changed[1]
        name, remark = f"candidates for copies among {images:,} images", "drawn keypoints, one core"
        limits = {"min_count": fewest_keypoints(images), "min_evidence": least_evidence(images)}
        work = partial(match_images, keypoints, **limits)
        options = {"target": 60 if images == 100_000 else None, "repeats": 1, "warm": False}
        measurements.append(compare(name, lambda work=work: work() and None, remark=remark, size=images, **options))
    return measurements


def measure_copies(*, repeats: int, quick: bool) -> list[Measurement]:
    """Compare the search for copies with imagehash on every pair, for growing numbers of images."""
    import imagehash
    from PIL import Image

    from covid_fastai.data.fingerprints import duplicate_pairs, fingerprint_images

    measurements = []
    images = sorted(str(path) for path in data_folder().rglob("*.jp*g"))[:280]
    for size in (35,) if quick else (35, 70, 140, 280):
        files = images[:size]

        def theirs(files=files) -> None:
            hashes = [imagehash.phash(Image.open(file), hash_size=16) for file in files]
            for first in range(len(hashes)):
                for second in range(first + 1, len(hashes)):
                    hashes[first] - hashes[second]

        def ours(files=files) -> None:
            with fresh_cache():
                duplicate_pairs(fingerprint_images(files))

        remark = f"ours finds mirrored and cropped copies, too {note()}".strip()
        options = {"repeats": repeats, "warm": False, "remark": remark, "size": len(files)}
        name = f"copies among {len(files)} images"
        measurements.append(compare(name, ours, theirs, peer="imagehash, every pair", **options))
    return measurements
