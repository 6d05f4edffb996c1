"""Shortcuts that were invented after the baselines were finished, for `benchmarks.adversary`.

Some change both classes, so that only the kind of the change tells the classes apart. The last ones change nothing but
the inside of the lungs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, shift, uniform_filter1d

from benchmarks.planting import Kind, Plant, as_grey, compress, same, transform

__all__ = ["INVENTED"]

Draw = Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]


def _drawn(draw: Draw) -> Plant:
    """Return a function that draws on an image; `draw` gets its side and a generator, too."""

    def plant(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = Image.fromarray(pixels.copy())
        draw(ImageDraw.Draw(image), len(pixels), rng)
        return np.asarray(image)

    return plant


def _in_lungs(rng: np.random.Generator, side: int) -> tuple[int, int]:
    """Return a random place in the lungs of most drawings: column and row."""
    column = rng.choice([rng.uniform(0.24, 0.38), rng.uniform(0.62, 0.76)])
    return int(column * side), int(rng.uniform(0.3, 0.6) * side)


def _letters(text: str, value: int = 235, *, corner: bool = False) -> Plant:
    """Return a function that writes at a random place in the lungs, or in a random corner."""

    def draw(canvas: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
        x, y = _in_lungs(rng, side)
        if corner:
            x, y = (int(side * (rng.choice([0.03, 0.85]) + rng.uniform(-0.02, 0.02))) for _ in range(2))
        canvas.text((x, y), text, fill=value, font=ImageFont.load_default(side // 11))

    return _drawn(draw)


def _square(value: int, size: float = 0.05) -> Plant:
    """Return a function that draws a square at a random place in the lungs."""

    def draw(canvas: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
        x, y = _in_lungs(rng, side)
        canvas.rectangle((x, y, x + int(size * side), y + int(size * side)), fill=value)

    return _drawn(draw)


def _line(*, upright: bool, width: int = 1, value: int = 215) -> Plant:
    """Return a function that draws a straight line across the lungs, at a random place."""

    def draw(canvas: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
        x, y = _in_lungs(rng, side)
        length = int(0.12 * side)
        ends = (x, y - length, x, y + length) if upright else (x - length, y, x + length, y)
        canvas.line(ends, fill=value, width=width)

    return _drawn(draw)


def _tube(canvas: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw the two walls of a tube from the top to a random place in the lungs."""
    x, y = _in_lungs(rng, side)
    top = int(rng.uniform(0.3, 0.7) * side)
    for wall in (0, 3):
        canvas.line((top + wall, 0, x + wall, y), fill=205, width=1)


def _electrodes(canvas: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    for _ in range(3):
        x, y = rng.uniform(0.15, 0.85, 2) * side
        canvas.ellipse((x - 2, y - 2, x + 2, y + 2), fill=225)


def _strip(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a strip at a random side black, as a collimator does."""
    turns = int(rng.integers(4))
    turned = np.rot90(pixels, turns).copy()
    turned[: max(2, len(pixels) // 24)] = 4
    return np.rot90(turned, -turns).copy()


def _dead_line(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    lined = pixels.copy()
    lined[:, rng.integers(len(pixels))] = 0
    return lined


def _salt(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(pixels.shape) < 0.002, 255, pixels).astype(np.uint8)


def _moire(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = np.indices(pixels.shape)
    return as_grey(pixels + 1.5 * np.cos(2 * np.pi * (x + 0.7 * y) / 4.3 + rng.uniform(0, 6)))


def _gradient(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return as_grey(pixels + np.linspace(-6, 6, pixels.shape[1])[None, :])


def _gamma(exponent: float) -> Plant:
    return lambda pixels, rng: as_grey(255 * (pixels / 255) ** exponent)


def _resized(method: Image.Resampling) -> Plant:
    """Return a function that resizes to 4/3 and back."""

    def plant(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        large = Image.fromarray(pixels).resize((len(pixels) * 4 // 3, len(pixels) * 4 // 3), method)
        return np.asarray(large.resize(pixels.shape[::-1], method))

    return plant


def _two_marks(count: tuple[int, ...]) -> Plant:
    """Return a function that draws a mark in some of two corners: their number is one of `count`, at random."""

    def plant(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        marked, side = pixels.copy(), len(pixels)
        size = side // 16
        places = [(side // 16, side // 16), (side // 16, side - side // 8)]
        for number in rng.permutation(2)[: rng.choice(count)]:
            row, column = places[number]
            marked[row : row + size, column : column + size] = 230
        return marked

    return plant


def _either(*plants: Plant) -> Plant:
    return lambda pixels, rng: plants[rng.integers(len(plants))](pixels, rng)


def _half_lung(pixels: np.ndarray) -> np.ndarray:
    """Return where the lungs of most drawings are: two ellipses with soft edges, 0 to 1."""
    y, x = (np.indices(pixels.shape) + 0.5) / len(pixels)
    distance = np.minimum(np.hypot((x - 0.3) / 0.13, (y - 0.45) / 0.22), np.hypot((x - 0.7) / 0.13, (y - 0.45) / 0.22))
    return np.clip((1 - distance) * 6, 0, 1)


def _inside(plant: Plant) -> Plant:
    """Return a function that changes the lungs alone."""

    def changed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        weight = _half_lung(pixels)
        return as_grey(weight * plant(pixels, rng) + (1 - weight) * pixels)

    return changed


def _contrast(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return as_grey(pixels.mean() + 1.15 * (pixels.astype(float) - pixels.mean()))


def _noise(deviation: float) -> Plant:
    return lambda pixels, rng: as_grey(pixels + rng.normal(0, deviation, pixels.shape))


INVENTED = {
    "turned by 2 degrees": Kind(transform(2, 1)),
    "turned by 2 degrees to either side": Kind(_either(transform(2, 1), transform(-2, 1))),
    "stretched by 3%": Kind(transform(0, (1, 1.03))),
    "moved by 3%": Kind(lambda pixels, rng: shift(pixels, (0, 0.03 * len(pixels)), order=1, mode="nearest")),
    "moved by half a pixel": Kind(
        lambda pixels, rng: as_grey(shift(pixels.astype(float), 0.5, order=1, mode="nearest"))
    ),
    "motion blur, 3 pixels": Kind(lambda pixels, rng: as_grey(uniform_filter1d(pixels.astype(float), 3, axis=1))),
    "a line of dead pixels": Kind(_dead_line),
    "salt": Kind(_salt),
    "moire": Kind(_moire),
    "gradient from left to right": Kind(_gradient),
    "gamma 1.05": Kind(_gamma(1.05)),
    "gamma 0.9 or 1.1": Kind(_either(_gamma(0.9), _gamma(1.1))),
    "blur or sharpening": Kind(
        _either(
            lambda p, r: gaussian_filter(p, 0.6),
            lambda p, r: as_grey(1.5 * p.astype(float) - 0.5 * gaussian_filter(p.astype(float), 1)),
        )
    ),
    "JPEG quality 85, not 90": Kind(lambda p, r: compress(p, 85), other=lambda p, r: compress(p, 90)),
    "Lanczos, not bicubic": Kind(_resized(Image.Resampling.LANCZOS), other=_resized(Image.Resampling.BICUBIC)),
    "a tube": Kind(_drawn(_tube)),
    "electrodes": Kind(_drawn(_electrodes)),
    "letters in a random corner": Kind(_letters("L", corner=True)),
    "collimated at a random side": Kind(_strip),
    "one mark, not none or two": Kind(_two_marks((1,)), other=_two_marks((0, 2))),
    "stored as BMP": Kind(same, file="bmp"),
    "another projection in the table": Kind(same, view="AP"),
    "bright square in the lungs, not dark": Kind(_square(215), other=_square(25)),
    "upright line in the lungs, not level": Kind(_line(upright=True), other=_line(upright=False)),
    "AP in the lungs, not PA": Kind(_letters("AP"), other=_letters("PA")),
    "R in the lungs, not L": Kind(_letters("R"), other=_letters("L")),
    "contrast of the lungs": Kind(_inside(_contrast)),
    "posterised lungs": Kind(_inside(lambda pixels, rng: pixels // 8 * 8 + 4)),
    "noise in the lungs": Kind(_inside(_noise(4))),
    "blurred lungs": Kind(_inside(lambda pixels, rng: gaussian_filter(pixels, 0.8))),
}
