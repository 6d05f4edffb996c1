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
from covid_fastai.model.precision import bf16_instructions, choose_precision, full_precision
from covid_fastai.model.schedule import fit

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "instructions", "chosen"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "AMX", "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "AVX512-BF16", "bf16"),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, "", "fp32"),
        ({}, "", "fp32"),
    ],
    ids=["AMX", "AVX512-BF16", "neither", "unknown"],
)
def test_auto_on_a_cpu_depends_on_its_instructions(flags, instructions, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert choose_precision("auto", CPU) == chosen and bf16_instructions() == instructions
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


SWITCHES = {
    "cuda": torch.backends.cuda.matmul,
    "cudnn": torch.backends.cudnn.conv,
    "cpu": torch.backends.mkldnn.matmul,
    "cpu's convolutions": torch.backends.mkldnn.conv,
}


@pytest.fixture
def shorter(monkeypatch):
    """Ask torch for TF32 on GPUs and bfloat16 on the CPU, as a user may; cuDNN's default is TF32."""
    asked = {"cuda": "tf32", "cudnn": "tf32", "cpu": "bf16", "cpu's convolutions": "bf16"}
    before = {name: switch.fp32_precision for name, switch in SWITCHES.items()}
    assert before["cudnn"] == "tf32"
    for name, value in asked.items():
        SWITCHES[name].fp32_precision = value
    yield asked
    for name, value in before.items():
        SWITCHES[name].fp32_precision = value


def formats() -> dict[str, str]:
    return {name: switch.fp32_precision for name, switch in SWITCHES.items()}


def test_32_bits_are_32_bits_in_predictions_only(shorter, phantom_cohort, tmp_path):
    learn, seen = make_learner(phantom_cohort, tmp_path, precision="fp32"), []
    learn.model[0].register_forward_hook(lambda *_: seen.append(set(formats().values())))
    fit(learn, frozen_epochs=0, unfrozen_epochs=1)
    assert all(found == {"tf32", "bf16"} for found in seen), "a training multiplies as torch is set"
    exact = [{"ieee"}]
    with learn.no_bar(), learn.no_logging():
        for ask in (lambda: predict(learn), lambda: predict(learn, tta=True), learn.get_preds, learn.validate):
            seen.clear()
            ask()
            assert seen and exact * len(seen) == seen and formats() == shorter


def test_the_formats_are_restored_after_an_error(shorter, phantom_cohort, tmp_path):
    learn = make_learner(phantom_cohort, tmp_path, precision="fp32")

    def fail(*_):
        raise RuntimeError("in the middle of a prediction")

    learn.model[0].register_forward_hook(fail)
    for ask in (lambda: predict(learn), learn.get_preds):
        with pytest.raises(RuntimeError, match="in the middle"):
            ask()
        assert formats() == shorter
    with pytest.raises(KeyError), full_precision():
        assert set(formats().values()) == {"ieee"}
        raise KeyError
    assert formats() == shorter
