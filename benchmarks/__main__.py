"""`python -m benchmarks [NAME ...]`: run benchmarks, and write results.csv, results.md and results.png to this folder.

Earlier results of other benchmarks remain. COVID_FASTAI_DATA is the folder of real radiographs; without it the images
are synthetic, which the table states. ONEDNN_MAX_CPU_ISA=AVX2 withholds AMX and AVX512-BF16, as on a processor without
them. `python -m benchmarks gpu` checks the package on a GPU.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks import gpu, growth, images, predicting, quantizing, tables, training
from benchmarks.machine import describe_machine
from benchmarks.recording import write_results

HERE = Path(__file__).parent
TRAININGS = ("frozen", "step", "article", "article-resnet50")  # which the number format matters for
BENCHMARKS = {
    "images": images.measure,
    "warm": images.measure_warm,
    "frozen": training.measure_frozen,
    "step": training.measure_step,
    "article": training.measure_article,
    "article-resnet50": partial(training.measure_article, arch="resnet50"),
    "files": predicting.measure_files,
    "start": predicting.measure_start,
    "int8": quantizing.measure_int8,
    "rows": tables.measure_rows,
    "memory": tables.measure_memory,
    "bootstrap": tables.measure_bootstrap,
    "copies": tables.measure_copies,
    "search": tables.measure_search,
    "predictions": growth.measure_predictions,
    "run": growth.measure_images,
}


def main() -> None:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}; or gpu alone; default: all but gpu",
    )
    parser.add_argument("--repeats", type=int, default=5, help="number of measured pairs")
    parser.add_argument(
        "--quick", action="store_true", help="run with little work, to test them; times have no meaning"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the results")
    arguments = parser.parse_args()
    if arguments.names == ["gpu"]:
        sys.exit(gpu.main(quick=arguments.quick, out=arguments.out))
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmarks: {', '.join(unknown)}; known are {', '.join(BENCHMARKS)}")
    logging.getLogger("covid_fastai").setLevel(logging.WARNING)
    machine = describe_machine()
    for name in arguments.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        measurements = BENCHMARKS[name](repeats=arguments.repeats, quick=arguments.quick)
        rows = [measurement.to_dict() for measurement in measurements]
        used = machine if name in TRAININGS else {**machine, "format": ""}
        write_results(arguments.out, name, rows, machine=used)
        print(pd.DataFrame(rows).to_string(index=False), flush=True)


if __name__ == "__main__":
    pd.set_option("display.width", 200)
    main()
