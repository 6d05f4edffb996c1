"""The report of a run: one self-contained HTML page, made from the tables of the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from covid_fastai.audit.audit import Audit, audit_predictions, read_audit
from covid_fastai.audit.baselines import ShortcutAudit, plot_shortcuts
from covid_fastai.data.cohort import Cohort, save_cohort
from covid_fastai.data.exploration import plot_batch, plot_class_counts, shorten
from covid_fastai.data.metadata import summarise_cohort
from covid_fastai.data.problems import SEVERITIES
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import PERCENT, format_interval, format_metric
from covid_fastai.evaluation.interpretation import open_for_display, plot_confusion_matrix, top_losses
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.moved_images import move_images, require_images
from covid_fastai.evaluation.plots import (
    plot_history,
    plot_learning_rate,
    plot_precision_recall,
    plot_probabilities,
    plot_roc,
)
from covid_fastai.evaluation.prediction_table import has_label_and_prediction
from covid_fastai.evaluation.runs import Run, collect_versions, read_run
from covid_fastai.files import write_csv, write_json
from covid_fastai.plotting import as_data_uri, embed_image, save_figure
from covid_fastai.reporting.caveats import limits, result_caveats, run_caveats, source_table
from covid_fastai.reporting.html import draw_chart, write_page
from covid_fastai.reporting.run_facts import SPLIT_TITLES, count_shared_patients
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.region_fraction import BOX_NAME, summarise_saliency_fraction

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = [
    "count_problems",
    "count_rows",
    "describe_audit",
    "describe_result",
    "describe_shortcuts",
    "render_report",
    "write_evaluation",
    "write_report",
]

logger = logging.getLogger("covid_fastai")

CASES = 12  # held-out images with the largest loss that are shown
VERDICT_TEXT = {
    "good": "The conditions and their results are listed below. Results at other hospitals may still differ.",
    "caution": "No condition failed, but not every condition is met. The conditions are listed below.",
    "alarm": "The metrics below may measure something other than disease. The conditions are listed below.",
}


def write_report(learn: Learner, result: Evaluation) -> Path:
    """Write `report.html` into the learner's folder, together with those of its tables that do not exist yet.

    Args:
        learn: A fitted learner with loaders from `build_dataloaders`; its `path` is the run's folder.
        result: Result of `evaluate` for its held-out patients.

    Returns:
        The path of the report, a page without scripts that loads nothing.

    Raises:
        ResourceError: The folder cannot be written.
    """
    folder = RunFolder(learn.path)
    _write_missing(learn, result, folder)
    save_figure(folder.batch_picture, plot_batch(learn.dls))
    return render_report(folder.path)


def render_report(folder: str | Path, *, data: str | Path | None = None) -> Path:
    """Write `report.html` again from the files of a run; neither torch nor the data set is needed.

    The worst cases are shown with their images if these are still where the run read them.

    Args:
        folder: A run's folder.
        data: As in `audit_run`, if the images have been moved.

    Returns:
        The path of the report.

    Raises:
        DataError: The folder is not a run, or the run was not evaluated.
    """
    run = read_run(folder) if data is None else move_images(folder, data)
    _warn_if_moved(run)
    fields = run.config.get("config") or {}
    cohort, result = run.cohort, run.metrics
    folds = run.config.get("folds")
    how = (
        f"Each patient was predicted by the one of {folds} models that was not trained on them."
        if folds
        else "The model was not trained on these patients."
    )
    return write_page(
        run.folder.report,
        "run.html",
        files=RunFolder,
        title=f"{_task_title(fields.get('task'), result)}: model evaluation",
        name=run.path.resolve().name,
        started=run.record[0].get("time", "").replace("T", " ").replace("Z", " UTC") if run.record else "",
        minutes=_minutes(run.history),
        device=run.built.get("device", ""),
        heading="Performance on held-out patients",
        caveats=run_caveats(run),
        audit=describe_audit(read_audit(run.path)),
        **_describe_saliency(run),
        metrics={SPLIT_TITLES.get(split, split): result.summary() for split, result in run.evaluations.items()},
        **describe_result(result, how=how),
        split_text=_split_text(cohort, fields),
        counts=count_rows(cohort),
        sources=source_table(cohort),
        data_figures=_data_figures(run, cohort),
        problems=count_problems(run.problems),
        training_text=_training_text(run, run.built, fields),
        training_figures=_training_figures(run),
        settings=pd.DataFrame([{"setting": key, "value": _plain(value)} for key, value in fields.items()]),
        limits=limits(cohort, result),
        python=run.config.get("python"),
        command=run.config.get("command"),
        versions=_versions(run.versions),
        record=_record(run),
    )


def _warn_if_moved(run: Run) -> None:
    try:
        require_images(run)
    except DataError as error:
        logger.warning("The report shows no missing images. %s", error)


def write_evaluation(
    predictions: str | Path | pd.DataFrame | Evaluation, out: str | Path = "evaluation.html", **options: Any
) -> Path:
    """Evaluate predictions of any model and write a page with metrics, shortcut tests and the worst cases.

    If all images exist at `path`, baselines that see little or nothing of the lungs are evaluated on them and the page
    gives a verdict.

    Args:
        predictions: A predictions table or CSV, or the result of `evaluate` for one.
        out: Path of the page; its folder must exist.
        **options: Options of `evaluate`.

    Returns:
        The path of the page.

    Raises:
        UsageError: The value of an option is not allowed.
        DataError: The table is faulty.
        ResourceError: The file cannot be written.
    """
    result = predictions if isinstance(predictions, Evaluation) else evaluate(predictions, **options)
    rows = result.predictions
    evaluated = rows[has_label_and_prediction(rows)]
    exists = evaluated["path"].map(os.path.isfile)
    caveats = result_caveats(result, missing=int((~exists).sum()))
    audit = audit_predictions(rows, positive=result.positive) if exists.all() else None
    return write_page(
        Path(out),
        "evaluation.html",
        title=f"{' or '.join(result.classes)}: evaluation of predictions",
        heading="Agreement of the predictions with the labels",
        caveats=caveats,
        audit=describe_audit(audit),
        saliency=None,
        saliency_figure=None,
        metrics={"Predictions": result.summary()},
        **describe_result(result, how="It is unknown whether the model was trained on any of them."),
        limits=limits(rows, result),
    )


# content that is shared with the pages about data


def count_rows(cohort: pd.DataFrame) -> pd.DataFrame:
    """Return the number of images and patients by part and class, with the reasons of exclusion, for a page."""
    table = summarise_cohort(cohort)
    table["note"] = table["note"].map(lambda text: shorten(text, 90))
    return table.rename(columns={"split": "part", "label": "class or finding", "note": "reason for exclusion"})


def count_problems(problems: pd.DataFrame) -> pd.DataFrame | None:
    """Return the problems of the data by kind, the most severe first, for a page; None if there are none."""
    if problems.empty:
        return None
    groups = problems.groupby(["severity", "kind"], sort=False)
    first = groups.first()
    table = first.assign(rows=groups.size()).reset_index()
    table = table.sort_values("severity", key=lambda column: column.map(SEVERITIES.index), kind="stable")
    table["example"] = table["path"].map(lambda path: shorten(Path(str(path)).name, 40))
    table["kind"] = table["kind"].str.replace("_", " ")
    return table[["severity", "kind", "rows", "example", "reason", "remedy"]]


def describe_audit(audit: Audit | None) -> dict[str, Any] | None:
    """Return the variables of `audit.html`; None without an audit.

    Args:
        audit: Result of `audit_run` or `audit_predictions`.

    Returns:
        Texts, tables and a figure by name.
    """
    if audit is None:
        return None
    level = {"shown": "good", "not shown": "caution", "failed": "alarm"}[audit.verdict.level]
    conditions = audit.verdict.table().rename(columns={"name": "condition", "text": "result"})
    altered = pd.DataFrame(
        {
            "change": audit.altered["change"],
            "applied": audit.altered["when"],
            "AUC": [format_metric(value) for value in audit.altered["auc"]],
            "95% interval": [
                format_interval(low, high)
                for low, high in zip(audit.altered["auc_low"], audit.altered["auc_high"], strict=True)
            ],
        }
    )
    batch_effect = "; ".join(
        f"{row['class']}: AUC {format_metric(row['auc'])} ({format_interval(row['low'], row['high'])}, "
        f"n = {row['n']} patients)"
        for row in audit.batch_effect.to_dict("records")
    )
    return {
        "verdict": {"level": level, "title": audit.verdict.sentence, "text": VERDICT_TEXT[level]},
        "conditions": conditions,
        "altered": altered if len(altered) else None,
        "batch_effect": batch_effect,
        **_baselines(audit.summary(), audit.shortcuts, audit.network),
    }


def describe_shortcuts(shortcuts: ShortcutAudit) -> dict[str, Any]:
    """Return texts, a table and a figure of baselines without a network, by name, for a page."""
    return _baselines(shortcuts.summary(), shortcuts, None)


def _baselines(table: pd.DataFrame, shortcuts: ShortcutAudit, network: Mapping[str, Any] | None) -> dict[str, Any]:
    table["baseline"] = table["baseline"] + ": " + table.pop("input")
    alt = "AUC of baselines that see little or nothing of the lungs" + (", and of the network" if network else "")
    figure = draw_chart(plot_shortcuts(shortcuts, network=network), alt, wide=True)
    return {"baselines": table, "notes": shortcuts.notes()[:-1], "figure": figure}


# texts of the report


def _split_text(cohort: pd.DataFrame, fields: Mapping[str, Any]) -> str:
    seed = f", seed {fields['seed']}" if "seed" in fields else ""
    by = fields.get("split", "patient")
    rows = cohort[cohort["split"].isin(["train", "valid", "test"])]
    parts, shared = "fold" if "fold" in cohort else "part", count_shared_patients(rows)
    overlap = f"{'no patient is' if shared == 0 else f'{shared} patients are'} in more than one {parts}"
    excluded = int((cohort["split"] == "excluded").sum())
    made = "Official split, as the data state it" if by == "official" else f"Split by {by}{seed}"
    return f"{made}: {overlap}. {excluded:,} images are excluded; the table gives the reasons."


def _training_text(run: Run, built: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    weights = built.get("weights", {})
    names = {"random": "random weights", "imagenet": "ImageNet weights", "cxr": "this package's radiograph weights"}
    start = names.get(weights.get("name"), f"the weights {weights.get('origin', '')}".strip())
    arch = built.get("arch") or fields.get("arch", "The model")
    epochs = run.history["phase"].value_counts() if "fold" not in run.history else {}
    plan = ", then ".join(
        f"{epochs[phase]} epochs with the body {phase}" for phase in ("frozen", "unfrozen") if phase in epochs
    )
    folds = f"{run.config['folds']} models, one per fold: " if run.config.get("folds") else ""
    size = f", on greyscale images of {fields['image_size']}×{fields['image_size']} pixels" if fields else ""
    return f"{folds}{arch}, initialised with {start}{size}. One-cycle learning rates{': ' + plan if plan else ''}."


def _versions(versions: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in versions.get("packages", {}).items())
    return f"Python {versions.get('python', '?')}; {packages}; {versions.get('system', '')}"


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


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


# figures and tables of the report


def _data_figures(run: Run, cohort: Cohort) -> list[dict[str, Any]]:
    charts = [draw_chart(plot_class_counts(cohort), "Images and patients by class and part", wide=True)]
    if run.folder.batch_picture.is_file():
        source = as_data_uri(run.folder.batch_picture.read_bytes(), "image/png")
        text = "A training batch after augmentation, as given to the model"
        charts.append({"source": source, "alt": text, "caption": text + ".", "wide": True})
    return charts


def _describe_saliency(run: Run) -> dict[str, Any]:
    """Return the table and the figure of the class activation maps; None for those that were not written."""
    table, figure, note = None, None, ""
    if run.folder.saliency.is_file():
        missing = {name: [""] for name in ("inside", "box", "border")}
        fractions = pd.read_csv(run.folder.saliency, keep_default_na=False, na_values=missing)
        n_box = int(fractions["lung"].str.startswith(BOX_NAME).sum())
        if n_box:  # guard: box_said
            note = f"On {n_box} of {len(fractions)} images no lungs were found, and the box takes their place."
        summary = summarise_saliency_fraction(fractions)
        table = pd.DataFrame(
            {
                "predicted class": summary["of"],
                "region": summary["region"].replace({"inside": "lungs", "box": "central box"}),
                "fraction of saliency": [format_metric(value, spec=PERCENT) for value in summary["fraction"]],
                "95% interval": [
                    format_interval(*bounds, spec=PERCENT) for bounds in summary[["low", "high"]].to_numpy()
                ],
                "fraction of area": [format_metric(value, spec=PERCENT) for value in summary["area"]],
                "images": summary["images"],
            }
        )
    if run.folder.saliency_picture.is_file():
        source = as_data_uri(run.folder.saliency_picture.read_bytes(), "image/png")
        alt = "Held-out radiographs and their class activation maps"
        figure = {"source": source, "alt": alt, "caption": "", "wide": True}
    return {"saliency": table, "saliency_figure": figure, "saliency_note": note}


def _training_figures(run: Run) -> list[dict[str, Any]]:
    charts = [draw_chart(plot_history(run.history), "Loss and accuracy by epoch", wide=True)]
    if run.folder.steps.is_file():
        charts.append(draw_chart(plot_learning_rate(run.steps), "Learning rate and training loss by step", wide=True))
    return charts


# tables of a run whose steps were called one by one


def _write_missing(learn: Learner, result: Evaluation, folder: RunFolder) -> None:
    """Write the missing tables of a report; `train_classifier` writes them, the single steps do not."""
    from covid_fastai.model.learner_facts import facts_of, log_model  # here, since `render_report` needs no torch

    facts, cohort = facts_of(learn), learn.dls.facts.cohort
    tables = {folder.predictions: result.predictions, folder.problems: cohort.facts.problem_table()}
    for path in (folder.history, folder.steps):
        if not path.exists():
            table = getattr(facts, path.stem)
            if table is None:
                raise UsageError(
                    f"This learner was not fitted in this session: it has no {path.stem}, nor has {folder.path}.",
                    hint="Set learn.path to the run's folder, or use write_evaluation for predictions alone.",
                )
            tables[path] = table
    if not folder.cohort.exists():
        save_cohort(cohort, folder.path)
    for path, table in tables.items():
        if not path.exists():
            write_csv(path, table)
    if not folder.metrics.exists():
        write_json(folder.metrics, {"valid": result.to_dict()})
    if not folder.versions.exists():
        write_json(folder.versions, collect_versions())
    if not folder.config.exists():
        write_json(folder.config, {"data": cohort.facts.data, "config": None})
        log_model(learn, folder)


def describe_result(result: Evaluation, *, how: str) -> dict[str, Any]:
    """Return the variables of `result.html` and `worst.html`.

    Args:
        result: The evaluation, with its predictions.
        how: A sentence on whether the model was trained on these patients.

    Returns:
        Texts, tiles, figures and cases by name.
    """
    counts = result.confusion.sum(axis=1)
    who = ", ".join(f"{counts[name]} {name}" for name in result.classes)
    unit = "patients" if result.unit == "patient" else "images"
    mean = " The score of a patient is the mean over the patient's images." if result.unit == "patient" else ""
    return {
        "lead": f"{int(counts.sum())} held-out {unit} ({who}), {result.n_images} images. {how}{mean}",
        "tiles": _tiles(result),
        "failed": _failed(result),
        "cases": _cases(result),
        "result_figures": _result_figures(result),
    }


def _tiles(result: Evaluation) -> list[dict[str, str]]:
    named = {"auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity", "accuracy": "Accuracy"}
    if result.positive is None:
        named = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auc": "AUC, mean of classes"}
    tiles = []
    for metric, title in named.items():
        row = result.row(metric)
        interval = f"95% interval {format_interval(row['low'], row['high'])}"
        about = f" for {row['class']}" if metric == "sensitivity" else ""
        n = f"n = {row['n']} {row['unit']}s"
        tiles.append({"title": title + about, "value": format_metric(row["value"]), "interval": interval, "n": n})
    return tiles


def _failed(result: Evaluation) -> str:
    if not result.n_failed:
        return ""
    return f"{result.n_failed} images without a prediction are not counted; the column status marks them."


def _cases(result: Evaluation) -> list[dict[str, Any]]:
    hospitals = result.predictions.set_index("path")["source"].groupby(level=0).first()
    cases = []
    for row in top_losses(result, k=CASES).to_dict("records"):
        pixels = open_for_display(row["path"])
        cases.append(
            {
                "image": None if pixels is None else embed_image(Image.fromarray(pixels)),
                "label": row["label"],
                "predicted": row["predicted"],
                "wrong": row["label"] != row["predicted"],
                "probability": format_metric(row["probability"]),
                "hospital": hospitals[row["path"]],
                "file": shorten(Path(row["path"]).name, 34),
            }
        )
    return cases


def _result_figures(result: Evaluation) -> list[dict[str, Any]]:
    charts = [
        draw_chart(plot_confusion_matrix(result), "Confusion matrix: true class by row, predicted class by column"),
        draw_chart(plot_roc(result), "ROC curve with its 95% band"),
        draw_chart(plot_precision_recall(result), "Precision-recall curve with its 95% band"),
        draw_chart(plot_probabilities(result), "Predicted probabilities by true class"),
    ]
    charts[1]["caption"] = charts[2]["caption"] = "Bands: the middle 95% of 500 bootstrap resamples of patients."
    return charts
