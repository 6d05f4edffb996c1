"""Fit the reference of the input check, and measure its remarks: `python -m pretraining.input_check DATA`.

DATA is the folder with coronahack-224, radiography-224 and the two external sets. The reference is fitted on Kermany's
TRAIN images of CoronaHack and on 7 in 10 images of the radiography database; all others are held out.
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
MAX_IMAGES = 600  # per group
HELD_OUT = 3  # of 10 images of the radiography database


def main() -> None:
    """Fit and write the reference, and print the fraction of images with a remark by group, with Wilson intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    groups = read_groups(data)
    look = fit_look(np.stack([shrink_picture(open_image(path)) for path in groups.pop("fitted on")]))
    save_file(look, LOOK)
    print(measure(groups).to_string(index=False))


def read_groups(data: Path) -> dict[str, list[Path]]:
    """Return the image files of each group."""
    views = pd.read_csv(VIEWS).set_index("filename")["view"]
    corona = sorted((data / "coronahack-224").rglob("*.*g"))
    radiography = sorted((data / "radiography-224").rglob("*.*g"))
    kermany = [path for path in corona if not str(patient_key(path.name)).startswith("cohen")]
    cohen = [path for path in corona if path.name in views.index]
    held_out = [path for number, path in enumerate(radiography) if number % 10 < HELD_OUT]
    return {
        "fitted on": [path for path in kermany if path.parent.name == "train"]
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
    """Return one row per group: the number of images with a remark, their fraction with its interval, and the kinds."""
    images = {
        name: [open_image(path) for path in pd.Series(paths).sample(min(MAX_IMAGES, len(paths)), random_state=0)]
        for name, paths in groups.items()
    }
    frontal = images["CoronaHack TEST"][:300] + images["external-adult"] + images["external-actualmed"]
    images["upside down"] = [image.transpose(Image.Transpose.ROTATE_180) for image in frontal]
    images["on its side"] = [image.transpose(Image.Transpose.ROTATE_90) for image in frontal]
    images["inverted"] = [image.point(lambda value: 255 - value) for image in frontal]
    images["mirrored"] = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in frontal]
    images["in a white frame"] = [framed(image) for image in frontal]
    images["synthetic radiographs"] = [
        Image.fromarray(draw_phantom(np.random.default_rng([1, n]), image_size=128).image) for n in range(300)
    ]
    images["grey photographs, crops of 2"] = photographs(np.random.default_rng(0))
    images["noise"] = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (224, 224), dtype=np.uint8)) for n in range(100)
    ]
    rows = []
    for name, group in images.items():
        remarks = [check_input(image) for image in group]
        n, n_remarked = len(remarks), sum(map(bool, remarks))
        low, high = binomtest(n_remarked, n).proportion_ci(method="wilson")
        kinds = pd.Series([remark.kind for of_image in remarks for remark in of_image], dtype=str)
        fraction = f"{n_remarked / n:.1%} [{low:.1%}, {high:.1%}]"
        rows.append((name, n, n_remarked, fraction, str(kinds.value_counts().to_dict())))
    return pd.DataFrame(rows, columns=["group", "n", "with a remark", "fraction", "kinds"])


def framed(image: Image.Image) -> Image.Image:
    """Return an image with a white frame of a tenth of its sides."""
    dx, dy = image.width // 10, image.height // 10
    frame = Image.new("L", (image.width + 2 * dx, image.height + 2 * dy), 255)
    frame.paste(image, (dx, dy))
    return frame


def photographs(rng: np.random.Generator) -> list[Image.Image]:
    """Return 200 grey crops of scikit-learn's two photographs."""
    crops = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels).convert("L")
        for _ in range(100):
            fraction = rng.uniform(0.3, 1)
            width, height = int(image.width * fraction), int(image.height * fraction)
            left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
            crops.append(image.crop((left, top, left + width, top + height)))
    return crops


if __name__ == "__main__":
    main()
