"""axe-core on the web page, the reports and the documentation: no violation, on a desk and a phone, light and dark.

`COVID_FASTAI_AXE` is the path of axe.min.js: `npm install axe-core@4.14.1`, then
`COVID_FASTAI_AXE=node_modules/axe-core/axe.min.js pytest -m "" tests/test_accessibility.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="websockets is not installed")

from tests.app.cli.test_serve import serving
from tests.app.server.browser import find_chromium, open_browser
from tests.app.server.test_app import png, radiograph

REPOSITORY = Path(__file__).parents[1]
AXE = Path(os.environ.get("COVID_FASTAI_AXE", "node_modules/axe-core/axe.min.js"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed"),
    pytest.mark.skipif(
        not AXE.is_file(), reason="system: axe-core is not there; COVID_FASTAI_AXE names its axe.min.js"
    ),
]

VIEWS = [
    {"width": 1200, "height": 900},
    {"width": 1200, "height": 900, "dark": True},
    {"width": 390, "height": 844, "phone": True},
    {"width": 390, "height": 844, "phone": True, "dark": True},
]
VIEWS_OF_PAGES = [VIEWS[0], VIEWS[3]]  # of the documentation, which has 40 pages
# the rule, the element and why, of each violation
CHECK = """axe.run({resultTypes: ["violations"]}).then((result) => result.violations.flatMap((rule) => (
  rule.nodes.map((node) => `${rule.id}: ${node.target.join(" ")}: ${node.failureSummary}`))))"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as page:
        yield page


def violations(page) -> list[str]:
    page.run(AXE.read_text(encoding="utf-8") + "; true")  # not through the page, whose policy allows no other script
    return page.run(CHECK)


def check(browser, addresses: list[str], views=VIEWS) -> None:
    found = {}
    for view in views:
        browser.go(addresses[0], **view)
        browser.run("localStorage.clear()")  # the documentation keeps the scheme of the first visit
        for address in addresses:
            browser.go(address, **view)
            scheme = browser.run("(document.body.dataset.mdColorScheme || '').replace('default', 'light')")
            assert scheme in ("", "slate" if view.get("dark") else "light"), f"{address} is shown in {scheme}"
            if faults := violations(browser):
                found[f"{address} {view}"] = faults
    assert not found, "\n".join(f"{where}: {fault}" for where, faults in found.items() for fault in faults)


def test_the_web_page(browser, small_model, tmp_path):
    files = []
    for number in range(4):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(png(radiograph(number)) if number else b"<!doctype html>")
    turned = tmp_path / "turned.png"
    turned.write_bytes(png(np.ascontiguousarray(radiograph(1)[::-1, ::-1])))
    with serving(small_model, "--per-minute", "0") as (port, _):
        for view in VIEWS:
            browser.go(f"http://127.0.0.1:{port}/", **view)
            assert not violations(browser)
            for chosen in ([files[1]], [turned], files):
                browser.choose("#files", chosen)
                browser.run("document.querySelector('#upload button').click()")
                browser.wait_for("document.getElementById('status').textContent.includes(' classified.')")
                browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
                assert not violations(browser), f"{len(chosen)} files, {view}"
                browser.run("document.getElementById('status').textContent = ''")


def test_the_reports(browser, covid_dataset, tmp_path):
    """Of a run with its audit, which has every section but the external validation, and of data."""
    from covid_fastai import read_cohort, train_classifier
    from covid_fastai.reporting.data_pages import write_exploration

    quick = {"image_size": 32, "frozen_epochs": 0, "unfrozen_epochs": 1, "weights": None, "num_workers": 0}
    learn = train_classifier(covid_dataset, out=tmp_path / "run", quiet=True, **quick)
    page = write_exploration(read_cohort(covid_dataset), tmp_path / "exploration.html")
    check(browser, [path.resolve().as_uri() for path in (learn.path / "report.html", page)])


@pytest.mark.timeout(1800)
def test_the_documentation(browser, tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    pages = sorted(path.as_uri() for path in tmp_path.rglob("*.html") if path.name != "404.html")
    assert len(pages) > 30
    check(browser, pages, VIEWS_OF_PAGES)
