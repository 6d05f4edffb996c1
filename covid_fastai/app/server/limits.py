"""The limits of the server. `protocol`, `uploads` and `turns` enforce them, `schemas` and docs/serve.md state them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

__all__ = ["Limits", "MAX_FIELD_BYTES", "MAX_OTHER_FIELDS", "client_of", "drop_oldest"]

MAX_OTHER_FIELDS = 8  # fields of a form besides the files; they are ignored
MAX_FIELD_BYTES = 4096  # bytes of such a field
MAX_ADDRESSES = 4096  # client addresses that something is known of; the least recent one is dropped


@dataclass(frozen=True)
class Limits:
    """Limits of one request, of the requests from one client address, and of all requests.

    Every stage of a request ends after a time, so that no client can hold a connection or a worker process for long.

    Attributes:
        file_bytes: Largest size of a file, bytes.
        request_bytes: Largest size of a request, bytes.
        files: Largest number of files in a request.
        pixels: Largest number of pixels of an image.
        head_seconds: Longest time to receive the head of a request, from its first byte or from the connection's start.
        receive_seconds: Longest time to receive the body of a request.
        start_seconds: Time within which a body may come slower than `receive_rate`.
        receive_rate: Bytes per second that a body must have on average after `start_seconds`.
        queue_seconds: Longest time that a file waits for a worker process.
        seconds: Longest time to predict an image.
        send_seconds: Longest time until a client has taken an answer.
        keep_alive_seconds: Longest time between two requests on a connection.
        linger_seconds: Longest time that a connection is kept for the rest of a body whose request has been answered.
        connections: Largest number of connections; a further one replaces the one that has waited longest without a
            request, of the address that has most.
        receiving: Largest number of requests whose bodies are being received.
        queue: Largest number of requests that wait for a worker process, in addition to those being answered.
        per_minute: Requests per minute from one client address, averaged over some minutes; 0 for no limit.
        memory: Bytes that a worker process may allocate to predict an image.
    """

    file_bytes: int = 20 << 20
    request_bytes: int = 32 << 20
    files: int = 8
    pixels: int = 25_000_000  # the detectors with the most pixels have 17 to 22 million
    head_seconds: float = 10  # a head has about one kilobyte
    receive_seconds: float = 30
    start_seconds: float = 5
    receive_rate: int = 10 << 10  # 300 KiB in `receive_seconds`
    queue_seconds: float = 30
    seconds: float = 20
    send_seconds: float = 30  # an answer with a map has about 1 MiB
    keep_alive_seconds: int = 5
    linger_seconds: float = 5  # nginx's lingering_timeout
    connections: int = 256
    receiving: int = 32
    queue: int = 32
    per_minute: int = 600
    memory: int = 2 << 30  # 25 million pixels of 16 bits, scaled as 64-bit floats, need 1.2 GiB


def client_of(address: str) -> str:
    """Return the client that an address belongs to: its /64 network for IPv6, since one machine has all of it.

    Args:
        address: The address of a connection.

    Returns:
        The name under which the requests and connections of the client are counted.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket or a test
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:  # of a socket that listens for both
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))  # guard: ipv6_network


def drop_oldest(of_addresses: dict[str, Any]) -> None:
    """Remove what was first added to a dictionary by client address, until it has `MAX_ADDRESSES` entries."""
    while len(of_addresses) > MAX_ADDRESSES:
        del of_addresses[next(iter(of_addresses))]
