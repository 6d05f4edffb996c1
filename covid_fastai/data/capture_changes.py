"""Random changes of how a radiograph was framed, exposed and stored, which differ between hospitals; on the device.

Each function changes some images of a batch, each in its own way, without a loop over images. Sources: Zech et al.,
PLoS Med 2018, and DeGrave et al., Nat Mach Intell 2021 (classifiers recognise the hospital by its markers, its framing
and its processing); Zhang et al., IEEE TMI 2020 (such changes in training make models carry over to other hospitals).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch.nn import functional

__all__ = [
    "add_noise",
    "change_sharpness",
    "change_tone",
    "collimate",
    "move",
    "paint_out",
    "quantise_blocks",
    "sample_affine",
]

BLOCK = 8  # pixels; side of JPEG's blocks
# Quantisation table for luminance of ITU-T T.81 (JPEG), table K.1; row by row
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


def move(
    x: torch.Tensor,
    *,
    p: float,
    rotation: float,
    zoom: tuple[float, float],
    aspect: float,
    shift: float,
) -> torch.Tensor:
    """Rotate, zoom, stretch and shift images by one interpolation; what lies outside the image is black.

    Patients are tilted, stand nearer to or farther from the tube, and are placed freely on the detector. Images are
    squashed to squares, so that their aspect ratio depends on the detector and on how they were cropped.

    Args:
        x: `(n, 1, h, w)`, 0 to 1.
        p: Probability of a change.
        rotation: Largest rotation, degrees.
        zoom: Smallest and largest magnification.
        aspect: Largest change of the aspect ratio, as a fraction.
        shift: Largest shift along each side, as a fraction of the side.

    Returns:
        The images, `(n, 1, h, w)`.
    """
    n = len(x)
    angle = _uniform(n, -math.radians(rotation), math.radians(rotation))
    size = _log_uniform(n, *zoom)
    stretch = _log_uniform(n, 1 / (1 + aspect), 1 + aspect).sqrt()
    offset = _uniform(2 * n, -2 * shift, 2 * shift).view(n, 2)  # the grid of a side reaches from -1 to 1
    cos, sin = angle.cos(), angle.sin()
    # the output pixel p shows the input at R p / scale - offset
    rows = [torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)]
    matrix = torch.stack(rows, 1) / torch.stack([size * stretch, size / stretch], 1)[:, None]
    theta = torch.cat([matrix, offset[:, :, None]], 2)
    unchanged = torch.eye(2, 3).expand(n, 2, 3)
    theta = torch.where((torch.rand(n) < p)[:, None, None], theta, unchanged)
    return sample_affine(x, _beside(theta, x))


def sample_affine(
    x: torch.Tensor, theta: torch.Tensor, *, mode: str = "bilinear", padding: str = "zeros", align_corners: bool = False
) -> torch.Tensor:
    """Resample images at affinely moved places, as torch's `affine_grid` and `grid_sample` do.

    The places are the sum of a part that depends on the row and one that depends on the column. `affine_grid`
    multiplies matrices with three columns instead, which takes longer than the interpolation on a CPU.

    Args:
        x: The images, `(n, 1, h, w)`.
        theta: The output place p, -1 to 1, shows the input at theta (p, 1); `(n, 2, 3)`.
        mode: As for `grid_sample`.
        padding: As for `grid_sample`.
        align_corners: As for `grid_sample`.

    Returns:
        The images, `(n, 1, h, w)`.
    """
    places = []
    for length in x.shape[-2:]:
        ends = 1.0 if align_corners else (length - 1) / length
        places.append(torch.linspace(-ends, ends, length, device=x.device, dtype=x.dtype)[None, :, None])
    of_rows = places[0] * theta[:, None, :, 1] + theta[:, None, :, 2]  # (n, h, 2)
    of_columns = places[1] * theta[:, None, :, 0]  # (n, w, 2)
    grid = of_rows[:, :, None] + of_columns[:, None]
    return functional.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=align_corners)


def change_tone(
    x: torch.Tensor, *, p: float, gamma: tuple[float, float], contrast: float, brightness: float
) -> torch.Tensor:
    """Change gamma, contrast and brightness, as exposure, tone curves and window settings do.

    Args:
        x: `(n, 1, h, w)`, 0 to 1.
        p: Probability of a change.
        gamma: Smallest and largest exponent.
        contrast: Largest change of the contrast, as a fraction.
        brightness: Largest change of the brightness, on the scale 0 to 1.

    Returns:
        The images, 0 to 1.
    """
    n = len(x)
    exponent, factor = _log_uniform(n, *gamma), _uniform(n, 1 - contrast, 1 + contrast)
    exponent, factor, offset = (_per_image(v, x) for v in (exponent, factor, _uniform(n, -brightness, brightness)))
    mean = x.mean((1, 2, 3), keepdim=True)
    curved = x.clamp(min=1e-4) ** exponent
    curved = (curved - mean) * factor + mean + offset
    # black stays black: it is outside of the exposed field
    return torch.where(_chosen(x, p) & (x > 0), curved.clamp(0, 1), x)


def change_sharpness(x: torch.Tensor, *, p: float, blur: float, sharpen: float) -> torch.Tensor:
    """Blur or sharpen images, as detectors and the edge enhancement of vendors do.

    Args:
        x: `(n, 1, h, w)`, 0 to 1.
        p: Probability of a change.
        blur: Largest fraction of the fine detail that is removed.
        sharpen: Largest fraction of it that is added.

    Returns:
        The images, 0 to 1.
    """
    # binomial weights 1, 2, 1 along both sides, as sums of slices: several times faster than a convolution on a CPU
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 16
    amount = _per_image(_uniform(len(x), -blur, sharpen), x)
    return torch.where(_chosen(x, p), (x + amount * (x - smooth)).clamp(0, 1), x)


def collimate(x: torch.Tensor, *, p: float, depth: float) -> torch.Tensor:
    """Make the edges of images black, as collimation and the frames of scanned films do.

    Args:
        x: `(n, 1, h, w)`, 0 to 1.
        p: Probability of a change.
        depth: Largest depth of an edge, as a fraction of the side.

    Returns:
        The images, `(n, 1, h, w)`.
    """
    n, (height, width) = len(x), x.shape[-2:]
    left, top, right, bottom = _uniform(4 * n, 0, depth).view(4, n)
    inside = _rectangles(left, top, 1 - right, 1 - bottom, height, width, x)
    return torch.where(_chosen(x, p) & ~inside, torch.zeros_like(x), x)


def paint_out(x: torch.Tensor, *, p: float, side: tuple[float, float]) -> torch.Tensor:
    """Paint a rectangle of each image in one grey (random erasing, Zhong et al., AAAI 2020).

    Markers, letters and tubes identify hospitals and patients; none of them may be needed for an answer.

    Args:
        x: `(n, 1, h, w)`, 0 to 1.
        p: Probability of a rectangle.
        side: Shortest and longest side of the rectangle, as fractions of the image's side.

    Returns:
        The images, `(n, 1, h, w)`.
    """
    n, (height, width) = len(x), x.shape[-2:]
    wide, high = _log_uniform(n, *side), _log_uniform(n, *side)
    left, top = torch.rand(n) * (1 - wide), torch.rand(n) * (1 - high)
    inside = _rectangles(left, top, left + wide, top + high, height, width, x)
    return torch.where(_chosen(x, p) & inside, _per_image(torch.rand(n), x), x)


def add_noise(x: torch.Tensor, *, p: float, std: tuple[float, float]) -> torch.Tensor:
    """Add Gaussian noise, as a low dose does.

    Args:
        x: `(n, 1, h, w)`, 0 to 1.
        p: Probability of noise.
        std: Smallest and largest standard deviation, on the scale 0 to 1.

    Returns:
        The images, 0 to 1.
    """
    noise = torch.randn(x.shape, device=x.device, dtype=x.dtype) * _per_image(_log_uniform(len(x), *std), x)
    return torch.where(_chosen(x, p), (x + noise).clamp(0, 1), x)


def quantise_blocks(x: torch.Tensor, *, p: float, quality: tuple[float, float]) -> torch.Tensor:
    """Quantise the cosine coefficients of blocks of 8 x 8 pixels, as JPEG does (ITU-T T.81).

    Args:
        x: `(n, 1, h, w)`, 0 to 1.
        p: Probability of a change.
        quality: Lowest and highest quality, above 0 to 100, as libjpeg scales the table.

    Returns:
        The images, 0 to 1.
    """
    n, (height, width) = len(x), x.shape[-2:]
    q = _uniform(n, *quality)
    scale = torch.where(q < 50, 50 / q, 2 - q / 50)  # libjpeg's, as a factor
    table = (torch.tensor(LUMINANCE).view(1, BLOCK, BLOCK) * scale[:, None, None]).round().clamp(1, 255)
    padded = functional.pad(x, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    down, across = padded.shape[-2] // BLOCK, padded.shape[-1] // BLOCK
    blocks = padded.view(n, down, BLOCK, across, BLOCK).transpose(2, 3) * 255 - 128
    basis = _cosine_basis(x.device, x.dtype)
    coefficients = basis @ blocks @ basis.T
    table = _beside(table, x)[:, None, None]
    blocks = basis.T @ ((coefficients / table).round() * table) @ basis
    stored = ((blocks.transpose(2, 3).reshape(padded.shape) + 128) / 255)[..., :height, :width]
    return torch.where(_chosen(x, p), stored.clamp(0, 1), x)


@cache
def _cosine_basis(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the orthonormal basis of the discrete cosine transform of type II, `(8, 8)`, a row per frequency."""
    position = torch.arange(BLOCK, dtype=torch.float64)
    basis = torch.cos((2 * position + 1) * position[:, None] * math.pi / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis.to(dtype).to(device)  # MPS has no 64 bits


# Parameters are drawn on the CPU, so that a seed gives the same changes on every device (apart from the noise).


def _beside(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Copy parameters to the device of the images, without waiting until it has done what it was given before."""
    dtype = values.dtype if values.dtype == torch.bool else x.dtype
    return values.to(x.device, dtype, non_blocking=x.device.type != "mps")  # guard: no_wait


def _uniform(n: int, low: float, high: float) -> torch.Tensor:
    return torch.empty(n).uniform_(low, high)


def _log_uniform(n: int, low: float, high: float) -> torch.Tensor:
    return _uniform(n, math.log(low), math.log(high)).exp()


def _per_image(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _beside(values, x).view(-1, 1, 1, 1)


def _chosen(x: torch.Tensor, p: float) -> torch.Tensor:
    """Choose images with a probability; bool `(n, 1, 1, 1)`."""
    return _beside(torch.rand(len(x)) < p, x).view(-1, 1, 1, 1)


def _rectangles(
    left: torch.Tensor,
    top: torch.Tensor,
    right: torch.Tensor,
    bottom: torch.Tensor,
    height: int,
    width: int,
    x: torch.Tensor,
) -> torch.Tensor:
    """Return which pixels' centres lie in the rectangle of each image, bool `(n, 1, h, w)`."""
    left, top, right, bottom = (_beside(side, x)[:, None] for side in (left, top, right, bottom))
    columns = (torch.arange(width, device=x.device) + 0.5) / width
    rows = (torch.arange(height, device=x.device) + 0.5) / height
    across = (columns >= left) & (columns < right)
    down = (rows >= top) & (rows < bottom)
    return (down[:, :, None] & across[:, None, :])[:, None]
