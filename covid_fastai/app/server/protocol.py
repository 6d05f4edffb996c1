"""A uvicorn protocol that closes connections without a complete request head in time, against Slowloris attacks."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEAD_SECONDS", "HeadTimeoutProtocol"]

HEAD_SECONDS = 10.0  # a head has about one kilobyte; the application limits the time of the body


class HeadTimeoutProtocol(H11Protocol):
    """Close a connection that sends no complete request head within `HEAD_SECONDS`."""

    head_seconds = HEAD_SECONDS
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start the timer for the first head."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Process the data, and stop the timer if the head is complete."""
        super().data_received(data)
        waiting_for_head = self.cycle is None or self.cycle.response_complete
        if not waiting_for_head:
            self._stop_timer()
        elif self._timer is None and self.conn.their_state is h11.IDLE:
            self._start_timer()  # these are the first bytes of the next head

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.head_seconds, self.transport.close)  # guard: patience

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
