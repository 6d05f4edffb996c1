"""Worker processes that read untrusted files within limits of time and memory. A process that dies is replaced."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from covid_fastai.app.server.schemas import ImageAnswer, ImageAnswerWithMaps
from covid_fastai.app.server.worker_process import answer_without_prediction, run_worker
from covid_fastai.errors import CovidFastaiError, ModelFormatError, UnavailableError
from covid_fastai.main_guard import MAIN_GUARD, check_main_guard

__all__ = ["Workers"]

logger = logging.getLogger("covid_fastai")

START_SECONDS = 120  # to load the model, which takes 1 to 2 seconds and ten times as long on a busy machine
IDLE_SECONDS = 30  # until a process is idle that replaces a lost one
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0  # before another try to start a process, doubled after each
MAX_ANSWER_BYTES = 16 << 20  # two images of 640 pixels have about 1 MiB
UNREAD = "The worker process ended before it had read the file."
Message = TypeVar("Message")
ANSWER: TypeAdapter[ImageAnswer] = TypeAdapter(ImageAnswerWithMaps | ImageAnswer)


class Workers:
    """Predict files in worker processes, each of which handles one file at a time.

    This class is thread-safe. If a process takes too long for a file or dies, the answer has the status `failed`, and
    the other processes are not affected. A thread replaces each process that has ended, however it ended, at once and
    not with the next file: a server that is asked for its readiness gets no files until it is ready.

    Args:
        folder: The folder of the saved model.
        fingerprint: Its fingerprint. A process that finds another model there when it starts does not answer.
        number: The number of processes.
        seconds: The longest time for one file.
        memory: Bytes that a process may allocate in addition to the loaded model.
        max_pixels: The largest number of pixels of an image.

    Raises:
        ModelFormatError: The model is missing, damaged or not allowed.
        UnavailableError: No process can be started.
        UsageError: A script called this without the guard `if __name__ == "__main__":`.
    """

    def __init__(
        self, folder: str | Path, *, fingerprint: str, number: int, seconds: float, memory: int, max_pixels: int
    ):
        check_main_guard("create_app")
        self.number = number
        self._seconds = seconds
        self._options = {"folder": str(folder), "fingerprint": fingerprint, "max_pixels": max_pixels, "memory": memory}
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: set[_Worker] = set()
        self._closed = threading.Event()
        self._wake, self._waker = Pipe(duplex=False)
        self._add(_Worker(self._options))  # reports an unusable model once
        self._keeper = threading.Thread(target=self._keep, name="workers", daemon=True)
        self._keeper.start()  # guard: replaced_worker

    @property
    def ready(self) -> bool:
        """Whether a process that has loaded the model is running."""
        return not self._closed.is_set() and any(worker.process.is_alive() for worker in tuple(self._all))

    def predict(self, content: bytes, *, maps: bool) -> ImageAnswer:
        """Predict one file, as soon as a process is idle.

        Args:
            content: The bytes of the file.
            maps: Whether to add the radiograph and its class activation map.

        Returns:
            The answer, as from `answer_file`.

        Raises:
            UnavailableError: No process could be started, or the server is shutting down.
        """
        for _ in range(self.number + 1):  # all of them may have ended at once
            worker = self._take()
            try:
                answer = worker.predict(content, maps=maps, seconds=self._seconds)
            except _EndedBeforeReading:  # guard: ended_idle
                worker.end()
            except _WorkerLost as error:  # guard: lost_worker
                worker.end()
                return answer_without_prediction("failed", error.args[0])
            else:
                self._idle.put(worker)
                return answer
        return answer_without_prediction("failed", UNREAD)

    def close(self) -> None:
        """End all processes."""
        if not self._closed.is_set():
            self._closed.set()
            self._waker.send_bytes(b"closed")
            self._keeper.join(10)  # it may be starting a process
        for worker in tuple(self._all):
            self._all.discard(worker)
            worker.end()

    def _add(self, worker: _Worker) -> None:
        if self._closed.is_set():
            worker.end()
            return
        self._all.add(worker)
        self._idle.put(worker)

    def _take(self) -> _Worker:
        deadline = time.monotonic() + IDLE_SECONDS
        while not self._closed.is_set():
            try:
                worker = self._idle.get(timeout=min(1, max(0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        "No worker process is running.", hint="Check that the machine has enough memory."
                    ) from None
                continue
            if worker.process.is_alive():
                return worker
            worker.end()  # it ended while it was idle
        raise UnavailableError("The server is shutting down.", hint="Try again after it has restarted.")

    def _keep(self) -> None:
        """Start the processes that are missing, until the server closes."""
        pause = RETRY_SECONDS
        while not self._closed.is_set():
            self._all = {worker for worker in self._all if worker.process.is_alive()}
            if len(self._all) == self.number:
                wait([self._wake, *(worker.process.sentinel for worker in self._all)])
                continue
            try:
                self._add(_Worker(self._options))
                pause = RETRY_SECONDS
            except CovidFastaiError as error:
                logger.error("A worker process could not be started: %s %s", error, error.hint)
                self._closed.wait(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)


class _WorkerLost(Exception):
    """A worker process gave no valid answer; the argument is the reason, a sentence for the client."""


class _EndedBeforeReading(_WorkerLost):
    """A worker process ended before it had read the file, which is not the cause."""


class _Worker:
    """A worker process and the connection to it."""

    def __init__(self, options: dict[str, Any]):
        context = get_context("spawn")  # a fork would copy the locks that the threads of the server hold
        self._connection, worker_end = context.Pipe()
        self.process = context.Process(target=run_worker, args=(worker_end,), kwargs=options, daemon=True)
        self.process.start()
        worker_end.close()
        try:
            message = self._within(START_SECONDS, self._receive)
        except _WorkerLost as error:
            self.end()
            raise UnavailableError(
                "A worker process ended before it had loaded the model.",
                hint=f"{MAIN_GUARD} If it is there already, check that the machine has enough memory, and read the "
                "messages above.",
            ) from error
        if "error" in message:
            self.end()
            raise ModelFormatError(message["error"], hint=message["hint"])

    def predict(self, content: bytes, *, maps: bool, seconds: float) -> ImageAnswer:
        def exchange() -> ImageAnswer:
            try:
                self._connection.send_bytes(json.dumps({"maps": maps}).encode())
            except OSError as error:
                raise _EndedBeforeReading(UNREAD) from error
            self._connection.send_bytes(content)
            # validated here too, since a malicious file could have taken over the process that sends the answer
            return ANSWER.validate_json(self._connection.recv_bytes(MAX_ANSWER_BYTES))

        return self._within(seconds, exchange)

    def end(self) -> None:
        self.process.kill()
        self.process.join(10)
        self._connection.close()

    def _receive(self) -> dict[str, Any]:
        return json.loads(self._connection.recv_bytes(MAX_ANSWER_BYTES))

    def _within(self, seconds: float, exchange: Callable[[], Message]) -> Message:
        """Exchange messages with the process, and kill it after a timeout, which closes both ends of the pipe."""
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            return exchange()
        except (EOFError, OSError, ValueError) as error:
            if timed_out.is_set():
                reason = f"The prediction took longer than {seconds:g} seconds."
            elif isinstance(error, ValueError):
                reason = "The worker process gave an invalid answer."
            elif isinstance(error, ConnectionError):  # it left bytes unread; after the last one, this is an EOFError
                raise _EndedBeforeReading(UNREAD) from error
            else:
                self.process.join(1)
                reason = "The worker process ended; the image was probably too large."
            logger.warning("A worker was lost (%s, exit status %s).", type(error).__name__, self.process.exitcode)
            raise _WorkerLost(reason) from error
        finally:
            timer.cancel()
