"""What one uploaded file is answered with, made in a process that may do little else and may be killed."""

from __future__ import annotations

import io
import json
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from covid_fastai.app.server.schemas import ImageAnswer, ImageAnswerWithMaps, Remark
from covid_fastai.data.image_facts import FORMATS
from covid_fastai.data.images import open_image
from covid_fastai.data.input_check import RemarkKind, check_input
from covid_fastai.errors import CovidFastaiError, ImageError
from covid_fastai.evaluation.prediction_table import PredictionStatus
from covid_fastai.model.bundle_config import golden_image
from covid_fastai.model.predictor import Predictor
from covid_fastai.plotting import as_base64, encode_png
from covid_fastai.saliency.overlay import against_rest, draw_layer, shrink_to_fit

__all__ = ["WITHHOLDS", "answer_file", "refusal", "run_worker"]

# remarks after which a class is not named, though the numbers are given
WITHHOLDS: set[RemarkKind] = {"inverted", "turned", "unlike"}  # guard: withheld
PICTURE = 640  # pixels of the longer side: what a column of the page shows, sharp on a phone
NAME = "the image"  # in messages: names are the visitor's, and stay in the process that speaks with the browser


def answer_file(predictor: Predictor, content: bytes, *, pictures: bool, max_pixels: int) -> ImageAnswer:
    """Answer the bytes of one file.

    Args:
        predictor: The model.
        content: What was uploaded.
        pictures: Add the radiograph and the heat over it, as PNG in base64.
        max_pixels: Of the picture, known from its header before it is decoded.

    Returns:
        The answer, its `name` empty; with `pictures`, an `ImageAnswerWithMaps` where the status is `ok`.
    """
    try:
        _check_pixels(content, max_pixels)
    except ImageError as error:
        return refusal("unreadable", str(error))
    found = predictor.examine(content, name=NAME)
    row = found.row
    if row["status"] != "ok":
        return refusal(row["status"], row["reason"])
    assert found.facts is not None  # the file was read
    answer: dict[str, Any] = {
        "name": "",
        "status": "ok",
        "reason": "",
        "probabilities": {name: float(row[f"p_{name}"]) for name in predictor.classes},
        "prediction": row["prediction"],
        "remarks": [Remark(kind=remark.kind, text=remark.text) for remark in found.remarks],
        "withheld": bool(WITHHOLDS & {remark.kind for remark in found.remarks}),
        "width": found.facts.width,
        "height": found.facts.height,
    }
    if not pictures:
        return ImageAnswer(**answer)
    grey = open_image(content, image_size=PICTURE // 2)  # of twice as many pixels; the model's own are too few to show
    return ImageAnswerWithMaps(**answer, **_draw(grey, found.maps[None], predictor.classes, row["prediction"]))


def refusal(status: PredictionStatus, reason: str) -> ImageAnswer:
    """Return the answer that holds no number."""
    empty = {"probabilities": {}, "prediction": "", "remarks": (), "withheld": False, "width": None, "height": None}
    return ImageAnswer(name="", status=status, reason=reason, **empty)


def run_worker(connection: Connection, folder: str, *, max_pixels: int, memory: int) -> None:
    """Answer files that come through a connection, until it closes; the body of a worker process.

    What goes through the connection is JSON and the file's bytes, no pickle: a worker that a hostile file has taken
    over cannot make the server run anything. It may write no file, and take so much memory and no more.

    Args:
        connection: To the server.
        folder: The saved model.
        max_pixels: As in `answer_file`.
        memory: Bytes that it may take beyond what the loaded model does (where the system knows such limits).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes the connection
    try:
        predictor = Predictor(folder, threads=1)
        check_input(Image.fromarray(golden_image(predictor.image_size)))  # loads what it needs before the confinement
    except CovidFastaiError as error:
        _send(connection, {"error": error.message, "hint": error.hint})
        return
    _confine(memory)
    _send(connection, {"ready": os.getpid()})
    while True:
        try:
            question = json.loads(connection.recv_bytes())
            content = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            answer = answer_file(predictor, content, pictures=question["pictures"], max_pixels=max_pixels)
        except MemoryError:
            answer = refusal("unreadable", "To read this file takes more memory than is allowed.")
        connection.send_bytes(answer.model_dump_json().encode())


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message, allow_nan=False).encode())


def _check_pixels(content: bytes, max_pixels: int) -> None:
    """Refuse a picture that is larger than is allowed here, before it is decoded; others are the opener's to judge."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as stored:
            width, height = stored.size
    except Exception:  # noqa: BLE001 - whatever it is, the opener has the words for it
        return
    if width * height > max_pixels:  # guard: page_pixels
        raise ImageError(
            f"{NAME} has {width} x {height} pixels, more than are read here.",
            hint=f"At most {max_pixels:,} pixels: scale it down.",
        )


def _draw(grey: Image.Image, maps: np.ndarray, classes: list[str], shown: str) -> dict[str, Any]:
    heat = against_rest(maps, np.array([classes.index(shown)]))[0]
    picture = shrink_to_fit(grey, PICTURE)
    pictures = {"radiograph": picture, "heat": draw_layer(heat, picture.size)}
    found = {name: as_base64(encode_png(image, pixels_only=True)) for name, image in pictures.items()}
    return found | {"heat_of": shown, "heat_top": max(0.0, float(heat.max())), "heat_cells": list(heat.shape)}


def _confine(memory: int) -> None:
    """Allow the process no file, no core dump, and some memory beyond what it has; where there are no such limits, not.

    On Windows there are none; macOS does not enforce the one of memory. What remains there is the time limit.
    """
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # guard: fsize
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))  # guard: rlimit
