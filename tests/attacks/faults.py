"""The catalogue of faults: each fault, the expected behaviour, and the test of it."""

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
    """One fault.

    Attributes:
        section: The section of the catalogue.
        row: The first words of the row of the catalogue that it belongs to.
        fault: The input or event.
        expected: The expected behaviour of the package.
        severity: S1 wrong result without an error, code execution or a leak; S2 lost work, crash or hang; S3 nuisance.
        test: The test of the fault.
        guard: The name of the guard in the source without which the test fails; empty if the guard is in a library or
            in several places, or if the package simply lacks the dangerous feature.
    """

    section: str
    row: str
    fault: str
    expected: str
    severity: str
    test: str
    guard: str


def read_faults() -> list[Fault]:
    """Return the faults in order."""
    with open(HERE / "catalogue.csv", encoding="utf-8", newline="") as file:
        return [Fault(**row) for row in csv.DictReader(file, delimiter="|", quoting=csv.QUOTE_NONE)]


def as_markdown(faults: list[Fault]) -> str:
    """Return the page with all faults."""
    guarded = sum(bool(fault.guard) for fault in faults)
    lines = [
        "# Tested faults",
        "",
        f"{len(faults)} faults, each with the expected behaviour of the package and its test; the tests pass in CI.",
        f"For {guarded} of them, `python -m tests.attacks --guards` removes the guard in a copy and checks that the",
        "test then fails. Written from `tests/attacks/catalogue.csv` by `python -m tests.attacks`.",
    ]
    for section, title in SECTIONS.items():
        rows = [fault for fault in faults if fault.section == section]
        lines += ["", f"## {title}", "", "| fault | expected behaviour | severity | test | guard |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for fault in rows:
            file, test = fault.test.split("::")
            text = fault.fault.replace("|", "\\|")
            test = f"`{file.removeprefix('tests/')}` {test.removeprefix('test_').replace('_', ' ')}"
            lines.append(f"| {text} | {fault.expected} | {fault.severity} | {test} | {fault.guard} |")
    return "\n".join(lines) + "\n"
