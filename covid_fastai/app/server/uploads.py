"""Uploaded files, read into memory within limits; nothing of them is ever written to a disk."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from covid_fastai.app.server.limits import MAX_FIELD_BYTES, MAX_OTHER_FIELDS, Limits

__all__ = ["RateLimiter", "RequestRejected", "Upload", "clean_name", "read_uploads"]

LONGEST_NAME = 200  # characters of a file's name that are shown
REMEMBERED = 4096  # client addresses; the longest unseen one is forgotten


class RequestRejected(Exception):
    """A request that is not answered.

    Args:
        status: Of HTTP.
        reason: For the visitor, a sentence.
        retry_after: Seconds after which it may be tried again; 0 where that does not help.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int = 0):
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


@dataclass(frozen=True)
class Upload:
    """One file: its name, of which only the last part is kept, and its bytes."""

    name: str
    content: bytes


class RateLimiter:
    """Let in so many requests and no more: of one address in time, of one address at once, of all at once.

    Args:
        limits: What is allowed.
        workers: Requests that are answered at once.
        clock: Seconds that only grow.
    """

    def __init__(self, limits: Limits, *, workers: int, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self._places = limits.queue + workers
        self._each = max(8, self._places // 2)  # so that one slow address does not keep all the others out
        self._inside: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was so

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Hold a place for one request; used from one event loop.

        Args:
            client: The address that it comes from.

        Raises:
            RequestRejected: 429 where the address asks too often, 503 where all places are taken.
        """
        if self._inside[client] >= self._each:
            raise RequestRejected(429, f"{self._each} requests of yours are waiting already.", retry_after=2)
        if self._inside.total() >= self._places:  # guard: places
            raise RequestRejected(503, "All places are taken.", retry_after=2)
        self._take_token(client)
        self._inside[client] += 1
        try:
            yield
        finally:
            self._inside[client] -= 1
            if not self._inside[client]:
                del self._inside[client]

    def _take_token(self, client: str) -> None:
        if not self._limits.per_minute:
            return
        full = max(1.0, self._limits.per_minute / 5)
        rate, now = self._limits.per_minute / 60, self._clock()
        tokens, then = self._buckets.pop(client, (full, now))
        tokens = min(full, tokens + (now - then) * rate)
        self._buckets[client] = (max(tokens - 1, 0.0) if tokens >= 1 else tokens, now)
        while len(self._buckets) > REMEMBERED:
            del self._buckets[next(iter(self._buckets))]
        if tokens < 1:  # guard: tokens
            raise RequestRejected(429, "Too many requests in a short time.", retry_after=1 + int((1 - tokens) / rate))


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the files of a multipart form.

    Args:
        request: Not yet read.
        limits: What is allowed.

    Returns:
        The files of the field `files`, in their order; none where a form was sent without one.

    Raises:
        RequestRejected: 400 where it is no such form, 408 where it comes too slowly, 411 and 413 where it is too large.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):  # guard: form
        raise RequestRejected(415, "Send the images as multipart/form-data, in the field files.")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise RequestRejected(400, "The length of the request is no number.")
    if int(length) > limits.request_bytes:
        raise _too_large(limits)
    parser = _InMemory(request.headers, _counted(request, limits), limits)
    try:
        async with asyncio.timeout(limits.receive_seconds):
            form = await parser.parse()
    except TimeoutError:
        raise RequestRejected(408, f"It did not arrive within {limits.receive_seconds:g} seconds.") from None
    except ClientDisconnect:
        raise RequestRejected(400, "The request broke off.") from None
    except MultiPartException as error:
        raise RequestRejected(413 if "Too many" in error.message else 400, error.message) from None
    except FormParserError as error:  # which older versions of Starlette pass on as it is
        raise RequestRejected(400, f"It is no form: {error}") from None
    files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
    uploads = [Upload(clean_name(file.filename or ""), file.file.read()) for file in files]
    await form.close()
    return [upload for upload in uploads if upload.content or upload.name]  # a form without a choice sends an empty one


def clean_name(name: str) -> str:
    """Return the last part of a file's name, printable; it is shown to whoever sent it, and used for nothing."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]  # guard: last_name
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in last)[:LONGEST_NAME]


class _InMemory(MultiPartParser):
    """Starlette's parser, which keeps in memory what it would else spool to a temporary file."""

    def __init__(self, headers, stream, limits: Limits):
        # guard: many_files
        super().__init__(
            headers, stream, max_files=limits.files, max_fields=MAX_OTHER_FIELDS, max_part_size=MAX_FIELD_BYTES
        )
        self.spool_max_size = limits.request_bytes + 1  # guard: in_memory
        self._file_bytes = limits.file_bytes

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        file = self._current_part.file
        if file is not None:
            self._part_bytes += end - start
            if self._part_bytes > self._file_bytes:  # guard: file_bytes
                raise RequestRejected(413, f"A file may have {self._file_bytes >> 20} MiB.")
        super().on_part_data(data, start, end)

    def on_part_begin(self) -> None:
        self._part_bytes = 0
        super().on_part_begin()


async def _counted(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Pass on what arrives, until it is too much: a request in chunks does not say its length."""
    arrived = 0
    async for chunk in request.stream():
        arrived += len(chunk)
        if arrived > limits.request_bytes:  # guard: request_bytes
            raise _too_large(limits)
        yield chunk


def _too_large(limits: Limits) -> RequestRejected:
    return RequestRejected(413, f"A request may have {limits.request_bytes >> 20} MiB.")
