"""Turns go to the client that has used the workers least; a client whose file cost a worker comes last."""

from __future__ import annotations

import asyncio
import threading

import pytest

pytest.importorskip("starlette", reason="the extra web is not installed")

from covid_fastai.app.server import limits as limits_module
from covid_fastai.app.server.turns import BLAMED_SECONDS, Turns
from covid_fastai.app.server.uploads import RequestRejected


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def order_of(turns: Turns, clients: str, *, clock: Clock | None = None, seconds: dict[str, float] | None = None) -> str:
    """Let clients wait while a first one has the only turn, and return the order in which they run."""
    done: list[str] = []

    def run(client: str) -> None:
        done.append(client)
        if clock is not None:
            clock.now += (seconds or {}).get(client, 0.0)

    async def ask() -> None:
        released = threading.Event()
        first = asyncio.ensure_future(turns.run("first", lambda: released.wait(10)))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(turns.run(client, lambda client=client: run(client))) for client in clients]
        await asyncio.sleep(0)
        released.set()
        await asyncio.gather(first, *others)

    asyncio.run(ask())
    return "".join(done)


def test_a_client_with_many_files_does_not_keep_others_waiting():
    clock = Clock()
    turns = Turns(1, seconds=10, clock=clock)
    assert order_of(turns, "aaaabc", clock=clock, seconds={"a": 1, "b": 1, "c": 1}) == "abcaaa"


def test_time_counts_and_not_files():
    clock = Clock()
    turns = Turns(1, seconds=10, clock=clock)
    assert order_of(turns, "aaabb", clock=clock, seconds={"a": 1, "b": 9}) == "abaab"
    clock.now += 1_000_000
    assert order_of(turns, "ba", clock=clock) == "ba"  # long ago


def test_a_blamed_client_comes_last_for_some_minutes():
    clock = Clock()
    turns = Turns(1, seconds=10, clock=clock)
    turns.blame("a")
    assert order_of(turns, "aabcc") == "bccaa"
    clock.now += BLAMED_SECONDS
    assert order_of(turns, "ab") == "ab"


def test_a_client_that_does_not_wait_is_blamed_too():
    turns = Turns(1, seconds=10)

    async def ask() -> None:
        released = threading.Event()
        gone = asyncio.ensure_future(turns.run("a", lambda: released.wait(10), cost_worker=bool))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        assert not turns._blamed
        released.set()
        await turns.run("b", lambda: False, cost_worker=bool)

    asyncio.run(ask())
    assert list(turns._blamed) == ["a"]


def test_a_wait_ends_in_time_and_a_cancelled_one_leaves_the_queue():
    turns = Turns(1, seconds=0.1)
    ran: list[str] = []

    async def ask() -> None:
        released = threading.Event()
        first = asyncio.ensure_future(turns.run("first", lambda: released.wait(10)))
        late = asyncio.ensure_future(turns.run("late", lambda: ran.append("late")))
        gone = asyncio.ensure_future(turns.run("gone", lambda: ran.append("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(RequestRejected) as caught:
            await late
        assert caught.value.status == 503 and caught.value.retry_after and "0.1 seconds" in caught.value.reason
        first.cancel()  # its function runs on, and keeps its turn
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(RequestRejected):
            await turns.run("next", lambda: ran.append("next"))
        released.set()
        while turns._running:  # else the wait for it could be too long for the last one
            await asyncio.sleep(0.001)
        assert await turns.run("last", lambda: "answer") == "answer"

    asyncio.run(ask())
    assert ran == [] and not turns._waiting and not turns._running


def test_an_exception_ends_a_turn():
    turns = Turns(1, seconds=1)

    def fail() -> None:
        raise ValueError("reason")

    async def ask() -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="reason"):
                await turns.run("a", fail)

    asyncio.run(ask())


def test_what_is_known_of_clients_is_limited(monkeypatch):
    monkeypatch.setattr(limits_module, "MAX_ADDRESSES", 10)
    turns = Turns(1, seconds=1)

    async def ask() -> None:
        for number in range(30):
            await turns.run(f"client {number}", lambda: None)
            turns.blame(f"client {number}")

    asyncio.run(ask())
    assert len(turns._used) == len(turns._blamed) == 10
