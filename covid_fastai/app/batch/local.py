"""The parts of a batch by processes of one machine; one that dies takes nothing with it but the file that killed it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from covid_fastai.app.inputs import openable
from covid_fastai.model.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["predict_paths", "run_on_workers"]

KILLED = "The process that read it was killed: by the system for want of memory, or by the file itself."

Job = tuple[int, list[str]]

_predictor: Predictor | None = None  # of a worker process, made once


def run_on_workers(folder: Path, jobs: Iterator[Job], *, workers: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """Predict parts in processes, and yield their tables in the order of the parts.

    A few parts a process are under way at a time. Where a process dies, those under way are done again, one at a time;
    a part on which one dies again is done image by image, and the image on which one dies is a row of its own: failed.

    Args:
        folder: The saved model.
        jobs: Number and paths of each part.
        workers: Processes.

    Yields:
        Number and table of each part.
    """
    Predictor(folder, threads=1)  # a model that cannot be used is said here, once, rather than by each process
    first = next(jobs, None)
    if first is None:
        return
    todo: deque[Job] = deque([first])
    pool = _Pool(folder, workers)
    try:
        under_way: deque[tuple[Job, Future]] = deque()
        while True:
            while len(under_way) < 2 * workers and (job := todo.popleft() if todo else next(jobs, None)) is not None:
                under_way.append((job, pool.submit(job[1])))
            if not under_way:
                return
            job, future = under_way.popleft()
            try:
                table = future.result()
            except BrokenProcessPool:  # guard: killed_file
                again = [job, *(one for one, _ in under_way)]
                under_way.clear()
                pool.restart()
                for number, paths in again:
                    yield number, _alone(pool, paths)
            else:
                yield job[0], table
    finally:
        pool.close()


def predict_paths(predictor: Predictor, paths: list[str]) -> pd.DataFrame:
    """Return the table of some paths and addresses."""
    return predictor.predict([openable(path) for path in paths], names=[_name(path) for path in paths])


def _name(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()  # a table is written as UTF-8


class _Pool:
    """Worker processes, started anew after one has died."""

    def __init__(self, folder: Path, workers: int):
        self.folder, self.workers = folder, workers
        self._start()

    def _start(self) -> None:
        # spawned: a fork would copy the locks of threads that do not exist in the copy
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_begin, initargs=(str(self.folder),)
        )

    def submit(self, paths: list[str]) -> Future:
        try:
            return self._pool.submit(_work, paths)
        except BrokenProcessPool as error:  # it broke since: told with the future, as if it had broken on this part
            future: Future = Future()
            future.set_exception(error)
            return future

    def restart(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._start()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _alone(pool: _Pool, paths: list[str]) -> pd.DataFrame:
    """Predict a part while nothing else runs; image by image where that kills a process once more."""
    import pandas as pd

    try:
        return pool.submit(paths).result()
    except BrokenProcessPool:
        pool.restart()
    if len(paths) == 1:
        return (
            Predictor(pool.folder, threads=1)
            .predict(b"", names=[_name(paths[0])])
            .assign(status="failed", reason=KILLED)
        )
    return pd.concat([_alone(pool, [path]) for path in paths], ignore_index=True)


# in the worker processes


def _begin(folder: str) -> None:
    global _predictor
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _predictor = Predictor(folder, threads=1)


def _end_with_parent() -> None:
    """End this process when its parent is gone, however that ended: otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process is spawned
    parent.join()
    os._exit(1)


def _work(paths: list[str]) -> pd.DataFrame:
    assert _predictor is not None  # `_begin` has made it
    return predict_paths(_predictor, paths)
