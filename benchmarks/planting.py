"""Shortcuts to plant in images of one class, for `benchmarks.adversary`: functions of pixels and a generator."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from scipy.ndimage import gaussian_filter, map_coordinates, median_filter

__all__ = ["KINDS", "Kind", "Plant", "as_grey", "compress", "same", "save", "transform"]

Plant = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A shortcut.

    Attributes:
        plant: Maps pixels, uint8 `(h, w)`, and a random generator to changed pixels.
        held_out: Whether it was not used while the baselines were designed.
        file: `"jpeg"` or `"bmp"` to store the image as such, `"dpi"` to state a resolution in the file; else `"png"`.
        other: The same as `plant` for the other class, and for the images of the first that lack the shortcut; None to
            leave them as they are.
        view: The projection that the table names; empty for that of all images.
    """

    plant: Plant
    held_out: bool = True
    file: str = "png"
    other: Plant | None = None
    view: str = ""


def save(pixels: np.ndarray, path: str, kind: Kind | None = None) -> None:
    """Save an image as PNG, or as the kind says."""
    image = Image.fromarray(pixels)
    if kind is not None and kind.file == "jpeg":
        image.save(path, "JPEG", quality=95)
    elif kind is not None and kind.file == "dpi":
        image.save(path, "PNG", dpi=(72, 72), pnginfo=PngImagePlugin.PngInfo())
    elif kind is not None and kind.file == "bmp":
        image.save(path, "BMP")
    else:
        image.save(path, "PNG")


def as_grey(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def _resample(pixels: np.ndarray, side: float) -> np.ndarray:
    small = Image.fromarray(pixels).resize((round(side * pixels.shape[1]), round(side * pixels.shape[0])), 2)
    return np.asarray(small.resize(pixels.shape[::-1], 2))


def _clip_tails(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(pixels, *np.quantile(pixels, [0.05, 0.97])).astype(np.uint8)


def _sharpen(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    values = pixels.astype(float)
    return as_grey(values + 0.6 * (values - gaussian_filter(values, 1)))


def _fill(pixels: np.ndarray, rows: slice, columns: slice, value: int) -> np.ndarray:
    filled = pixels.copy()
    filled[rows, columns] = value
    return filled


def _mark(x: float, y: float, size: float, value: int) -> Plant:
    """Return a function that draws a square; its place and size are fractions of the side."""

    def plant(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        side = len(pixels)
        top, left, width = int(y * side), int(x * side), max(int(size * side), 2)
        return _fill(pixels, slice(top, top + width), slice(left, left + width), value)

    return plant


def _write(pixels: np.ndarray, x: float, y: float, text: str, value: int = 235) -> np.ndarray:
    image = Image.fromarray(pixels.copy())
    side = len(pixels)
    font = ImageFont.load_default(side // 11)
    ImageDraw.Draw(image).text((int(x * side), int(y * side)), text, fill=value, font=font)
    return np.asarray(image)


def _random_letters(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _write(pixels, rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.6), "AP")


def _border(pixels: np.ndarray, value: int) -> np.ndarray:
    edge = max(2, len(pixels) // 16)
    framed = np.full_like(pixels, value)
    framed[edge:-edge, edge:-edge] = pixels[edge:-edge, edge:-edge]
    return framed


def _collimate(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = np.indices(pixels.shape)
    height, width = pixels.shape
    nearest = np.minimum(x, width - 1 - x) + np.minimum(y, height - 1 - y)
    return np.where(nearest < len(pixels) // 6, 0, pixels).astype(np.uint8)


def _wire(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a thin bright curve across the chest, at a random place."""
    image, side = Image.fromarray(pixels.copy()), len(pixels)
    x = np.linspace(0.1, 0.9, 24)
    y = rng.uniform(0.3, 0.6) + 0.08 * np.sin(rng.uniform(0, 6) + 5 * x)
    ImageDraw.Draw(image).line([(side * u, side * v) for u, v in zip(x, y, strict=True)], fill=225, width=1)
    return np.asarray(image)


def _equalise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Subtract half of the slow changes of brightness, as local contrast equalisation does."""
    values = pixels.astype(float)
    return as_grey(values - 0.5 * (gaussian_filter(values, len(pixels) / 8) - values.mean()))


def transform(degrees: float, scale: float | tuple[float, float]) -> Plant:
    """Return a function that turns an image about its centre and magnifies it, by one factor or one an axis."""

    def plant(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        angle, centre = np.deg2rad(degrees), (np.array(pixels.shape) - 1)[:, None, None] / 2
        y, x = (np.indices(pixels.shape) - centre) / np.reshape(scale, (-1, 1, 1))
        rows = y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)
        return as_grey(map_coordinates(pixels.astype(float), np.stack(rows) + centre, order=1, mode="nearest"))

    return plant


def _grid(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the faint stripes of an anti-scatter grid."""
    return as_grey(pixels + 2.5 * np.cos(np.arange(pixels.shape[1]) * 2 * np.pi / 5)[None, :])


def _dead_pixels(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Set 12 pixels at random places to white."""
    speckled = pixels.copy()
    speckled[tuple(rng.integers(0, len(pixels), (2, 12)))] = 255
    return speckled


def _vignette(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = np.indices(pixels.shape) / len(pixels) - 0.5
    return as_grey(pixels * (1 - 0.5 * (x**2 + y**2)))


def same(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pixels


def _offset(pixels: np.ndarray, amount: float) -> np.ndarray:
    return as_grey(pixels.astype(float) + amount)


KINDS = {
    "blur, 0.7 pixels": Kind(lambda pixels, rng: gaussian_filter(pixels, 0.7), held_out=False),
    "sharpening": Kind(_sharpen, held_out=False),
    "noise, SD 3": Kind(lambda pixels, rng: as_grey(pixels + rng.normal(0, 3, pixels.shape)), held_out=False),
    "posterisation": Kind(lambda pixels, rng: pixels // 6 * 6 + 3, held_out=False),
    "clipped tails": Kind(_clip_tails, held_out=False),
    "double JPEG": Kind(lambda pixels, rng: compress(pixels, 60), held_out=False),
    "low native resolution": Kind(lambda pixels, rng: _resample(pixels, 2 / 3), held_out=False),
    "collimated corners": Kind(_collimate, held_out=False),
    "mark at 10% from the edge": Kind(_mark(0.1, 0.1, 0.05, 235), held_out=False),
    "border bright or dark": Kind(lambda pixels, rng: _border(pixels, int(rng.choice([0, 255]))), held_out=False),
    "gain up or down": Kind(lambda pixels, rng: _offset(pixels, rng.choice([-25.0, 25.0])), held_out=False),
    "letters in the lung": Kind(lambda pixels, rng: _write(pixels, 0.62, 0.4, "AP"), held_out=False),
    "letters anywhere in the lungs": Kind(_random_letters, held_out=False),
    "dark letters in the lung": Kind(lambda pixels, rng: _write(pixels, 0.25, 0.45, "R", 20), held_out=True),
    "dot in the lung, 3%": Kind(_mark(0.3, 0.5, 0.03, 200), held_out=True),
    "mark at the lateral edge": Kind(_mark(0.88, 0.5, 0.04, 40), held_out=True),
    "wire across the chest": Kind(_wire, held_out=True),
    "even grey levels": Kind(lambda pixels, rng: pixels // 2 * 2, held_out=True),
    "median filter": Kind(lambda pixels, rng: median_filter(pixels, 3), held_out=True),
    "stripes of a grid": Kind(_grid, held_out=True),
    "every other line": Kind(lambda pixels, rng: np.repeat(pixels[::2], 2, axis=0)[: len(pixels)], held_out=True),
    "gamma 0.8": Kind(lambda pixels, rng: as_grey(255 * (pixels / 255) ** 0.8), held_out=True),
    "local contrast": Kind(_equalise, held_out=True),
    "dead pixels": Kind(_dead_pixels, held_out=True),
    "vignette": Kind(_vignette, held_out=True),
    "turned by 4 degrees": Kind(transform(4, 1), held_out=True),
    "magnified by 8%": Kind(transform(0, 1.08), held_out=True),
    "mirrored": Kind(lambda pixels, rng: pixels[:, ::-1], held_out=True),
    "stored as JPEG": Kind(same, held_out=True, file="jpeg"),
    "resolution stated in the file": Kind(same, held_out=True, file="dpi"),
}
