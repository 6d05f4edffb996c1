"""Screenshots of the report and of the web page, on a desk and a phone, light and dark, to look at.

    python -m tests.screenshots OUT [--run RUN]

trains the demo, or takes a run, and writes what a window shows at first into OUT as WebP, and whole pages and a print
into OUT/whole. Needs Chromium. `cp OUT/*.webp docs/images` renews the documentation's pictures, which are of the demo.
"""

from __future__ import annotations

import argparse
import base64
import sys
from itertools import product
from pathlib import Path
from typing import Any

from tests.app.cli.test_serve import serving
from tests.app.server.browser import Page, find_chromium, open_browser

__all__ = ["main", "take_page", "take_report"]

WINDOWS = {1200: {"width": 1200, "height": 900}, 390: {"width": 390, "height": 844, "phone": True}}
SCHEMES = {"light": False, "dark": True}
TO_CLASSIFY = {"COVID-19": 12, "Normal": 13}  # drawings of one upload, one of each patient
TALLEST = 7000  # CSS pixels of one file: WebP ends at 16,383 pixels, of which a phone has two for each
QUALITY = 75  # of WebP
CLASSIFIED = "document.getElementById('status').textContent.includes(' classified.')"


def take_report(browser: Page, report: Path, out: Path) -> list[Path]:
    """Take screenshots of a report with its tables folded, and print it.

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
        files += [_take_window(browser, out / f"report-{width}-{scheme}.webp")]
        files += _take_whole(browser, out / "whole" / f"report-{width}-{scheme}")
    browser.go(report.resolve().as_uri())
    printed = browser.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    files.append(out / "whole" / "report.pdf")
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
            if len(chosen) == 1:
                files += [_take_window(browser, out / f"page-{width}-{scheme}.webp", at="#status")]
            files += _take_whole(browser, out / "whole" / f"page-{len(chosen)}-{width}-{scheme}")
    return files


def _take_window(browser: Page, file: Path, *, at: str = "body") -> Path:
    """Write what the window shows of a page that is scrolled to an element."""
    browser.wait_for("Array.from(document.images).every((image) => image.complete)")
    browser.run(f"document.querySelector({at!r}).scrollIntoView()")
    return _capture(browser, file)


def _take_whole(browser: Page, stem: Path) -> list[Path]:
    """Write the whole page, in parts with numbers where it is tall."""
    browser.wait_for("Array.from(document.images).every((image) => image.complete)")
    browser.run("window.scrollTo(0, 0)")
    width, height = browser.run("[document.documentElement.clientWidth, document.documentElement.scrollHeight]")
    files = []
    for number, top in enumerate(range(0, height, TALLEST), 1):
        clip = {"x": 0, "y": top, "width": width, "height": min(TALLEST, height - top), "scale": 1}
        file = stem.with_name(f"{stem.name}-{number}.webp")
        files.append(_capture(browser, file, captureBeyondViewport=True, clip=clip))
    return files


def _capture(browser: Page, file: Path, **options: Any) -> Path:
    picture = browser.call("Page.captureScreenshot", format="webp", quality=QUALITY, **options)
    file.write_bytes(base64.b64decode(picture["data"]))
    return file


def train_demo(out: Path) -> Path:
    """Train the demo into a folder, with its drawings beside it, and return the run."""
    from covid_fastai.app.cli.main import DEMO, DEMO_DATA
    from covid_fastai.data.phantom import write_phantom
    from covid_fastai.training.train import train_classifier

    data = write_phantom(out / "drawings", seed=0, **DEMO_DATA)
    return Path(train_classifier(data, out=out / "run", quiet=True, seed=0, **DEMO).path)


def draw_radiographs(folder: Path) -> list[Path]:
    """Draw radiographs that a model of the demo has not seen, one of each patient."""
    from covid_fastai import read_cohort
    from covid_fastai.data.phantom import write_phantom

    if not folder.exists():
        write_phantom(folder, patients=TO_CLASSIFY, image_size=256, severity=1.5, seed=1)
    cohort = read_cohort(folder)
    return [Path(path) for path in cohort.drop_duplicates("patient")["path"]]


def main(arguments: list[str] | None = None) -> int:
    """Write all files, and print their names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", type=Path, help="a run to show in place of the demo")
    options = parser.parse_args(arguments)
    if find_chromium() is None:
        sys.exit("No Chromium is installed.")
    (options.out / "whole").mkdir(parents=True, exist_ok=True)
    run = options.run or train_demo(options.out / "demo")
    images = draw_radiographs(options.out / "to-classify")
    with open_browser() as browser, serving(run / "model", "--per-minute", "0") as (port, _):
        files = take_report(browser, run / "report.html", options.out)
        files += take_page(browser, f"http://127.0.0.1:{port}/", images, options.out)
    print("\n".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
