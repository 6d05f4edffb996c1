"""Soak test of the server and the batch command: `python -m benchmarks.soak --seconds 600`.

16 honest clients send radiographs and files that are none, each as fast as it gets answers, beside 16 hostile clients
of eight kinds (`benchmarks.hostile`). Every client has a loopback address of its own, as clients of a real server have
(Linux). The hostile clients of a kind attack in rounds, and after each round the time until `/readyz` is true is
measured. Then follows the memory of a batch over thousands of files. No data leave this machine.

Targets: every honest request is answered right, 99 of 100 within five seconds from its first try, `/readyz` is true
within ten seconds after each attack, and the memory of server and workers does not grow.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.hostile import ATTACKS, costly_files, form_of

__all__ = ["Soak", "plot_soak", "soak_batch", "soak_page"]

MAX_LATENCY, MAX_READY, MAX_GROWTH = 5.0, 10.0, 50.0  # seconds, seconds, megabytes
BUSY = (429, 503)
PATIENCE = 120  # seconds that an honest client goes on trying
ROUNDS = 3  # of attacks of each kind
PREDICTION_SECONDS = 2.5  # of the server, less than by default, so that a costly file ends a process; others take 0.1 s


@dataclass
class Soak:
    """The records of a soak test.

    Attributes:
        health: Response times of `/healthz`, as (time, seconds).
        memory: Memory of server and workers, as (time, bytes).
        server: Memory of the server without its workers, bytes.
        latency: Seconds from the first try of an honest request until its answer.
        statuses: Number of responses to honest requests by HTTP status.
        refused: Number of tries that were refused for being too many, and repeated.
        wrong: Why honest requests had no answer, or another one than a single client gets.
        ready: Seconds until `/readyz` is true after each attack, by its kind.
        attacks: Number of tries of hostile clients, by kind.
        left: Number of files that remain in the server's temporary folder.
        batch: Memory of a batch and its workers, as (time, bytes).
    """

    health: list[tuple[float, float]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    server: list[int] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    ready: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    attacks: Counter = field(default_factory=Counter)
    left: int = 0
    batch: list[tuple[float, int]] = field(default_factory=list)

    def summary(self) -> dict:
        """Return the metrics; memory grows by its largest values of both halves, that of the server by medians."""
        batch = {}
        if self.batch:
            sizes = [size for _, size in self.batch[len(self.batch) // 4 :]]
            batch["batch_growth_mb"] = round((max(sizes) - sizes[0]) / 1e6, 1)
        half = len(self.memory) // 2
        early, late = (max(size for _, size in part) / 1e6 for part in (self.memory[:half], self.memory[half:]))
        server = np.array(self.server) / 1e6
        quarter = max(1, len(server) // 4)
        server_growth = float(np.median(server[-quarter:]) - np.median(server[quarter : 2 * quarter]))
        return {
            "answers": len(self.latency),
            "statuses": dict(self.statuses),
            "refused": self.refused,
            "wrong": len(self.wrong),
            "slowest_health_s": round(max(seconds for _, seconds in self.health), 3),
            "median_latency_s": round(float(np.median(self.latency)), 3),
            "p99_latency_s": round(float(np.percentile(self.latency, 99)), 3),
            "slowest_ready_s": {kind: round(max(seconds), 2) for kind, seconds in self.ready.items()},
            "attacks": dict(self.attacks),
            "memory_mb": round(late, 1),
            "growth_mb": round(late - early, 1),
            "server_growth_mb": round(server_growth, 1),
            "files_left": self.left,
            **batch,
        }

    def missed(self) -> list[str]:
        """Return the targets that were not met."""
        summary = self.summary()
        met = {
            "every honest request answered right": not self.wrong,
            f"99 of 100 within {MAX_LATENCY:g} s": summary["p99_latency_s"] < MAX_LATENCY,
            f"/readyz true within {MAX_READY:g} s of each attack": max(summary["slowest_ready_s"].values()) < MAX_READY,
            "memory flat": max(summary["growth_mb"], summary["server_growth_mb"]) < MAX_GROWTH,
            "no file left": not self.left,
        }
        return [target for target, is_met in met.items() if not is_met]


def soak_page(
    model: Path, files: list[bytes], *, seconds: float, honest: int = 16, hostile: int = 16, workers: int = 2
) -> Soak:
    """Serve a model and send it requests for some seconds.

    Args:
        model: The saved model.
        files: Contents of the files that are sent in turn; the response to each must always be the same.
        seconds: The duration.
        honest: Number of clients that send requests as fast as they get responses.
        hostile: Number of clients that attack, spread over the kinds.
        workers: Number of processes of the server.

    Returns:
        The records of the soak test.
    """
    result, lock, stop = Soak(), threading.Lock(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="covid_fastai-soak-") as temporary:
        command = [sys.executable, "-m", "covid_fastai", "serve", str(model), "--port", str(port)]
        process = subprocess.Popen(
            [*command, "--per-minute", "0", "--workers", str(workers), "--seconds", str(PREDICTION_SECONDS)],
            env={**os.environ, "TMPDIR": temporary},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(port)
            expected = [_post(port, file, "127.0.0.1") for file in files]

            def send_requests(client: int) -> None:
                number = client
                while not stop.is_set():
                    number = (number + 1) % len(files)
                    begun = time.monotonic()
                    tries, response = _post_until_answered(port, files[number], f"127.0.1.{client + 1}")
                    with lock:
                        result.latency.append(time.monotonic() - begun)
                        result.statuses[response[0]] += 1
                        result.refused += tries
                        if response != expected[number]:
                            result.wrong.append(f"{response} in place of {expected[number]}"[:300])

            image = _as_jpeg(files[0])
            costly_files(image)  # made before the clients begin, whose times it would change
            threads = [threading.Thread(target=send_requests, args=(n,), daemon=True) for n in range(honest)]
            kinds = list(ATTACKS)
            begun = time.monotonic()
            pause = min(MAX_READY, seconds / (4 * ROUNDS))
            for client in range(hostile):
                schedule = _rounds(begun, client % len(kinds), seconds=seconds, pause=pause)
                arguments = (kinds[client % len(kinds)], port, f"127.0.2.{client + 1}", image, schedule, result, lock)
                threads.append(threading.Thread(target=_attack, args=arguments, daemon=True))
            for position, kind in enumerate(kinds[:hostile]):
                schedule = _rounds(begun, position, seconds=seconds, pause=pause)
                threads.append(threading.Thread(target=_watch, args=(kind, port, schedule, result), daemon=True))
            for thread in threads:
                thread.start()
            while time.monotonic() - begun < seconds:
                requested = time.monotonic()
                _get(port, "/healthz")
                result.health.append((requested - begun, time.monotonic() - requested))
                result.server.append(_resident(process.pid))
                result.memory.append((requested - begun, _memory(process.pid)))
                time.sleep(0.25)
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
            result.left = sum(path.is_file() for path in Path(temporary).rglob("*"))
        finally:
            process.kill()
            process.wait()
    return result


def _rounds(begun: float, position: int, *, seconds: float, pause: float) -> list[tuple[float, float]]:
    """Return begin and end of each round of attacks of a kind; the kinds end at different times."""
    length = seconds / ROUNDS
    shift = pause * position / len(ATTACKS)
    return [(begun + n * length, begun + (n + 1) * length - 2 * pause + shift) for n in range(ROUNDS)]


def _attack(
    kind: str,
    port: int,
    address: str,
    image: bytes,
    schedule: list[tuple[float, float]],
    result: Soak,
    lock: threading.Lock,
) -> None:
    for begin, end in schedule:
        time.sleep(max(0, begin - time.monotonic()))
        over = threading.Event()
        timer = threading.Timer(end - time.monotonic(), over.set)
        timer.daemon = True
        timer.start()
        while not over.is_set():
            with lock:
                result.attacks[kind] += 1
            try:
                ATTACKS[kind](port, address, over, image)
            except OSError:
                over.wait(0.2)  # the server has closed the connection, as it should


def _watch(kind: str, port: int, schedule: list[tuple[float, float]], result: Soak) -> None:
    """Measure how long after each attack `/readyz` is true."""
    for _, end in schedule:
        time.sleep(max(0, end - time.monotonic()))
        try:
            _wait(port)
            result.ready[kind].append(time.monotonic() - end)
        except OSError:
            result.ready[kind].append(float("inf"))


def _post_until_answered(port: int, content: bytes, address: str) -> tuple[int, tuple[int, str]]:
    """Send a file as often as the server is too busy, and return how often it was, and the answer."""
    begun, refused = time.monotonic(), 0
    while True:
        try:
            response = _post(port, content, address)
        except (OSError, http.client.HTTPException) as error:
            return refused, (0, f"{type(error).__name__}: {error}")
        if response[0] not in BUSY or time.monotonic() - begun > PATIENCE:
            return refused, response
        refused += 1
        time.sleep(0.5)


def _as_jpeg(content: bytes) -> bytes:
    """Return an image as a progressive JPEG, from which a hostile client makes others."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("L").save(file, "JPEG", progressive=True)
    return file.getvalue()


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
    latency.axvline(MAX_LATENCY, color="grey", linestyle=":")
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


def _post(port: int, content: bytes, address: str) -> tuple[int, str]:
    """Send a file from an address, and return the status and the answers to it."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE, source_address=(address, 0))
    try:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        link.request("POST", "/api/predict", form_of(content), kind)
        answer = link.getresponse()
        return answer.status, json.dumps(json.loads(answer.read()).get("images", ""))
    finally:
        link.close()


def _memory(process: int) -> int:
    """Return the resident bytes of a process and its children."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    return sum(map(_resident, [process, *map(int, children.split())]))


def _resident(process: int) -> int:
    """Return the resident bytes of a process; 0 if it has ended."""
    try:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def main() -> None:
    """Run the soak test with a ResNet-18, plot it and print its metrics."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--images", type=int, default=3000, help="of the batch; 0 for none")
    parser.add_argument("--workers", type=int, default=2, help="processes of the server")
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
    result = soak_page(saved_model(), files, seconds=arguments.seconds, workers=arguments.workers)
    if arguments.images:
        result.batch = soak_batch(saved_model(), [good[0], good[1], b"<!doctype html>"], images=arguments.images)
    plot_soak(result, arguments.out)
    print(json.dumps(result.summary()))
    for reason in result.wrong[:10]:
        print(reason)
    if result.missed():
        sys.exit(f"Not met: {'; '.join(result.missed())}.")


if __name__ == "__main__":
    main()
