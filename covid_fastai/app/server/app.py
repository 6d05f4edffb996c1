"""The web application: a page and a JSON API for a saved model, without torch. It stores nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from covid_fastai.app.server.examples import EXAMPLES
from covid_fastai.app.server.limits import Limits, client_of
from covid_fastai.app.server.middleware import SecurityMiddleware, check_host_names
from covid_fastai.app.server.model_facts import read_facts
from covid_fastai.app.server.page import render_answers, render_page
from covid_fastai.app.server.schemas import (
    ErrorResponse,
    HealthResponse,
    ImageAnswer,
    PredictResponse,
    ReadinessResponse,
    describe_api,
)
from covid_fastai.app.server.turns import Turns
from covid_fastai.app.server.uploads import RateLimiter, RequestRejected, Upload, read_uploads
from covid_fastai.app.server.workers import Workers
from covid_fastai.errors import UnavailableError
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import WorkerCount, checked

__all__ = ["create_app"]

Result = TypeVar("Result")
STATIC = Path(__file__).with_name("static")
ASSETS = {"app.css": "text/css", "icon.svg": "image/svg+xml"}
ASSETS |= {name: "text/javascript" for name in ("app.js", "save.js", "table.js", "viewer.js")}
ASSETS |= {example.file: "image/jpeg" for example in EXAMPLES}


@checked
def create_app(
    model: str | Path,
    *,
    name: str | None = None,
    allow_host: Iterable[str] = (),
    workers: WorkerCount = 1,
    limits: Limits | None = None,
) -> Starlette:
    """Create the web application of a saved model, for uvicorn or another ASGI server.

    It uses Starlette without a framework on top. A framework that parses forms before it calls an endpoint would write
    uploads to the disk, and would read them before the limits are checked.

    Args:
        model: The folder of a saved model.
        name: The name of the model on the page; None for the name of its folder or its task.
        allow_host: Host names, in addition to `localhost` and the loopback addresses, that a request may be sent to.
        workers: The number of processes that predict images.
        limits: The limits of requests; None for the defaults.

    Returns:
        The application. Its lifespan ends the processes.

    Raises:
        ModelFormatError: The model is missing, damaged or not allowed.
        UsageError: `workers` or a name in `allow_host` is not allowed.
    """
    limits, allow_host = Limits() if limits is None else limits, tuple(allow_host)
    check_host_names(allow_host)
    site = _Site(model, name=name, workers=workers, limits=limits)
    routes = [
        Route("/", site.page, methods=["GET"]),
        Route("/", site.answer_form, methods=["POST"]),
        Route("/answer", site.answer_one, methods=["POST"]),
        Route("/api/predict", site.answer_json, methods=["POST"]),
        Route("/api/model", site.model, methods=["GET"]),
        Route("/openapi.json", site.openapi, methods=["GET"]),
        Route("/healthz", site.health, methods=["GET"]),
        Route("/readyz", site.readiness, methods=["GET"]),
        *(Route(f"/{name}", _asset(name), methods=["GET"]) for name in ASSETS),
    ]
    handlers = {RequestRejected: _answer_rejected, HTTPException: _answer_http_error}
    middleware = [Middleware(SecurityMiddleware, allow_host=allow_host)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=site.lifespan)


class _Site:
    """The endpoints, and the state that they share: model facts, worker processes, rate limiter."""

    def __init__(self, model: str | Path, *, name: str | None, workers: int, limits: Limits):
        self.facts, self.limits = read_facts(model, name=name), limits
        self.workers = Workers(
            model,
            fingerprint=self.facts.fingerprint,
            number=workers,
            seconds=limits.seconds,
            memory=limits.memory,
            max_pixels=limits.pixels,
        )
        self.rate_limiter = RateLimiter(limits, workers=workers)
        self.turns = Turns(workers, seconds=limits.queue_seconds)
        self._description = describe_api(self.facts, limits)
        self._page = render_page(self.facts, limits)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.turns.close()
            self.workers.close()

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def answer_form(self, request: Request) -> Response:
        """Answer the form of a browser without scripts, with the whole page."""
        try:
            answers = await self._answer(request, maps=True)
        except RequestRejected as rejection:
            page = render_page(self.facts, self.limits, error=rejection.reason)
            return HTMLResponse(page, status_code=rejection.status, headers=_retry_headers(rejection))
        return HTMLResponse(render_page(self.facts, self.limits, answers=answers), status_code=_status(answers))

    async def answer_one(self, request: Request) -> Response:
        """Answer the script's request for one file, with a fragment of the page."""
        answers = await self._answer(request, maps=True)
        return HTMLResponse(render_answers(answers, self.facts), status_code=_status(answers))

    async def answer_json(self, request: Request) -> Response:
        maps = request.query_params.get("maps", "false").lower()
        if maps not in {"true", "false", "1", "0"}:
            raise RequestRejected(400, "The query parameter maps is neither true nor false.")
        answers = await self._answer(request, maps=maps in {"true", "1"})
        response = PredictResponse(research_use=RESEARCH_USE, model=self.facts, images=answers)
        return JSONResponse(response.model_dump(mode="json"), status_code=_status(answers))

    async def model(self, request: Request) -> Response:
        return JSONResponse(self.facts.model_dump(mode="json"))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._description)

    async def health(self, request: Request) -> Response:
        return JSONResponse(HealthResponse(status="alive").model_dump(mode="json"))

    async def readiness(self, request: Request) -> Response:
        ready = self.workers.ready
        response = ReadinessResponse(status="ready" if ready else "not ready")
        return JSONResponse(response.model_dump(mode="json"), status_code=200 if ready else 503)

    async def _answer(self, request: Request, *, maps: bool) -> list[ImageAnswer]:
        client = client_of(request.client.host if request.client else "")
        with self.rate_limiter.receive(client):
            uploads = await read_uploads(request, self.limits)
        if not uploads:
            raise RequestRejected(400, "The request has no file. Choose a file first.")
        with self.rate_limiter.enter(client):
            return await _unless_gone(request, self._predict(uploads, client, maps=maps))

    async def _predict(self, uploads: list[Upload], client: str, *, maps: bool) -> list[ImageAnswer]:
        answers = []
        for upload in uploads:
            predict = partial(self.workers.predict, upload.content, maps=maps)
            try:
                answer = await self.turns.run(client, predict, cost_worker=lambda answer: answer.status == "failed")
            except UnavailableError as error:
                raise RequestRejected(503, str(error), retry_after=5) from error
            answers.append(answer.model_copy(update={"name": upload.name}))
        return answers


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await the work on a request whose body has been read, and cancel it if the client disconnects."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = working, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestRejected(400, "The client disconnected before its request was answered.")  # guard: gone_client
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _asset(name: str):
    async def send(request: Request) -> Response:
        return FileResponse(STATIC / name, media_type=ASSETS[name], headers={"Cache-Control": "no-cache"})

    return send


def _status(answers: list[ImageAnswer]) -> int:
    return 200 if any(answer.status == "ok" for answer in answers) else 422


def _retry_headers(rejection: RequestRejected) -> dict[str, str]:
    return {"Retry-After": str(rejection.retry_after)} if rejection.retry_after else {}


async def _answer_rejected(request: Request, rejection: RequestRejected) -> Response:
    response = ErrorResponse(error=rejection.reason)
    return JSONResponse(
        response.model_dump(mode="json"), status_code=rejection.status, headers=_retry_headers(rejection)
    )


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    text = {404: "Not found.", 405: "Method not allowed."}.get(error.status_code, "The request failed.")
    response = ErrorResponse(error=text)
    return JSONResponse(response.model_dump(mode="json"), status_code=error.status_code, headers=error.headers)
