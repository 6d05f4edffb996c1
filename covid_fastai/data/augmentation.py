"""Augmentation of radiographs: transforms that keep the finding, each with its reason."""

from __future__ import annotations

from types import MappingProxyType

from fastai.vision.augment import AffineCoordTfm, RandTransform, aug_transforms

from covid_fastai.options import Augmentation, check_option

__all__ = ["AUGMENTATIONS", "augmentation"]

# Options of fastai's `aug_transforms` by name. All of them use:
# - max_warp=0: the beam is perpendicular to the detector, so a perspective warp does not occur in radiographs;
# - pad_mode="zeros": a radiograph is black outside the exposed field; reflected ribs would be impossible anatomy.
_COMMON = {"max_warp": 0.0, "pad_mode": "zeros"}
AUGMENTATIONS = MappingProxyType(
    {
        "default": {
            **_COMMON,
            "do_flip": False,  # a flip moves the heart to the right: situs inversus, about 1 in 10,000 people
            "max_rotate": 7.0,  # degrees: patients and detectors are tilted by a few degrees, children more
            "min_zoom": 0.95,  # collimation and distance from the tube vary; the zoom's centre is random too, which
            "max_zoom": 1.1,  # shifts the lungs in the image; a larger zoom could cut off the finding
            "p_affine": 0.75,  # a quarter of the images keep their geometry, as validation images do
            "max_lighting": 0.2,  # exposure and tone curve change brightness and contrast, not the finding
            "p_lighting": 0.75,
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


def augmentation(name: Augmentation = "default") -> list[RandTransform]:
    """Return the random transforms of an augmentation, for batches `(n, 1, h, w)` of one-channel images in 0 to 1.

    They change training batches only (and images in test-time augmentation); validation images remain bit-identical.
    fastai's own affine transforms resample validation images too, which changes pixels by up to 3e-5.

    Args:
        name: `"default"`, `"article"` or `"none"`; `AUGMENTATIONS` holds their settings.

    Returns:
        fastai batch transforms: at most one geometric transform (a single interpolation) and one of brightness and
        contrast.

    Raises:
        UsageError: There is no augmentation of that name.
    """
    check_option("augmentation", name, Augmentation)
    options = AUGMENTATIONS[name]
    if options is None:
        return []
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
