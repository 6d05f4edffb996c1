"""The images of a data loader as 8-bit grey squares: opened once, then gathered into batches from memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import Datasets, TfmdDL
from fastai.data.transforms import Categorize, ItemGetter, ToTensor
from fastai.torch_core import TensorCategory

from covid_fastai.data.cached_regions import region_pixels
from covid_fastai.data.fastai_types import OpenRadiograph, ResizeRadiograph, TensorRadiograph
from covid_fastai.options import Region

__all__ = ["SquareImages", "square_images"]


class SquareImages:
    """The images and labels of one data set, in its order.

    Args:
        paths: The image files.
        labels: The class of each image as its position in the vocabulary; None if the data set has no labels.
        image_size: Side of the square, pixels.
        device: Device on which every opened image stays, `n * image_size**2` bytes; None to open an image each time.
        region: The part of each image, as for `open_region`.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Sequence[int] | None,
        image_size: int,
        device: torch.device | None = None,
        region: Region = "frame",
    ):
        self.paths, self.image_size, self.device = paths, image_size, device
        self.region: Region = region
        self.labels = None if labels is None else torch.tensor(labels)
        self._pixels: torch.Tensor | None = None
        self._kept_labels: torch.Tensor | None = None
        self._is_kept = np.zeros(len(paths), dtype=bool)

    def has_items_of(self, other: SquareImages) -> bool:
        """Return whether another object has the same files, labels, size and device."""
        if self.labels is None or other.labels is None:
            same_labels = self.labels is other.labels
        else:
            same_labels = torch.equal(self.labels, other.labels)
        same_images = self.image_size == other.image_size and self.region == other.region
        same_images = same_images and self.device == other.device
        return same_labels and same_images and self.paths == other.paths

    def open(self, position: int) -> torch.Tensor:
        """Open an image; returns `(1, image_size, image_size)`, uint8, on the CPU.

        Raises:
            ImageError: The file cannot be read as an image.
        """
        return torch.from_numpy(region_pixels(self.paths[position], self.image_size, self.region)[0].copy())[None]

    def keep(self, positions: Sequence[int], images: Sequence[torch.Tensor]) -> None:
        """Put opened images on the device; by one thread, as torch needs it for MPS."""
        if len(positions):
            kept = self._kept()
            kept[torch.tensor(positions).to(kept.device)] = torch.stack(list(images)).to(kept.device)
            self._is_kept[np.asarray(positions, dtype=int)] = True

    def are_kept(self, positions: Sequence[int]) -> bool:
        """Return whether all of these images have been opened and kept."""
        return bool(self._is_kept[np.asarray(positions, dtype=int)].all())

    def kept_batch(self, positions: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Return the batch of images that have been kept, with its labels beside them; nothing waits for the device."""
        kept = self._kept()
        index = torch.tensor(positions).to(kept.device, non_blocking=kept.device.type != "mps")
        images = TensorRadiograph(kept[index])
        if self.labels is None:
            return (images,)
        if self._kept_labels is None:
            self._kept_labels = self.labels.to(kept.device)
        return images, TensorCategory(self._kept_labels[index])

    def batch(self, positions: Sequence[int], images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the batch of opened images `(n, 1, h, w)`, uint8, with their labels `(n,)`, if there are any."""
        stacked = TensorRadiograph(torch.stack(list(images)))
        return (stacked,) if self.labels is None else (stacked, TensorCategory(self.labels[torch.tensor(positions)]))

    def _kept(self) -> torch.Tensor:
        if self._pixels is None:  # on a CPU, the system provides the memory of an image when it is first written
            shape = (len(self.paths), 1, self.image_size, self.image_size)
            self._pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)
        return self._pixels


def square_images(loader: TfmdDL, *, device: torch.device | None = None) -> SquareImages | None:
    """Return the images of a loader if it makes its items exactly as `radiograph_block` does; else None.

    Args:
        loader: A loader of files, with or without labels.
        device: As for `SquareImages`.
    """
    dataset = loader.dataset
    if type(dataset) is not Datasets or len(dataset.tls) > 2 or loader.before_batch.fs:
        return None
    steps = [type(step) for step in loader.after_item.fs]
    *getter, opener = dataset.tls[0].tfms.fs
    if not isinstance(opener, OpenRadiograph) or steps != [ResizeRadiograph, ToTensor]:
        return None
    if loader.after_item.fs[0].image_size != opener.image_size:
        return None
    paths = _column(dataset.tls[0].items, getter)
    if paths is None or not all(isinstance(path, (str, Path)) for path in paths):
        return None
    labels = None
    if len(dataset.tls) == 2:
        *getter, categorize = dataset.tls[1].tfms.fs
        names = _column(dataset.tls[1].items, getter)
        if names is None or type(categorize) is not Categorize or not set(names) <= set(categorize.vocab.o2i):
            return None  # fastai's error for an unknown label comes with its item
        labels = [categorize.vocab.o2i[name] for name in names]
    return SquareImages(paths, labels, opener.image_size, device, opener.region)


def _column(items, getter: list) -> list | None:
    """Return the input of the last transform for each item, given the transforms before it; None if not known."""
    if not getter:
        return list(items) if isinstance(items, (list, tuple)) else None
    if len(getter) == 1 and type(getter[0]) is ItemGetter and hasattr(items, "iloc"):
        return items[getter[0].i].tolist()
    return None
