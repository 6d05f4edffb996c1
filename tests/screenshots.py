"""Screenshots of the report and of the web page, on a desk and a phone, light and dark, to look at.

    python -m tests.screenshots OUT [--run RUN]

trains the demo, or takes another run, and writes WebP files and a print into OUT. Needs Chromium.
"""

from __future__ import annotations

import argparse
import base64
import sys
from itertools import product
from pathlib import Path

from tests.app.cli.test_serve import serving
from tests.app.server.browser import Page, find_chromium, open_browser

__all__ = ["main", "take_page", "take_report"]

WINDOWS = {1200: {"width": 1200, "height": 900}, 390: {"width": 390, "height": 844, "phone": True}}
SCHEMES = {"light": False, "dark": True}
MANY = 25  # files of one upload
TALLEST = 7000  # CSS pixels of one file: WebP ends at 16,383 pixels, of which a phone has two for each
QUALITY = 75  # of WebP
CLASSIFIED = "document.getElementById('status').textContent.includes(' classified.')"


def take_report(browser: Page, report: Path, out: Path) -> list[Path]:
    """Take screenshots of the whole report with its tables folded, and print it.

    Args:
        browser: The browser.
        report: The page of a run.
        out: The folder of the files.

    Returns:
        The files.
    """
    files = []
    for width, scheme in product(WINDOWS, SCHEMES):
        browser.go(report.resolve().as_uri(), dark=SCHEMES[scheme], **WINDOWS[width])
        files += _take(browser, out / f"report-{width}-{scheme}")
    browser.go(report.resolve().as_uri())
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    files.append(out / "report.pdf")
    files[-1].write_bytes(base64.b64decode(printed["data"]))
    return files


def take_page(browser: Page, address: str, images: list[Path], out: Path) -> list[Path]:
    """Take screenshots of the web page with the result of one file, and with those of many.

    Args:
        browser: The browser.
        address: Where the page is served.
        images: Radiographs, the first for the page with one result.
        out: The folder of the files.

    Returns:
        The files.
    """
    files = []
    for width, scheme in product(WINDOWS, SCHEMES):
        for chosen in (images[:1], images):
            browser.go(address, dark=SCHEMES[scheme], **WINDOWS[width])
            browser.choose("#files", chosen)
            browser.run("document.querySelector('#upload button').click()")
            browser.wait_for(CLASSIFIED, seconds=120)
            number = "" if len(chosen) == 1 else f"-{len(chosen)}-files"
            files += _take(browser, out / f"page{number}-{width}-{scheme}")
    return files


def _take(browser: Page, stem: Path) -> list[Path]:
    """Write what a window shows at first as `stem`, and the whole document as parts with numbers."""
    browser.run("window.scrollTo(0, 0)")
    browser.wait_for("Array.from(document.images).every((image) => image.complete)")
    width, height = browser.run("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    first = browser.run("window.innerHeight")
    parts = [(stem.with_suffix(".webp"), 0, first)]
    for number, top in enumerate(range(0, height, TALLEST), 1):
        parts.append((stem.with_name(f"{stem.name}-whole-{number}.webp"), top, min(TALLEST, height - top)))
    for file, top, tall in parts:
        clip = {"x": 0, "y": top, "width": width, "height": tall, "scale": 1}
        options = {"format": "webp", "quality": QUALITY, "captureBeyondViewport": True, "clip": clip}
        file.write_bytes(base64.b64decode(browser.call("Page.captureScreenshot", **options)["data"]))
    return [file for file, *_ in parts]


def train_demo(out: Path) -> Path:
    """Train the demo into a folder, with its drawings beside it, and return the run."""
    from covid_fastai.app.cli.main import DEMO, DEMO_DATA
    from covid_fastai.data.phantom import write_phantom
    from covid_fastai.training.train import train_classifier

    data = write_phantom(out / "drawings", seed=0, **DEMO_DATA)
    return Path(train_classifier(data, out=out / "run", quiet=True, seed=0, **DEMO).path)


def main(arguments: list[str] | None = None) -> int:
    """Write all files, and print their names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", type=Path, help="a run to show in place of the demo")
    options = parser.parse_args(arguments)
    if find_chromium() is None:
        sys.exit("No Chromium is installed.")
    options.out.mkdir(parents=True, exist_ok=True)
    run = options.run or train_demo(options.out / "demo")
    from covid_fastai import read_run

    cohort = read_run(run).cohort
    images = [Path(path) for path in cohort.loc[cohort["split"] == "valid", "path"].head(MANY)]
    with open_browser() as browser, serving(run / "model", "--per-minute", "0") as (port, _):
        files = take_report(browser, run / "report.html", options.out)
        files += take_page(browser, f"http://127.0.0.1:{port}/", images, options.out)
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
