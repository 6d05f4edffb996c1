"""The report and the exploration: one self-contained page each, made from tables, that one would show to a sceptic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from covid_fastai.data.exploration import (
    header_facts,
    plot_batch,
    plot_class_counts,
    plot_header_facts,
    plot_images_per_patient,
    plot_missing_values,
    plot_samples,
    shorten,
)
from covid_fastai.data.metadata import summarise_cohort
from covid_fastai.errors import DataError
from covid_fastai.evidence.audit import read_audit
from covid_fastai.evidence.interpretation import open_picture, plot_confusion_matrix, top_losses
from covid_fastai.evidence.leaks import LeakAudit, plot_leak_groups
from covid_fastai.evidence.metrics import Evaluation
from covid_fastai.evidence.page import data_uri, draw_chart, embed_picture, save_picture, write_page
from covid_fastai.evidence.plots import (
    plot_history,
    plot_learning_rate,
    plot_precision_recall,
    plot_probabilities,
    plot_roc,
)
from covid_fastai.evidence.remarks import cohort_remarks, limits, run_remarks, source_table
from covid_fastai.evidence.report_audit import describe_audit, describe_shortcuts
from covid_fastai.evidence.runs import Run, collect_versions, log_event, read_run
from covid_fastai.evidence.shortcuts import ShortcutAudit
from covid_fastai.files import write_csv, write_json

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = ["render_report", "write_audit", "write_exploration", "write_report"]

CASES = 12
BATCH_PICTURE = "batch.png"


def write_report(learn: Learner, result: Evaluation) -> Path:
    """Write `report.html` into the learner's folder, and the tables that it is made from where they are not there yet.

    Args:
        learn: A fitted learner whose loaders `build_dataloaders` made; its `path` is the folder.
        result: What `evaluate` returned for its held-out patients.

    Returns:
        The report's file: one page without scripts that loads nothing.

    Raises:
        ResourceError: The folder cannot be written.
    """
    folder = Path(learn.path)
    _write_missing(learn, result, folder)
    save_picture(folder / BATCH_PICTURE, plot_batch(learn.dls))
    return render_report(folder)


def render_report(folder: str | Path) -> Path:
    """Write `report.html` anew from a run's files alone; neither torch nor the data set is needed.

    Pictures of the worst cases are in it only where the images are still where the run found them.

    Args:
        folder: A run's folder.

    Returns:
        The report's file.

    Raises:
        DataError: The folder is no run, or not one that was judged.
    """
    run = read_run(folder)
    fields = run.config.get("config") or {}
    cohort, result = run.cohort, run.metrics
    cohort.attrs["classes"] = result.classes
    built = next((event for event in run.record if "weights" in event), {})
    return write_page(
        run.path / "report.html",
        "report.html",
        title=f"{_task_title(fields.get('task'), result)}: what the model is worth",
        name=run.path.resolve().name,
        started=run.record[0].get("time", "").replace("T", " ").replace("Z", " UTC") if run.record else "",
        minutes=_minutes(run.history),
        device=built.get("device", ""),
        lead=_lead(result, run),
        tiles=_tiles(result),
        remarks=run_remarks(run),
        audit=describe_audit(read_audit(run.path)),
        figures={_split_title(split): found.summary() for split, found in run.evaluations.items()},
        result_figures=_result_figures(result),
        failed=_failed(result),
        cases=_cases(result),
        split_text=_split_text(cohort, fields),
        counts=_counts(cohort),
        sources=source_table(cohort),
        data_figures=_data_figures(run, cohort),
        problems=_problem_counts(run.problems),
        training_text=_training_text(run, built, fields),
        training_figures=_training_figures(run),
        settings=pd.DataFrame([{"setting": key, "value": _plain(value)} for key, value in fields.items()]),
        limits=limits(cohort, result),
        python=run.config.get("python"),
        command=run.config.get("command"),
        versions=_versions(run.versions),
        record=_record(run),
    )


def write_exploration(cohort: pd.DataFrame, out: str | Path = "exploration.html") -> Path:
    """Write the article's first two steps as a page: who is in the data, and what the images look like.

    Args:
        cohort: What `read_cohort` returned.
        out: The page's file; its folder must exist.

    Returns:
        The file.

    Raises:
        DataError: No image of the cohort can be read.
        ResourceError: The file cannot be written.
    """
    rows = cohort[cohort["split"] != "aside"]
    if rows.empty:
        raise DataError("Every row of the cohort stands aside.", hint="Choose another task.")
    classes = list(cohort.attrs.get("classes") or sorted(rows["label"].unique()))
    facts = header_facts(cohort)
    lead = f"{len(rows):,} images of {rows['patient'].nunique():,} patients take part in the task "
    lead += f"{cohort.attrs.get('task', '')}; {len(cohort) - len(rows):,} stand aside."
    return write_page(
        Path(out),
        "exploration.html",
        title=f"{' or '.join(classes)}: a look at the data",
        data=str(cohort.attrs.get("data", "")),
        lead=lead,
        remarks=cohort_remarks(cohort),
        counts=_counts(cohort),
        sources=source_table(cohort),
        count_figures=[
            draw_chart(plot_class_counts(cohort), "Images and patients by class", wide=True),
            draw_chart(plot_images_per_patient(cohort), "Images of a patient"),
            draw_chart(plot_missing_values(cohort), "Empty cells by column"),
        ],
        samples=draw_chart(plot_samples(cohort), f"Sample radiographs of {', '.join(classes)}", kind="png", wide=True),
        header_text=_header_text(facts),
        headers=draw_chart(plot_header_facts(facts, classes=classes), "Format, mode and size of the files", wide=True),
        problems=_problem_counts(pd.DataFrame(cohort.attrs.get("problems", []))),
    )


def write_audit(
    cohort: pd.DataFrame, shortcuts: ShortcutAudit, leaks: LeakAudit, out: str | Path = "audit.html"
) -> Path:
    """Write what an audit of data has found as a page: shortcuts, and the same pictures side by side.

    Args:
        cohort: What was audited.
        shortcuts: What `find_shortcuts` returned for it.
        leaks: What `find_leaks` returned for it.
        out: The page's file; its folder must exist.

    Returns:
        The file.

    Raises:
        ImageError: A picture of a group is no longer there.
        ResourceError: The file cannot be written.
    """
    groups = (
        None
        if leaks.groups.empty
        else draw_chart(plot_leak_groups(leaks), "Pictures that are there twice, a row a group", kind="png", wide=True)
    )
    return write_page(
        Path(out),
        "data_audit.html",
        title=f"{cohort.attrs.get('data', 'The data')}: shortcuts and copies",
        shortcuts=describe_shortcuts(shortcuts),
        leaks=str(leaks).partition("\n")[0],
        crossings=leaks.crossings if len(leaks.crossings) else None,
        groups=groups,
        listed=leaks.groups.assign(path=leaks.groups["path"].map(lambda path: shorten(Path(path).name, 40))),
        remarks=cohort_remarks(cohort),
        sources=source_table(cohort),
    )


# what the page says


def _lead(result: Evaluation, run: Run) -> str:
    counts = result.confusion.sum(axis=1)
    who = ", ".join(f"{counts[name]} {name}" for name in result.classes)
    folds = run.config.get("folds")
    how = f"Each was predicted by the one of {folds} models that had not seen them" if folds else "None was trained on"
    unit = "patients" if result.unit == "patient" else "images"
    return (
        f"{int(counts.sum())} held-out {unit} ({who}), {result.n_images} images. {how}; a patient's score is the mean "
        "over their images."
    )


def _tiles(result: Evaluation) -> list[dict[str, str]]:
    named = {"auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity", "accuracy": "Accuracy"}
    if result.positive is None:
        named = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auc": "AUC, mean of classes"}
    tiles = []
    for metric, title in named.items():
        row = result.row(metric)
        value, low, high = row["value"], row["low"], row["high"]
        interval = f"95% interval {low:.3f} to {high:.3f}" if low == low else "no interval can be given"
        about = f" for {row['class']}" if metric == "sensitivity" else ""
        n = f"n = {row['n']} {row['unit']}s"
        shown = f"{value:.3f}" if value == value else "–"
        tiles.append({"title": title + about, "value": shown, "interval": interval, "n": n})
    return tiles


def _failed(result: Evaluation) -> str:
    if not result.n_failed:
        return ""
    return f"{result.n_failed} images got no prediction and are counted nowhere; predictions.csv says which."


def _cases(result: Evaluation) -> list[dict[str, Any]]:
    places = result.predictions.set_index("path")["source"].groupby(level=0).first()
    cases = []
    for row in top_losses(result, k=CASES).to_dict("records"):
        picture = open_picture(row["path"])
        cases.append(
            {
                "source": None if picture is None else embed_picture(Image.fromarray(picture)),
                "label": row["label"],
                "predicted": row["predicted"],
                "wrong": row["label"] != row["predicted"],
                "probability": f"{row['probability']:.3f}",
                "place": places[row["path"]],
                "file": shorten(Path(row["path"]).name, 34),
            }
        )
    return cases


def _split_text(cohort: pd.DataFrame, fields: Mapping[str, Any]) -> str:
    seed = f", seed {fields['seed']}" if "seed" in fields else ""
    by = fields.get("split", "patient")
    rows = cohort[cohort["split"].isin(["train", "valid", "test"])]
    side, name = ("fold", "in two folds") if "fold" in cohort else ("split", "on two sides")
    both = int((rows.groupby("patient")[side].nunique() > 1).sum())
    proof = f"no patient is {name}" if both == 0 else f"{both} patients are {name}"
    aside = int((cohort["split"] == "aside").sum())
    return f"Split by {by}{seed}: {proof}. {aside:,} images stand aside; the table says why."


def _counts(cohort: pd.DataFrame) -> pd.DataFrame:
    table = summarise_cohort(cohort)
    table["note"] = table["note"].map(lambda text: shorten(text, 90))
    return table.rename(columns={"split": "part", "label": "class or finding", "note": "why aside"})


def _problem_counts(problems: pd.DataFrame) -> pd.DataFrame | None:
    if problems.empty:
        return None
    groups = problems.groupby(["severity", "kind"], sort=False)
    first = groups.first()
    table = first.assign(rows=groups.size()).reset_index()
    order = {"error": 0, "warning": 1, "note": 2}
    table = table.sort_values("severity", key=lambda column: column.map(order), kind="stable")
    table["example"] = table["path"].map(lambda path: shorten(Path(str(path)).name, 40))
    table["kind"] = table["kind"].str.replace("_", " ")
    return table[["severity", "kind", "rows", "example", "reason", "remedy"]]


def _header_text(facts: pd.DataFrame) -> str:
    parts = []
    for name, rows in facts.groupby("label", sort=False):
        formats = ", ".join(f"{n} {kind}" for kind, n in rows["format"].value_counts().items())
        size = f"{(rows['width'] * rows['height']).median() / 1e6:.2f} megapixels"
        parts.append(f"{name}: {formats}; median {size}")
    return ". ".join(parts) + ". Where the classes differ here, a model can be right without looking at a lung."


def _training_text(run: Run, built: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    weights = built.get("weights", {})
    begun = {"random": "random weights", "imagenet": "ImageNet's weights", "cxr": "this package's radiograph weights"}
    start = begun.get(weights.get("name"), f"the weights {weights.get('origin', '')}".strip())
    arch = built.get("arch") or fields.get("arch", "The model")
    epochs = run.history["phase"].value_counts() if "fold" not in run.history else {}
    plan = ", then ".join(
        f"{epochs[phase]} epochs with the body {phase}" for phase in ("frozen", "unfrozen") if phase in epochs
    )
    folds = f"{run.config['folds']} models, one a fold; " if run.config.get("folds") else ""
    size = f" on images of {fields['image_size']}×{fields['image_size']} pixels, one grey channel" if fields else ""
    return f"{folds}{arch}, begun from {start}{size}. One-cycle learning rates{': ' + plan if plan else ''}."


def _versions(found: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in found.get("packages", {}).items())
    return f"Python {found.get('python', '?')}; {packages}; {found.get('system', '')}"


def _record(run: Run) -> pd.DataFrame:
    rows = []
    for event in run.record:
        facts = {key: value for key, value in event.items() if key not in ("time", "event", "weights", "report")}
        text = ", ".join(f"{key} {_plain(value)}" for key, value in facts.items())
        rows.append({"time": event.get("time", ""), "event": event["event"], "facts": text})
    return pd.DataFrame(rows, columns=["time", "event", "facts"])


def _minutes(history: pd.DataFrame) -> str:
    seconds = float(history["seconds"].sum())
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def _task_title(task: Any, result: Evaluation) -> str:
    if isinstance(task, Mapping):
        return str(task.get("title") or task.get("name"))
    return " or ".join(result.classes)


def _split_title(split: str) -> str:
    return {"valid": "Held-out patients", "test": "Official test set"}.get(split, split)


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


# what the page shows


def _result_figures(result: Evaluation) -> list[dict[str, Any]]:
    shown = [
        draw_chart(plot_confusion_matrix(result), "Confusion matrix: true class by row, predicted class by column"),
        draw_chart(plot_roc(result), "ROC curve with its 95% band"),
        draw_chart(plot_precision_recall(result), "Precision-recall curve with its 95% band"),
        draw_chart(plot_probabilities(result), "Probabilities given to each class's patients"),
    ]
    shown[1]["caption"] = shown[2]["caption"] = "Bands: the middle 95% of 500 bootstrap draws of patients."
    return shown


def _data_figures(run: Run, cohort: pd.DataFrame) -> list[dict[str, Any]]:
    shown = [draw_chart(plot_class_counts(cohort), "Images and patients by class and part", wide=True)]
    if (run.path / BATCH_PICTURE).is_file():
        source = data_uri((run.path / BATCH_PICTURE).read_bytes(), "image/png")
        text = "A training batch after augmentation, as the model gets it"
        shown.append({"source": source, "alt": text, "caption": text + ".", "wide": True})
    return shown


def _training_figures(run: Run) -> list[dict[str, Any]]:
    shown = [draw_chart(plot_history(run.history), "Loss and accuracy by epoch", wide=True)]
    if (run.path / "steps.csv").is_file():
        shown.append(draw_chart(plot_learning_rate(run.steps), "Learning rate and training loss by step", wide=True))
    return shown


# writing


def _write_missing(learn: Learner, result: Evaluation, folder: Path) -> None:
    """Write what a report is made from, where the story was told by hand rather than by `train_classifier`."""
    cohort = learn.dls.cohort
    tables = {"cohort.csv": cohort, "predictions.csv": result.predictions}
    tables |= {"history.csv": learn.history, "steps.csv": learn.steps}
    tables["problems.csv"] = pd.DataFrame(
        cohort.attrs.get("problems", []), columns=["row", "path", "kind", "severity", "reason", "remedy"]
    )
    for name, table in tables.items():
        if not (folder / name).exists():
            write_csv(folder / name, table)
    if not (folder / "metrics.json").exists():
        write_json(folder / "metrics.json", {"valid": result.to_dict()})
    if not (folder / "versions.json").exists():
        write_json(folder / "versions.json", collect_versions())
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", {"data": cohort.attrs.get("data"), "config": None})
        log_event(folder, "model built", arch=learn.arch, device=str(learn.dls.device), weights=learn.weights.to_dict())
