"""Number formats: which one is chosen, that training uses it, and that predictions have 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import no_random

from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.predict import predict
from covid_fastai.model.learner import build_learner
from covid_fastai.model.precision import choose_precision
from covid_fastai.model.schedule import fit

CPU = torch.device("cpu")


@pytest.mark.parametrize(("amx", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu_depends_on_amx(amx, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx} if amx else {}, raising=False)
    assert choose_precision("auto", CPU) == chosen
    assert choose_precision("fp32", CPU) == "fp32" and choose_precision("bf16", CPU) == "bf16"


def test_a_torch_without_capabilities_computes_in_32_bits(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("major", "chosen"), [(7, "fp16"), (8, "bf16")])
def test_auto_on_a_gpu_depends_on_its_generation(major, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert choose_precision("auto", torch.device("cuda:0")) == chosen


@pytest.mark.parametrize(("precision", "device"), [("fp8", "cpu"), ("fp16", "cpu"), ("fp16", "mps"), ("bf16", "mps")])
def test_unsupported_formats_are_refused(precision, device):
    with pytest.raises(UsageError, match=f"precision='{precision}'"):
        choose_precision(precision, torch.device(device))


class Formats(Callback):
    """Record the format of the body's feature maps."""

    def before_fit(self):
        self.learn.seen_formats = getattr(self.learn, "seen_formats", set())
        self.hook = self.model[0].register_forward_hook(
            lambda module, inputs, output: self.learn.seen_formats.add((self.training, output.dtype))
        )

    def after_fit(self):
        self.hook.remove()


def make_learner(cohort, tmp_path, *, precision, callbacks=()):
    with no_random(0):
        dls = build_dataloaders(cohort, image_size=64, batch_size=8, num_workers=0, device="cpu", augmentation="none")
        return build_learner(dls, weights=None, precision=precision, path=tmp_path, callbacks=callbacks)


def test_training_is_in_16_bits_and_predictions_in_32(phantom_cohort, tmp_path):
    learn = make_learner(phantom_cohort, tmp_path, precision="bf16", callbacks=[Formats()])
    fit(learn, frozen_epochs=1, unfrozen_epochs=1)
    assert learn.seen_formats == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert all(value.dtype != torch.bfloat16 for value in learn.model.state_dict().values())
    learn.seen_formats.clear()
    probabilities = predict(learn)["p_Normal"].to_numpy()
    assert learn.seen_formats == {(False, torch.float32)}
    learn.model.eval()
    with torch.no_grad():
        alone = torch.cat([learn.model(x).softmax(1) for x, _ in learn.dls.valid])
    np.testing.assert_allclose(probabilities, alone[:, learn.dls.vocab.o2i["Normal"]].numpy(), atol=1e-6)


def test_both_formats_have_the_same_gradient(phantom_cohort, tmp_path):
    gradients = []
    for precision in ("fp32", "bf16"):
        learn = make_learner(phantom_cohort, tmp_path, precision=precision)
        learn.add_cb(FirstGradient())
        with no_random(0):
            fit(learn, frozen_epochs=0, unfrozen_epochs=1, lr_ratio=1)
        gradients.append(learn.kept_gradient)
    assert torch.corrcoef(torch.stack(gradients))[0, 1] > 0.9
    assert not torch.equal(*gradients)


class FirstGradient(Callback):
    """Keep the gradient of the first step."""

    def before_step(self):
        if not hasattr(self.learn, "kept_gradient"):
            self.learn.kept_gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone()


def test_autocast_is_off_after_an_error(phantom_cohort, tmp_path):
    class Fails(Callback):
        def after_pred(self):
            raise RuntimeError("in the middle of a step")

    learn = make_learner(phantom_cohort, tmp_path, precision="bf16", callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="in the middle of a step"):
        fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert not torch.is_autocast_enabled("cpu")
