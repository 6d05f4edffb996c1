"""`train_classifier` and `cross_validate`: the package's story, and the one place where its layers meet."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import no_random

from covid_fastai.config import TrainConfig
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import fold_by_patient, fold_cohort, split_by_image, split_by_patient
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evidence.audit import HEAT_FILE, PROBES_FILE, audit_run
from covid_fastai.evidence.documents import write_documents
from covid_fastai.evidence.metrics import evaluate
from covid_fastai.evidence.prediction_table import read_predictions
from covid_fastai.evidence.predictions import predict
from covid_fastai.evidence.probes import write_probes
from covid_fastai.evidence.report import render_report, write_report
from covid_fastai.evidence.runs import TRAINING_MANIFEST, Run, log_event, read_run
from covid_fastai.files import write_csv, write_json
from covid_fastai.model.bundle import save_model
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.model.learner import build_learner
from covid_fastai.model.schedule import fit
from covid_fastai.run_folder import keep_cohort, own_run, settle_run

__all__ = ["cross_validate", "fit_cohort", "train_classifier"]

logger = logging.getLogger("covid_fastai")

READING = (  # the fields of TrainConfig that read_cohort takes under the same name
    *("task", "image_root", "path_column", "label_column", "patient_column", "split_column", "source_column"),
    *("view_column", "encoding", "negatives_per_positive", "guard_seen", "seed", "on_problem"),
)


CHOICES_LINE = "**choices: The fields of `TrainConfig`, by name."


def _with_choices(function):
    """Show the fields of `TrainConfig` in the function's signature and docstring, for help and completion."""
    signature = inspect.signature(function)
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in TrainConfig.model_fields.items()
    ]
    function.__signature__ = signature.replace(parameters=[*fixed, *fields])
    lines = [
        f"{name}: {field.description} Default {field.default!r}." for name, field in TrainConfig.model_fields.items()
    ]
    function.__doc__ = function.__doc__.replace(CHOICES_LINE, "\n        ".join(lines))
    return function


@_with_choices
def train_classifier(
    data: str | Path | pd.DataFrame | None = None,
    *,
    preset: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **choices: Any,
) -> Learner:
    """Train a classifier of chest radiographs, judge it on patients that it has not seen, and write a report.

    Reads the rows, checks every image, splits by patient, trains in two one-cycle phases (body frozen, then unfrozen),
    predicts the held-out images once, and computes every figure with its n and 95% interval. Research use only.

    Args:
        data: CoronaHack's folder or CSV, any CSV (name its columns), a folder that holds a folder a class, or a
            DataFrame of rows. May be left out with `resume`.
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
        Diverged: The loss left the numbers; the run keeps its last good epoch and is not exported.
        ResourceError: The folder is in use, holds something else, or cannot be written.
        OfflineError: Weights were asked for that must be fetched, and no network answers.
    """
    data, config, folder = settle_run(data, preset=preset, out=out, resume=resume, choices=choices)
    with own_run(folder, config, data, resuming=resume is not None, quiet=quiet), no_random(config.seed):
        cohort = _read(data, config, folder)
        cohort = _split(cohort, config)
        keep_cohort(cohort, folder, resuming=resume is not None)
        learn = fit_cohort(cohort, config, folder, callbacks=callbacks, resuming=resume is not None)
        predictions = predict(learn)
        if config.touch_test:
            predictions = pd.concat([predictions, _touch_test(learn, folder)], ignore_index=True)
        write_csv(folder / "predictions.csv", predictions)
        save_model(learn, folder / "model", training_manifest=folder / TRAINING_MANIFEST)
        clear_checkpoints(folder / "checkpoints")
        result = _judge(predictions, cohort, folder)
        if config.audit:
            write_probes(learn, cohort, folder, positive=cohort.attrs["positive"], seed=config.seed)
            audit_run(folder)
        log_event(folder, "finished")
        write_report(learn, result)
        write_documents(folder)
    return learn


@_with_choices
def cross_validate(
    data: str | Path | pd.DataFrame | None = None,
    *,
    folds: int = 5,
    preset: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **choices: Any,
) -> Run:
    """Train once a fold and predict every patient by the one model that has not seen them.

    Args:
        data: As in `train_classifier`.
        folds: How many parts the patients are dealt into, 2 or more; `valid` and `touch_test` have no meaning here.
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
        UsageError: An option does not exist, or `folds`, `split` or `touch_test` cannot be had together.
        DataError: As in `train_classifier`; also where a class has fewer patients than there are folds.
        Diverged: As in `train_classifier`.
        ResourceError: As in `train_classifier`.
        OfflineError: As in `train_classifier`.
    """
    data, config, folder = settle_run(data, preset=preset, out=out, resume=resume, choices=choices, folds=folds)
    resuming = resume is not None
    with own_run(folder, config, data, resuming=resuming, quiet=quiet, folds=folds):
        cohort = _read(data, config, folder)
        cohort = fold_by_patient(cohort, folds=folds, seed=config.seed)
        keep_cohort(cohort, folder, resuming=resuming)
        tables, histories = [], []
        for fold in range(folds):
            part = folder / f"fold-{fold}"
            part.mkdir(exist_ok=True)
            if not (part / "predictions.csv").exists():
                logger.info("fold %d of %d", fold + 1, folds)
                with no_random(config.seed + fold):
                    rows, positive = fold_cohort(cohort, fold), cohort.attrs["positive"]
                    learn = fit_cohort(rows, config, part, callbacks=callbacks, resuming=resuming)
                    save_model(learn, part / "model")
                    if config.audit:
                        write_probes(learn, rows, part, positive=positive, fold=fold, seed=config.seed)
                    write_csv(part / "predictions.csv", predict(learn, fold=fold))
                    clear_checkpoints(part / "checkpoints")
                log_event(folder, "fold finished", fold=fold)
            tables.append(read_predictions(part / "predictions.csv"))
            histories.append(pd.read_csv(part / "history.csv").assign(fold=fold))
        predictions = pd.concat(tables, ignore_index=True)
        write_csv(folder / "predictions.csv", predictions)
        write_csv(folder / "history.csv", pd.concat(histories, ignore_index=True))
        _judge(predictions, cohort, folder)
        if config.audit:
            for name in (PROBES_FILE, HEAT_FILE):
                parts = [pd.read_csv(path, keep_default_na=False) for path in sorted(folder.glob(f"fold-*/{name}"))]
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
    write_csv(folder / "problems.csv", pd.DataFrame(cohort.attrs["problems"], columns=columns))
    log_event(folder, "data read", images=len(cohort), patients_known=cohort.attrs["patients_known"])
    return cohort


def _split(cohort: pd.DataFrame, config: TrainConfig) -> pd.DataFrame:
    split = split_by_patient if config.split == "patient" else split_by_image
    return split(cohort, valid=config.valid, seed=config.seed)


def fit_cohort(
    cohort: pd.DataFrame, config: TrainConfig, folder: Path, *, callbacks: Sequence[Callback], resuming: bool
) -> Learner:
    """Build the loaders and the learner, and fit it, with a checkpoint an epoch in the run's folder.

    Args:
        cohort: With its split.
        config: What is chosen.
        folder: Where checkpoints, `history.csv` and `steps.csv` go, and the record.
        callbacks: fastai callbacks.
        resuming: Go on from the last checkpoint that is there.

    Returns:
        The fitted learner.
    """
    dls = build_dataloaders(
        cohort,
        image_size=config.image_size,
        batch_size=config.batch_size,
        augmentation=config.augmentation,
        balance=config.balance,
        num_workers=config.num_workers,
        device=config.device,
        path=folder,
    )
    learn = build_learner(
        dls,
        arch=config.arch,
        weights=config.weights,
        path=folder,
        balance=config.balance,
        weight_decay=config.weight_decay,
        gradient_clip=config.gradient_clip,
        precision=config.precision,
        callbacks=callbacks,
    )
    log_event(folder, "model built", arch=learn.arch, device=str(dls.device), weights=learn.weights.to_dict())
    try:
        fit(
            learn,
            frozen_epochs=config.frozen_epochs,
            unfrozen_epochs=config.unfrozen_epochs,
            learning_rate=config.learning_rate,
            unfrozen_learning_rate=config.unfrozen_learning_rate,
            discriminative=config.discriminative,
            frozen_views=config.frozen_views,
            initial_image_size=config.initial_image_size,
            checkpoints=folder / "checkpoints",
            resume=resuming,
        )
    finally:  # the epochs that there were, also where the last one failed
        if hasattr(learn, "history"):
            write_csv(folder / "history.csv", learn.history)
            write_csv(folder / "steps.csv", learn.steps)
    return learn


def _touch_test(learn: Learner, folder: Path) -> pd.DataFrame:
    """Predict the official TEST, and write down that it was touched."""
    cohort = learn.dls.cohort
    rows = cohort[cohort["split"] == "test"]
    if rows.empty:
        raise UsageError(
            f"The task {cohort.attrs['task']!r} has no official TEST in these data.", hint="Leave out touch_test."
        )
    log_event(folder, "test touched", images=len(rows), patients=int(rows["patient"].nunique()))
    return predict(learn, split="test")


def _judge(predictions: pd.DataFrame, cohort: pd.DataFrame, folder: Path):
    """Evaluate each split's predictions, write `metrics.json`, and return the evaluation of the held-out patients."""
    results = {
        split: evaluate(rows.reset_index(drop=True), positive=cohort.attrs["positive"])
        for split, rows in predictions.groupby("split", sort=False)
    }
    write_json(folder / "metrics.json", {split: result.to_dict() for split, result in results.items()})
    return results["valid"]
