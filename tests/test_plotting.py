"""Colours, and figures and images as bytes; nothing heavy is loaded before it is used."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from IPython.core.formatters import PNGFormatter
from PIL import Image

import covid_fastai
from covid_fastai.errors import ResourceError
from covid_fastai.figures import Figure
from covid_fastai.plotting import (
    COLOURS,
    as_data_uri,
    class_colours,
    embed_image,
    encode_figure,
    encode_png,
    save_figure,
)


def draw() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def test_notebooks_show_every_figure_of_the_package():
    """Also before pyplot has made a figure, by which Jupyter learns to show those of matplotlib."""
    assert PNGFormatter()(draw()).startswith(b"\x89PNG")
    package = Path(covid_fastai.__file__).parent
    others = [
        path
        for path in package.rglob("*.py")
        if re.search(r"^from matplotlib.figure import|pyplot", path.read_text("utf-8"), re.M)
    ]
    assert [path.name for path in others] == ["figures.py"]


def test_every_class_has_a_colour_and_the_seventh_that_of_the_first():
    colours = class_colours([f"class {number}" for number in range(7)])
    assert list(colours.values()) == [*COLOURS, COLOURS[0]]


def test_the_same_figure_is_the_same_svg():
    first, second = (encode_figure(draw(), kind="svg") for _ in range(2))
    assert first == second and b"<svg" in first


def test_a_figure_is_saved_as_a_png_or_not_at_all(tmp_path):
    save_figure(tmp_path / "figure.png", draw())
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == (220, 110)
    with pytest.raises(ResourceError):
        save_figure(tmp_path / "nowhere" / "figure.png", draw())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1)])
def test_an_array_comes_back_from_its_png(shape, dtype):
    array = np.linspace(0, np.iinfo(dtype).max, 48).astype(dtype).reshape(shape)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(array)))), array.reshape(8, 6))


def test_a_png_holds_pixels_alone():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image.info = {"Author": "DOE^JOHN", "comment": b"DOE^JOHN", "exif": b"Exif\0\0DOE^JOHN", "dpi": (72, 72)}
    content = encode_png(image, pixels_only=True)
    assert b"DOE" not in content and image.info["Author"] == "DOE^JOHN"
    read = Image.open(io.BytesIO(content))
    assert read.info == {}
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image))


def test_transparency_is_kept_unless_pixels_alone_are_wanted():
    image = Image.new("P", (4, 4))
    image.info["transparency"] = 0
    with_it, without = (Image.open(io.BytesIO(encode_png(image, pixels_only=only))) for only in (False, True))
    assert "transparency" in with_it.info and "transparency" not in without.info


def test_an_image_is_embedded_as_a_jpeg():
    head, _, text = embed_image(Image.new("L", (8, 8), 200)).partition(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(text))).format == "JPEG"
    assert as_data_uri(b"abc", "text/plain") == "data:text/plain;base64,YWJj"


def test_the_module_loads_neither_matplotlib_nor_pillow():
    code = "import sys, covid_fastai.plotting; print({'matplotlib', 'PIL', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_name_with_dollar_signs_is_drawn_as_it_is(kind):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [1, 2], label=r"$\frac{$")
    axes.set(title="$x$", xlabel=r"$\unknown$")
    axes.set_yticks([1, 2], ["$^$", "$a_{$"])
    axes.legend()
    assert encode_figure(figure, kind=kind)
