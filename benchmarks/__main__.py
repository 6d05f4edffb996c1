"""`python -m benchmarks [NAME ...]`: run benchmarks, and write results.csv, results.md and results.png to this folder.

Earlier results of other benchmarks remain. COVID_FASTAI_DATA is the folder of real radiographs; without it the images
are synthetic, which the table states.
"""

from __future__ import annotations

import argparse
import logging
import platform
from pathlib import Path

import pandas as pd

from benchmarks import images, predicting, tables, training
from benchmarks.recording import write_results

HERE = Path(__file__).parent
BENCHMARKS = {
    "images": images.measure,
    "frozen": training.measure_frozen,
    "step": training.measure_step,
    "article": training.measure_article,
    "files": predicting.measure_files,
    "start": predicting.measure_start,
    "rows": tables.measure_rows,
    "memory": tables.measure_memory,
    "bootstrap": tables.measure_bootstrap,
    "copies": tables.measure_copies,
}


def main() -> None:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="number of measured pairs")
    parser.add_argument(
        "--quick", action="store_true", help="run with little work, to test them; times have no meaning"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the results")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmarks: {', '.join(unknown)}; known are {', '.join(BENCHMARKS)}")
    logging.getLogger("covid_fastai").setLevel(logging.WARNING)
    machine = f"{_processor()}, Python {platform.python_version()}"
    for name in arguments.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        measurements = BENCHMARKS[name](repeats=arguments.repeats, quick=arguments.quick)
        rows = [measurement.to_dict() for measurement in measurements]
        table = write_results(arguments.out, name, rows, machine=machine)
        print(
            table[table["benchmark"] == name].drop(columns=["benchmark", "machine"]).to_string(index=False), flush=True
        )


def _processor() -> str:
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = lines[0] if lines else name
    import torch

    from covid_fastai.model.precision import bf16_instructions

    bf16 = f", {found}" if (found := bf16_instructions()) else ""
    return f"{name}, {cores} cores{bf16}, torch {torch.__version__}"


if __name__ == "__main__":
    pd.set_option("display.width", 200)
    main()
