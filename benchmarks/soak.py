"""The page and the batch for minutes on end: `python -m benchmarks.soak --seconds 120`.

8 clients send radiographs, bad files and large ones beside 4 that send a byte now and then; the answers, the time that
/healthz takes, and the memory of server and workers are noted and plotted; then the memory of a batch over thousands of
files. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["Soak", "plot_soak", "soak_batch", "soak_page"]


@dataclass
class Soak:
    """What was noted.

    Attributes:
        health: Seconds that each `/healthz` took, as (time, seconds).
        memory: Bytes of server and workers, as (time, bytes).
        latency: Seconds that each answer took.
        statuses: Answers by HTTP status.
        wrong: Answers that are not those of one client alone.
        left: Files that lie in the server's temporary folder.
        batch: Bytes of a batch and its workers, as (time, bytes).
    """

    health: list[tuple[float, float]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: int = 0
    left: int = 0
    batch: list[tuple[float, int]] = field(default_factory=list)

    def summary(self) -> dict:
        """Return the figures: the growth of a memory is from the end of the first quarter on."""
        quarter, of_batch = (noted[len(noted) // 4 :] for noted in (self.memory, self.batch))
        batch = {}
        if of_batch:
            batch["batch_growth_mb"] = round((max(size for _, size in of_batch) - of_batch[0][1]) / 1e6, 1)
        return {
            "answers": sum(self.statuses.values()),
            "statuses": dict(self.statuses),
            "wrong": self.wrong,
            "slowest_health_s": round(max(seconds for _, seconds in self.health), 3),
            "median_latency_s": round(float(np.median(self.latency)), 3),
            "memory_mb": round(quarter[-1][1] / 1e6, 1),
            "growth_mb": round((quarter[-1][1] - quarter[0][1]) / 1e6, 1),
            "files_left": self.left,
            **batch,
        }


def soak_page(model: Path, pictures: list[bytes], *, seconds: float, clients: int = 8, slow: int = 4) -> Soak:
    """Serve a model and let clients ask it for some seconds.

    Args:
        model: The saved model.
        pictures: Files that are sent in turn; those that are no picture must be refused each time.
        seconds: How long.
        clients: How many ask as fast as they are answered.
        slow: How many send a byte a second and never finish.

    Returns:
        What was noted.
    """
    found, lock, stop = Soak(), threading.Lock(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="covid_fastai-soak-") as temporary:
        command = [sys.executable, "-m", "covid_fastai", "serve", str(model), "--port", str(port), "--per-minute", "0"]
        process = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": temporary}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait(port)
            alone = [_post(port, picture) for picture in pictures]

            def ask(number: int) -> None:
                while not stop.is_set():
                    number = (number + 1) % len(pictures)
                    begun = time.monotonic()
                    status, answer = _post(port, pictures[number])
                    with lock:
                        found.latency.append(time.monotonic() - begun)
                        found.statuses[status] += 1
                        found.wrong += status not in (429, 503) and (status, answer) != alone[number]
                    if status in (429, 503):
                        time.sleep(0.2)

            def dawdle() -> None:
                while not stop.is_set():
                    try:
                        with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
                            link.sendall(
                                b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000\r\n\r\n"
                            )
                            while not stop.wait(1):
                                link.sendall(b"x")
                    except OSError:
                        stop.wait(0.5)  # it has hung up on us, as it should

            threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
            threads += [threading.Thread(target=dawdle, daemon=True) for _ in range(slow)]
            for thread in threads:
                thread.start()
            begun = time.monotonic()
            while time.monotonic() - begun < seconds:
                asked = time.monotonic()
                _get(port, "/healthz")
                found.health.append((asked - begun, time.monotonic() - asked))
                found.memory.append((asked - begun, _memory(process.pid)))
                time.sleep(0.25)
            stop.set()
            for thread in threads:
                thread.join(60)
            found.left = sum(path.is_file() for path in Path(temporary).rglob("*"))
        finally:
            process.kill()
            process.wait()
    return found


def soak_batch(model: Path, pictures: list[bytes], *, images: int) -> list[tuple[float, int]]:
    """Predict thousands of files by `covid-fastai batch`, and return the memory that it takes meanwhile.

    Args:
        model: The saved model.
        pictures: Files' contents, which are used over and over.
        images: How many files.

    Returns:
        Bytes of the command and its workers, as (time, bytes).
    """
    noted: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(prefix="covid_fastai-soak-") as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        for number in range(images):
            (folder / f"{number:06d}.png").write_bytes(pictures[number % len(pictures)])
        command = [sys.executable, "-m", "covid_fastai", "batch", str(model), str(folder), f"{temporary}/out.csv"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            begun = time.monotonic()
            while process.poll() is None:
                noted.append((time.monotonic() - begun, _memory(process.pid)))
                time.sleep(0.25)
        with open(f"{temporary}/out.csv", encoding="utf-8") as file:
            rows = sum(1 for _ in file) - 1
    if process.returncode or rows != images:
        raise RuntimeError(f"batch ended with {process.returncode} and {rows} of {images} rows.")
    return noted


def plot_soak(found: Soak, file: Path) -> None:
    """Plot the memory, the time of /healthz and the answers' latencies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    number = 4 if found.batch else 3
    figure, all_axes = plt.subplots(1, number, figsize=(4 * number, 3.4), layout="constrained")
    memory, health, latency = all_axes[:3]
    if found.batch:
        all_axes[3].plot(*zip(*((at, size / 1e6) for at, size in found.batch), strict=True))
        all_axes[3].set(title="Memory of a batch and its workers", xlabel="seconds", ylabel="MB", ylim=(0, None))
    memory.plot(*zip(*((at, size / 1e6) for at, size in found.memory), strict=True))
    memory.set(title="Memory of server and workers", xlabel="seconds", ylabel="MB", ylim=(0, None))
    health.plot(*zip(*((at, 1000 * took) for at, took in found.health), strict=True))
    health.set(title="/healthz", xlabel="seconds", ylabel="milliseconds", ylim=(0, None))
    latency.hist(np.array(found.latency), bins=50)
    latency.set(title=f"Latency of {len(found.latency):,} answers", xlabel="seconds", ylabel="answers")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _wait(port: int) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            _get(port, "/readyz")
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read()


def _post(port: int, content: bytes) -> tuple[int, str]:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/predict", head + content + b"\r\n--x--\r\n", kind)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.dumps(json.load(answer)["images"])
    except urllib.error.HTTPError as error:
        body = json.load(error)
        return error.code, json.dumps(body.get("images", ""))


def _memory(process: int) -> int:
    """Return the resident bytes of a process and its children."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    total = 0
    for number in [process, *map(int, found.split())]:
        try:
            with open(f"/proc/{number}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue  # it has ended
    return total


def main() -> None:
    """Soak the page with a ResNet-18 and print what was noted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--images", type=int, default=3000, help="of the batch")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("soak.png"))
    given = parser.parse_args()
    from PIL import Image

    from benchmarks.predicting import saved_model
    from covid_fastai.data.phantom import draw_phantom
    from covid_fastai.plotting import encode_png

    drawn = [
        draw_phantom(np.random.default_rng(seed), image_size=side).image for seed, side in enumerate((128, 512, 900))
    ]
    good = [encode_png(Image.fromarray(image)) for image in drawn]
    pictures = [*good, b"<!doctype html>", bytes(3_000_000)]
    found = soak_page(saved_model(), pictures, seconds=given.seconds)
    found.batch = soak_batch(saved_model(), [good[0], good[1], b"<!doctype html>"], images=given.images)
    plot_soak(found, given.out)
    print(json.dumps(found.summary()))


if __name__ == "__main__":
    main()
