"""Where the model looked, as one picture a file: the radiograph, the heat over it, and below what that is."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from covid_fastai.app.inputs import openable
from covid_fastai.data.images import open_image
from covid_fastai.files import atomic_write, make_folder
from covid_fastai.model.predictor import Predictor
from covid_fastai.notices import NO_DIAGNOSIS, RESEARCH_USE
from covid_fastai.plotting import encode_png
from covid_fastai.saliency.overlay import against_rest, draw_layer, shrink_to_fit

__all__ = ["draw_explained", "write_explained"]

LONGEST = 768  # pixels of the radiograph's longer side
NARROWEST = 360  # pixels of the whole picture, so that the legend can be read
LETTERS = 13  # pixels
BAR = (120, 12)  # pixels of the colour bar
CHUNK = 64  # images whose maps are held at a time


def draw_explained(grey: Image.Image, heat: np.ndarray, *, name: str, probability: float) -> Image.Image:
    """Draw a radiograph with its heat laid over it, and a legend below that says what is seen.

    Args:
        grey: The radiograph, mode `"L"`.
        heat: `(h, w)`, what speaks for the class rather than the others, in logits.
        name: The class.
        probability: Of the class.

    Returns:
        The picture, mode `"RGB"`.
    """
    picture = shrink_to_fit(grey, LONGEST).convert("RGBA")
    picture.alpha_composite(draw_layer(heat, picture.size))
    width = max(NARROWEST, picture.width)
    font = ImageFont.load_default(LETTERS)
    top = max(0.0, float(heat.max()))
    said = (
        f"Class activation map for {name} (probability {probability:.3f}): what spoke for it rather than the other "
        f"classes, in {heat.shape[0]} x {heat.shape[1]} cells. It shows where the model looked, not where disease is. "
        f"{NO_DIAGNOSIS} {RESEARCH_USE}"
    )
    letters = max(20, int((width - 24) / font.getlength("n")))
    text = "\n".join(textwrap.wrap(said, letters))
    high = ImageDraw.Draw(picture).multiline_textbbox((0, 0), text, font=font)[3]
    page = Image.new("RGB", (width, picture.height + int(high) + BAR[1] + 36), "white")
    page.paste(picture.convert("RGB"), ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    place = picture.height + 10
    bar = draw_layer(np.linspace(0, 1, BAR[0])[None], BAR)
    under = Image.new("RGBA", BAR, "black")
    under.alpha_composite(bar)
    draw.text((12, place - 2), "0", font=font, fill="black")
    page.paste(under.convert("RGB"), (26, place))
    draw.text((BAR[0] + 32, place - 2), f"{top:.2f} logits" if top else "no heat", font=font, fill="black")
    draw.multiline_text((12, place + BAR[1] + 10), text, font=font, fill="black")
    return page


def write_explained(predictor: Predictor, paths: list[str], folder: str | Path) -> pd.DataFrame:
    """Predict files, and write a picture for each that has an answer.

    Args:
        predictor: The model.
        paths: The files, or addresses.
        folder: Where the pictures go, made if needed: the name of the file, and a number where two have the same.

    Returns:
        The table of `Predictor.predict`, with `overlay`: the picture's path, empty where there is none.

    Raises:
        ResourceError: The folder cannot be made or written to.
    """
    folder = make_folder(folder)
    tables, taken = [], set()
    for begin in range(0, len(paths), CHUNK):
        some = paths[begin : begin + CHUNK]
        table, maps = predictor.explain([openable(path) for path in some], names=some)
        written = []
        for path, row, one in zip(some, table.to_dict("records"), maps, strict=True):
            if row["status"] != "ok":
                written.append("")
                continue
            wanted = np.array([predictor.classes.index(row["prediction"])])
            heat = against_rest(one[None], wanted)[0]
            options = {"name": row["prediction"], "probability": row[f"p_{row['prediction']}"]}
            target = folder / _free_name(path, taken)
            with atomic_write(target, mode="wb") as file:
                file.write(encode_png(draw_explained(open_image(openable(path)), heat, **options), pixels_only=True))
            written.append(str(target))
        tables.append(table.assign(overlay=written))
    return pd.concat(tables, ignore_index=True) if tables else predictor.predict([]).assign(overlay="")


def _free_name(path: str, taken: set[str]) -> str:
    stem = Path(path).stem.encode("utf-8", "backslashreplace").decode().replace("\\", "_")[:100]
    number = 1
    while (name := f"{stem}{'' if number == 1 else f'-{number}'}.png").lower() in taken:
        number += 1
    taken.add(name.lower())
    return name
