"""Drawings to try the page with, made as the synthetic radiographs are: no image of a person is in the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["EXAMPLES", "Example"]


@dataclass(frozen=True)
class Example:
    """A drawing that the page offers, 320 x 320 pixels.

    The files are made once, by `draw_example` in `tests/app/server/test_app.py`: drawing needs scipy, serving does not.

    Attributes:
        file: The name of its file in `static/`, which says that it is a drawing.
        title: What is drawn.
        seed: The seed of the drawing.
        options: Arguments of `draw_phantom`.
        turned: Whether it is upside down, so that the input check withholds the class.
    """

    file: str
    title: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    turned: bool = False


EXAMPLES = (
    Example("drawing-clear-lungs.jpg", "Clear lungs", 3),
    Example("drawing-opacities.jpg", "Opacities", 2, {"finding": "COVID-19", "severity": 1.5}),
    Example("drawing-upside-down.jpg", "Upside down: no class", 3, turned=True),
)
