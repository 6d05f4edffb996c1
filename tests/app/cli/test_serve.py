"""The command serve as a process: answers, slow clients, its end and refused options; the rate limiter."""

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
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra web is not installed")

from covid_fastai.app.server.limits import Limits, client_of
from covid_fastai.app.server.middleware import check_host_names, check_hosts
from covid_fastai.app.server.uploads import RateLimiter, RequestRejected, clean_name
from covid_fastai.errors import UsageError
from tests.app.server.test_app import png, radiograph

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="system: the process is ended by a signal")
PORT_IN_USE = 4  # the exit status; also of other problems of the machine


@contextmanager
def serving(model, *options):
    """Run the command on a free port, and yield the port and the process."""
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "covid_fastai", "serve", str(model), "--port", str(port), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline = time.monotonic() + 120
                while time.monotonic() < deadline and process.poll() is None:
                    try:
                        get(port, "/readyz")
                        break
                    except OSError:
                        time.sleep(0.1)
                if process.poll() == PORT_IN_USE:  # by another process that was given it meanwhile
                    continue
                yield port, process
                return
            finally:
                if process.poll() is None:
                    process.kill()
    raise AssertionError("each of three free ports was taken before the server listened")


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read()


def form(content, name="a.png"):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n"


def send(port, body):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/predict", body, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def post(port, content):
    return send(port, form(content))


@POSIX
@pytest.mark.slow
def test_the_command_serves_and_stops(small_model):
    with serving(small_model) as (port, process):
        image = post(port, png(radiograph(0)))["images"][0]
        assert image["status"] == "ok" and b"Classify chest radiographs" in get(port, "/")
        for body in (b"--x\r\n\xff\r\n", form(b"DOE^JOHN")[:-6] + b"?"):  # malformed, and without a line in the log
            with pytest.raises(urllib.error.HTTPError, match="400"):
                send(port, body)
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}" in out and "not a medical device" in out
    assert "a.png" not in out + err and "POST" not in out + err and not err
    remaining = children.stdout.split()
    assert remaining
    deadline = time.monotonic() + 10  # the resource tracker of multiprocessing ends a moment later
    while remaining and time.monotonic() < deadline:
        time.sleep(0.05)
        remaining = [child for child in remaining if os.path.exists(f"/proc/{child}")]
    assert not remaining, "a worker process is still running"


@POSIX
@pytest.mark.slow
@pytest.mark.nightly  # it waits for the limit of 10 s; tests/app/server/test_protocol.py has shorter limits
def test_the_connection_of_a_slow_client_is_closed(small_model):
    """The client never completes the head of its request; other clients get answers meanwhile."""
    with serving(small_model) as (port, _), socket.create_connection(("127.0.0.1", port)) as slow:
        start = time.monotonic()
        slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert get(port, "/healthz")
        slow.settimeout(1)
        closed = False
        while not closed and time.monotonic() - start < 60:
            try:
                slow.sendall(b"X-a: b\r\n")
                closed = slow.recv(10) == b""
            except TimeoutError:
                continue
            except OSError:
                closed = True
        assert closed and time.monotonic() - start > 9


def test_a_port_in_use_is_an_error(small_model):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-m", "covid_fastai", "serve", str(small_model), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == PORT_IN_USE and f"cannot listen on 127.0.0.1, port {port}" in done.stderr


def test_a_folder_without_a_model_is_an_error(tmp_path):
    command = [sys.executable, "-m", "covid_fastai", "serve", str(tmp_path), "--port", "1"]
    done = subprocess.run([*command[:-1], "18999"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "no such file" in done.stderr and "Traceback" not in done.stderr


def test_listening_for_other_machines_requires_the_allowed_host_names():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.9"):
        check_hosts(host, [])
    for host in ("0.0.0.0", "::", "192.168.1.2", "ward.example"):
        with pytest.raises(UsageError, match="requires the allowed host names"):
            check_hosts(host, [])
        check_hosts(host, ["ward.example"])


@pytest.mark.parametrize(
    "name",
    [
        "*",
        "",
        " ",
        ".",
        "*.ward.example",
        "ward.example:8000",
        "http://ward.example",
        "ward.example/",
        "a b",
        "a,b",
        "-a",
    ]
    + [
        "[::1]:80",
        "192.168.1.2:80",
        "192.168.1",
        "300.1.1.1",
        "10",
        "m\xfcller.example",
        "a..b",
        "user@ward",
        "x" * 64,
    ],
)
def test_an_allowed_host_name_that_no_request_can_have_is_refused(name):
    for check in (lambda: check_hosts("127.0.0.1", ["ward.example", name]), lambda: check_host_names([name])):
        with pytest.raises(UsageError, match="no request could be sent to it") as caught:
            check()
        assert repr(name) in str(caught.value) and "without" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["ward", "Ward.example", "ward.example.", "xn--mller-kva.example", "my_box", "192.168.1.2", "::1", "[fe80::1]"],
)
def test_names_that_a_request_can_have_are_allowed(name):
    check_host_names([name])


# the rate limiter


def test_the_rate_limiter_limits_concurrent_requests():
    limiter = RateLimiter(Limits(queue=3, per_minute=0), workers=1)
    with limiter.enter("a"), limiter.enter("a"), limiter.enter("b"), limiter.enter("c"):
        with pytest.raises(RequestRejected) as caught, limiter.enter("d"):
            pass
        assert caught.value.status == 503 and caught.value.retry_after
    with limiter.enter("d"):
        pass
    limiter = RateLimiter(Limits(queue=30, per_minute=0), workers=2)
    requests = [limiter.enter("slow") for _ in range(16)]
    for request in requests:
        request.__enter__()
    with pytest.raises(RequestRejected) as caught, limiter.enter("slow"):
        pass
    assert caught.value.status == 429
    with limiter.enter("other"):  # one address cannot block the others
        pass


def test_requests_that_arrive_slowly_do_not_take_the_places_of_those_that_have_arrived():
    limiter = RateLimiter(Limits(queue=2, receiving=20, per_minute=0), workers=1)
    with ExitStack() as slow:
        for number in range(20):
            slow.enter_context(limiter.receive(f"slow {number % 4}"))
        with pytest.raises(RequestRejected) as caught, limiter.receive("other"):
            pass
        assert caught.value.status == 503
        with limiter.enter("a"), limiter.enter("b"):
            pass
    with limiter.enter("a"), limiter.enter("b"), limiter.enter("c"):
        with pytest.raises(RequestRejected) as caught, limiter.receive("d"):
            pass  # refused before its body is received in vain
        assert caught.value.status == 503
    with limiter.receive("d"), limiter.enter("d"):
        pass


def test_the_rate_limiter_limits_the_requests_of_an_address_per_minute():
    now = [0.0]
    limiter = RateLimiter(Limits(per_minute=60), workers=1, clock=lambda: now[0])

    def enter(client):
        with limiter.receive(client), limiter.enter(client):
            return True

    assert all(enter("a") for _ in range(12))  # the bucket holds a fifth of the requests of a minute
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
    assert len(limiter._buckets) <= 4096 and not limiter._received._taken and not limiter._waiting._taken


def test_the_addresses_of_an_ipv6_network_are_one_client():
    """Whoever has one of them usually has all."""
    one, other = client_of("2001:db8:0:1::1"), client_of("2001:db8:0:1:ffff::2")
    assert one == other and client_of("2001:db8:0:2::1") != one
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1") == "192.0.2.1" != client_of("192.0.2.2")
    assert client_of("fe80::1%eth0") == client_of("fe80::2%eth0") and client_of("testclient") == "testclient"


@pytest.mark.parametrize(
    ("sent", "cleaned"),
    [
        ("a.png", "a.png"),
        ("/x/../a.png", "a.png"),
        ("c:\\d\\a.png", "a.png"),
        ("", ""),
        ("a\tb\x1b[0m", "a\ufffdb\ufffd[0m"),
    ],
)
def test_names_of_files_are_cleaned(sent, cleaned):
    assert clean_name(sent) == cleaned


# memory


@POSIX
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="system: memory is read from /proc")
def test_memory_stays_flat(small_model):
    """400 requests of four kinds after 200 warm-up requests; the memory of server and worker together."""
    contents = [png(radiograph(0, 512)), png(np.zeros((300, 300), np.uint8)), b"x" * 1_000_000, png(radiograph(1, 128))]

    def rss(parent):
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True
        ).stdout.split()
        total = 0
        for pid in [parent, *children]:
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
        statuses = list(pool.map(ask, range(400)))
        after = rss(process.pid)
    assert statuses[:4] == ["ok", 422, 422, "ok"] and statuses == statuses[:4] * 100
    assert after - before < 20 << 10, f"{before} to {after} KiB"
