"""Predict one uploaded file in a worker process with restricted resources, which the server can kill."""

from __future__ import annotations

import io
import json
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from covid_fastai.app.overlays import area_in_crop, describe_lungs_of_map
from covid_fastai.app.server.schemas import ImageAnswer, ImageAnswerWithMaps, Remark
from covid_fastai.data.file_structure import check_structure
from covid_fastai.data.image_facts import FORMATS
from covid_fastai.data.images import open_image
from covid_fastai.data.input_check import check_input
from covid_fastai.data.lungs import find_lungs, has_model, open_model
from covid_fastai.errors import CovidFastaiError, ImageError
from covid_fastai.evaluation.prediction_table import PredictionStatus
from covid_fastai.model.bundle_config import golden_image
from covid_fastai.model.predictor import Examination, Predictor
from covid_fastai.plotting import as_base64, encode_png
from covid_fastai.saliency.overlay import against_rest, draw_layer, draw_outline, fraction_inside, shrink_to_fit

__all__ = ["answer_file", "answer_without_prediction", "run_worker"]

DISPLAY_SIDE = 640  # pixels of the longer side: twice the width of a column of the page, for screens of high resolution
MODEL_MEMORY = 4 << 30  # bytes to load a model: its file, of at most 2 GiB, and what is computed from it
NAME = "the image"  # the name in messages; worker processes do not receive the names of uploaded files


def answer_file(predictor: Predictor, content: bytes, *, maps: bool, max_pixels: int) -> ImageAnswer:
    """Predict the content of one file.

    Args:
        predictor: The predictor of the model.
        content: The bytes of the file.
        maps: Whether to add the radiograph and the overlay of its class activation map, as PNG in base64.
        max_pixels: The largest number of pixels, which is checked in the header before the image is decoded.

    Returns:
        The answer with an empty `name`; with `maps`, an `ImageAnswerWithMaps` if the status is `ok`.
    """
    try:
        _check_pixels(content, max_pixels)
    except ImageError as error:
        return answer_without_prediction("unreadable", str(error))
    examination = predictor.examine(content, name=NAME)
    row = examination.row
    if row["status"] != "ok":
        return answer_without_prediction(row["status"], row["reason"])
    assert examination.facts is not None  # the file was read
    answer: dict[str, Any] = {
        "name": "",
        "status": "ok",
        "reason": "",
        "probabilities": {name: float(row[f"p_{name}"]) for name in predictor.classes},
        "prediction": row["prediction"],
        "remarks": [Remark(kind=remark.kind, text=remark.text) for remark in examination.remarks],
        "withheld": row["withheld"],
        "width": examination.facts.width,
        "height": examination.facts.height,
        "crop": examination.crop[:4],
    }
    if not maps:
        return ImageAnswer(**answer)
    # open_image may decode at a reduced scale, with at least twice as many pixels as its `image_size`
    grey = open_image(content, image_size=DISPLAY_SIDE // 2)
    if row["withheld"]:  # a map would show the class
        radiograph = as_base64(encode_png(shrink_to_fit(grey, DISPLAY_SIDE), pixels_only=True))
        rows, columns = examination.maps.shape[1:]
        return ImageAnswerWithMaps(
            **answer,
            radiograph=radiograph,
            saliency=None,
            map_class="",
            map_max=0,
            map_shape=(rows, columns),
            lungs=None,
            lungs_saliency=None,
            lungs_area=None,
            lungs_text="There is no outline of the lungs: the predicted class is withheld, and so is the map.",
        )
    return ImageAnswerWithMaps(**answer, **_draw_maps(grey, examination, predictor.classes, row["prediction"]))


def answer_without_prediction(status: PredictionStatus, reason: str) -> ImageAnswer:
    """Return the answer to a file that has no prediction."""
    empty = {
        "probabilities": {},
        "prediction": "",
        "remarks": (),
        "withheld": False,
        "width": None,
        "height": None,
        "crop": None,
    }
    return ImageAnswer(name="", status=status, reason=reason, **empty)


def run_worker(connection: Connection, folder: str, *, fingerprint: str, max_pixels: int, memory: int) -> None:
    """Predict the files that arrive through a connection, until it closes. This is the main function of a worker.

    The connection carries JSON and the bytes of files, and no pickle. A malicious file that takes over the worker
    therefore cannot make the server execute code. The worker cannot write files, and its memory is limited.

    Args:
        connection: The connection to the server.
        folder: The folder of the saved model.
        fingerprint: The fingerprint of the model that the server shows; another one is refused.
        max_pixels: The largest number of pixels of an image.
        memory: Bytes that the process may allocate in addition to the loaded model, on systems that have such a limit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the server closes the connection
    _limit_memory(memory + MODEL_MEMORY)
    try:
        predictor = Predictor(folder, threads=1, fingerprint=fingerprint)
        if has_model():
            open_model()
        check_input(
            Image.fromarray(golden_image(predictor.image_size))
        )  # both load their files before the process is confined
    except CovidFastaiError as error:
        _send(connection, {"error": error.message, "hint": error.hint})
        return
    _confine(memory)
    _send(connection, {"ready": os.getpid()})
    while True:
        try:
            options = json.loads(connection.recv_bytes())
            content = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            answer = answer_file(predictor, content, maps=options["maps"], max_pixels=max_pixels)
        except MemoryError:
            answer = answer_without_prediction("unreadable", "Reading the image needs more memory than is allowed.")
        connection.send_bytes(answer.model_dump_json().encode())


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message, allow_nan=False).encode())


def _check_pixels(content: bytes, max_pixels: int) -> None:
    """Raise an ImageError if the header states more pixels than are allowed; leave other checks to `open_image`."""
    check_structure(content, NAME)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # noqa: BLE001 - `open_image` reports every unreadable file
        return
    if width * height > max_pixels:  # guard: page_pixels
        raise ImageError(
            f"{NAME} has {width} x {height} pixels, more than the allowed {max_pixels:,}.", hint="Reduce its size."
        )


def _draw_maps(grey: Image.Image, examination: Examination, classes: list[str], name: str) -> dict[str, Any]:
    """Return the fields of `ImageAnswerWithMaps` for the class `name`."""
    crop = examination.crop
    saliency = against_rest(examination.maps[None], np.array([classes.index(name)]))[0]
    radiograph = shrink_to_fit(grey, DISPLAY_SIDE)
    images = {"radiograph": radiograph, "saliency": draw_layer(saliency, radiograph.size, crop=crop[:4])}
    lungs = find_lungs(grey)
    about_lungs: dict[str, Any] = {"lungs": None, "lungs_saliency": None, "lungs_area": None}
    if lungs.usable:
        images["lungs"] = draw_outline(lungs.mask, radiograph.size)
        fraction = fraction_inside(saliency, lungs.mask, crop[:4])
        about_lungs = {"lungs_saliency": fraction, "lungs_area": area_in_crop(lungs, crop)}
    encoded = {key: as_base64(encode_png(image, pixels_only=True)) for key, image in images.items()}
    maximum = max(0.0, float(saliency.max()))
    about_lungs["lungs_text"] = describe_lungs_of_map(lungs, saliency, crop)
    return about_lungs | encoded | {"map_class": name, "map_max": maximum, "map_shape": list(saliency.shape)}


def _confine(memory: int) -> None:
    """Forbid this process to write files and core dumps, and limit its memory.

    Windows has no such limits, and macOS does not enforce the limit of memory. The time limit remains there.
    """
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # guard: fsize
    _limit_memory(memory, for_good=True)  # guard: rlimit


def _limit_memory(memory: int, *, for_good: bool = False) -> None:
    """Limit the memory of this process to what it has now and `memory` bytes; the process may raise the limit or not.

    Only Linux enforces this limit.
    """
    try:
        import resource
    except ImportError:
        return
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + memory
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit if for_good else hard))
