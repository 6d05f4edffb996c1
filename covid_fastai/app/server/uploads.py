"""Read uploaded files into memory within limits, and limit the number of requests. Nothing is written to the disk."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message

from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from covid_fastai.app.server.limits import MAX_FIELD_BYTES, MAX_OTHER_FIELDS, Limits, drop_oldest

__all__ = ["RateLimiter", "RequestRejected", "Upload", "clean_name", "read_uploads"]

MAX_NAME_LENGTH = 200  # characters of a file name that are shown
MAX_LENGTH_DIGITS = 18  # of Content-Length; Python refuses to convert thousands of them
CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\./:=? -]{0,69}[0-9A-Za-z'()+_,\./:=?-]")  # RFC 2046, 5.1.1


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

    A request has a place among those that are being received, and another one from when its body has arrived until it
    is answered. So requests that arrive slowly do not keep others from being answered. Not thread-safe: for one event
    loop.

    Args:
        limits: The limits of the server.
        workers: The number of requests that are answered at the same time.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, limits: Limits, *, workers: int, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self._received, self._waiting = _Places(limits.receiving), _Places(limits.queue + workers)
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and the time of that count, by client address

    @contextmanager
    def receive(self, client: str) -> Iterator[None]:
        """Count one request as being received while the context is open.

        Args:
            client: The address of the client.

        Raises:
            RequestRejected: With the status 429 for too many requests of the address, 503 for too many in total, also
                if none could wait for its answer now.
        """
        self._waiting.check(client)  # before a body is received in vain
        self._received.check(client)
        self._take_token(client)
        with self._received.take(client):
            yield

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count one received request as waiting or being answered while the context is open.

        Args:
            client: The address of the client.

        Raises:
            RequestRejected: With the status 429 for too many requests of the address, 503 for too many in total.
        """
        self._waiting.check(client)
        with self._waiting.take(client):
            yield

    def _take_token(self, client: str) -> None:
        """Take a token from the bucket of an address, which fills at a constant rate (token bucket algorithm)."""
        if not self._limits.per_minute:
            return
        capacity = max(1.0, self._limits.per_minute / 5)
        rate, now = self._limits.per_minute / 60, self._clock()  # tokens per second
        tokens, updated = self._buckets.pop(client, (capacity, now))
        tokens = min(capacity, tokens + (now - updated) * rate)
        self._buckets[client] = (max(tokens - 1, 0.0) if tokens >= 1 else tokens, now)
        drop_oldest(self._buckets)
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
            415 for another content type or character set.
    """
    boundary = _boundary(request.headers.get("content-type", ""))
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise RequestRejected(400, "The header Content-Length is not a number.")
    if len(length) > MAX_LENGTH_DIGITS or int(length) > limits.request_bytes:
        raise _too_large(limits)
    headers = Headers({"content-type": f'multipart/form-data; boundary="{boundary}"'})  # nothing else of the client's
    try:
        async with asyncio.timeout(min(limits.start_seconds, limits.receive_seconds)) as deadline:
            form = await _InMemoryParser(headers, _limited_stream(request, limits, deadline), limits).parse()
    except TimeoutError:
        raise RequestRejected(
            408, f"The request did not arrive within {limits.receive_seconds:g} seconds, or too slowly."
        ) from None
    except ClientDisconnect:
        raise RequestRejected(400, "The client disconnected before the request was complete.") from None
    except MultiPartException as error:
        if "Too many" in error.message:
            raise RequestRejected(413, error.message) from None
        raise RequestRejected(400, f"Malformed request body: {error.message}") from None
    except (FormParserError, LookupError, ValueError) as error:  # older versions of Starlette do not convert the first
        raise RequestRejected(400, f"Malformed request body: {type(error).__name__}.") from None
    files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
    uploads = [Upload(clean_name(file.filename or ""), file.file.read()) for file in files]
    await form.close()
    return [upload for upload in uploads if upload.content or upload.name]  # a form without a file sends an empty one


def _boundary(content_type: str) -> str:
    """Return the boundary of a form, the only parameter of its content type that is used (RFC 7578).

    Starlette would decode names with the client's charset, and not every codec of Python is one of text.
    """
    message = Message()
    try:
        message["Content-Type"] = content_type
        parameters = dict(message.get_params(failobj=[]))
        charset, boundary = str(parameters.get("charset", "utf-8")), parameters.get("boundary")
    except Exception:  # noqa: BLE001 - a malformed header makes the email package raise several types
        raise RequestRejected(400, "Malformed request: the header Content-Type cannot be read.") from None
    if message.get_content_type() != "multipart/form-data":  # guard: form
        raise RequestRejected(
            415, "The request body is not multipart/form-data. Send the images in the field files of such a form."
        )
    if charset.lower() not in CHARSETS:  # guard: charset
        raise RequestRejected(415, "Another charset than UTF-8 is not supported. Leave out the parameter charset.")
    if not isinstance(boundary, str) or not BOUNDARY.fullmatch(boundary):
        raise RequestRejected(400, "Malformed request body: its boundary is missing or not allowed.")
    return boundary


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


async def _limited_stream(request: Request, limits: Limits, deadline: asyncio.Timeout) -> AsyncGenerator[bytes, None]:
    """Yield the body of a request, and raise an error if it is too large; a chunked request does not state its size.

    The deadline moves on with what has arrived, as MinRate does in Apache's mod_reqtimeout.
    """
    n_bytes, begun = 0, asyncio.get_running_loop().time()
    async for chunk in request.stream():
        n_bytes += len(chunk)
        if n_bytes > limits.request_bytes:  # guard: request_bytes
            raise _too_large(limits)
        seconds = min(limits.start_seconds + n_bytes / limits.receive_rate, limits.receive_seconds)
        deadline.reschedule(begun + seconds)  # guard: slow_body
        yield chunk


class _Places:
    """A number of places, and how many of them each client has."""

    def __init__(self, number: int):
        self._number = number
        self._per_client = max(8, number // 2)  # so that one client cannot take all of them
        self._taken: Counter[str] = Counter()

    def check(self, client: str) -> None:
        """Raise a RequestRejected if there is no place for a client."""
        if self._taken[client] >= self._per_client:
            raise RequestRejected(
                429, f"{self._per_client} requests from this address are already waiting.", retry_after=2
            )
        if self._taken.total() >= self._number:  # guard: places
            raise RequestRejected(503, "The queue is full.", retry_after=2)

    @contextmanager
    def take(self, client: str) -> Iterator[None]:
        """Take a place while the context is open."""
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]


def _too_large(limits: Limits) -> RequestRejected:
    return RequestRejected(413, f"The request has more than {limits.request_bytes >> 20} MiB.")
