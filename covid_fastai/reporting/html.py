"""A self-contained page: a template filled with tables and pictures, which loads nothing."""

from __future__ import annotations

import base64
import io
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from covid_fastai.files import atomic_write

__all__ = ["data_uri", "draw_chart", "embed_picture", "save_picture", "write_page"]

THUMBNAIL_QUALITY = 80  # JPEG, for pictures of 256 pixels that are looked at, not measured


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write a page.

    Args:
        path: The file.
        template: Its name in `reporting/templates`.
        **values: What the template names.

    Returns:
        `path`.

    Raises:
        ResourceError: The file cannot be written.
    """
    environment = jinja2.Environment(  # guard: autoescape
        loader=jinja2.PackageLoader("covid_fastai.reporting"),
        autoescape=True,  # file names and labels are hostile text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["columns"] = lambda frame: [
        (name, pd.api.types.is_numeric_dtype(kind)) for name, kind in frame.dtypes.items()
    ]
    page = environment.get_template(template).render(version=version("covid_fastai"), written=_today(), **values)
    with atomic_write(path) as file:
        file.write(page)
    return path


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def draw_chart(figure: Figure, alt: str, *, kind: str = "svg", wide: bool = False) -> dict[str, Any]:
    """Return a figure as the macro `picture` takes it: `source`, `alt`, `caption`, `wide`."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "covid_fastai"}):  # the same tables give the same page
        figure.savefig(content, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return {"source": data_uri(content.getvalue(), mime), "alt": alt, "caption": "", "wide": wide}


def embed_picture(image: Image.Image) -> str:
    """Return a picture as a JPEG inside a `data:` address."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=THUMBNAIL_QUALITY)
    return data_uri(content.getvalue(), "image/jpeg")


def data_uri(content: bytes, mime: str) -> str:
    """Return bytes as a `data:` address."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def save_picture(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG, atomically."""
    with atomic_write(path, mode="wb") as file:
        figure.savefig(file, format="png", dpi=110)
