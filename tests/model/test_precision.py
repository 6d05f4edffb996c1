"""Number formats: which one is chosen, that training uses it, and that predictions have 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import no_random

from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.predict import predict
from covid_fastai.model import precision
from covid_fastai.model.learner import build_learner
from covid_fastai.model.precision import (
    PrecisionChoice,
    bf16_instructions,
    choose_precision,
    full_precision,
    measure_bf16,
)
from covid_fastai.model.schedule import fit

CPU = torch.device("cpu")
MEASURED = PrecisionChoice("fp32", "measured")


@pytest.fixture
def measured(monkeypatch):
    """Replace the measurement, and remove oneDNN's limits that the tests may run under."""
    monkeypatch.setattr(precision, "measure_bf16", lambda: MEASURED)
    for name in precision.ONEDNN_LIMITS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("flags", "instructions", "chosen"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "AMX", "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "AVX512-BF16", "bf16"),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, "", "fp32"),
    ],
    ids=["AMX", "AVX512-BF16", "neither"],
)
def test_auto_on_a_cpu_depends_on_its_instructions(flags, instructions, chosen, monkeypatch, measured):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    choice = choose_precision("auto", CPU)
    assert choice != MEASURED and choice.precision == chosen and bf16_instructions() == instructions
    assert choice.reason == (instructions or "neither AMX nor AVX512-BF16")
    assert choose_precision("fp32", CPU).precision == "fp32" and choose_precision("bf16", CPU).precision == "bf16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "default")
    assert choose_precision("auto", CPU) == choice, "no limit"


def test_auto_measures_where_the_flags_do_not_tell(monkeypatch, measured):
    both = {"amx_bf16": True, "avx512_bf16": True}
    for flags in ({}, {"bf16": True}):  # unreadable, or of an ARM processor
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert choose_precision("auto", CPU) == MEASURED
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision("auto", CPU) == MEASURED
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: both, raising=False)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        with monkeypatch.context() as limited:
            limited.setenv(name, "avx2")
            assert choose_precision("auto", CPU) == MEASURED
    torch._C._set_mkldnn_enabled(False)
    try:
        assert choose_precision("auto", CPU) == MEASURED
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert choose_precision("auto", CPU) == ("bf16", "AMX")


@pytest.mark.parametrize(
    ("fp32", "bf16", "gradient", "chosen", "steps"),
    [
        (3.0, 2.0, [1.0, 2.0], "bf16", 8),
        (2.1, 2.0, [1.0, 2.0], "fp32", 8),  # not clearly faster
        (2.0, 5.0, [1.0, 2.0], "fp32", 8),
        (2.0, 9.0, [1.0, 2.0], "fp32", 2),  # emulated: the first pair decides
        (3.0, 1.0, [2.0, 1.0], "fp32", 8),  # fast, but wrong
        (3.0, 1.0, [float("nan"), 2.0], "fp32", 8),
        (0.0, 0.0, [1.0, 2.0], "fp32", 8),  # a clock too coarse to tell
    ],
)
def test_a_measurement_takes_bf16_if_it_is_faster_and_right(fp32, bf16, gradient, chosen, steps, monkeypatch):
    clock, made = [0.0], []

    def step(shorter):
        clock[0] += bf16 if shorter else fp32
        made.append(shorter)
        return torch.tensor(gradient if shorter else [1.0, 2.0])

    monkeypatch.setattr(precision, "_convolution_step", step)
    monkeypatch.setattr(precision.time, "thread_time", lambda: clock[0])
    choice = measure_bf16.__wrapped__()
    assert choice.precision == chosen and len(made) == steps
    assert ("gradient" in choice.reason) == (gradient != [1.0, 2.0])


def test_a_measurement_leaves_threads_and_random_numbers_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    choice = measure_bf16()
    assert choice.precision in ("fp32", "bf16") and choice is measure_bf16()
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    similarity = torch.cosine_similarity(*map(precision._convolution_step, (False, True)), dim=0)
    assert precision.LEAST_SIMILARITY < similarity < 1


@pytest.mark.parametrize(("major", "chosen"), [(7, "fp16"), (8, "bf16")])
def test_auto_on_a_gpu_depends_on_its_generation(major, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert choose_precision("auto", torch.device("cuda:0")).precision == chosen


@pytest.mark.parametrize(("asked", "device"), [("fp8", "cpu"), ("fp16", "cpu"), ("fp16", "mps"), ("bf16", "mps")])
def test_unsupported_formats_are_refused(asked, device):
    with pytest.raises(UsageError, match=f"precision='{asked}'"):
        choose_precision(asked, torch.device(device))


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
    """Few small images: a processor that does not multiply in bf16 takes ten times as long as in fp32."""
    with no_random(0):
        dls = build_dataloaders(
            cohort.groupby(["split", "label"]).head(8),
            image_size=32,
            batch_size=8,
            num_workers=0,
            device="cpu",
            augmentation="none",
        )
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
    for asked in ("fp32", "bf16"):
        learn = make_learner(phantom_cohort, tmp_path, precision=asked)
        learn.add_cb(FirstGradient())
        with no_random(0):
            fit(learn, frozen_epochs=0, unfrozen_epochs=1, lr_ratio=1)
        gradients.append(learn.kept_gradient)
    assert torch.corrcoef(torch.stack(gradients))[0, 1] > 0.9
    assert not torch.equal(*gradients)


class FirstGradient(Callback):
    """Keep the gradient of the first step, which ends the training."""

    def before_step(self):
        self.learn.kept_gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone()
        raise CancelFitException


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
