"""What every request passes on its way in and every answer on its way out: hosts, origins, headers, errors."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import traceback
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from covid_fastai.app.server.schemas import ErrorResponse
from covid_fastai.errors import UsageError

__all__ = ["HEADERS", "LOCAL_HOSTS", "SecurityMiddleware", "check_hosts"]

logger = logging.getLogger("covid_fastai")

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
HEADERS = {  # guard: csp, nosniff
    # nothing is loaded from another host, nothing inline is run; the pictures of an answer are data: URLs
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send a form of our own page with Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",  # no answer about a picture stays in a cache
}
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def check_hosts(host: str, allow_host: Iterable[str]) -> None:
    """Make sure that a server which listens for other machines knows the names that they call it by.

    Any other name in a request is refused, so that no page elsewhere can ask through a name of its own (DNS rebinding).

    Args:
        host: The address that it listens at.
        allow_host: The names, without port.

    Raises:
        UsageError: There is none.
    """
    if not list(allow_host) and not _is_local(host):  # guard: named_host
        raise UsageError(
            f"host={host!r} lets other machines ask, and no name is allowed that they would call this one by.",
            hint="Name it with allow_host (--allow-host), or stay with 127.0.0.1.",
        )


class SecurityMiddleware:
    """Wrap an ASGI application: refuse what comes from elsewhere, add the security headers, hide errors.

    Args:
        app: The application.
        allow_host: What the Host header may say, without port, beside the names of this machine for itself.
    """

    def __init__(self, app: ASGIApp, allow_host: Iterable[str] = ()):
        self.app, self._hosts = app, frozenset([*LOCAL_HOSTS, *(_bare(name) for name in allow_host)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refuse(scope)
        if refused is not None:
            await refused(scope, receive, send_guarded)
            return
        try:
            await self.app(scope, receive, send_guarded)
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor sees a number and no more
            number = secrets.token_hex(4)
            place = traceback.extract_tb(error.__traceback__)[-1]
            # neither the message nor the values: they may hold what was uploaded
            logger.error("Error %s: %s at %s:%s.", number, type(error).__name__, place.filename, place.lineno)
            if not begun:
                # guard: hidden_error
                text = f"Something went wrong here. Tell the keeper of this server the number {number}."
                await _error(500, text)(scope, receive, send_guarded)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        given = headers.getlist("host")
        if len(given) != 1 or _hostname(given[0]) not in self._hosts:  # guard: host
            return _error(400, "This server does not answer to that name.")
        if scope["method"] in SAFE_METHODS:
            return None
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        # guard: origin
        if site not in {"same-origin", "none"} or (origin is not None and _netloc(origin) != given[0].lower()):
            return _error(403, "A page of another site may not ask here.")
        return None


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse(ErrorResponse(error=text).model_dump(mode="json"), status_code=status)


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _bare(name: str) -> str:
    return name.strip("[]").lower()


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # brackets that do not close
        return None


def _netloc(origin: str) -> str | None:
    """Return host and port of an origin, as a Host header says them; None for "null", which is nobody's page."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
