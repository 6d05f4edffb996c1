"""The security middleware: it checks the host and origin of requests, adds headers to responses and hides errors."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import secrets
import traceback
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covid_fastai.app.server.schemas import ErrorResponse
from covid_fastai.errors import UsageError

__all__ = ["HEADERS", "LOCAL_HOSTS", "SecurityMiddleware", "check_host_names", "check_hosts"]

logger = logging.getLogger("covid_fastai")

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
HEADERS = {  # guard: csp, nosniff
    # no resource of another host and no inline script; the images of an answer are data: URLs
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send the form of this page with Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",  # no answer is stored in a cache
}
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")  # of a host name; internationalised ones are written as xn--


def check_hosts(host: str, allow_host: Iterable[str]) -> None:
    """Require the allowed host names of a server that listens for other machines.

    The server refuses requests with another name in the Host header, which prevents DNS rebinding: a web page cannot
    send requests to the server through a domain of its own.

    Args:
        host: The address that the server listens on.
        allow_host: The allowed host names, without port.

    Raises:
        UsageError: `host` is not a loopback address, and no host name is allowed; or an allowed host name is none.
    """
    allow_host = list(allow_host)
    check_host_names(allow_host)
    if not allow_host and not _is_local(host):  # guard: named_host
        raise UsageError(
            f"host={host!r} accepts requests from other machines, which requires the allowed host names.",
            hint="Give the names of this machine with `allow_host`, or listen on 127.0.0.1.",
        )


def check_host_names(names: Iterable[str]) -> None:
    """Refuse allowed host names that the Host header of no request can have.

    Args:
        names: The names, without scheme, port or path.

    Raises:
        UsageError: One is neither a domain name nor an IP address.
    """
    for name in names:
        if not _is_host_name(name):  # guard: host_name
            raise UsageError(
                f"{name!r} is not a host name, so that no request could be sent to it.",
                hint="Give each `allow_host` as browsers send it, such as ward.example, xn--mller-kva.example or "
                "192.168.1.2, without scheme, port, path and wildcard.",
            )


class SecurityMiddleware:
    """Refuse requests with another host or origin, add security headers to responses, and hide errors.

    Args:
        app: The ASGI application.
        allow_host: Host names without port, in addition to `LOCAL_HOSTS`, that are allowed in the Host header.
    """

    def __init__(self, app: ASGIApp, allow_host: Iterable[str] = ()):
        self.app, self._hosts = app, frozenset([*LOCAL_HOSTS, *(_normalise(name) for name in allow_host)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        response_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal response_started
            if message["type"] == "http.response.start":
                response_started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._check_source(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server stops before the request is answered
            if not response_started:
                await _error(503, "The server is shutting down.")(scope, receive, send_with_headers)
            raise
        except Exception as error:  # noqa: BLE001 - the client sees no details of any exception
            number = secrets.token_hex(4)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            # without the message and the values, which may contain uploaded data
            logger.error("Error %s: %s at %s:%s.", number, type(error).__name__, frame.filename, frame.lineno)
            if not response_started:
                # guard: hidden_error
                text = f"Internal server error. Report the number {number} to the administrator of this server."
                await _error(500, text)(scope, receive, send_with_headers)

    def _check_source(self, scope: Scope) -> JSONResponse | None:
        """Return an error response to a request that is ambiguous, for another host or from another site, else None."""
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:  # guard: two_lengths
            # two servers in a row could disagree on where the next request begins (RFC 9112, 6.3)
            error = _error(400, "The request has both Content-Length and Transfer-Encoding.")
            error.headers["Connection"] = "close"
            return error
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _hostname(hosts[0]) not in self._hosts:  # guard: host
            return _error(400, "The host name of the request is not allowed.")
        if scope["method"] in SAFE_METHODS:
            return None
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        # guard: origin
        if site not in {"same-origin", "none"} or (origin is not None and _netloc(origin) != hosts[0].lower()):
            return _error(403, "Requests from pages of other sites are not allowed.")
        return None


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse(ErrorResponse(error=text).model_dump(mode="json"), status_code=status)


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, not an address
        return False


def _is_host_name(name: str) -> bool:
    """Return whether a Host header can have a name: an IP address, or labels of a domain name (RFC 1123, 2.1)."""
    labels = name.removesuffix(".").split(".")
    if _address(name) is not None:
        return True
    # a browser takes a name whose last label is a number for an IPv4 address
    return len(name) <= 253 and all(map(LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _address(name: str) -> str | None:
    """Return an IP address in its shortest form; None for another name."""
    try:
        return str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        return None


def _normalise(name: str) -> str:
    """Return a host name in lower case without a final dot, or an address in its shortest form without brackets."""
    return _address(name) or name.lower().removesuffix(".")


def _hostname(host: str) -> str | None:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:  # unbalanced brackets
        return None
    return None if name is None else _normalise(name)


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin, in the form of a Host header; None for the opaque origin "null"."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
