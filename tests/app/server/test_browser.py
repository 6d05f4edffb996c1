"""The page in a browser: upload, results, overlay, errors, keyboard, phone, dark mode, no other hosts."""

from __future__ import annotations

import csv
import io
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


ANSWERS = "document.querySelectorAll('#answers article').length"
STATUS = "document.getElementById('status').textContent"


def upload(page, site, files, *, submit=True, **options):
    page.go(site, **options)
    page.choose("#files", files)
    if submit:
        page.run("document.querySelector('#upload button').click()")
        page.wait_for(f"{STATUS}.includes(' classified.')")


def test_upload_result_and_overlay(page, site, images):
    upload(page, site, [images["first.png"], images["second.png"]])
    assert page.run(ANSWERS) == 2 and page.run(STATUS) == "2 of 2 images classified."
    text = page.run("document.querySelector('#answers article').innerText")
    for expected in ("first.png", "Model output: ", "Normal", "COVID-19", "Verdict on this model", "not stated"):
        assert expected in text
    widths = page.run("Array.from(document.querySelectorAll('#answers img'), (image) => image.naturalWidth)")
    assert widths == [512, 512, 300, 300]  # the content security policy allows data: URLs of images
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
    assert page.run(ANSWERS) == 2
    status = page.run(STATUS)
    assert "1 of 3 images classified. No prediction: page.png; large.png: it has more than 1 MiB" in status
    first, second = page.run("Array.from(document.querySelectorAll('article'), (article) => article.innerText)")
    assert "No prediction: " in first and "HTML" in first
    assert "The predicted class is withheld." in second and "upside down" in second
    assert page.run("document.querySelector('details').open") is False
    assert page.run("document.querySelectorAll('.saliency').length") == 0  # a map would reveal the class


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
    assert list(table[0]) == ["path", "p_Normal", "p_COVID-19", "prediction", "status", "reason", "remark"]
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
    for _ in range(2):
        page.press("Tab", 9)
        reached.append(page.run(focused))
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is visible
    assert reached == ["files", "Classify"]
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
        page.run("document.getElementById('upload').submit()")
        page.wait_for(f"{ANSWERS} === 1")
        assert page.run("getComputedStyle(document.querySelector('.slider')).display") == "none"
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
WINDOWS = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844, "phone": True}}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_layout_contrast_and_size_of_controls(page, site, images, tmp_path, window, dark):
    """Nothing is wider than the window, the contrast of text is at least 4.5, and controls are large enough for touch.

    The environment variable COVID_FASTAI_SCREENSHOTS sets the folder of the screenshots.
    """
    files = [images[name] for name in ("first.png", "turned.png", "page.png")]
    upload(page, site, files, dark=dark, **WINDOWS[window])
    contrasts = page.run(CONTRASTS)
    assert len(contrasts) > 30 and contrasts[0][0] >= 4.5, contrasts[0]
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    controls = "Array.from(document.querySelectorAll('button, input.opacity'))"
    assert min(page.run(f"{controls}.map((control) => control.getBoundingClientRect().height)")) >= 44  # WCAG 2.5.5
    folder = Path(os.environ.get("COVID_FASTAI_SCREENSHOTS", tmp_path))
    file = page.screenshot(folder / f"page-{window}-{'dark' if dark else 'light'}.png")
    grey = np.asarray(Image.open(file).convert("L"))
    assert (np.median(grey) < 80) == dark
