"""The commands `evaluate`, `compare`, `validate` and `runs`: evaluate predictions and compare models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from covid_fastai.app.cli.completion import complete_runs
from covid_fastai.app.cli.options import (
    READING_ELSEWHERE,
    READING_PREDICTIONS,
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
from covid_fastai.app.cli.output import echo, print_evaluation, print_json, print_table, set_up_logging
from covid_fastai.errors import UsageError
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Fraction, NResamples, OpenFraction, Probability, Seed, Unit
from covid_fastai.progress import LIVE, LOADING

__all__ = ["compare", "evaluate", "runs", "validate"]

# Heavy modules (pandas, matplotlib) are imported inside the commands, so that help and errors in arguments appear at
# once.


ScoreColumn = Annotated[
    str | None,
    typer.Option(help="Column with the probability of the positive class, for tables with one score."),
]


@options_of_config(*READING_PREDICTIONS)
def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS", help="Table with the columns label, p_<class> for each class, patient; or a run."
        ),
    ],
    positive: Annotated[
        str | None, typer.Option(help="The positive class; the second of two classes if not given.")
    ] = None,
    threshold: Annotated[
        float, option(Probability, help="Predict the positive class if its probability is at least this.")
    ] = 0.5,
    n_resamples: Annotated[int, option(NResamples, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, option(Seed, help="Seed of the bootstrap.")] = 0,
    unit: Annotated[Unit, option(Unit, help="Unit of analysis.")] = "patient",
    score_column: ScoreColumn = None,
    split: Annotated[str | None, typer.Option(help="The split to evaluate, if the table has several.")] = None,
    sensitivity: Annotated[
        float | None,
        option(Fraction, help="Choose a threshold with this sensitivity, for each fold on the other folds if any."),
    ] = None,
    prevalence: Annotated[
        list[float] | None,
        option(OpenFraction, help="Report predictive values at this prevalence; repeatable."),
    ] = None,
    report: Annotated[
        Path | None, file_option(help="Also write a page with metrics, shortcuts and largest errors.")
    ] = None,
    pseudonymise: Pseudonymise = False,
    as_json: AsJson = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Evaluate the predictions of any model; each metric has its n and 95% interval."""
    if pseudonymise and report is None:
        raise UsageError("--pseudonymise applies to the page, and there is none.", hint="Give --report page.html, too.")
    set_up_logging(quiet=False, as_json=as_json)
    from covid_fastai.evaluation.metrics import evaluate as evaluate_predictions

    options = {"positive": positive, "threshold": threshold, "n_resamples": n_resamples, "seed": seed, "unit": unit}
    reading = {"score_column": score_column, **given_options(choices)}
    result = evaluate_predictions(predictions, split=split, **options, **reading)
    further_results, tables = {}, []
    point = None
    if sensitivity is not None:
        from covid_fastai.evaluation.thresholds import thresholds_by_fold

        options = {"sensitivity": sensitivity, "positive": positive, "same_patients": True}
        point = thresholds_by_fold(result.predictions, **options)
        further_results["operating_point"] = point.to_dict()
        tables.append((point.summary(), point.describe()))
    if prevalence:
        from covid_fastai.evaluation.decision_curve import predictive_values
        from covid_fastai.evaluation.metrics import summarise_metrics

        values = predictive_values(point or result, prevalences=prevalence, positive=positive)
        rows = further_results["predictive_values"] = values.to_dict("records")
        names = [f"{row['metric'].upper()} at a prevalence of {row['prevalence']:g}" for row in rows]
        shown = summarise_metrics(values.assign(**{"metric": names, "class": "", "unit": "patient"}))
        tables.append((shown, "Predictive values" + (" at that threshold" if point else "")))
    if report is not None:
        from covid_fastai.reporting.report import folder_of_images, write_evaluation

        root = choices.get("image_root") or folder_of_images(predictions)
        page = write_evaluation(result, report, image_root=root, pseudonymise=pseudonymise)
        further_results["report"] = str(page)
    if as_json:
        print_json({**result.to_dict(), **further_results})
        return
    print_evaluation(result, title=str(predictions))
    for table, title in tables:
        print_table(table, title=f"\n{title}")
    if report is not None:
        echo(f"Report: {report}")


@options_of_config(*READING_PREDICTIONS)
def compare(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="A B...", help="Tables of predictions, or folders of runs; A is the reference."),
    ],
    name: Annotated[
        list[str] | None, typer.Option(help="The name of a model; give it once per model, in their order.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="The positive class; the second of two classes if not given.")
    ] = None,
    threshold: Annotated[
        list[float] | None,
        option(
            Probability,
            help="Predict the positive class if its probability is at least this; give it once, or once per model.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split whose rows are compared, such as test, if tables have several.")
    ] = None,
    n_resamples: Annotated[int, option(NResamples, help="Bootstrap resamples.")] = 2000,
    seed: Annotated[int, option(Seed, help="Seed of the bootstrap.")] = 0,
    score_column: ScoreColumn = None,
    out: Annotated[Path | None, file_option(help="Where to write the differences, as CSV.")] = None,
    cases: Annotated[
        Path | None, file_option(help="Where to write the patients on whom the models disagree, as CSV.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Compare models with the first one on the same patients; each difference has its 95% interval."""
    set_up_logging(quiet=False, as_json=as_json)
    from covid_fastai.evaluation.comparison import compare as compare_models
    from covid_fastai.files import write_csv

    thresholds = threshold or [0.5]
    options = {"names": name, "positive": positive, "threshold": thresholds[0] if len(thresholds) == 1 else thresholds}
    reading = {"score_column": score_column, **given_options(choices)}
    result = compare_models(*models, **options, split=split, n_resamples=n_resamples, seed=seed, **reading)
    for path, table in ((out, result.table), (cases, result.cases)):
        if path is not None:
            write_csv(path, table)
    if as_json:
        print_json(result.to_dict())
        return
    print_table(result.summary(), title=f"Compared with {result.names[0]}")
    echo("\n".join([*result.sentences(), RESEARCH_USE]))


@options_of_config(*READING_ELSEWHERE)
def validate(
    model: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run that train wrote.", autocompletion=complete_runs)
    ],
    data: Data,
    source: Annotated[str | None, typer.Option(help="The hospital that all images come from.")] = None,
    exported: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Evaluate this export of the run's model, with its own threshold."),
    ] = None,
    out: Annotated[Path | None, file_option(help="Where to write the predictions, as CSV.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Evaluate the model of a run on images from elsewhere, after excluding images that it was trained on."""
    set_up_logging(quiet=quiet, as_json=as_json)
    from covid_fastai.audit.runs import read_run
    from covid_fastai.data.layouts import find_data, find_image_root
    from covid_fastai.files import write_csv

    reading = reading_options(choices, READING_ELSEWHERE)
    read_run(model)  # these are refused before torch is imported, which takes seconds
    find_data(data)
    find_image_root(reading["image_root"])
    LIVE.info(LOADING)
    from covid_fastai.training.external import validate as validate_run

    result = validate_run(model, data, source=source, exported=exported, **reading)
    if out is not None:
        write_csv(out, result.predictions)
    if as_json:
        print_json(result.to_dict())
        return
    print_table(result.summary(), title=f"{model} on {data}")
    echo("\n".join(result.notes()))
    run = read_run(model)
    if run.verdict is not None:
        echo(f"{run.plain_verdict}\nVerdict: {run.verdict.sentence}")
    if run.folder.report.is_file():
        echo(f"Report: {run.report}")


def runs(
    root: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds the runs.")] = Path("runs"),
    metric: Annotated[str, typer.Option(help="The metric to rank by.")] = "auc",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the runs of a folder, ranked by a metric; each value has its 95% interval."""
    set_up_logging(quiet=False, as_json=as_json)
    from covid_fastai.audit.runs import list_runs, warn_of_selection
    from covid_fastai.evaluation.formatting import MISSING, format_interval, format_metric

    table = list_runs(root, metric=metric)
    if as_json:
        print_json(table.to_dict("records"))
        return
    if table.empty:
        echo(f"There is no run in {root}. A training writes one: covid-fastai train DATA, or covid-fastai demo.")
        return
    shown = table.assign(
        n=[f"{n} {unit}s" if n else MISSING for n, unit in zip(table["n"], table["unit"], strict=True)]
    )
    shown["95% interval"] = [format_interval(*bounds) for bounds in table[["low", "high"]].to_numpy()]
    shown[metric] = [format_metric(value) for value in table["value"]]
    shown["verdict"] = table["verdict"].replace("", "not audited")
    print_table(
        shown[["run", "task", "arch", "started", "status", "verdict", metric, "95% interval", "n"]], title=str(root)
    )
    echo(f"{warn_of_selection(table)} {RESEARCH_USE}".strip())
