"""Worker processes that read untrusted files within limits of time and memory. A process that dies is replaced."""

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
from covid_fastai.app.server.worker_process import answer_without_prediction, run_worker
from covid_fastai.errors import ModelFormatError, UnavailableError
from covid_fastai.main_guard import MAIN_GUARD, check_main_guard

__all__ = ["Workers"]

logger = logging.getLogger("covid_fastai")

START_SECONDS = 120  # to load the model, which takes 1 to 2 seconds and ten times as long on a busy machine
MAX_ANSWER_BYTES = 16 << 20  # two images of 640 pixels have about 1 MiB
Message = TypeVar("Message")
ANSWER: TypeAdapter[ImageAnswer] = TypeAdapter(ImageAnswerWithMaps | ImageAnswer)


class Workers:
    """Predict files in worker processes, each of which handles one file at a time.

    This class is thread-safe. If a process takes too long for a file or dies, the answer has the status `failed`, and
    the process is replaced before the next file. The other processes are not affected.

    Args:
        folder: The folder of the saved model.
        number: The number of processes.
        seconds: The longest time for one file.
        memory: Bytes that a process may allocate in addition to the loaded model.
        max_pixels: The largest number of pixels of an image.

    Raises:
        ModelFormatError: The model is missing, damaged or not allowed.
        UnavailableError: No process can be started.
        UsageError: A script called this without the guard `if __name__ == "__main__":`.
    """

    def __init__(self, folder: str | Path, *, number: int, seconds: float, memory: int, max_pixels: int):
        check_main_guard("create_app")
        self.number = number
        self._seconds = seconds
        self._options = {"folder": str(folder), "max_pixels": max_pixels, "memory": memory}
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._all: set[_Worker] = set()
        self._closed = False
        first = self._start()  # reports an unusable model once
        self._idle.put(first)
        for _ in range(number - 1):
            self._idle.put(None)  # a process that starts when it is first needed

    @property
    def ready(self) -> bool:
        """Whether a process that has loaded the model is running."""
        return not self._closed and any(worker.process.is_alive() for worker in tuple(self._all))

    def predict(self, content: bytes, *, maps: bool) -> ImageAnswer:
        """Predict one file, as soon as a process is idle.

        Args:
            content: The bytes of the file.
            maps: Whether to add the radiograph and its class activation map.

        Returns:
            The answer, as from `answer_file`.
        """
        worker = self._idle.get()
        try:
            if worker is None or not worker.process.is_alive():
                self._drop(worker)
                worker = None
                worker = self._start()
            return worker.predict(content, maps=maps, seconds=self._seconds)
        except _WorkerLost as error:  # guard: lost_worker
            self._drop(worker)
            worker = None
            return answer_without_prediction("failed", error.args[0])
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all processes."""
        self._closed = True
        for worker in tuple(self._all):
            self._drop(worker)

    def _start(self) -> _Worker:
        if self._closed:
            raise UnavailableError("The server is shutting down.", hint="Try again after it has restarted.")
        worker = _Worker(self._options)
        self._all.add(worker)
        return worker

    def _drop(self, worker: _Worker | None) -> None:
        if worker is not None:
            self._all.discard(worker)
            worker.end()


class _WorkerLost(Exception):
    """A worker process gave no valid answer; the argument is the reason, a sentence for the client."""


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
            self._connection.send_bytes(json.dumps({"maps": maps}).encode())
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
            else:
                self.process.join(1)
                reason = "The worker process ended; the image was probably too large."
            logger.warning("A worker was lost (%s, exit status %s).", type(error).__name__, self.process.exitcode)
            raise _WorkerLost(reason) from error
        finally:
            timer.cancel()
