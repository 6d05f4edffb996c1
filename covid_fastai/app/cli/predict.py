"""The commands `predict`, `batch` and `export`, which use a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covid_fastai.app.cli.options import (
    READING_INPUTS,
    AsJson,
    Debug,
    Quiet,
    given_options,
    option,
    options_of_config,
)
from covid_fastai.app.cli.output import count, echo, print_json, print_table, set_up_logging
from covid_fastai.evaluation.formatting import format_metric
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Engine, Fraction, WorkerCount

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["batch", "export", "predict"]

# Heavy modules (pandas, onnxruntime) are imported inside the commands, so that help appears at once; predict and batch
# need no torch.

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="The folder of a run or a saved model, or user/model on the Hugging Face Hub."
    ),
]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a model on the Hugging Face Hub.")]


@options_of_config(*READING_INPUTS)
def predict(
    model: Model,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...", help="Images, DICOM files, folders, glob patterns, or tables (CSV, Excel, Parquet)."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--csv", metavar="OUT", help="Where to write the table, as CSV.")] = None,
    explain: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the images with their class activation maps.")
    ] = None,
    revision: Revision = None,
    as_json: AsJson = False,
    debug: Debug = False,
    **choices: Any,
) -> None:
    """Predict the class of images with a trained model, without torch.

    A file that cannot be read has a row with the reason. The exit status is 3 if no image has a prediction.
    """
    from covid_fastai.app.inputs import list_images, openable
    from covid_fastai.files import write_csv
    from covid_fastai.model.hub import find_model
    from covid_fastai.model.predictor import Predictor

    predictor = Predictor(find_model(model, revision=revision))
    paths = list(list_images(files, **given_options(choices)))
    if explain is None:
        table = predictor.predict([openable(path) for path in paths], names=paths)
    else:
        from covid_fastai.app.overlays import write_explained

        table = write_explained(predictor, paths, explain)
    if out is not None:
        write_csv(out, table)
    if as_json:
        rows = table.to_dict("records")
        print_json({"model": model, "classes": predictor.classes, "rows": rows, "use": RESEARCH_USE})
    else:
        _print_predictions(table, title=model)
    if not (table["status"] == "ok").any():
        raise typer.Exit(3)


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The folder of a run or a saved model, or user/model on the Hugging Face Hub."
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
    revision: Revision = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Verify a trained model and copy it, with its ONNX file and model card, into a new folder."""
    from covid_fastai.app.export import export_model

    folder = export_model(run, target, revision=revision, sensitivity=sensitivity, calibrate=calibrate)
    if as_json:
        print_json({"model": str(folder), "files": sorted(path.name for path in folder.iterdir())})
    else:
        echo(folder)


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

    options = {"workers": workers, "resume": resume, "engine": engine, "revision": revision}
    counts = predict_batch(model, inputs, out, **options, **given_options(choices))
    if as_json:
        print_json({"table": str(out), **counts})
    else:
        n_failed = counts["rows"] - counts["ok"]
        failed = f", {n_failed} without a prediction" if n_failed else ""
        echo(f"{out}: {count(counts['rows'], 'row')}{failed}. {RESEARCH_USE}")
    if not counts["ok"]:
        raise typer.Exit(3)


def _print_predictions(table: pd.DataFrame, *, title: str) -> None:
    printed = table[["path"]].copy()
    for name in (str(name) for name in table if str(name).startswith("p_")):
        printed[name] = [format_metric(p) for p in table[name]]
    print_table(printed.assign(prediction=table["prediction"], status=table["status"]), title=title)
    for row in table.to_dict("records"):
        if row["reason"]:
            echo(f"{row['status']}: {row['reason']}")
        if row["remark"]:
            echo(f"remark: {row['path']}: {row['remark']}")
    n_failed = int((table["status"] != "ok").sum())
    failed = f", {n_failed} without a prediction" if n_failed else ""
    echo(f"{count(len(table), 'image')}{failed}. A prediction is a model's output, not a diagnosis. {RESEARCH_USE}")
