"""The commands that judge: tables of predictions, runs, models beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covid_fastai.app.options import AsJson, Data, Debug, Quiet
from covid_fastai.app.output import RESEARCH_USE, listen, print_figures, print_json, print_table

__all__ = ["evaluate", "runs", "validate"]

# Heavy modules (pandas, matplotlib) are imported inside the commands, so that help and bad arguments answer at once.


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
        print_json(result.to_dict())
    else:
        print_figures(result, title=str(predictions))


def validate(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, as train wrote it.")],
    data: Data,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="THEIRS=OURS", help="The model's class for their label; nothing after = for none."),
    ] = None,
    image_root: Annotated[str | None, typer.Option(help="Folder that the CSV's image names are relative to.")] = None,
    patient_column: Annotated[str | None, typer.Option(help="CSV column with the patient.")] = None,
    source_column: Annotated[str | None, typer.Option(help="CSV column with the hospital or collection.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the predictions, as CSV.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge a run's model on another hospital's images; what it was trained on is taken out first."""
    listen(quiet=quiet, as_json=as_json)
    from covid_fastai.errors import UsageError
    from covid_fastai.files import write_csv
    from covid_fastai.validation import validate as judge

    wrong = [text for text in label or [] if "=" not in text]
    if wrong:
        raise UsageError(f"--label {wrong[0]} has no =.", hint="Write --label positive=COVID-19.")
    labels = dict(text.split("=", 1) for text in label or [])
    columns = {"patient_column": patient_column, "source_column": source_column, "image_root": image_root}
    result = judge(model, data, labels=labels, **columns)
    if out is not None:
        write_csv(out, result.predictions)
    if as_json:
        print_json(result.to_dict())
        return
    print_table(result.summary(), title=f"{model} on {data}")
    typer.echo("\n".join(result.notes()))


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
        print_json(table.to_dict("records"))
        return
    shown = table.assign(n=[f"{n} {unit}s" if n else "" for n, unit in zip(table["n"], table["unit"], strict=True)])
    shown["95% interval"] = [f"{a:.3f} to {b:.3f}" if a == a else "" for a, b in table[["low", "high"]].to_numpy()]
    shown[metric] = [f"{value:.3f}" if value == value else "" for value in table["value"]]
    print_table(shown[["run", "task", "arch", "started", "status", metric, "95% interval", "n"]], title=str(root))
    typer.echo(RESEARCH_USE)
