"""Figures that notebooks show."""

from __future__ import annotations

import matplotlib.figure

from covid_fastai.plotting import encode_figure

__all__ = ["Figure"]


class Figure(matplotlib.figure.Figure):
    """A figure that is a picture in every notebook.

    Jupyter learns to show matplotlib's figures when pyplot makes one, which this package never does: until then,
    it would print `<Figure size 800x300 with 2 Axes>`.
    """

    def _repr_png_(self) -> bytes:
        return encode_figure(self)
