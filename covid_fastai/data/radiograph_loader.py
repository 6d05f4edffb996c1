"""The data loader of radiographs, fastai's with the changes that images from files need."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from fastai.data.core import TfmdDL
from fastai.torch_core import TensorCategory
from PIL import Image
from torch.utils.data import get_worker_info

from covid_fastai.data.fastai_types import PILRadiograph, TensorRadiograph
from covid_fastai.data.square_images import SquareImages, square_images
from covid_fastai.errors import DataError, ImageError, ResourceError
from covid_fastai.main_guard import MAIN_GUARD

__all__ = ["RadiographDL"]

OPENERS = min(4, os.cpu_count() or 1)  # threads; each holds one decoded image of up to 50 megapixels


class RadiographDL(TfmdDL):
    """fastai's `TfmdDL` with six changes.

    - Images can be sampled with weights, from the loader's own generator. fastai's `WeightedDL` uses numpy's global
      one, divides by zero if it is empty, and repeats validation images in `show_results`.
    - An unreadable image raises the same `ImageError` in a worker process as without workers; after
      `mark_unreadable()` it is replaced by a black one, and its position is marked.
    - The types of a batch are fixed, so no image is opened to infer them, and an empty loader can be copied.
    - Without worker processes, threads open the images ahead of their batch: decoding releases the GIL.
    - The images of `radiograph_block` are gathered into batches from memory: see `square_images`.
    - An empty loader raises an error when it is iterated, where fastai's yields nothing.

    Args:
        dataset: fastai `Datasets` of (`PILRadiograph`, category).
        bs: Images in a batch.
        weights: Relative sampling weight of each image, for sampling with replacement if the loader shuffles; None to
            use each image once.
        keep_on: Device on which opened images stay, for a loader that is used several times; None to open them anew.
        **kwargs: As for `TfmdDL`.
    """

    def __init__(self, dataset=None, bs=None, *, weights: Sequence[float] | None = None, keep_on=None, **kwargs):
        super().__init__(dataset, bs=bs, **kwargs)
        self.weights, self.keep_on = weights, keep_on
        self.images: SquareImages | None = None  # made with the first batch
        self.unreadable: torch.Tensor | None = None

    def mark_unreadable(self) -> torch.Tensor:
        """Replace unreadable images from now on; return what marks their positions, bool `(n,)`, also from workers."""
        self.unreadable = torch.zeros(self.n, dtype=torch.bool).share_memory_()
        return self.unreadable

    def new(self, dataset=None, cls=None, **kwargs):
        """Return a loader with some properties changed; of the same data set, it shares opened images and marks."""
        loader = super().new(dataset, cls, **kwargs)
        if dataset is None and isinstance(loader, RadiographDL):
            loader.keep_on, loader.images, loader.unreadable = self.keep_on, self.images, self.unreadable
        return loader

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
            if self.unreadable is not None:
                self.unreadable[s] = True
                return self.after_item((PILRadiograph(Image.new("L", (1, 1))),))
            if get_worker_info() is None:
                raise
            raise _ImageErrorInWorker(json.dumps([error.message, error.hint, error.details])) from None

    def create_batches(self, samps: Iterable[int]) -> Iterator[tuple]:
        """Yield batches of the images at the given positions, in order."""
        if get_worker_info() is not None or self.bs is None:
            yield from super().create_batches(samps)
            return
        if (images := self._square_images()) is not None:
            yield from self._gather_batches(images, samps)
            return
        self.it = iter(self.dataset)
        with ThreadPoolExecutor(OPENERS) as pool:
            items = (item for item in _ahead(pool, self.do_item, samps, 2 * self.bs) if item is not None)
            yield from map(self.do_batch, self.chunkify(items))

    def _square_images(self) -> SquareImages | None:
        """Return the images if they can be gathered, in the state in which the last epoch left them."""
        images = square_images(self, device=self.keep_on)  # anew, since item transforms can have been added
        if images is not None and self.images is not None and images.has_items_of(self.images):
            return self.images
        self.images = images if self.keep_on is not None else None
        return images

    def _gather_batches(self, images: SquareImages, samps: Iterable[int]) -> Iterator[tuple]:
        """Yield batches of the images at the given positions; threads open the missing ones ahead of their batch."""
        positions = list(samps)
        if images.are_kept(positions):
            yield from map(images.kept_batch, self.chunkify(positions))
            return
        with ThreadPoolExecutor(OPENERS) as pool:
            opened = _ahead(pool, lambda position: (position, self._open(images, position)), positions, 2 * self.bs)
            for batch in self.chunkify(opened):
                yield self._keep_batch(images, batch) if images.device is not None else _batch_of(images, batch)

    def _open(self, images: SquareImages, position: int) -> torch.Tensor | None:
        """Open an image unless it is kept; None for a kept one, and for an unreadable one, whose position is marked."""
        if images.are_kept([position]):
            return None
        try:
            return images.open(position)
        except ImageError:
            if self.unreadable is None:
                raise
        self.unreadable[position] = True
        return None

    def _keep_batch(self, images: SquareImages, opened: Sequence[tuple[int, torch.Tensor | None]]) -> tuple:
        """Keep opened images, and return their batch with those that were kept before; unreadable ones are black."""
        new = [(position, image) for position, image in opened if image is not None]
        images.keep([position for position, _ in new], [image for _, image in new])
        positions = [position for position, _ in opened]
        batch = images.kept_batch(positions)
        black = [row for row, position in enumerate(positions) if not images.are_kept([position])]
        if black:  # never kept, so that the next pass marks them again
            batch[0][black] = 0
        return batch

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


def _batch_of(images: SquareImages, opened: Sequence[tuple[int, torch.Tensor | None]]) -> tuple:
    """Return a batch of images that are not kept; unreadable ones are black."""
    black = torch.zeros((1, images.image_size, images.image_size), dtype=torch.uint8)
    return images.batch(
        [position for position, _ in opened], [black if image is None else image for _, image in opened]
    )


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
