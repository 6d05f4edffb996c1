"""A uvicorn protocol that hangs up on connections which send no whole request head in time (slow loris)."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEAD_SECONDS", "ImpatientProtocol"]

HEAD_SECONDS = 10.0  # a head is a kilobyte; the body's time is the application's to limit


class ImpatientProtocol(H11Protocol):
    """Close a connection that has been waited at for `HEAD_SECONDS` while no request is under way."""

    head_seconds = HEAD_SECONDS
    _hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came; go on waiting unless it has made the head whole."""
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting:
            self._stop()
        elif self._hang_up is None and self.conn.their_state is h11.IDLE:
            self._wait()  # the first bytes of a further head

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._hang_up = self.loop.call_later(self.head_seconds, self.transport.close)  # guard: patience

    def _stop(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None
