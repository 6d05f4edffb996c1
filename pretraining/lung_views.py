"""Random views of radiographs with their lung masks: geometry, exposure, collimation, and pathology-like occlusions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Ranges", "draw_views"]


@dataclass(frozen=True)
class Ranges:
    """The ranges of the random views.

    Attributes:
        degrees: Maximum rotation in both directions, degrees.
        log_zoom: Maximum of the absolute logarithm of the magnification; 0.4 is 0.67 to 1.49.
        log_aspect: Maximum of the absolute logarithm of width divided by height; images are squashed to a square.
        shear: Maximum shear, as a fraction of the side.
        shift: Maximum shift, as a fraction of the side.
        bend: Standard deviation of a smooth displacement, as a fraction of the side.
        log_gamma: Maximum of the absolute logarithm of gamma; 0.7 is 0.5 to 2.
        saturated: Fraction of the images with burned-out highlights, as in very bright bedside radiographs.
        opacities: Fraction of the images with patches of the density of soft tissue in the lungs.
        effusions: Fraction of the images with a lower part of one lung at the density of soft tissue.
        collimated: Fraction of the images with a dark, grey or white margin.
        markers: Fraction of the images with bright or dark rectangles and lines (letters, tubes, electrodes).
        noise: Maximum standard deviation of the noise, as a fraction of the range of intensities.
        halved: Fraction of the images of which one half is seen, so that one lung is missing.
        negatives: Fraction of the images without a lung to find: turned by 90 or 180 degrees, inverted, or a pattern.
    """

    degrees: float = 20.0
    log_zoom: float = 0.4
    log_aspect: float = 0.25
    shear: float = 0.1
    shift: float = 0.15
    bend: float = 0.012
    log_gamma: float = 0.7
    saturated: float = 0.2
    opacities: float = 0.4
    effusions: float = 0.15
    collimated: float = 0.25
    markers: float = 0.3
    noise: float = 0.06
    halved: float = 0.0
    negatives: float = 0.0


def draw_views(
    pixels: np.ndarray, lungs: np.ndarray, size: int, ranges: Ranges, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one random view of each image, and its lungs.

    Args:
        pixels: `(n, h, w)` uint8.
        lungs: `(n, 2, h, w)` uint8, probability times 255 of the lung on the left and on the right side of the image.
        size: Side of the views, pixels.
        ranges: The ranges of the views.
        generator: The random generator.

    Returns:
        The images, `(n, 1, size, size)` from 0 to 1, and the lungs, `(n, 2, size, size)` from 0 to 1.
    """
    draw = _Draw(len(pixels), generator)
    both = torch.from_numpy(np.concatenate([pixels[:, None], lungs], axis=1)).float().div_(255)
    both, flipped = _move(both, size, ranges, draw)
    image, target = both[:, :1], both[:, 1:]
    target = torch.where(flipped, target.flip(1), target)
    image = _fill_lungs(image, target, ranges, draw)
    image = _expose(image, ranges, draw)
    image = _mark(image, ranges, draw)
    image, visible = _collimate(image, ranges, draw)
    image, target = _spoil(image, target * visible, ranges, draw)
    image = image + torch.randn(image.shape, generator=generator) * draw.uniform(0, ranges.noise)
    return image.clamp(0, 1), target


class _Draw:
    """Random numbers of a batch, shaped `(n, 1, 1, 1)` so that each image has its own."""

    def __init__(self, n: int, generator: torch.Generator):
        self.n, self.generator = n, generator

    def uniform(self, low: float, high: float) -> torch.Tensor:
        return torch.empty(self.n, 1, 1, 1).uniform_(low, high, generator=self.generator)

    def chance(self, fraction: float) -> torch.Tensor:
        return self.uniform(0, 1) < fraction

    def smooth(self, channels: int, cells: int, size: int) -> torch.Tensor:
        """Return smooth noise of standard deviation about 1, `(n, channels, size, size)`."""
        coarse = torch.randn(self.n, channels, cells, cells, generator=self.generator)
        return functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)


def _coordinates(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y of the pixels' centres, from -1 to 1, which broadcast to `(1, 1, size, size)`."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    return line.view(1, 1, 1, size), line.view(1, 1, size, 1)


def _move(both: torch.Tensor, size: int, ranges: Ranges, draw: _Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, zoom, stretch, shear, shift, bend and flip images with their masks; return them and who was flipped."""
    angle = torch.deg2rad(draw.uniform(-ranges.degrees, ranges.degrees)) * draw.uniform(0, 1)  # most are nearly upright
    zoom = torch.exp(draw.uniform(-ranges.log_zoom, ranges.log_zoom))
    aspect = torch.exp(draw.uniform(-ranges.log_aspect, ranges.log_aspect) / 2)
    shear = draw.uniform(-ranges.shear, ranges.shear)
    flipped = draw.chance(0.5)
    sign = torch.where(flipped, -1.0, 1.0)
    x, y = _coordinates(size)
    bend = draw.smooth(2, 5, size) * 2 * ranges.bend
    x, y = x + bend[:, :1], y + bend[:, 1:]
    x, y = x + shear * y, y
    x, y = torch.cos(angle) * x - torch.sin(angle) * y, torch.sin(angle) * x + torch.cos(angle) * y
    x = sign * x / (zoom * aspect) + 2 * draw.uniform(-ranges.shift, ranges.shift)
    y = y * aspect / zoom + 2 * draw.uniform(-ranges.shift, ranges.shift)
    half = draw.chance(ranges.halved)
    x = torch.where(half, x / 2 + torch.where(draw.chance(0.5), 0.5, -0.5), x)
    grid = torch.cat([x, y], 1).permute(0, 2, 3, 1)
    moved = functional.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Outside the image there is air, a repeated edge, or a grey level; a lung is never repeated.
    edge = functional.grid_sample(both[:, :1], grid, mode="bilinear", padding_mode="border", align_corners=False)
    level = torch.where(draw.chance(0.5), torch.zeros(()), draw.uniform(0, 1))
    outside = (x.abs() > 1) | (y.abs() > 1)
    other = torch.where(draw.chance(0.3), edge, level.expand_as(edge))
    return torch.cat([torch.where(outside, other, edge), moved[:, 1:]], 1), flipped


def _fill_lungs(image: torch.Tensor, lungs: torch.Tensor, ranges: Ranges, draw: _Draw) -> torch.Tensor:
    """Paint patches of the density of soft tissue into the lungs; the mask remains as it is."""
    size = image.shape[-1]
    inside = functional.avg_pool2d(lungs.sum(1, keepdim=True).clamp(0, 1), 5, stride=1, padding=2)
    tissue = torch.quantile(image.flatten(1), 0.8, dim=1).view(-1, 1, 1, 1) * draw.uniform(0.8, 1.1)
    x, y = _coordinates(size)
    cover = torch.zeros_like(image)
    for _ in range(3):
        width, height = draw.uniform(0.06, 0.4), draw.uniform(0.06, 0.4)
        blob = ((x - draw.uniform(-0.8, 0.8)) / width) ** 2 + ((y - draw.uniform(-0.8, 0.8)) / height) ** 2
        cover = torch.maximum(cover, torch.exp(-blob) * draw.uniform(0.2, 1))
    cover = cover * (1 + 0.4 * draw.smooth(1, 12, size)) * draw.chance(ranges.opacities)
    level = draw.uniform(-0.3, 0.8) + draw.uniform(-0.3, 0.3) * x + 0.3 * x**2  # the meniscus of an effusion
    side = torch.where(draw.chance(0.5), lungs[:, :1], lungs[:, 1:])
    fluid = torch.sigmoid((y - level) * 25) * side * draw.uniform(0.6, 1) * draw.chance(ranges.effusions)
    cover = (torch.maximum(cover * inside, fluid)).clamp(0, 0.95)
    return image * (1 - cover) + tissue.clamp(0, 1) * cover


def _expose(image: torch.Tensor, ranges: Ranges, draw: _Draw) -> torch.Tensor:
    """Change gamma, contrast and brightness, add an uneven exposure, burn out highlights, and blur."""
    image = image.clamp(1e-3, 1) ** torch.exp(draw.uniform(-ranges.log_gamma, ranges.log_gamma))
    image = image + 0.12 * draw.smooth(1, 3, image.shape[-1]) * draw.chance(0.5)
    burned = image * draw.uniform(1.05, 1.5) + draw.uniform(0, 0.15)
    image = torch.where(draw.chance(ranges.saturated), burned, image)
    image = image.clamp(0, 1) * draw.uniform(0.5, 1) + draw.uniform(-0.05, 0.3)
    soft = functional.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    amount = draw.uniform(-0.7, 1)  # below 0 is sharpening, as of an unsharp mask
    return (image * (1 - amount) + soft * amount).clamp(0, 1)


def _mark(image: torch.Tensor, ranges: Ranges, draw: _Draw) -> torch.Tensor:
    """Draw rectangles and straight lines: letters, electrodes, tubes."""
    x, y = _coordinates(image.shape[-1])
    for _ in range(2):
        box = (x - draw.uniform(-1, 1)).abs() < draw.uniform(0.02, 0.2)
        box = box & ((y - draw.uniform(-1, 1)).abs() < draw.uniform(0.02, 0.15)) & draw.chance(ranges.markers)
        image = torch.where(box, torch.where(draw.chance(0.6), draw.uniform(0.8, 1), draw.uniform(0, 1)), image)
        angle = draw.uniform(0, torch.pi)
        distance = (torch.cos(angle) * x + torch.sin(angle) * y - draw.uniform(-0.7, 0.7)).abs()
        line = (distance < draw.uniform(0.008, 0.03)) & draw.chance(ranges.markers / 2)
        image = torch.where(line, (image + draw.uniform(0.1, 0.5)).clamp(0, 1), image)
    return image


def _collimate(image: torch.Tensor, ranges: Ranges, draw: _Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Cover the margin with one level; return the image, and where it is visible."""
    x, y = _coordinates(image.shape[-1])
    angle = torch.deg2rad(draw.uniform(-6, 6))
    across, down = torch.cos(angle) * x - torch.sin(angle) * y, torch.sin(angle) * x + torch.cos(angle) * y
    left, right, top, bottom = (draw.uniform(0.7, 1.3) for _ in range(4))
    visible = (across > -left) & (across < right) & (down > -top) & (down < bottom)
    visible = visible | ~draw.chance(ranges.collimated)
    level = torch.where(draw.chance(0.7), draw.uniform(0, 0.1), draw.uniform(0, 1))
    return torch.where(visible, image, level.expand_as(image)), visible.float()


def _spoil(image: torch.Tensor, lungs: torch.Tensor, ranges: Ranges, draw: _Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace some images by what is no upright radiograph, which has no lung to find."""
    spoilt, kind = draw.chance(ranges.negatives), draw.uniform(0, 5)
    pattern = 0.5 + 0.25 * draw.smooth(1, 9, image.shape[-1]) + 0.15 * draw.smooth(1, 40, image.shape[-1])
    others = [image.rot90(1, (2, 3)), image.rot90(2, (2, 3)), image.rot90(3, (2, 3)), 1 - image, pattern]
    for number, other in enumerate(others):
        chosen = spoilt & (kind >= number) & (kind < number + 1)
        image = torch.where(chosen, other, image)
    return image, torch.where(spoilt, torch.zeros(()), lungs)
