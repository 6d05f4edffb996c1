"""Calls that no code here may contain.

Reading pickles, executing read text, unpacking archives, contacting hosts; deciding by a clock that can be set back.
"""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for name in ("covid_fastai", "benchmarks", "pretraining", "nbs") for path in (ROOT / name).rglob("*.py")
)
AUDITED = ROOT / "covid_fastai" / "model" / "weight_files.py"  # reads torch's files, with weights_only=True
CALLS = {"load_learner", "read_pickle", "unpack_archive", "extractall", "untar_data", "eval", "exec", "system", "popen"}
MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
OPTIONS = {"shell": True, "verify": False, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}


def unsafe(tree: ast.AST, *, audited: bool = False, packaged: bool = True) -> list[str]:
    """Return the unsafe calls and imports of a module, one line each."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name.split(".")[0] for alias in node.names}
            names |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            found += [f"{node.lineno}: imports {name}" for name in names & MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name in CALLS and owner != "re" and not (name == "eval" and isinstance(node.func, ast.Attribute)):
            found.append(f"{node.lineno}: calls {name}")
        if (owner, name) == ("torch", "load"):
            safe = any(word.arg == "weights_only" and getattr(word.value, "value", 0) is True for word in node.keywords)
            found += [] if safe and (audited or not packaged) else [f"{node.lineno}: calls torch.load"]
        if (owner, name) == ("yaml", "load"):
            found.append(f"{node.lineno}: calls yaml.load")
        for word in node.keywords:
            if word.arg in OPTIONS and getattr(word.value, "value", None) is OPTIONS[word.arg]:
                found.append(f"{node.lineno}: {word.arg}={OPTIONS[word.arg]}")
    return found


def test_no_unsafe_loading():
    found = []
    assert len(FILES) > 200
    for path in FILES:
        name = path.relative_to(ROOT)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lines = unsafe(tree, audited=path == AUDITED, packaged=name.parts[0] == "covid_fastai")
        found += [f"{name}:{line}" for line in lines]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "torch.load(f)", "learn = load_learner(p)", "pd.read_pickle(p)"]
    + ["eval(text)", "exec(text)"]
    + ["subprocess.run(x, shell=True)", "np.load(f, allow_pickle=True)", "shutil.unpack_archive(a)", "z.extractall()"]
    + ["requests.get(u, verify=False)", "torch.load(f, weights_only=False)", "yaml.load(f)", "os.system(x)"],
)
def test_the_lint_detects_unsafe_calls(line):
    assert unsafe(ast.parse(line)) and unsafe(ast.parse(line), audited=True, packaged=False)


WALL_CLOCK = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}
# The time of an event in the record, of a report, and in the name of a new run, all of which are only shown.
SHOWN_TIMES = {"covid_fastai/files.py": 2, "covid_fastai/reporting/html.py": 1}


def wall_clocks(tree: ast.AST) -> int:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [(call.value, call.attr) for call in calls if isinstance(call, ast.Attribute)]
    return sum((getattr(owner, "id", getattr(owner, "attr", "")), name) in WALL_CLOCK for owner, name in named)


def test_a_clock_that_is_set_back_decides_nothing():
    found = {path.relative_to(ROOT).as_posix(): path for path in FILES if path.is_relative_to(ROOT / "covid_fastai")}
    counts = {name: wall_clocks(ast.parse(path.read_text(encoding="utf-8"))) for name, path in found.items()}
    assert {name: count for name, count in counts.items() if count} == SHOWN_TIMES
    assert wall_clocks(ast.parse("time.time() - start; datetime.datetime.now()")) == 2


def test_tests_cannot_reach_another_host():
    """`tests/conftest.py` allows the loopback interface only; 192.0.2.1 is a documentation address (RFC 5737)."""
    with pytest.raises(RuntimeError, match="192.0.2.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


@pytest.mark.slow
def test_an_import_contacts_no_host():
    code = """
import socket, sys
def refuse(*arguments, **options):
    raise SystemExit(f"asked for {arguments}")
socket.socket.connect = socket.getaddrinfo = refuse
import covid_fastai
for name in sorted(covid_fastai.__all__):
    getattr(covid_fastai, name)
from covid_fastai.app.cli import main
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
