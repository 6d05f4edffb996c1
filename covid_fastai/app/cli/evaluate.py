"""The commands that judge: tables of predictions, runs, models beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covid_fastai.app.cli.options import AsJson, Data, Debug, Quiet, option
from covid_fastai.app.cli.output import listen, print_figures, print_json, print_table
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Fraction, NResamples, OpenFraction, Probability, Seed, Unit

__all__ = ["compare", "evaluate", "runs", "validate"]

# Heavy modules (pandas, matplotlib) are imported inside the commands, so that help and bad arguments answer at once.


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS.csv", help="label, p_<class> ..., patient.")],
    positive: Annotated[str | None, typer.Option(help="The class that sensitivity is about; the last of two.")] = None,
    threshold: Annotated[
        float, option(Probability, help="The positive class is predicted from this probability on.")
    ] = 0.5,
    n_resamples: Annotated[int, option(NResamples, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, option(Seed, help="Seed of the bootstrap.")] = 0,
    unit: Annotated[Unit, option(Unit, help="What is counted.")] = "patient",
    sensitivity: Annotated[
        float | None,
        option(Fraction, help="Choose a threshold for this sensitivity, on other folds where there are any."),
    ] = None,
    prevalence: Annotated[
        list[float] | None,
        option(OpenFraction, help="Predictive values where this fraction has the class; may be repeated."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write a page: figures, shortcuts, worst cases.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge a table of predictions, of this package or of any other model: every figure with n and 95% interval."""
    from covid_fastai.evaluation.metrics import evaluate as judge

    result = judge(predictions, positive=positive, threshold=threshold, n_resamples=n_resamples, seed=seed, unit=unit)
    more, tables = {}, []
    point = None
    if sensitivity is not None:
        from covid_fastai.evaluation.thresholds import thresholds_by_fold

        options = {"sensitivity": sensitivity, "positive": positive, "same_patients": True}
        point = thresholds_by_fold(result.predictions, **options)
        more["operating_point"] = point.to_dict()
        tables.append((point.summary(), point.describe()))
    if prevalence:
        from covid_fastai.evaluation.decision_curve import predictive_values
        from covid_fastai.evaluation.metrics import summarise_metrics

        values = predictive_values(point or result, prevalences=prevalence, positive=positive)
        more["predictive_values"] = values.to_dict("records")
        said = [
            f"{row['metric'].upper()} at a prevalence of {row['prevalence']:g}" for row in more["predictive_values"]
        ]
        shown = summarise_metrics(values.assign(**{"metric": said, "class": "", "unit": "patient"}))
        tables.append((shown, "What an answer is worth" + (", from that threshold on" if point else "")))
    if report is not None:
        from covid_fastai.reporting.report import write_evaluation

        more["report"] = str(write_evaluation(result, report))
    if as_json:
        print_json({**result.to_dict(), **more})
        return
    print_figures(result, title=str(predictions))
    for table, title in tables:
        print_table(table, title=f"\n{title}")
    if report is not None:
        typer.echo(f"Report: {report}")


def compare(
    models: Annotated[list[Path], typer.Argument(metavar="A B...", help="CSVs of predictions, or runs' folders.")],
    name: Annotated[list[str] | None, typer.Option(help="A name each, in their order; once a model.")] = None,
    positive: Annotated[str | None, typer.Option(help="The class that sensitivity is about; the last of two.")] = None,
    threshold: Annotated[
        list[float] | None,
        option(Probability, help="The positive class is predicted from it on; once, or once a model."),
    ] = None,
    n_resamples: Annotated[int, option(NResamples, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, option(Seed, help="Seed of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write the differences, as CSV.")] = None,
    cases: Annotated[Path | None, typer.Option(help="Where to write the patients they part on, as CSV.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare models on the same patients: each with the first, every difference with its interval."""
    from covid_fastai.evaluation.comparison import compare as judge
    from covid_fastai.files import write_csv

    given = threshold or [0.5]
    options = {"names": name, "positive": positive, "threshold": given[0] if len(given) == 1 else given}
    result = judge(*models, **options, n_resamples=n_resamples, seed=seed)
    for path, table in ((out, result.table), (cases, result.cases)):
        if path is not None:
            write_csv(path, table)
    if as_json:
        print_json(result.to_dict())
        return
    print_table(result.summary(), title=f"Against {result.names[0]}")
    typer.echo("\n".join([*result.sentences(), RESEARCH_USE]))


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
    source: Annotated[str | None, typer.Option(help="The hospital that all images come from.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the predictions, as CSV.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge a run's model on another hospital's images; what it was trained on is taken out first."""
    listen(quiet=quiet, as_json=as_json)
    from covid_fastai.errors import UsageError
    from covid_fastai.files import write_csv
    from covid_fastai.training.external import validate as judge

    wrong = [text for text in label or [] if "=" not in text]
    if wrong:
        raise UsageError(f"--label {wrong[0]} has no =.", hint="Write --label positive=COVID-19.")
    labels = dict(text.split("=", 1) for text in label or [])
    result = judge(
        model,
        data,
        labels=labels,
        patient_column=patient_column,
        source_column=source_column,
        source=source,
        image_root=image_root,
    )
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
    from covid_fastai.evaluation.formatting import MISSING, format_interval, format_metric
    from covid_fastai.evaluation.runs import list_runs

    table = list_runs(root, metric=metric)
    if as_json:
        print_json(table.to_dict("records"))
        return
    shown = table.assign(
        n=[f"{n} {unit}s" if n else MISSING for n, unit in zip(table["n"], table["unit"], strict=True)]
    )
    shown["95% interval"] = [format_interval(*bounds) for bounds in table[["low", "high"]].to_numpy()]
    shown[metric] = [format_metric(value) for value in table["value"]]
    print_table(shown[["run", "task", "arch", "started", "status", metric, "95% interval", "n"]], title=str(root))
    typer.echo(RESEARCH_USE)
