"""Benchmarks: prediction from files, and startup times."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.measuring import Measurement, compare, data_folder, note, timed
from benchmarks.stock import SIZE, stock_learner, stock_loaders


def measure_files(*, repeats: int, quick: bool) -> list[Measurement]:
    """Compare prediction from files with ONNX Runtime on pixels in memory, and with `learn.predict` image by image."""
    from covid_fastai.data.images import open_square
    from covid_fastai.evaluation.predict import predict
    from covid_fastai.model.bundle import load_model
    from covid_fastai.model.predictor import BATCH, Predictor
    from covid_fastai.runtime import onnxruntime

    files = benchmark_files()[: 24 if quick else 160]
    predictor, learn = Predictor(saved_model()), load_model(saved_model(), device="cpu")
    pixels = np.stack([np.asarray(open_square(file, SIZE)) for file in files])[:, None]
    session = onnxruntime.InferenceSession(
        (saved_model() / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )

    def bare() -> None:
        for start in range(0, len(pixels), BATCH):
            session.run(["probabilities"], {"images": pixels[start : start + BATCH]})

    few = files[:24]
    stock = stock_learner(stock_loaders(_labelled(few), num_workers=0), "resnet18", _folder())

    def one_by_one(learner):
        def run() -> float:
            with learner.no_bar():
                return timed(lambda: [learner.predict(file) for file in few]) * len(files) / len(few)

        return run

    gap = abs(predictor.predict(few)["p_COVID-19"] - predict(learn, few)["p_COVID-19"]).max()
    remark = f"ResNet-18, {SIZE} px, predictions differ by at most {gap:.0e} {note()}".strip()
    name, options = f"predict {len(files)} files", {"repeats": repeats, "remark": remark}
    ours = lambda: predictor.predict(files)  # noqa: E731
    return [
        compare(name, ours, bare, peer="bare ONNX Runtime, pixels in memory", target=0.8, **options),
        compare(name, ours, one_by_one(stock), peer="fastai's learn.predict, one by one", target=2.5, **options),
        compare(name, ours, one_by_one(learn), peer="our Learner's learn.predict, images from the cache", **options),
    ]


def _labelled(files: list[str]):
    split = ["valid" if number % 4 == 0 else "train" for number in range(len(files))]
    return pd.DataFrame({"path": files, "label": ["Normal", "COVID-19"] * (len(files) // 2), "split": split})


def measure_start(*, repeats: int, quick: bool) -> list[Measurement]:
    """Measure startup times: the help text, a first prediction, and the import."""
    file = benchmark_files()[0]

    def command(*arguments: str):
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    ours = command("-m", "covid_fastai", "--help")
    predict = command("-m", "covid_fastai", "predict", str(saved_model()), file)
    return [
        compare("covid-fastai --help", ours, target=0.3, repeats=repeats),
        compare(f"covid-fastai predict, one file of {os.path.getsize(file) >> 10} KiB, cold process", predict,
                target=1.5, repeats=repeats, remark="ResNet-18"),
        compare("import", command("-c", "import covid_fastai"), command("-c", "import fastai.vision.all"),
                peer="import fastai.vision.all", repeats=repeats),
    ]  # fmt: skip


@cache
def saved_model() -> Path:
    """Save a ResNet-18 with random weights, once per process, and return its folder."""
    from covid_fastai.data.dataloaders import empty_dataloaders
    from covid_fastai.model.bundle import save_model
    from covid_fastai.model.learner import build_learner

    dls = empty_dataloaders(classes=["Normal", "COVID-19"], image_size=SIZE, positive="COVID-19", device="cpu")
    return save_model(build_learner(dls, weights=None), _folder() / "model")


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="covid_fastai-bench-"))


def benchmark_files() -> list[str]:
    """Return the image files of the benchmarks, in order."""
    endings = (".jpg", ".jpeg", ".png")
    return sorted(str(path) for path in data_folder().rglob("*") if path.suffix.lower() in endings)
