"""A saved model in 8-bit integers: made from a run, compared with its reference, and refused if it differs too much."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.data.cached_regions import region_pixels
from covid_fastai.errors import DataError
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.moved_images import require_images
from covid_fastai.evaluation.prediction_table import PROBABILITY
from covid_fastai.evaluation.runs import Run
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    ONNX_FILE,
    ONNX_INPUT,
    BundleConfig,
    read_config,
    seal_config,
)
from covid_fastai.model.predictor import classify
from covid_fastai.model.quantization import quantize_onnx
from covid_fastai.model.session import ModelSession, check_graph, read_onnx

__all__ = ["QuantizationChange", "quantize_model"]

logger = logging.getLogger("covid_fastai")

CALIBRATION_IMAGES = 128  # training images
# The largest changes that are accepted; the first two are smaller than what a test on a thousand patients can show.
MEAN_CHANGE = 0.01  # of a probability
AUC_CHANGE = 0.005
FEW_PATIENTS = 50  # where two patients exchange their ranks, an AUC of 10 against 40 changes by 0.0025
LARGEST_CHANGE = 0.15  # of the probability of a single image


@dataclass(frozen=True)
class QuantizationChange:
    """What 8-bit integers change on the held-out patients of a run.

    Attributes:
        images: Number of images.
        patients: Number of patients.
        mean: Mean change of a probability; the largest of the classes counts for an image.
        largest: Largest change of a probability.
        classes_changed: Number of images with another predicted class.
        auc: The AUC in 8-bit integers; NaN if it cannot be estimated.
        reference_auc: The AUC in 32 bits.
    """

    images: int
    patients: int
    mean: float
    largest: float
    classes_changed: int
    auc: float
    reference_auc: float

    def excesses(self) -> list[str]:
        """Return the changes that exceed their bounds, in words."""
        bounds = [
            ("the mean change of a probability", self.mean, MEAN_CHANGE),
            ("the largest change of a probability", self.largest, LARGEST_CHANGE),
            ("the change of the AUC", abs(self.auc - self.reference_auc), AUC_CHANGE),
        ]
        return [f"{name} is {value:.4f} and may be {most:g}" for name, value, most in bounds if value > most]

    def sentence(self) -> str:
        """Return the change in words, for the limits of the model card."""
        return (
            f"Its ONNX file computes in 8-bit integers. On the {self.images:,} held-out images of the run, a "
            f"probability differs from that in 32 bits by {self.mean:.4f} on average and {self.largest:.4f} at most, "
            f"{self.classes_changed:,} predicted classes differ, and the AUC is {self.auc:.4f} instead of "
            f"{self.reference_auc:.4f} (n = {self.patients:,} patients)."
        )


def quantize_model(reference: Path, run: Run) -> tuple[dict[str, bytes], QuantizationChange]:
    """Rewrite a saved model in 8-bit integers, calibrated on training images of its run.

    Args:
        reference: The folder of a saved model in 32 bits.
        run: The run that it comes from.

    Returns:
        The contents of `model.onnx` and `config.json` by name, and the change on the held-out patients.

    Raises:
        DataError: An image is missing, or the change is larger than `MEAN_CHANGE`, `LARGEST_CHANGE` or `AUC_CHANGE`.
        ImageError: An image cannot be read.
        UnavailableError: The package onnx is not installed.
    """
    require_images(run)
    config = read_config(reference / CONFIG_FILE)
    full, graph = read_onnx(reference / ONNX_FILE, config)
    training = run.cohort.loc[run.cohort["split"] == "train", "path"]
    training = training.sample(min(CALIBRATION_IMAGES, len(training)), random_state=0).tolist()
    short = quantize_onnx(full, _read_pixels(training, config))
    fields = json.loads((reference / CONFIG_FILE).read_text(encoding="utf-8"))
    del fields["fingerprint"]
    sessions = [ModelSession(full, graph, config)]
    sessions += [ModelSession(short, check_graph(short, config, Path(ONNX_FILE)), config, verified=False)]
    golden = {**fields["golden"], **sessions[1].golden}
    quantized = {"type": "int8", "calibration_images": len(training), "golden": golden}
    fields["onnx"] |= {"sha256": hashlib.sha256(short).hexdigest(), "quantized": quantized}
    fields = seal_config(fields)
    change = _measure(run.predictions, sessions, config)
    if excesses := change.excesses():  # guard: int8_bounds
        raise DataError(
            f"8-bit integers change the answers of this model too much: on its {change.images:,} held-out images "
            f"{', '.join(excesses)}.",
            hint="Export it without `quantize`."
            + (
                " With so few patients, the AUC changes in large steps."
                if "AUC" in excesses[-1] and change.patients < FEW_PATIENTS
                else ""
            ),
        )
    return {ONNX_FILE: short, CONFIG_FILE: json.dumps(fields, indent=2).encode()}, change


def _measure(predictions: pd.DataFrame, sessions: Sequence[ModelSession], config: BundleConfig) -> QuantizationChange:
    """Compare two sessions, the reference first, on the held-out images of a run."""
    rows = predictions[(predictions["split"] == "valid") & (predictions["status"] == "ok")].reset_index(drop=True)
    logger.info("Comparing 8-bit integers with 32 bits on %d held-out images.", len(rows))
    p: list[list[np.ndarray]] = [[], []]
    size = sessions[0].batch
    for start in range(0, len(rows), size):
        pixels = _read_pixels(rows["path"].iloc[start : start + size].tolist(), config)
        for found, session in zip(p, sessions, strict=True):
            found.append(session.run(["probabilities"], {ONNX_INPUT: pixels})[0])
    before, after = (np.concatenate(found).astype(float) for found in p)
    moved = np.abs(after - before).max(axis=1)
    classes = [classify(values, config) for values in (before, after)]
    aucs = [_auc(rows, values, config) for values in (before, after)]
    return QuantizationChange(
        images=len(rows),
        patients=rows["patient"].nunique(),
        mean=float(moved.mean()),
        largest=float(moved.max()),
        classes_changed=sum(a != b for a, b in zip(*classes, strict=True)),
        auc=aucs[1],
        reference_auc=aucs[0],
    )


def _auc(rows: pd.DataFrame, p: np.ndarray, config: BundleConfig) -> float:
    columns: dict[str, Any] = {PROBABILITY + name: p[:, number] for number, name in enumerate(config.classes)}
    return float(evaluate(rows.assign(**columns), positive=config.positive, n_resamples=100).value("auc"))


def _read_pixels(paths: Sequence[str], config: BundleConfig) -> np.ndarray:
    """Return images as the model sees them, uint8 `(n, 1, image_size, image_size)`, from the cache if possible."""

    def read(path: str) -> np.ndarray:
        return region_pixels(path, config.image_size, config.region)[0]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return np.stack(list(pool.map(read, paths)))[:, None]
