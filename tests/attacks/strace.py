"""See by strace what commands connect to and where they write: `python -m tests.attacks.strace`, perhaps with a kind.

`predict`, `serve`, `batch` and `train` run on local files. Every call of the system that opens, makes, moves or removes
a file, or that connects or binds a socket, is read from strace's log, of all processes that a command starts. Allowed
are the files below the stated folders (the output, the caches of the package and of matplotlib, the temporary folder),
devices such as /dev/null, the memory that processes share (/dev/shm), sockets within this machine's kernel (`AF_UNIX`
without a name or below the temporary folder), and the one port on 127.0.0.1 that `serve` listens on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.kills_of_runs import PATIENTS, write_squares
from tests.small_model import write_small_model

# `?`: not every kernel and strace knows them all
CALLS = "?open,openat,?openat2,?creat,?mkdir,mkdirat,?rename,?renameat,renameat2,?unlink,unlinkat,?rmdir,?link,linkat"
CALLS += ",?symlink,symlinkat,truncate,?chmod,fchmodat,?fchmodat2,?mknod,mknodat,utimensat,setxattr"
CALLS += ",connect,bind,sendto,sendmsg,execve"
# urllib3, which fastai imports, sees by it whether the machine has IPv6; nobody listens
IPV6_TRIAL = ("bind", "::1", "0")
USERS = "/var/run/nscd/socket"  # where the C library asks for the names of users
LINE = re.compile(r"^\d+\s+(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$")
PATHS = re.compile(r'(?:(AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')
WRITES = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)")
DEVICES = re.compile(r"/dev/(null|zero|full|tty|urandom|ptmx|pts/\d+|shm(/.*)?)|/proc/(self|\d+)/.*")
UNIX = re.compile(r'sa_family=AF_UNIX(?:, sun_path=(@?)"((?:[^"\\]|\\.)*)")?')
INET = re.compile(r"sa_family=AF_INET6?.*?sin6?_port=htons\((\d+)\).*?\"([^\"]*)\"")


@dataclass(frozen=True)
class Traced:
    """What a command did.

    Attributes:
        status: Its exit status.
        connections: Each address that it connected or sent to, or bound, beside the allowed ones.
        writes: Each path outside of the allowed folders that it opened for writing, made, moved or removed.
        programs: The programs that it started.
        calls: The number of calls that were read.
    """

    status: int
    connections: list[str]
    writes: list[str]
    programs: list[str]
    calls: int


def trace(command: list[str], log: Path, *, environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a command under strace, in a folder."""
    traced = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-s",
        "4096",
        "-e",
        f"trace={CALLS}",
        "-e",
        "signal=none",
        "-o",
        str(log),
        "--",
    ]
    with open(folder / "output.txt", "ab") as output:
        return subprocess.Popen([*traced, *command], cwd=folder, env=environment, stdout=output, stderr=output)


def read_trace(log: Path, status: int, *, allowed: Iterable[Path], port: int | None = None, folder: Path) -> Traced:
    """Read strace's log.

    Args:
        log: The log.
        status: The exit status of the command.
        allowed: The folders that it may write to.
        port: The port on 127.0.0.1 that it may listen on.
        folder: The folder that it was started in.
    """
    places = [os.path.join(os.path.realpath(place), "") for place in allowed]
    connections, writes, programs, calls = set(), set(), set(), 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = LINE.match(line)
        if match is None or line.endswith("<unfinished ...>"):
            match = LINE.match(line.replace(" <unfinished ...>", "")) if "unfinished" in line else None
            if match is None:
                continue
        call, rest = match.groups()
        calls += 1
        if call in ("connect", "bind", "sendto", "sendmsg"):
            connections |= set(_foreign_addresses(call, rest, places, port))
        elif call == "execve":
            programs |= {path for _, _, path in PATHS.findall(rest)[:1]}
        elif not call.startswith("open") or WRITES.search(rest):
            paths = [os.path.join(base or str(folder), path) for _, base, path in PATHS.findall(rest) if path]
            if call in ("symlink", "symlinkat"):
                paths = paths[1:]  # the target of a link is not written
            writes |= {os.path.normpath(path) for path in paths if not _is_allowed(os.path.normpath(path), places)}
    return Traced(status, sorted(connections), sorted(writes), sorted(programs), calls)


def _is_allowed(path: str, places: list[str]) -> bool:
    return bool(DEVICES.fullmatch(path)) or any(os.path.join(path, "").startswith(place) for place in places)


def _foreign_addresses(call: str, rest: str, places: list[str], port: int | None) -> Iterator[str]:
    """Yield the addresses of a call that are not allowed."""
    for number, host in INET.findall(rest):
        own = call == "bind" and host == "127.0.0.1" and int(number) == port
        if not own and (call, host, number) != IPV6_TRIAL:
            yield f"{call} {host}:{number}"
    if match := UNIX.search(rest):
        abstract, path = match.groups()
        if path and path != USERS and not abstract and not _is_allowed(os.path.normpath(path), places):
            yield f"{call} {path}"
    if "AF_NETLINK" not in rest and "sa_family=" in rest and not INET.search(rest) and not UNIX.search(rest):
        yield f"{call} {rest[:200]}"


# the commands


def run_all(kinds: Iterable[str], root: Path) -> dict[str, Traced]:
    """Trace commands of some kinds on data of their own below a folder."""
    model = write_small_model(root / "model")
    write_squares(root / "images", 12)
    return {kind: TRACED[kind](root, model) for kind in kinds}


def _environment(place: Path) -> dict[str, str]:
    """Return the environment of a command, with a home, cache and temporary folder of its own."""
    for name in ("home", "cache", "temporary"):
        (place / name).mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG", "COVID", "HF_", "TORCH"))}
    own = {"HOME": str(place / "home"), "TMPDIR": str(place / "temporary"), "PYTHONDONTWRITEBYTECODE": "1"}
    caches = {"COVID_FASTAI_CACHE": str(place / "cache"), "MPLCONFIGDIR": str(place / "cache" / "matplotlib")}
    return {**kept, **own, **caches, "MPLBACKEND": "agg"}


def _run(root: Path, kind: str, arguments: list[str]) -> Traced:
    """Trace a command to its end; it may write to its own folder `out`, the cache and the temporary folder."""
    place, log = root / kind, root / f"{kind}.strace"
    environment = _environment(place)
    (place / "out").mkdir()
    command = [sys.executable, "-m", "covid_fastai", kind, *arguments]
    status = trace(command, log, environment=environment, folder=place).wait()
    allowed = [place / name for name in ("out", "cache", "temporary")]
    return read_trace(log, status, allowed=allowed, folder=place)


def trace_predict(root: Path, model: Path) -> Traced:
    """Trace `predict` with a table and class activation maps."""
    out = root / "predict" / "out"
    return _run(
        root, "predict", [str(model), str(root / "images"), "--csv", f"{out}/a.csv", "--explain", f"{out}/maps"]
    )


def trace_batch(root: Path, model: Path) -> Traced:
    """Trace `batch` with two processes."""
    out = root / "batch" / "out" / "a.csv"
    return _run(root, "batch", [str(model), str(root / "images"), str(out), "--workers", "2"])


def trace_train(root: Path, model: Path) -> Traced:
    """Trace `train` on synthetic radiographs, with audit and report and with the radiograph weights of the package."""
    from covid_fastai.data.phantom import write_phantom

    write_phantom(root / "data", patients=PATIENTS, image_size=64, seed=1)
    options = ["--image-size", "64", "--batch-size", "8", "--frozen-epochs", "1", "--unfrozen-epochs", "1"]
    return _run(root, "train", [str(root / "data"), "--out", str(root / "train" / "out" / "run"), *options])


def trace_serve(root: Path, model: Path) -> Traced:
    """Trace `serve` from its start over two answers to its end."""
    place, log = root / "serve", root / "serve.strace"
    environment = _environment(place)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "covid_fastai", "serve", str(model), "--port", str(port)]
    process = trace(command, log, environment=environment, folder=place)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_ready(address, process)
        content = next((root / "images").iterdir()).read_bytes()
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body = head + content + b"\r\n--x--\r\n"
        for path in ("/api/predict", "/"):
            request = urllib.request.Request(
                address + path, headers={"Content-Type": "multipart/form-data; boundary=x"}
            )
            request.data = body if path.startswith("/api") else None
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 200
    finally:
        _interrupt(process)
    allowed, status = [place / "cache", place / "temporary"], process.wait()
    status = 0 if status == 128 + signal.SIGINT else status
    return read_trace(log, status, allowed=allowed, port=port, folder=place)


def _wait_until_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.5)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the command that strace started; strace itself ends with it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


TRACED = {"predict": trace_predict, "batch": trace_batch, "serve": trace_serve, "train": trace_train}


def main() -> int:
    """Trace, and print what was found; the exit status is 1 if anything is not allowed."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.strace", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(TRACED), metavar="|".join(TRACED))
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        parser.error("strace is not installed: apt-get install strace")
    with tempfile.TemporaryDirectory() as folder:
        found = run_all(arguments.kinds, Path(folder))
    print(json.dumps({kind: vars(traced) for kind, traced in found.items()}, indent=1))
    return int(any(traced.connections or traced.writes or traced.status for traced in found.values()))


if __name__ == "__main__":
    sys.exit(main())
