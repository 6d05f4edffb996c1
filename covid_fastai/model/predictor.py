"""Predict without torch: run a saved model's ONNX file with ONNX Runtime, from image files to a table."""

from __future__ import annotations

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
from covid_fastai.data.images import Source, read_image
from covid_fastai.data.input_check import InputRemark, is_withheld, remark_picture
from covid_fastai.data.lungs import find_lungs
from covid_fastai.data.problems import printable
from covid_fastai.data.regions import CROP_COLUMNS, FRAME, Crop, crop_of, crop_square, decoded_size
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import ImageError, UsageError
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    ONNX_FILE,
    ONNX_INPUT,
    BundleConfig,
    check_fingerprint,
    check_region,
    read_config,
)
from covid_fastai.model.card import read_findings
from covid_fastai.model.hub import find_model
from covid_fastai.model.session import BATCH, ModelSession, read_onnx
from covid_fastai.options import Region, WorkerCount, checked
from covid_fastai.progress import logged

__all__ = ["Examination", "Predictor", "classify"]

AHEAD = 2 * BATCH  # resized images that may wait for a forward pass
OUTSIDE = "The image does not look like those of the population that this model was made for."
DECODERS = 4  # maximum of decoding threads; each holds a full image of up to 50 megapixels


@dataclass(frozen=True, eq=False)
class _ReadImage:
    """An image that was read: its pixels `(image_size, image_size)`, or the reason why it could not be read."""

    pixels: np.ndarray | None
    reason: str
    remarks: tuple[InputRemark, ...] = ()
    facts: ImageFacts | None = None
    crop: Crop = FRAME


@dataclass(frozen=True, eq=False)
class Examination:
    """The complete result of a predictor for one image.

    Attributes:
        row: The row that `Predictor.predict` returns, by column.
        maps: The class activation maps `(classes, h, w)` of the crop, in logits; NaN if the status is not `ok`.
        remarks: The remarks of the input check.
        facts: The facts of the file; None if it cannot be read.
        crop: The part of the image that the model saw.
    """

    row: dict[str, Any]
    maps: np.ndarray
    remarks: tuple[InputRemark, ...]
    facts: ImageFacts | None
    crop: Crop = FRAME


class Predictor:
    """Predict images with a saved model, without torch or fastai.

    The constructor verifies everything that could change a prediction: the files' sha256, the format, the order of the
    classes, and the outputs for an image that the code draws. That shows that the model is unchanged since it was
    saved, not who saved it. Its graph is checked before it runs (see `covid_fastai.model.session`). A predictor does
    not change afterwards, so several threads may share it.

        predictor = Predictor("runs/first/model")
        table = predictor.predict(["a.png", "b.jpeg"])

    Args:
        folder: A folder of `save_model`, a run, the name of a model of the package such as `"pneumonia-children"`, or
            `"user/model"` on the Hugging Face Hub (see `find_model`). `config.json`, `model.onnx` and, if it is there,
            `findings.json` are read; `model.safetensors` is not needed.
        threads: CPU cores that decode and compute one prediction; None for all. Use 1 if several threads or processes
            predict at the same time.
        revision: The commit, tag or branch of a model on the Hub.
        fingerprint: The fingerprint that the model must have, as in `predictor.config.fingerprint`; None for any.

    Attributes:
        config: The configuration of the model, from `config.json`.
        findings: What the model is for and what its evaluation showed, from `findings.json`; `findings.sentences()`
            belongs beside its answers.
        classes: The classes in the order of the probabilities.
        image_size: Side of the square that images are resized to, pixels.
        region: What the model sees of an image: the whole `"frame"`, or a crop to the `"lungs"`.
        map_shape: `(h, w)` of the class activation maps.

    Raises:
        ModelFormatError: A file is missing, damaged, changed, a pickle or of a newer format, the outputs are not
            those of the model when it was saved, or its graph is not allowed; the message names the file and the
            reason. Or the model has another fingerprint.
        UsageError: The value of `threads` is not allowed.

    Examples:
        >>> predictor = Predictor(run / "model")
        >>> table = predictor.predict(cohort["path"].head(2).tolist())
        >>> table["status"].tolist(), predictor.classes
        (['ok', 'ok'], ['Normal', 'COVID-19'])
    """

    @checked
    def __init__(
        self,
        folder: str | Path,
        *,
        threads: WorkerCount | None = None,
        revision: str | None = None,
        fingerprint: str | None = None,
    ):
        folder = find_model(folder, revision=revision)
        self.config = read_config(folder / CONFIG_FILE)
        check_fingerprint(self.config, fingerprint, folder)
        check_region(self.config, folder / CONFIG_FILE)
        self.findings = read_findings(folder, self.config)
        content, graph = read_onnx(folder / ONNX_FILE, self.config)
        self._session = ModelSession(content, graph, self.config, folder / ONNX_FILE, threads=threads)
        self._decoders = min(DECODERS, threads or os.cpu_count() or 1)
        self.classes = list(self.config.classes)
        self.image_size = self.config.image_size
        self.region: Region = self.config.region
        self.map_shape, self._batch = self._session.map_shape, self._session.batch

    def __repr__(self) -> str:
        return f"Predictor({' or '.join(self.classes)}; {self.findings.short}; {self.config.fingerprint[:16]})"

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
            most probable class; with a threshold, the positive class at or above it; empty if withheld), `withheld`
            (whether a remark makes the class unreliable: the image seems turned or inverted, is no frontal chest
            radiograph, has no two lungs, or is outside of the model's population), `status` (`ok`, `unreadable`, or
            `failed` if the model's output is NaN or infinite), `reason` (empty for `ok`), `remark`, the reasons of
            `covid_fastai.data.input_check` to doubt that the image is an upright frontal chest radiograph, or one of
            the model's population (empty if there are none), and `model_verdict`, in a
            few words what the evaluation of the model showed (`Findings.short`), the same in each row. A model with a
            stated purpose adds it as `model_purpose`. With `region="lungs"` also `region`, what the model saw:
            `"lungs"`, or `"frame"` where the lungs were not found; and `region_left`, `region_top`, `region_right` and
            `region_bottom`, the edges of the crop as fractions of the image's width and height.

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
            `ok`. A map covers what the model saw: the whole image, or its crop (see `predict`). The
            evidence for a class against the others is its map minus the mean of the other maps.

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
        read = read_images[0]
        return Examination(as_rows(table)[0], maps[0], read.remarks, read.facts, read.crop)

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
        remarks, withheld = [""] * len(images), [False] * len(images)
        read_images = deque(maxlen=0) if read_images is None else read_images  # maxlen=0 keeps nothing
        crops: list[Crop | None] = [None] * len(images)
        p = np.full((len(images), len(self.classes)), np.nan)
        shape = (len(images) if maps else 0, len(self.classes), *self.map_shape)
        class_maps = np.full(shape, np.nan, dtype=np.float32)
        for numbers, pixels in self._batches(images, names, reasons, remarks, withheld, crops, read_images):
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
        withheld = np.array(withheld, dtype=bool) & (status == "ok")
        classes = np.where(withheld, "", np.array(classify(p, self.config), dtype=object))
        table = table.assign(prediction=classes, withheld=withheld, status=status, reason=reason, remark=remarks)
        table = table.assign(**self.findings.columns())
        return (table if self.region == "frame" else _with_crops(table, crops)), class_maps

    def _batches(
        self,
        images: Sequence[Source],
        names: Sequence[str],
        reasons: dict[int, str],
        remarks: list[str],
        withheld: list[bool],
        crops: list[Crop | None],
        read_images: deque[_ReadImage],
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield positions and pixels `(n, 1, size, size)` of the readable images; add the others to `reasons`.

        The batches do not depend on the number of threads, so the results do not depend on it either.
        """
        numbers, pixels = [], []
        reading = logged(self._read(images, names), "Images predicted", len(images))
        for number, image in enumerate(reading):
            read_images.append(image)
            remarks[number] = " ".join(remark.text for remark in image.remarks)
            withheld[number] = is_withheld(image.remarks)  # guard: withheld_in_tables
            if image.pixels is None:
                reasons[number] = image.reason
            else:
                crops[number] = image.crop
                numbers.append(number)
                pixels.append(image.pixels)
            if len(numbers) == self._batch or (numbers and number == len(images) - 1):
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
            grey, facts = read_image(image, image_size=decoded_size(self.image_size, self.region), name=name)
        except ImageError as error:  # guard: predict_row
            return _ReadImage(None, str(error))
        lungs = None if self.region == "frame" else find_lungs(grey)
        crop = FRAME if lungs is None else crop_of(lungs)
        remarks, _ = remark_picture(grey, facts.notes, size=(facts.width, facts.height), lungs=lungs)
        population = self.findings.population
        if population is not None and not is_withheld(remarks) and population.excludes(grey):  # guard: other_population
            remarks.append(InputRemark("population", OUTSIDE))
        if crop.reason:  # guard: frame_said
            said = any(remark.kind == "lungs" for remark in remarks)  # that they were not found, and why
            remarks.append(InputRemark("region", "So the whole image is used, not a crop." if said else crop.reason))
        return _ReadImage(np.asarray(crop_square(grey, self.image_size, crop)), "", tuple(remarks), facts, crop)


def classify(p: np.ndarray, config: BundleConfig) -> list[str]:
    """Return the class that a model predicts for each row of probabilities `(n, classes)`; empty for rows with NaN."""
    known = np.all(np.isfinite(p), axis=1)
    predicted = np.where(known[:, None], p, 0).argmax(axis=1)
    if config.threshold is not None:
        assert config.positive is not None  # the config requires it together with a threshold
        positive = config.classes.index(config.positive)
        predicted = np.where(p[:, positive] >= config.threshold, positive, 1 - positive)
    return [config.classes[number] if ok else "" for number, ok in zip(predicted, known, strict=True)]


def _with_crops(table: pd.DataFrame, crops: Sequence[Crop | None]) -> pd.DataFrame:
    """Add the columns of a model that sees crops to the lungs; empty and NaN for an image that was not read."""
    used = ["" if crop is None else crop.used("lungs") for crop in crops]
    edges = np.array([[np.nan] * 4 if crop is None else crop[:4] for crop in crops], dtype=float).reshape(-1, 4)
    return table.assign(region=used, **dict(zip(CROP_COLUMNS, edges.T, strict=True)))
