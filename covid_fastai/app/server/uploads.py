"""Read uploaded files into memory within limits, and limit the number of requests. Nothing is written to the disk."""

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

MAX_NAME_LENGTH = 200  # characters of a file name that are shown
MAX_ADDRESSES = 4096  # client addresses with a token bucket; the least recent one is dropped


class RequestRejected(Exception):
    """A request is rejected.

    Args:
        status: The HTTP status.
        reason: The reason, one sentence for the client.
        retry_after: Seconds after which the client may retry; 0 if a retry does not help.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int = 0):
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


@dataclass(frozen=True)
class Upload:
    """An uploaded file: the last component of its name, and its bytes."""

    name: str
    content: bytes


class RateLimiter:
    """Limit the concurrent requests, those of one address, and the requests of one address per minute.

    Args:
        limits: The limits of the server.
        workers: The number of requests that are answered at the same time.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, limits: Limits, *, workers: int, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self._max_active = limits.queue + workers
        self._max_per_client = max(8, self._max_active // 2)  # so that one slow client cannot block all others
        self._active: Counter[str] = Counter()  # requests by client address
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and the time of that count, by client address

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count one request as active while the context is open. Not thread-safe: call it from one event loop.

        Args:
            client: The address of the client.

        Raises:
            RequestRejected: With the status 429 for too many requests of the address, 503 for too many in total.
        """
        if self._active[client] >= self._max_per_client:
            raise RequestRejected(
                429, f"{self._max_per_client} requests from this address are already waiting.", retry_after=2
            )
        if self._active.total() >= self._max_active:  # guard: places
            raise RequestRejected(503, "The queue is full.", retry_after=2)
        self._take_token(client)
        self._active[client] += 1
        try:
            yield
        finally:
            self._active[client] -= 1
            if not self._active[client]:
                del self._active[client]

    def _take_token(self, client: str) -> None:
        """Take a token from the bucket of an address, which fills at a constant rate (token bucket algorithm)."""
        if not self._limits.per_minute:
            return
        capacity = max(1.0, self._limits.per_minute / 5)
        rate, now = self._limits.per_minute / 60, self._clock()  # tokens per second
        tokens, updated = self._buckets.pop(client, (capacity, now))
        tokens = min(capacity, tokens + (now - updated) * rate)
        self._buckets[client] = (max(tokens - 1, 0.0) if tokens >= 1 else tokens, now)
        while len(self._buckets) > MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        if tokens < 1:  # guard: tokens
            seconds = 1 + int((1 - tokens) / rate)  # until the bucket has a whole token
            raise RequestRejected(429, "Too many requests from this address in a short time.", retry_after=seconds)


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the files of a multipart form.

    Args:
        request: A request whose body is not read yet.
        limits: The limits of the server.

    Returns:
        The files in the field `files`, in their order; an empty list if the form has none.

    Raises:
        RequestRejected: With the status 400 for a malformed body, 408 for a slow one, 413 for one that is too large and
            415 for another content type.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):  # guard: form
        raise RequestRejected(
            415, "The request body is not multipart/form-data. Send the images in the field files of such a form."
        )
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise RequestRejected(400, "The header Content-Length is not a number.")
    if int(length) > limits.request_bytes:
        raise _too_large(limits)
    parser = _InMemoryParser(request.headers, _limited_stream(request, limits), limits)
    try:
        async with asyncio.timeout(limits.receive_seconds):
            form = await parser.parse()
    except TimeoutError:
        raise RequestRejected(408, f"The request did not arrive within {limits.receive_seconds:g} seconds.") from None
    except ClientDisconnect:
        raise RequestRejected(400, "The client disconnected before the request was complete.") from None
    except MultiPartException as error:
        if "Too many" in error.message:
            raise RequestRejected(413, error.message) from None
        raise RequestRejected(400, f"Malformed request body: {error.message}") from None
    except FormParserError as error:  # older versions of Starlette do not convert it
        raise RequestRejected(400, f"Malformed request body: {error}") from None
    files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
    uploads = [Upload(clean_name(file.filename or ""), file.file.read()) for file in files]
    await form.close()
    return [upload for upload in uploads if upload.content or upload.name]  # a form without a file sends an empty one


def clean_name(name: str) -> str:
    """Return the last component of a file name without unprintable characters. It is only shown to its sender."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]  # guard: last_name
    printable = (character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in last)
    return "".join(printable)[:MAX_NAME_LENGTH]


class _InMemoryParser(MultiPartParser):
    """The parser of Starlette, without its temporary files for large uploads and with a limit of the file size."""

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
                raise RequestRejected(413, f"A file has more than {self._file_bytes >> 20} MiB.")
        super().on_part_data(data, start, end)

    def on_part_begin(self) -> None:
        self._part_bytes = 0
        super().on_part_begin()


async def _limited_stream(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the body of a request, and raise an error if it is too large; a chunked request does not state its size."""
    n_bytes = 0
    async for chunk in request.stream():
        n_bytes += len(chunk)
        if n_bytes > limits.request_bytes:  # guard: request_bytes
            raise _too_large(limits)
        yield chunk


def _too_large(limits: Limits) -> RequestRejected:
    return RequestRejected(413, f"The request has more than {limits.request_bytes >> 20} MiB.")
