"""Predict without torch: run a saved model's ONNX file with ONNX Runtime, from image files to a table."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from covid_fastai.data.image_facts import ImageFacts
from covid_fastai.data.image_inputs import as_image_list, name_image
from covid_fastai.data.images import Source, read_image, resize_image
from covid_fastai.data.input_check import InputRemark, remark_picture
from covid_fastai.data.problems import printable
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import ImageError, UsageError
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    ONNX_FILE,
    ONNX_INPUT,
    ONNX_OUTPUTS,
    BundleConfig,
    check_golden,
    golden_image,
    read_config,
    read_verified,
    unusable_model,
)
from covid_fastai.model.hub import find_model
from covid_fastai.options import WorkerCount, checked
from covid_fastai.runtime import onnxruntime

__all__ = ["Examination", "Predictor", "open_session"]

BATCH = 16  # images per forward pass
AHEAD = 2 * BATCH  # resized images that may wait for a forward pass
DECODERS = 4  # maximum of decoding threads; each holds a full image of up to 50 megapixels


@dataclass(frozen=True, eq=False)
class _ReadImage:
    """An image that was read: its pixels `(image_size, image_size)`, or the reason why it could not be read."""

    pixels: np.ndarray | None
    reason: str
    remarks: tuple[InputRemark, ...] = ()
    facts: ImageFacts | None = None


@dataclass(frozen=True, eq=False)
class Examination:
    """The complete result of a predictor for one image.

    Attributes:
        row: The row that `Predictor.predict` returns, by column.
        maps: The class activation maps `(classes, h, w)`, in logits; NaN if the status is not `ok`.
        remarks: The remarks of the input check.
        facts: The facts of the file; None if it cannot be read.
    """

    row: dict[str, Any]
    maps: np.ndarray
    remarks: tuple[InputRemark, ...]
    facts: ImageFacts | None


class Predictor:
    """Predict images with a saved model, without torch or fastai.

    The constructor verifies everything that could change a prediction: the files' sha256, the format, the order of the
    classes, and the outputs for an image that the code draws. A predictor does not change afterwards, so several
    threads may share it.

        predictor = Predictor("runs/first/model")
        table = predictor.predict(["a.png", "b.jpeg"])

    Args:
        folder: A folder of `save_model`, a run, or `"user/model"` on the Hugging Face Hub (see `find_model`).
            `config.json` and `model.onnx` are read; `model.safetensors` is not needed.
        threads: CPU cores that decode and compute one prediction; None for all. Use 1 if several threads or processes
            predict at the same time.
        revision: The commit, tag or branch of a model on the Hub.

    Attributes:
        config: The configuration of the model, from `config.json`.
        classes: The classes in the order of the probabilities.
        image_size: Side of the square that images are resized to, pixels.
        map_shape: `(h, w)` of the class activation maps.

    Raises:
        ModelFormatError: A file is missing, damaged, changed, a pickle or of a newer format, or the outputs are not
            those of the model when it was saved; the message names the file and the reason.
        UsageError: The value of `threads` is not allowed.

    Examples:
        >>> predictor = Predictor(run / "model")
        >>> table = predictor.predict(cohort["path"].head(2).tolist())
        >>> table["status"].tolist(), predictor.classes
        (['ok', 'ok'], ['Normal', 'COVID-19'])
    """

    @checked
    def __init__(self, folder: str | Path, *, threads: WorkerCount | None = None, revision: str | None = None):
        folder = find_model(folder, revision=revision)
        self.config = read_config(folder / CONFIG_FILE)
        if self.config.onnx is None:
            hint = "Load it with load_model, and save it with save_model."
            raise unusable_model(folder / ONNX_FILE, "the model was saved without it", hint)
        content = read_verified(folder / ONNX_FILE, self.config.onnx.sha256)  # guard: onnx_there
        self._session = open_session(content, self.config, folder / ONNX_FILE, threads=threads)
        self._decoders = min(DECODERS, threads or os.cpu_count() or 1)
        self.classes = list(self.config.classes)
        self.image_size = self.config.image_size
        self.map_shape = tuple(self._session.get_outputs()[ONNX_OUTPUTS.index("maps")].shape[2:])

    def predict(
        self, images: Source | Sequence[Source] | pd.DataFrame, *, names: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Predict one or more images, and return one row per image in the same order, also for unreadable ones.

        Args:
            images: A path, the bytes of a file, a file opened as "rb" or an image in memory, as for `open_image`, or
                several of them, also as one array `(n, channels, h, w)`; or a table with a column `path`.
            names: The values of the column `path`, one per image; None for the paths, and for "image 1" and so on for
                images without a path.

        Returns:
            The columns `path`, `p_<class>` for each class (0 to 1, sum 1; NaN without a prediction), `prediction` (the
            most probable class; with a threshold, the positive class at or above it), `status` (`ok`, `unreadable`, or
            `failed` if the model's output is NaN or infinite), `reason` (empty for `ok`) and `remark`, the reasons of
            `covid_fastai.data.input_check` to doubt that the image is an upright frontal chest radiograph; empty
            if there are none. A remark changes no other column.

        Raises:
            UsageError: The numbers of `names` and images differ.
            DataError: The table has no column `path`.
        """
        return self._predict(images, names, maps=False)[0]

    def explain(
        self, images: Source | Sequence[Source] | pd.DataFrame, *, names: Sequence[str] | None = None
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """Predict, and return the class activation maps with the table.

        Args:
            images: As in `predict`.
            names: As in `predict`.

        Returns:
            The table of `predict`, and the maps, float32 `(n, classes, h, w)`, in logits; NaN if the status is not
            `ok`. The evidence for a class against the others is its map minus the mean of the other maps.

        Raises:
            UsageError: As in `predict`.
            DataError: As in `predict`.
        """
        return self._predict(images, names, maps=True)

    def examine(self, image: Source, *, name: str | None = None) -> Examination:
        """Predict one image, and return the prediction with its maps, remarks and file facts; the file is decoded once.

        Args:
            image: As in `predict`.
            name: The name of the image in messages; None for its path.

        Returns:
            The row and maps of `explain`, the remarks of the input check one by one, and the facts of the file.
        """
        read_images: deque[_ReadImage] = deque()
        table, maps = self._predict([image], None if name is None else [name], maps=True, read_images=read_images)
        return Examination(as_rows(table)[0], maps[0], read_images[0].remarks, read_images[0].facts)

    def _predict(
        self,
        images: Source | Sequence[Source] | pd.DataFrame,
        names: Sequence[str] | None,
        *,
        maps: bool,
        read_images: deque[_ReadImage] | None = None,
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """Return the table of `predict` and the maps, of no images unless `maps`; append to `read_images` if given."""
        images = as_image_list(images)
        if names is None:
            names = [name_image(image, number) for number, image in enumerate(images, start=1)]
        elif len(names) != len(images):
            raise UsageError(f"There are {len(names)} names for {len(images)} images.", hint="Give one name per image.")
        reasons: dict[int, str] = {}
        remarks = [""] * len(images)
        read_images = deque(maxlen=0) if read_images is None else read_images  # maxlen=0 keeps nothing
        p = np.full((len(images), len(self.classes)), np.nan)
        shape = (len(images) if maps else 0, len(self.classes), *self.map_shape)
        class_maps = np.full(shape, np.nan, dtype=np.float32)
        for numbers, pixels in self._batches(images, names, reasons, remarks, read_images):
            outputs = self._session.run(["probabilities", *(["maps"] if maps else [])], {ONNX_INPUT: pixels})
            p[numbers] = outputs[0]
            if maps:
                class_maps[numbers] = outputs[1]
        status = np.array(["unreadable" if number in reasons else "ok" for number in range(len(images))], dtype=object)
        failed = np.flatnonzero((status == "ok") & ~np.isfinite(p).all(axis=1))
        status[failed], p[failed] = "failed", np.nan  # guard: onnx_wild
        reasons |= dict.fromkeys(failed.tolist(), "The model's output is NaN or infinite.")
        if maps:
            class_maps[failed] = np.nan
        table = pd.DataFrame({"path": [printable(name) for name in names]})  # pandas takes UTF-8 only
        for number, name in enumerate(self.classes):
            table[f"p_{name}"] = p[:, number]
        reason = [reasons.get(number, "") for number in range(len(images))]
        return table.assign(prediction=self._classify(p), status=status, reason=reason, remark=remarks), class_maps

    def _batches(
        self,
        images: Sequence[Source],
        names: Sequence[str],
        reasons: dict[int, str],
        remarks: list[str],
        read_images: deque[_ReadImage],
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield positions and pixels `(n, 1, size, size)` of the readable images; add the others to `reasons`.

        The batches do not depend on the number of threads, so the results do not depend on it either.
        """
        numbers, pixels = [], []
        for number, image in enumerate(self._read(images, names)):
            read_images.append(image)
            remarks[number] = " ".join(remark.text for remark in image.remarks)
            if image.pixels is None:
                reasons[number] = image.reason
            else:
                numbers.append(number)
                pixels.append(image.pixels)
            if len(numbers) == BATCH or (numbers and number == len(images) - 1):
                yield numbers, np.stack(pixels)[:, None]
                numbers, pixels = [], []

    def _read(self, images: Sequence[Source], names: Sequence[str]) -> Iterator[_ReadImage]:
        """Yield the images in order; other threads read some of them ahead."""
        if self._decoders == 1 or len(images) == 1:
            yield from map(self._read_image, images, names)
            return
        waiting = deque()
        with ThreadPoolExecutor(min(self._decoders, len(images) or 1)) as pool:
            for image, name in zip(images, names, strict=True):
                waiting.append(pool.submit(self._read_image, image, name))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            yield from (future.result() for future in waiting)

    def _read_image(self, image: Source, name: str) -> _ReadImage:
        """Read, check and resize one image; an unreadable one has the reason."""
        try:
            grey, facts = read_image(image, image_size=self.image_size, name=name)
        except ImageError as error:  # guard: predict_row
            return _ReadImage(None, str(error))
        remarks, _ = remark_picture(grey, facts.notes, size=(facts.width, facts.height))
        return _ReadImage(np.asarray(resize_image(grey, self.image_size)), "", tuple(remarks), facts)

    def _classify(self, p: np.ndarray) -> list[str]:
        """Return the predicted class of each row of probabilities; empty for rows with NaN."""
        known = np.all(np.isfinite(p), axis=1)
        predicted = np.where(known[:, None], p, 0).argmax(axis=1)
        if self.config.threshold is not None:
            assert self.config.positive is not None  # the config requires it together with a threshold
            positive = self.classes.index(self.config.positive)
            predicted = np.where(p[:, positive] >= self.config.threshold, positive, 1 - positive)
        return [self.classes[number] if ok else "" for number, ok in zip(predicted, known, strict=True)]


def open_session(
    content: bytes, config: BundleConfig, path: Path, *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file, and verify that it is the model that the config describes.

    Args:
        content: The bytes of the file.
        config: The configuration of the model.
        path: The file, for messages.
        threads: CPU cores that the session uses; None for all.

    Returns:
        The session, on the CPU.

    Raises:
        ModelFormatError: The file cannot be read, or its inputs, outputs, classes or self-test do not match the config.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only; other errors are raised as exceptions
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen exception types without a common base
        raise unusable_model(
            path, f"onnxruntime {onnxruntime.__version__} cannot read it ({str(error)[:200]})"
        ) from error
    _check_signature(session, config, path)
    logits, probabilities = session.run(
        ["logits", "probabilities"], {ONNX_INPUT: golden_image(config.image_size)[None, None]}
    )
    check_golden(config, {"logits": logits[0].tolist(), "probabilities": probabilities[0].tolist()}, path)
    return session


def _check_signature(session: onnxruntime.InferenceSession, config: BundleConfig, path: Path) -> None:
    """Check the inputs, outputs and classes of an ONNX model against the config."""
    size, n_classes = config.image_size, len(config.classes)
    inputs = [(node.name, node.type, node.shape[1:]) for node in session.get_inputs()]
    if inputs != [(ONNX_INPUT, "tensor(uint8)", [1, size, size])]:
        raise unusable_model(path, f"it takes {inputs}, not {ONNX_INPUT} of 8 bits and {size} pixels")
    outputs = [(node.name, node.shape[1]) for node in session.get_outputs()]
    if outputs != [(name, n_classes) for name in ONNX_OUTPUTS]:  # guard: onnx_form
        raise unusable_model(path, f"it gives {outputs}, not {', '.join(ONNX_OUTPUTS)} of {n_classes} classes")
    classes = session.get_modelmeta().custom_metadata_map.get("classes", "none")
    if classes != json.dumps(config.classes):  # guard: class_order
        raise unusable_model(
            path, f"its classes are {classes}, those of {CONFIG_FILE} are {json.dumps(config.classes)}"
        )
