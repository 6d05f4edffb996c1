"""The limits of requests: `uploads` enforces them, `app/cli/serve` has an option each, `schemas` describes them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits", "MAX_FIELD_BYTES", "MAX_OTHER_FIELDS"]

MAX_OTHER_FIELDS = 8  # fields of a form besides the files; they are ignored
MAX_FIELD_BYTES = 4096  # bytes of such a field


@dataclass(frozen=True)
class Limits:
    """Limits of one request, of the requests from one client address, and of all requests.

    Attributes:
        file_bytes: Largest size of a file, bytes.
        request_bytes: Largest size of a request, bytes.
        files: Largest number of files in a request.
        pixels: Largest number of pixels of an image.
        seconds: Longest time to predict an image.
        receive_seconds: Longest time to receive a request.
        queue: Largest number of requests that are being received or waiting, in addition to those being answered.
        per_minute: Requests per minute from one client address, averaged over some minutes; 0 for no limit.
        memory: Bytes that a worker process may allocate to predict an image.
    """

    file_bytes: int = 20 << 20
    request_bytes: int = 32 << 20
    files: int = 8
    pixels: int = 25_000_000  # the detectors with the most pixels have 17 to 22 million
    seconds: float = 20
    receive_seconds: float = 30
    queue: int = 16
    per_minute: int = 600
    memory: int = 2 << 30  # 25 million pixels of 16 bits, scaled as 64-bit floats, need 1.2 GiB
