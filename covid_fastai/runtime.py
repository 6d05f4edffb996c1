"""Import ONNX Runtime with its telemetry disabled; all other modules import it from here.

Its packages for Linux and macOS since 1.29, and those for Windows before, send data about every process and model to
their maker, and store an identifier of the machine on the disk. The use of radiographs must remain private.
"""

from __future__ import annotations

import os
from types import ModuleType

from covid_fastai.errors import UnavailableError

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when the library is loaded; must be set before the import

import onnxruntime

__all__ = ["onnxruntime", "quantization_tools"]

onnxruntime.disable_telemetry_events()  # if the library was loaded before, and on Windows


def quantization_tools() -> ModuleType:
    """Return ONNX Runtime's tools that rewrite a model in 8-bit integers.

    Raises:
        UnavailableError: They need the package onnx, which prediction does not.
    """
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise UnavailableError(
            f"The tools of ONNX Runtime for 8-bit integers cannot be imported: {error}.", hint="pip install onnx"
        ) from error
    return quantization
