"""Hostile clients of eight kinds, for `benchmarks.soak`. They attack only a port of this machine."""

from __future__ import annotations

import io
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial

import numpy as np
from PIL import Image

__all__ = ["ATTACKS", "costly_files", "form_of", "open_connection"]

CONNECTIONS = 40  # that one client of the kind "many connections" holds open
DRIP = 0.2  # seconds between two bytes
POST = b"POST /api/predict?maps=true HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"
Attack = Callable[[int, str, threading.Event, bytes], None]


def open_connection(port: int, address: str) -> socket.socket:
    """Connect to the server from one of the loopback addresses."""
    return socket.create_connection(("127.0.0.1", port), timeout=2, source_address=(address, 0))


def form_of(*contents: bytes) -> bytes:
    """Return a form with files, for the boundary `x`."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    return b"".join(head + content + b"\r\n" for content in contents) + b"--x--\r\n"


def _drip(start: bytes, port: int, address: str, stop: threading.Event, image: bytes) -> None:
    """Send a start, and then a byte at a time until the server hangs up."""
    with open_connection(port, address) as link:
        link.sendall(start)
        while not stop.wait(DRIP):
            link.sendall(b"x")


def _never_read(port: int, address: str, stop: threading.Event, image: bytes) -> None:
    """Ask for answers with maps again and again, and read none."""
    with open_connection(port, address) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = _request(image)
        while not stop.wait(DRIP):
            link.sendall(request)


def _hang_up(port: int, address: str, stop: threading.Event, image: bytes) -> None:
    """Send eight files and leave."""
    with open_connection(port, address) as link:
        link.sendall(_request(*[image] * 8))
    stop.wait(DRIP)


def _costly_file(port: int, address: str, stop: threading.Event, image: bytes) -> None:
    """Send small files that would take a decoder long; the last one is just within the limits, and ends a process."""
    for content in costly_files(image):
        with open_connection(port, address) as link:
            link.settimeout(60)
            link.sendall(_request(content))
            link.recv(1 << 16)
        if stop.is_set():
            return


def _nonsense(port: int, address: str, stop: threading.Event, image: bytes) -> None:
    """Send what is no request, two lengths, unknown character sets and broken forms."""
    two = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    charset = FORM.replace(b"\r\n", b"; charset=idna\r\n")
    messages = (
        b"\x16\x03\x01nonsense\r\n\r\n",
        POST % two + b"0\r\n\r\n",
        POST % (charset + b"Content-Length: %d\r\n" % len(form_of(image))) + form_of(image),
        POST % (FORM + b"Content-Length: 1000000\r\n") + b"\r\n--x-" * 160_000,
        POST % (FORM + b"Content-Length: 99999999999999999999\r\n"),
    )
    for message in messages:
        with open_connection(port, address) as link:
            link.sendall(message)
            link.shutdown(socket.SHUT_WR)
            link.recv(4096)
        if stop.wait(DRIP):
            return


def _many_connections(port: int, address: str, stop: threading.Event, image: bytes) -> None:
    """Hold connections open, each with one byte of a request."""
    with ExitStack() as links:
        for _ in range(CONNECTIONS):
            links.enter_context(open_connection(port, address)).sendall(b"G")
        stop.wait(5)


ATTACKS: dict[str, Attack] = {
    "slow head": partial(_drip, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "),
    "slow body": partial(_drip, POST % (FORM + b"Content-Length: 900000\r\n")),
    "body after its answer": partial(_drip, POST % b"Content-Type: text/plain\r\nContent-Length: 900000\r\n"),
    "answer not read": _never_read,
    "client hangs up": _hang_up,
    "costly file": _costly_file,
    "nonsense": _nonsense,
    "many connections": _many_connections,
}


@cache
def costly_files(jpeg: bytes) -> tuple[bytes, ...]:
    """Return small files that take a decoder long; making them takes seconds, too."""
    return many_scans(jpeg), many_directories(), many_elements(), allowed_scans()


def many_scans(jpeg: bytes, number: int = 2000) -> bytes:
    """Return a progressive JPEG with its last scan repeated."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * number + jpeg[-2:]


def allowed_scans() -> bytes:
    """Return a JPEG of as many pixels and scans as the server reads by default."""
    pixels = np.random.default_rng(0).integers(0, 256, (625, 625), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.kron(pixels, np.ones((8, 8), dtype=np.uint8))).save(file, "JPEG", progressive=True)
    return many_scans(file.getvalue(), 90)


def many_directories(number: int = 100_000) -> bytes:
    """Return a TIFF of directories without an image."""
    starts = range(14, 14 + 6 * number, 6)
    return b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<HI", 0, start) for start in starts) + bytes(6)


def many_elements(number: int = 1_500_000) -> bytes:
    """Return a DICOM file of empty elements."""
    meta = b"\x02\0\x10\0UI\x12\0" + b"1.2.840.10008.1.2\0"
    elements = b"".join(struct.pack("<HHI", 9 + 2 * (n >> 16), n & 0xFFFF, 0) for n in range(16, number))
    return bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta)) + meta + elements


def _request(*contents: bytes) -> bytes:
    form = form_of(*contents)
    return POST % (FORM + b"Content-Length: %d\r\n" % len(form)) + form
