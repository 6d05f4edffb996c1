"""ResNets as ONNX graphs: the same outputs as torch and as torch's exporter, for every layer that is written."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fastai.torch_core import no_random
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from covid_fastai.data.dataloaders import empty_dataloaders
from covid_fastai.model import onnx_export
from covid_fastai.model.learner import build_learner
from covid_fastai.model.onnx_export import OPSET, export_onnx
from covid_fastai.model.onnx_resnet import is_plain_resnet, write_resnet


def randomise(model):
    """Give BatchNorm random statistics, weights and biases, since the initial ones could hide an error."""
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.2, 0.2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.eval()


def model_of(arch, *, image_size, seed=0):
    with no_random(seed):
        dls = empty_dataloaders(classes=["a", "b", "c"], image_size=image_size, device="cpu")
        return randomise(build_learner(dls, arch=arch, weights=None).model)


def images(n, size):
    return np.random.default_rng(0).integers(0, 256, (n, 1, size, size), dtype=np.uint8)


def answers(content, x):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"images": x})


def written(body, size):
    """Write a body with two classes; return its answers and those of torch."""
    with no_random(0), torch.no_grad():
        features = body(torch.zeros(1, 1, size, size)).shape[1]
        weight, bias = torch.randn(2, features), torch.randn(2)
        proto = write_resnet(body, weight, bias, image_size=size, mean=0.4, std=0.2, opset=OPSET)
        onnx.checker.check_model(proto, full_check=True)
        x = images(3, size)
        maps = torch.einsum("ck,nkhw->nchw", weight, body((torch.from_numpy(x).float() / 255 - 0.4) / 0.2))
        logits = maps.mean((2, 3)) + bias
    return answers(proto.SerializeToString(), x), [logits.softmax(1), logits, maps]


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize(
    "body",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()),  # without BatchNorm, with a bias
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(4)),  # BatchNorm that cannot be folded
        nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, dilation=2, padding=1), nn.BatchNorm2d(4, eps=0.1)),
        nn.Sequential(nn.Conv2d(1, 4, (3, 5), stride=(2, 1), padding=(0, 2)), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.MaxPool2d((2, 3), dilation=2)),
        nn.Sequential(nn.Conv2d(1, 8, 3), Bottleneck(8, 2), BasicBlock(8, 8)),
    ],
)
def test_every_layer_gives_the_outputs_of_torch(body, size):
    with no_random(3):
        randomise(body)
    assert is_plain_resnet(body)
    for found, wanted in zip(*written(body, size), strict=True):
        assert found.shape == tuple(wanted.shape)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


class OtherBlock(BasicBlock):
    """A user's own block may compute anything."""

    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "layer",
    [
        OtherBlock(4, 4),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.LeakyReLU(),
        nn.Sequential(*[nn.Conv2d(4, 4, 1)] * 2),  # one layer, used twice
    ],
)
def test_anything_else_is_left_to_torchs_exporter(layer):
    assert not is_plain_resnet(nn.Sequential(nn.Conv2d(1, 4, 3), layer))


def test_a_layer_with_a_hook_is_left_to_torchs_exporter():
    layer = nn.ReLU()
    layer.register_forward_hook(lambda module, given, output: output * 2)
    assert not is_plain_resnet(nn.Sequential(layer))
    block = BasicBlock(4, 4)
    block.register_forward_pre_hook(lambda module, given: given)
    assert not is_plain_resnet(nn.Sequential(block))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", ["resnet18", *(pytest.param(arch, marks=pytest.mark.nightly) for arch in ("resnet34", "resnet50"))]
)
def test_torchs_exporter_gives_the_same_outputs(arch, monkeypatch):
    model, options = model_of(arch, image_size=48), dict(classes=["a", "b", "c"], image_size=48, mean=0.4, std=0.2)
    ours = export_onnx(copy.deepcopy(model), **options)
    monkeypatch.setattr(onnx_export, "is_plain_resnet", lambda body: False)
    theirs = export_onnx(model, **options)
    for found, wanted in zip(answers(ours, images(3, 48)), answers(theirs, images(3, 48)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
