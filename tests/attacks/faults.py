"""The catalogue of faults: what was tried, what is expected, and the test that tries it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Fault", "PAGE", "as_markdown", "read_faults"]

HERE = Path(__file__).parent
PAGE = HERE / "FAULTS.md"
SECTIONS = {
    "4a": "Images",
    "4b": "DICOM",
    "4c": "Tables, labels, splits",
    "4d": "Training and files",
    "4e": "Models, weights, archives, network",
    "4f": "Page and batch",
    "4g": "Privacy and honesty",
    "4h": "Data of other collections",
}


@dataclass(frozen=True)
class Fault:
    """One mechanism by which something goes wrong.

    Attributes:
        section: Of the catalogue.
        row: The catalogue's row that it belongs to, by its first words.
        fault: What is done to the package.
        expected: What it must do.
        severity: S1 silent wrong answer, code execution or a leak; S2 lost work, crash or hang; S3 annoyance.
        test: The test that tries it.
        guard: What is taken out to see the test fail, by the name that marks it in the source; empty where the guard
            is a library's, stands in several places, or is that a thing is not done at all.
    """

    section: str
    row: str
    fault: str
    expected: str
    severity: str
    test: str
    guard: str


def read_faults() -> list[Fault]:
    """Return the faults in their order."""
    with open(HERE / "catalogue.csv", encoding="utf-8", newline="") as file:
        return [Fault(**row) for row in csv.DictReader(file, delimiter="|", quoting=csv.QUOTE_NONE)]


def as_markdown(faults: list[Fault]) -> str:
    """Return the page that says what was tried."""
    guarded = sum(bool(fault.guard) for fault in faults)
    lines = [
        "# Faults that were tried",
        "",
        f"{len(faults)} mechanisms, each with the behaviour that is expected of the package and the test of it;",
        "the tests pass in CI. For "
        f"{guarded} of them `python -m tests.attacks --guards` takes the guard out, in a copy, and demands that",
        "the test then fails. Made from `tests/attacks/catalogue.csv` by `python -m tests.attacks`.",
    ]
    for section, title in SECTIONS.items():
        rows = [fault for fault in faults if fault.section == section]
        lines += ["", f"## {title}", "", "| what is done | what must happen | severity | test | guard taken out |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for fault in rows:
            file, test = fault.test.split("::")
            text = fault.fault.replace("|", "\\|")
            test = f"`{file.removeprefix('tests/')}` {test.removeprefix('test_').replace('_', ' ')}"
            lines.append(f"| {text} | {fault.expected} | {fault.severity} | {test} | {fault.guard} |")
    return "\n".join(lines) + "\n"
