"""Draw class activation maps and the outline of the lungs on radiographs, with a colour bar and a caption."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from covid_fastai.app.inputs import openable
from covid_fastai.data.images import open_image
from covid_fastai.data.lungs import Lungs, find_lungs
from covid_fastai.data.regions import FRAME, Crop, crop_of_row
from covid_fastai.files import atomic_write, make_folder
from covid_fastai.model.predictor import Predictor
from covid_fastai.notices import NO_DIAGNOSIS, RESEARCH_USE
from covid_fastai.plotting import encode_png
from covid_fastai.saliency.overlay import (
    against_rest,
    area_mean,
    crop_pixels,
    draw_layer,
    draw_legend,
    draw_outline,
    fraction_inside,
    shrink_to_fit,
)

__all__ = ["area_in_crop", "describe_lungs_of_map", "draw_explained", "write_explained"]

MAX_SIDE = 768  # pixels of the radiograph's longer side
MIN_WIDTH = 360  # pixels of the result, so that the caption is legible
FONT_SIZE = 13  # pixels
MARGIN = 12  # pixels on the left and right of the caption
BAR_SIZE = (120, 12)  # width and height of the colour bar, pixels
BAR_LEFT = 26  # pixels, right of the label 0
CHUNK_SIZE = 64  # images whose maps are in memory at the same time


def draw_explained(
    grey: Image.Image, saliency: np.ndarray, *, name: str, probability: float, crop: Crop = FRAME, purpose: str = ""
) -> Image.Image:
    """Draw a radiograph with an overlay of its class activation map and the outline of its lungs, and a caption below.

    The caption has a colour bar, and the fraction of the map that lies in the lungs, or why they were not found.

    Args:
        grey: The radiograph, mode `"L"`.
        saliency: The map of the class relative to the other classes (`against_rest`), `(h, w)`, in logits.
        name: The name of the class.
        probability: The probability of the class.
        crop: The part of the radiograph that the model saw, and that the map covers; it has a white frame.
        purpose: The population and the question that the model was made for; empty if not stated.

    Returns:
        An image of mode `"RGB"`.
    """
    overlay = shrink_to_fit(grey, MAX_SIDE).convert("RGBA")
    overlay.alpha_composite(draw_layer(saliency, overlay.size, crop=crop[:4]))
    if not crop.is_whole:
        left, top, right, bottom = crop_pixels(crop[:4], overlay.size)
        ImageDraw.Draw(overlay).rectangle((left, top, right - 1, bottom - 1), outline="white")
    lungs = find_lungs(grey)
    if lungs.usable:
        overlay.alpha_composite(draw_outline(lungs.mask, overlay.size))
    width = max(MIN_WIDTH, overlay.width)
    font = ImageFont.load_default(FONT_SIZE)
    maximum = max(0.0, float(saliency.max()))
    caption = (
        f"Class activation map for {name} (probability {probability:.3f}), relative to the other classes, "
        f"{saliency.shape[0]} x {saliency.shape[1]} cells. It shows which regions increased the model's output for "
        f"{name}, not where a disease is. {describe_lungs_of_map(lungs, saliency, crop)} {NO_DIAGNOSIS} {RESEARCH_USE}"
        + (f" This model is for: {purpose}" if purpose else "")
    )
    characters = max(20, int((width - 2 * MARGIN) / font.getlength("n")))  # of a line; "n" has an average width
    text = "\n".join(textwrap.wrap(caption, characters))
    text_height = ImageDraw.Draw(overlay).multiline_textbbox((0, 0), text, font=font)[3]
    result = Image.new("RGB", (width, overlay.height + int(text_height) + BAR_SIZE[1] + 36), "white")
    result.paste(overlay.convert("RGB"), ((width - overlay.width) // 2, 0))
    draw = ImageDraw.Draw(result)
    bar_top = overlay.height + 10
    result.paste(draw_legend(BAR_SIZE), (BAR_LEFT, bar_top))
    draw.text((MARGIN, bar_top - 2), "0", font=font, fill="black")
    label = f"{maximum:.2f} logits" if maximum else "no region increased the output"
    draw.text((BAR_LEFT + BAR_SIZE[0] + 6, bar_top - 2), label, font=font, fill="black")
    draw.multiline_text((MARGIN, bar_top + BAR_SIZE[1] + 10), text, font=font, fill="black")
    return result


def describe_lungs_of_map(lungs: Lungs, saliency: np.ndarray, crop: Crop = FRAME) -> str:
    """Say what the outline is, and how much of a map lies in it, or why there is none.

    Args:
        lungs: The lungs of the image.
        saliency: The map of one class relative to the other classes, `(h, w)`.
        crop: The part of the image that the model saw, and that the map covers.

    Returns:
        One or two sentences.
    """
    if not lungs.usable:
        return f"There is no outline of the lungs: {lungs.remark}"
    seen = "of the image" if crop.is_whole else "of what the model saw, the part in the white frame,"
    text = f"Thin line: the lungs, as segmented; they cover {area_in_crop(lungs, crop):.0%} {seen}"
    fraction = fraction_inside(saliency, lungs.mask, crop[:4])
    text = f"{text.removesuffix(',')}." if fraction is None else f"{text} and hold {fraction:.0%} of the map."
    return f"{text} {lungs.remark}".strip()


def area_in_crop(lungs: Lungs, crop: Crop) -> float:
    """Return the fraction of a crop that the lungs cover."""
    return lungs.area if crop.is_whole else float(area_mean(lungs.mask, (256, 256), crop[:4]).mean())


def write_explained(predictor: Predictor, paths: list[str], folder: str | Path) -> pd.DataFrame:
    """Predict files, and write an overlay of the class activation map for each file with a prediction.

    Args:
        predictor: The model.
        paths: Paths or URLs of the files.
        folder: The folder of the overlays, created if needed. An overlay has the name of its file, with a number if
            several files have the same name.

    Returns:
        The table of `Predictor.predict` with the column `overlay`: the path of the overlay, empty if there is
        none, or if the class is withheld.

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
            if row["status"] != "ok" or row["withheld"]:  # an overlay would name the class
                overlays.append("")
                continue
            predicted = np.array([predictor.classes.index(row["prediction"])])
            saliency = against_rest(class_maps[None], predicted)[0]
            options = {"name": row["prediction"], "probability": row[f"p_{row['prediction']}"]}
            options |= {"crop": crop_of_row(row), "purpose": predictor.findings.purpose}
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
