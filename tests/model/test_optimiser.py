"""The fused optimiser compared with fastai's."""

from __future__ import annotations

import copy

import pytest
import torch
from fastai.optimizer import Adam
from torch import nn

from covid_fastai.model.optimiser import FUSED_ON, FusedAdam
from tests.simulated_device import DEVICE, SimulatedDevice


def train(make, *, frozen=0, steps=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    model = model.double().to(memory_format=torch.channels_last)  # a difference of rounding shows less
    groups = [list(model[:2].parameters()), list(model[2:].parameters())]
    opt = make(groups, lr=0.01)
    for parameter in model[1].parameters():
        opt.state[parameter]["do_wd"] = False
    opt.set_hyper("lr", slice(0.001, 0.01))
    opt.freeze_to(frozen)
    x, y = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.randint(0, 3, (16,))
    for step in range(steps):
        if step == 3:
            opt.unfreeze()
            opt.set_hyper("mom", 0.8)
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    return model, opt


@pytest.mark.parametrize("frozen", [0, 1], ids=["unfrozen", "the first group frozen for three steps"])
def test_its_steps_are_those_of_fastais_adam(frozen):
    (ours, opt), (oracle, other) = train(FusedAdam, frozen=frozen), train(Adam, frozen=frozen)
    for first, second in zip(ours.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
    for first, second in zip(opt.state_dict()["state"], other.state_dict()["state"], strict=True):
        assert first["step"] == second["step"] and first.keys() == second.keys()
        torch.testing.assert_close(first["sqr_avg"], second["sqr_avg"], rtol=1e-10, atol=1e-15)


def test_its_state_can_be_loaded_into_another_one():
    model, opt = train(FusedAdam)
    again = copy.deepcopy(model)
    resumed = FusedAdam([list(again[:2].parameters()), list(again[2:].parameters())], lr=0.01)
    saved = opt.state_dict()
    resumed.load_state_dict({"state": copy.deepcopy(saved["state"]), "hypers": copy.deepcopy(saved["hypers"])})
    x, y = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for one, optimiser in ((model, opt), (again, resumed)):
        nn.functional.cross_entropy(one(x), y).backward()
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_closures_are_not_supported():
    with pytest.raises(NotImplementedError, match="closure"):
        FusedAdam([nn.Parameter(torch.zeros(1))], lr=1.0).step(lambda: None)


def test_a_step_copies_nothing_to_the_device(monkeypatch):
    monkeypatch.setattr("covid_fastai.model.optimiser.FUSED_ON", (DEVICE.type,))
    parameters = [nn.Parameter(torch.zeros(3, device=DEVICE)) for _ in range(62)]
    opt = FusedAdam([parameters[:30], parameters[30:]], lr=0.01)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with SimulatedDevice() as device:
            opt.step()
        assert not device.counts["to"] and not device.counts["from"]


def test_torch_has_the_fused_kernel_on_every_device_that_uses_it():
    supported = torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    assert {"cpu", "cuda", "mps"} <= set(FUSED_ON) <= set(supported)
