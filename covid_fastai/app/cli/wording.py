"""Options in messages: Python's spelling becomes that of the command line."""

from __future__ import annotations

import ast
import functools
import logging
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from covid_fastai.app.cli.options import REPEATABLE
from covid_fastai.options import FASTAI_NAMES, FASTAI_ONLY, translate_name

if TYPE_CHECKING:
    from typer import Typer

__all__ = ["OptionFormatter", "as_options", "know_commands", "remedies_as_options", "translate_option"]

PYTHON_ONLY = ("callbacks", "loss_func", "metrics", "opt_func")  # parts of a training that are code

# A call of Python stays as it is; quoted text and paths belong to the data. Then a name in backticks, `name=value`,
# `name=` or a name with an underscore.
_PART = re.compile(
    r"""(?P<keep>\b\w+\([^()]*\)|(?<![=\w])'[^']*'|(?<![=\w])"[^"]*"|\S*[/\\]\S*=\S*|\w+=[^\s/\\'"]+[/\\]\S*)
    |`(?P<quoted>[a-z][a-z0-9_]*)`
    |(?<![\w.\-\[{])(?P<name>[a-z][a-z0-9_]*)
     (?:=(?P<value>'[^']*'|"[^"]*"|\[[^\]]*\]|\([^)]*\)|\{[^}]*\}|[^\s,;:()"']*[^\s,;:()."'])?|\b(?![.\-]\w))""",
    re.VERBOSE,
)


_APPS: list[Typer] = []


def as_options(text: str, flags: Mapping[str, str] | None = None) -> str:
    """Return a message with the options of Python, such as `on_problem="skip"`, as those of the command line.

    An option without a value is written in backticks, or has an underscore. Calls of Python, quoted text and paths stay
    as they are, and so do names that are no option of a command.

    Args:
        text: A message or its hint.
        flags: The options of the command line by their Python names, as `"--on-problem"` or, for a switch,
            `"--audit/--no-audit"`; None for those of every command.

    Examples:
        >>> as_options('Set on_problem="skip", or image_root=FOLDER.')
        'Set --on-problem skip, or --image-root FOLDER.'
        >>> as_options("Use weights=None or evaluate_test=False.")
        'Use --weights none or no --evaluate-test.'
    """
    known = _flags() if flags is None else flags

    def spelled(match: re.Match[str]) -> str:
        name, value = match["name"] or match["quoted"], match["value"]
        given = bool(match["quoted"]) or match.group().endswith("=") or value is not None
        if match["keep"] or name not in known or not (given or "_" in name):
            return match.group()
        flag, _, negative = known[name].partition("/")
        plain = _plain(value)
        if isinstance(plain, bool):
            return (flag if plain else negative or f"no {flag}") if negative or plain is False else flag
        return flag if plain == "" and not value else _given(flag, plain)

    return _PART.sub(spelled, text)


def translate_option(flag: str, parameters: Iterable[str]) -> str:
    """Return a hint for an option that a command does not have, if fastai or the Python function has it.

    Args:
        flag: The option as it was given, such as `"--bs"`.
        parameters: The Python names of the command's options and arguments.

    Returns:
        A sentence; empty for any other name.

    Examples:
        >>> translate_option("--bs", ["data", "batch_size"])
        "fastai's bs is --batch-size here."
        >>> translate_option("--loss-func", ["data", "unfrozen_epochs"])
        'loss_func is code, which only Python can take: train_classifier(DATA, loss_func=...).'
    """
    name, known = flag.lstrip("-").replace("-", "_"), set(parameters)
    ours, trains = FASTAI_NAMES.get(name, name), "unfrozen_epochs" in known
    if ours in PYTHON_ONLY:
        return f"{ours} is code, which only Python can take: train_classifier(DATA, {ours}=...)." if trains else ""
    if name in FASTAI_ONLY:
        return translate_name(name) if trains else ""
    words = re.findall(r"\w+", ours) if name in FASTAI_NAMES else []
    flags = [f"--{word.replace('_', '-')}" for word in words if word in known - {"data"}]
    return f"fastai's {name} is {' and '.join(flags)} here." if flags else ""


def remedies_as_options(problems: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return problems whose remedies have the options of the command line."""
    return [{key: as_options(value) if key == "remedy" else value for key, value in row.items()} for row in problems]


class OptionFormatter(logging.Formatter):
    """Writes a log message, a warning with the options of the command line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        text = super().format(record)
        return as_options(text) if record.levelno >= logging.WARNING else text


def _plain(value: str | None) -> object:
    """Return the value that Python's text stands for; the text itself where it is a placeholder."""
    if not value:
        return ""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _given(flag: str, value: object) -> str:
    """Return an option with its value, which can be copied into a shell."""
    if isinstance(value, dict):
        return " ".join(f"{flag} {shlex.quote(f'{theirs}={ours}')}" for theirs, ours in value.items())
    if isinstance(value, list | tuple):
        return f"{flag} {shlex.quote(','.join(map(str, value)))}"
    return f"{flag} {'none' if value is None else shlex.quote(str(value))}"


def know_commands(app: Typer) -> None:
    """Make the options of an app's commands known to `as_options`.

    Args:
        app: The app, with all of its commands.
    """
    _APPS.append(app)
    _flags.cache_clear()


@functools.cache
def _flags() -> dict[str, str]:
    """Return the options of every command by their Python names."""
    from typer.main import get_command

    found, negative = dict[str, str](), dict[str, str]()
    for command in (command for app in _APPS for command in getattr(get_command(app), "commands", {}).values()):
        for parameter in command.params:
            if parameter.param_type_name == "option":
                found.setdefault(str(parameter.name), parameter.opts[0])
                if parameter.secondary_opts:
                    negative.setdefault(str(parameter.name), parameter.secondary_opts[0])
    found |= {name: f"--{flag}" for name, flag in REPEATABLE.items()}
    return {name: f"{flag}/{negative[name]}" if name in negative else flag for name, flag in found.items()}
