"""The options that commands share, and those of a training, from the one place that knows them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "Data", "Debug", "Quiet", "READING", "given", "options_of_config", "reading"]

READING = ("task", "image_root", "path_column", "label_column", "patient_column", "split_column", "source_column")
READING += ("view_column", "encoding", "negatives_per_positive", "seed", "exclude_pretraining_overlap")

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="CoronaHack's folder or CSV, any CSV, or a folder with a folder a class.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results, warnings and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def options_of_config(*names: str) -> Callable[[Callable], Callable]:
    """Give a command an option for each field of `TrainConfig` (or for those named); None stands for not given."""
    from covid_fastai.config import TrainConfig

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name in names or TrainConfig.model_fields:
            annotation, option = _option(name, TrainConfig.model_fields[name])
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
                )
            )
        command.__signature__ = signature.replace(parameters=parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return command

    return decorate


def _option(name: str, field: Any) -> tuple[Any, Any]:
    """Return type and typer option of a field."""
    kinds, choices = _kinds(field.annotation)
    default = "none" if field.default is None else field.default
    text = f"{field.description} (default: {default})"
    flag = f"--{name.replace('_', '-')}"
    if kinds == {bool}:
        flag = f"{flag}/--no-{name.replace('_', '-')}" if field.default else flag
        return bool | None, typer.Option(flag, help=text, show_default=False)
    if choices and kinds <= {str}:
        return typing.Literal[tuple(choices)] | None, typer.Option(flag, help=text, show_default=False)
    if kinds in ({int}, {float}):
        return next(iter(kinds)) | None, typer.Option(flag, help=text, show_default=False)
    return str | None, typer.Option(flag, help=text, show_default=False)


def _kinds(annotation: Any) -> tuple[set[type], list[str]]:
    """Return the plain types in an annotation, without None, and the texts of its Literal."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return {str}, list(typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        kinds, choices = set(), []
        for part in typing.get_args(annotation):
            found, more = _kinds(part)
            kinds, choices = kinds | found, choices + more
        return kinds, choices
    return ({annotation} - {type(None)}) if isinstance(annotation, type) else {str}, []


def given(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; the word none stands for None."""
    given = {name: value for name, value in choices.items() if value is not None}
    return {name: None if value == "none" and name == "weights" else value for name, value in given.items()}


def reading(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the options of reading, checked as those of a training are."""
    from covid_fastai.config import TrainConfig

    config = TrainConfig.build(**given(choices))
    return {name: getattr(config, name) for name in READING}
