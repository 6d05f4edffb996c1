"""The server in a thread of the test or without worker processes, and clients that misbehave on a socket."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from covid_fastai.app.server.limits import Limits
from covid_fastai.app.server.protocol import protocol_within
from covid_fastai.app.server.schemas import ImageAnswer
from covid_fastai.app.server.worker_process import answer_without_prediction

__all__ = ["Connection", "NoProcesses", "running", "wait_for"]


def wait_for(happened: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait until something has happened, which on a busy machine may take longer than alone."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it has not happened within {seconds} seconds"
        time.sleep(0.01)


@contextlib.contextmanager
def running(app: ASGIApp, limits: Limits) -> Iterator[int]:
    """Serve an application as the command does, and yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    options = {"http": protocol_within(limits), "timeout_keep_alive": limits.keep_alive_seconds, "ws": "none"}
    config = uvicorn.Config(app, log_config=None, log_level="error", timeout_graceful_shutdown=1, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


class Connection(socket.socket):
    """A connection to the server whose client does as it likes."""

    def __init__(self, port: int, *, address: str = "127.0.0.1", receive_buffer: int | None = None):
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.settimeout(20)
        if receive_buffer is not None:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.bind((address, 0))
        self.connect(("127.0.0.1", port))

    def answer(self) -> bytes:
        """Return everything that the server sends until it closes the connection."""
        content = []
        with contextlib.suppress(ConnectionError):
            while more := self.recv(1 << 20):
                content.append(more)
        return b"".join(content)

    def drip(self, seconds: float) -> float:
        """Send a byte at short intervals until the connection is closed; return after how many seconds it was."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            try:
                self.sendall(b"x")
            except OSError:
                break
            time.sleep(0.05)
        return time.monotonic() - begun


class NoProcesses:
    """Workers that start no process, which takes seconds, and call every file unreadable."""

    ready = True

    def __init__(self, folder, *, number: int, **options):
        self.number = number

    def predict(self, content: bytes, *, maps: bool) -> ImageAnswer:
        return answer_without_prediction("unreadable", "No file is read in this test.")

    def close(self) -> None:
        pass
