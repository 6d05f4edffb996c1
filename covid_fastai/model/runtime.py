"""ONNX Runtime with its telemetry off: import it from here, and nowhere else.

From 1.29 on its packages for Linux and macOS, as those for Windows before, tell their maker of every process and model,
and keep a number of this machine on the disk. What is done with radiographs is nobody else's business.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when the library is loaded: it has to stand before the import

import onnxruntime

__all__ = ["onnxruntime"]

onnxruntime.disable_telemetry_events()  # where somebody else has loaded it before, and on Windows
