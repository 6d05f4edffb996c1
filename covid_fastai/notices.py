"""Notices that accompany every result: the purpose of the package, and what its output is not."""

from __future__ import annotations

__all__ = ["NO_DIAGNOSIS", "RESEARCH_USE"]

RESEARCH_USE = "Research use only; not a medical device."
NO_DIAGNOSIS = "A model's output, not a statement about a person's health."
