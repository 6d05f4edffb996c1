"""The number format of training: 16 bits where the hardware is faster with them; 32 bits for every prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision

from covid_fastai.errors import UsageError
from covid_fastai.options import Precision, check_option

__all__ = [
    "FullPrecision",
    "TrainingPrecision",
    "bf16_instructions",
    "choose_precision",
    "full_precision",
    "precision_callbacks",
]

SHORTER = ("tf32", "bf16")  # formats in which torch may multiply 32-bit numbers


def choose_precision(precision: str, device: torch.device) -> str:
    """Return the number format of a training.

    Args:
        precision: `"auto"`, `"fp32"`, `"fp16"` or `"bf16"`.
        device: The device that computes.

    Returns:
        `"fp32"`, `"fp16"` or `"bf16"`. `"auto"` is bfloat16 on a CUDA device of Ampere or later (it needs no loss
        scaling), float16 on an older CUDA device, bfloat16 on a CPU that multiplies it in hardware (with AMX or
        AVX512-BF16; `python -m benchmarks step` measures the gain), and float32 elsewhere.

    Raises:
        UsageError: The format does not exist, or the device does not support it.
    """
    check_option("precision", precision, Precision)
    kind = device.type
    if precision == "fp16" and kind != "cuda" or precision == "bf16" and kind not in ("cuda", "cpu"):
        raise UsageError(f"The device {kind} does not support precision={precision!r}.", hint="Use 'auto' or 'fp32'.")
    if precision != "auto":
        return precision
    if kind == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"  # 8 is Ampere
    return "bf16" if kind == "cpu" and bf16_instructions() else "fp32"


def bf16_instructions() -> str:
    """Return the instructions with which this CPU multiplies bfloat16; empty if there are none, or none are known."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
    return next((name for flag, name in names.items() if capabilities.get(flag)), "")


def precision_callbacks(precision: str, device: torch.device) -> list[Callback]:
    """Return the callbacks for training in a number format; an empty list for 32 bits."""
    chosen = choose_precision(precision, device)
    return [] if chosen == "fp32" else [TrainingPrecision(chosen, device.type)]


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

    def after_loss(self):
        """Leave autocast before the backward pass, whose gradients have the types of their tensors."""
        self.leave()

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
