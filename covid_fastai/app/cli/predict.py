"""The commands `predict`, `batch` and `export`, which use a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from covid_fastai.app.cli.completion import complete_runs
from covid_fastai.app.cli.options import (
    READING_INPUTS,
    AsJson,
    Debug,
    Model,
    Quiet,
    Revision,
    file_option,
    given_options,
    option,
    options_of_config,
)
from covid_fastai.app.cli.output import count, echo, print_json, print_table, set_up_logging
from covid_fastai.data.problems import visible
from covid_fastai.evaluation.formatting import format_metric
from covid_fastai.imports import importing
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Engine, Fraction, Quantization, Seconds, WorkerCount

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["batch", "export", "predict"]

# Heavy modules (pandas, onnxruntime) are imported inside the commands, so that help appears at once; predict and batch
# need no torch.

AllowProtocol = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A protocol that addresses in a table's rows may have, such as s3; repeatable."),
]


@options_of_config(*READING_INPUTS)
def predict(
    model: Model,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...", help="Images, DICOM files, folders, glob patterns, or tables (CSV, Excel, Parquet)."
        ),
    ],
    out: Annotated[Path | None, file_option("--csv", metavar="OUT", help="Where to write the table, as CSV.")] = None,
    explain: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the images with their class activation maps.")
    ] = None,
    allow_protocol: AllowProtocol = None,
    revision: Revision = None,
    as_json: AsJson = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Predict the class of images with a trained model, without torch.

    A file that cannot be read has a row with the reason. The exit status is 3 if no image has a prediction.
    """
    set_up_logging(quiet=False, as_json=as_json)
    with importing(keep=True):
        from covid_fastai.app.inputs import list_images, openable
        from covid_fastai.files import write_csv
        from covid_fastai.model.hub import find_model
        from covid_fastai.model.predictor import Predictor

    predictor = Predictor(find_model(model, revision=revision))
    paths = list(list_images(files, **given_options(choices | {"allow_protocol": allow_protocol})))
    if explain is None:
        table = predictor.predict([openable(path) for path in paths], names=paths)
    else:
        from covid_fastai.app.overlays import write_explained

        table = write_explained(predictor, paths, explain)
    if out is not None:
        write_csv(out, table)
    if as_json:
        rows = table.to_dict("records")
        said = predictor.findings.model_dump(include={"purpose", "headline", "verdict", "synthetic"})
        print_json({"model": model, **said, "classes": predictor.classes, "rows": rows, "use": RESEARCH_USE})
    else:
        _print_predictions(table, title=model, purpose=predictor.findings.purpose)
        echo(" ".join(predictor.findings.sentences()))
    if not (table["status"] == "ok").any():
        raise typer.Exit(3)


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The folder of a run or a saved model, or user/model on the Hugging Face Hub.",
            autocompletion=complete_runs,
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")],
    sensitivity: Annotated[
        float | None,
        option(Fraction, help="Choose the threshold with this sensitivity on the held-out patients of the run."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit a temperature on the held-out patients of the run.")
    ] = False,
    quantize: Annotated[
        Literal["int8"] | None,
        option(
            Quantization,
            help="Compute in 8-bit integers; refused if the answers on held-out patients of the run change too much.",
        ),
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Verify a trained model and copy it, with its ONNX file and model card, into a new folder."""
    set_up_logging(quiet=False, as_json=as_json)
    from covid_fastai.app.export import export_model
    from covid_fastai.model.bundle_config import CONFIG_FILE, read_config
    from covid_fastai.model.card import CARD_FILE, read_findings

    choices = {"sensitivity": sensitivity, "calibrate": calibrate, "quantize": quantize}
    folder = export_model(run, target, revision=revision, **choices)
    limits = read_findings(folder, read_config(folder / CONFIG_FILE)).limits
    if as_json:
        print_json({"model": str(folder), "files": sorted(path.name for path in folder.iterdir()), "limits": limits})
    else:
        echo(folder)
        echo(f"Its card: {folder / CARD_FILE}. To use it: covid-fastai predict {folder} FILES")
        if quantize is not None:
            echo(limits[-1])  # what it changes


@options_of_config(*READING_INPUTS)
def batch(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUTS...", help="Images, folders, glob patterns, tables, or URLs of fsspec."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The table to write: .csv or .parquet.")],
    workers: Annotated[
        int | None, option(WorkerCount, help="Number of processes; one per processor core if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue an interrupted batch.")] = True,
    engine: Annotated[
        Engine, option(Engine, help="Run on processes of this machine (local) or on a Ray cluster (ray).")
    ] = "local",
    seconds: Annotated[float, option(Seconds, help="Longest time that an image may take.")] = 60,
    allow_protocol: AllowProtocol = None,
    revision: Revision = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Predict any number of images into one table with one row per image.

    An interrupted batch can be continued. The column status shows which images have no prediction; the exit status is
    3 if none has one.
    """
    set_up_logging(quiet=quiet, as_json=as_json)
    from covid_fastai.app.batch.run import predict_batch
    from covid_fastai.model.bundle_config import CONFIG_FILE, read_config
    from covid_fastai.model.card import read_findings
    from covid_fastai.model.hub import find_model

    folder = find_model(model, revision=revision)
    config = read_config(folder / CONFIG_FILE)
    findings = read_findings(folder, config)
    options = {"workers": workers, "resume": resume, "engine": engine, "seconds": seconds}
    options |= {"fingerprint": config.fingerprint}
    options |= given_options({"allow_protocol": allow_protocol})
    counts = predict_batch(folder, inputs, out, **options, **given_options(choices))
    if as_json:
        said = findings.model_dump(include={"purpose", "headline", "verdict", "synthetic"})
        print_json({"table": str(out), **said, **counts})
    else:
        if findings.purpose:
            echo(f"This model is for: {findings.purpose}")
        n_failed = counts["rows"] - counts["ok"]
        failed = f", {n_failed} without a prediction" if n_failed else ""
        echo(f"{out}: {count(counts['rows'], 'row')}{failed}. {RESEARCH_USE}")
        echo(" ".join(findings.sentences()))
    if not counts["ok"]:
        raise typer.Exit(3)


def _print_predictions(table: pd.DataFrame, *, title: str, purpose: str) -> None:
    printed = table[["path"]].copy()
    for name in (str(name) for name in table if str(name).startswith("p_")):
        # a probability would give away the class that is withheld
        printed[name] = [format_metric(p) for p in table[name].mask(table["withheld"])]
    classes = table["prediction"].where(~table["withheld"], "withheld")
    print_table(printed.assign(prediction=classes, status=table["status"]), title=title)
    for row in table.to_dict("records"):
        if row["reason"]:
            echo(f"{row['status']}: {row['reason']}")
        if row["remark"]:
            echo(f"remark: {visible(row['path'])}: {row['remark']}")
    if purpose:
        echo(f"This model is for: {purpose}")
    n_failed = int((table["status"] != "ok").sum())
    failed = f", {n_failed} without a prediction" if n_failed else ""
    echo(f"{count(len(table), 'image')}{failed}. A prediction is a model's output, not a diagnosis. {RESEARCH_USE}")
