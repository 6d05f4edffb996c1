"""Segment the lungs of frontal chest radiographs, without torch: masks, area, place, and whether to rely on them.

The model is `lungs.onnx`; `lungs.md` is its card, with its data, terms, metrics and failures. It was made by
`python -m pretraining.lungs`.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from covid_fastai.data.cache import OPENER, keep
from covid_fastai.data.image_inputs import Paths, as_image_list, as_path_list
from covid_fastai.data.images import Source, open_square, resize_image
from covid_fastai.data.mask_components import fill_holes, largest_component
from covid_fastai.errors import ImageError, ModelFormatError
from covid_fastai.options import WorkerCount, checked
from covid_fastai.runtime import onnxruntime

__all__ = [
    "LUNG_COLUMNS",
    "LungQuality",
    "LungShape",
    "Lungs",
    "cached_lungs",
    "describe_lungs",
    "find_lungs",
    "has_model",
    "judge_lungs",
    "measure_lungs",
    "model_digest",
    "open_model",
    "results_version",
    "segment_lungs",
]

MODEL = Path(__file__).with_name("lungs.onnx")
GRID = 128  # pixels; side of the model's input and output
MASK_SIZE = 256  # pixels; side of the masks
FORMAT = 3  # of cached lungs; increase with every change of the rules of the qualities, or of what is stored
READ_AHEAD = 4  # images per thread that wait for their results to be used

EDGES = ("left", "top", "right", "bottom")

# The limits of the qualities. `python -m pretraining.lung_metrics` measures how often they are wrong (`lungs.md`).
MIN_AREA = 0.01  # fraction of the image; each lung of 99 in 100 radiographs covers 4% or more
MIN_RATIO = 0.2  # area of the smaller lung over that of the larger one
MIN_CONFIDENCE = 0.88  # mean probability of the pixels; 1 in 300 frontal radiographs has less
MIN_DETAIL = 0.04  # of the intensities' standard deviation; a wholly opaque lung has 0.07, others 0.24 or more
MAX_ISLANDS = 0.25  # fraction of the segmented area
MIN_OVERLAP = 0.5  # fraction of the height of the shorter lung
MAX_CONTACT = 0.15  # fraction of the height of both lungs
MARGIN = 2  # pixels of the grid; lungs that come so near to an edge of the image touch it
MAX_EDGE = 0.03  # fraction of an edge of the image that is touched
MAX_WIDENING = 1.02  # heart and diaphragm make the lower half narrower; upper parts of lungs alone have 1.1

LungQuality = Literal["fine", "cut off", "one lung", "none found", "implausible"]
LUNG_COLUMNS = ["lung_quality", "lung_area", "lung_left", "lung_top", "lung_right", "lung_bottom", "lung_remark"]


@dataclass(frozen=True)
class LungShape:
    """What the rules of `LungQuality` read; measured on the model's grid of 128 pixels.

    Attributes:
        areas: Fractions of the image that the lung on its left and the one on its right side cover.
        islands: Fraction of the segmented area that lies outside the largest component of each lung, and is removed.
        confidence: Mean probability of the remaining pixels, 0.5 to 1.
        edges: Fractions of the left, top, right and bottom edge of the image that the lungs touch, or nearly touch.
        contact: Length of the border that both lungs share, divided by the height of their box.
        overlap: Rows that both lungs have, as a fraction of the rows of the shorter one.
        fill: Fraction of its own box that the less compact lung covers.
        widening: Mean width of the lungs in the lower half of their box, divided by that in the upper half.
        detail: Standard deviation of the intensities in each lung, divided by that of the image; 1 if not known.
    """

    areas: tuple[float, float]
    islands: float
    confidence: float
    edges: tuple[float, float, float, float]
    contact: float
    overlap: float
    fill: float
    widening: float
    detail: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of one image.

    Attributes:
        masks: `(2, 256, 256)` bool, over the whole image squashed to a square: the lung on the left side of the image,
            which is the patient's right lung in the usual display, and the lung on the right side.
        quality: `"fine"`; `"cut off"`, the lungs reach the edge of the image or seem to go on beyond it; `"one lung"`;
            `"none found"`; or `"implausible"`, a shape that lungs do not have. Rely on the masks of the first two only.
        remark: The reason, as a sentence; empty if the quality is `"fine"`.
        area: Fraction of the image that both lungs cover.
        box: Left, top, right and bottom of the box around both lungs, as fractions of the sides; None without a lung.
        shape: The measurements that the quality was decided by.
    """

    masks: np.ndarray
    quality: LungQuality
    remark: str
    area: float
    box: tuple[float, float, float, float] | None
    shape: LungShape

    @property
    def mask(self) -> np.ndarray:
        """Both lungs as one mask, `(256, 256)` bool."""
        return self.masks[0] | self.masks[1]

    @property
    def usable(self) -> bool:
        """Whether the quality is `"fine"` or `"cut off"`."""
        return self.quality in ("fine", "cut off")


@checked
def segment_lungs(
    images: Source | Sequence[Source] | pd.DataFrame, *, workers: WorkerCount | None = None
) -> list[Lungs]:
    """Segment the lungs of images.

    Args:
        images: An image as for `open_image`, or several; or a table with a column `path`, such as a cohort.
        workers: Threads; None for the number of processors, at most 8.

    Returns:
        One result per image, in the same order.

    Raises:
        ImageError: An image cannot be read.
        DataError: The table has no column `path`.
        ModelFormatError: The package's model of the lungs is not there or damaged.

    Examples:
        >>> lungs = segment_lungs(cohort["path"].iloc[0])[0]
        >>> lungs.masks.shape, 0 < lungs.area < 1
        ((2, 256, 256), True)
    """
    sources = as_image_list(images)
    open_model()  # what is asked for is not replaced by `_without_model`
    return list(_map(_segment, sources, workers))


@checked
def measure_lungs(paths: Paths, *, workers: WorkerCount | None = None) -> pd.DataFrame:
    """Measure the lungs of many image files, without keeping their masks.

    Args:
        paths: An image file or several; or a table with a column `path`, such as a cohort.
        workers: As in `segment_lungs`.

    Returns:
        One row per image, in the given order: `path`, `lung_quality`, `lung_area` (fraction of the image),
        `lung_left`, `lung_top`, `lung_right` and `lung_bottom` (the box around both lungs, fractions of the sides; NaN
        without a lung) and `lung_remark`. For a file that cannot be read, the quality is `"unreadable"`, the remark is
        the reason, and the numbers are NaN.

    Raises:
        DataError: An item is not a path, or the table has no column `path`.
        ModelFormatError: As in `segment_lungs`.
    """
    paths = as_path_list(paths)
    open_model()
    table = pd.DataFrame(list(_map(_measure, paths, workers)), columns=LUNG_COLUMNS)
    return table.assign(path=paths)[["path", *LUNG_COLUMNS]]


def find_lungs(grey: Image.Image) -> Lungs:
    """Segment the lungs of an opened image.

    Args:
        grey: The image that `open_image` returned, mode `"L"`.

    Returns:
        The lungs; the same as those of `segment_lungs` for a file, up to the rounding of a reduced JPEG. Without the
        model's file the quality is `"none found"`, and the remark says why.
    """
    if not has_model():
        return _without_model()
    pixels = _model_input(grey)
    return describe_lungs(_run_model(pixels), pixels)


def judge_lungs(grey: Image.Image) -> tuple[LungQuality, str]:
    """Return the quality and the remark of `find_lungs` alone, without enlarging the masks, in less time.

    Args:
        grey: As in `find_lungs`.
    """
    if not has_model():
        return "none found", _without_model().remark
    pixels = _model_input(grey)
    return _judge(_clean(_run_model(pixels), pixels)[1])


def _model_input(grey: Image.Image) -> np.ndarray:
    return np.asarray(resize_image(grey, GRID))


def _run_model(pixels: np.ndarray) -> np.ndarray:
    """Return the probabilities of an image `(128, 128)`, `(2, 128, 128)`."""
    (probabilities,) = open_model().run(["lungs"], {"images": pixels[None, None]})
    return probabilities[0]


def cached_lungs(path: str | os.PathLike[str]) -> Lungs:
    """Segment the lungs of an image file as `find_lungs` does, or return them from the cache.

    Args:
        path: The file.

    Returns:
        The lungs.

    Raises:
        ImageError: As for `open_image`; errors are not cached.
    """
    return _unpack(keep(path, f"lungs-{OPENER}-{results_version()}", lambda source: _pack(_segment(source))))


def describe_lungs(probabilities: np.ndarray, pixels: np.ndarray | None = None) -> Lungs:
    """Make masks of the model's output, remove islands, fill holes, and decide the quality.

    Args:
        probabilities: `(2, 128, 128)`, of the lung on the left and on the right side of the image.
        pixels: The image at that size, which shows whether there is anything in a lung; None if it is not known.

    Returns:
        The lungs.
    """
    kept, shape = _clean(probabilities, pixels)
    quality, remark = _judge(shape)
    if quality == "none found":
        kept = np.zeros_like(kept)  # a few pixels, or what would lie where the image shows nothing
    masks = np.stack([_enlarge(lung, mask) for lung, mask in zip(probabilities, kept, strict=True)])
    masks[1] &= ~masks[0]  # two holes of one lung that the other fills; the lungs share no pixel
    return Lungs(masks, quality, remark, float(masks.mean() * 2), _box(masks[0] | masks[1]), shape)


def _clean(probabilities: np.ndarray, pixels: np.ndarray | None) -> tuple[np.ndarray, LungShape]:
    """Return the masks `(2, 128, 128)` without islands, and their measurements."""
    found = probabilities > 0.5
    kept = np.stack([largest_component(mask) for mask in found])
    shape = _measure_shape(found, kept, probabilities)
    return kept, shape if pixels is None else replace(shape, detail=_detail(kept, pixels))


def _detail(kept: np.ndarray, pixels: np.ndarray) -> tuple[float, float]:
    """Return the spread of the intensities in each lung, as a fraction of that in the image; 1 for a lung not found."""
    whole = max(float(pixels.std()), 1e-6)
    left, right = (float(pixels[lung].std()) / whole if lung.any() else 1.0 for lung in kept)
    return left, right


def _judge(shape: LungShape) -> tuple[LungQuality, str]:
    """Return the quality and its reason; the first rule that applies decides."""
    smaller, larger = sorted(shape.areas)
    if larger < MIN_AREA:  # guard: no_lung
        return "none found", "No lung was found."
    if shape.confidence < MIN_CONFIDENCE:  # guard: unsure_lungs
        return "implausible", f"The segmentation is uncertain (mean probability {shape.confidence:.2f})."
    if shape.islands > MAX_ISLANDS:  # guard: lung_islands
        return "implausible", f"{shape.islands:.0%} of the segmented area lies in islands."
    if smaller < MIN_AREA or smaller < MIN_RATIO * larger:  # guard: one_lung
        return "one lung", "One lung was found."
    empty = sum(detail < MIN_DETAIL for detail in shape.detail)
    if empty:  # the model expects two lungs, also where an image is painted over; guard: empty_lung
        only = "One lung was found; the other one would lie" if empty == 1 else "The lungs would lie"
        return ("one lung" if empty == 1 else "none found"), f"{only} where the image shows nothing."
    if shape.overlap < MIN_OVERLAP:
        return "implausible", f"The lungs lie side by side over only {shape.overlap:.0%} of the height of one."
    if shape.contact > MAX_CONTACT:
        return "implausible", "The lungs touch, with nothing between them."
    edges = [name for name, edge in zip(EDGES, shape.edges, strict=True) if edge > MAX_EDGE]
    if edges:  # guard: lung_edge
        return "cut off", f"The lungs reach the {' and the '.join(edges)} edge of the image."
    if shape.widening > MAX_WIDENING:  # the model lets them end before the edge; guard: upper_lungs
        return "cut off", "The lungs are wider below than above, as where the image ends within them."
    return "fine", ""


def _measure_shape(found: np.ndarray, kept: np.ndarray, probabilities: np.ndarray) -> LungShape:
    """Measure what the rules read, from masks `(2, h, w)` before and after the removal of islands."""
    areas = kept.mean(axis=(1, 2))
    both = kept[0] | kept[1]
    n_found, n_kept = int(found.sum()), int(kept.sum())
    if not n_kept:
        return LungShape((0.0, 0.0), 0.0, 0.5, (0.0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, 1.0)
    rows = np.stack([lung.any(axis=1) for lung in kept])
    shorter = min(rows.sum(axis=1))
    fills = [mask.sum() / _box_pixels(mask) for mask in kept if mask.any()]
    top, bottom = np.flatnonzero(both.any(axis=1))[[0, -1]]
    widths = np.count_nonzero(both[top : bottom + 1], axis=1)
    middle = len(widths) // 2
    shared = (kept[0][:, :-1] & kept[1][:, 1:]).sum() + (kept[1][:, :-1] & kept[0][:, 1:]).sum()
    return LungShape(
        areas=(float(areas[0]), float(areas[1])),
        islands=1 - n_kept / n_found,
        confidence=float(probabilities[kept].mean()),
        edges=_touched_edges(both),
        contact=float(shared / len(widths)),
        overlap=float((rows[0] & rows[1]).sum() / shorter) if shorter else 0.0,
        fill=float(min(fills)),
        widening=float(widths[middle:].mean() / max(widths[:middle].mean(), 1.0)) if middle else 1.0,
    )


def _touched_edges(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return the fractions of the left, top, right and bottom edge that a mask touches."""
    columns, rows = (mask[:, :MARGIN], mask[:, -MARGIN:]), (mask[:MARGIN], mask[-MARGIN:])
    left, right = (float(edge.any(axis=1).mean()) for edge in columns)
    top, bottom = (float(edge.any(axis=0).mean()) for edge in rows)
    return left, top, right, bottom


def _box_pixels(mask: np.ndarray) -> int:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))


def _box(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """Return left, top, right and bottom of a mask as fractions of the sides."""
    if not mask.any():
        return None
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    height, width = mask.shape
    sides = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    left, top, right, bottom = map(float, sides)
    return left, top, right, bottom


def _enlarge(probability: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the mask of one lung at `MASK_SIZE`, from its probability and from what remains of it, on the grid."""
    if not kept.any():
        return np.zeros((MASK_SIZE, MASK_SIZE), dtype=bool)
    filled = fill_holes(kept)
    probability = np.where(filled & ~kept, 1, probability).astype(np.float32)
    large = np.asarray(Image.fromarray(probability).resize((MASK_SIZE, MASK_SIZE), Image.Resampling.BILINEAR))
    padded = np.pad(filled, 1)  # one pixel around it, where the enlarged border may lie
    near = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    factor = MASK_SIZE // GRID
    return (large > 0.5) & near.repeat(factor, axis=0).repeat(factor, axis=1)


def _segment(source: Source) -> Lungs:
    return find_lungs(open_square(source, GRID))


def _measure(path: str) -> list[object]:
    try:
        lungs = cached_lungs(path)
    except ImageError as error:
        return ["unreadable", *[float("nan")] * 5, str(error)]
    return [lungs.quality, lungs.area, *(lungs.box or [float("nan")] * 4), lungs.remark]


def _pack(lungs: Lungs) -> bytes:
    """Return lungs as bytes, about 1.5 kB: the masks with one bit per pixel, and the rest as JSON."""
    fields = {"quality": lungs.quality, "remark": lungs.remark, "area": lungs.area, "box": lungs.box}
    text = json.dumps({**fields, "shape": asdict(lungs.shape)})
    return zlib.compress(np.packbits(lungs.masks).tobytes() + text.encode())


def _unpack(content: bytes) -> Lungs:
    content = zlib.decompress(content)
    n_bytes = 2 * MASK_SIZE * MASK_SIZE // 8
    bits = np.unpackbits(np.frombuffer(content[:n_bytes], dtype=np.uint8))
    fields = json.loads(content[n_bytes:])
    measured = fields.pop("shape")
    measured |= {name: tuple(measured[name]) for name in ("areas", "edges", "detail")}
    shape = LungShape(**measured)
    box = fields.pop("box")
    masks = bits.reshape(2, MASK_SIZE, MASK_SIZE).astype(bool)
    return Lungs(masks, box=None if box is None else tuple(box), shape=shape, **fields)


def _map(function: Callable, images: Sequence, workers: int | None) -> Iterator:
    """Yield the results of a function in order; threads work on the images ahead."""
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    if workers == 1 or len(images) == 1:
        yield from map(function, images)
        return
    waiting = deque()
    with ThreadPoolExecutor(workers) as pool:
        for image in images:
            waiting.append(pool.submit(function, image))
            if len(waiting) == READ_AHEAD * workers:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


@cache
def has_model() -> bool:
    """Return whether the model's file is there; whoever may not use it deletes it (`lungs.md`)."""
    return MODEL.exists()


def _without_model() -> Lungs:
    """Return the lungs of any image without the model: none, with the reason."""
    nothing = np.zeros((2, GRID, GRID), dtype=np.float32)
    return replace(describe_lungs(nothing), remark=f"The model of the lungs is not there ({MODEL.name}).")


def results_version() -> str:
    """Return the version of the rules and of the model, by which the lungs of images are cached."""
    return f"{FORMAT}-{model_digest()[:8]}" if has_model() else f"{FORMAT}-none"


@cache
def model_digest() -> str:
    """Return the sha256 of the model's file.

    Raises:
        ModelFormatError: The file is not there, or cannot be read.
    """
    return hashlib.sha256(_read_model()).hexdigest()


def _read_model() -> bytes:
    try:
        return MODEL.read_bytes()
    except OSError as error:
        reason = f"{MODEL} cannot be used: {error.strerror}."
        hint = "Reinstall the package. Without this file, use models and trainings with region='frame'."
        raise ModelFormatError(reason, hint=hint) from error


@cache
def open_model() -> onnxruntime.InferenceSession:
    """Open the model once; one thread per image, since images are segmented in threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only; other errors are raised as exceptions
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = _read_model()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # damaged, or of another version; onnxruntime's errors have no common base
        raise ModelFormatError(f"{MODEL} cannot be used: {error}.", hint="Reinstall the package.") from error
