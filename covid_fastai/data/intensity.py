"""Convert the samples of an image to 8-bit grey: colours, transparency, and more than 8 bits per channel."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from covid_fastai.data.tiff import is_white_zero, samples_of_tiff

__all__ = ["is_colour", "samples_to_grey", "scale_deep", "to_grey", "used_range"]

PERCENTILES = (0.5, 99.5)  # black and white when more than 8 bits are scaled to 8; guard: percentiles
DARK = 128  # grey level; if the upper 8 of 16 bits stay below it, the detector has fewer bits
COLOUR_GAP = 12.0  # mean difference between channels, grey levels; scans and tints stay below, screenshots do not
DEEP_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}

# An isolated value, such as a marker at 65535 in an image of 12 bits, is not part of the range that the pixels use.
SAMPLE = 1 << 18  # pixels that are sorted to find one
ISOLATED = 0.25  # of the pixels at most; a larger fraction is a part of the body
EDGE = 0.002  # of the pixels, which may lie between the two since letters have smooth edges
MIN_GAP = 0.5  # of the range of the other pixels; a smaller gap hardly darkens them
MAX_SPREAD = 0.25  # interquartile range of the isolated pixels, of the range of the others: a marker is flat
MIN_LEVELS = 8  # different values of the other pixels; fewer are a drawing


def to_grey(stored: Image.Image, bits: int) -> tuple[Image.Image, list[str]]:
    """Convert a loaded image to 8-bit grey, and return it with notes on the conversion.

    Args:
        stored: As loaded by Pillow. A colour JPEG that was decoded at a reduced scale has the mode `"YCbCr"`; its
            luminance equals the grey that Pillow computes from the colours.
        bits: Bits per channel, as stored.

    Returns:
        The image of mode `"L"`, and the notes.
    """
    samples = samples_of_tiff(stored) if isinstance(stored, TiffImageFile) else None  # signed 8 and unsigned 32 bits
    if samples is not None or stored.mode in DEEP_MODES:  # guard: deep
        samples = np.asarray(stored) if samples is None else samples
        return samples_to_grey(samples, bits=bits, white_is_zero=is_white_zero(stored))
    notes = []
    image = stored
    if image.mode == "YCbCr":
        return image.getchannel(0), ["colour"] if is_colour(image) else []
    if image.mode in ("P", "PA") or "transparency" in image.info:  # guard: alpha_value
        image = image.convert("RGBA")
    if image.mode == "La":  # Pillow converts it to no other mode
        image = image.convert("LA")
    if image.mode in ("LA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            notes.append("transparency composited over black")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image).convert("RGB")  # guard: alpha
    elif image.mode not in ("L", "1", "RGB"):
        image = image.convert("RGB")  # CMYK, YCbCr, LAB, HSV
    if image.mode == "RGB" and is_colour(image):
        notes.append("colour")
    grey = image.convert("L")
    if bits > 8:
        values = np.asarray(grey, dtype=np.float64)
        dark = used_range(values)[1] < DARK
        notes.append(f"the upper 8 of {bits} bits{', scaled' if dark else ''}")
        grey = scale_deep(values) if dark else grey  # guard: dark
    return grey, notes


def samples_to_grey(samples: np.ndarray, *, bits: int, white_is_zero: bool = False) -> tuple[Image.Image, list[str]]:
    """Convert samples of any kind to 8-bit grey, and return the image with notes on the conversion.

    Colours and transparency of 16 bits are reduced to their upper 8, which is all that Pillow reads of a PNG file; so
    the same image is the same in every format and in memory. Other kinds of more than 8 bits, or with a sign, are
    scaled by the range that the pixels use.

    Args:
        samples: `(h, w)`, or `(h, w, channels)` with 2 (grey, alpha), 3 or 4 (red, green, blue, alpha) channels, of
            booleans, integers or floats.
        bits: Bits per channel, as stored.
        white_is_zero: Whether the lowest value is white.

    Returns:
        The image of mode `"L"`, and the notes.
    """
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * np.uint8(255)
    if samples.dtype == np.uint16 and samples.ndim == 3:
        samples = (samples >> 8).astype(np.uint8)
    if samples.dtype == np.uint8:
        if white_is_zero:
            samples = np.concatenate([255 - _colours(samples), _alpha(samples)], axis=-1)
        return to_grey(Image.fromarray(samples.squeeze()), bits)
    values = samples.astype(np.float64)
    values = -values if white_is_zero else values  # guard: white_is_zero
    notes = [f"{bits} bits scaled to 8" if bits > 8 else f"signed {bits} bits scaled"]
    if values.ndim == 2:
        return scale_deep(values), notes
    full = 1.0 if samples.dtype.kind == "f" else float(np.iinfo(samples.dtype).max)
    alpha = np.clip(np.nan_to_num(_alpha(samples) / full), 0, 1)
    channels = [_scale(_colours(values)), (255 * alpha).round().astype(np.uint8)]
    grey, more = to_grey(Image.fromarray(np.concatenate(channels, axis=-1).squeeze()), 8)
    return grey, [*notes, *more]


def _colours(samples: np.ndarray) -> np.ndarray:
    """Return the channels without alpha, `(h, w, 1)` or `(h, w, 3)`."""
    if samples.ndim == 2:
        return samples[..., None]
    return samples[..., : 1 if samples.shape[-1] == 2 else 3]


def _alpha(samples: np.ndarray) -> np.ndarray:
    """Return the alpha channel, `(h, w, 1)`; `(h, w, 0)` without one."""
    if samples.ndim == 3 and samples.shape[-1] in (2, 4):
        return samples[..., -1:]
    return samples[..., None][..., :0] if samples.ndim == 2 else samples[..., :0]


def is_colour(image: Image.Image) -> bool:
    """Return whether the red, green and blue of an image differ by more than a tint (mean above `COLOUR_GAP`)."""
    small = image.resize((64, 64), Image.Resampling.BOX).convert("RGB")
    small = np.asarray(small, dtype=np.float32)
    return float((small.max(axis=2) - small.min(axis=2)).mean()) > COLOUR_GAP  # guard: colour


def scale_deep(values: np.ndarray) -> Image.Image:
    """Scale more than 8 bits to 8, by the range that the pixels use; Pillow's own conversion would clip most to white.

    Args:
        values: `(h, w)`; NaN becomes black, and infinity black or white.

    Returns:
        An image of mode `"L"`.

    Raises:
        ValueError: No value is finite.
    """
    return Image.fromarray(_scale(values))


def _scale(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():  # guard: no_finite
        raise ValueError("it has no finite value")
    low, high = used_range(values[finite])
    scale = 255 / (high - low) if high > low else 0.0
    if not finite.all():
        values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
    return np.clip((values - low) * scale, 0, 255).round().astype(np.uint8)


def used_range(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest value that the pixels use: two percentiles, without isolated values.

    Args:
        values: Finite values, of any shape.

    Returns:
        The 0.5th and 99.5th percentile, or the minimum and maximum if those are equal. Above a gap that is large for
        the other pixels, a flat part of at most a quarter of the pixels is not counted (a marker that is much brighter
        than the rest); the same holds below a gap.
    """
    flat = values.ravel()
    low, high = (float(value) for value in np.percentile(flat, PERCENTILES))
    if high <= low:
        low, high = float(flat.min()), float(flat.max())
    ordered = np.sort(flat[:: -(-flat.size // SAMPLE)])
    for _ in range(2):  # a value that is isolated at one end hides one at the other
        high = min(high, _end_of_rest(ordered, low))  # guard: isolated_top
        low = max(low, -_end_of_rest(-ordered[::-1], -high))  # guard: isolated_bottom
    return low, high


def _end_of_rest(ordered: np.ndarray, low: float) -> float:
    """Return the highest of the sorted values that are not isolated above the others; infinity if none is isolated."""
    n = len(ordered)
    edge = max(1, int(EDGE * n))
    first, last = int((1 - ISOLATED) * n), n - edge - 1
    if last <= first:
        return np.inf
    gaps = ordered[first + edge : last + edge] - ordered[first:last]
    position = first + int(np.argmax(gaps))
    rest = ordered[position] - low
    quartiles = np.percentile(ordered[position + edge :], [25, 75])
    isolated = gaps[position - first] > MIN_GAP * rest and quartiles[1] - quartiles[0] <= MAX_SPREAD * rest
    levels = 1 + int(np.count_nonzero(np.diff(ordered[: position + 1])))
    return float(ordered[position]) if isolated and rest > 0 and levels >= MIN_LEVELS else np.inf
