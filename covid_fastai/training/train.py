"""`train_classifier` and `cross_validate`: the package's story, and the one place where its layers meet."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import no_random, num_distrib, rank_distrib

from covid_fastai.audit.audit import HEAT_FILE, PROBES_FILE, audit_run
from covid_fastai.audit.probes import write_probes
from covid_fastai.config import TrainConfig, TrainOptions, merge_options
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import fold_by_patient, split_by_image, split_by_patient
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.predict import predict
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.evaluation.runs import TRAINING_MANIFEST, Run, log_event, read_run
from covid_fastai.files import write_csv, write_json
from covid_fastai.model.bundle import save_model
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.model.distributed import (
    agree,
    broadcast_text,
    is_main_process,
    join_processes,
)
from covid_fastai.options import Folds, NJobs, checked
from covid_fastai.reporting.documents import write_documents
from covid_fastai.reporting.report import render_report, write_report
from covid_fastai.training.cross_validate import train_folds
from covid_fastai.training.fit_cohort import fit_cohort
from covid_fastai.training.run_context import keep_cohort, resolve_run, run_context

__all__ = ["cross_validate", "train_classifier"]

logger = logging.getLogger("covid_fastai")

READING = (  # the fields of TrainConfig that read_cohort takes under the same name
    *("task", "image_root", "path_column", "label_column", "patient_column", "split_column", "source_column"),
    *("view_column", "encoding", "negatives_per_positive", "exclude_pretraining_overlap", "seed", "on_problem"),
)


CHOICES_LINE = "**choices: The fields of `TrainConfig`, by name."


def _with_choices(function):
    """Show the fields of `TrainConfig` in the function's signature and docstring, for help and completion."""
    signature = inspect.signature(function)
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [parameter for parameter in inspect.signature(TrainConfig).parameters.values()]
    function.__signature__ = signature.replace(parameters=[*fixed, *fields])
    lines = [
        f"{name}: {TrainConfig.describe(name)} Default {field.default!r}."
        for name, field in TrainConfig.model_fields.items()
    ]
    function.__doc__ = function.__doc__.replace(CHOICES_LINE, "\n        ".join(lines))
    return function


@_with_choices
def train_classifier(
    data: str | Path | pd.DataFrame | None = None,
    *,
    config: TrainConfig | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **choices: Unpack[TrainOptions],
) -> Learner:
    """Train a classifier of chest radiographs, judge it on patients that it has not seen, and write a report.

    Reads the rows, checks every image, splits by patient, trains in two one-cycle phases (body frozen, then unfrozen),
    predicts the held-out images once, and computes every figure with its n and 95% interval. Research use only.

    Args:
        data: CoronaHack's folder or CSV, any CSV (name its columns), a folder that holds a folder a class, or a
            DataFrame of rows. May be left out with `resume`.
        config: All choices at once; options given by name replace those of the config. Not with `preset` or `resume`.
        preset: `"article"` for the settings of the article that this package follows, its faults left out.
        out: The run's folder, new or empty; None for `runs/<UTC time>-<task>-<4 letters>`.
        resume: The folder of an unfinished run, which is continued from its last whole epoch.
        callbacks: fastai callbacks that see the training.
        quiet: Log nothing but warnings.
        **choices: The fields of `TrainConfig`, by name.

    Returns:
        The fitted fastai `Learner`. `learn.path` is the run's folder; `read_run(learn.path)` reads it back.

    Raises:
        UsageError: An option does not exist or its value is not allowed.
        DataError: Rows or images are faulty; `.details` lists them all, and so does `problems.csv` in the run's folder.
        DivergenceError: The loss left the numbers; the run keeps its last good epoch and is not exported.
        ResourceError: The folder is in use, holds something else, or cannot be written.
        OfflineError: Weights were asked for that must be fetched, and no network answers.
    """
    options = merge_options(config, choices, preset=preset, resume=resume)
    with join_processes(options.get("device", "auto")):
        if not is_main_process():
            return _follow(data, preset=preset, resume=resume, choices=options, callbacks=callbacks)
        return _lead(data, preset=preset, out=out, resume=resume, choices=options, callbacks=callbacks, quiet=quiet)


def _lead(data, *, preset, out, resume, choices, callbacks, quiet) -> Learner:
    """Do all of `train_classifier`: as the only process, or as the one of several that writes."""
    data, config, folder = resolve_run(data, preset=preset, out=out, resume=resume, choices=choices)
    with run_context(folder, config, data, resuming=resume is not None, quiet=quiet), no_random(config.seed):
        cohort = _read(data, config, folder)
        cohort = _split(cohort, config)
        keep_cohort(cohort, folder, resuming=resume is not None)
        broadcast_text(str(folder))
        agree("The cohort", _rows_of(cohort))
        learn = fit_cohort(cohort, config, folder, callbacks=callbacks, resuming=resume is not None)
        predictions = predict(learn)
        if config.evaluate_test:
            predictions = pd.concat([predictions, _evaluate_test(learn, folder)], ignore_index=True)
        write_csv(folder / "predictions.csv", predictions)
        save_model(learn, folder / "model", training_manifest=folder / TRAINING_MANIFEST)
        clear_checkpoints(folder / "checkpoints")
        result = _judge(predictions, cohort, folder)
        if config.audit:
            write_probes(learn, cohort, folder, positive=cohort.facts.positive, seed=config.seed)
            audit_run(folder)
        log_event(folder, "finished")
        write_report(learn, result)
        write_documents(folder)
    return learn


def _follow(data, *, preset, resume, choices, callbacks) -> Learner:
    """Take a share of a training that another process leads: the same rows, and nothing is written or said."""
    logger.setLevel(logging.WARNING)
    if resume is not None:
        data, config, _ = resolve_run(data, preset=preset, out=None, resume=resume, choices=choices)
    else:
        config = TrainConfig.build(preset=preset, **choices)
    folder = Path(broadcast_text(""))  # it comes when the first process has read and checked everything
    with no_random(config.seed + rank_distrib()):  # its own draws; the first weights are those of the first process
        cohort = _split(read_cohort(data, **{name: getattr(config, name) for name in READING}), config)
        agree("The cohort", _rows_of(cohort))
        return fit_cohort(cohort, config, folder, callbacks=callbacks, resuming=resume is not None)


def _rows_of(cohort: pd.DataFrame) -> list[tuple]:
    return list(cohort[["path", "label", "patient", "split"]].itertuples(index=False, name=None))


@_with_choices
@checked
def cross_validate(
    data: str | Path | pd.DataFrame | None = None,
    *,
    folds: Folds = 5,
    n_jobs: NJobs = 1,
    config: TrainConfig | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **choices: Unpack[TrainOptions],
) -> Run:
    """Train once a fold and predict every patient by the one model that has not seen them.

    Args:
        data: As in `train_classifier`.
        folds: How many parts the patients are dealt into, 2 or more; `valid` and `evaluate_test` have no meaning here.
        n_jobs: How many folds are trained at the same time, each in a process of its own on Ray (extra `ray`), which
            may be a cluster whose machines share the run's folder. The processor cores are dealt out among them.
        config: As in `train_classifier`.
        preset: As in `train_classifier`.
        out: The run's folder; each fold has its own folder `fold-<k>` in it, with its model.
        resume: The folder of an unfinished cross-validation; finished folds are kept, the one begun goes on.
        callbacks: fastai callbacks; the same objects see every fold in turn.
        quiet: Log nothing but warnings.
        **choices: The fields of `TrainConfig`, by name.

    Returns:
        The run: `.predictions` holds the out-of-fold predictions with their `fold`, `.metrics` the figures over all of
        them, each patient counted once.

    Raises:
        UsageError: An option does not exist, or `folds`, `split` or `evaluate_test` cannot be had together.
        DataError: As in `train_classifier`; also where a class has fewer patients than there are folds.
        DivergenceError: As in `train_classifier`.
        ResourceError: As in `train_classifier`.
        OfflineError: As in `train_classifier`.
    """
    if num_distrib() > 1:
        raise UsageError("Folds are not trained by several processes.", hint="Use n_jobs=, or start one process.")
    options = merge_options(config, choices, preset=preset, resume=resume)
    data, config, folder = resolve_run(data, preset=preset, out=out, resume=resume, choices=options, folds=folds)
    resuming = resume is not None
    with run_context(folder, config, data, resuming=resuming, quiet=quiet, folds=folds):
        cohort = _read(data, config, folder)
        cohort = fold_by_patient(cohort, folds=folds, seed=config.seed)
        keep_cohort(cohort, folder, resuming=resuming)
        parts = [folder / f"fold-{fold}" for fold in range(folds)]
        left = [fold for fold, part in enumerate(parts) if not (part / "predictions.csv").exists()]
        for fold in train_folds(cohort, config, folder, left, n_jobs=n_jobs, callbacks=callbacks, resuming=resuming):
            log_event(folder, "fold finished", fold=fold)
        tables = [read_predictions(part / "predictions.csv") for part in parts]
        histories = [pd.read_csv(part / "history.csv").assign(fold=fold) for fold, part in enumerate(parts)]
        predictions = pd.concat(tables, ignore_index=True)
        write_csv(folder / "predictions.csv", predictions)
        write_csv(folder / "history.csv", pd.concat(histories, ignore_index=True))
        _judge(predictions, cohort, folder)
        if config.audit:
            for name in (PROBES_FILE, HEAT_FILE):
                text = {"patient": str, "label": str}  # a patient "007" is no number
                files = sorted(folder.glob(f"fold-*/{name}"))
                parts = [pd.read_csv(path, keep_default_na=False, dtype=text) for path in files]
                if parts:
                    write_csv(folder / name, pd.concat(parts, ignore_index=True))
            audit_run(folder)
        log_event(folder, "finished")
        render_report(folder)
        write_documents(folder)
    return read_run(folder)


def _read(data: Any, config: TrainConfig, folder: Path) -> pd.DataFrame:
    """Read and check the rows; what is faulty is written to `problems.csv`, whether it stops the run or not."""
    columns = ["row", "path", "kind", "severity", "reason", "remedy"]
    try:
        cohort = read_cohort(data, **{name: getattr(config, name) for name in READING})
    except DataError as error:
        write_csv(folder / "problems.csv", pd.DataFrame(error.details, columns=columns))
        raise
    write_csv(folder / "problems.csv", cohort.facts.problem_table())
    log_event(folder, "data read", images=len(cohort), patients_known=cohort.patients_known)
    return cohort


def _split(cohort: pd.DataFrame, config: TrainConfig) -> pd.DataFrame:
    split = split_by_patient if config.split == "patient" else split_by_image
    return split(cohort, valid_pct=config.valid_pct, seed=config.seed)


def _evaluate_test(learn: Learner, folder: Path) -> pd.DataFrame:
    """Predict the official TEST, and write down that it was touched."""
    cohort = learn.dls.cohort
    rows = cohort[cohort["split"] == "test"]
    if rows.empty:
        raise UsageError(
            f"The task {cohort.facts.task!r} has no official TEST in these data.", hint="Leave out evaluate_test."
        )
    log_event(folder, "test evaluated", images=len(rows), patients=int(rows["patient"].nunique()))
    return predict(learn, split="test")


def _judge(predictions: pd.DataFrame, cohort: pd.DataFrame, folder: Path):
    """Evaluate each split's predictions, write `metrics.json`, and return the evaluation of the held-out patients."""
    results = {
        split: evaluate(rows.reset_index(drop=True), positive=cohort.facts.positive)
        for split, rows in predictions.groupby("split", sort=False)
    }
    write_json(folder / "metrics.json", {split: result.to_dict() for split, result in results.items()})
    return results["valid"]
