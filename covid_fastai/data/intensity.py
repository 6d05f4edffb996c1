"""Convert stored images to 8-bit grey: colours, transparency, and more than 8 bits per channel."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["is_colour", "scale_deep", "to_grey"]

PERCENTILES = (0.5, 99.5)  # black and white when more than 8 bits are scaled to 8; guard: percentiles
DARK = 128  # grey level; if the upper 8 of 16 bits stay below it, the detector has fewer bits
COLOUR_GAP = 12.0  # mean difference between channels, grey levels; scans and tints stay below, screenshots do not
TIFF_PHOTOMETRIC = 262
WHITE_IS_ZERO = 0  # a photometric interpretation; Pillow inverts it for 8 bits only
DEEP_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}


def to_grey(stored: Image.Image, bits: int) -> tuple[Image.Image, list[str]]:
    """Convert a loaded image to 8-bit grey, and return it with notes on the conversion.

    Args:
        stored: As loaded by Pillow. A colour JPEG that was decoded at a reduced scale has the mode `"YCbCr"`; its
            luminance equals the grey that Pillow computes from the colours.
        bits: Bits per channel, as stored.

    Returns:
        The image of mode `"L"`, and the notes.
    """
    if stored.mode in DEEP_MODES:  # guard: deep
        return scale_deep(_deep_values(stored)), [f"{bits} bits scaled to 8"]
    notes = []
    image = stored
    if image.mode == "YCbCr":
        return image.getchannel(0), ["colour"] if is_colour(image) else []
    if image.mode in ("P", "PA") or "transparency" in image.info:  # guard: alpha_value
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "RGBA", "RGBa"):
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
        dark = np.percentile(values, PERCENTILES[1]) < DARK
        notes.append(f"the upper 8 of {bits} bits{', scaled' if dark else ''}")
        grey = scale_deep(values) if dark else grey  # guard: dark
    return grey, notes


def is_colour(image: Image.Image) -> bool:
    """Return whether the red, green and blue of an image differ by more than a tint (mean above `COLOUR_GAP`)."""
    small = image.resize((64, 64), Image.Resampling.BOX).convert("RGB")
    small = np.asarray(small, dtype=np.float32)
    return float((small.max(axis=2) - small.min(axis=2)).mean()) > COLOUR_GAP  # guard: colour


def _deep_values(stored: Image.Image) -> np.ndarray:
    values = np.asarray(stored, dtype=np.float64)
    if isinstance(stored, TiffImageFile) and stored.tag_v2.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        return -values  # guard: white_is_zero
    return values


def scale_deep(values: np.ndarray) -> Image.Image:
    """Scale more than 8 bits to 8, between two percentiles; Pillow's own conversion would clip most values to white."""
    finite = np.isfinite(values)
    if not finite.any():  # guard: no_finite
        raise ValueError("it has no finite value")
    low, high = np.percentile(values[finite], PERCENTILES)
    if high <= low:
        low, high = values[finite].min(), values[finite].max()
    scale = 255 / (high - low) if high > low else 0.0
    if not finite.all():
        values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
    return Image.fromarray(np.clip((values - low) * scale, 0, 255).round().astype(np.uint8))
