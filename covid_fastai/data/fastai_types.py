"""Radiographs in fastai: image and tensor types, and item transforms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import DisplayedTransform
from fastai.torch_core import TensorImageBW
from fastai.vision.core import PILImageBW
from PIL import Image

from covid_fastai.data.cached_regions import region_pixels
from covid_fastai.data.images import open_image, resize_image
from covid_fastai.data.regions import open_region
from covid_fastai.options import Region

__all__ = ["OpenRadiograph", "PILRadiograph", "ResizeRadiograph", "TensorRadiograph", "seeing"]

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
        region: Region = "frame",
        **kwargs,
    ):
        """Open a file, its bytes, or an image in memory.

        Args:
            fn: A path, the bytes of an image file, or an image in memory, as for `open_image`.
            image_size: Side of the square that the image is squashed to, pixels; a file is then decoded once and
                cached. None for the full size.
            region: With `image_size`, the part of the image, as for `open_region`.
            **kwargs: Ignored; fastai passes its own opener's options here.

        Returns:
            The image in mode L.

        Raises:
            ImageError: The input cannot be read as an image; the message names the file.
        """
        if image_size is not None and isinstance(fn, (str, Path)):
            return cls(Image.fromarray(region_pixels(fn, image_size, region)[0]))
        return cls(open_image(fn) if image_size is None else open_region(fn, image_size, region)[0])


class _ToSize(DisplayedTransform):
    """A transform with the model's input size."""

    def __init__(self, image_size: int):
        super().__init__()
        self.image_size = image_size


class OpenRadiograph(_ToSize):
    """Open an item as a `PILRadiograph` at the model's input size.

    Args:
        image_size: Side of the square, pixels.
        region: The part of the image, as for `open_region`.
    """

    def __init__(self, image_size: int, region: Region = "frame"):
        super().__init__(image_size)
        self.region: Region = region

    # fastai reads here which types `dls.test_dl` accepts in addition to rows
    input_types = (str, Path, bytes, np.ndarray, torch.Tensor, Image.Image)

    def encodes(self, x):
        """Return the radiograph."""
        return PILRadiograph.create(x, image_size=self.image_size, region=self.region)


@contextmanager
def seeing(dls: DataLoaders, region: Region) -> Iterator[None]:
    """Let loaders open images with another region within a `with` block, such as images that are cropped already.

    Args:
        dls: What `build_dataloaders` returned.
        region: As for `open_region`.
    """
    openers = [tfm for tfm in dls.valid_ds.tls[0].tfms.fs if isinstance(tfm, OpenRadiograph)]
    before: list[Region] = [opener.region for opener in openers]
    for opener in openers:
        opener.region = region
    try:
        yield
    finally:
        for opener, previous in zip(openers, before, strict=True):
            opener.region = previous


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
