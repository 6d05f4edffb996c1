"""The command `serve`: serve a saved model as a web page and a JSON API."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace
from typing import Annotated

import typer

from covid_fastai.app.cli.options import Debug, Model, Quiet, Revision, option
from covid_fastai.app.cli.output import echo, set_up_logging
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Count, Pixels, Port, PositiveCount, Seconds, WorkerCount

__all__ = ["serve"]

# Heavy modules (onnxruntime, starlette, uvicorn) are imported inside the command, so that help appears at once.


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 accepts requests from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, option(Port, help="The port to listen on.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A host name under which other machines reach this one; repeatable."),
    ] = None,
    revision: Revision = None,
    workers: Annotated[int, option(WorkerCount, help="Number of processes that predict images.")] = 1,
    max_mib: Annotated[int, option(PositiveCount, help="Largest size of a file, in MiB.")] = 20,
    max_files: Annotated[int, option(PositiveCount, help="Largest number of files in a request.")] = 8,
    max_pixels: Annotated[int, option(Pixels, help="Largest size of an image.")] = 25_000_000,
    seconds: Annotated[float, option(Seconds, help="Longest processing time of an image.")] = 20,
    queue: Annotated[int, option(Count, help="Largest number of waiting requests.")] = 32,
    per_minute: Annotated[
        int, option(Count, help="Requests per minute from one client address; 0 for no limit.")
    ] = 600,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a saved model as a web page and a JSON API. Uploads are read in memory and not stored."""
    set_up_logging(quiet=quiet, as_json=False)
    from covid_fastai.errors import UnavailableError

    try:
        import uvicorn

        from covid_fastai.app.server.app import create_app
        from covid_fastai.app.server.protocol import protocol_within
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"The web server needs the package {error.name}, which is not installed.",
            hint="pip install 'covid_fastai[web]'",
        ) from error
    from covid_fastai.app.server.limits import Limits
    from covid_fastai.app.server.middleware import check_hosts
    from covid_fastai.model.bundle_config import CONFIG_FILE, read_config
    from covid_fastai.model.card import read_findings
    from covid_fastai.model.hub import find_model

    file_bytes = max_mib << 20
    request_bytes = max(32 << 20, file_bytes + (1 << 20))  # one file of the largest size, and the form around it
    limits = Limits(file_bytes=file_bytes, request_bytes=request_bytes, files=max_files, pixels=max_pixels)
    limits = replace(limits, seconds=seconds, queue=queue, per_minute=per_minute)
    check_hosts(host, allow_host or [])
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # no line for each malformed form
    with _listen(host, port) as listener:  # first, so that a port in use is reported before the model is loaded
        folder = find_model(model, revision=revision)
        name = None if folder.is_relative_to(model) else model  # the name on the Hub, not that of the cache folder
        application = create_app(folder, name=name, allow_host=allow_host or [], workers=workers, limits=limits)
        config = uvicorn.Config(
            application,
            http=protocol_within(limits),
            ws="none",
            log_config=None,  # an access log would record the clients' addresses
            access_log=False,
            log_level="error",  # no line for each malformed request
            proxy_headers=False,  # a client can set X-Forwarded-For to any value
            server_header=False,
            timeout_keep_alive=limits.keep_alive_seconds,
            timeout_graceful_shutdown=5,
        )
        if not quiet:
            address = f"[{host}]" if ":" in host else host
            echo(" ".join(read_findings(folder, read_config(folder / CONFIG_FILE)).sentences()))
            echo(f"http://{address}:{port} (press Ctrl-C to stop). {RESEARCH_USE}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    from covid_fastai.errors import ResourceError

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ResourceError(
            f"The server cannot listen on {host}, port {port}: {error.strerror}.",
            hint="Choose another --port or --host.",
        ) from error
