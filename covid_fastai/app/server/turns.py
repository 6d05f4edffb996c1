"""Whose file is predicted next: the client that has used the workers least, and last the one whose file cost a worker.

In the order of arrival, one client with many slow files would keep all others waiting.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from covid_fastai.app.server.limits import drop_oldest
from covid_fastai.app.server.uploads import RequestRejected

__all__ = ["Turns"]

HALF_LIFE = 60  # seconds after which the time that a client has used counts half
BLAMED_SECONDS = 600  # that a client whose file cost a worker comes last
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Waiting:
    client: str
    number: int  # in the order of arrival
    granted: asyncio.Event


class Turns:
    """Run functions in threads for clients, a limited number at the same time. Not thread-safe: for one event loop.

    No client is refused for what it did: an idle worker takes the next file, whoever sent it.

    Args:
        number: The number of threads.
        seconds: The longest wait for a turn.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, number: int, *, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._free, self._seconds, self._clock = number, seconds, clock
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="prediction")
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._running: Counter[str] = Counter()
        self._used: dict[str, tuple[float, float]] = {}  # seconds, and the time of that count, by client
        self._blamed: dict[str, float] = {}  # time of the last worker that a client's file cost

    async def run(
        self,
        client: str,
        function: Callable[[], Result],
        *,
        cost_worker: Callable[[Result], bool] = lambda result: False,
    ) -> Result:
        """Run a function in a thread when it is the client's turn.

        A function that has started runs to its end, even if this call is cancelled; its turn ends with it.

        Args:
            client: The address of the client.
            function: The function.
            cost_worker: Whether a result means that the function cost a worker. Then the client is blamed, also if it
                has not waited for the result.

        Returns:
            Its result.

        Raises:
            RequestRejected: With the status 503 if no turn came in time.
        """
        await self._wait(client)
        begun = self._clock()
        future = asyncio.get_running_loop().run_in_executor(self._pool, function)

        def end(done: asyncio.Future[Result]) -> None:
            failed = done.cancelled() or done.exception() is not None  # retrieved, also when nobody waits any more
            if not failed and cost_worker(done.result()):
                self.blame(client)  # guard: blamed
            self._count(client, self._clock() - begun)
            self._release(client)

        future.add_done_callback(end)
        return await asyncio.shield(future)

    def blame(self, client: str) -> None:
        """Let a client come after all others for some minutes, since its file cost a worker."""
        self._blamed.pop(client, None)
        self._blamed[client] = self._clock()
        drop_oldest(self._blamed)

    def close(self) -> None:
        """Start no further function."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _wait(self, client: str) -> None:
        waiting = _Waiting(client, next(self._numbers), asyncio.Event())
        self._waiting.append(waiting)
        self._grant()
        try:
            async with asyncio.timeout(self._seconds):
                await waiting.granted.wait()
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:  # granted at the same moment
                self._release(client)
            if isinstance(error, TimeoutError):
                reason = f"No worker was free within {self._seconds:g} seconds."
                raise RequestRejected(503, reason, retry_after=5) from None
            raise

    def _grant(self) -> None:
        while self._free and self._waiting:
            chosen = min(self._waiting, key=self._rank)  # guard: fair_turns
            self._waiting.remove(chosen)
            self._free -= 1
            self._running[chosen.client] += 1
            chosen.granted.set()

    def _release(self, client: str) -> None:
        self._free += 1
        self._running[client] -= 1
        self._running += Counter()  # drops zeros
        self._grant()

    def _rank(self, waiting: _Waiting) -> tuple[bool, int, float, int]:
        client = waiting.client
        blamed = self._clock() - self._blamed.get(client, float("-inf")) < BLAMED_SECONDS
        return blamed, self._running[client], self._used_by(client), waiting.number

    def _used_by(self, client: str) -> float:
        seconds, at = self._used.get(client, (0.0, 0.0))
        return seconds * 0.5 ** ((self._clock() - at) / HALF_LIFE)

    def _count(self, client: str, seconds: float) -> None:
        seconds += self._used_by(client)
        self._used.pop(client, None)
        self._used[client] = (seconds, self._clock())
        drop_oldest(self._used)
