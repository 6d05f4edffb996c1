"""Prediction without torch: a saved model's ONNX file, run by ONNX Runtime, from any image file to a table."""

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
from PIL import Image

from covid_fastai.data.image_facts import ImageFacts
from covid_fastai.data.images import Readable, encode_in_memory, read_image, resize_image
from covid_fastai.data.input_check import InputRemark, remark_picture
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError, ImageError, UsageError
from covid_fastai.model.bundle_config import (
    CONFIG_FILE,
    ONNX_FILE,
    ONNX_INPUT,
    ONNX_OUTPUTS,
    BundleConfig,
    check_golden,
    golden_image,
    no_model,
    read_config,
    read_verified,
)
from covid_fastai.model.hub import find_model
from covid_fastai.model.runtime import onnxruntime
from covid_fastai.options import WorkerCount, checked

__all__ = ["Examination", "Predictor", "open_session"]

BATCH = 16  # images in a pass
AHEAD = 2 * BATCH  # small images that may wait for their pass
DECODERS = 4  # threads at most: each holds one whole image, of 50 megapixels at worst

Picture = str | os.PathLike[str] | bytes | Readable | np.ndarray | Image.Image


@dataclass(frozen=True, eq=False)
class _Opened:
    """What was read of one image: its pixels `(image_size, image_size)`, or the reason why there are none."""

    pixels: np.ndarray | None
    reason: str
    remarks: tuple[InputRemark, ...] = ()
    facts: ImageFacts | None = None


@dataclass(frozen=True, eq=False)
class Examination:
    """What a predictor found out about one image.

    Attributes:
        row: The row that `Predictor.predict` returns, by column.
        maps: The class activation maps `(classes, h, w)`, in logits; NaN where the status is not `ok`.
        remarks: The input guard's.
        facts: Of the file; None where it cannot be read.
    """

    row: dict[str, Any]
    maps: np.ndarray
    remarks: tuple[InputRemark, ...]
    facts: ImageFacts | None


class Predictor:
    """Answer images with a saved model, without torch or fastai.

    All that could make its answer another one is checked when it is made: the files' sha256, the format, the order of
    the classes, and the answer to a picture that the code draws. After that nothing in it changes, so that any number
    of threads may use one predictor.

        predictor = Predictor("runs/first/model")
        table = predictor.predict(["a.png", "b.jpeg"])

    Args:
        folder: What `save_model` wrote, a run, or `"user/model"` on the Hugging Face Hub (see `find_model`);
            `config.json` and `model.onnx` are read, `model.safetensors` need not be there.
        threads: Processor cores that one prediction uses, to decode and to compute at the same time; None for all of
            them. Give 1 where several threads or processes predict at once.
        revision: The commit, tag or branch of a model on the Hub.

    Attributes:
        config: What `config.json` says.
        classes: The classes in the order of the probabilities.
        image_size: Side of the square that images are squashed to, pixels.
        map_shape: `(h, w)` of the class activation maps.

    Raises:
        ModelFormatError: A file is missing, damaged, exchanged, a pickle, of a newer format, or does not give the
            answer that the model gave when it was saved; the message names the file and the reason.
        UsageError: `threads` is not allowed.

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
            raise no_model(folder / ONNX_FILE, "the model was saved without it", hint)
        content = read_verified(folder / ONNX_FILE, self.config.onnx.sha256)  # guard: onnx_there
        self._session = open_session(content, self.config, folder / ONNX_FILE, threads=threads)
        self._decoders = min(DECODERS, threads or os.cpu_count() or 1)
        self.classes = list(self.config.classes)
        self.image_size = self.config.image_size
        self.map_shape = tuple(self._session.get_outputs()[ONNX_OUTPUTS.index("maps")].shape[2:])

    def predict(
        self, images: Picture | Sequence[Picture] | pd.DataFrame, *, names: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Predict one image or many, and return a row for each, in their order; a bad one is a row with its reason.

        Args:
            images: A path, the bytes of a file, a file that is open as "rb", an array `(h, w)` or `(h, w, 3)` of 8- or
                16-bit integers, a Pillow image, or several of them; or a table with `path`.
            names: What stands in `path`, one an image; None for the paths, and "image 1" and so on where there is none.

        Returns:
            The columns `path`, a `p_<class>` for each class (0 to 1, sum 1, NaN where there is no prediction),
            `prediction` (the more probable class; of two classes, the positive one from the model's threshold on),
            `status` (`ok`, `unreadable`, or `failed` where the model gave no number), `reason` (empty where `ok`) and
            `remark`: what `covid_fastai.data.input_check` says against the picture's being an upright frontal chest
            radiograph, empty where nothing was noticed. A remark changes no other column.

        Raises:
            UsageError: There are not as many `names` as images.
            DataError: The table has no `path`.
        """
        return self._answer(images, names, maps=False)[0]

    def explain(
        self, images: Picture | Sequence[Picture] | pd.DataFrame, *, names: Sequence[str] | None = None
    ) -> tuple[pd.DataFrame, np.ndarray]:
        """Predict, and return the class activation maps with the table.

        Args:
            images: As in `predict`.
            names: As in `predict`.

        Returns:
            The table of `predict`, and float32 `(n, classes, h, w)`, in logits, NaN where the status is not `ok`. What
            speaks for a class rather than another is its map less the mean of the others'.

        Raises:
            UsageError: As in `predict`.
            DataError: As in `predict`.
        """
        return self._answer(images, names, maps=True)

    def examine(self, image: Picture, *, name: str | None = None) -> Examination:
        """Predict one image, and return all that was found on the way; the file is decoded once.

        Args:
            image: As in `predict`.
            name: What stands for the image in messages; None for its path.

        Returns:
            The same answer as `explain`, the input guard's remarks one by one, and the facts of the file.
        """
        opened: deque[_Opened] = deque()
        table, maps = self._answer([image], None if name is None else [name], maps=True, opened=opened)
        return Examination(as_rows(table)[0], maps[0], opened[0].remarks, opened[0].facts)

    def _answer(
        self,
        images: Picture | Sequence[Picture] | pd.DataFrame,
        names: Sequence[str] | None,
        *,
        maps: bool,
        opened: deque[_Opened] | None = None,
    ) -> tuple[pd.DataFrame, np.ndarray]:
        images = _several(images)
        if names is None:
            names = [_name(image, number) for number, image in enumerate(images, start=1)]
        elif len(names) != len(images):
            raise UsageError(f"There are {len(names)} names for {len(images)} images.", hint="Give one an image.")
        reasons: dict[int, str] = {}
        remarks = [""] * len(images)
        opened = deque(maxlen=0) if opened is None else opened  # which forgets what it is given
        p = np.full((len(images), len(self.classes)), np.nan)
        heat = np.full((len(images) if maps else 0, len(self.classes), *self.map_shape), np.nan, dtype=np.float32)
        for numbers, pixels in self._batches(images, names, reasons, remarks, opened):
            found = self._session.run(["probabilities", *(["maps"] if maps else [])], {ONNX_INPUT: pixels})
            p[numbers] = found[0]
            if maps:
                heat[numbers] = found[1]
        status = np.array(["unreadable" if number in reasons else "ok" for number in range(len(images))], dtype=object)
        wild = np.flatnonzero((status == "ok") & ~np.isfinite(p).all(axis=1))
        status[wild], p[wild] = "failed", np.nan  # guard: onnx_wild
        reasons |= dict.fromkeys(wild.tolist(), "The model gave a number that is none.")
        if maps:
            heat[wild] = np.nan
        table = pd.DataFrame({"path": [str(name) for name in names]})
        for number, name in enumerate(self.classes):
            table[f"p_{name}"] = p[:, number]
        reason = [reasons.get(number, "") for number in range(len(images))]
        return table.assign(prediction=self._called(p), status=status, reason=reason, remark=remarks), heat

    def _batches(
        self,
        images: Sequence[Picture],
        names: Sequence[str],
        reasons: dict[int, str],
        remarks: list[str],
        opened: deque[_Opened],
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield positions and pixels `(n, 1, size, size)` of the images that can be opened; note why others cannot.

        A batch is made of the same images whatever the number of threads, so that its numbers are the same too.
        """
        numbers, pixels = [], []
        for number, one in enumerate(self._read(images, names)):
            opened.append(one)
            remarks[number] = " ".join(remark.text for remark in one.remarks)
            if one.pixels is None:
                reasons[number] = one.reason
            else:
                numbers.append(number)
                pixels.append(one.pixels)
            if len(numbers) == BATCH or (numbers and number == len(images) - 1):
                yield numbers, np.stack(pixels)[:, None]
                numbers, pixels = [], []

    def _read(self, images: Sequence[Picture], names: Sequence[str]) -> Iterator[_Opened]:
        """Yield what was read, image by image; some are read ahead by other threads."""
        if self._decoders == 1 or len(images) == 1:
            yield from map(self._read_one, images, names)
            return
        waiting = deque()
        with ThreadPoolExecutor(min(self._decoders, len(images) or 1)) as pool:
            for image, name in zip(images, names, strict=True):
                waiting.append(pool.submit(self._read_one, image, name))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            yield from (one.result() for one in waiting)

    def _read_one(self, image: Picture, name: str) -> _Opened:
        try:
            grey, facts = _open(image, name, self.image_size)
        except ImageError as error:  # guard: predict_row
            return _Opened(None, str(error))
        remarks, _ = remark_picture(grey, facts.notes, size=(facts.width, facts.height))
        return _Opened(np.asarray(resize_image(grey, self.image_size)), "", tuple(remarks), facts)

    def _called(self, p: np.ndarray) -> list[str]:
        """Return the class that each row of probabilities is called, nothing where there are none."""
        known = np.all(np.isfinite(p), axis=1)
        called = np.where(known[:, None], p, 0).argmax(axis=1)
        if self.config.threshold is not None:
            assert self.config.positive is not None  # as the config checks of a threshold
            positive = self.classes.index(self.config.positive)
            called = np.where(p[:, positive] >= self.config.threshold, positive, 1 - positive)
        return [self.classes[number] if ok else "" for number, ok in zip(called, known, strict=True)]


def open_session(
    content: bytes, config: BundleConfig, path: Path, *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file, and test that it is the model that the config describes.

    Args:
        content: The file's bytes.
        config: What `config.json` says.
        path: The file, for messages.
        threads: Processor cores that a run uses; None for all of them.

    Returns:
        The session, on the CPU.

    Raises:
        ModelFormatError: It cannot be read, takes or gives something else, names other classes, or answers otherwise.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal ones only: errors are raised, which is enough
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds without a common base
        raise no_model(path, f"onnxruntime {onnxruntime.__version__} cannot read it ({str(error)[:200]})") from error
    _check_form(session, config, path)
    found = session.run(["logits", "probabilities"], {ONNX_INPUT: golden_image(config.image_size)[None, None]})
    check_golden(config, {"logits": found[0][0].tolist(), "probabilities": found[1][0].tolist()}, path)
    return session


def _check_form(session: onnxruntime.InferenceSession, config: BundleConfig, path: Path) -> None:
    size, classes = config.image_size, len(config.classes)
    taken = [(given.name, given.type, given.shape[1:]) for given in session.get_inputs()]
    if taken != [(ONNX_INPUT, "tensor(uint8)", [1, size, size])]:
        raise no_model(path, f"it takes {taken}, not {ONNX_INPUT} of 8 bits and {size} pixels")
    given = [(out.name, out.shape[1]) for out in session.get_outputs()]
    if given != [(name, classes) for name in ONNX_OUTPUTS]:  # guard: onnx_form
        raise no_model(path, f"it gives {given}, not {', '.join(ONNX_OUTPUTS)} of {classes} classes")
    named = session.get_modelmeta().custom_metadata_map.get("classes", "none")
    if named != json.dumps(config.classes):  # guard: class_order
        raise no_model(path, f"its classes are {named}, those of {CONFIG_FILE} are {json.dumps(config.classes)}")


def _several(images: Picture | Sequence[Picture] | pd.DataFrame) -> list[Picture]:
    if isinstance(images, pd.DataFrame):
        if "path" not in images:
            raise DataError("The table has no column path.", hint="Name the files in a column path, or give a list.")
        return images["path"].tolist()
    if isinstance(images, (str, os.PathLike, bytes, bytearray, np.ndarray, Image.Image, Readable)):
        return [images]
    return list(images)


def _name(image: Picture, number: int) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image).encode("utf-8", "backslashreplace").decode()  # a table is written as UTF-8
    return f"image {number}"


def _open(image: Picture, name: str, image_size: int) -> tuple[Image.Image, ImageFacts]:
    """Open an image by the one opener; one in memory as a lossless file, so that its mode and depth are treated too."""
    if isinstance(image, (str, os.PathLike, bytes, bytearray, Readable)):
        return read_image(image, image_size=image_size)
    return read_image(encode_in_memory(image, name=name), image_size=image_size)
