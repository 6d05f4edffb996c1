"""The machine that a benchmark runs on: its processor, the instructions that oneDNN may use, and the number format."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from covid_fastai.model.precision import ONEDNN_LIMITS, bf16_instructions, choose_precision

__all__ = ["NEITHER", "describe_machine", "instructions", "number_format", "processor"]

NEITHER = "neither AMX nor AVX512-BF16"
BF16_LIMITS = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", "AVX10_1")  # leave AVX512-BF16, not AMX


def processor() -> str:
    """Return the name of the processor and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        fields = (line.partition(":") for line in info.read_text(encoding="utf-8").splitlines())
        name = next((value.strip() for field, _, value in fields if field.strip() == "model name"), name)
    return f"{name}, {cores} cores"


def instructions() -> str:
    """Return the instructions with which oneDNN multiplies bfloat16 in this process, or `NEITHER`."""
    found = bf16_instructions()
    limits = {os.environ.get(name, "").upper() for name in ONEDNN_LIMITS} - {"", "ALL", "DEFAULT"}
    if not found or any("AMX" not in limit and limit not in BF16_LIMITS for limit in limits):
        return NEITHER
    return "AVX512-BF16" if any("AMX" not in limit for limit in limits) else found


def number_format() -> str:
    """Return the format that `precision="auto"` trains in on this CPU."""
    return choose_precision("auto", torch.device("cpu")).precision


def describe_machine() -> dict[str, str]:
    """Return what the table of results says of the machine."""
    limits = [f"{name}={os.environ[name]}" for name in ONEDNN_LIMITS if name in os.environ]
    software = [f"torch {torch.__version__}", f"Python {platform.python_version()}", *limits]
    return {"machine": ", ".join([processor(), *software]), "instructions": instructions(), "format": number_format()}
