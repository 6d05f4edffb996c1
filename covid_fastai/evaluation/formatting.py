"""Format numbers, intervals and results as text, with one sign for a missing value."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MISSING",
    "PERCENT",
    "ResultDisplay",
    "SIGNED",
    "format_estimate",
    "format_interval",
    "format_metric",
    "format_metric_name",
    "format_p_value",
    "list_sources",
    "quote_source",
]

MISSING = "–"  # stands for a number that is None, NaN or infinite
PLAIN, SIGNED, PERCENT = "z.3f", "+z.3f", "z.0%"  # z drops the minus sign of a number that rounds to zero
SMALLEST_P_SHOWN = 0.001
NAMES = {
    "auc": "AUC",
    "auc_pooled": "AUC, folds pooled",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}


def format_metric(value: float | None, *, spec: str = PLAIN) -> str:
    """Format a number; `MISSING` if it is None, NaN or infinite.

    Args:
        value: The number.
        spec: Specification for Python's `format`, such as `SIGNED` for a difference or `PERCENT` for a fraction.

    Returns:
        The text, with three decimals by default.
    """
    return format(float(value), spec) if _is_finite(value) else MISSING


def format_interval(low: float | None, high: float | None, *, spec: str = PLAIN) -> str:
    """Format the bounds of an interval as `low to high`; `MISSING` if a bound is missing."""
    if not _is_finite(low) or not _is_finite(high):
        return MISSING
    return f"{format_metric(low, spec=spec)} to {format_metric(high, spec=spec)}"


def format_estimate(value: float | None, low: float | None, high: float | None, *, spec: str = PLAIN) -> str:
    """Format a number and its interval as `value (low to high)`; only the number if a bound is missing."""
    interval = format_interval(low, high, spec=spec)
    if not _is_finite(value) or interval == MISSING:
        return format_metric(value, spec=spec)
    return f"{format_metric(value, spec=spec)} ({interval})"


def format_p_value(p: float | None) -> str:
    """Format a p-value, such as `p = 0.030` or `p < 0.001`."""
    if _is_finite(p) and p < SMALLEST_P_SHOWN:
        return f"p < {SMALLEST_P_SHOWN}"
    return f"p = {format_metric(p)}"


def format_metric_name(metric: str, of: str = "") -> str:
    """Return the usual name of a metric, followed by its class in brackets if it is that of one class."""
    name = NAMES.get(metric, metric.replace("_", " "))
    return f"{name} ({of})" if of else name


def quote_source(name: str) -> str:
    """Return the name of an image source in quotation marks, so that it is not taken for a word of the sentence."""
    return f'"{name}"'


def list_sources(names: Iterable[str]) -> str:
    """Return image sources as the end of a noun phrase, such as `sources "cohen" and "kermany"`."""
    *others, last = map(quote_source, names)
    return f"sources {', '.join(others)} and {last}" if others else f"source {last}"


class ResultDisplay:
    """Base class of results: displays the same parts in a terminal and in a notebook.

    A dataclass that inherits from it needs `repr=False`; otherwise `dataclass` overrides `__repr__`.
    """

    def _display_parts(self) -> Iterable[pd.DataFrame | str | list[str]]:
        """Return tables, paragraphs (text) and lists of items, in display order."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n".join(map(_as_text, self._display_parts()))

    def _repr_html_(self) -> str:
        return "".join(map(_as_html, self._display_parts()))


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _as_text(part: pd.DataFrame | str | list[str]) -> str:
    if isinstance(part, str):
        return part
    return "\n".join(part) if isinstance(part, list) else part.to_string(index=False, na_rep=MISSING)


def _as_html(part: pd.DataFrame | str | list[str]) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, list):
        return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in part)}</ul>"
    return part.to_html(index=False, na_rep=MISSING)
