"""The options that commands share, and those of a training, from the one place that knows them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from covid_fastai.options import describe_option, option_choices, parse_option, plain_type

__all__ = ["AsJson", "Data", "Debug", "Quiet", "READING", "given", "option", "options_of_config", "reading"]

READING = ("task", "image_root", "path_column", "label_column", "patient_column", "split_column", "source_column")
READING += ("view_column", "encoding", "negatives_per_positive", "seed", "exclude_pretraining_overlap")

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="CoronaHack's folder or CSV, any CSV, or a folder with a folder a class.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results, warnings and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def option(kind: Any, *flags: str, help: str, metavar: str | None = None) -> Any:
    """Return a typer option whose value is checked as the same option of a Python function is.

    Args:
        kind: A type of `covid_fastai.options`.
        *flags: The option's names; those of the parameter if none are given.
        help: What it is, one sentence.
        metavar: What stands for the value in the help; None to derive it from the type.
    """
    choices = option_choices(kind)
    # the text is kept as it is and checked by the callback: typer would say of a wrong value what Python does not say
    return typer.Option(
        *flags,
        help=help if choices else f"{help[:-1]} ({describe_option(kind).removesuffix(', or None')}).",
        parser=_keep_text,
        callback=_check_option(kind),
        metavar=metavar or (f"[{'|'.join(choices)}]" if choices else "NUMBER"),
        autocompletion=(lambda: list(choices)) if choices else None,
    )


def _keep_text(value: str) -> str:
    return value


def _check_option(kind: Any) -> Callable:
    def check(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        if value is None or ctx.resilient_parsing:
            return value
        if isinstance(value, (list, tuple)):
            return [parse_option(str(param.name), text, kind) for text in value]
        return parse_option(str(param.name), value, kind)

    return check


def options_of_config(*names: str) -> Callable[[Callable], Callable]:
    """Give a command an option for each field of `TrainConfig` (or for those named); None stands for not given."""
    from covid_fastai.config import TrainConfig

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name in names or TrainConfig.model_fields:
            kind, default = TrainConfig.option_types()[name], TrainConfig.model_fields[name].default
            annotation = Annotated[(bool if plain_type(kind) is bool else str) | None, _option(name, kind, default)]
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            )
        command.__signature__ = signature.replace(parameters=parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return command

    return decorate


def _option(name: str, kind: Any, default: Any) -> Any:
    """Return the typer option of a field of `TrainConfig`."""
    from covid_fastai.config import TrainConfig

    choices = option_choices(kind)
    text = TrainConfig.model_fields[name].description if choices else TrainConfig.describe(name)
    text = f"{text} Default: {'none' if default is None else default}."
    flag = f"--{name.replace('_', '-')}"
    if plain_type(kind) is bool:
        return typer.Option(f"{flag}/--no-{flag[2:]}" if default else flag, help=text, show_default=False)
    return typer.Option(
        flag,
        help=text,
        show_default=False,
        parser=_keep_text,
        callback=_check_option(kind) if name != "task" else None,
        metavar=f"[{'|'.join(choices)}]" if choices else "VALUE",
        autocompletion=(lambda: list(choices)) if choices else None,
    )


def given(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; the word none stands for None."""
    given = {name: value for name, value in choices.items() if value is not None}
    return {name: None if value == "none" and name == "weights" else value for name, value in given.items()}


def reading(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the options of reading, checked as those of a training are."""
    from covid_fastai.config import TrainConfig

    config = TrainConfig.build(**given(choices))
    return {name: getattr(config, name) for name in READING}
