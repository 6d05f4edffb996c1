"""Every stage of a connection ends in time, each with a client that would make it last for ever."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra web is not installed")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.middleware import HEADERS, SecurityMiddleware
from covid_fastai.app.server.protocol import ConnectionProtocol
from tests.app.server.running import Connection, running, wait_for

LIMITS = Limits(head_seconds=0.6, keep_alive_seconds=1, linger_seconds=0.6, send_seconds=1, connections=6)
SOON = 4.5  # seconds: less than the shortest of the default limits, and much more than those above
HEAD = b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n"
SMALL = HEAD % (b"GET", b"/small", b"")
LARGE = 24 << 20  # bytes, more than the buffers of both ends
ADDRESSES = pytest.mark.skipif(sys.platform != "linux", reason="system: only Linux has more than one loopback address")


async def small(request: Request) -> Response:
    return PlainTextResponse("small")


async def large(request: Request) -> Response:
    return Response(bytes(LARGE))


async def length(request: Request) -> Response:
    try:
        return PlainTextResponse(str(len(await request.body())))
    except ClientDisconnect:
        return PlainTextResponse("gone")


def application() -> Starlette:
    routes = [
        Route("/small", small, methods=["GET", "POST"]),
        Route("/large", large),
        Route("/length", length, methods=["POST", "HEAD"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(SecurityMiddleware)])


@pytest.fixture(scope="module")
def port():
    with running(application(), LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def patient_port():
    """A server on which only a lack of room closes connections."""
    with running(application(), replace(LIMITS, head_seconds=60, send_seconds=60)) as port:
        yield port


def get(port: int, **options) -> bytes:
    with Connection(port, **options) as client:
        client.sendall(HEAD % (b"GET", b"/small", b"Connection: close\r\n"))
        return client.answer()


def closed_after(client: Connection) -> float:
    begun = time.monotonic()
    client.answer()
    return time.monotonic() - begun


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: 127", SMALL + b"GET"])
def test_a_head_that_does_not_end_closes_the_connection(port, start):
    with Connection(port) as client:
        client.sendall(start)
        assert closed_after(client) < SOON
    with Connection(port) as client:
        client.sendall(start or b"G")
        assert client.drip(5) < SOON


def test_an_idle_connection_is_closed(port):
    with Connection(port) as client:
        client.sendall(SMALL)
        assert closed_after(client) < SOON


def test_the_rest_of_a_body_after_its_answer_is_not_waited_for(port):
    """The client gets its answer, and can drip no longer than `linger_seconds`."""
    for size in (b"9000", b"999999999999"):
        with Connection(port) as client:
            client.sendall(HEAD % (b"POST", b"/small", b"Content-Length: " + size + b"\r\n") + b"x")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            assert client.drip(5) < SOON


@pytest.mark.parametrize("option", [b"", b"Connection: close\r\n"])
def test_a_large_body_that_is_not_read_does_not_lose_its_answer(port, option):
    """Closing at once would reset the connection while the client still sends."""
    with Connection(port) as client:
        client.sendall(HEAD % (b"POST", b"/small", option + b"Content-Length: 30000000\r\n"))
        client.sendall(bytes(30_000_000))
        assert client.answer().endswith(b"small")


@pytest.mark.parametrize("number", [1, 30])
def test_a_client_that_does_not_read_its_answer_is_closed(port, number, monkeypatch):
    ended, lose = set(), ConnectionProtocol.connection_lost

    def connection_lost(self, exc):
        lose(self, exc)
        ended.add(self.client)

    monkeypatch.setattr(ConnectionProtocol, "connection_lost", connection_lost)
    with Connection(port, receive_buffer=4096) as client:
        client.sendall(HEAD % (b"GET", b"/large", b"") * number)
        wait_for(lambda: client.getsockname() in ended)
        assert len(client.answer()) < LARGE
    assert get(port).endswith(b"small")


def test_an_answer_that_is_read_at_once_is_whole(port):
    with Connection(port) as client:
        client.sendall(HEAD % (b"GET", b"/large", b"Connection: close\r\n"))
        assert len(client.answer()) > LARGE


@ADDRESSES
def test_many_connections_of_one_client_leave_room_for_others(patient_port):
    """Of the address that has most, the one that has waited longest makes room."""
    flood = [Connection(patient_port, address="127.0.0.2") for _ in range(LIMITS.connections)]
    try:
        flood[0].sendall(b"G")
        assert get(patient_port, address="127.0.0.3").endswith(b"small")
        assert flood[0].answer() == b""  # the oldest was closed
        flood[-1].sendall(SMALL)
        assert flood[-1].recv(4096).endswith(b"small")  # another was not
    finally:
        for connection in flood:
            connection.close()


@ADDRESSES
def test_clients_that_do_not_read_make_room_too(patient_port):
    flood = [Connection(patient_port, address="127.0.0.2", receive_buffer=4096) for _ in range(LIMITS.connections)]
    try:
        for connection in flood:
            connection.sendall(HEAD % (b"GET", b"/large", b"") * 2)
        assert get(patient_port).endswith(b"small")
    finally:
        for connection in flood:
            connection.close()


# what is not HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # without Host
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
        HEAD % (b"POST", b"/small", b"Content-Length: -1\r\n"),
        HEAD % (b"POST", b"/small", b"Content-Length: 1\r\nContent-Length: 2\r\n"),
        HEAD % (b"POST", b"/small", b"Transfer-Encoding: gzip, chunked\r\n"),
        HEAD % (b"POST", b"/length", b"Transfer-Encoding: chunked\r\n") + b"nonsense\r\n",
        HEAD % (b"HEAD", b"/length", b"Transfer-Encoding: chunked\r\n") + b"nonsense\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the start of TLS
    ],
)
def test_what_is_not_http_gets_an_error_with_the_security_headers(port, sent, caplog):
    with Connection(port) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR) if sent.startswith(b"\x16") else None
        answer = client.answer()
    if not sent.startswith(b"\x16"):
        head, body = answer.split(b"\r\n\r\n", 1)
        assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
        is_head = sent.startswith(b"HEAD")
        assert not body if is_head else json.JSONDecoder().raw_decode(body.decode())[0]["error"]
        for name, value in HEADERS.items():
            assert f"{name}: {value}".lower() in head.decode().lower()
    assert get(port).endswith(b"small")
    assert not caplog.records  # a client cannot fill the log


def test_a_body_of_two_lengths_is_refused_and_ends_its_connection(port):
    two = b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"
    with Connection(port) as client:
        client.sendall(HEAD % (b"POST", b"/length", two) + b"3\r\nabc\r\n0\r\n\r\n" + SMALL)
        answer = client.answer()
    assert answer.startswith(b"HTTP/1.1 400") and b"both Content-Length" in answer
    assert b"connection: close" in answer.lower() and answer.count(b"HTTP/1.1") == 1


def test_a_chunked_body_is_read(port):
    with Connection(port) as client:
        chunked = b"Transfer-Encoding: chunked\r\nConnection: close\r\n"
        client.sendall(HEAD % (b"POST", b"/length", chunked) + b"3\r\nabc\r\n0\r\n\r\n")
        assert client.answer().endswith(b"3")


def test_a_body_of_very_many_small_chunks_is_refused_at_once(port):
    chunked = HEAD % (b"POST", b"/length", b"Transfer-Encoding: chunked\r\n")
    with Connection(port) as client, contextlib.suppress(ConnectionError):
        client.sendall(chunked + b"1\r\nx\r\n" * 4_000_000)
        pytest.fail("the server read all of it")
    with Connection(port) as client:
        client.sendall(chunked + b"1\r\nx\r\n" * 1001 + b"0\r\n\r\n")
        assert client.answer().startswith(b"HTTP/1.1 400")
    for chunks in (b"1\r\nx\r\n" * 900, b"400\r\n" + bytes(1024) + b"\r\n", b"40\r\n" + bytes(64) + b"\r\n"):
        with Connection(port) as client:
            client.sendall(chunked + chunks * (1 if b"x" in chunks else 2000) + b"0\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_the_documentation_states_the_limits():
    text = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", text, re.MULTILINE))
    limits = Limits()
    assert rows["head of a request"] == f"{limits.head_seconds:g} s"
    rate = f"{limits.start_seconds:g} s, and 1 s more for each {limits.receive_rate >> 10} KiB that arrive"
    assert rows["body of a request"] == f"{rate}, {limits.receive_seconds:g} s at most"
    assert rows["wait for a worker process"].startswith(f"{limits.queue_seconds:g} s ")
    assert rows["prediction of an image"].startswith(f"{limits.seconds:g} s ")
    assert rows["answer that the client does not read"] == f"{limits.send_seconds:g} s"
    assert rows["rest of a body after its answer"] == f"{limits.linger_seconds:g} s"
    assert rows["next request on a connection"] == f"{limits.keep_alive_seconds} s"
    assert f"At most {limits.receiving} requests" in text and f"and {limits.queue} (`--queue`) wait" in text
    assert f"more than {limits.connections} connections" in text
