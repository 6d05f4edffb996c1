"""What may be changed in a radiograph without changing what it shows: each transform with its reason."""

from __future__ import annotations

from types import MappingProxyType

from fastai.vision.augment import AffineCoordTfm, RandTransform, aug_transforms

from covid_fastai.options import Augmentation, check_option

__all__ = ["AUGMENTATIONS", "augmentation"]

# Options of fastai's `aug_transforms` by name. In all of them:
# - max_warp=0: the beam and the plate stand square to each other, so a perspective warp shows no possible radiograph;
# - pad_mode="zeros": beyond the exposed field a radiograph is black; mirrored ribs would be anatomy that nobody has.
_COMMON = {"max_warp": 0.0, "pad_mode": "zeros"}
AUGMENTATIONS = MappingProxyType(
    {
        "default": {
            **_COMMON,
            "do_flip": False,  # a flip moves the heart to the right: situs inversus, which one in 10,000 people has
            "max_rotate": 7.0,  # degrees: patients lean and plates tilt by a few, children held by hand a little more
            "min_zoom": 0.95,  # collimation and distance from the tube vary; the zoom's centre is drawn as well, which
            "max_zoom": 1.1,  # shifts the lungs in the frame; more than a tenth would cut off what the finding is in
            "p_affine": 0.75,  # one image in four keeps its geometry, as the validation images do
            "max_lighting": 0.2,  # exposure and each maker's tone curve change brightness and contrast, not the finding
            "p_lighting": 0.75,
        },
        # The article's RandomHorizontalFlip and RandomRotation(10), for comparison with its figures.
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
    """Return the random transforms of that name, for batches `(n, 1, h, w)` of one-channel images in 0 to 1.

    They act on training batches only (and in test-time augmentation, which asks for them): a validation image comes
    out bit for bit as it went in. fastai's own affine transforms resample it even then, which moves pixels by 3e-5.

    Args:
        name: `"default"`, `"article"` or `"none"`; `AUGMENTATIONS` holds their settings and the reasons.

    Returns:
        fastai batch transforms: at most one that moves pixels (a single interpolation) and one that changes their
        brightness and contrast.

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
    """An affine transform that leaves validation images alone."""

    @classmethod
    def of(cls, transform: AffineCoordTfm) -> _TrainingAffine:
        made = cls(mode=transform.mode, pad_mode=transform.pad_mode, align_corners=transform.align_corners)
        made.compose(transform)
        return made

    def before_call(self, b, split_idx):
        super().before_call(b, split_idx)
        self.do = split_idx != 1  # 1 is validation; None, a call by hand, is training
