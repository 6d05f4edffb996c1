"""The connections of the server: a uvicorn protocol that ends each stage of a connection after a time.

uvicorn limits the time between two requests only. A client that sends its head or the rest of a body byte by byte, or
never reads its answer, would hold its connection for ever. The application limits the time of bodies and predictions.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from covid_fastai.app.server.limits import Limits, client_of
from covid_fastai.app.server.middleware import HEADERS
from covid_fastai.app.server.schemas import ErrorResponse

__all__ = ["ConnectionProtocol", "protocol_within"]

MAX_SMALL_CHUNKS, SMALL_CHUNK = 1000, 64  # chunks of a body, and bytes that they must have on average from then on
ORDER = itertools.count()


class ConnectionProtocol(H11Protocol):
    """A connection whose stages end in time: head, answer, and the rest of a body after its answer."""

    limits: ClassVar[Limits] = Limits()
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None
    _waits_since = 0  # in the order in which connections began to wait; the clock of uvloop is too coarse for it

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.conn = _CountingConnection(h11.SERVER)  # guard: small_chunks

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start the timer for the first head, and make room if there are too many connections."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _GentleTransport(self, transport))
        transport.set_write_buffer_limits(high=0)  # so that writing pauses until the client has taken everything
        self._waits_since = next(ORDER)
        self._head_timer = self._close_after(self.limits.head_seconds)  # guard: patience
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Process the data, and stop the timer if the head is complete."""
        if self._linger_timer is not None:
            return  # the rest of a body that nobody reads
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_timer = _stop(self._head_timer)
        elif self._head_timer is None and self.conn.their_state is h11.IDLE:
            self._head_timer = self._close_after(self.limits.head_seconds)  # the first bytes of the next head

    def on_response_complete(self) -> None:
        """Close the connection soon if the body is not complete: its rest may have no end."""
        super().on_response_complete()
        self._waits_since = next(ORDER)
        if self.leaves_body:  # guard: linger
            self.transport.close()

    @property
    def leaves_body(self) -> bool:
        """Whether a request has been answered before its body was complete."""
        answered = self.cycle is not None and self.cycle.response_complete
        return answered and self.conn.their_state is h11.SEND_BODY

    def linger(self) -> None:
        """Read and drop the rest of a body for some seconds, and tell the client that nothing more is answered."""
        self._unset_keepalive_if_required()
        if self._linger_timer is None:
            self._linger_timer = self._close_after(self.limits.linger_seconds)
            if self.transport.can_write_eof():
                self.transport.write_eof()

    def pause_writing(self) -> None:
        """Start the timer for the client to take the answer."""
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self._close_after(self.limits.send_seconds)  # guard: unread_answer

    def resume_writing(self) -> None:
        """Stop the timer: the client has taken everything."""
        self._send_timer = _stop(self._send_timer)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        for timer in (self._head_timer, self._send_timer, self._linger_timer):
            _stop(timer)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP as the application refuses requests, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = ErrorResponse(error="Malformed request.").model_dump_json().encode()
            headers = {
                **HEADERS,
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
            }  # guard: bare_400
            headers["Connection"] = "close"
            is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
            events = (
                h11.Response(status_code=400, headers=list(headers.items())),
                h11.Data(data=b"" if is_head else body),
            )
            for event in (*events, h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # its answer can no longer be sent
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    @property
    def _is_waiting(self) -> bool:
        """Whether the connection waits for its client, not for the application."""
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def _make_room(self) -> None:
        """Close one of too many connections: the longest without a request, of the address that has most."""
        connections = cast("set[ConnectionProtocol]", self.connections)
        alive = [connection for connection in connections if not connection.transport.is_closing()]
        if len(alive) <= self.limits.connections:
            return
        numbers = Counter(connection._address for connection in alive)
        waiting = [connection for connection in alive if connection is not self and connection._is_waiting]
        waiting.sort(key=lambda connection: (-numbers[connection._address], connection._waits_since))
        (waiting[0] if waiting else self).transport.abort()  # guard: make_room

    @property
    def _address(self) -> str:
        return client_of(self.client[0] if self.client else "")

    def _close_after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)  # close() would wait for a client that does not read


class _CountingConnection(h11.Connection):
    """An HTTP parser that refuses bodies of very many small chunks.

    Parsing a chunk of one byte takes as long as one of 64 KiB, and the server answers nobody meanwhile.
    """

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        """Return the next event, or raise after too many small chunks of one body."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._bytes += len(event.data)
            if self._chunks > MAX_SMALL_CHUNKS and self._bytes < self._chunks * SMALL_CHUNK:
                raise h11.RemoteProtocolError("The chunks of the body are too small.")
        return event


class _GentleTransport:
    """A transport that does not close with unread data, which would reset the connection.

    The client, which is still sending, would lose the answer (RFC 9112, 9.6; lingering_close of nginx).
    """

    def __init__(self, protocol: ConnectionProtocol, transport: asyncio.Transport):
        self._protocol, self._transport = protocol, transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close the connection, after some seconds if a body is not complete."""
        if self._protocol.leaves_body and not self._transport.is_closing():
            self._protocol.linger()
        else:
            self._transport.close()


def protocol_within(limits: Limits) -> type[ConnectionProtocol]:
    """Return the protocol with other limits than the default ones."""
    return type("LimitedProtocol", (ConnectionProtocol,), {"limits": limits})


def _stop(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer; return None in its place."""
    if timer is not None:
        timer.cancel()
