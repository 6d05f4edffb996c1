"""The same logic stands once: no two functions of the package have the same body."""

from __future__ import annotations

import ast
import textwrap
from collections import defaultdict
from pathlib import Path

import pytest

import covid_fastai

PACKAGE = Path(covid_fastai.__file__).parent
FEWEST_NODES = 18  # of a body of one statement: a shorter one is a call or an attribute, not logic


def repeated_bodies(sources: dict[str, str]) -> list[list[str]]:
    """Return the places of functions whose bodies are the same but for the names of arguments and local variables.

    Args:
        sources: Python source by the name of its file.

    Returns:
        Groups of two or more places, each `file:line name`.
    """
    places = defaultdict(list)
    for file, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (body := _logic(node)):
                places[body].append(f"{file}:{node.lineno} {node.name}")
    return [found for found in places.values() if len(found) > 1]


def _logic(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return what a function's body does as text, "" where it is too little to be logic."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    nodes = [node for statement in body for node in ast.walk(statement)]
    if not body or (len(body) == 1 and len(nodes) < FEWEST_NODES):
        return ""
    module = ast.Module(body=ast.parse(ast.unparse(ast.Module(body=body, type_ignores=[]))).body, type_ignores=[])
    arguments = function.args
    own = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    own += [one.arg for one in (arguments.vararg, arguments.kwarg) if one is not None]
    stored = [node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    names = {name: f"name{number}" for number, name in enumerate(dict.fromkeys([*own, *stored]))}
    for node in ast.walk(module):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
    return ast.dump(module)


@pytest.mark.slow
def test_no_two_functions_have_the_same_body():
    sources = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert len(sources) > 100
    repeated = repeated_bodies(sources)
    assert not repeated, "\n".join(" = ".join(places) for places in repeated)


@pytest.mark.parametrize(
    ("second", "same"),
    [
        ("def g(b):\n    '''Says more.'''\n    y = b + 1\n    return y", True),
        ("async def g(self):\n    self = self + 1\n    return self", False),
        ("def g(a):\n    x = a + 2\n    return x", False),
        ("def g(a):\n    return a + 1", False),
    ],
)
def test_the_same_body_is_seen_under_other_names(second, same):
    first = "def f(a):\n    x = a + 1\n    return x"
    assert bool(repeated_bodies({"a.py": first, "b.py": textwrap.dedent(second)})) == same


def test_a_short_body_of_one_statement_may_repeat():
    assert not repeated_bodies({"a.py": "def f(a):\n    return len(a)", "b.py": "def g(a):\n    return len(a)"})
