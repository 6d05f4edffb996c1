"""Batch: a row an image, however often it is killed, whatever a worker dies of, on processes and on Ray."""

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
    run.PART = int(sys.argv[4])
    run.predict_batch(*sys.argv[1:4], workers=2, engine=sys.argv[5])
"""


def write_images(folder: Path, count: int, *, bad_each: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (5, 5)).astype(np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        small.save(folder / f"{number:05d}.png")
        if number % bad_each == bad_each // 2:
            (folder / f"{number:05d}.png").write_bytes(b"<!doctype html>")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("batch") / "images", 60, bad_each=20)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(run, "PART", 8)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_row_an_image_in_order(model, images, tmp_path, small_parts, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"table{ending}"
    counts = predict_batch(model, images, out, workers=2)
    assert counts == {"rows": 60, "ok": 57, "unreadable": 3, "failed": 0, "resumed": 0}
    found = pd.read_csv(out, keep_default_na=False) if ending == ".csv" else pd.read_parquet(out)
    wanted = Predictor(model).predict([str(path) for path in sorted(images.iterdir())])
    for name in ("path", "prediction", "status", "reason", "remark"):
        assert found[name].tolist() == wanted[name].tolist()
    p = pd.to_numeric(found["p_COVID-19"], errors="coerce")
    np.testing.assert_allclose(p, wanted["p_COVID-19"], atol=1e-6)
    assert os.listdir(tmp_path) == [out.name]
    with pytest.raises(ResourceError, match="already exists"):
        predict_batch(model, images, out)


def test_what_is_done_is_not_done_again(model, images, tmp_path, small_parts, monkeypatch):
    """A run that ends on the way leaves its parts; a changed file is done anew, another model is refused."""
    whole, out = tmp_path / "whole.csv", tmp_path / "table.csv"
    predict_batch(model, images, whole, workers=1)

    real, done = local.run_on_workers, []

    def stops(*arguments, **options):
        for one in real(*arguments, **options):
            done.append(one[0])
            yield one
            if len(done) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(local, "run_on_workers", stops)
    with pytest.raises(KeyboardInterrupt):
        predict_batch(model, images, out, workers=1)
    assert not out.exists() and done == [0, 1, 2]
    monkeypatch.setattr(local, "run_on_workers", real)
    other = write_small_model(tmp_path / "other", seed=2)
    with pytest.raises(UsageError, match="another model"):
        predict_batch(other, images, out)
    first = images / "00000.png"
    os.utime(first, ns=(1, 1))
    counts = predict_batch(model, images, out, workers=1)
    assert counts["resumed"] == 16 and out.read_bytes() == whole.read_bytes()


def test_a_file_that_kills_its_process_is_one_row(model, images, tmp_path, small_parts, monkeypatch):
    """As a decoder's fault would: the worker dies at that file whenever it is read."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, builtins, pathlib\n"
        "read = pathlib.Path.read_bytes\n"
        "def deadly(path):\n"
        "    if path.name == '00011.png':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return read(path)\n"
        "pathlib.Path.read_bytes = deadly\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    counts = predict_batch(model, images, tmp_path / "table.csv", workers=1)
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert counts["rows"] == 60 and counts["failed"] == 1
    lost = table[table["status"] == "failed"]
    assert lost["path"].tolist() == [str(images / "00011.png")] and "killed" in lost["reason"].iloc[0]
    assert (lost["prediction"] == "").all() and table["path"].is_unique


def test_wrong_arguments_are_named(model, images, tmp_path):
    with pytest.raises(UsageError, match="csv nor as .parquet"):
        predict_batch(model, images, tmp_path / "table.txt")
    with pytest.raises(UsageError, match="engine='spark'"):
        predict_batch(model, images, tmp_path / "table.csv", engine="spark")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        predict_batch(model, tmp_path / "empty", tmp_path / "table.csv")


def killed_and_resumed(model, images, folder, *, part, kills, engine="local") -> bytes:
    """Start the batch, kill it as soon as it has written some more parts, again and again, then let it end."""
    folder.mkdir()
    out, parts, wanted = folder / "table.csv", folder / "table.csv.parts", 0
    (folder / "go.py").write_text(CODE)
    command = [sys.executable, "go.py", *map(str, (model, images, out, part, engine))]
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=folder)
        wanted += 1
        while len(list(parts.glob("part-*"))) < wanted and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "it was through before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        wanted = len(list(parts.glob("part-*")))
        assert not out.exists()
    subprocess.run(command, cwd=folder, check=True)
    assert os.listdir(folder / "..") and not parts.exists()
    return out.read_bytes()


@pytest.mark.slow
def test_killed_five_times_it_is_the_same_table(model, tmp_path):
    images = write_images(tmp_path / "images", 600, bad_each=100)
    undisturbed = tmp_path / "undisturbed.csv"
    counts = predict_batch(model, images, undisturbed, workers=2)
    assert (counts["rows"], counts["unreadable"]) == (600, 6)
    assert killed_and_resumed(model, images, tmp_path / "killed", part=8, kills=5) == undisturbed.read_bytes()


@pytest.mark.slow
def test_ray_with_a_killed_worker(model, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    psutil = pytest.importorskip("psutil")
    images = write_images(tmp_path / "images", 240, bad_each=100)
    monkeypatch.setattr(run, "PART", 8)
    predict_batch(model, images, tmp_path / "local.csv", workers=2)
    ray.init(num_cpus=3, include_dashboard=False, logging_level="error")
    killed: list[int] = []

    def kill_one():
        parts = tmp_path / "ray.csv.parts"
        while not list(parts.glob("part-*")):
            time.sleep(0.02)
        lines = {one.pid: " ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])}
        workers = [pid for pid, line in lines.items() if "MapWorker" in line]
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    try:
        counts = predict_batch(model, images, tmp_path / "ray.csv", workers=2, engine="ray")
        killer.join(10)
    finally:
        ray.shutdown()
    assert killed and counts["rows"] == 240
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
