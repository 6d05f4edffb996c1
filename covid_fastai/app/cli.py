"""The command line: every command is a thin call of a public function, with the same options under the same names."""

from __future__ import annotations

import inspect
import json
import logging
import sys
import traceback
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covid_fastai.errors import CovidFastaiError, DataError, EnvironmentProblem, ResourceError

if TYPE_CHECKING:
    import pandas as pd

    from covid_fastai.evidence.metrics import Evaluation

__all__ = ["app", "main"]

# Heavy modules (torch, fastai, pandas) are imported inside the commands, so that help and bad arguments answer at once.

logger = logging.getLogger("covid_fastai")

RESEARCH_USE = "Research use only; not a medical device."
# 120 patients are held out. The opacities are well seen, so that six epochs from random weights do: about 35 s on two
# CPU cores, the install's imports and the report 15 s more.
DEMO_DATA = {"patients": {"COVID-19": 200, "Normal": 236}, "image_size": 64, "severity": 1.5}
DEMO = {"task": "covid", "weights": None, "image_size": 64, "batch_size": 16, "valid": 0.3, "augmentation": "none"}
DEMO |= {"frozen_epochs": 0, "unfrozen_epochs": 6, "learning_rate": 1e-2}
READING = ("task", "image_root", "path_column", "label_column", "patient_column", "split_column", "source_column")
READING += ("view_column", "encoding", "negatives_per_positive", "seed", "guard_seen")

app = typer.Typer(
    name="covid-fastai",
    help=f"From a folder of chest radiographs to a trained, honestly judged classifier. {RESEARCH_USE}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="CoronaHack's folder or CSV, any CSV, or a folder with a folder a class.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results, warnings and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Run the command line and end the process with its exit status.

    0 done, 1 a bug or a training that diverged, 2 wrong usage, 3 faulty data, 4 the machine (no network, no room, no
    permission), 130 interrupted.
    """
    debug = "--debug" in sys.argv
    try:
        app()  # ends the process itself, with 2 for wrong usage and 130 for an interrupt
    except CovidFastaiError as error:
        status = _say_error(error, status=error.exit_code, debug=debug)
    except MemoryError as error:
        failure = ResourceError("The memory is full.", hint="Take a smaller batch_size or image_size.")
        failure.__cause__ = error
        status = _say_error(failure, status=failure.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001 - the last one to catch it; a bug, which shall be reported
        text = f"{type(error).__name__}: {error}"
        bug = CovidFastaiError(f"A bug, or something unforeseen: {text}.", hint="Run again with --debug and report it.")
        bug.__cause__ = error
        status = _say_error(bug, status=bug.exit_code, debug=debug)
    sys.exit(status)


def _say_error(error: CovidFastaiError, *, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error.__cause__ or error)
    lines = [f"Error: {error.message}", error.hint]
    print("\n".join(line for line in lines if line), file=sys.stderr)  # noqa: T201
    if "--json" in sys.argv:
        _print_json({"error": error.message, "hint": error.hint, "details": error.details, "exit_code": status})
    return status


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"covid_fastai {installed('covid_fastai')}")
        raise typer.Exit


# the options of a training, from the one place that knows them


def _options_of_config(*names: str) -> Callable[[Callable], Callable]:
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


def _given(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; the word none stands for None."""
    given = {name: value for name, value in choices.items() if value is not None}
    return {name: None if value == "none" and name == "weights" else value for name, value in given.items()}


# the commands


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/<time>-... if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the drawing, the split and the training.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw synthetic chest radiographs, train on them and write a report: offline, on a CPU, in about a minute."""
    console = _listen(quiet=quiet, as_json=as_json)
    from covid_fastai.data.phantom import write_phantom

    drawn = write_phantom(Path("runs") / f"phantoms-{seed}", seed=seed, **DEMO_DATA)
    logger.info("They are drawings: what follows shows how the package works, and nothing about lungs.")
    _train(drawn, console, out=out, as_json=as_json, choices={**DEMO, "seed": seed})


@app.command()
@_options_of_config(*READING)
def check(
    data: Data,
    out: Annotated[Path, typer.Option(help="Where to list the problems; written only if there are some.")] = Path(
        "problems.csv"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Check every row and open every image; list all faults at once, with remedies. Exit status 3 if there are any."""
    _listen(quiet=True, as_json=as_json)
    import pandas as pd

    from covid_fastai.data.metadata import read_cohort, summarise_cohort
    from covid_fastai.files import write_csv

    counts = pd.DataFrame()
    try:
        cohort = read_cohort(data, on_problem="skip", **_reading(choices))
        problems, counts = cohort.attrs["problems"], summarise_cohort(cohort)
    except DataError as error:
        if not error.details:
            raise
        problems = error.details  # not one row can be used
    faults = [row for row in problems if row["severity"] == "error"]
    table = pd.DataFrame(problems, columns=["row", "path", "kind", "severity", "reason", "remedy"])
    if problems:
        write_csv(out, table)
    if as_json:
        _print_json({"faults": len(faults), "problems": problems, "counts": counts.to_dict("records")})
    else:
        if not counts.empty:
            _print_table(counts, title=f"{data}: images and patients")
        _print_problems(problems)
        listed = f" All {len(problems)} findings are in {out}." if problems else ""
        typer.echo(f"{_count(len(faults), 'fault')}, {_count(len(problems) - len(faults), 'remark')}.{listed}")
    raise typer.Exit(DataError.exit_code if faults else 0)


@app.command()
@_options_of_config(*READING)
def explore(
    data: Data,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("exploration.html"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Write who is in the data and what the images look like as one page (the article's steps 1 and 2)."""
    _listen(quiet=quiet, as_json=as_json)
    from covid_fastai.data.metadata import read_cohort, summarise_cohort
    from covid_fastai.evidence.report import write_exploration

    cohort = read_cohort(data, on_problem="skip", **_reading(choices))
    page = write_exploration(cohort, out)
    counts = summarise_cohort(cohort)
    if as_json:
        _print_json({"page": str(page), "counts": counts.to_dict("records")})
    else:
        _print_table(counts, title=f"{data}: images and patients")
        typer.echo(f"Page: {page}")


@app.command()
@_options_of_config()
def train(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="As in check; may be left out with --resume.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/<time>-<task>-... if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="The folder of an unfinished run, to be continued.")] = None,
    preset: Annotated[str | None, typer.Option(help="article: the article's settings, its faults left out.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Train a classifier, judge it on patients that it has not seen, and write a report."""
    console = _listen(quiet=quiet, as_json=as_json)
    _train(data, console, out=out, resume=resume, preset=preset, as_json=as_json, choices=_given(choices))


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS.csv", help="label, p_<class> ..., patient.")],
    positive: Annotated[str | None, typer.Option(help="The class that sensitivity is about; the last of two.")] = None,
    threshold: Annotated[float, typer.Option(help="The positive class is predicted from this probability on.")] = 0.5,
    draws: Annotated[int, typer.Option(help="Bootstrap draws.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    unit: Annotated[str, typer.Option(help="What is counted: patient or image.")] = "patient",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge a table of predictions, of this package or of any other model: every figure with n and 95% interval."""
    from covid_fastai.evidence.metrics import evaluate as judge

    result = judge(predictions, positive=positive, threshold=threshold, draws=draws, seed=seed, unit=unit)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_figures(result, title=str(predictions))


@app.command()
def runs(
    root: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the runs.")] = Path("runs"),
    metric: Annotated[str, typer.Option(help="The figure to rank by.")] = "auc",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the runs, ranked by a figure with its interval."""
    from covid_fastai.evidence.runs import list_runs

    table = list_runs(root, metric=metric)
    if as_json:
        _print_json(table.to_dict("records"))
        return
    shown = table.assign(n=[f"{n} {unit}s" if n else "" for n, unit in zip(table["n"], table["unit"], strict=True)])
    shown["95% interval"] = [f"{a:.3f} to {b:.3f}" if a == a else "" for a, b in table[["low", "high"]].to_numpy()]
    shown[metric] = [f"{value:.3f}" if value == value else "" for value in table["value"]]
    _print_table(shown[["run", "task", "arch", "started", "status", metric, "95% interval", "n"]], title=str(root))
    typer.echo(RESEARCH_USE)


@app.command()
def download(
    out: Annotated[Path | None, typer.Option(help="A new or empty folder; kagglehub's cache if not given.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fetch CoronaHack from Kaggle (about 1.2 GB), after showing its licence and terms."""
    _listen(quiet=False, as_json=as_json)
    from covid_fastai.data.download import download_coronahack

    folder = download_coronahack(out)
    if as_json:
        _print_json({"folder": str(folder)})
    else:
        typer.echo(folder)


@app.command("new-notebook")
def new_notebook(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to copy them to, made if needed.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Copy the walk-throughs (Jupyter notebooks) into a folder, to run and change them there."""
    from covid_fastai.app.notebooks import copy_notebooks

    copies = copy_notebooks(target)
    if as_json:
        _print_json({"notebooks": [str(path) for path in copies]})
    else:
        typer.echo("\n".join(str(path) for path in copies))


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what this machine offers: versions, device, extras, weights, room. Exit status 4 if something is missing."""
    import pandas as pd

    from covid_fastai.app.doctor import examine

    findings = pd.DataFrame(examine())
    if as_json:
        _print_json(findings.to_dict("records"))
    else:
        _print_table(findings, title="covid-fastai doctor")
    raise typer.Exit(EnvironmentProblem.exit_code if (findings["state"] == "missing").any() else 0)


# what the commands share


def _train(
    data: Path | None,
    console: Any,
    *,
    out: Path | None,
    as_json: bool,
    choices: dict[str, Any],
    resume: Path | None = None,
    preset: str | None = None,
) -> None:
    """Train, and print one table and the path of the report."""
    from covid_fastai.config import TrainConfig

    if resume is None:
        TrainConfig.build(preset=preset, **choices)  # wrong options answer before torch is imported
    from covid_fastai.app.progress import TerminalProgress
    from covid_fastai.evidence.runs import read_run
    from covid_fastai.training import train_classifier

    bar = TerminalProgress(console) if console is not None and console.is_terminal else None
    try:
        learn = train_classifier(data, out=out, resume=resume, preset=preset, callbacks=[bar] if bar else [], **choices)
    finally:
        if bar:
            bar.close()
    run = read_run(learn.path)
    if as_json:
        figures = {split: result.to_dict() for split, result in run.evaluations.items()}
        _print_json({"run": str(run.path), "report": str(run.report), "python": run.config["python"], **figures})
        return
    for split, result in run.evaluations.items():
        _print_figures(result, title={"valid": "Held-out patients", "test": "Official test set"}[split])
    typer.echo(f"The same in Python: {run.config['python']}")
    typer.echo(f"Report: {run.report}")


def _reading(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the options of reading, checked as those of a training are."""
    from covid_fastai.config import TrainConfig

    config = TrainConfig.build(**_given(choices))
    return {name: getattr(config, name) for name in READING}


def _listen(*, quiet: bool, as_json: bool) -> Any:
    """Show the package's notes on standard error and return the terminal there, None where nothing may move on it."""
    import warnings

    from rich.console import Console
    from rich.logging import RichHandler

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")  # not the user's to mend
    console = Console(stderr=True)
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False, highlighter=None)
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet or as_json else logging.INFO)
    return None if quiet or as_json else console


def _print_figures(result: Evaluation, *, title: str) -> None:
    _print_table(result.summary(), title=title)
    lost = f" {result.n_failed} images have no prediction and are not counted." if result.n_failed else ""
    unknown = "" if result.patients_known else " No patients are named: each row counts as one."
    typer.echo(f"{result.n_images} images.{lost}{unknown} {RESEARCH_USE}")


def _print_problems(problems: list[dict[str, Any]], *, most: int = 50) -> None:
    order = {"error": 0, "warning": 1, "note": 2}
    for row in sorted(problems, key=lambda row: order[row["severity"]])[:most]:
        line = "" if row["row"] is None else f"row {row['row']}, "
        typer.echo(f"{row['severity']}: {line}{row['path']}: {row['reason']}. {row['remedy']}")
    if len(problems) > most:
        typer.echo(f"... and {len(problems) - most} more")


def _print_table(table: pd.DataFrame, *, title: str) -> None:
    """Print a table: ruled on a terminal, plain text otherwise."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        typer.echo(f"{title}\n{table.to_string(index=False)}")
        return
    ruled = Table(title=title, title_justify="left")
    for name in table.columns:
        ruled.add_column(str(name), overflow="fold")
    for row in table.itertuples(index=False):
        ruled.add_row(*(str(value).replace("[", r"\[") for value in row))
    console.print(ruled)


def _print_json(value: Any) -> None:
    from covid_fastai.files import to_plain

    typer.echo(json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
