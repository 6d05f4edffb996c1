"""Evaluate the packaged lung segmentation: `python -m pretraining.lung_metrics --data DATA`.

It writes and prints `pretraining/lung-masks.csv`, the agreement with the masks of the held-out part, and
`pretraining/lung-quality.csv`, how often each quality is given, on radiographs as they are and on images whose truth is
known by construction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage, stats

from covid_fastai.data.images import open_image, open_square
from covid_fastai.data.lungs import MASK_SIZE, find_lungs
from covid_fastai.files import write_csv
from pretraining.input_check import photographs, read_groups
from pretraining.lung_images import list_masked

__all__ = ["boundary_distances", "compare_masks", "dice", "list_populations", "measure_quality"]

FOLDER = Path(__file__).parent
PER_POPULATION = 300
QUALITIES = ["fine", "cut off", "one lung", "none found", "implausible"]


def main() -> None:
    """Measure the agreement with masks and the quality words, and print them with their intervals."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.lung_metrics", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with lungs-256 and the other data sets")
    parser.add_argument("--seed", type=int, default=0, help="seed of the parts, as in the recipe")
    options = parser.parse_args()
    images = list_masked(options.data, seed=options.seed)
    held_out = images[images["part"] == "held-out"]
    agreement = summarise(compare_masks(held_out))
    write_csv(FOLDER / "lung-masks.csv", agreement)
    print(agreement.to_string(index=False))
    quality = measure_quality(options.data, held_out)
    write_csv(FOLDER / "lung-quality.csv", quality)
    print(quality.to_string(index=False))


def compare_masks(images: pd.DataFrame) -> pd.DataFrame:
    """Compare the segmentation of each image with its mask, at 256 pixels.

    Args:
        images: Rows of `list_masked`.

    Returns:
        The rows with `dice`, `boundary` (mean distance between both boundaries, pixels of 256), `hausdorff95` (95th
        percentile of these distances), `quality` and `ms` (processor time).
    """
    rows = []
    for row in images.to_dict("records"):
        grey = open_square(row["path"], MASK_SIZE)
        with Image.open(row["mask"]) as mask:
            truth = np.asarray(mask.convert("L").resize((MASK_SIZE, MASK_SIZE), Image.Resampling.NEAREST)) > 127
        started = time.process_time()
        lungs = find_lungs(grey)
        milliseconds = (time.process_time() - started) * 1000
        distances = boundary_distances(lungs.mask, truth)
        rows.append(
            {
                "dice": dice(lungs.mask, truth),
                "boundary": distances.mean(),
                "hausdorff95": np.quantile(distances, 0.95),
                "quality": lungs.quality,
                "ms": milliseconds,
            }
        )
    return pd.concat([images.reset_index(drop=True), pd.DataFrame(rows)], axis=1)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Dice coefficient of two masks, 0 to 1; 1 if both are empty."""
    total = first.sum() + second.sum()
    return float(2 * (first & second).sum() / total) if total else 1.0


def boundary_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the distances of the boundary pixels of each mask to the nearest boundary pixel of the other, in pixels.

    If one of the masks is empty, there is one distance: the side of the image.
    """
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    if not all(edge.any() for edge in edges):
        return np.array([float(first.shape[0])])
    far = [ndimage.distance_transform_edt(~edge) for edge in edges]
    return np.concatenate([far[1][edges[0]], far[0][edges[1]]])


def summarise(compared: pd.DataFrame) -> pd.DataFrame:
    """Summarise the agreement by set, with 95% bootstrap intervals over patients."""
    measures = {
        "dice, mean": ("dice", np.mean),
        "dice, 5th percentile": ("dice", lambda values, axis=-1: np.quantile(values, 0.05, axis=axis)),
        "boundary distance, mean (pixels of 256)": ("boundary", np.mean),
        "boundary distance, 95th percentile (pixels of 256)": ("hausdorff95", np.mean),
        "ms of one core, median": ("ms", np.median),
    }
    rows = []
    for bank, of_bank in [("all", compared), *compared.groupby("bank")]:
        for name, (column, statistic) in measures.items():
            values = of_bank[column].to_numpy()
            interval = stats.bootstrap((values,), statistic, method="percentile", rng=0, vectorized=True)
            low, high = interval.confidence_interval
            rows.append((bank, len(values), name, float(statistic(values)), low, high))
    return pd.DataFrame(rows, columns=["held out", "images", "measure", "value", "low", "high"]).round(4)


def list_populations(data: Path) -> dict[str, list[Path]]:
    """Return the image files of each population without masks; those that were trained on are left out if possible."""
    groups = read_groups(data)
    fitted = groups.pop("fitted on")
    kermany = [path for path in fitted if "coronahack" in str(path)]
    return {"CoronaHack TRAIN": kermany, **groups}


def measure_quality(data: Path, held_out: pd.DataFrame) -> pd.DataFrame:
    """Count the qualities by population, and on images whose truth is known by construction."""
    groups = {name: map(open_image, _sample(paths)) for name, paths in list_populations(data).items()}
    groups |= _constructed(held_out)
    groups["grey photographs"] = iter(photographs(np.random.default_rng(0)))
    noise = np.random.default_rng(0).integers(0, 256, (100, 224, 224), dtype=np.uint8)
    groups["noise"] = map(Image.fromarray, noise)
    rows = []
    for name, images in groups.items():
        counts = pd.Series([find_lungs(image).quality for image in images]).value_counts().reindex(QUALITIES)
        counts = counts.fillna(0).astype(int)
        rows.append({"images": name, "n": int(counts.sum()), **counts})
    return pd.DataFrame(rows)


def _sample(paths: list[Path]) -> list[Path]:
    return pd.Series(paths).sample(min(PER_POPULATION, len(paths)), random_state=0).tolist()


def _constructed(held_out: pd.DataFrame) -> dict[str, Iterator[Image.Image]]:
    """Return groups of images whose truth follows from the masks: whole, cut at an edge, halved, without a lung."""
    pairs = []
    for row in held_out.to_dict("records"):
        with Image.open(row["mask"]) as mask:
            pairs.append((open_image(row["path"]), np.asarray(mask.convert("L")) > 127))
    inside = [pair for pair in pairs if not _touches(pair[1])]
    rng = np.random.default_rng(0)
    return {
        "held out: lungs inside the image": (image for image, _ in inside),
        "held out: 10% of the lungs' box cut off": (_cut(image, mask, 0.1, rng) for image, mask in inside),
        "held out: 25% of the lungs' box cut off": (_cut(image, mask, 0.25, rng) for image, mask in inside),
        "held out: half of the image with one lung": (_halve(image, mask, rng) for image, mask in inside),
        "held out: half of the image painted black": (_paint(image, mask, rng) for image, mask in inside),
        "held out: upper half of the lungs": (image.crop(_upper(image, mask)) for image, mask in inside),
        "held out: twice side by side": (_double(image) for image, _ in pairs),
        "held out: below the lungs": (part for image, mask in inside if (part := _below(image, mask)) is not None),
        "held out: upside down": (image.transpose(Image.Transpose.ROTATE_180) for image, _ in pairs),
        "held out: on its side": (image.transpose(Image.Transpose.ROTATE_90) for image, _ in pairs),
        "held out: inverted": (image.point(lambda value: 255 - value) for image, _ in pairs),
    }


def _touches(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _limits(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a mask, pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cut(image: Image.Image, mask: np.ndarray, fraction: float, rng: np.random.Generator) -> Image.Image:
    """Crop an image so that a fraction of the lungs' box lies outside one random edge."""
    left, top, right, bottom = _limits(mask)
    dx, dy = round((right - left) * fraction), round((bottom - top) * fraction)
    width, height = image.size
    crops = [(left + dx, 0, width, height), (0, top + dy, width, height), (0, 0, right - dx, height)]
    return image.crop([*crops, (0, 0, width, bottom - dy)][rng.integers(4)])


def _halve(image: Image.Image, mask: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Crop an image between the lungs, so that one of them remains."""
    left, _, right, _ = _limits(mask)
    third = (right - left) // 3  # the column with the least lung in the middle third
    middle = left + third + int(mask[:, left + third : right - third].sum(axis=0).argmin())
    return image.crop([(0, 0, middle, image.height), (middle, 0, *image.size)][rng.integers(2)])


def _paint(image: Image.Image, mask: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Paint one side of an image black, from its edge to the column between the lungs."""
    left, _, right, _ = _limits(mask)
    painted = np.array(image)
    half = (left + right) // 2
    painted[:, slice(half) if rng.integers(2) else slice(half, None)] = 0
    return Image.fromarray(painted)


def _upper(image: Image.Image, mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the part of an image above the middle of the lungs."""
    _, top, _, bottom = _limits(mask)
    return 0, 0, image.width, (top + bottom) // 2


def _double(image: Image.Image) -> Image.Image:
    """Return two copies of an image beside each other, as figures of journals show."""
    pair = Image.new("L", (2 * image.width, image.height))
    for left in (0, image.width):
        pair.paste(image, (left, 0))
    return pair


def _below(image: Image.Image, mask: np.ndarray) -> Image.Image | None:
    """Return the part of an image below the lungs, if it is at least a seventh of it."""
    bottom = _limits(mask)[3]
    return image.crop((0, bottom, *image.size)) if image.height - bottom > image.height / 7 else None


if __name__ == "__main__":
    main()
