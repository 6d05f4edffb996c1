"""Self-contained HTML pages: a template filled with tables and figures, which loads nothing from elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from covid_fastai.files import atomic_write
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.plotting import as_data_uri, encode_figure

__all__ = ["draw_chart", "write_page"]


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a template and write the page.

    Args:
        path: Path of the page.
        template: Name of the template in `reporting/templates`.
        **values: The variables of the template.

    Returns:
        `path`.

    Raises:
        ResourceError: The file cannot be written.
    """
    environment = jinja2.Environment(  # guard: autoescape
        loader=jinja2.PackageLoader("covid_fastai.reporting"),
        autoescape=True,  # file names and labels are untrusted text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["columns"] = lambda frame: [
        (name, pd.api.types.is_numeric_dtype(kind)) for name, kind in frame.dtypes.items()
    ]
    environment.globals["research_use"] = RESEARCH_USE
    page = environment.get_template(template).render(version=version("covid_fastai"), written=_today(), **values)
    with atomic_write(path) as file:
        file.write(page)
    return path


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def draw_chart(figure: Figure, alt: str, *, kind: str = "svg", wide: bool = False) -> dict[str, Any]:
    """Return a figure as a mapping for the macro `picture`: `source`, `alt`, `caption`, `wide`."""
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return {"source": as_data_uri(encode_figure(figure, kind=kind), mime), "alt": alt, "caption": "", "wide": wide}
