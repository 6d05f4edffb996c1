"""Progressive resizing: the first epochs see smaller images, which cost less."""

from __future__ import annotations

from fastai.callback.core import Callback
from torch.nn import functional

__all__ = ["ProgressiveResizing"]


class ProgressiveResizing(Callback):
    """Shrink the training batches of the first epochs on the device; validation always sees the full size.

    Source: fast.ai's DAWNBench entry of 2018; Howard and Gugger, Deep Learning for Coders with fastai, chapter 7.

    Args:
        size: Side that images are shrunk to, pixels.
        epochs: How many epochs see them so, from the first one of the fit on.
    """

    order = 10  # before MixedPrecision and all that looks at the batch

    def __init__(self, size: int, epochs: int):
        self.size, self.epochs = size, epochs

    def before_batch(self):
        """Shrink the images of a training batch."""
        if self.training and self.epoch < self.epochs:
            shrink = {"size": (self.size, self.size), "mode": "bilinear", "antialias": True}
            self.learn.xb = tuple(functional.interpolate(x, **shrink) for x in self.xb)
