"""The page in a browser: upload, results, overlay, errors, keyboard, phone, dark mode, no other hosts."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra web is not installed")
pytest.importorskip("websockets", reason="websockets is not installed")

from tests.app.cli.test_serve import serving
from tests.app.server.browser import find_chromium, open_browser
from tests.app.server.test_app import png, radiograph
from tests.screenshots import take_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed"),
    pytest.mark.skipif(os.name == "nt", reason="system: the server is started as on POSIX"),
]


@pytest.fixture(scope="module")
def site(small_model):
    with serving(small_model, "--per-minute", "0", "--max-mib", "1") as (port, _):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as page:
        yield page


@pytest.fixture
def page(browser):
    browser.requests.clear()
    browser.complaints.clear()
    yield browser
    assert browser.complaints == []


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    contents = {"first.png": png(radiograph(0, 512)), "second.png": png(radiograph(5, 300))}
    contents |= {"turned.png": png(np.ascontiguousarray(radiograph(1)[::-1, ::-1]))}
    contents |= {"page.png": b"<!doctype html>", "=cmd()<b>.png": contents["first.png"]}
    contents["large.png"] = b"x" * 1_200_000
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


WINDOWS = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844, "phone": True}}
ANSWERS = "document.querySelectorAll('#answers article').length"
STATUS = "document.getElementById('status').textContent"
# the browser decodes pictures after the answer is shown, and each view then gets the form of its picture
PICTURES = """Array.from(document.images).every((image) => image.complete && image.naturalWidth)
  && Array.from(document.querySelectorAll("article:has(.controls) .view")).every((view) => view.style.aspectRatio)"""


def upload(page, site, files, *, submit=True, **options):
    page.go(site, **options)
    page.choose("#files", files)
    if submit:
        page.run("document.querySelector('#upload button').click()")
        page.wait_for(f"{STATUS}.includes(' classified.') && {PICTURES}")


def test_upload_result_and_overlay(page, site, images):
    upload(page, site, [images["first.png"], images["second.png"]])
    assert page.run(ANSWERS) == 2 and page.run(STATUS) == "2 of 2 images classified."
    text = page.run("document.querySelector('#answers article').innerText")
    for expected in ("first.png", "Model output: ", "Normal", "COVID-19"):
        assert expected in text
    assert "Verdict" not in text  # the verdict is said once, on top of the page
    widths = page.run("Array.from(document.querySelectorAll('.radiograph, .saliency'), (image) => image.naturalWidth)")
    assert widths == [512, 512, 512, 300, 300, 300]  # the content security policy allows data: URLs of images
    opacity = "getComputedStyle(document.querySelector('.saliency')).opacity"
    assert page.run(opacity) == "0.6"
    move = "const s = document.querySelector('.opacity'); s.value = {}; s.dispatchEvent(new Event('input'))"
    for value in (0, 100, 25):
        page.run(f"{{{move.format(value)}}}")
        assert float(page.run(opacity)) == value / 100
    second = "getComputedStyle(document.querySelectorAll('.saliency')[1]).opacity"
    assert page.run(second) == "0.6", "the slider of the first image moved the overlay of the second"
    assert all(address.startswith((site, "data:image/png")) for address in page.requests) and len(page.requests) >= 5


def test_errors_are_shown(page, site, images):
    upload(page, site, [images["page.png"], images["large.png"], images["turned.png"]])
    assert page.run(ANSWERS) == 3
    status = page.run(STATUS)
    assert "1 of 3 images classified. No prediction: page.png; large.png: it has more than 1 MiB" in status
    page.run("document.querySelectorAll('.detail').forEach((row) => { row.hidden = false; })")
    first, large, second = page.run("Array.from(document.querySelectorAll('article'), (article) => article.innerText)")
    assert "No prediction: it has more than 1 MiB" in large  # a file that was not sent has its row, too
    assert "No prediction: " in first and "HTML" in first
    assert "The predicted class is withheld." in second and "upside down" in second
    assert page.run("document.querySelector('details').open") is False
    assert page.run("document.querySelectorAll('.saliency').length") == 0  # a map would reveal the class


def set_control(page, name, value, *, number=0):
    page.run(
        f"{{ const input = document.querySelectorAll('.{name}')[{number}]; "
        f"input.value = {value}; input.dispatchEvent(new Event('input')); }}"
    )


# the pixel intensities of the shown radiograph in row 256, by 64 pixels
GREYS = """(() => {
  const stack = document.querySelector(".stack"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [512, 512];
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(stack.querySelector("canvas") || stack.querySelector(".radiograph"), 0, 0);
  return Array.from({length: 8}, (_, i) => context.getImageData(64 * i, 256, 1, 1).data[0]);
})()"""


def test_zoom_window_and_level(page, site, images):
    upload(page, site, [images["first.png"]])
    assert page.run("Array.from(document.querySelectorAll('figcaption'), (c) => c.innerText)")[0] == "Original"
    before = np.array(page.run(GREYS), float)
    set_control(page, "window", 64)
    set_control(page, "level", 100)
    expected = np.clip((before - (100 - 32)) * 255 / 64, 0, 255)
    assert np.abs(np.array(page.run(GREYS)) - expected).max() <= 1
    assert page.run("document.querySelectorAll('.stack canvas').length") == 2, "only one of the two pictures changed"
    size = "JSON.stringify(Array.from(document.querySelectorAll('.view'), (v) => [v.clientWidth, v.clientHeight]))"
    pane = page.run(size)
    page.run("document.querySelectorAll('.view')[1].focus()")
    page.press("+", 187, "+")
    page.run(  # at once: the events of the zoom's own scrolling come after the user's
        "document.querySelector('.zoom .in').click(); document.querySelectorAll('.view')[1].scrollTo(40, 60)"
    )
    assert page.run("document.querySelector('.zoom output').textContent") == "200 %"
    assert page.run("document.querySelector('.view').scrollWidth") == pytest.approx(2 * json.loads(pane)[0][0], abs=2)
    page.wait_for(
        "document.querySelector('.view').scrollTop === 60 && document.querySelector('.view').scrollLeft === 40"
    )
    page.run("document.querySelector('.reset').click()")
    assert page.run(GREYS) == before.tolist() and page.run(size) == pane
    assert page.run("document.querySelector('.zoom output').textContent") == "100 %"


def test_the_picture_can_be_downloaded(page, site, images):
    """With the overlay, the outline of the lungs and the verdict, with the window that is shown."""
    upload(page, site, [images["first.png"]])
    page.run("URL.createObjectURL = (blob) => { window.picture = blob; return '#'; }; window.picture = null")

    def download() -> np.ndarray:
        page.run("document.querySelector('.save').click()")
        page.wait_for("window.picture !== null")
        encoded = page.run(
            "new Promise((resolve) => { const reader = new FileReader(); reader.onload = () => resolve(reader.result); "
            "reader.readAsDataURL(window.picture); window.picture = null; })"
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded.split(",")[1]))).convert("RGB"), float)

    picture = download()
    assert picture.shape[1] == 640 and picture.shape[0] > 640 + 60  # the caption is below
    caption = picture[660:].mean(axis=2)
    assert (caption < 100).any() and np.median(caption) == 255
    set_control(page, "opacity", 0)
    page.run("document.querySelectorAll('input.outline').forEach((box) => box.click())")
    plain = download()[:640]
    assert np.ptp(plain, axis=2).max() == 0, "an overlay is left"
    assert np.abs(picture[:640] - plain).mean() > 3
    assert page.run("Array.from(document.querySelectorAll('.lungs')).every((outline) => outline.hidden)")


@pytest.mark.slow
def test_many_files_have_a_table_that_sorts(page, site, images, tmp_path):
    """On a phone, 25 results are less than four screens, one of them open; the newest request stands on top."""
    files = [tmp_path / f"scan-{number}.png" for number in range(25)]
    for number, file in enumerate(files):
        file.write_bytes(png(radiograph(number, 128)) if number % 8 else b"<!doctype html>")
    upload(page, site, files, **WINDOWS["phone"])
    assert page.run("document.documentElement.scrollHeight") < 4 * 844
    names = "Array.from(document.querySelectorAll('.toggle'), (button) => button.textContent)"
    is_open = "Array.from(document.querySelectorAll('.detail')).flatMap((row, i) => row.hidden ? [] : [i])"
    assert page.run(names) == [file.name for file in files] and page.run(is_open) == [0]
    assert "scan-16.png; and 1 more, see the table" in page.run(STATUS)
    page.run("document.querySelectorAll('.toggle')[3].click()")
    assert page.run(is_open) == [3]
    values = "Array.from(document.querySelectorAll('.summary td.number:nth-child(4)'), (cell) => cell.textContent)"
    for order in ("ascending", "descending"):
        page.run("document.querySelector('[data-key=p]').click()")
        shown = page.run(values)
        numbers = [float(text) for text in shown[:21]]
        assert numbers == sorted(numbers, reverse=order == "descending") and len(set(numbers)) > 5
        assert set(shown[21:]) == {"–"}, "a file without a probability is not at the end"
        assert page.run("document.querySelector('[data-key=p]').closest('th').ariaSort") == order
    page.choose("#files", [images["second.png"]])
    page.run("document.querySelector('#upload button').click()")
    page.wait_for(f"{STATUS} === '1 of 1 images classified.'")
    assert page.run(names) == ["second.png", *(file.name for file in files)] and page.run(is_open) == [0]


def test_drawings_can_be_tried(page, site):
    page.go(site)
    for number, text in enumerate(("Model output", "Model output", "The predicted class is withheld."), 1):
        page.run(f"document.querySelectorAll('#examples button')[{number - 1}].click()")
        page.wait_for(f"{ANSWERS} === {number} && {STATUS} === '1 of 1 images classified.'")
        shown = page.run("document.querySelector('.detail:not([hidden]) article').innerText")
        assert "A drawing by this package, not a radiograph." in shown and text in shown
        row = json.loads(page.run("document.querySelector('article').dataset.row"))
        assert row["path"].startswith("drawing-") and row["remark"].startswith("A drawing")


def test_the_verdict_stays_in_sight(page, site, images):
    upload(page, site, [images["first.png"]], **WINDOWS["phone"])
    page.run("window.scrollTo(0, 1e6)")
    top, bottom = page.run(
        "(({top, bottom}) => [top, bottom])(document.querySelector('header').getBoundingClientRect())"
    )
    assert top == 0 and 30 < bottom < 844 / 6
    assert "Verdict on this model: not stated." in page.run("document.querySelector('header').innerText")
    assert page.run("document.body.innerText.split('Verdict on this model').length") == 2  # once


@pytest.mark.slow
def test_an_unreachable_server_is_shown(browser, small_model, images):
    with serving(small_model) as (port, process):
        browser.go(f"http://127.0.0.1:{port}/")
        browser.choose("#files", [images["first.png"]])
        process.kill()
        process.wait()
        browser.run("document.querySelector('#upload button').click()")
        browser.wait_for(f"{STATUS}.includes('0 of 1 images classified')")
    assert browser.run("document.querySelector('#upload button').disabled") is False


def test_the_table_can_be_downloaded(page, site, images, tmp_path):
    upload(page, site, [images["first.png"], images["=cmd()<b>.png"], images["page.png"]])
    page.run("window.table = null; URL.createObjectURL = (blob) => { window.table = blob; return '#'; }")
    page.run("document.getElementById('table').click()")
    table = list(csv.DictReader(io.StringIO(page.run("window.table.text()"))))
    assert [row["path"] for row in table] == ["first.png", "'=cmd()<b>.png", "page.png"]
    assert [row["status"] for row in table] == ["ok", "ok", "unreadable"]
    assert list(table[0]) == [
        "path",
        "p_Normal",
        "p_COVID-19",
        "prediction",
        "withheld",
        "status",
        "reason",
        "remark",
        "model_verdict",
    ]
    assert float(table[0]["p_Normal"]) + float(table[0]["p_COVID-19"]) == pytest.approx(1, abs=1e-6)
    assert table[2]["p_Normal"] == "" and "HTML" in table[2]["reason"]
    page.run("document.getElementById('clear').click()")
    assert page.run(ANSWERS) == 0 and page.run("document.getElementById('results').hidden") is True


def test_files_can_be_dropped(page, site, images):
    page.go(site)
    page.choose("#files", [images["first.png"]])
    page.run(
        """{
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(document.getElementById("files").files[0]);
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
        }"""
    )
    page.wait_for(f"{STATUS} === '1 of 1 images classified.'")


def test_the_page_works_with_the_keyboard_alone(page, site, images):
    upload(page, site, [images["first.png"]], submit=False)
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
    reached = []
    for _ in range(3):
        page.press("Tab", 9)
        reached.append(page.run(focused))
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is visible
    assert reached == ["Why", "files", "Classify"]
    page.press("Enter", 13, "\r")
    page.wait_for(f"{STATUS} === '1 of 1 images classified.'")
    for _ in range(10):
        page.press("Tab", 9)
        if page.run(focused) == "opacity":
            break
    opacity = "getComputedStyle(document.querySelector('.saliency')).opacity"
    before = float(page.run(opacity))
    page.press("ArrowRight", 39)
    assert float(page.run(opacity)) == pytest.approx(before + 0.01)


def test_the_page_works_without_scripts(page, site, images):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.go(site)
        page.choose("#files", [images["first.png"]])
        page.follow("document.getElementById('upload').submit()")
        assert page.run(ANSWERS) == 1
        assert page.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
        assert "Model output" in page.run("document.querySelector('article').innerText")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


# the contrast of each text with its background, the lowest first, by the formulas of WCAG 2.2
CONTRASTS = """(() => {
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const contrasts = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || !element.checkVisibility() || element.tagName === "METER") continue;
    let background = element;
    while (background.parentElement && (channels(getComputedStyle(background).backgroundColor)[3] ?? 1) === 0) {
      background = background.parentElement;
    }
    const pair = [getComputedStyle(element).color, getComputedStyle(background).backgroundColor];
    const [a, b] = pair.map((colour) => luminance(channels(colour).slice(0, 3))).sort((x, y) => y - x);
    contrasts.push([(a + 0.05) / (b + 0.05), `${element.tagName}.${element.className}: ${pair}`]);
  }
  return contrasts.sort((x, y) => x[0] - y[0]);
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_layout_contrast_and_size_of_controls(page, site, images, tmp_path, window, dark):
    """Nothing is wider than the window, the contrast of text is at least 4.5, and controls can be touched."""
    files = [images[name] for name in ("first.png", "turned.png", "page.png")]
    upload(page, site, files, dark=dark, **WINDOWS[window])
    contrasts = page.run(CONTRASTS)
    assert len(contrasts) > 30 and contrasts[0][0] >= 4.5, contrasts[0]
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    touched = "button, input[type=range], .check"
    controls = f"Array.from(document.querySelectorAll('{touched}')).filter((control) => control.checkVisibility())"
    assert min(page.run(f"{controls}.map((control) => control.getBoundingClientRect().height)")) >= 44  # WCAG 2.5.5
    file = page.screenshot(tmp_path / "page.png")
    grey = np.asarray(Image.open(file).convert("L"))
    assert (np.median(grey) < 80) == dark


@pytest.mark.slow
def test_screenshots_show_one_and_many_results(browser, site, images, tmp_path):
    """`python -m tests.screenshots`, on the two kinds of windows and the two colour schemes."""
    (tmp_path / "whole").mkdir()
    files = take_page(browser, site, [images["first.png"], images["second.png"]], tmp_path)
    names = {f"page-{width}-{scheme}.webp" for width in (1200, 390) for scheme in ("light", "dark")}
    assert names == {file.name for file in files if file.parent == tmp_path}
    assert {file.name for file in files} - names == {
        f"page-{number}-{width}-{scheme}-1.webp"
        for number in (1, 2)
        for width in (1200, 390)
        for scheme in ("light", "dark")
    }
    pictures = {}
    for name in names:
        with Image.open(tmp_path / name) as picture:
            pictures[name] = np.asarray(picture.convert("L"))
    assert pictures["page-1200-dark.webp"].shape == (900, 1200)
    assert pictures["page-390-dark.webp"].shape == (1688, 780)
    light, dark = (np.median(pictures[f"page-1200-{scheme}.webp"]) for scheme in ("light", "dark"))
    assert dark < 80 < 160 < light
