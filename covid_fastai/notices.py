"""Notices that accompany every result: the purpose of the package, and what its output is not."""

from __future__ import annotations

__all__ = ["DRAWINGS", "NO_DIAGNOSIS", "OF_DRAWINGS", "RESEARCH_USE"]

RESEARCH_USE = "Research use only; not a medical device."
DRAWINGS = "The images are drawings made by this package. The results show how the package works, and nothing else."
OF_DRAWINGS = "This model was trained on drawings only: its answers say nothing about a radiograph of a person."
NO_DIAGNOSIS = "A model's output, not a statement about a person's health."
