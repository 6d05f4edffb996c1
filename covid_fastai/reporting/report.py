"""The report of a run: one self-contained HTML page, made from the tables of the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from covid_fastai.audit.audit import Audit, audit_predictions
from covid_fastai.audit.baselines import ShortcutAudit, plot_shortcuts
from covid_fastai.data.cohort import Cohort, save_cohort
from covid_fastai.data.exploration import plot_batch, plot_class_counts, shorten
from covid_fastai.data.kept_columns import keep_columns
from covid_fastai.data.metadata import summarise_cohort
from covid_fastai.data.phantom import are_synthetic
from covid_fastai.data.problems import SEVERITIES
from covid_fastai.data.pseudonymise import numbered_page
from covid_fastai.data.reach import Reach
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.formatting import PERCENT, format_interval, format_metric
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.moved_images import move_images, require_images
from covid_fastai.evaluation.plots import plot_history, plot_learning_rate
from covid_fastai.evaluation.prediction_table import PROBABILITY, has_label_and_prediction
from covid_fastai.evaluation.runs import Run, collect_versions, read_run
from covid_fastai.files import read_csv, write_csv, write_json
from covid_fastai.plotting import as_data_uri, save_figure
from covid_fastai.reporting.cases import describe_cases, describe_images
from covid_fastai.reporting.caveats import limits, result_caveats, run_caveats, source_table
from covid_fastai.reporting.conclusion import describe_conclusion
from covid_fastai.reporting.external_section import describe_external
from covid_fastai.reporting.html import draw_chart, put_on_black, write_page
from covid_fastai.reporting.result_section import describe_result
from covid_fastai.reporting.run_facts import SPLIT_TITLES, RunFacts, count_shared_patients
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.region_fraction import BOX_NAME, summarise_saliency_fraction

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = [
    "count_problems",
    "count_rows",
    "describe_audit",
    "describe_shortcuts",
    "folder_of_images",
    "render_report",
    "write_evaluation",
    "write_report",
]

logger = logging.getLogger("covid_fastai")

EXAMPLES = 6  # held-out images that are shown with their class activation map
VERDICT_TEXT = {
    "good": "The conditions and their results are listed below. Results at other hospitals may still differ.",
    "caution": "No condition failed, but not every condition is met. The conditions are listed below.",
    "alarm": "The metrics of this page may measure something other than disease. The conditions are listed below.",
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
    batch = plot_batch(learn.dls, columns=4)
    put_on_black(batch)
    save_figure(folder.batch_picture, batch)
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
    logger.info("Writing the report.")
    fields = run.config.get("config") or {}
    facts, cohort, result = RunFacts(run), run.cohort, run.metrics
    folds = run.config.get("folds")
    how = (
        f"Each patient was predicted by a model that was not trained on them (cross-validation, {folds} models)."
        if folds
        else "The model was not trained on these patients."
    )
    return write_page(
        run.folder.report,
        "run.html",
        files=RunFolder,
        title=_task_title(fields.get("task"), result),
        name=run.path.resolve().name,
        started=run.record[0].get("time", "").replace("T", " ").replace("Z", " UTC") if run.record else "",
        minutes=_minutes(run.history),
        device=_device(run.built),
        heading="Held-out patients of the same image sources",
        caveats=run_caveats(run),
        audit=describe_audit(facts.audit),
        **describe_conclusion(
            result,
            facts.audit,
            synthetic=facts.is_synthetic,
            external=[source for stored in facts.external.values() for source in stored["same_source"]],
            outdated=facts.audit_is_older,
        ),
        external=describe_external(facts.external),
        **_describe_saliency(run),
        metrics={SPLIT_TITLES.get(split, split): result.summary() for split, result in run.evaluations.items()},
        **describe_result(result, how=how, repeats=run.repeats),
        **describe_cases(result, run.folder),
        split_text=_split_text(cohort, fields),
        counts=count_rows(cohort),
        sources=source_table(cohort),
        data_figures=_data_figures(run, cohort),
        problems=count_problems(run.problems),
        training_text=_training_text(run, run.built, fields),
        training_figures=_training_figures(run),
        settings=pd.DataFrame([{"setting": key, "value": _plain(value)} for key, value in fields.items()]),
        limits=limits(cohort, result, external=bool(facts.external)),
        python=run.config.get("python"),
        own_parts="; ".join(f"{name}: {part}" for name, part in run.built.get("parts", {}).items()),
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
    predictions: str | Path | pd.DataFrame | Evaluation,
    out: str | Path = "evaluation.html",
    *,
    image_root: str | Path | None = None,
    pseudonymise: bool = False,
    **options: Any,
) -> Path:
    """Evaluate predictions of any model and write a page with metrics, shortcut tests and the worst cases.

    If all images exist at `path`, baselines that see little or nothing of the lungs are evaluated on them and the page
    gives a verdict.

    Args:
        predictions: A predictions table or CSV, the folder of a run, or the result of `evaluate` for one.
        out: Path of the page; its folder must exist.
        image_root: The folder that contains all images, and that the paths in a CSV are relative to. None for the
            folder of the CSV; images of a run or a table in memory may then lie anywhere. No image outside of it is
            opened.
        pseudonymise: Whether numbers stand for files and patients. The key lies beside the page, in a folder that only
            its owner can read.
        **options: Options of `evaluate`.

    Returns:
        The path of the page.

    Raises:
        UsageError: The value of an option is not allowed.
        DataError: The table is faulty.
        ResourceError: The file cannot be written, or the key of an earlier page is there.
    """
    root = folder_of_images(predictions) if isinstance(predictions, (str, Path)) and image_root is None else image_root
    if isinstance(predictions, Evaluation):
        result = predictions
    else:
        result = evaluate(predictions, image_root=image_root, **options)
    paths = result.predictions["path"].tolist()
    reach = Reach(root, paths)
    # guard: evaluation_outside
    faults = {path: fault for path in dict.fromkeys(paths) if (fault := reach.path_fault(path)) is not None}
    files = {str(root): "IMAGES"} if root is not None else {}
    with numbered_page(result.predictions, out, numbered=pseudonymise, files=files) as rows:
        patients = dict(zip(result.predictions["patient"], rows["patient"], strict=True))
        two_labels = [patients.get(patient, patient) for patient in result.two_labels]
        unopened = {path for path, given in zip(rows["path"], paths, strict=True) if given in faults}
        if any(map(os.path.isabs, faults)):
            remedy = next(iter(faults.values()))[2]
            logger.warning("%d images lie outside of %s and are not opened. %s", len(unopened), root, remedy)
        return _write_evaluation(replace(result, predictions=rows, two_labels=two_labels), Path(out), unopened)


def folder_of_images(predictions: str | Path) -> Path | None:
    """Return the folder below which the images of predictions are opened: that of a table; None for those of a run."""
    return None if Path(predictions).is_dir() else Path(predictions).parent


def _write_evaluation(result: Evaluation, out: Path, unopened: Collection[str]) -> Path:
    """Write the page of an evaluation; paths in `unopened` are treated as missing."""
    rows = result.predictions
    evaluated = rows[has_label_and_prediction(rows)]
    missing = [path for path in evaluated["path"].tolist() if path in unopened or not os.path.isfile(path)]
    caveats = result_caveats(result, missing=len(missing))
    audit = None if missing else audit_predictions(rows, positive=result.positive)
    return write_page(
        out,
        "evaluation.html",
        title=f"{' or '.join(result.classes)}: evaluation of predictions",
        heading="Agreement of the predictions with the labels",
        caveats=caveats,
        audit=describe_audit(audit),
        **describe_conclusion(result, audit, synthetic=are_synthetic(rows["path"])),
        saliency=None,
        examples=[],
        metrics={"Predictions": result.summary()},
        **describe_result(result, how="It is unknown whether the model was trained on any of them."),
        **describe_cases(result, unopened=unopened),
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
            "lungs not found": [_describe_boxes(row) for row in as_rows(audit.altered)],
        }
    )
    batch_effect = "; ".join(
        f"{row['class']}: AUC {format_metric(row['auc'])} ({format_interval(row['low'], row['high'])}, "
        f"n = {row['n']} patients)"
        for row in audit.batch_effect.to_dict("records")
    )
    answer, _, reasons = audit.verdict.sentence.partition(": ")  # the reasons are too long to be read in bold
    return {
        "verdict": {"level": level, "title": f"{answer}:", "reasons": reasons, "text": VERDICT_TEXT[level]},
        "conditions": conditions,
        "altered": altered if len(altered) else None,
        "batch_effect": batch_effect,
        **_baselines(audit.summary(), audit.shortcuts, audit.network),
    }


def _describe_boxes(row: Mapping[str, Any]) -> str:
    """Return on how many of the altered images the box took the place of the lungs."""
    if row["images"] == 0:
        return ""
    return "not stated" if row["images"] != row["images"] else f"{row['boxes']:.0f} of {row['images']:.0f} images"


def describe_shortcuts(shortcuts: ShortcutAudit) -> dict[str, Any]:
    """Return texts, a table and a figure of baselines without a network, by name, for a page."""
    return _baselines(shortcuts.summary(), shortcuts, None)


def _baselines(table: pd.DataFrame, shortcuts: ShortcutAudit, network: Mapping[str, Any] | None) -> dict[str, Any]:
    table["baseline"] = table["baseline"] + ": " + table.pop("input")
    alt = "AUC of baselines that see little or nothing of the lungs" + (", and of the network" if network else "")
    figure = draw_chart(plot_shortcuts(shortcuts, network=network), alt)
    return {"baselines": table, "notes": shortcuts.notes()[:-1], "figure": figure}


# texts of the report


def _device(built: Mapping[str, Any]) -> str:
    """Return device and number format of a training; runs of older versions did not record the format."""
    return " in ".join(str(built[key]) for key in ("device", "precision") if key in built)


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
    if fields.get("region") == "lungs":
        size += ", cropped to the lungs"
    own = "".join(f" Own {name}: {part}." for name, part in built.get("parts", {}).items())
    return f"{folds}{arch}, initialised with {start}{size}. One-cycle learning rates{': ' + plan if plan else ''}.{own}"


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
    if history["seconds"].isna().all():
        return ""
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def _task_title(task: Any, result: Evaluation) -> str:
    if isinstance(task, Mapping):
        return str(task.get("title") or task.get("name"))
    return f"Chest radiographs: {' or '.join(result.classes)}"


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


# figures and tables of the report


def _data_figures(run: Run, cohort: Cohort) -> list[dict[str, Any]]:
    charts = [draw_chart(plot_class_counts(cohort), "Images and patients by class and part")]
    if run.folder.batch_picture.is_file():
        source = as_data_uri(run.folder.batch_picture.read_bytes(), "image/png")
        text = "A training batch after augmentation, as given to the model"
        charts.append({"source": source, "alt": text, "caption": text + ".", "wide": False})
    return charts


def _describe_saliency(run: Run) -> dict[str, Any]:
    """Return the table of the class activation maps, None if it was not written, and some of the maps."""
    table, note = None, ""
    if run.folder.saliency.is_file():
        missing = {name: [""] for name in ("inside", "box", "border")}
        fractions = read_csv(run.folder.saliency, keep_default_na=False, na_values=missing)
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
    return {"saliency": table, "saliency_note": note, "examples": _examples(run)}


def _examples(run: Run) -> list[dict[str, Any]]:
    """Return a few images of each class with their maps: the first of `saliency.csv`, which is in random order."""
    if not run.folder.saliency.is_file():
        return []
    measured = read_csv(run.folder.saliency, usecols=["path", "of"], keep_default_na=False)
    rows = measured.merge(run.metrics.predictions, on="path")
    per_class = -(-EXAMPLES // max(1, rows["label"].nunique()))  # rounded up
    rows = rows.groupby("label", sort=False).head(per_class).sort_values("label", kind="stable").head(EXAMPLES)
    true_class = [row[PROBABILITY + row["label"]] for row in as_rows(rows)]
    return describe_images(rows.assign(predicted=rows["prediction"], probability=true_class), run.folder)


def _training_figures(run: Run) -> list[dict[str, Any]]:
    charts = [draw_chart(plot_history(run.history), "Loss and accuracy by epoch")]
    if run.folder.steps.is_file():
        charts.append(draw_chart(plot_learning_rate(run.steps), "Learning rate and training loss by step"))
    return charts


# tables of a run whose steps were called one by one


def _write_missing(learn: Learner, result: Evaluation, folder: RunFolder) -> None:
    """Write the missing tables of a report; `train_classifier` writes them, the single steps do not."""
    # here, since `render_report` needs no torch
    from covid_fastai.model.learner_facts import facts_of, log_model, remember_training

    facts, cohort = facts_of(learn), learn.dls.facts.cohort
    remember_training(learn)
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
        save_cohort(keep_columns(cohort), folder.path)
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
