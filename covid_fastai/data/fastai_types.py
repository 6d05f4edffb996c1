"""Radiographs in fastai: image and tensor types, item transforms, and the data loader."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.data.transforms import DisplayedTransform
from fastai.torch_core import TensorCategory, TensorImageBW
from fastai.vision.core import PILImageBW
from PIL import Image
from torch.utils.data import get_worker_info

from covid_fastai.data.cache import cached_square
from covid_fastai.data.images import encode_in_memory, open_image, open_square, resize_image
from covid_fastai.errors import DataError, ImageError, ResourceError
from covid_fastai.main_guard import MAIN_GUARD

__all__ = ["OpenRadiograph", "PILRadiograph", "RadiographDL", "ResizeRadiograph", "TensorRadiograph", "png_bytes"]

OPENERS = min(4, os.cpu_count() or 1)  # threads; each holds one decoded image of up to 50 megapixels
SHOW = {"cmap": "gray", "vmin": 0, "vmax": 255}  # air black, bone white; fastai's default "Greys" shows a negative


class TensorRadiograph(TensorImageBW):
    """A greyscale image tensor `(1, h, w)` that is shown with black air and white bones."""

    _show_args = SHOW


class PILRadiograph(PILImageBW):
    """An 8-bit greyscale image that is opened with `covid_fastai.data.images.open_image`."""

    _show_args = SHOW
    _tensor_cls = TensorRadiograph

    @classmethod  # no return annotation: fastai's dispatch would store it in a form that pickle rejects
    def create(
        cls,
        fn: str | Path | bytes | np.ndarray | torch.Tensor | Image.Image,
        *,
        image_size: int | None = None,
        **kwargs,
    ):
        """Open a file, its bytes, or an image in memory.

        Args:
            fn: A path, the bytes of an image file, an array `(h, w)` or `(h, w, 3)`, a tensor `(1, h, w)` or an image.
            image_size: Side of the square that the image is squashed to, pixels; a file is then decoded once and
                cached. None for the full size.
            **kwargs: Ignored; fastai passes its own opener's options here.

        Returns:
            The image in mode L.

        Raises:
            ImageError: The input cannot be read as an image; the message names the file.
        """
        if image_size is not None and isinstance(fn, (str, Path)):
            return cls(cached_square(fn, image_size))
        content = fn if isinstance(fn, (str, Path, bytes)) else png_bytes(fn)
        return cls(open_image(content) if image_size is None else open_square(content, image_size))


def png_bytes(image: np.ndarray | torch.Tensor | Image.Image) -> bytes:
    """Return an image in memory as the bytes of a lossless file, so that `open_image` handles its mode and depth."""
    if isinstance(image, torch.Tensor):
        image = np.moveaxis(image.detach().cpu().numpy(), 0, -1) if image.ndim == 3 else image.detach().cpu().numpy()
    return encode_in_memory(image)


class _ToSize(DisplayedTransform):
    """A transform with the model's input size."""

    def __init__(self, image_size: int):
        super().__init__()
        self.image_size = image_size


class OpenRadiograph(_ToSize):
    """Open an item as a `PILRadiograph` at the model's input size.

    Args:
        image_size: Side of the square, pixels.
    """

    # fastai reads here which types `dls.test_dl` accepts in addition to rows
    input_types = (str, Path, bytes, np.ndarray, torch.Tensor, Image.Image)

    def encodes(self, x):
        """Return the radiograph."""
        return PILRadiograph.create(x, image_size=self.image_size)


class ResizeRadiograph(_ToSize):
    """Squash a radiograph to a square with `covid_fastai.data.images.resize_image`.

    Images are squashed and not cropped, since a crop could remove a finding at the edge of the lung. Masks, points and
    labels in the same item are not changed.

    Args:
        image_size: Side of the square, pixels.
    """

    order = 1  # before ToTensor

    def encodes(self, x: PILRadiograph):
        """Return the radiograph at the transform's size."""
        return PILRadiograph(resize_image(x, self.image_size))


class RadiographDL(TfmdDL):
    """fastai's `TfmdDL` with five changes.

    - Images can be sampled with weights, from the loader's own generator. fastai's `WeightedDL` uses numpy's global
      one, divides by zero if it is empty, and repeats validation images in `show_results`.
    - An unreadable image raises the same `ImageError` in a worker process as without workers.
    - The types of a batch are fixed, so no image is opened to infer them, and an empty loader can be copied.
    - Without worker processes, threads open the images ahead of their batch: decoding releases the GIL.
    - An empty loader raises an error when it is iterated, where fastai's yields nothing.

    Args:
        dataset: fastai `Datasets` of (`PILRadiograph`, category).
        bs: Images in a batch.
        weights: Relative sampling weight of each image, for sampling with replacement if the loader shuffles; None to
            use each image once.
        **kwargs: As for `TfmdDL`.
    """

    def __init__(self, dataset=None, bs=None, *, weights: Sequence[float] | None = None, **kwargs):
        super().__init__(dataset, bs=bs, **kwargs)
        self.weights = weights

    def get_idxs(self) -> list[int]:
        """Return the positions of the images of one epoch, in order."""
        if self.weights is None or not self.shuffle:
            return super().get_idxs()
        return self.rng.choices(range(self.n), weights=self.weights, k=self.n)

    def do_item(self, s):
        """Open and transform the image at position `s`."""
        try:
            return super().do_item(s)
        except ImageError as error:
            if get_worker_info() is None:
                raise
            raise _ImageErrorInWorker(json.dumps([error.message, error.hint, error.details])) from None

    def create_batches(self, samps: Iterable[int]) -> Iterator[tuple]:
        """Yield batches of the images at the given positions, in order."""
        if get_worker_info() is not None or self.bs is None:
            yield from super().create_batches(samps)
            return
        self.it = iter(self.dataset)
        with ThreadPoolExecutor(OPENERS) as pool:
            items = (item for item in _ahead(pool, self.do_item, samps, 2 * self.bs) if item is not None)
            yield from map(self.do_batch, self.chunkify(items))

    def __iter__(self) -> Iterator[tuple]:
        if self.n == 0:
            raise DataError(
                "These data loaders hold no images.", hint="Set learn.dls to what build_dataloaders returns."
            )
        try:
            yield from super().__iter__()
        # guard: worker_words
        except _ImageErrorInWorker as error:  # torch puts the worker's traceback before the message
            line = str(error).strip().splitlines()[-1]
            message, hint, details = json.loads(line.partition(f"{_ImageErrorInWorker.__name__}: ")[2])
            raise ImageError(message, hint=hint, details=details) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):  # guard: worker_killed
                raise
            raise ResourceError(
                f"A process that opens images has ended: {error}.",
                hint="Memory or /dev/shm may be short: use num_workers=0, a smaller batch or smaller images."
                + ("" if multiprocessing.get_start_method() == "fork" else f" {MAIN_GUARD}"),
            ) from error

    def _one_pass(self) -> None:
        self._n_inp = 1
        self._types = {tuple: [TensorRadiograph, TensorCategory]}


def _ahead(pool: ThreadPoolExecutor, function: Callable, values: Iterable, most: int) -> Iterator:
    """Yield `function(value)` for each value in order, with at most `most` results computed in advance."""
    futures = deque()
    try:
        for value in values:
            futures.append(pool.submit(function, value))
            if len(futures) > most:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:  # also after an error, or if the caller stops early, as one_batch does
        for future in futures:
            future.cancel()


class _ImageErrorInWorker(Exception):
    """An `ImageError` passed out of a worker process; torch passes only the type and text of an exception."""
