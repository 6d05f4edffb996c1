"""The recipe: every hyperparameter of the pretraining."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a pretraining.

    Attributes:
        seed: Seed of the choice of patients, the initial weights, the order of the images and their views.
        kermany_fraction: Fraction of Kermany's TRAIN patients to train on; the others remain for evaluation.
        stored_size: Side of the stored images, pixels; larger than a view, which is cropped from it.
        sizes: Side of the views in each epoch, pixels; smaller and faster ones first (progressive resizing).
        batch_size: Images per step.
        learning_rate: Peak learning rate of the one-cycle schedule.
        weight_decay: Weight decay of AdamW; not applied to biases and norms.
        match: Weight of the cosine distance to the teacher's features.
        kermany: Weight of the cross-entropy of Kermany's classes, which come from one hospital.
        radiography: Weight of the cross-entropy of radiography-224's classes, which come from two image banks.
        relate: Weight of the contrastive loss between the features of the student and the teacher in a batch.
        temperature: Temperature of the contrastive loss.
        bfloat16: Whether the body computes in bfloat16, which is twice as fast where the hardware supports it.
        degrees: Maximum rotation of a view in both directions, degrees.
        scale: Minimum and maximum magnification of a view.
        shift: Maximum shift of a view, as a fraction of its side.
        gamma: Standard deviation of the logarithm of gamma.
        contrast: Maximum change of contrast, as a fraction.
    """

    seed: int = 0
    kermany_fraction: float = 0.5
    stored_size: int = 144
    sizes: tuple[int, ...] = (96,) * 10 + (128,) * 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    match: float = 1.0
    kermany: float = 0.3
    radiography: float = 0.3
    relate: float = 0.3
    temperature: float = 0.1
    bfloat16: bool = True
    degrees: float = 10.0
    scale: tuple[float, float] = (0.85, 1.2)
    shift: float = 0.06
    gamma: float = 0.2
    contrast: float = 0.25
