"""Augmentation of radiographs: transforms that keep the finding, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from fastai.vision.augment import AffineCoordTfm, RandTransform, aug_transforms
from fastai.vision.core import TensorImage

from covid_fastai.data import capture_changes
from covid_fastai.options import Augmentation, check_option

__all__ = ["AUGMENTATIONS", "augmentation"]

# Options of fastai's `aug_transforms` by name, or of `CaptureChanges`. All of fastai's use:
# - max_warp=0: the beam is perpendicular to the detector, so a perspective warp does not occur in radiographs;
# - pad_mode="zeros": a radiograph is black outside the exposed field; reflected ribs would be impossible anatomy.
_COMMON = {"max_warp": 0.0, "pad_mode": "zeros"}
AUGMENTATIONS = MappingProxyType(
    {
        "standard": {
            **_COMMON,
            "do_flip": False,  # a flip moves the heart to the right: situs inversus, about 1 in 10,000 people
            "max_rotate": 7.0,  # degrees: patients and detectors are tilted by a few degrees, children more
            "min_zoom": 0.95,  # collimation and distance from the tube vary; the zoom's centre is random too, which
            "max_zoom": 1.1,  # shifts the lungs in the image; a larger zoom could cut off the finding
            "p_affine": 0.75,  # a quarter of the images keep their geometry, as validation images do
            "max_lighting": 0.2,  # exposure and tone curve change brightness and contrast, not the finding
            "p_lighting": 0.75,
        },
        # Everything that changes between hospitals, and in what each of them sends from year to year: the functions of
        # `capture_changes` give the reasons and the sources. In this order, from the patient to the file.
        "strong": {
            "move": {"p": 0.9, "rotation": 10.0, "zoom": (0.7, 1.25), "aspect": 0.25, "shift": 0.15},
            "change_tone": {"p": 0.8, "gamma": (0.6, 1.6), "contrast": 0.3, "brightness": 0.1},
            "change_sharpness": {"p": 0.5, "blur": 1.0, "sharpen": 1.5},
            "collimate": {"p": 0.3, "depth": 0.12},
            "paint_out": {"p": 0.5, "side": (0.1, 0.4)},
            "add_noise": {"p": 0.5, "std": (0.003, 0.03)},
            "quantise_blocks": {"p": 0.3, "quality": (20.0, 80.0)},
        },
        # The article's RandomHorizontalFlip and RandomRotation(10), for comparison with its results.
        "article": {
            **_COMMON,
            "do_flip": True,
            "max_rotate": 10.0,
            "max_zoom": 1.0,
            "p_affine": 1.0,
            "max_lighting": 0.0,
        },
        "none": None,
    }
)


def augmentation(name: Augmentation = "standard") -> list[RandTransform]:
    """Return the random transforms of an augmentation, for batches `(n, 1, h, w)` of one-channel images in 0 to 1.

    They change training batches only (and images in test-time augmentation); validation images remain bit-identical.
    fastai's own affine transforms resample validation images too, which changes pixels by up to 3e-5.

    Args:
        name: `"standard"`, `"strong"` (also what changes between hospitals: place, zoom, aspect ratio, tone, sharpness,
            collimation, markers, noise, compression), `"article"` or `"none"`; `AUGMENTATIONS` holds their settings.

    Returns:
        fastai batch transforms: at most one geometric transform (a single interpolation), then those of intensity.

    Raises:
        UsageError: There is no augmentation of that name.
    """
    check_option("augmentation", name, Augmentation)
    options = AUGMENTATIONS[name]
    if options is None:
        return []
    if name == "strong":
        return [CaptureChanges(options)]
    transforms = aug_transforms(**options)
    return [_TrainingAffine.of(tfm) if isinstance(tfm, AffineCoordTfm) else tfm for tfm in transforms]


class _TrainingAffine(AffineCoordTfm):
    """An affine transform that does not change validation images."""

    @classmethod
    def of(cls, transform: AffineCoordTfm) -> _TrainingAffine:
        affine = cls(mode=transform.mode, pad_mode=transform.pad_mode, align_corners=transform.align_corners)
        affine.compose(transform)
        return affine

    def before_call(self, b, split_idx):
        super().before_call(b, split_idx)
        self.do = split_idx != 1  # 1: validation; None (a direct call) counts as training

    def _encode(self, x, mode, reverse=False):
        """Return moved images; fastai's own steps serve masks, points and transforms that are not affine."""
        if not isinstance(x, TensorImage) or len(self.coord_fs) or self.size is not None:
            return super()._encode(x, mode, reverse)
        images, theta = x.as_subclass(torch.Tensor), self.mat.as_subclass(torch.Tensor).to(x.dtype)
        options = {"mode": mode, "padding": self.pad_mode, "align_corners": bool(self.align_corners)}
        return capture_changes.sample_affine(images, theta, **options).as_subclass(type(x))


class CaptureChanges(RandTransform):
    """The changes of `capture_changes`, one after another, on training batches.

    Args:
        changes: The options of each function, by its name, in the order of their use.
    """

    order = 30  # between fastai's conversion to floats (10) and the normalisation (99)

    def __init__(self, changes: Mapping[str, Mapping[str, Any]]):
        super().__init__(p=1.0)
        self.changes = changes

    def encodes(self, x: TensorImage):
        """Return the changed images `(n, 1, h, w)`, 0 to 1."""
        images = x.as_subclass(torch.Tensor)
        for name, options in self.changes.items():
            images = getattr(capture_changes, name)(images, **options)
        return images.as_subclass(type(x))
