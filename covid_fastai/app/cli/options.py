"""Options that several commands share, and the options of a training, which are derived from `TrainConfig`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from covid_fastai.app.cli.completion import COMPLETIONS, complete_from, complete_models
from covid_fastai.files import check_target
from covid_fastai.options import describe_option, option_choices, option_names, parse_option, plain_type

__all__ = [
    "AsJson",
    "Data",
    "Debug",
    "Model",
    "Pseudonymise",
    "Quiet",
    "READING",
    "READING_ELSEWHERE",
    "READING_INPUTS",
    "READING_PREDICTIONS",
    "Revision",
    "file_option",
    "given_options",
    "option",
    "options_of_config",
    "reading_options",
]

# the fields of TrainConfig that `read_cohort` takes
LABELLING = ("labels", "classes", "positive", "label_columns", "uncertain", "readers")
READING = ("recipe", "task", *LABELLING, "image_root", "path_column", "label_column", "patient_column")
READING += ("patient_pattern", "split_column", "source_column", "view_column", "path_template", "join", "on")
READING += ("encoding", "negatives_per_positive", "seed")
READING += ("check_lungs", "exclude_pretraining_overlap")
# those of them that apply to data of elsewhere, whose task is that of a run
OF_TASK = {"task", "classes", "negatives_per_positive", "seed", "exclude_pretraining_overlap"}
READING_ELSEWHERE = (*(name for name in READING if name not in OF_TASK), "on_problem")
# those of them that apply to images without labels
READING_INPUTS = ("path_column", "image_root", "path_template", "join", "on", "encoding", "on_problem")
# those that apply to tables of predictions
READING_PREDICTIONS = (
    *READING_INPUTS,
    "label_column",
    "patient_column",
    "split_column",
    "source_column",
    "view_column",
)

PANELS = {  # of the fields of TrainConfig in the help, in its order; every other option stands in "Options"
    "Rows and labels": ("recipe", "task", *LABELLING, "on_problem", "encoding", "join", "on"),
    "Paths and columns": (
        *("image_root", "path_column", "path_template", "label_column", "patient_column", "patient_pattern"),
        *("split_column", "source_column", "view_column"),
    ),
    "Which images": (
        *("split", "valid_pct", "evaluate_test", "negatives_per_positive", "check_lungs"),
        "exclude_pretraining_overlap",
    ),
    "What a run keeps": ("keep_columns", "pseudonymise"),
    "Images and batches": ("image_size", "region", "augmentation", "batch_size", "balance", "num_workers"),
    "Model and training": (
        *("arch", "weights", "frozen_epochs", "unfrozen_epochs", "learning_rate", "unfrozen_learning_rate"),
        *("lr_ratio", "initial_image_size", "frozen_augmentations", "weight_decay", "gradient_clip", "audit", "seed"),
        *("device", "precision"),
    ),
}
OUTPUT = "Output"  # the panel of how a command prints

REPEATABLE = {"labels": "label"}  # fields that the command line takes one entry at a time, under this name
METAVARS = {"labels": "THEIRS=OURS", "classes": "A,B,...", "label_columns": "A,B,...", "keep_columns": "A,B,..."}

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="The folder or CSV of CoronaHack, another CSV, or a folder with one subfolder per class."
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The folder of a run or a saved model, pneumonia-children (which comes with the package), or user/model "
        "on the Hugging Face Hub.",
        autocompletion=complete_models,
    ),
]
Pseudonymise = Annotated[
    bool,
    typer.Option(
        "--pseudonymise",
        help="Write numbers in place of the names of files and patients into the page; the key lies beside it.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a model on the Hugging Face Hub.")]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on standard output.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Print only results, warnings and errors.", rich_help_panel=OUTPUT),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Print the traceback of an error.", rich_help_panel=OUTPUT),
]


def option(kind: Any, *flags: str, help: str, metavar: str | None = None) -> Any:
    """Return a typer option whose value is checked in the same way as that option of a Python function.

    Args:
        kind: A type of `covid_fastai.options`.
        *flags: The names of the option; derived from the parameter if none are given.
        help: A description, one sentence.
        metavar: The placeholder of the value in the help; None to derive it from the type.
    """
    choices = option_choices(kind)
    # the callback checks the unparsed text, so that the message for an invalid value is the same as in Python
    return typer.Option(
        *flags,
        help=help if choices else f"{help[:-1]} ({describe_option(kind).removesuffix(', or None')}).",
        parser=_keep_text,
        callback=_check_option(kind),
        metavar=metavar or (f"[{'|'.join(choices)}]" if choices else "NUMBER"),
        autocompletion=complete_from(option_names(kind)),
    )


def file_option(*flags: str, help: str, metavar: str | None = None) -> Any:
    """Return a typer option for a file to write, which is refused at once where it cannot be written.

    Args:
        *flags: The names of the option; derived from the parameter if none are given.
        help: A description, one sentence.
        metavar: The placeholder of the value in the help.
    """
    return typer.Option(*flags, help=help, metavar=metavar, callback=_check_file)


def _check_file(ctx: typer.Context, value: Path | None) -> Path | None:
    if value is not None and not ctx.resilient_parsing:
        check_target(value)
    return value


def _keep_text(value: str) -> str:
    return value


def _check_option(kind: Any) -> Callable:
    def check(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        if value is None or ctx.resilient_parsing:
            return value
        if param.name in REPEATABLE:
            return value if parse_option(str(param.name), value, kind) else None  # typer keeps a list only
        if isinstance(value, (list, tuple)):
            return [parse_option(str(param.name), text, kind) for text in value]
        return parse_option(str(param.name), value, kind)

    return check


def options_of_config(*names: str) -> Callable[[Callable], Callable]:
    """Add an option to a command for each field of `TrainConfig`, or for those named; None means not given."""
    from covid_fastai.config import TrainConfig

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name in names or TrainConfig.model_fields:
            kind, default = TrainConfig.option_types()[name], TrainConfig.model_fields[name].default
            value = list[str] if name in REPEATABLE else bool if plain_type(kind) is bool else str
            annotation = Annotated[value | None, _option(name, kind, default)]
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
    panel = next(title for title, names in PANELS.items() if name in names)
    flag = f"--{REPEATABLE.get(name, name).replace('_', '-')}"
    if plain_type(kind) is bool:
        return typer.Option(
            f"{flag}/--no-{flag[2:]}" if default else flag, help=text, show_default=False, rich_help_panel=panel
        )
    return typer.Option(
        flag,
        help=text,
        show_default=False,
        parser=_keep_text,
        callback=_check_option(kind) if name != "task" else None,
        metavar=f"[{'|'.join(choices)}]" if choices else METAVARS.get(name, "VALUE"),
        autocompletion=COMPLETIONS.get(name) or complete_from(option_names(kind)),
        rich_help_panel=panel,
    )


def given_options(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; the text "none" for the weights becomes None."""
    given = {name: value for name, value in choices.items() if value is not None}
    return {name: None if value == "none" and name == "weights" else value for name, value in given.items()}


def reading_options(choices: dict[str, Any], names: Sequence[str] = READING) -> dict[str, Any]:
    """Return the options of `read_cohort` of some names, checked by `TrainConfig`."""
    from covid_fastai.config import TrainConfig

    config = TrainConfig.build(**given_options(choices))
    return {name: getattr(config, name) for name in names}
