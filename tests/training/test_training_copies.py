"""Copies of training images in external data are left out, in whatever way they were changed."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image

from covid_fastai.data.phantom import draw_phantom
from covid_fastai.data.pretraining_overlap import read_manifest, write_manifest
from covid_fastai.training.external import _find_overlap


def test_cropped_and_turned_copies_of_training_images_are_found(tmp_path):
    """The search finds them while the images of the training are there; then the keypoints in the manifest do."""
    images = [Image.fromarray(draw_phantom(np.random.default_rng([3, k]), image_size=224).image) for k in range(8)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    trained = pd.DataFrame({"path": [str(tmp_path / f"{k}.png") for k in range(4)], "patient": list("abcd")})
    trained["split"] = "train"
    manifest = read_manifest(write_manifest(trained, tmp_path / "run.manifest.safetensors"))
    images[0].crop((18, 18, 206, 206)).save(tmp_path / "cropped.png")
    images[1].rotate(6, resample=Image.Resampling.BICUBIC).save(tmp_path / "turned.png")
    names = ["cropped.png", "turned.png", *(f"{k}.png" for k in range(4, 8))]
    rows = pd.DataFrame({"path": [str(tmp_path / name) for name in names], "patient": list("uvwxyz")})
    rows.index += 10
    overlap, hashed_only = _find_overlap(SimpleNamespace(cohort=trained), rows, [manifest])
    assert overlap.tolist() == [True, True, False, False, False, False] and hashed_only == 0
    assert overlap.index.equals(rows.index)
    for path in trained["path"][:2]:
        (tmp_path / path).unlink()
    overlap, hashed_only = _find_overlap(SimpleNamespace(cohort=trained), rows, [manifest])
    assert overlap.tolist() == [True, True, False, False, False, False] and hashed_only == 2
    without = [dataclasses.replace(manifest, keypoints=None)]
    assert not _find_overlap(SimpleNamespace(cohort=trained), rows, without)[0].any()
