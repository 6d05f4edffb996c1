"""Augmentation: changes of training images, none of validation images."""

from __future__ import annotations

import pytest
import torch
from fastai.torch_core import TensorImageBW
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine, hflip

from covid_fastai.data.augmentation import AUGMENTATIONS, augmentation
from covid_fastai.errors import UsageError
from tests.simulated_device import DEVICE, SimulatedDevice


def batch(n=64, size=33):
    """Images with one bright spot in the left half, opposite to the heart."""
    images = torch.full((n, 1, size, size), 0.2)
    images[:, :, 14:19, 5:10] = 0.9
    return TensorImageBW(images)


def apply(name, images, split_idx=0):
    for transform in augmentation(name):
        images = transform(images, split_idx=split_idx)
    return images


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_shape_type_and_range_do_not_change(name):
    torch.manual_seed(0)
    images = apply(name, batch())
    assert images.shape == (64, 1, 33, 33) and type(images) is TensorImageBW
    assert 0 <= images.min() and images.max() <= 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_validation_images_remain_bit_identical(name):
    images = batch()
    assert torch.equal(apply(name, images.clone(), split_idx=1), images)


def spot_is_left(images):
    return torch.stack([image[0, :, :16].amax() > image[0, :, 17:].amax() for image in images])


def test_standard_never_flips_and_article_flips_half():
    torch.manual_seed(0)
    assert spot_is_left(apply("standard", batch(256))).all()
    flipped = (~spot_is_left(apply("article", batch(256)))).float().mean()
    assert 0.4 < flipped < 0.6


def test_standard_changes_most_images_differently():
    torch.manual_seed(0)
    images = apply("standard", batch(64))
    assert len({image.numpy().tobytes() for image in images}) > 50


def test_padding_is_black():
    torch.manual_seed(0)
    images = apply("article", TensorImageBW(torch.ones(32, 1, 64, 64)))
    assert images[:, 0, 0, 0].max() < 0.9 and images[:, 0, 32, 32].min() > 0.99


def test_article_equals_torchvisions_flip_and_rotation():
    """Oracle: each image equals torchvision's rotation, flipped or not, at some angle within 10 degrees."""
    torch.manual_seed(3)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6), size=65, mode="bicubic").clamp(0, 1)
    images = apply("article", TensorImageBW(smooth.repeat(4, 1, 1, 1)))
    turn = {"translate": [0, 0], "scale": 1.0, "shear": [0.0], "interpolation": InterpolationMode.BILINEAR}
    angles = torch.arange(-10, 10.01, 0.25).tolist()
    oracle = torch.cat([affine(x, angle, **turn) for x in (smooth, hflip(smooth)) for angle in angles])
    inner = (slice(None), slice(None), slice(12, 53), slice(12, 53))
    for image in images:
        best = (oracle[inner] - image[None][inner]).abs().mean(dim=(1, 2, 3)).min()
        assert best < 0.01


def test_the_same_seed_gives_the_same_images():
    torch.manual_seed(5)
    first = apply("standard", batch())
    torch.manual_seed(5)
    assert torch.equal(apply("standard", batch()), first)


@pytest.mark.parametrize(
    ("name", "hint"), [("standrd", "standard"), ("Article", "article"), ("zzz", "none"), (3, "none")]
)
def test_an_unknown_name_raises_with_the_available_names(name, hint):
    with pytest.raises(UsageError, match=hint):
        augmentation(name)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_changes_of_a_batch_wait_for_no_device(name):
    """Each wait would empty the queue of a GPU, once for each of a dozen parameters of a batch."""
    images = TensorImageBW(torch.zeros(8, 1, 32, 32, device=DEVICE))
    with SimulatedDevice() as device:
        apply(name, images)  # copies what is the same for every batch
        device.counts.clear()
        changed = apply(name, images)
    assert changed.device == DEVICE and changed.shape == images.shape
    assert not device.counts["waits"] and not device.counts["from"], device.counts
