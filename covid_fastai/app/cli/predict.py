"""The commands that use a trained model: predict a few files, predict many, take the model elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covid_fastai.app.cli.options import AsJson, Debug, Quiet, option
from covid_fastai.app.cli.output import count, listen, print_json, print_table
from covid_fastai.evaluation.formatting import format_metric
from covid_fastai.notices import RESEARCH_USE
from covid_fastai.options import Engine, Fraction, WorkerCount

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["batch", "export", "predict"]

# Heavy modules (pandas, onnxruntime) are imported inside the commands, so that help answers at once; none needs torch.

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, a saved model, or a name on the Hub: user/model.")]


def predict(
    model: Model,
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="Images, DICOM files, folders, CSVs, patterns.")
    ],
    out: Annotated[Path | None, typer.Option("--csv", metavar="OUT", help="Where to write the table, as CSV.")] = None,
    explain: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder for pictures of where the model looked.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The commit, tag or branch of a model on the Hub.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Predict images with a trained model, without torch.

    A file that cannot be read is a row with its reason. Exit status 3 if not one could be answered.
    """
    from covid_fastai.app.inputs import list_images, openable
    from covid_fastai.files import write_csv
    from covid_fastai.model.hub import find_model
    from covid_fastai.model.predictor import Predictor

    predictor = Predictor(find_model(model, revision=revision))
    paths = list(list_images(files))
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
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, a saved model, or a name on the Hub: user/model.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.")],
    sensitivity: Annotated[
        float | None, option(Fraction, help="Choose the threshold for it on the run's held-out patients.")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Fit a temperature on them.")] = False,
    revision: Annotated[str | None, typer.Option(help="The commit, tag or branch of a model on the Hub.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Copy a trained model, checked, with its ONNX file and a model card, into a folder of its own."""
    from covid_fastai.app.export import export_model

    folder = export_model(run, target, revision=revision, sensitivity=sensitivity, calibrate=calibrate)
    if as_json:
        print_json({"model": str(folder), "files": sorted(path.name for path in folder.iterdir())})
    else:
        typer.echo(folder)


def batch(
    model: Model,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUTS...", help="Folders, CSVs, patterns, addresses.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The table to write: .csv or .parquet.")],
    workers: Annotated[int | None, option(WorkerCount, help="Processes; one a processor core if not given.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted batch ended.")] = True,
    engine: Annotated[Engine, option(Engine, help="Where to compute: ray is for many machines.")] = "local",
    revision: Annotated[str | None, typer.Option(help="The commit, tag or branch of a model on the Hub.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Predict any number of images into one table, a row an image; go on after an interruption.

    Exit status 3 if not one could be answered; the column status says which could not.
    """
    listen(quiet=quiet, as_json=as_json)
    from covid_fastai.app.batch.run import predict_batch

    found = predict_batch(model, inputs, out, workers=workers, resume=resume, engine=engine, revision=revision)
    if as_json:
        print_json({"table": str(out), **found})
    else:
        lost = f", {found['rows'] - found['ok']} of them without an answer" if found["ok"] < found["rows"] else ""
        typer.echo(f"{count(found['rows'], 'row')}{lost}: {out}. {RESEARCH_USE}")
    if not found["ok"]:
        raise typer.Exit(3)


def _print_predictions(table: pd.DataFrame, *, title: str) -> None:
    shown = table[["path"]].copy()
    for name in (str(name) for name in table if str(name).startswith("p_")):
        shown[name] = [format_metric(p) for p in table[name]]
    print_table(shown.assign(prediction=table["prediction"], status=table["status"]), title=title)
    for row in table.to_dict("records"):
        if row["reason"]:
            typer.echo(f"{row['status']}: {row['reason']}")
        if row["remark"]:
            typer.echo(f"remark: {row['path']}: {row['remark']}")
    lost = int((table["status"] != "ok").sum())
    said = f" {lost} without an answer." if lost else ""
    typer.echo(f"{count(len(table), 'image')}.{said} Outputs of a model, no diagnoses. {RESEARCH_USE}")
