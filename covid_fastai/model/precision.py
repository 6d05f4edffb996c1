"""The number format of training: 16 bits where the hardware is faster with them; 32 bits for every prediction."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision
from torch import nn

from covid_fastai.errors import UsageError
from covid_fastai.options import Precision, check_option

__all__ = [
    "FullPrecision",
    "PrecisionChoice",
    "TrainingPrecision",
    "bf16_instructions",
    "choose_precision",
    "full_precision",
    "measure_bf16",
    "precision_callbacks",
]

SHORTER = ("tf32", "bf16")  # formats in which torch may multiply 32-bit numbers
BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # of an x86 processor, as torch names them
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment variables that oneDNN reads
ONEDNN_UNLIMITED = {"", "ALL", "DEFAULT"}
MEASURED_PAIRS = 4  # the first also prepares oneDNN
CLEARLY_FASTER = 1.2  # between 1.4 and 2.9 with AVX512-BF16, 0.6 at most where it is emulated
LEAST_SIMILARITY = 0.99  # of two gradients; bfloat16 rounds to three digits


class PrecisionChoice(NamedTuple):
    """The number format of a training, and why it was chosen.

    Attributes:
        precision: `"fp32"`, `"fp16"` or `"bf16"`.
        reason: A short text, such as `"AVX512-BF16"`.
    """

    precision: str
    reason: str


def choose_precision(precision: str, device: torch.device) -> PrecisionChoice:
    """Return the number format of a training.

    `"auto"` is bfloat16 on a CUDA device of Ampere or later (it needs no loss scaling), float16 on an older CUDA
    device, and float32 on other accelerators. On a CPU it is bfloat16 if that is faster: with AMX or AVX512-BF16, and
    without both not on other x86 processors. `measure_bf16` decides where the flags of the processor do not tell: they
    cannot be read, or oneDNN was told not to use all instructions (`ONEDNN_MAX_CPU_ISA`).

    Args:
        precision: `"auto"`, `"fp32"`, `"fp16"` or `"bf16"`.
        device: The device that computes.

    Raises:
        UsageError: The format does not exist, or the device does not support it.
    """
    check_option("precision", precision, Precision)
    kind = device.type
    if precision == "fp16" and kind != "cuda" or precision == "bf16" and kind not in ("cuda", "cpu"):
        raise UsageError(f"The device {kind} does not support precision={precision!r}.", hint="Use 'auto' or 'fp32'.")
    if precision != "auto":
        return PrecisionChoice(precision, "as given")
    if kind == "cuda":
        ampere = torch.cuda.get_device_capability(device)[0] >= 8
        return PrecisionChoice("bf16", "Ampere or later") if ampere else PrecisionChoice("fp16", "before Ampere")
    if kind != "cpu":
        return PrecisionChoice("fp32", f"on {kind}")
    if not _flags_tell():  # guard: flags_tell
        return measure_bf16()
    instructions = bf16_instructions()
    return PrecisionChoice("bf16" if instructions else "fp32", instructions or "neither AMX nor AVX512-BF16")


def bf16_instructions() -> str:
    """Return the instructions with which this CPU multiplies bfloat16; empty if there are none, or none are known."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return next((name for flag, name in BF16_FLAGS.items() if capabilities.get(flag)), "")


def _flags_tell() -> bool:
    """Return whether the flags of the processor are known, and oneDNN uses whatever they name."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    limits = {os.environ.get(name, "").upper() for name in ONEDNN_LIMITS} - ONEDNN_UNLIMITED
    in_use = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return BF16_FLAGS.keys() <= capabilities.keys() and not limits and in_use


@functools.cache
def measure_bf16() -> PrecisionChoice:
    """Choose between float32 and bfloat16 by the time of a step of two convolutions on this CPU; once in a process.

    It takes a tenth of a second, and up to half a second where bfloat16 is emulated. bfloat16 has to be clearly faster
    and to give the same gradient, apart from rounding. The processor time of one thread is compared, which other
    programs on the machine hardly change.
    """
    seconds = {False: 0.0, True: 0.0}
    gradients: dict[bool, torch.Tensor] = {}
    with _one_thread():
        for _ in range(MEASURED_PAIRS):
            for shorter in seconds:
                begun = time.thread_time()
                gradients[shorter] = _convolution_step(shorter)
                seconds[shorter] += time.thread_time() - begun
            if seconds[True] > 3 * seconds[False]:
                break  # emulated: no further pair would change the answer
    similarity = float(torch.nn.functional.cosine_similarity(gradients[False], gradients[True], dim=0))
    if not similarity > LEAST_SIMILARITY:  # guard: bf16_gradient
        return PrecisionChoice("fp32", f"the gradient in bf16 is another one (cosine {similarity:.3f})")
    measured = f"convolutions took {1000 * seconds[False]:.0f} ms in fp32, {1000 * seconds[True]:.0f} ms in bf16"
    faster = seconds[False] > CLEARLY_FASTER * seconds[True]
    return PrecisionChoice("bf16" if faster else "fp32", measured)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in the calling thread only during a `with` block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _convolution_step(shorter: bool) -> torch.Tensor:
    """Compute forward and backward pass of a fixed small block; return the gradient of its first layer."""
    side, channels = 24, 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)]
        images = torch.randn(2, channels, side, side).to(memory_format=torch.channels_last)
    block = nn.Sequential(layers[0], nn.BatchNorm2d(channels), nn.ReLU(), layers[1])
    block.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=shorter):
        output = block(images)
    output.float().square().mean().backward()
    gradient = layers[0].weight.grad
    assert gradient is not None
    return gradient.flatten()


def precision_callbacks(precision: str, device: torch.device) -> list[Callback]:
    """Return the callbacks for training in a number format that was chosen; an empty list for 32 bits."""
    return [] if precision == "fp32" else [TrainingPrecision(precision, device.type)]


class TrainingPrecision(MixedPrecision):
    """fastai's `MixedPrecision`, extended to CPUs and limited to training.

    fastai also predicts in 16 bits, which leaves three digits of a probability. Here predictions after the training are
    computed in 32 bits, like those of the saved model and its ONNX file. Validation during the training is computed in
    the format of the training.

    Args:
        amp_mode: `"fp16"` or `"bf16"`.
        device_type: `"cuda"` or `"cpu"`.
    """

    def __init__(self, amp_mode: str, device_type: str):
        super().__init__(amp_mode=AMPMode(amp_mode))
        self.device_type, self.entered = device_type, False

    def before_fit(self):
        """Prepare autocast and gradient scaler; `before_train` shows whether this fit is a training."""
        self.leave()
        self.training_runs = False
        self.autocast, self.scales = self.new_autocast(), []
        self.learn.scaler = torch.amp.GradScaler(self.device_type, enabled=self.amp_mode == AMPMode.FP16)

    def new_autocast(self) -> torch.autocast:
        """Return a context in which torch computes in this format where that is safe."""
        dtype = torch.bfloat16 if self.amp_mode == AMPMode.BF16 else torch.float16
        return torch.autocast(self.device_type, dtype=dtype)

    def before_train(self):
        """Use 16 bits from the first training pass on."""
        self.training_runs = True

    def before_batch(self):
        """Enter autocast."""
        if self.training_runs:
            self.autocast.__enter__()
            self.entered = True

    def after_pred(self):
        """Leave autocast before the loss, which is computed in 32 bits whatever it consists of."""
        super().after_pred()
        self.leave()  # guard: loss_in_32_bits

    def after_loss(self):
        """Do nothing: autocast was left before the loss; fastai would leave it here."""

    def leave(self) -> None:
        """Leave autocast if it was entered; also needed after an error in the model, where fastai's callback fails."""
        if self.entered:
            self.entered = False
            self.autocast.__exit__(None, None, None)


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply 32-bit numbers in 32 bits during a `with` block.

    On NVIDIA GPUs since Ampere, cuDNN's convolutions round their inputs to TF32, of 10 bits, unless told otherwise; and
    `torch.set_float32_matmul_precision` may have asked for less on every device. The settings are restored afterwards.
    Within the block, older switches of torch, such as `torch.backends.cudnn.allow_tf32`, cannot be read.
    """
    backends: Any = torch.backends  # torch's annotations do not know these attributes
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    changed = [(switch, found) for switch in switches if (found := switch.fp32_precision) in SHORTER]
    try:
        for switch, _ in changed:
            switch.fp32_precision = "ieee"  # guard: no_tf32
        yield
    finally:
        for switch, found in changed:
            switch.fp32_precision = found


class FullPrecision(Callback):
    """Compute every prediction outside of a training in 32 bits; a training multiplies as torch is set."""

    order = -15  # before the model is used

    def __init__(self):
        self.training_runs, self.stack = False, ExitStack()

    def before_fit(self):
        """Forget what an error has left; fastai calls this before predictions too."""
        self.after_fit()

    def before_train(self):
        """Note that this is a training."""
        self.training_runs = True

    def before_validate(self):
        """Change torch's settings."""
        if not self.training_runs:
            self.stack.enter_context(full_precision())

    def after_validate(self):
        """Restore torch's settings."""
        self.stack.close()

    def after_fit(self):
        """Restore torch's settings; fastai calls this after an error in a prediction too."""
        self.training_runs = False
        self.stack.close()
