"""Draw class activation maps on radiographs, with a colour bar and a caption."""

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

MAX_SIDE = 768  # pixels of the radiograph's longer side
MIN_WIDTH = 360  # pixels of the result, so that the caption is legible
FONT_SIZE = 13  # pixels
MARGIN = 12  # pixels on the left and right of the caption
BAR_SIZE = (120, 12)  # width and height of the colour bar, pixels
BAR_LEFT = 26  # pixels, right of the label 0
CHUNK_SIZE = 64  # images whose maps are in memory at the same time


def draw_explained(grey: Image.Image, saliency: np.ndarray, *, name: str, probability: float) -> Image.Image:
    """Draw a radiograph with an overlay of its class activation map, and a colour bar and a caption below it.

    Args:
        grey: The radiograph, mode `"L"`.
        saliency: The map of the class relative to the other classes (`against_rest`), `(h, w)`, in logits.
        name: The name of the class.
        probability: The probability of the class.

    Returns:
        An image of mode `"RGB"`.
    """
    overlay = shrink_to_fit(grey, MAX_SIDE).convert("RGBA")
    overlay.alpha_composite(draw_layer(saliency, overlay.size))
    width = max(MIN_WIDTH, overlay.width)
    font = ImageFont.load_default(FONT_SIZE)
    maximum = max(0.0, float(saliency.max()))
    caption = (
        f"Class activation map for {name} (probability {probability:.3f}), relative to the other classes, "
        f"{saliency.shape[0]} x {saliency.shape[1]} cells. It shows which regions increased the model's output for "
        f"{name}, not where a disease is. {NO_DIAGNOSIS} {RESEARCH_USE}"
    )
    characters = max(20, int((width - 2 * MARGIN) / font.getlength("n")))  # of a line; "n" has an average width
    text = "\n".join(textwrap.wrap(caption, characters))
    text_height = ImageDraw.Draw(overlay).multiline_textbbox((0, 0), text, font=font)[3]
    result = Image.new("RGB", (width, overlay.height + int(text_height) + BAR_SIZE[1] + 36), "white")
    result.paste(overlay.convert("RGB"), ((width - overlay.width) // 2, 0))
    draw = ImageDraw.Draw(result)
    bar_top = overlay.height + 10
    bar = Image.new("RGBA", BAR_SIZE, "black")
    bar.alpha_composite(draw_layer(np.linspace(0, 1, BAR_SIZE[0])[None], BAR_SIZE))
    result.paste(bar.convert("RGB"), (BAR_LEFT, bar_top))
    draw.text((MARGIN, bar_top - 2), "0", font=font, fill="black")
    label = f"{maximum:.2f} logits" if maximum else "no region increased the output"
    draw.text((BAR_LEFT + BAR_SIZE[0] + 6, bar_top - 2), label, font=font, fill="black")
    draw.multiline_text((MARGIN, bar_top + BAR_SIZE[1] + 10), text, font=font, fill="black")
    return result


def write_explained(predictor: Predictor, paths: list[str], folder: str | Path) -> pd.DataFrame:
    """Predict files, and write an overlay of the class activation map for each file with a prediction.

    Args:
        predictor: The model.
        paths: Paths or URLs of the files.
        folder: The folder of the overlays, created if needed. An overlay has the name of its file, with a number if
            several files have the same name.

    Returns:
        The table of `Predictor.predict` with the column `overlay`: the path of the overlay, empty if there is none.

    Raises:
        ResourceError: The folder cannot be created or written to.
    """
    folder = make_folder(folder)
    tables, used_names = [], set()
    for start in range(0, len(paths), CHUNK_SIZE):
        chunk = paths[start : start + CHUNK_SIZE]
        table, maps = predictor.explain([openable(path) for path in chunk], names=chunk)
        overlays = []
        for path, row, class_maps in zip(chunk, table.to_dict("records"), maps, strict=True):
            if row["status"] != "ok":
                overlays.append("")
                continue
            predicted = np.array([predictor.classes.index(row["prediction"])])
            saliency = against_rest(class_maps[None], predicted)[0]
            options = {"name": row["prediction"], "probability": row[f"p_{row['prediction']}"]}
            overlay = draw_explained(open_image(openable(path)), saliency, **options)
            target = folder / _free_name(path, used_names)
            with atomic_write(target, mode="wb") as file:
                file.write(encode_png(overlay, pixels_only=True))
            overlays.append(str(target))
        tables.append(table.assign(overlay=overlays))
    return pd.concat(tables, ignore_index=True) if tables else predictor.predict([]).assign(overlay="")


def _free_name(path: str, used_names: set[str]) -> str:
    """Return a name for the overlay of a file that no other overlay has, and add it to the used names."""
    stem = Path(path).stem.encode("utf-8", "backslashreplace").decode().replace("\\", "_")[:100]
    number = 1
    while (name := f"{stem}{'' if number == 1 else f'-{number}'}.png").lower() in used_names:
        number += 1
    used_names.add(name.lower())  # in lower case: some file systems do not distinguish case
    return name
