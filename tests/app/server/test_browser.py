"""The page in a real browser: upload, answer, overlay, error, keyboard, phone, dark; nothing from another host."""

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
def pictures(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    contents = {"first.png": png(radiograph(0, 512)), "second.png": png(radiograph(5, 300))}
    contents |= {"turned.png": png(np.ascontiguousarray(radiograph(1)[::-1, ::-1]))}
    contents |= {"page.png": b"<!doctype html>", "=cmd()<b>.png": contents["first.png"]}
    contents["large.png"] = b"x" * 1_200_000
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


ANSWERS = "document.querySelectorAll('#answers article').length"
SAID = "document.getElementById('state').textContent"


def ask(page, site, files, *, press=True, **options):
    page.go(site, **options)
    page.choose("#files", files)
    if press:
        page.run("document.querySelector('#ask button').click()")
        page.wait_for(f"{SAID}.includes(' answered.')")


def test_upload_answer_and_overlay(page, site, pictures):
    ask(page, site, [pictures["first.png"], pictures["second.png"]])
    assert page.run(ANSWERS) == 2 and page.run(SAID) == "2 of 2 answered."
    text = page.run("document.querySelector('#answers article').innerText")
    for words in ("first.png", "Model output: ", "Normal", "COVID-19", "Verdict on this model", "not stated"):
        assert words in text
    shown = page.run("Array.from(document.querySelectorAll('#answers img'), (image) => image.naturalWidth)")
    assert shown == [512, 512, 300, 300]  # the pictures were drawn: the policy lets data: URLs through
    heat = "getComputedStyle(document.querySelector('.heat')).opacity"
    assert page.run(heat) == "0.6"
    move = "const s = document.querySelector('.opacity'); s.value = {}; s.dispatchEvent(new Event('input'))"
    for value in (0, 100, 25):
        page.run(f"{{{move.format(value)}}}")
        assert float(page.run(heat)) == value / 100
    assert page.run("getComputedStyle(document.querySelectorAll('.heat')[1]).opacity") == "0.6"  # each has its own
    assert all(address.startswith((site, "data:image/png")) for address in page.requests) and len(page.requests) >= 5


def test_errors_are_told(page, site, pictures):
    ask(page, site, [pictures["page.png"], pictures["large.png"], pictures["turned.png"]])
    assert page.run(ANSWERS) == 2
    said = page.run(SAID)
    assert "1 of 3 answered." in said and "page.png" in said and "large.png: it has more than 1 MiB" in said
    first, second = page.run("Array.from(document.querySelectorAll('article'), (one) => one.innerText)")
    assert "No answer: " in first and "HTML" in first
    assert "The model names no class." in second and "upside down" in second
    assert page.run("document.querySelector('details').open") is False
    assert page.run("document.querySelectorAll('.heat').length") == 0  # a map would name a class


def test_a_server_that_is_gone_is_told(browser, small_model, pictures):
    with serving(small_model) as (port, process):
        browser.go(f"http://127.0.0.1:{port}/")
        browser.choose("#files", [pictures["first.png"]])
        process.kill()
        process.wait()
        browser.run("document.querySelector('#ask button').click()")
        browser.wait_for(f"{SAID}.includes('0 of 1 answered')")
    assert browser.run("document.querySelector('#ask button').disabled") is False


def test_the_table(page, site, pictures, tmp_path):
    ask(page, site, [pictures["first.png"], pictures["=cmd()<b>.png"], pictures["page.png"]])
    page.run("window.made = null; URL.createObjectURL = (blob) => { window.made = blob; return '#'; }")
    page.run("document.getElementById('table').click()")
    table = list(csv.DictReader(io.StringIO(page.run("window.made.text()"))))
    assert [row["path"] for row in table] == ["first.png", "'=cmd()<b>.png", "page.png"]
    assert [row["status"] for row in table] == ["ok", "ok", "unreadable"]
    assert list(table[0]) == ["path", "p_Normal", "p_COVID-19", "prediction", "status", "reason", "remark"]
    assert float(table[0]["p_Normal"]) + float(table[0]["p_COVID-19"]) == pytest.approx(1, abs=1e-6)
    assert table[2]["p_Normal"] == "" and "HTML" in table[2]["reason"]
    page.run("document.getElementById('clear').click()")
    assert page.run(ANSWERS) == 0 and page.run("document.getElementById('results').hidden") is True


def test_dropping_files(page, site, pictures):
    page.go(site)
    page.choose("#files", [pictures["first.png"]])
    page.run(
        """{
        const carried = new DataTransfer();
        carried.items.add(document.getElementById("files").files[0]);
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true}));
        }"""
    )
    page.wait_for(f"{SAID} === '1 of 1 answered.'")


def test_by_keyboard_alone(page, site, pictures):
    ask(page, site, [pictures["first.png"]], press=False)
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
    reached = []
    for _ in range(2):
        page.press("Tab", 9)
        reached.append(page.run(focused))
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is seen
    assert reached == ["files", "Ask the model"]
    page.press("Enter", 13, "\r")
    page.wait_for(f"{SAID} === '1 of 1 answered.'")
    for _ in range(10):
        page.press("Tab", 9)
        if page.run(focused) == "opacity":
            break
    before = float(page.run("getComputedStyle(document.querySelector('.heat')).opacity"))
    page.press("ArrowRight", 39)
    assert float(page.run("getComputedStyle(document.querySelector('.heat')).opacity")) == pytest.approx(before + 0.01)


def test_without_scripts(page, site, pictures):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.go(site)
        page.choose("#files", [pictures["first.png"]])
        page.run("document.getElementById('ask').submit()")
        page.wait_for(f"{ANSWERS} === 1")
        assert page.run("getComputedStyle(document.querySelector('.slider')).display") == "none"
        assert "Model output" in page.run("document.querySelector('article').innerText")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


CONTRAST = """(() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || !element.checkVisibility() || element.tagName === "METER") continue;
    let ground = element;
    while (ground.parentElement && (parts(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) {
      ground = ground.parentElement;
    }
    const pair = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor];
    const [a, b] = pair.map((colour) => light(parts(colour).slice(0, 3))).sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), `${element.tagName}.${element.className}: ${pair}`]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()"""
WINDOWS = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844, "phone": True}}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_how_it_looks(page, site, pictures, tmp_path, window, dark):
    """Nothing is wider than the window, text has a contrast of 4.5, controls of a phone are large enough for a thumb.

    COVID_FASTAI_SCREENSHOTS names a folder that keeps the pictures.
    """
    files = [pictures[name] for name in ("first.png", "turned.png", "page.png")]
    ask(page, site, files, dark=dark, **WINDOWS[window])
    contrasts = page.run(CONTRAST)
    assert len(contrasts) > 30 and contrasts[0][0] >= 4.5, contrasts[0]
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    controls = (
        "Array.from(document.querySelectorAll('button, input.opacity'), (one) => one.getBoundingClientRect().height)"
    )
    assert min(page.run(controls)) >= 44  # pixels, WCAG 2.5.5
    folder = Path(os.environ.get("COVID_FASTAI_SCREENSHOTS", tmp_path))
    file = page.screenshot(folder / f"page-{window}-{'dark' if dark else 'light'}.png")
    grey = np.asarray(Image.open(file).convert("L"))
    assert (np.median(grey) < 80) == dark
