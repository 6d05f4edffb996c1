"""BatchNorm of several GPUs: the same weights while it is synchronised, and the plain layers afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from covid_fastai.errors import UsageError
from covid_fastai.model.norms import plain_norms, restore_norms, synchronise_norms


def make() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(
        body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    )
    model(torch.randn(8, 1, 6, 6))
    return model


def test_norms_are_the_same_objects_again_with_what_they_learned():
    model = make()
    layers, parameters = list(model.modules()), list(model.parameters())
    replaced = synchronise_norms(model)
    assert [type(model[0][1]), type(model[1][2])] == [nn.SyncBatchNorm] * 2
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True)), "an optimiser keeps them"
    assert synchronise_norms(model) == [], "nothing is left to replace"
    with torch.no_grad():
        model[0][1].weight += 1
        model[0][1].running_mean += 1
    model.eval()
    found = model(torch.ones(2, 1, 6, 6))
    restore_norms(replaced)
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True)) and not model[0][1].training
    torch.testing.assert_close(model(torch.ones(2, 1, 6, 6)), found)


def test_a_model_that_fastai_left_synchronised_becomes_plain():
    model = make().eval()
    expected, like = model(torch.ones(2, 1, 6, 6)), copy.deepcopy(model).to("meta")
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    plain_norms(synced, like)
    assert [type(synced[0][1]), type(synced[1][2])] == [nn.BatchNorm2d, nn.BatchNorm1d]
    torch.testing.assert_close(synced(torch.ones(2, 1, 6, 6)), expected)


class NormAndActivation(nn.BatchNorm2d):
    """A layer like timm's BatchNormAct2d."""

    def __init__(self, features):
        super().__init__(features)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_a_lost_activation_is_refused():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), NormAndActivation(4)))
    like = copy.deepcopy(model)
    with pytest.raises(UsageError, match="layer 0.1 has lost its activation"):
        plain_norms(nn.SyncBatchNorm.convert_sync_batchnorm(model), like)


@pytest.mark.slow  # needs an extra that [dev] does not have
def test_timms_layers_keep_their_activation():
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), layers.BatchNormAct2d(4)).eval()
    like, x = copy.deepcopy(model), torch.randn(2, 1, 8, 8)
    expected = model(x)
    assert (expected >= 0).all() and synchronise_norms(model)
    assert type(model[1]) is layers.SyncBatchNormAct
    torch.testing.assert_close(model(x), expected)
    plain_norms(model, like)
    assert type(model[1]) is layers.BatchNormAct2d
    torch.testing.assert_close(model(x), expected)
