"""The command that serves a saved model as a page and a JSON interface."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Annotated

import typer

from covid_fastai.app.cli.options import Debug, Quiet, option
from covid_fastai.app.cli.output import listen
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Count, Pixels, Port, PositiveCount, Seconds, WorkerCount

__all__ = ["serve"]

# Heavy modules (onnxruntime, starlette, uvicorn) are imported inside the command, so that help answers at once.


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a saved model, or a name on the Hub: user/model.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    port: Annotated[int, option(Port, help="The port to listen at.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name that other machines call this one by; repeatable.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The commit, tag or branch of a model on the Hub.")] = None,
    workers: Annotated[int, option(WorkerCount, help="Processes that read and answer files.")] = 1,
    max_mib: Annotated[int, option(PositiveCount, help="Largest size of one file, MiB.")] = 20,
    max_files: Annotated[int, option(PositiveCount, help="Most files in one request.")] = 8,
    max_pixels: Annotated[int, option(Pixels, help="Largest size of one image.")] = 25_000_000,
    seconds: Annotated[float, option(Seconds, help="Longest time that one image may take.")] = 20,
    queue: Annotated[int, option(Count, help="Requests that may wait.")] = 16,
    per_minute: Annotated[int, option(Count, help="Requests of one address a minute; 0 for no limit.")] = 600,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a saved model as a web page and a JSON interface. Pictures are read in memory, and nothing is kept."""
    listen(quiet=quiet, as_json=False)
    from covid_fastai.errors import UnavailableError

    try:
        import uvicorn

        from covid_fastai.app.server.app import create_app
        from covid_fastai.app.server.protocol import ImpatientProtocol
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"The page needs the package {error.name}.", hint="pip install 'covid_fastai[web]'"
        ) from error
    from covid_fastai.app.server.limits import Limits
    from covid_fastai.app.server.middleware import check_hosts
    from covid_fastai.model.hub import find_model

    size = max_mib << 20
    limits = Limits(file_bytes=size, request_bytes=max(32 << 20, size + (1 << 20)), files=max_files, pixels=max_pixels)
    limits = replace(limits, seconds=seconds, queue=queue, per_minute=per_minute)
    check_hosts(host, allow_host or [])
    with _listen(host, port) as listener:  # before the model: a port that is taken shall not wait for it
        folder = find_model(model, revision=revision)
        name = None if folder.is_relative_to(model) else model  # the Hub's name rather than that of a cache
        application = create_app(folder, name=name, allow_host=allow_host or [], workers=workers, limits=limits)
        config = uvicorn.Config(
            application,
            http=ImpatientProtocol,
            ws="none",
            log_config=None,  # its access log would hold who asked when
            access_log=False,
            proxy_headers=False,  # anybody may write X-Forwarded-For
            server_header=False,
            limit_concurrency=256,  # connections; requests have limits of their own
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
        )
        if not quiet:
            address = f"[{host}]" if ":" in host else host
            typer.echo(f"http://{address}:{port}  (end with Ctrl-C). {RESEARCH_USE}")
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    from covid_fastai.errors import ResourceError

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ResourceError(
            f"{host}, port {port} cannot be listened at: {error.strerror}.", hint="Choose another --port or --host."
        ) from error
