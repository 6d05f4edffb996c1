"""A device other than the CPU, where there is none: torch's `meta` device, whose tensors have no values.

`with SimulatedDevice():` refuses operations that mix devices, as CUDA and MPS do, and answers 0.5 where a program reads
a value of the device. It counts copies to the device and reads from it, for each of which a program waits.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
ANSWER = 0.5  # of every element of the device: a probability, a loss, and true as a truth value
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class SimulatedDevice(TorchDispatchMode):
    """Refuse operations that mix devices, and count what crosses between them.

    Attributes:
        counts: How often a program copied to the device (`"to"`), read from it (`"from"`), and waited for either
            (`"waits"`), which a copy with `non_blocking` does not.
    """

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function._can_decompose() and torch.is_inference_mode_enabled():  # elsewhere torch has decomposed it before
            with self:
                return function.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on = [tensor.device == DEVICE for tensor in tensors]
        if function is torch.ops.aten._local_scalar_dense.default and on[0]:
            self.counts["from"] += 1
            self.counts["waits"] += 1
            return torch.full((), ANSWER).to(tensors[0].dtype if tensors[0].dtype != torch.bool else torch.bool).item()
        if function in COPIES:
            target = args[0].device if function is COPIES[1] else torch.device(kwargs.get("device") or args[0].device)
            source = tensors[-1].device
            if source == DEVICE != target:
                self.counts["from"] += 1
                self.counts["waits"] += 1
                values = torch.full(tensors[-1].shape, ANSWER).to(kwargs.get("dtype") or tensors[-1].dtype)
                return args[0].copy_(values) if function is COPIES[1] else values
            self.counts["to"] += source != target
            self.counts["waits"] += source != target and not (kwargs.get("non_blocking") or True in args[2:])
            return function(*args, **kwargs)
        if function is torch.ops.aten.lift_fresh.default:  # of torch.tensor(value, device=device)
            self.counts["to"] += on[0]
            self.counts["waits"] += on[0]
        # a CPU tensor of no dimension may take part, as a number does
        if any(on) and any(not here and tensor.ndim for here, tensor in zip(on, tensors, strict=True)):
            places = ", ".join(f"{tensor.device}{tuple(tensor.shape)}" for tensor in tensors)
            raise RuntimeError(f"Expected all tensors to be on the same device: {function} got {places}.")
        return function(*args, **kwargs)
