"""The command line in processes that are forked from one which has imported what most commands import.

A process that starts anew would import it all again, which takes a second of the processor a command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["COVID_FASTAI", "Finished", "LIGHT", "STATISTICS", "run_command"]

COVID_FASTAI = [sys.executable, "-m", "covid_fastai"]
LIGHT = ("numpy", "pandas", "covid_fastai.model.predictor")  # what a command without torch or scipy may import
STATISTICS = (*LIGHT, "covid_fastai.data.metadata", "covid_fastai.evaluation.comparison")

IMPORT = """
import atexit, importlib, json, os, sys
from covid_fastai.app.cli.main import main
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
FORK = """
for line in sys.stdin:
    process = os.fork()
    if not process:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
"""
RUN = """
command = json.loads(line)
def to_file(name, number=None):
    file = os.open(os.path.join(command["files"], name), os.O_WRONLY | os.O_CREAT, 0o600)
    return file if number is None else os.dup2(file, number)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
to_file("out", 1)
to_file("err", 2)
os.chdir(command["cwd"])
os.environ.clear()
os.environ.update(command["environment"])
sys.argv = ["covid-fastai", *command["arguments"]]
atexit.register(lambda: os.write(to_file("modules"), "\\n".join(sys.modules).encode()))
main()
"""


@dataclass(frozen=True)
class Finished:
    """A process that has ended, and the names of the modules that it had imported."""

    returncode: int
    stdout: str
    stderr: str
    imported: set[str]


def run_command(*arguments: object, cwd: Path, imports: tuple[str, ...] = STATISTICS) -> Finished:
    """Run `covid-fastai` in a process of its own, without colours.

    Args:
        *arguments: The command and its arguments.
        cwd: The folder to run it in.
        imports: The modules that the process has imported before the command; it imports all others anew.
    """
    with tempfile.TemporaryDirectory() as files:
        command = {"arguments": [str(argument) for argument in arguments], "cwd": str(cwd), "files": files}
        status = _run(json.dumps(command | {"environment": _environment()}) + "\n", imports)
        out, err, modules = ((Path(files) / name).read_text(encoding="utf-8") for name in ("out", "err", "modules"))
    return Finished(status, out, err, set(modules.split()))


def _run(line: str, imports: tuple[str, ...]) -> int:
    if not hasattr(os, "fork") or sys.platform == "darwin":  # whose system libraries do not survive a fork
        code = f"{IMPORT}line = sys.stdin.readline()\n{RUN}"
        return subprocess.run(
            [sys.executable, "-c", code, *imports], input=line.encode(), env=_environment()
        ).returncode
    server = _server(imports)
    server.stdin.write(line)
    server.stdin.flush()
    status = server.stdout.readline()
    assert status, "the process that runs the commands has ended"
    return int(status)


@cache
def _server(imports: tuple[str, ...]) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, "-c", IMPORT + FORK + RUN, *imports], env=_environment(), **pipes)


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
