"""The images of the lung segmentation: radiographs with masks in three parts by patient, and radiographs without."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from covid_fastai.data.images import open_image, resize_image
from covid_fastai.files import write_csv
from pretraining.images import IMAGES_FILE, choose_images

__all__ = ["STORED", "list_masked", "list_unmasked", "read_lungs", "read_pixels", "split_lungs"]

STORED = 192  # pixels; views of 128 are cropped from it
HELD_OUT, VALID = 0.25, 0.10  # fractions of the patients of each set
SETS = {"MCUCXR": "montgomery", "CHNCXR": "shenzhen"}


def list_masked(data: Path, *, seed: int) -> pd.DataFrame:
    """List the radiographs with lung masks, and the part of each.

    The part depends only on the seed and on the patient, so that it is the same when images are added. Both sets have
    one image per patient, whose number is in the file's name.

    Args:
        data: The folder with lungs-256.
        seed: Seed of the parts.

    Returns:
        One row per image: `path`, `mask`, `bank` (montgomery or shenzhen), `patient`, `finding` (0 or 1) and `part`
        (train, valid or held-out).
    """
    rows = []
    for path in sorted((data / "lungs-256" / "images").glob("*.jpg")):
        prefix, number, finding = path.stem.split("_")
        patient = f"{prefix}_{number}"
        digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
        rows.append((str(path), str(data / "lungs-256" / "masks" / f"{path.stem}.png"), SETS[prefix], patient, finding))
        rows[-1] += (int.from_bytes(digest[:8], "big") / 2**64,)
    images = pd.DataFrame(rows, columns=["path", "mask", "bank", "patient", "finding", "place"])
    place = images["place"]
    images["part"] = np.select([place < HELD_OUT, place < HELD_OUT + VALID], ["held-out", "valid"], "train")
    assert images.groupby("patient")["part"].nunique().eq(1).all()
    return images.drop(columns="place")


def list_unmasked(data: Path, out: Path, *, seed: int, per_bank: int) -> pd.DataFrame:
    """List radiographs without masks for the self-training: the same ones that the package's weights were trained on.

    The splits of the package exclude these from every evaluation already, by the manifest of the weights.

    Args:
        data: The folder with coronahack-224 and radiography-224.
        out: The folder of this pretraining.
        seed: Seed of the choice.
        per_bank: Images per class of each bank.

    Returns:
        One row per image: `path`, `bank` (kermany or radiography) and `label`.
    """
    file = out / IMAGES_FILE
    images = pd.read_csv(file) if file.exists() else choose_images(data, out, kermany_fraction=0.5, seed=0)
    groups = [rows.sample(min(per_bank, len(rows)), random_state=seed) for _, rows in images.groupby(["bank", "label"])]
    chosen = pd.concat(groups, ignore_index=True)[["path", "bank", "label"]]
    write_csv(out / "unmasked.csv", chosen)
    return chosen


def read_pixels(paths: pd.Series) -> np.ndarray:
    """Read images as `(n, 192, 192)` uint8."""
    return np.stack([np.asarray(resize_image(open_image(path), STORED)) for path in paths])


def read_lungs(masks: pd.Series) -> np.ndarray:
    """Read masks as `(n, 2, 192, 192)` uint8: 255 in the lung on the left and on the right side of the image."""
    stored = []
    for path in masks:
        with Image.open(path) as mask:
            lungs = split_lungs(np.asarray(mask.convert("L")) > 127)
        images = [Image.fromarray(lung.astype(np.uint8) * 255) for lung in lungs]
        stored.append(np.stack([np.asarray(resize_image(image, STORED)) for image in images]))
    return np.stack(stored)


def split_lungs(mask: np.ndarray) -> np.ndarray:
    """Split a mask of both lungs, `(h, w)` bool, into the lung on the left and on the right side of the image.

    The two largest connected components are the lungs; smaller ones belong to the nearer of them.

    Returns:
        `(2, h, w)` bool.
    """
    components, n = ndimage.label(mask)
    if n < 2:
        raise ValueError(f"The mask has {n} connected components; two lungs were expected.")
    sizes = ndimage.sum_labels(mask, components, np.arange(1, n + 1))
    largest = np.argsort(sizes)[::-1][:2] + 1
    distances = np.stack([ndimage.distance_transform_edt(components != number) for number in largest])
    nearer = distances.argmin(axis=0)
    lungs = np.stack([mask & (nearer == 0), mask & (nearer == 1)])
    columns = [np.nonzero(lung)[1].mean() for lung in lungs]
    return lungs[np.argsort(columns)]
