"""`python -m tests.attacks` writes FAULTS.md; with `--guards` it removes guards one by one and runs their tests."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.attacks.faults import PAGE, as_markdown, read_faults
from tests.attacks.guards import find_guards, take_out

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Write the page, or check the guards; the exit status is 1 if a test passes without its guard."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--guards", nargs="*", metavar="NAME", help="remove these guards; default: all")
    arguments = parser.parse_args()
    faults = read_faults()
    if arguments.guards is None:
        PAGE.write_text(as_markdown(faults), encoding="utf-8")
        print(f"{len(faults)} faults: {PAGE}")
        return 0
    undetected = []
    with tempfile.TemporaryDirectory(prefix="covid_fastai-guards-") as folder:
        copy = Path(folder)
        for name in ("covid_fastai", "tests", "pretraining", "nbs", "benchmarks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "settings.ini", "README.md", "setup.py"):
            shutil.copy(ROOT / name, copy)
        for name in arguments.guards or find_guards(copy):
            tests = sorted({fault.test for fault in faults if fault.guard == name})
            for test in tests:
                detected = fails_without(copy, name, test)
                print(f"{name:20} {'detected' if detected else 'NOT DETECTED'}  {test}", flush=True)
                undetected += [] if detected else [(name, test)]
    print(f"{len(undetected)} not detected: {undetected}")
    return int(bool(undetected))


def fails_without(copy: Path, name: str, test: str) -> bool:
    """Return whether a test fails in a copy of the repository without one of the guards; the guard is then restored."""
    guard = find_guards(copy)[name]
    source = guard.path.read_text(encoding="utf-8")
    guard.path.write_text(take_out(source, guard), encoding="utf-8")
    try:
        return run(copy, test) == 1  # pytest's status for failed tests; 2 to 5 are other errors
    finally:
        guard.path.write_text(source, encoding="utf-8")


def run(copy: Path, test: str) -> int:
    """Run one test in a copy of the repository, and return pytest's exit status."""
    options = ["-n", "0", "-q", "-x", "-m", "", "-p", "no:cacheprovider", "--timeout", "120", "--rootdir", str(copy)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *options, str(copy / test)]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode


if __name__ == "__main__":
    sys.exit(main())
