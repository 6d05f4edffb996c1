"""Worker processes that read hostile files, each bounded in time and memory: one that dies is replaced."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from covid_fastai.app.server.schemas import ImageAnswer, ImageAnswerWithMaps
from covid_fastai.app.server.worker_process import refusal, run_worker
from covid_fastai.errors import ModelFormatError, UnavailableError

__all__ = ["Workers"]

logger = logging.getLogger("covid_fastai")

START = 120  # seconds that a worker may take to load the model: on a busy machine it takes ten times its usual 1 to 2
LARGEST_ANSWER = 16 << 20  # bytes; two pictures of 640 pixels take one
Message = TypeVar("Message")
ANSWER: TypeAdapter[ImageAnswer] = TypeAdapter(ImageAnswerWithMaps | ImageAnswer)


class Workers:
    """Answer files in processes of their own, one at a time each.

    Any thread may ask. A file on which a process takes too long, or dies, is answered with `failed`; the process is
    replaced before the next one, and the others go on meanwhile.

    Args:
        folder: The saved model.
        number: Processes.
        seconds: What one file may take.
        memory: Bytes that a process may take beyond the loaded model.
        max_pixels: Of one picture.

    Raises:
        ModelFormatError: The model cannot be used.
        UnavailableError: No process can be started.
    """

    def __init__(self, folder: str | Path, *, number: int, seconds: float, memory: int, max_pixels: int):
        self.number = number
        self._seconds = seconds
        self._options = {"folder": str(folder), "max_pixels": max_pixels, "memory": memory}
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._all: set[_Worker] = set()
        self._closed = False
        first = self._start()  # alone: a model that cannot be used shall not be tried `number` times
        self._idle.put(first)
        for _ in range(number - 1):
            self._idle.put(None)  # started by the first question that needs it

    @property
    def ready(self) -> bool:
        """Whether a process with a loaded model is there."""
        return not self._closed and any(worker.process.is_alive() for worker in tuple(self._all))

    def ask(self, content: bytes, *, pictures: bool) -> ImageAnswer:
        """Answer one file, after those that wait already.

        Args:
            content: Its bytes.
            pictures: As in `answer_file`.

        Returns:
            As `answer_file` does.
        """
        worker = self._idle.get()
        try:
            if worker is None or not worker.process.is_alive():
                self._drop(worker)
                worker = None
                worker = self._start()
            return worker.ask(content, pictures=pictures, seconds=self._seconds)
        except _Lost as lost:  # guard: lost_worker
            self._drop(worker)
            worker = None
            return refusal("failed", lost.args[0])
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all processes."""
        self._closed = True
        for worker in tuple(self._all):
            self._drop(worker)

    def _start(self) -> _Worker:
        if self._closed:
            raise UnavailableError("The server is closing.", hint="Ask again when it is back.")
        worker = _Worker(self._options)
        self._all.add(worker)
        return worker

    def _drop(self, worker: _Worker | None) -> None:
        if worker is not None:
            self._all.discard(worker)
            worker.end()


class _Lost(Exception):
    """A worker gave no answer; the one argument says why, for the visitor."""


class _Worker:
    """One process and the connection to it."""

    def __init__(self, options: dict[str, Any]):
        context = get_context("spawn")  # a fork would copy the server's threads' locks
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=run_worker, args=(theirs,), kwargs=options, daemon=True)
        self.process.start()
        theirs.close()
        try:
            said = self._within(START, self._receive)
        except _Lost as lost:
            self.end()
            raise UnavailableError(
                "The process that is to answer ended at its start.", hint="Look for memory and for its own message."
            ) from lost
        if "error" in said:
            self.end()
            raise ModelFormatError(said["error"], hint=said["hint"])

    def ask(self, content: bytes, *, pictures: bool, seconds: float) -> ImageAnswer:
        def speak() -> ImageAnswer:
            self._connection.send_bytes(json.dumps({"pictures": pictures}).encode())
            self._connection.send_bytes(content)
            # checked again: a hostile file may have taken over the process that sends it
            return ANSWER.validate_json(self._connection.recv_bytes(LARGEST_ANSWER))

        return self._within(seconds, speak)

    def end(self) -> None:
        self.process.kill()
        self.process.join(10)
        self._connection.close()

    def _receive(self) -> dict[str, Any]:
        return json.loads(self._connection.recv_bytes(LARGEST_ANSWER))

    def _within(self, seconds: float, speak: Callable[[], Message]) -> Message:
        """Speak with the process, which is killed when the time is over: that ends a wait at either end of the pipe."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            return speak()
        except (EOFError, OSError, ValueError) as error:
            if late.is_set():
                reason = f"It took longer than {seconds:g} seconds, and was given up."
            elif isinstance(error, ValueError):
                reason = "The process that read it gave an invalid answer."
            else:
                self.process.join(1)
                reason = "The process that read it ended; it was probably too large."
            logger.warning("A worker was lost (%s, exit status %s).", type(error).__name__, self.process.exitcode)
            raise _Lost(reason) from error
        finally:
            timer.cancel()
