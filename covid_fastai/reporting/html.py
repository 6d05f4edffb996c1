"""Self-contained HTML pages: a template filled with tables and figures, which loads nothing from elsewhere."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.gridspec import GridSpec

from covid_fastai.figures import Figure
from covid_fastai.files import atomic_write
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.plotting import as_data_uri, encode_figure
from covid_fastai.reporting.glossary import words_used

__all__ = ["draw_chart", "embed_svg", "keep_options_whole", "put_on_black", "write_page"]

CHART_SIZE = (4.2, 3.7)  # inches: half the width of a page, and on a phone its whole width
WIDE = 8.6  # inches, the whole width of a page
# Colours of the figures (light) and what they are on a dark ground: the same hues, lighter.
DARK = {
    "#000000": "#e6e8eb",
    "#ffffff": "#1d2126",
    "#0072b2": "#4aa8e0",
    "#d55e00": "#ff8f45",
    "#009e73": "#3ecfa3",
    "#cc79a7": "#e39ac2",
    "#e69f00": "#f5bc4a",
    "#56b4e9": "#8fd0f7",
    "#555555": "#b4bbc3",
    "#888888": "#98a1ab",
    "#999999": "#8b939c",
    "#b0b0b0": "#4a525b",
    "#cccccc": "#4a525b",
}


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
    environment.filters["headings"] = lambda content: re.findall(r'<h2 id="([\w-]+)"[^>]*>([^<]+)</h2>', content)
    environment.filters["words_used"] = words_used
    environment.filters["whole_options"] = keep_options_whole
    environment.globals["research_use"] = RESEARCH_USE
    page = environment.get_template(template).render(version=version("covid_fastai"), written=_today(), **values)
    with atomic_write(path) as file:
        file.write(page)
    return path


def keep_options_whole(value: Any) -> Any:
    """Return text as HTML in which no line breaks within an option such as `--full`; other values as they are."""
    if not isinstance(value, str):
        return value
    return Markup(re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r'<span class="whole">\1</span>', str(escape(value))))


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def draw_chart(figure: Figure, alt: str, *, kind: str = "svg", wide: bool = False, caption: str = "") -> dict[str, Any]:
    """Return a figure as a mapping for the macro `picture`: `source`, `alt`, `caption`, `wide`.

    Charts have one size, with their panels one below the other, so that their text is legible on a phone. A chart of
    many lines keeps its height. Its colours follow the colour scheme of the page. Pictures (`"png"`) keep their size.

    Args:
        figure: The figure, whose size is changed.
        alt: What it shows, for readers who cannot see it.
        kind: `"svg"` for a chart, `"png"` for radiographs, on black in both colour schemes.
        wide: Whether it takes the whole width of the page.
        caption: The text below it.

    Returns:
        The mapping.
    """
    if kind == "png":
        put_on_black(figure)
        source = as_data_uri(encode_figure(figure), "image/png")
    else:
        caption = " ".join([*_take_left_titles(figure), *([caption] if caption else [])])
        _fit_chart(figure, wide=wide)
        source = embed_svg(encode_figure(figure, kind="svg"))
    return {"source": source, "alt": alt, "caption": caption, "wide": wide}


def _fit_chart(figure: Figure, *, wide: bool) -> None:
    """Give a chart the size of all charts; panels with axes of their own are put below each other."""
    panels = [(axes, place) for axes in figure.axes if (place := axes.get_subplotspec()) is not None]
    width, height = CHART_SIZE
    if wide:
        width, height = WIDE, max(height, figure.get_figheight())
    elif len(panels) > 1 and len({place.rowspan.start for _, place in panels}) == 1:
        grid = GridSpec(len(panels), 1, figure=figure)
        for number, (axes, _) in enumerate(panels):
            axes.set_subplotspec(grid[number, 0])
            axes.tick_params(labelleft=True)
    figure.set_size_inches(width, height)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)


def _take_left_titles(figure: Figure) -> list[str]:
    """Remove the long titles of a chart, which stand on the left, and return them as sentences for its caption."""
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    for axes in figure.axes:
        axes.set_title("", loc="left")
    return [f"{title}." for title in titles if title]


def put_on_black(figure: Figure) -> None:
    """Show the radiographs of a figure on black, as on a light box, in both colour schemes."""
    figure.set_facecolor("black")
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
            text.set_color("white")


def embed_svg(svg: bytes) -> str:
    """Return an SVG figure as a `data:` address whose colours follow the reader's colour scheme.

    Args:
        svg: The file, with the colours of `DARK` and no text that could be one of them.

    Returns:
        The address, for an `<img>`.
    """
    text = svg.decode("utf-8")
    text = re.sub(r'\bfill="(#[0-9a-f]{6})"', r'style="fill: \1"', text)  # of hatches; variables belong into a style
    names = {light: f"--c{light[1:]}" for light in DARK}
    for light, name in names.items():
        text = re.sub(rf"(?<=[:\s]){light}\b", f"var({name})", text, flags=re.IGNORECASE)
    light_colours = ";".join(f"{name}:{light}" for light, name in names.items())
    dark_colours = ";".join(f"{names[light]}:{dark}" for light, dark in DARK.items())
    style = (
        f"<style>:root{{{light_colours};fill:var(--c000000)}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark_colours}}}}}</style>"
    )
    text = re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + style, text, count=1)
    return as_data_uri(text.encode("utf-8"), "image/svg+xml")
