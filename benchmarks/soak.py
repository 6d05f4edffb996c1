"""Soak test of the server and the batch command: `python -m benchmarks.soak --seconds 120`.

8 clients send radiographs, bad files and large files, while 4 slow clients send one byte per second. The responses, the
response time of /healthz, and the memory of server and workers are recorded and plotted; then the memory of a batch
over thousands of files. No data leave this machine.
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
    """The records of a soak test.

    Attributes:
        health: Response times of `/healthz`, as (time, seconds).
        memory: Memory of server and workers, as (time, bytes).
        latency: Response times of predictions, seconds.
        statuses: Number of responses by HTTP status.
        wrong: Number of responses that differ from those to a single client.
        left: Number of files that remain in the server's temporary folder.
        batch: Memory of a batch and its workers, as (time, bytes).
    """

    health: list[tuple[float, float]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: int = 0
    left: int = 0
    batch: list[tuple[float, int]] = field(default_factory=list)

    def summary(self) -> dict:
        """Return the metrics; the growth of memory is measured from the end of the first quarter on."""
        server, batch_memory = (records[len(records) // 4 :] for records in (self.memory, self.batch))
        batch = {}
        if batch_memory:
            batch["batch_growth_mb"] = round((max(size for _, size in batch_memory) - batch_memory[0][1]) / 1e6, 1)
        return {
            "answers": sum(self.statuses.values()),
            "statuses": dict(self.statuses),
            "wrong": self.wrong,
            "slowest_health_s": round(max(seconds for _, seconds in self.health), 3),
            "median_latency_s": round(float(np.median(self.latency)), 3),
            "memory_mb": round(server[-1][1] / 1e6, 1),
            "growth_mb": round((server[-1][1] - server[0][1]) / 1e6, 1),
            "files_left": self.left,
            **batch,
        }


def soak_page(model: Path, files: list[bytes], *, seconds: float, clients: int = 8, slow: int = 4) -> Soak:
    """Serve a model and send it requests for some seconds.

    Args:
        model: The saved model.
        files: Contents of the files that are sent in turn; the response to each must always be the same.
        seconds: The duration.
        clients: Number of clients that send requests as fast as they get responses.
        slow: Number of clients that send one byte per second and never finish.

    Returns:
        The records of the soak test.
    """
    result, lock, stop = Soak(), threading.Lock(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="covid_fastai-soak-") as temporary:
        command = [sys.executable, "-m", "covid_fastai", "serve", str(model), "--port", str(port), "--per-minute", "0"]
        process = subprocess.Popen(
            command, env={**os.environ, "TMPDIR": temporary}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait(port)
            expected = [_post(port, file) for file in files]

            def send_requests(number: int) -> None:
                while not stop.is_set():
                    number = (number + 1) % len(files)
                    begun = time.monotonic()
                    status, response = _post(port, files[number])
                    with lock:
                        result.latency.append(time.monotonic() - begun)
                        result.statuses[status] += 1
                        result.wrong += status not in (429, 503) and (status, response) != expected[number]
                    if status in (429, 503):  # too many requests, or busy
                        time.sleep(0.2)

            def send_slowly() -> None:
                while not stop.is_set():
                    try:
                        with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
                            link.sendall(
                                b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000\r\n\r\n"
                            )
                            while not stop.wait(1):
                                link.sendall(b"x")
                    except OSError:
                        stop.wait(0.5)  # the server has closed the connection, as it should

            threads = [threading.Thread(target=send_requests, args=(number,), daemon=True) for number in range(clients)]
            threads += [threading.Thread(target=send_slowly, daemon=True) for _ in range(slow)]
            for thread in threads:
                thread.start()
            begun = time.monotonic()
            while time.monotonic() - begun < seconds:
                requested = time.monotonic()
                _get(port, "/healthz")
                result.health.append((requested - begun, time.monotonic() - requested))
                result.memory.append((requested - begun, _memory(process.pid)))
                time.sleep(0.25)
            stop.set()
            for thread in threads:
                thread.join(60)
            result.left = sum(path.is_file() for path in Path(temporary).rglob("*"))
        finally:
            process.kill()
            process.wait()
    return result


def soak_batch(model: Path, files: list[bytes], *, images: int) -> list[tuple[float, int]]:
    """Predict thousands of files with `covid-fastai batch`, and return the memory that it uses.

    Args:
        model: The saved model.
        files: Contents of files, which are repeated.
        images: Number of files.

    Returns:
        Memory of the command and its workers, as (time, bytes).
    """
    memory: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(prefix="covid_fastai-soak-") as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        for number in range(images):
            (folder / f"{number:06d}.png").write_bytes(files[number % len(files)])
        command = [sys.executable, "-m", "covid_fastai", "batch", str(model), str(folder), f"{temporary}/out.csv"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            begun = time.monotonic()
            while process.poll() is None:
                memory.append((time.monotonic() - begun, _memory(process.pid)))
                time.sleep(0.25)
        with open(f"{temporary}/out.csv", encoding="utf-8") as file:
            rows = sum(1 for _ in file) - 1
    if process.returncode or rows != images:
        raise RuntimeError(f"batch ended with status {process.returncode} and {rows} of {images} rows.")
    return memory


def plot_soak(result: Soak, file: Path) -> None:
    """Plot the memory, the response times of /healthz and the latencies of predictions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    number = 4 if result.batch else 3
    figure, all_axes = plt.subplots(1, number, figsize=(4 * number, 3.4), layout="constrained")
    memory, health, latency = all_axes[:3]
    if result.batch:
        all_axes[3].plot(*zip(*((at, size / 1e6) for at, size in result.batch), strict=True))
        all_axes[3].set(title="Memory of a batch and its workers", xlabel="seconds", ylabel="MB", ylim=(0, None))
    memory.plot(*zip(*((at, size / 1e6) for at, size in result.memory), strict=True))
    memory.set(title="Memory of server and workers", xlabel="seconds", ylabel="MB", ylim=(0, None))
    health.plot(*zip(*((at, 1000 * took) for at, took in result.health), strict=True))
    health.set(title="/healthz", xlabel="seconds", ylabel="milliseconds", ylim=(0, None))
    latency.hist(np.array(result.latency), bins=50)
    latency.set(title=f"Latency of {len(result.latency):,} responses", xlabel="seconds", ylabel="responses")
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
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    total = 0
    for number in [process, *map(int, children.split())]:
        try:
            with open(f"/proc/{number}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue  # the process has ended
    return total


def main() -> None:
    """Run the soak test with a ResNet-18, plot it and print its metrics."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--images", type=int, default=3000, help="of the batch")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("soak.png"))
    arguments = parser.parse_args()
    from PIL import Image

    from benchmarks.predicting import saved_model
    from covid_fastai.data.phantom import draw_phantom
    from covid_fastai.plotting import encode_png

    phantoms = [
        draw_phantom(np.random.default_rng(seed), image_size=side).image for seed, side in enumerate((128, 512, 900))
    ]
    good = [encode_png(Image.fromarray(image)) for image in phantoms]
    files = [*good, b"<!doctype html>", bytes(3_000_000)]
    result = soak_page(saved_model(), files, seconds=arguments.seconds)
    result.batch = soak_batch(saved_model(), [good[0], good[1], b"<!doctype html>"], images=arguments.images)
    plot_soak(result, arguments.out)
    print(json.dumps(result.summary()))


if __name__ == "__main__":
    main()
