"""What a radiograph is to fastai: an image, a tensor, an item transform, and the loader that makes batches of them."""

from __future__ import annotations

import json
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

__all__ = ["OpenRadiograph", "PILRadiograph", "RadiographDL", "ResizeRadiograph", "TensorRadiograph", "png_bytes"]

OPENERS = min(4, os.cpu_count() or 1)  # threads; each holds one whole image, of 50 megapixels at worst
SHOW = {"cmap": "gray", "vmin": 0, "vmax": 255}  # air black, bone white; fastai's "Greys" shows a one-channel negative


class TensorRadiograph(TensorImageBW):
    """A grey image tensor `(1, h, w)` that shows itself as radiographs are read: air black, bone white."""

    _show_args = SHOW


class PILRadiograph(PILImageBW):
    """An 8-bit grey image that is opened by `covid_fastai.data.images.open_image`, like every image of this package."""

    _show_args = SHOW
    _tensor_cls = TensorRadiograph

    @classmethod  # its return type is not annotated: fastai's dispatch would keep it in a form that cannot be pickled
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
            image_size: The side of the square to squash it to, pixels: a file is then decoded once, and comes from the
                cache afterwards. None for the whole picture.
            **kwargs: Ignored; fastai passes its own opener's options here.

        Returns:
            The image in mode L.

        Raises:
            ImageError: It cannot be read as an image; the message names the file.
        """
        if image_size is not None and isinstance(fn, (str, Path)):
            return cls(cached_square(fn, image_size))
        content = fn if isinstance(fn, (str, Path, bytes)) else png_bytes(fn)
        return cls(open_image(content) if image_size is None else open_square(content, image_size))


def png_bytes(image: np.ndarray | torch.Tensor | Image.Image) -> bytes:
    """Return an image in memory as the bytes of a lossless file, so that the one opener treats its mode and depth."""
    if isinstance(image, torch.Tensor):
        image = np.moveaxis(image.detach().cpu().numpy(), 0, -1) if image.ndim == 3 else image.detach().cpu().numpy()
    return encode_in_memory(image)


class _ToSize(DisplayedTransform):
    """A transform that knows the size that the model takes."""

    def __init__(self, image_size: int):
        super().__init__()
        self.image_size = image_size


class OpenRadiograph(_ToSize):
    """Open an item as a `PILRadiograph`, at the size that the model takes.

    Args:
        image_size: Side of the square, pixels.
    """

    # where fastai finds what `dls.test_dl` may be given, besides rows
    input_types = (str, Path, bytes, np.ndarray, torch.Tensor, Image.Image)

    def encodes(self, x):
        """Return the radiograph."""
        return PILRadiograph.create(x, image_size=self.image_size)


class ResizeRadiograph(_ToSize):
    """Squash a radiograph to a square with `covid_fastai.data.images.resize_image`.

    Squashed rather than cropped, since a crop may cut off the lung's edge where the finding is; a mask, point or label
    in the same item is left alone.

    Args:
        image_size: Side of the square, pixels.
    """

    order = 1  # before ToTensor

    def encodes(self, x: PILRadiograph):
        """Return the radiograph at the transform's size."""
        return PILRadiograph(resize_image(x, self.image_size))


class RadiographDL(TfmdDL):
    """fastai's `TfmdDL`, with five faults less.

    - Classes can be drawn equally often, from the loader's own generator: fastai's `WeightedDL` draws from numpy's
      global one, divides by zero when empty, and shows validation images twice in `show_results`.
    - An image that cannot be read in a worker process raises the same `ImageError` as it does without workers.
    - No image is opened to learn what a batch looks like, since that is known: an empty loader can be copied.
    - Without worker processes, images are opened by threads, ahead of their batch: decoding needs no interpreter.
    - Without images it refuses to run, where fastai's trains on nothing without a word.

    Args:
        dataset: fastai `Datasets` of (`PILRadiograph`, category).
        bs: Images in a batch.
        weights: One number an image, in proportion to how often it shall be drawn, with replacement, when the loader
            shuffles; None for each image once.
        **kwargs: As for `TfmdDL`.
    """

    def __init__(self, dataset=None, bs=None, *, weights: Sequence[float] | None = None, **kwargs):
        super().__init__(dataset, bs=bs, **kwargs)
        self.weights = weights

    def get_idxs(self) -> list[int]:
        """Return the positions of an epoch's images in the order of their use."""
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
        """Open the images at these positions, and make batches of them in their order."""
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
        except _ImageErrorInWorker as error:  # torch has put the worker's traceback before our line
            line = str(error).strip().splitlines()[-1]
            message, hint, details = json.loads(line.partition(f"{_ImageErrorInWorker.__name__}: ")[2])
            raise ImageError(message, hint=hint, details=details) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):  # guard: worker_killed
                raise
            raise ResourceError(
                f"A process that opens images was killed: {error}",
                hint="Memory or /dev/shm may be short: use num_workers=0, a smaller batch or smaller images.",
            ) from error

    def _one_pass(self) -> None:
        self._n_inp = 1
        self._types = {tuple: [TensorRadiograph, TensorCategory]}


def _ahead(pool: ThreadPoolExecutor, function: Callable, values: Iterable, most: int) -> Iterator:
    """Yield `function` of each value in their order, with as many as `most` waiting to be taken."""
    waiting = deque()
    try:
        for value in values:
            waiting.append(pool.submit(function, value))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where nobody takes the rest: an error, or one_batch
        for one in waiting:
            one.cancel()


class _ImageErrorInWorker(Exception):
    """An `ImageError` on its way out of a worker; torch keeps nothing of an exception but its type and its text."""
