"""The command line: every command is a thin call of a public function, with the same options under the same names."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from covid_fastai.app.cli import audit, cache, evaluate, predict, serve
from covid_fastai.app.cli.options import READING, AsJson, Data, Debug, Quiet, given, option, options_of_config, reading
from covid_fastai.app.cli.output import (
    count,
    listen,
    print_figures,
    print_json,
    print_problems,
    print_table,
)
from covid_fastai.errors import CovidFastaiError, DataError, ResourceError, UnavailableError
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Folds, NJobs, Seed, TopK

__all__ = ["app", "main"]

# Heavy modules (torch, fastai, pandas) are imported inside the commands, so that help and bad arguments answer at once.

logger = logging.getLogger("covid_fastai")

# 120 patients are held out. The opacities are well seen, so that six epochs from random weights do: about 35 s on two
# CPU cores, the install's imports and the report 15 s more.
DEMO_DATA = {"patients": {"COVID-19": 200, "Normal": 236}, "image_size": 64, "severity": 1.5}
DEMO = {"task": "covid", "weights": None, "image_size": 64, "batch_size": 16, "valid_pct": 0.3, "augmentation": "none"}
DEMO |= {"frozen_epochs": 0, "unfrozen_epochs": 6, "learning_rate": 1e-2}

app = typer.Typer(
    name="covid-fastai",
    help=f"From a folder of chest radiographs to a trained, honestly judged classifier. {RESEARCH_USE}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and end the process with its exit status.

    0 done, 1 a bug or a training that diverged, 2 wrong usage, 3 faulty data, 4 the machine (no network, no room, no
    permission), 130 interrupted, 143 terminated: a training keeps its last whole epoch in both.
    """
    debug = "--debug" in sys.argv
    terminated = _end_as_if_interrupted()
    status = 0
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
    except SystemExit:
        if terminated:
            sys.exit(128 + signal.SIGTERM)
        raise
    sys.exit(status)


def _end_as_if_interrupted() -> list[int]:
    """Let SIGTERM end a command as Ctrl-C does, in order; what it returns is filled when that happens."""
    owner, terminated = os.getpid(), []

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a process that opens images, which has inherited this
            os._exit(128 + number)
        terminated.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)  # guard: sigterm
    return terminated


def _say_error(error: CovidFastaiError, *, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error.__cause__ or error)
    lines = [f"Error: {error.message}", error.hint]
    print("\n".join(line for line in lines if line), file=sys.stderr)  # noqa: T201
    if "--json" in sys.argv:
        print_json({"error": error.message, "hint": error.hint, "details": error.details, "exit_code": status})
    return status


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"covid_fastai {installed('covid_fastai')}")
        raise typer.Exit


# the commands of data and training; those that judge stand in evaluate.py


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/<time>-... if not given.")] = None,
    seed: Annotated[int, option(Seed, help="Seed of the drawing, the split and the training.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw synthetic chest radiographs, train on them and write a report: offline, on a CPU, in about a minute."""
    console = listen(quiet=quiet, as_json=as_json)
    from covid_fastai.data.phantom import write_phantom

    drawn = write_phantom(Path("runs") / f"phantoms-{seed}", seed=seed, **DEMO_DATA)
    logger.info("They are drawings: what follows shows how the package works, and nothing about lungs.")
    _train(drawn, console, out=out, as_json=as_json, choices={**DEMO, "seed": seed})


@app.command()
@options_of_config(*READING)
def check(
    data: Data,
    out: Annotated[Path, typer.Option(help="Where to list the problems; written only if there are some.")] = Path(
        "problems.csv"
    ),
    sample: Annotated[
        int | None, option(TopK, help="Open a random sample of so many images; all if not given.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Check every row and open every image; list all faults at once, with remedies. Exit status 3 if there are any."""
    listen(quiet=True, as_json=as_json)
    import pandas as pd

    from covid_fastai.data.metadata import read_cohort, summarise_cohort
    from covid_fastai.files import write_csv

    counts = pd.DataFrame()
    try:
        images = True if sample is None else sample
        cohort = read_cohort(data, on_problem="skip", check_images=images, **reading(choices))
        problems, counts = cohort.facts.problems, summarise_cohort(cohort)
    except DataError as error:
        if not error.details:
            raise
        problems = error.details  # not one row can be used
    faults = [row for row in problems if row["severity"] == "error"]
    table = pd.DataFrame(problems, columns=["row", "path", "kind", "severity", "reason", "remedy"])
    if problems:
        write_csv(out, table)
    if as_json:
        print_json({"faults": len(faults), "problems": problems, "counts": counts.to_dict("records")})
    else:
        if not counts.empty:
            print_table(counts, title=f"{data}: images and patients")
        print_problems(problems)
        listed = f" All {len(problems)} findings are in {out}." if problems else ""
        typer.echo(f"{count(len(faults), 'fault')}, {count(len(problems) - len(faults), 'remark')}.{listed}")
    raise typer.Exit(DataError.exit_code if faults else 0)


@app.command()
@options_of_config(*READING)
def explore(
    data: Data,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("exploration.html"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Write who is in the data and what the images look like as one page (the article's steps 1 and 2)."""
    listen(quiet=quiet, as_json=as_json)
    from covid_fastai.data.metadata import read_cohort, summarise_cohort
    from covid_fastai.reporting.data_pages import write_exploration

    cohort = read_cohort(data, on_problem="skip", **reading(choices))
    page = write_exploration(cohort, out)
    counts = summarise_cohort(cohort)
    if as_json:
        print_json({"page": str(page), "counts": counts.to_dict("records")})
    else:
        print_table(counts, title=f"{data}: images and patients")
        typer.echo(f"Page: {page}")


@app.command()
@options_of_config()
def train(
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="As in check; may be left out with --resume.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/<time>-<task>-... if not given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="The folder of an unfinished run, to be continued.")] = None,
    preset: Annotated[str | None, typer.Option(help="article: the article's settings, its faults left out.")] = None,
    folds: Annotated[int | None, option(Folds, help="Cross-validate by patient in so many folds.")] = None,
    n_jobs: Annotated[int, option(NJobs, help="Folds trained at the same time, on Ray.")] = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Train a classifier, judge it on patients that it has not seen, and write a report."""
    console = listen(quiet=quiet, as_json=as_json)
    folding = {"folds": folds, "n_jobs": n_jobs} if folds is not None else {}
    _train(
        data, console, out=out, resume=resume, preset=preset, as_json=as_json, choices=given(choices), folding=folding
    )


@app.command()
def download(
    out: Annotated[Path | None, typer.Option(help="A new or empty folder; kagglehub's cache if not given.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fetch CoronaHack from Kaggle (about 1.2 GB), after showing its licence and terms."""
    listen(quiet=False, as_json=as_json)
    from covid_fastai.data.download import download_coronahack

    folder = download_coronahack(out)
    if as_json:
        print_json({"folder": str(folder)})
    else:
        typer.echo(folder)


@app.command("new-notebook")
def new_notebook(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to copy them to, made if needed.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Copy the walk-throughs (Jupyter notebooks) into a folder, to run and change them there."""
    from covid_fastai.app.cli.notebooks import copy_notebooks

    copies = copy_notebooks(target)
    if as_json:
        print_json({"notebooks": [str(path) for path in copies]})
    else:
        typer.echo("\n".join(str(path) for path in copies))


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what this machine offers: versions, device, extras, weights, room. Exit status 4 if something is missing."""
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
    console: Any,
    *,
    out: Path | None,
    as_json: bool,
    choices: dict[str, Any],
    resume: Path | None = None,
    preset: str | None = None,
    folding: dict[str, Any] | None = None,
) -> None:
    """Train, and print one table and the path of the report."""
    from covid_fastai.config import TrainConfig

    if resume is None:
        TrainConfig.build(preset=preset, **choices)  # wrong options answer before torch is imported
    from covid_fastai.app.cli.progress import TerminalProgress
    from covid_fastai.audit.audit import read_audit
    from covid_fastai.evaluation.runs import read_run
    from covid_fastai.model.distributed import is_main_process
    from covid_fastai.training.cross_validate import cross_validate
    from covid_fastai.training.train import train_classifier

    bar = TerminalProgress(console) if console is not None and console.is_terminal else None
    try:
        options = {"out": out, "resume": resume, "preset": preset, **choices}
        if folding:
            folder = cross_validate(data, **folding, **options).path
        else:
            folder = train_classifier(data, callbacks=[bar] if bar else [], **options).path
    finally:
        if bar:
            bar.close()
    if not is_main_process():  # one of several processes of this training, of which the first one says all
        return
    run, audit = read_run(folder), read_audit(folder)
    if as_json:
        figures = {split: result.to_dict() for split, result in run.evaluations.items()}
        print_json({"run": str(run.path), "report": str(run.report), "python": run.config["python"], **figures})
        return
    for split, result in run.evaluations.items():
        print_figures(result, title={"valid": "Held-out patients", "test": "Official test set"}[split])
    if audit is not None:
        typer.echo(f"Verdict: {audit.verdict.sentence}")
    typer.echo(f"The same in Python: {run.config['python']}")
    typer.echo(f"Report: {run.report}")


for command in (audit.audit, evaluate.evaluate, evaluate.compare, evaluate.validate, evaluate.runs):
    app.command()(command)
for command in (predict.predict, predict.export, predict.batch, serve.serve, cache.cache):
    app.command()(command)
