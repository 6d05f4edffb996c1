"""The recipe: every number that the weights depend on."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """One pretraining.

    Attributes:
        seed: Of the choice of patients, the first weights, the order of the images and their views.
        kermany_share: Share of Kermany's TRAIN patients that may be seen; the others stay for honest evaluation.
        stored_size: Side that images are kept at, pixels; larger than a view, so that a view can be cut from it.
        sizes: Side of the views in each epoch, pixels: small ones first, which cost less (progressive resizing).
        batch_size: Images a step.
        learning_rate: Peak of the one-cycle.
        weight_decay: Of AdamW; not on biases and norms.
        match: Weight of the cosine distance to the teacher's features.
        kermany: Weight of the cross-entropy among Kermany's classes, which come from one hospital.
        radiography: Weight of the cross-entropy among radiography-224's classes, which come from two image banks.
        relate: Weight of the contrastive loss: of the teacher's features of a batch, which are of the same image?
        temperature: Of the contrastive loss.
        bfloat16: Whether the body computes in bfloat16: twice as fast where the processor has it.
        degrees: Largest rotation of a view, either way.
        scale: Smallest and largest magnification of a view.
        shift: Largest shift of a view, share of its side.
        gamma: Standard deviation of the logarithm of gamma.
        contrast: Largest change of contrast, share.
    """

    seed: int = 0
    kermany_share: float = 0.5
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
