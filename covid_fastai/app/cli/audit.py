"""The command `audit`: test a run, or data, for shortcuts and duplicate images."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from covid_fastai.app.cli.completion import complete_runs
from covid_fastai.app.cli.options import (
    READING,
    AsJson,
    Debug,
    Quiet,
    file_option,
    given_options,
    options_of_config,
    reading_options,
)
from covid_fastai.app.cli.output import echo, print_json, print_table, set_up_logging

__all__ = ["audit"]

# Heavy modules (pandas, torch) are imported inside the command, so that help and errors in arguments appear at once.

logger = logging.getLogger("covid_fastai")


@options_of_config(*READING)
def audit(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="The folder of a run, or data as in check.", autocompletion=complete_runs),
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="OTHER", help="Another folder of images to search for duplicates; repeatable."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="For a run: also train again on images without the lungs, and on permuted labels."),
    ] = False,
    moved_to: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="For a run whose images have been moved: the folder that now holds them. Their new paths are written "
            "into the tables of the run.",
        ),
    ] = None,
    out: Annotated[
        Path | None, file_option(help="The page to write if DATA is not a run; audit.html if not given.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Test data or a run for shortcuts and duplicate images; a run also gets a verdict."""
    set_up_logging(quiet=quiet, as_json=as_json)
    from covid_fastai.audit.runs import read_run
    from covid_fastai.errors import UsageError
    from covid_fastai.run_folder import RunFolder

    is_run = RunFolder(data).is_run()
    if full and not is_run:
        raise UsageError(
            f"{data} is not the folder of a run, so there is no model to train again.",
            hint="Train a model first, then audit the folder of its run.",
        )
    if moved_to is not None and not is_run:
        raise UsageError(
            f"{data} is not the folder of a run, so --data does not apply.", hint="Give the data themselves as DATA."
        )
    given = [*given_options(choices), *(["out"] if out is not None else [])]
    if is_run and given:
        listed = ", ".join(f"`{name}`" for name in given)
        raise UsageError(
            f"{data} is the folder of a run, which keeps its own data, options and report.", hint=f"Omit {listed}."
        )
    from covid_fastai.audit.leaks import find_leaks, name_others

    name_others(against or (), name=data.resolve().name)  # refused before the audit, which takes minutes
    find = partial(find_leaks, against=against or (), name=data.resolve().name)
    if is_run:
        from covid_fastai.audit.audit import audit_run
        from covid_fastai.reporting.documents import write_documents
        from covid_fastai.reporting.report import render_report

        if moved_to is not None:
            from covid_fastai.evaluation.moved_images import move_images

            move_images(data, moved_to)
        if full:
            from covid_fastai.training.retrain import retrain

            retrain(data)
        audited = audit_run(data)
        leaks, page = find(read_run(data).cohort), render_report(data)
        write_documents(data)
        conditions = [f"- {each.name}: {each.outcome}. {each.text}" for each in audited.verdict.conditions]
        run = read_run(data)
        result, notes = audited.to_dict() | {"synthetic": run.is_synthetic}, [*audited.notes(), *conditions]
        first = f"{run.plain_verdict}\nVerdict: {audited.verdict.sentence}"
    else:
        from covid_fastai.audit.baselines import find_shortcuts
        from covid_fastai.data.metadata import read_cohort
        from covid_fastai.data.phantom import are_synthetic
        from covid_fastai.notices import DRAWINGS
        from covid_fastai.reporting.data_pages import write_audit

        cohort = read_cohort(data, on_problem="skip", **reading_options(choices))
        audited = find_shortcuts(cohort)
        leaks = find(cohort)
        page = write_audit(cohort, audited, leaks, out or Path("audit.html"))
        synthetic = are_synthetic(cohort["path"])
        result, notes = {"shortcuts": audited.to_dict(), "synthetic": synthetic}, audited.notes()
        first = DRAWINGS if synthetic else ""
    if as_json:
        tables = {name: getattr(leaks, name).to_dict("records") for name in ("crossings", "groups")}
        print_json({**result, "report": str(page), "leaks": {"images": dict(leaks.images), **tables}})
        return
    if first:  # the verdict comes before the numbers, as at the end of a training
        echo(first)
    print_table(audited.summary(), title=f"{data}: performance of baselines that do not use the lungs")
    echo("\n".join([*notes, str(leaks), f"Page: {page}"]))
