"""Arrays and tensors as the samples of an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from covid_fastai.errors import ImageError

__all__ = ["bits_of", "samples_of_array"]

CHANNELS = (1, 2, 3, 4)  # grey; grey, alpha; red, green, blue; red, green, blue, alpha
SHAPES = "(h, w), (h, w, channels) or (channels, h, w) with 1 to 4 channels"


def samples_of_array(array: Any, name: str) -> np.ndarray:
    """Return an array or a tensor as samples of an image.

    Args:
        array: An array, or a tensor of PyTorch on any device, of booleans, integers or floats.
        name: Name of the image, for messages.

    Returns:
        `(h, w)`, or `(h, w, channels)` with 2 to 4 channels, in the byte order of the machine.

    Raises:
        ImageError: It has another shape, or values that are no intensities.
    """
    if hasattr(array, "detach"):  # a tensor of PyTorch, which refuses to be an array on a GPU or with a gradient
        array = array.detach().cpu()
    try:
        samples = np.asarray(array)
    except Exception as error:  # each library has its own errors
        kind = getattr(array, "dtype", type(array).__name__)
        raise ImageError(
            f"{name} of the type {kind} cannot be read as an array ({error}).", hint="Convert it to float32 first."
        ) from error
    if samples.dtype.kind not in "buif" or samples.dtype.itemsize > 8:  # guard: array_kind
        raise ImageError(
            f"{name} has values of the type {samples.dtype}, which are no intensities.",
            hint="Give booleans, integers or floats of at most 64 bits.",
        )
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    shape = samples.shape
    if samples.ndim == 4 and shape[0] == 1:  # a batch of one image
        samples = samples[0]
    if samples.ndim == 3 and samples.shape[-1] not in CHANNELS and samples.shape[0] in CHANNELS:
        samples = np.moveaxis(samples, 0, -1)  # guard: channels_first
    if samples.ndim == 3 and samples.shape[-1] == 1:
        samples = samples[..., 0]
    if samples.ndim != 2 and (samples.ndim != 3 or samples.shape[-1] not in CHANNELS):  # guard: array_shape
        raise ImageError(f"{name} has the shape {shape}, which is not that of an image.", hint=f"Give {SHAPES}.")
    return samples


def bits_of(dtype: np.dtype) -> int:
    """Return the bits of a sample: 1 for booleans."""
    return 1 if dtype.kind == "b" else 8 * dtype.itemsize
