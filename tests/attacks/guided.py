"""Fuzzing guided by coverage: `python -m tests.attacks.guided --minutes 10 --seed 1` (needs atheris).

libFuzzer changes the example files of `tests.attacks.fuzz`, and continues from those changes that reach new code of
this package or of the libraries that it reads files with. Each kind has a process and an equal part of the time, which
is that of the processor: other work on the machine does not shorten it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from covid_fastai.errors import CovidFastaiError

LIBRARIES = ["covid_fastai", "PIL", "pydicom", "tifffile"]  # whose Python code guides; the C code of others does not
LONGEST = 20  # seconds for one file
LARGEST = 4096  # MiB of a process
DONE = "Nothing found in"
KINDS = "image square prediction cohort predictions config.json findings.json README.md graph DICOM".split()


def fuzz_kind(kind: str, seconds: float, options: list[str]) -> None:
    """Fuzz one kind of file in this process, which ends with it: with status 0 if nothing was found.

    Args:
        kind: One of `KINDS`.
        seconds: The processor time of this process after which it ends.
        options: Options of libFuzzer.
    """
    import atheris

    with atheris.instrument_imports(include=LIBRARIES):
        fuzz = importlib.import_module("tests.attacks.fuzz")
    folder = Path(tempfile.mkdtemp())
    kinds = {name: (examples, use) for name, examples, use in fuzz.targets(folder, np.random.default_rng(0))}
    examples, use = kinds[kind]
    corpus = folder / "corpus"
    corpus.mkdir()
    for name, content in examples.items():
        (corpus / name).write_bytes(content)

    files = 0

    def open_one(content: bytes) -> None:
        nonlocal files
        try:
            use(content)
        except CovidFastaiError as error:
            assert error.message and error.hint is not None
        files += 1
        if time.process_time() > seconds:
            shutil.rmtree(folder)
            print(f"{DONE} {files:,} files in {time.process_time():.0f} seconds of processor time", file=sys.stderr)
            sys.stderr.flush()
            os._exit(0)  # libFuzzer never returns

    atheris.Setup([sys.argv[0], *options, str(corpus)], open_one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz each kind in a process of its own; the exit status is 1 if one found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.guided", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of processor time, all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzzed"))
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; repeatable")
    parser.add_argument("--here", action="store_true", help="in this process, as it is called for each kind")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    keep = arguments.keep.resolve()
    keep.mkdir(exist_ok=True)
    seconds = max(1, int(60 * arguments.minutes / len(kinds)))
    if arguments.here:
        (kind,) = kinds
        limits = [f"-timeout={LONGEST}", f"-rss_limit_mb={LARGEST}", "-verbosity=1"]
        fuzz_kind(kind, seconds, [*limits, f"-seed={arguments.seed}", f"-artifact_prefix={keep}/{kind}-"])
    failed = []
    for kind in kinds:
        command = [sys.executable, "-W", "ignore", "-m", "tests.attacks.guided", "--here", "--kind", kind]
        command += ["--minutes", str(seconds / 60), "--seed", str(arguments.seed), "--keep", str(keep)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        runs = next((line for line in reversed(lines) if line.startswith(DONE)), "stopped at a finding")
        print(f"{kind:15} {runs}", flush=True)
        if done.returncode:
            failed.append(kind)
            print("\n".join(lines[-40:]), flush=True)
    print(f"{len(failed)} kinds with a finding: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
