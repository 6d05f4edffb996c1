"""Colours of figures, and figures and images as files, bytes or text. Matplotlib and Pillow are imported on use."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from covid_fastai.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

__all__ = [
    "COLOURS",
    "GREY",
    "as_base64",
    "as_data_uri",
    "class_colours",
    "draw_band",
    "embed_image",
    "encode_figure",
    "encode_png",
    "save_figure",
]

# Okabe and Ito's palette (jfly.uni-koeln.de/color, 2008): distinguishable with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#999999"  # reference lines
BAND_ALPHA = 0.18  # low enough that two overlapping bands stay visible
DPI = 110
PNG_LEVEL = 4  # of zlib: nearly as small as the default level 6, in about half the time
JPEG_QUALITY = 80  # for images of 256 pixels in a page


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """Return a colour for each class, the same in all figures of the package and suited to colour-blind readers.

    Args:
        classes: The classes in their order; colours repeat from the seventh class on.

    Returns:
        The hexadecimal colour of each class.
    """
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(classes)}


def draw_band(axes: Axes, x: Any, y: Any, low: Any, high: Any, *, colour: str, label: str) -> None:
    """Draw a curve with its confidence band.

    Args:
        axes: The axes to draw on.
        x: Positions, `(n,)`.
        y: The curve, `(n,)`.
        low: Lower bounds, `(n,)`.
        high: Upper bounds, `(n,)`.
        colour: Colour of curve and band.
        label: Label of the curve in the legend.
    """
    axes.fill_between(x, low, high, color=colour, alpha=BAND_ALPHA, lw=0)
    axes.plot(x, y, color=colour, label=label)


def encode_figure(figure: Figure, *, kind: str = "png") -> bytes:
    """Return a figure as the bytes of a file.

    Args:
        figure: The figure.
        kind: `"png"` or `"svg"`; the SVG of the same figure is always the same text.

    Returns:
        The file's bytes.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    content = io.BytesIO()
    # a name with dollar signs is a name, not mathematics that may be malformed; guard: no_mathematics
    for text in figure.findobj(Text):
        cast(Text, text).set_parse_math(False)
    with rc_context({"svg.hashsalt": "covid_fastai", "text.parse_math": False}):
        options: dict[str, Any] = {"pil_kwargs": {"compress_level": PNG_LEVEL}}
        if kind == "svg":
            options = {"metadata": {"Date": None}}
        figure.savefig(content, format=kind, dpi=DPI, **options)
    return content.getvalue()


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as a PNG file, atomically.

    Raises:
        ResourceError: The file cannot be written.
    """
    with atomic_write(path, mode="wb") as file:
        file.write(encode_figure(figure))


def encode_png(image: Image.Image | np.ndarray, *, pixels_only: bool = False) -> bytes:
    """Return an image as the bytes of a PNG file, without loss.

    Args:
        image: An image, or an array `(h, w)`, `(h, w, 1)`, `(h, w, 3)` or `(h, w, 4)` of integers.
        pixels_only: Leave out the metadata of the image's file, such as a comment with a name.

    Returns:
        The file's bytes.

    Raises:
        OSError, TypeError, ValueError: PNG does not support the mode of the image or the type of the array.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(image.squeeze(-1) if image.ndim == 3 and image.shape[-1] == 1 else image)
    if pixels_only:
        image = image.copy()
        image.info = {}
    content = io.BytesIO()
    image.save(content, format="PNG", compress_level=PNG_LEVEL)
    return content.getvalue()


def embed_image(image: Image.Image) -> str:
    """Return an image as a JPEG inside a `data:` address, for display in a page; the compression is lossy."""
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=JPEG_QUALITY)
    return as_data_uri(content.getvalue(), "image/jpeg")


def as_data_uri(content: bytes, mime: str) -> str:
    """Return bytes as a `data:` address."""
    return f"data:{mime};base64,{as_base64(content)}"


def as_base64(content: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(content).decode("ascii")
