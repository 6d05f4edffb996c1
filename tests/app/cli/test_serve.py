"""The command as it runs: a process that listens, slow visitors, its end; and options that are refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra web is not installed")

from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.middleware import check_hosts
from covid_fastai.app.server.uploads import RateLimiter, RequestRejected, clean_name
from covid_fastai.errors import UsageError
from tests.app.server.test_app import png, radiograph

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="system: the process is ended by a signal")


@contextmanager
def serving(model, *options):
    """Run the command on a free port, and yield the port and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "covid_fastai", "serve", str(model), "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and process.poll() is None:
                try:
                    get(port, "/readyz")
                    break
                except OSError:
                    time.sleep(0.1)
            yield port, process
        finally:
            if process.poll() is None:
                process.kill()


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read()


def form(content, name="a.png"):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n"


def post(port, content):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/predict", form(content), kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@POSIX
def test_the_command_serves_and_ends(small_model):
    with serving(small_model) as (port, process):
        image = post(port, png(radiograph(0)))["images"][0]
        assert image["status"] == "ok" and b"Ask a model" in get(port, "/")
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert f"http://127.0.0.1:{port}" in out and "not a medical device" in out
    assert "a.png" not in out + err and "POST" not in out + err and "Traceback" not in err
    left = children.stdout.split()
    assert left
    until = time.monotonic() + 10  # multiprocessing's own helper goes a moment after
    while left and time.monotonic() < until:
        time.sleep(0.05)
        left = [child for child in left if os.path.exists(f"/proc/{child}")]
    assert not left, "a worker was left behind"


@POSIX
@pytest.mark.slow
def test_slow_visitors_are_hung_up_on(small_model):
    """A head that never ends; meanwhile others are answered."""
    with serving(small_model) as (port, _), socket.create_connection(("127.0.0.1", port)) as slow:
        begun = time.monotonic()
        slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert get(port, "/healthz")
        slow.settimeout(1)
        closed = False
        while not closed and time.monotonic() - begun < 20:
            try:
                slow.sendall(b"X-a: b\r\n")
                closed = slow.recv(10) == b""
            except TimeoutError:
                continue
            except OSError:
                closed = True
        assert closed and 9 < time.monotonic() - begun < 15


def test_a_port_that_is_taken(small_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "covid_fastai", "serve", str(small_model), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and f"port {port} cannot be listened at" in done.stderr


def test_a_folder_without_a_model(tmp_path):
    command = [sys.executable, "-m", "covid_fastai", "serve", str(tmp_path), "--port", "1"]
    done = subprocess.run([*command[:-1], "18999"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "no such file" in done.stderr and "Traceback" not in done.stderr


def test_open_to_others_needs_a_name():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.9"):
        check_hosts(host, [])
    for host in ("0.0.0.0", "::", "192.168.1.2", "ward.example"):
        with pytest.raises(UsageError, match="lets other machines ask"):
            check_hosts(host, [])
        check_hosts(host, ["ward.example"])


# the door


def test_the_door_holds_places():
    door = RateLimiter(Limits(queue=3, per_minute=0), workers=1)
    with door.enter("a"), door.enter("a"), door.enter("b"), door.enter("c"):
        with pytest.raises(RequestRejected) as caught, door.enter("d"):
            pass
        assert caught.value.status == 503 and caught.value.retry_after
    with door.enter("d"):
        pass
    door = RateLimiter(Limits(queue=30, per_minute=0), workers=2)
    places = [door.enter("slow") for _ in range(16)]
    for place in places:
        place.__enter__()
    with pytest.raises(RequestRejected) as caught, door.enter("slow"):
        pass
    assert caught.value.status == 429
    with door.enter("other"):  # one address does not keep the others out
        pass


def test_the_door_counts_requests_of_an_address():
    now = [0.0]
    door = RateLimiter(Limits(per_minute=60), workers=1, clock=lambda: now[0])

    def enter(client):
        with door.enter(client):
            return True

    assert all(enter("a") for _ in range(12))  # a fifth of a minute's at once
    with pytest.raises(RequestRejected) as caught:
        enter("a")
    assert (caught.value.status, caught.value.retry_after) == (429, 2) and enter("b")
    now[0] += 1.0
    assert enter("a")
    with pytest.raises(RequestRejected):
        enter("a")
    now[0] += 1e6
    assert sum(1 for _ in range(12) if enter("a")) == 12
    for number in range(10_000):
        enter(f"client {number}")
    assert len(door._buckets) <= 4096 and not door._inside


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a.png", "a.png"),
        ("/x/../a.png", "a.png"),
        ("c:\\d\\a.png", "a.png"),
        ("", ""),
        ("a\tb\x1b[0m", "a\ufffdb\ufffd[0m"),
    ],
)
def test_names(sent, kept):
    assert clean_name(sent) == kept


# memory


@POSIX
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="system: memory is read from /proc")
def test_memory_stays_flat(small_model):
    """400 requests of four kinds, after 200 to warm up; the growth of server and worker together."""
    contents = [png(radiograph(0, 512)), png(np.zeros((300, 300), np.uint8)), b"x" * 1_000_000, png(radiograph(1, 128))]

    def rss(parent):
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True
        ).stdout.split()
        total = 0
        for pid in [parent, *found]:
            with open(f"/proc/{pid}/status") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        return total

    def ask(number):
        try:
            return post(port, contents[number % 4])["images"][0]["status"]
        except urllib.error.HTTPError as error:
            return error.code

    with serving(small_model, "--per-minute", "0") as (port, process), ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(200)))
        before = rss(process.pid)
        found = list(pool.map(ask, range(400)))
        after = rss(process.pid)
    assert found[:4] == ["ok", 422, 422, "ok"] and found == found[:4] * 100
    assert after - before < 20 << 10, f"{before} to {after} KiB"
