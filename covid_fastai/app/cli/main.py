"""The command line: each command calls a public function and has the same options under the same names."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from covid_fastai.app.cli import audit, cache, evaluate, predict, recipes, serve
from covid_fastai.app.cli.completion import COMPLETIONS, complete_runs
from covid_fastai.app.cli.options import (
    READING,
    AsJson,
    Data,
    Debug,
    Pseudonymise,
    Quiet,
    file_option,
    given_options,
    option,
    options_of_config,
    reading_options,
)
from covid_fastai.app.cli.output import (
    count,
    degrade_streams,
    echo,
    print_json,
    print_problems,
    print_table,
    set_up_logging,
    stop_activity,
)
from covid_fastai.app.cli.wording import as_options, know_commands, remedies_as_options, translate_option
from covid_fastai.data.problems import visible
from covid_fastai.errors import CovidFastaiError, DataError, ResourceError, UnavailableError, UsageError
from covid_fastai.imports import importing
from covid_fastai.notices import DRAWINGS, RESEARCH_USE
from covid_fastai.options import Folds, NJobs, Repeats, Seed, TopK
from covid_fastai.progress import LIVE, LOADING

if TYPE_CHECKING:
    from covid_fastai.app.cli.activity import Activity

__all__ = ["app", "main"]

# Heavy modules (torch, fastai, pandas) are imported inside the commands, so that help and errors in arguments appear at
# once.

logger = logging.getLogger("covid_fastai")

# 120 patients are held out. The opacities are clearly visible, so that six epochs from random weights are enough: about
# 35 s on two CPU cores, and 15 s for the imports and the report.
DEMO_DATA = {"patients": {"COVID-19": 200, "Normal": 236}, "image_size": 64, "severity": 1.5}
DEMO = {"task": "covid", "weights": None, "image_size": 64, "batch_size": 16, "valid_pct": 0.3, "augmentation": "none"}
DEMO |= {"frozen_epochs": 0, "unfrozen_epochs": 6, "learning_rate": 1e-2}


class _Commands(TyperGroup):
    """The commands. In errors about arguments, control characters are escaped: `explore *` names any file there is."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _visible_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _visible_errors():
            return super().invoke(ctx)


@contextmanager
def _visible_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # an error about arguments, which typer prints; guard: visible_arguments
            error.message = visible(error.message, lines=True)  # type: ignore[attr-defined]
            _name_our_option(error)
        raise


def _name_our_option(error: Any) -> None:
    """Complete the error about an option that does not exist, if it is one of fastai or of the Python function."""
    flag, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if type(error).__name__ != "NoSuchOption" or flag is None or context is None:
        return
    if hint := translate_option(flag, [str(parameter.name) for parameter in context.command.params]):
        error.message, error.possibilities = f"{error.message}. {hint}", None


app = typer.Typer(
    name="covid-fastai",
    cls=_Commands,
    help=f"Train a classifier on a folder of chest radiographs, evaluate it and use it. {RESEARCH_USE}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and end the process with its exit status.

    The status is 0 after success, 1 for a bug or a training that diverged, 2 for wrong usage, 3 for faulty data, 4 for
    a problem of the machine (network, disk space, permissions), 130 after an interrupt and 143 after SIGTERM. In the
    last two cases, a training saves its last complete epoch.
    """
    degrade_streams()
    # Python would look for the modules of the processes that it starts in the current folder, such as that of the data
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # guard: safe_path
    debug = "--debug" in sys.argv
    terminated = _interrupt_on_sigterm()
    status = 0
    try:
        _check_arguments(sys.argv[1:])
        app()  # ends the process itself, with 2 for wrong usage and 130 for an interrupt
    except CovidFastaiError as error:
        status = _print_error(error, status=error.exit_code, debug=debug)
    except MemoryError as error:
        failure = ResourceError("The process ran out of memory.", hint="Choose a smaller batch_size or image_size.")
        failure.__cause__ = error
        status = _print_error(failure, status=failure.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001 - any other exception is a bug, which the user can report
        failure = _missing_package(error)
        if failure is None:
            text = f"Unexpected error: {type(error).__name__}: {error}."
            failure = CovidFastaiError(text, hint="Run again with --debug and report the traceback.")
        failure.__cause__ = error
        status = _print_error(failure, status=failure.exit_code, debug=debug)
    except SystemExit:
        if terminated:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        gc.freeze()  # what is left ends with the process: to search it takes a second after a training
    sys.exit(status)


def _missing_package(error: Exception) -> CovidFastaiError | None:
    """Return the error for a package that a command needs: an installation without torch can only predict."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name in ("", "covid_fastai"):
        return None
    return UnavailableError(
        f"This command needs the package {name}, which is not installed.",
        hint="Complete the installation: pip install covid_fastai. Without it, doctor, predict, batch and export work.",
    )


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what is no option of this program but a file name with control characters, which typer would print."""
    for number, argument in enumerate(arguments):
        is_name = number > 0 and not argument.startswith("-")
        if not is_name and visible(argument, lines=True) != argument:  # guard: hostile_option
            raise UsageError(
                f"{visible(argument)} is not an option.", hint="Write ./ before the name of a file that begins with -."
            )


def _interrupt_on_sigterm() -> list[int]:
    """Make SIGTERM raise KeyboardInterrupt as Ctrl-C does, and return a list that then receives the signal's number."""
    owner, terminated = os.getpid(), []

    def interrupt(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a data loader's worker process, which inherits this handler
            os._exit(128 + number)
        terminated.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # guard: sigterm
    return terminated


def _print_error(error: CovidFastaiError, *, status: int, debug: bool) -> int:
    """Print an error on standard error, with --json also on standard output, and return the status."""
    stop_activity()
    if debug:
        trace = "".join(traceback.format_exception(error.__cause__ or error))
        print(visible(trace, lines=True), file=sys.stderr)  # noqa: T201
    message, hint = as_options(error.message), as_options(error.hint)
    lines = [f"Error: {message}", hint]
    print(visible("\n".join(line for line in lines if line), lines=True), file=sys.stderr)  # noqa: T201
    if "--json" in sys.argv:
        print_json({"error": message, "hint": hint, "details": remedies_as_options(error.details), "exit_code": status})
    return status


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed_version

        echo(f"covid_fastai {installed_version('covid_fastai')}")
        raise typer.Exit


# The commands of data and training. The others have modules of their own.


def demo(
    out: Annotated[Path | None, typer.Option(help="The folder of the run; runs/<time>-... if not given.")] = None,
    seed: Annotated[int, option(Seed, help="Seed of the synthetic images, the split and the training.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train on synthetic chest radiographs and write a report: offline, on a CPU, in about a minute."""
    activity = set_up_logging(quiet=quiet, as_json=as_json)
    from covid_fastai.data.phantom import write_phantom
    from covid_fastai.files import check_new_folder
    from covid_fastai.run_folder import RunFolder

    if out is not None and not RunFolder(out).is_run():  # a training checks a run, which it may resume
        check_new_folder(out)
    folder = write_phantom(Path("runs") / f"phantoms-{seed}", seed=seed, **DEMO_DATA)
    logger.info("The images are synthetic: the results show how the package works, and nothing about real lungs.")
    _train(folder, activity, out=out, as_json=as_json, choices={**DEMO, "seed": seed})
    if not as_json:
        from covid_fastai.model.package_models import package_models

        for name in package_models():
            echo(f"A model of real radiographs to try: covid-fastai serve {name}, or predict {name} IMAGE")


@options_of_config(*READING)
def check(
    data: Data,
    out: Annotated[
        Path | None, file_option(help="The CSV of the problems, if there are any; problems.csv if not given.")
    ] = None,
    sample: Annotated[
        int | None, option(TopK, help="Open a random sample of this size; all images if not given.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Check every row and image, and list all problems with their fixes. The exit status is 3 if there are errors."""
    set_up_logging(quiet=quiet, as_json=as_json)
    import pandas as pd

    from covid_fastai.data.lung_tables import compare_framing, count_lungs
    from covid_fastai.data.metadata import read_cohort, summarise_cohort
    from covid_fastai.data.phantom import are_synthetic
    from covid_fastai.data.problems import SEVERITIES
    from covid_fastai.data.recipes import recognise_recipe
    from covid_fastai.files import write_csv

    known = recognise_recipe(data) if choices.get("recipe") is None else None
    counts, lungs, framing, synthetic = pd.DataFrame(), None, "", False
    try:
        images = True if sample is None else sample
        cohort = read_cohort(data, on_problem="skip", check_images=images, **reading_options(choices))
        problems, counts = cohort.facts.problems, summarise_cohort(cohort)
        synthetic = are_synthetic(cohort["path"])
        if choices.get("check_lungs"):
            lungs, framing = count_lungs(cohort), compare_framing(cohort, cohort.facts.classes)
    except DataError as error:
        if not error.details:
            raise
        problems = error.details  # no row is usable
    problems, out = remedies_as_options(problems), out or Path("problems.csv")
    numbers = {severity: sum(row["severity"] == severity for row in problems) for severity in SEVERITIES}
    table = pd.DataFrame(problems, columns=["row", "path", "kind", "severity", "reason", "remedy"])
    if problems:
        write_csv(out, table)
    if as_json:
        facts = {"faults": numbers["error"], "problems": problems, "counts": counts.to_dict("records")}
        facts["synthetic"] = synthetic
        if lungs is not None:
            facts |= {"lungs": json.loads(lungs.to_json(orient="records")), "framing": framing}
        print_json(facts | {"recipe": known.name if known else choices.get("recipe")})
    else:
        if synthetic:
            echo(DRAWINGS)
        if known:
            what = f"They are laid out as the {known.title}" if synthetic else f"This is {known.title}"
            echo(f"{what}. Read it with: {known.command(data, verb='check')}")
        if not counts.empty:
            print_table(counts, title=f"{data}: images and patients")
        if lungs is not None:
            print_table(lungs, title=f"{data}: lungs by class and source; means in % of the image")
            echo(framing)
        print_problems(problems)
        listing = f" {out} lists all of them." if problems else ""
        echo(f"{', '.join(count(n, severity) for severity, n in numbers.items())}.{listing}")
    raise typer.Exit(DataError.exit_code if numbers["error"] else 0)


@options_of_config(*READING)
def explore(
    data: Data,
    out: Annotated[Path, file_option(help="The page to write.")] = Path("exploration.html"),
    pseudonymise: Pseudonymise = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Write a page that describes the patients and images (steps 1 and 2 of the article)."""
    set_up_logging(quiet=quiet, as_json=as_json)
    from covid_fastai.data.metadata import read_cohort, summarise_cohort
    from covid_fastai.data.phantom import are_synthetic
    from covid_fastai.reporting.data_pages import write_exploration

    cohort = read_cohort(data, on_problem="skip", **reading_options(choices))
    page = write_exploration(cohort, out, pseudonymise=pseudonymise)
    counts, synthetic = summarise_cohort(cohort), are_synthetic(cohort["path"])
    if as_json:
        print_json({"page": str(page), "counts": counts.to_dict("records"), "synthetic": synthetic})
    else:
        if synthetic:
            echo(DRAWINGS)
        print_table(counts, title=f"{data}: images and patients")
        echo(f"Page: {page}")


@options_of_config()
def train(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help="As in check; optional with --resume.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the run; runs/<time>-<task>-... if not given.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="The folder of an unfinished run to continue.", autocompletion=complete_runs)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="article: the settings of the article, without its errors.", autocompletion=COMPLETIONS["preset"]
        ),
    ] = None,
    folds: Annotated[int | None, option(Folds, help="Cross-validate with this number of folds, by patient.")] = None,
    repeats: Annotated[int, option(Repeats, help="How often to cross-validate, with other folds and seeds.")] = 1,
    n_jobs: Annotated[int, option(NJobs, help="Number of folds to train in parallel, on Ray.")] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Train a classifier, evaluate it on held-out patients and write a report."""
    activity = set_up_logging(quiet=quiet, as_json=as_json)
    if folds is None and (repeats, n_jobs) != (1, 1):
        raise UsageError("--repeats and --n-jobs are options of a cross-validation.", hint="Give --folds 5, too.")
    _train(
        data,
        activity,
        out=out,
        resume=resume,
        preset=preset,
        as_json=as_json,
        choices=given_options(choices),
        cross_validation={"folds": folds, "repeats": repeats, "n_jobs": n_jobs} if folds is not None else {},
    )


def download(
    out: Annotated[
        Path | None, typer.Option(help="A new or empty folder; the cache of kagglehub if not given.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the licence and terms of CoronaHack, and download it from Kaggle (about 1.2 GB)."""
    set_up_logging(quiet=False, as_json=as_json)
    stop_activity()  # kagglehub shows its progress
    from covid_fastai.data.download import download_coronahack

    folder = download_coronahack(out)
    if as_json:
        print_json({"folder": str(folder)})
    else:
        echo(folder)


def new_notebook(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to copy them to; created if needed.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Copy the tutorial notebooks into a folder, to run and change them there."""
    from covid_fastai.app.cli.notebooks import copy_notebooks

    copies = copy_notebooks(target)
    if as_json:
        print_json({"notebooks": [str(path) for path in copies]})
    else:
        echo("\n".join(str(path) for path in copies))


def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Check this machine: versions, device, extras, weights and disk space. The exit status is 4 if any is missing."""
    set_up_logging(quiet=False, as_json=as_json)
    import pandas as pd

    from covid_fastai.app.cli.doctor import examine

    findings = pd.DataFrame(examine())
    if as_json:
        print_json(findings.to_dict("records"))
    else:
        print_table(findings, title="covid-fastai doctor")
    raise typer.Exit(UnavailableError.exit_code if (findings["state"] == "missing").any() else 0)


def _train(
    data: Path | None,
    activity: Activity | None,
    *,
    out: Path | None,
    as_json: bool,
    choices: dict[str, Any],
    resume: Path | None = None,
    preset: str | None = None,
    cross_validation: dict[str, Any] | None = None,
) -> None:
    """Train, and print the metrics and the path of the report."""
    with importing():
        from covid_fastai.config import TrainConfig
        from covid_fastai.training.run_start import check_folds, check_out, check_start, read_unfinished

    cross_validation = cross_validation or {}
    folds, repeats = cross_validation.get("folds"), cross_validation.get("repeats", 1)
    # what can be refused without torch, whose import takes seconds
    check_folds(folds, choices, n_jobs=cross_validation.get("n_jobs", 1))
    if resume is None:
        check_start(data, TrainConfig.build(preset=preset, **choices))
        if out is not None:
            check_out(out)
    else:
        others = {"preset": preset, "out": out, "options": choices}
        read_unfinished(resume, data, folds=folds, repeats=repeats, others=others)
    LIVE.info(LOADING)
    with importing(keep=True):
        from covid_fastai.app.cli.progress import TerminalProgress
        from covid_fastai.audit.runs import read_run
        from covid_fastai.model.distributed import is_main_process
        from covid_fastai.reporting.closing import closing_parts
        from covid_fastai.training.cross_validate import cross_validate
        from covid_fastai.training.train import train_classifier

    bar = TerminalProgress(activity) if activity is not None else None
    try:
        # quiet: the closing block is printed below; the log is set up already
        options = {"out": out, "resume": resume, "preset": preset, "quiet": True, **choices}
        if cross_validation:
            folder = cross_validate(data, **cross_validation, **options).path
        else:
            folder = train_classifier(data, callbacks=[bar] if bar else [], **options).path
    finally:
        if bar:
            bar.close()
    if not is_main_process():  # in distributed training, only the main process prints
        return
    run = read_run(folder)
    if as_json:
        evaluations = {split: result.to_dict() for split, result in run.evaluations.items()}
        verdict = run.verdict.to_dict() if run.verdict else None
        said = {"headline": run.plain_verdict.headline, "synthetic": run.is_synthetic, "verdict": verdict}
        facts = {"run": str(run.path), "report": str(run.report), "python": run.config["python"]}
        print_json({**facts, **said, **evaluations})
        return
    for part in closing_parts(run, python=False):
        if isinstance(part, str):
            echo(part)
        else:
            print_table(part[1], title=part[0])
    echo(f"The same in Python: {run.config['python']}")


COMMANDS = {  # by the panel of the help
    "Try": (demo, new_notebook, doctor),
    "Data": (download, recipes.recipes, check, explore, cache.cache),
    "Train and test": (train, audit.audit, evaluate.evaluate, evaluate.compare, evaluate.validate, evaluate.runs),
    "Use a model": (predict.predict, predict.batch, serve.serve, predict.export),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.replace("_", "-"), rich_help_panel=panel)(command)
know_commands(app)
