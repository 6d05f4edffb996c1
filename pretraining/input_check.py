"""Make the input guard's usual look, and measure what it notices: `python -m pretraining.input_check DATA`.

DATA is the folder with coronahack-224, radiography-224 and the two external sets. The look is made from Kermany's TRAIN
images of CoronaHack and from 7 in 10 of the radiography database; all else is held out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from safetensors.numpy import save_file
from scipy.stats import binomtest
from sklearn.datasets import load_sample_images

from covid_fastai.data.images import open_image
from covid_fastai.data.input_check import LOOK, check_input, fit_look, shrink_picture
from covid_fastai.data.patients import patient_key
from covid_fastai.data.phantom import draw_phantom

VIEWS = Path(__file__).parents[1] / "covid_fastai" / "data" / "cohen-metadata.csv"
EACH = 600  # images of a group that are tried, at most
HELD_OUT = 3  # in 10 of the radiography database


def main() -> None:
    """Fit, write the file, and print what is noticed in each group with its Wilson interval."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    groups = read_groups(data)
    look = fit_look(np.stack([shrink_picture(open_image(path)) for path in groups.pop("made from")]))
    save_file(look, LOOK)
    print(measure(groups).to_string(index=False))


def read_groups(data: Path) -> dict[str, list[Path]]:
    """Return the image files by group."""
    views = pd.read_csv(VIEWS).set_index("filename")["view"]
    corona = sorted((data / "coronahack-224").rglob("*.*g"))
    radiography = sorted((data / "radiography-224").rglob("*.*g"))
    kermany = [path for path in corona if not str(patient_key(path.name)).startswith("cohen")]
    cohen = [path for path in corona if path.name in views.index]
    held_out = [path for number, path in enumerate(radiography) if number % 10 < HELD_OUT]
    return {
        "made from": [path for path in kermany if path.parent.name == "train"]
        + [path for number, path in enumerate(radiography) if number % 10 >= HELD_OUT],
        "CoronaHack TEST": [path for path in kermany if path.parent.name == "test"],
        "Cohen, frontal": [path for path in cohen if views[path.name] != "L"],
        "Cohen, lateral": [path for path in cohen if views[path.name] == "L"],
        "radiography, COVID-19": [path for path in held_out if path.parent.name == "COVID"],
        "radiography, Normal": [path for path in held_out if path.parent.name == "Normal"],
        "external-adult": sorted((data / "external-adult").rglob("*.*g")),
        "external-actualmed": sorted((data / "external-actualmed").rglob("*.*g")),
    }


def measure(groups: Mapping[str, list[Path]]) -> pd.DataFrame:
    """Return a row a group: how many have a remark, its interval, and the kinds."""
    pictures = {
        name: [open_image(path) for path in pd.Series(paths).sample(min(EACH, len(paths)), random_state=0)]
        for name, paths in groups.items()
    }
    frontal = pictures["CoronaHack TEST"][:300] + pictures["external-adult"] + pictures["external-actualmed"]
    pictures["upside down"] = [image.transpose(Image.Transpose.ROTATE_180) for image in frontal]
    pictures["on its side"] = [image.transpose(Image.Transpose.ROTATE_90) for image in frontal]
    pictures["inverted"] = [image.point(lambda value: 255 - value) for image in frontal]
    pictures["mirrored"] = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in frontal]
    pictures["in a white frame"] = [framed(image) for image in frontal]
    pictures["synthetic radiographs"] = [
        Image.fromarray(draw_phantom(np.random.default_rng([1, n]), image_size=128).image) for n in range(300)
    ]
    pictures["grey photographs, crops of 2"] = photographs(np.random.default_rng(0))
    pictures["noise"] = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (224, 224), dtype=np.uint8)) for n in range(100)
    ]
    rows = []
    for name, images in pictures.items():
        found = [check_input(image) for image in images]
        noticed = sum(map(bool, found))
        low, high = binomtest(noticed, len(found)).proportion_ci(method="wilson")
        kinds = pd.Series([one.kind for each in found for one in each], dtype=str).value_counts().to_dict()
        rows.append((name, len(found), noticed, f"{noticed / len(found):.1%} [{low:.1%}, {high:.1%}]", str(kinds)))
    return pd.DataFrame(rows, columns=["group", "n", "noticed", "fraction", "kinds"])


def framed(image: Image.Image) -> Image.Image:
    """Return a picture with a white frame of a tenth of its side."""
    wide, high = image.width // 10, image.height // 10
    frame = Image.new("L", (image.width + 2 * wide, image.height + 2 * high), 255)
    frame.paste(image, (wide, high))
    return frame


def photographs(rng: np.random.Generator) -> list[Image.Image]:
    """Return 200 grey crops of scikit-learn's two photographs."""
    crops = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels).convert("L")
        for _ in range(100):
            share = rng.uniform(0.3, 1)
            wide, high = int(image.width * share), int(image.height * share)
            left, top = rng.integers(0, image.width - wide + 1), rng.integers(0, image.height - high + 1)
            crops.append(image.crop((left, top, left + wide, top + high)))
    return crops


if __name__ == "__main__":
    main()
