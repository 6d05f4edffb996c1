"""Predict the parts of a batch in processes of this machine. A file that kills its process costs only its own row."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covid_fastai.app.inputs import openable
from covid_fastai.errors import CovidFastaiError, UnavailableError
from covid_fastai.main_guard import MAIN_GUARD
from covid_fastai.model.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["predict_paths", "run_on_workers"]

KILLED = "The process that read it was killed: by the file itself, by the system because it was out of memory, or "
KILLED += "because the image took longer than {:g} seconds."

Job = tuple[int, list[str]]

# of a worker process, set once by `_initialize_worker`: its predictor, or why it has none
_predictor: Predictor | CovidFastaiError | None = None


def run_on_workers(
    folder: Path, jobs: Iterator[Job], *, workers: int, seconds: float, fingerprint: str
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Predict parts in processes, and yield their tables in the order of the parts.

    Each process has at most two parts submitted at a time. If a process dies, the submitted parts are repeated one
    after the other. If a process dies again on one of them, that part is repeated image by image, and the image on
    which a process dies gets a row with the status `failed`.

    Args:
        folder: The folder of the saved model.
        jobs: The number and the paths of each part.
        workers: The number of processes.
        seconds: The longest time that an image may take; a process in which one takes longer ends itself.
        fingerprint: The fingerprint of the model, which each process compares with the model that it loads.

    Yields:
        The number and the table of each part.

    Raises:
        ModelFormatError: The model cannot be used, or was exchanged.
        UnavailableError: A process ended before it had read any image.
    """
    Predictor(folder, threads=1, fingerprint=fingerprint)  # reports an unusable model once, not once per process
    first = next(jobs, None)
    if first is None:
        return
    waiting: deque[Job] = deque([first])
    pool = _Pool(folder, workers, seconds, fingerprint)
    try:
        pool.check_start()
        submitted: deque[tuple[Job, Future]] = deque()
        while True:
            while (
                len(submitted) < 2 * workers and (job := waiting.popleft() if waiting else next(jobs, None)) is not None
            ):
                submitted.append((job, pool.submit(job[1])))
            if not submitted:
                return
            job, future = submitted.popleft()
            try:
                table = future.result()
            except BrokenProcessPool:  # guard: killed_file
                lost_jobs = [job, *(lost_job for lost_job, _ in submitted)]
                submitted.clear()
                pool.restart()
                for number, paths in lost_jobs:
                    yield number, _predict_alone(pool, paths)
            else:
                yield job[0], table
    finally:
        pool.close()


def predict_paths(predictor: Predictor, paths: list[str]) -> pd.DataFrame:
    """Return the table of predictions of some paths and URLs."""
    return predictor.predict([openable(path) for path in paths], names=paths)


class _Pool:
    """A pool of worker processes that can be restarted after one of them has died."""

    def __init__(self, folder: Path, workers: int, seconds: float, fingerprint: str):
        self.folder, self.workers, self.seconds, self.fingerprint = folder, workers, seconds, fingerprint
        self._start()

    def _start(self) -> None:
        # spawned, not forked: a fork would copy locks that are held by threads which do not exist in the copy
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            self.workers,
            mp_context=context,
            initializer=_initialize_worker,
            initargs=(str(self.folder), self.seconds, self.fingerprint),
        )

    def check_start(self) -> None:
        """Wait until a process is ready; one that ends before that read no image, so no image can be the cause."""
        try:
            self._pool.submit(_predictor_is_ready).result()
        except BrokenProcessPool as error:  # guard: pool_start
            raise UnavailableError(
                "The processes that read the images ended before they had read any.",
                hint=f"{MAIN_GUARD} If it is there already, memory may be short: use fewer workers.",
            ) from error

    def submit(self, paths: list[str]) -> Future:
        try:
            return self._pool.submit(_predict_in_worker, paths)
        except BrokenProcessPool as error:  # the pool broke before; the future reports it like a failure of this part
            future: Future = Future()
            future.set_exception(error)
            return future

    def restart(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._start()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _predict_alone(pool: _Pool, paths: list[str]) -> pd.DataFrame:
    """Predict a part while no other part runs; if that kills a process again, predict it image by image."""
    import pandas as pd

    try:
        return pool.submit(paths).result()
    except BrokenProcessPool:
        pool.restart()
    if len(paths) == 1:
        row = Predictor(pool.folder, threads=1, fingerprint=pool.fingerprint).predict(b"", names=paths)
        return row.assign(status="failed", reason=KILLED.format(pool.seconds))
    return pd.concat([_predict_alone(pool, [path]) for path in paths], ignore_index=True)


# The functions below run in the worker processes.


class _TimedPredictor(Predictor):
    """A predictor that ends its process when an image takes too long, even in a decoder that never returns."""

    def __init__(self, folder: str, *, seconds: float, fingerprint: str):
        super().__init__(folder, threads=1, fingerprint=fingerprint)
        self._seconds, self._nowhere = seconds, open(os.devnull, "w")

    def _read_image(self, image: Any, name: str) -> Any:
        # faulthandler ends the process itself; the file is for its traceback
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._nowhere)  # guard: time_of_image
        try:
            return super()._read_image(image, name)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _initialize_worker(folder: str, seconds: float, fingerprint: str) -> None:
    global _predictor
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        _predictor = _TimedPredictor(folder, seconds=seconds, fingerprint=fingerprint)
    except CovidFastaiError as error:  # raised by the first job: an error here would look like a killed process
        _predictor = error  # guard: worker_model


def _own_predictor() -> Predictor:
    if isinstance(_predictor, CovidFastaiError):
        raise _predictor
    assert _predictor is not None  # set by `_initialize_worker`
    return _predictor


def _predictor_is_ready() -> bool:
    return _own_predictor() is not None


def _exit_with_parent() -> None:
    """End this process when its parent ends, even if that was killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process is spawned
    parent.join()
    os._exit(1)


def _predict_in_worker(paths: list[str]) -> pd.DataFrame:
    return predict_paths(_own_predictor(), paths)
