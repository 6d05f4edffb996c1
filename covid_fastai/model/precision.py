"""The number format of training: 16 bits where the processor computes them faster, 32 for every answer."""

from __future__ import annotations

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import AMPMode, MixedPrecision

from covid_fastai.errors import UsageError
from covid_fastai.options import Precision, check_option

__all__ = ["TrainingPrecision", "choose_precision", "has_amx", "precision_callbacks"]


def choose_precision(precision: str, device: torch.device) -> str:
    """Return the number format that a training computes in.

    Args:
        precision: `"auto"`, `"fp32"`, `"fp16"` or `"bf16"`.
        device: Where it computes.

    Returns:
        `"fp32"`, `"fp16"` or `"bf16"`. Of `"auto"`: bfloat16 on a CUDA device since Ampere (it needs no loss scaling),
        float16 on an older one; bfloat16 on a CPU with AMX, which multiplies it in hardware (`python -m benchmarks
        step` measures what that brings); float32 elsewhere.

    Raises:
        UsageError: There is no such format, or the device does not compute in it.
    """
    check_option("precision", precision, Precision)
    kind = device.type
    if precision == "fp16" and kind != "cuda" or precision == "bf16" and kind not in ("cuda", "cpu"):
        raise UsageError(
            f"The device {kind} does not compute in precision={precision!r}.", hint="Use 'auto' or 'fp32'."
        )
    if precision != "auto":
        return precision
    if kind == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if kind == "cpu" and has_amx() else "fp32"


def has_amx() -> bool:
    """Say whether this CPU multiplies bfloat16 in hardware; False where an older torch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("amx_bf16", False))


def precision_callbacks(precision: str, device: torch.device) -> list[Callback]:
    """Return the callbacks that make a learner train in that format; none for 32 bits."""
    chosen = choose_precision(precision, device)
    return [] if chosen == "fp32" else [TrainingPrecision(chosen, device.type)]


class TrainingPrecision(MixedPrecision):
    """fastai's `MixedPrecision`, on a CPU too, and for training only.

    fastai computes predictions in 16 bits as well, which leaves three digits of a probability. Here what is predicted
    after a training is computed in 32 bits, as the saved model, its ONNX file and every other way to ask it do. The
    validation pass within a training is computed as its training passes are.

    Args:
        amp_mode: `"fp16"` or `"bf16"`.
        device_type: `"cuda"` or `"cpu"`.
    """

    def __init__(self, amp_mode: str, device_type: str):
        super().__init__(amp_mode=AMPMode(amp_mode))
        self.device_type, self.entered = device_type, False

    def before_fit(self):
        """Make ready; whether this is a training shows only when an epoch begins."""
        self.leave()
        self.training_runs = False
        self.autocast, self.scales = self.new_autocast(), []
        self.learn.scaler = torch.amp.GradScaler(self.device_type, enabled=self.amp_mode == AMPMode.FP16)

    def new_autocast(self) -> torch.autocast:
        """Return a context in which torch computes in this format where it may."""
        dtype = torch.bfloat16 if self.amp_mode == AMPMode.BF16 else torch.float16
        return torch.autocast(self.device_type, dtype=dtype)

    def before_train(self):
        """Compute in 16 bits from here on."""
        self.training_runs = True

    def before_batch(self):
        """Begin to compute in 16 bits."""
        if self.training_runs:
            self.autocast.__enter__()
            self.entered = True

    def after_loss(self):
        """End it: the gradients take the formats of what they are of."""
        self.leave()

    def leave(self) -> None:
        """End it if it has begun: also after an error in the model, which fastai's own callback does not survive."""
        if self.entered:
            self.entered = False
            self.autocast.__exit__(None, None, None)
