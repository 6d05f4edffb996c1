"""What a request may hold and take, for the server that checks it and for the document that describes the interface."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits", "MAX_FIELD_BYTES", "MAX_OTHER_FIELDS"]

MAX_OTHER_FIELDS = 8  # of a form, beside the files: they are ignored
MAX_FIELD_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of the server, and all of them together.

    Attributes:
        file_bytes: Of one file.
        request_bytes: Of one request.
        files: In one request.
        pixels: Of one picture.
        seconds: That one picture may take.
        receive_seconds: That the sending of one request may take.
        queue: Requests that are received or wait, beyond those that are being answered.
        per_minute: Requests of one address, on the average of some minutes; 0 for no limit.
        memory: Bytes that one picture may take while it is read.
    """

    file_bytes: int = 20 << 20
    request_bytes: int = 32 << 20
    files: int = 8
    pixels: int = 25_000_000  # the largest usual detectors give 17 to 22 million
    seconds: float = 20
    receive_seconds: float = 30
    queue: int = 16
    per_minute: int = 600
    memory: int = 2 << 30  # 25 million pixels of 16 bits, scaled in 64-bit floats, take 1.2 GiB
