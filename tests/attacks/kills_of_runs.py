"""What `kills.py` kills of whole commands: trainings with audit and report, audits, batches, writers of the cache.

Each function kills so often, at random moments, repeats what was killed, and returns counts: of the kills, and of what
must not happen.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from covid_fastai.run_folder import RunFolder

OPTIONS: dict[str, Any] = {"image_size": 64, "batch_size": 8, "frozen_epochs": 1, "unfrozen_epochs": 1}
OPTIONS |= {"weights": None, "num_workers": 0, "quiet": True}
# same in every run of the same data, whether it was killed or not
COMPARED = ("cohort.csv", "predictions.csv", "metrics.json", "probes.csv", "audit.json", "datasheet.md")
PATIENTS = {"COVID-19": 8, "Normal": 8, "bacteria": 2, "virus": 2}
BATCH = """
import sys
from covid_fastai.app.batch import run

if __name__ == "__main__":
    run.PART_SIZE = 4
    model, data, out = sys.argv[1:]
    run.predict_batch(model, data, out, workers=2)
"""


def fork(work: Callable[[Path], None], folder: Path) -> int:
    """Start work in a child process, and return its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(folder / "log", "a") as log:  # for the child's messages
            os.dup2(log.fileno(), 2)
            os.dup2(log.fileno(), 1)
        work(folder)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill_after(child: int, seconds: float) -> bool:
    """Kill a child after some time, and return whether it still ran."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finish(work: Callable[[Path], None], folder: Path) -> bool:
    """Do work in a child process that is not killed, and return whether it succeeded."""
    return os.waitpid(fork(work, folder), 0)[1] == 0


def damaged_files(folder: Path) -> list[str]:
    """Return the files below a folder that are not whole; temporary files of a killed process do not count."""
    damaged = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or ".unfinished-" in str(path):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".html":
                assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
            elif path.suffix == ".csv":
                header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True)
                assert all(len(row) == len(header) for row in rows)
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".safetensors":
                load_file(path)
        except Exception as error:
            damaged.append(f"{path}: {error!r}")
    return damaged


def facts_of_run(folder: Path) -> dict[str, Any]:
    """Return what a finished run must have in common with one that was never killed."""
    run = RunFolder(folder)
    assert run.is_finished() and run.report.is_file() and run.reporting_items.is_file(), "finished without its files"
    facts: dict[str, Any] = {name: (folder / name).read_text(encoding="utf-8") for name in COMPARED}
    weights = load_file(run.model / "model.safetensors")
    facts |= {name: value.tobytes() for name, value in weights.items()}
    facts["card"] = (run.model / "README.md").is_file()
    return facts


def train_run(folder: Path) -> None:
    """Train with audit and report into `run`, beginning or resuming as a user would."""
    from covid_fastai import train_classifier

    out = RunFolder(folder / "run")
    data = folder.parent / "data"
    if not out.cohort.exists():
        train_classifier(data, out=out.path, **OPTIONS)
    elif not out.is_finished():
        train_classifier(resume=out.path, quiet=True)


def audit_again(folder: Path) -> None:
    """Audit a finished run again and write its report and documents, as `covid-fastai audit` does."""
    from covid_fastai.audit.audit import audit_run
    from covid_fastai.reporting.documents import write_documents
    from covid_fastai.reporting.report import render_report

    audit_run(folder / "run")
    render_report(folder / "run")
    write_documents(folder / "run")


def write_data(root: Path) -> None:
    """Write the synthetic radiographs of the runs."""
    from covid_fastai.data.phantom import write_phantom

    write_phantom(root / "data", patients=PATIENTS, image_size=64, seed=1)


def kill_runs(times: int, root: Path, rng: random.Random) -> dict[str, int]:
    """Kill trainings with audit and report, finish each, and compare them with one that was not killed."""
    write_data(root)
    undisturbed, begun = root / "whole", time.monotonic()
    undisturbed.mkdir()
    assert finish(train_run, undisturbed), (undisturbed / "log").read_text()[-3000:]
    seconds, expected = time.monotonic() - begun, facts_of_run(undisturbed / "run")
    kills = runs = early = unfinished = different = damaged = 0
    while kills < times:
        folder = root / f"run-{runs}"
        folder.mkdir()
        runs += 1
        out = RunFolder(folder / "run")
        while kills < times and not out.is_finished():
            kills += kill_after(fork(train_run, folder), rng.uniform(0.05, 0.9) * seconds)
            damaged += report(damaged_files(folder))
            early += out.is_finished() and not out.reporting_items.is_file()
        if not out.is_finished() and not finish(train_run, folder):
            unfinished += report([(folder / "log").read_text()[-2000:]])
            continue
        differing = [name for name, value in facts_of_run(out.path).items() if value != expected.get(name)]
        different += report([f"{folder}: {name} differs" for name in differing]) > 0
    counts = {"kills": kills, "runs": runs, "finished_too_early": early, "not_resumed": unfinished}
    return {**counts, "different": different, "damaged": damaged}


def kill_audits(times: int, root: Path, rng: random.Random) -> dict[str, int]:
    """Kill repeated audits with their report of one run; its files are whole at any time and equal in the end."""
    write_data(root)
    folder = root / "audited"
    folder.mkdir()
    assert finish(train_run, folder), (folder / "log").read_text()[-3000:]
    begun = time.monotonic()
    assert finish(audit_again, folder), (folder / "log").read_text()[-3000:]
    seconds, expected = time.monotonic() - begun, facts_of_run(folder / "run")
    kills = damaged = 0
    while kills < times:
        kills += kill_after(fork(audit_again, folder), rng.uniform(0.02, 1) * seconds)
        damaged += report(damaged_files(folder / "run"))
    failed = not finish(audit_again, folder)
    return {"kills": kills, "damaged": damaged, "different": int(failed or facts_of_run(folder / "run") != expected)}


def kill_batches(times: int, root: Path, rng: random.Random) -> dict[str, int]:
    """Kill batches, resume each, and compare their tables with one of a batch that was not killed."""
    from tests.small_model import write_small_model

    model, script = write_small_model(root / "model"), root / "batch.py"
    script.write_text(BATCH)
    write_squares(root / "data", 40)

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(model), str(root / "data"), str(out)]
        return subprocess.Popen(command, start_new_session=True, stderr=open(root / "log", "ab"))

    begun = time.monotonic()
    assert start(root / "whole.csv").wait() == 0, (root / "log").read_text()[-3000:]
    seconds, expected = time.monotonic() - begun, (root / "whole.csv").read_bytes()
    kills = batches = different = 0
    while kills < times:
        out = root / f"{batches}.csv"
        batches += 1
        while kills < times and not out.exists():
            child = start(out)
            time.sleep(rng.uniform(0.3, 1) * seconds)
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                kills += 1
            child.wait()
        if not out.exists() and start(out).wait() != 0:
            report([(root / "log").read_text()[-2000:]])
        different += not out.exists() or out.read_bytes() != expected
    return {"kills": kills, "batches": batches, "different": different}


def kill_caches(times: int, root: Path, rng: random.Random) -> dict[str, int]:
    """Kill processes that write to the cache of decoded images; what is read from it is never wrong."""
    write_squares(root / "data", 60)
    os.environ["COVID_FASTAI_CACHE"] = str(root / "cache")
    kills = wrong = 0
    while kills < times:
        children = [fork(fill_cache, root) for _ in range(2)]
        kills += kill_after(children[0], rng.uniform(0, 0.4))
        kills += kill_after(children[1], rng.uniform(0, 0.2))
        wrong += not finish(check_cache, root)
    return {"kills": kills, "wrong": wrong, "not_filled": int(not finish(check_cache, root))}


def fill_cache(folder: Path) -> None:
    """Decode all images through the cache at ever other sizes, until the process is killed."""
    from covid_fastai.data.cache import square_pixels

    files = sorted((folder / "data").iterdir())
    rng = random.Random(os.getpid())
    while True:
        square_pixels(rng.choice(files), rng.choice(range(32, 96, 2)))


def check_cache(folder: Path) -> None:
    """Raise if an image from the cache differs from the decoded file."""
    from covid_fastai.data.cache import square_pixels
    from covid_fastai.data.images import open_square

    for path in sorted((folder / "data").iterdir()):
        for size in (32, 64, 94):
            assert np.array_equal(square_pixels(path, size), np.asarray(open_square(path, size))), (path, size)


def write_squares(folder: Path, number: int) -> None:
    """Write images of noise over a gradient."""
    folder.mkdir()
    for index in range(number):
        noise = np.random.default_rng(index).integers(0, 60, (80, 70)) + np.linspace(0, 190, 70)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index:03d}.png")


def report(faults: list[str]) -> int:
    """Print faults, and return their number."""
    for fault in faults:
        print(fault, file=sys.stderr)
    return len(faults)
