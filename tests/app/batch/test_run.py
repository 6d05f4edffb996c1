"""Batches: one row per image, after kills of the batch or of a worker, with local processes and with Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.app.batch import local, run
from covid_fastai.app.batch.run import predict_batch
from covid_fastai.errors import DataError, ResourceError, UsageError
from covid_fastai.model.predictor import Predictor
from tests.small_model import write_small_model

CODE = """
import sys
from covid_fastai.app.batch import run
if __name__ == "__main__":
    run.PART_SIZE = int(sys.argv[4])
    run.predict_batch(*sys.argv[1:4], workers=2, engine=sys.argv[5])
"""


UNGUARDED = {  # scripts that lack `if __name__ == "__main__":`
    "plain": "predict_batch(*sys.argv[1:4], workers=2)",
    "in a function": """
def main():
    predict_batch(*sys.argv[1:4], workers=1)

main()
""",
    "errors caught": """
try:
    predict_batch(*sys.argv[1:4], workers=2)
except ValueError as error:  # UsageError is one
    raise SystemExit(str(error))
""",
    "fails before the call": """
from pathlib import Path
Path(sys.argv[3] + ".log").touch(exist_ok=False)
predict_batch(*sys.argv[1:4], workers=2)
""",
}


def write_images(folder: Path, count: int, *, unreadable_every: int) -> Path:
    """Write smooth random images, of which every so many is an HTML page."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (5, 5)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:05d}.png")
        if number % unreadable_every == unreadable_every // 2:
            (folder / f"{number:05d}.png").write_bytes(b"<!doctype html>")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("batch") / "images", 60, unreadable_every=20)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(run, "PART_SIZE", 8)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.slow
def test_the_table_has_one_row_per_image_in_order(model, images, tmp_path, small_parts, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"table{suffix}"
    counts = predict_batch(model, images, out, workers=2)
    assert counts == {"rows": 60, "ok": 57, "unreadable": 3, "failed": 0, "resumed": 0}
    table = pd.read_csv(out, keep_default_na=False) if suffix == ".csv" else pd.read_parquet(out)
    expected = Predictor(model).predict([str(path) for path in sorted(images.iterdir())])
    for name in ("path", "prediction", "status", "reason", "remark"):
        assert table[name].tolist() == expected[name].tolist()
    p = pd.to_numeric(table["p_COVID-19"], errors="coerce")
    np.testing.assert_allclose(p, expected["p_COVID-19"], atol=1e-6)
    assert os.listdir(tmp_path) == [out.name]
    with pytest.raises(ResourceError, match="already exists"):
        predict_batch(model, images, out)


@pytest.mark.slow
def test_a_resumed_batch_repeats_only_missing_and_changed_parts(model, images, tmp_path, small_parts, monkeypatch):
    """An interrupted batch keeps its parts; a part with a changed file is repeated, another model is refused."""
    uninterrupted, out = tmp_path / "uninterrupted.csv", tmp_path / "table.csv"
    predict_batch(model, images, uninterrupted, workers=1)

    original, completed = local.run_on_workers, []

    def interrupted(*arguments, **options):
        for number, table in original(*arguments, **options):
            completed.append(number)
            yield number, table
            if len(completed) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(local, "run_on_workers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_batch(model, images, out, workers=1)
    assert not out.exists() and completed == [0, 1, 2]
    monkeypatch.setattr(local, "run_on_workers", original)
    other = write_small_model(tmp_path / "other", seed=2)
    with pytest.raises(UsageError, match="another model"):
        predict_batch(other, images, out)
    os.utime(images / "00000.png", ns=(1, 1))
    counts = predict_batch(model, images, out, workers=1)
    assert counts["resumed"] == 16 and out.read_bytes() == uninterrupted.read_bytes()


IN_WORKERS = """
import builtins, multiprocessing, os, time
open_file = builtins.open
def fail(path, *arguments, **options):
    if str(path).endswith('00011.png') and multiprocessing.parent_process():
        ACTION
    return open_file(path, *arguments, **options)
builtins.open = fail
"""


def fail_in_workers(action: str, site: Path, monkeypatch) -> None:
    """Let the processes of a batch do something whenever they read one file, as a bug of a decoder might."""
    site.mkdir()
    (site / "sitecustomize.py").write_text(IN_WORKERS.replace("ACTION", action))
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.slow
def test_a_file_that_kills_its_process_is_one_row(model, images, tmp_path, small_parts, monkeypatch):
    fail_in_workers("os.kill(os.getpid(), 9)", tmp_path / "site", monkeypatch)
    counts = predict_batch(model, images, tmp_path / "table.csv", workers=1)
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert counts["rows"] == 60 and counts["failed"] == 1
    failed = table[table["status"] == "failed"]
    assert failed["path"].tolist() == [str(images / "00011.png")] and "killed" in failed["reason"].iloc[0]
    assert (failed["prediction"] == "").all() and table["path"].is_unique


@pytest.mark.slow
def test_an_image_that_never_ends_is_one_row(model, images, tmp_path, small_parts, monkeypatch):
    """As one on a drive that no longer answers, or in a decoder that holds the interpreter."""
    fail_in_workers("time.sleep(30)", tmp_path / "site", monkeypatch)
    files = [images / f"{number:05d}.png" for number in range(9, 13)]
    counts = predict_batch(model, files, tmp_path / "table.csv", workers=1, seconds=0.5)
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert counts["failed"] == 1 and table["path"].tolist() == list(map(str, files))
    assert "longer than 0.5 seconds" in table["reason"][2]


def test_errors_name_the_invalid_argument(model, images, tmp_path):
    with pytest.raises(UsageError, match="neither .csv nor .parquet"):
        predict_batch(model, images, tmp_path / "table.txt")
    with pytest.raises(UsageError, match="engine='spark'"):
        predict_batch(model, images, tmp_path / "table.csv", engine="spark")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        predict_batch(model, tmp_path / "empty", tmp_path / "table.csv")


def killed_and_resumed(model, images, folder, *, part, kills, engine="local") -> bytes:
    """Start the batch and kill it after each further part, several times, then let it finish; return the table."""
    folder.mkdir()
    out, parts, n_parts = folder / "table.csv", folder / "table.csv.parts", 0
    (folder / "go.py").write_text(CODE)
    command = [sys.executable, "go.py", *map(str, (model, images, out, part, engine))]
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=folder)
        n_parts += 1
        while len(list(parts.glob("part-*"))) < n_parts and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "the batch finished before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        n_parts = len(list(parts.glob("part-*")))
        assert not out.exists()
    subprocess.run(command, cwd=folder, check=True)
    assert os.listdir(folder / "..") and not parts.exists()
    return out.read_bytes()


@pytest.mark.nightly
@pytest.mark.slow
def test_the_table_is_the_same_after_five_kills(model, tmp_path):
    images = write_images(tmp_path / "images", 600, unreadable_every=100)
    undisturbed = tmp_path / "undisturbed.csv"
    counts = predict_batch(model, images, undisturbed, workers=2)
    assert (counts["rows"], counts["unreadable"]) == (600, 6)
    assert killed_and_resumed(model, images, tmp_path / "killed", part=8, kills=5) == undisturbed.read_bytes()


@pytest.mark.slow
@pytest.mark.nightly
def test_ray_with_a_killed_worker(model, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    psutil = pytest.importorskip("psutil")
    images = write_images(tmp_path / "images", 240, unreadable_every=100)
    monkeypatch.setattr(run, "PART_SIZE", 8)
    predict_batch(model, images, tmp_path / "local.csv", workers=2)
    ray.init(num_cpus=3, include_dashboard=False, logging_level="error")
    killed: list[int] = []

    def kill_worker():
        parts = tmp_path / "ray.csv.parts"
        while not list(parts.glob("part-*")):
            time.sleep(0.02)
        commands = {process.pid: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
        workers = [pid for pid, command in commands.items() if "MapWorker" in " ".join(command)]
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    killer = threading.Thread(target=kill_worker, daemon=True)
    killer.start()
    try:
        counts = predict_batch(model, images, tmp_path / "ray.csv", workers=2, engine="ray")
        killer.join(10)
    finally:
        ray.shutdown()
    assert killed and counts["rows"] == 240
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


# scripts


def run_script(code: str, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    (cwd / "script.py").write_text(f"import sys\nfrom covid_fastai.app.batch.run import predict_batch\n{code}\n")
    command = [sys.executable, "script.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in ("in a function", "errors caught") else ())
        for kind in UNGUARDED
    ],
)
def test_a_script_without_the_main_guard_gets_an_error_that_names_it_and_no_table(kind, model, images, tmp_path):
    out = tmp_path / "table.csv"
    done = run_script(UNGUARDED[kind], model, images, out, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "ended before they had read any" in last and "__main__" in last
    assert not out.exists() and not list(tmp_path.glob("table.csv.parts/part-*"))
    if kind != "fails before the call":
        assert "predict_batch was called while a new process imports the script" in done.stderr


@pytest.mark.slow
def test_the_table_is_written_after_the_guard_was_added(model, images, tmp_path):
    out = tmp_path / "table.csv"
    run_script(UNGUARDED["plain"], model, images, out, cwd=tmp_path)
    guarded = "if __name__ == '__main__':\n    print(predict_batch(*sys.argv[1:4], workers=1)['failed'])"
    done = run_script(guarded, model, images, out, cwd=tmp_path)
    assert (done.stdout, out.exists()) == ("0\n", True), done.stderr


@pytest.mark.slow
def test_modules_in_the_current_folder_are_not_run(model, images, tmp_path):
    """Such as in the folder of somebody's data; Python looks there for the modules of a process that it starts."""
    data, program = tmp_path / "data", tmp_path / "bin" / "program.py"
    data.mkdir()
    program.parent.mkdir()
    program.write_text("from covid_fastai.app.cli.main import main\nif __name__ == '__main__':\n    main()\n")
    (data / "multiprocessing.py").write_text("open('was run', 'w')")
    command = [sys.executable, program, "batch", model, images / "00000.png", "out.csv", "--workers", "1"]
    done = subprocess.run(list(map(str, command)), cwd=data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(data)) == ["multiprocessing.py", "out.csv"]
