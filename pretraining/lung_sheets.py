"""Draw sheets of segmented radiographs to look at: `python -m pretraining.lung_sheets --data DATA --out FOLDER`.

One PNG file per population, with 100 images; the colour of the outline is the quality.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from covid_fastai.data.images import open_square
from covid_fastai.data.lungs import MASK_SIZE, find_lungs
from pretraining.lung_images import list_masked
from pretraining.lung_metrics import list_populations

__all__ = ["draw_sheet"]

COLUMNS, IMAGES = 10, 100
SIDE = 160  # pixels of an image in the sheet
COLOURS = {
    "fine": (0, 220, 120),
    "cut off": (240, 200, 0),
    "one lung": (255, 120, 0),
    "none found": (255, 60, 60),
    "implausible": (255, 0, 200),
}


def main() -> None:
    """Write one sheet per population, and a table of the qualities in it."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.lung_sheets", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with lungs-256 and the other data sets")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the sheets")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    masked = list_masked(options.data, seed=0)
    held_out = [Path(path) for path in masked[masked["part"] == "held-out"]["path"]]
    for name, paths in {"held out": held_out, **list_populations(options.data)}.items():
        chosen = pd.Series(paths).sample(min(IMAGES, len(paths)), random_state=1)
        sheet, qualities = draw_sheet(chosen)
        sheet.save(options.out / f"{name.replace(', ', '-').replace(' ', '-').lower()}.png")
        print(f"{name}: {pd.Series(qualities).value_counts().to_dict()}")


def draw_sheet(paths: Iterable[str | Path]) -> tuple[Image.Image, list[str]]:
    """Return the sheet and the quality of each image, row by row."""
    paths = list(paths)
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(paths) // COLUMNS) * SIDE))
    qualities = []
    for number, path in enumerate(paths):
        grey = open_square(path, MASK_SIZE)
        lungs = find_lungs(grey)
        picture = np.asarray(grey.convert("RGB")).copy()
        for mask in lungs.masks:
            padded = np.pad(mask, 2)
            inner = padded[4:, 2:-2] & padded[:-4, 2:-2] & padded[2:-2, 4:] & padded[2:-2, :-4]
            picture[mask & ~inner] = COLOURS[lungs.quality]
        tile = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        ImageDraw.Draw(tile).text((3, 2), f"{number} {lungs.quality}", fill=COLOURS[lungs.quality])
        sheet.paste(tile, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
        qualities.append(lungs.quality)
    return sheet, qualities


if __name__ == "__main__":
    main()
