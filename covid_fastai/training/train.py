"""`train_classifier`: every step from a table of images to a report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.metrics import accuracy

from covid_fastai.audit.audit import audit_run
from covid_fastai.audit.probes import write_probes
from covid_fastai.audit.runs import read_run
from covid_fastai.config import TrainConfig, TrainOptions, merge_options
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.splits import split_by_image, split_by_patient, split_officially
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.metrics import Evaluation, evaluate
from covid_fastai.evaluation.predict import predict
from covid_fastai.files import write_csv, write_json
from covid_fastai.model.bundle import save_model
from covid_fastai.model.checkpoint import clear_checkpoints
from covid_fastai.model.distributed import is_main_process, join_processes, main_process_first
from covid_fastai.model.own_parts import OwnParts
from covid_fastai.reporting.closing import show_closing
from covid_fastai.reporting.documents import write_documents
from covid_fastai.reporting.report import write_report
from covid_fastai.run_folder import FINISHED, TEST_EVALUATED, RunFolder
from covid_fastai.training.fit_cohort import fit_cohort
from covid_fastai.training.run_context import RunPlan, device_of, resolve_run, run_context, write_cohort, write_crops

__all__ = ["finish_run", "train_classifier", "with_choices", "write_results"]

CHOICES_LINE = "**choices: The fields of `TrainConfig`, by name."


def with_choices(function):
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


@with_choices
def train_classifier(
    data: str | Path | pd.DataFrame | None = None,
    *,
    config: TrainConfig | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    loss_func: Callable[..., Any] | None = None,
    metrics: Sequence[Any] | Any = accuracy,
    opt_func: Callable[..., Any] | None = None,
    quiet: bool = False,
    **choices: Unpack[TrainOptions],
) -> Learner:
    """Train a classifier of chest radiographs, evaluate it on held-out patients, and write a report.

    Reads the rows, checks every image, splits by patient, trains in two one-cycle phases (body frozen, then unfrozen),
    predicts the held-out images once, and computes every metric with its n and 95% interval. Research use only.

    Args:
        data: CoronaHack's folder or CSV, any other CSV (name its columns), a folder with one folder per class, or a
            DataFrame. Optional with `resume`.
        config: All options in one object; options given by name override it. Not with `preset` or `resume`.
        preset: `"article"` for the settings of the article that this package follows, without its errors.
        out: The run's folder, new or empty; None for `runs/<UTC time>-<task>-<4 letters>`.
        resume: The folder of an unfinished run, which is continued from its last complete epoch.
        callbacks: fastai callbacks for the training.
        loss_func: As in `build_learner`. To resume a run, give it again, as well as `metrics`, `opt_func` and a list
            of transforms as `augmentation`.
        metrics: As in `build_learner`.
        opt_func: As in `build_learner`.
        quiet: Log warnings only, and do not print the verdict, the metrics and what to do next.
        **choices: The fields of `TrainConfig`, by name.

    Returns:
        The fitted fastai `Learner`. `learn.path` is the run's folder; `read_run(learn.path)` reads it back.

    Raises:
        UsageError: An option does not exist or its value is not allowed.
        DataError: Rows or images are faulty; `.details` and `problems.csv` in the run's folder list all of them.
        DivergenceError: The loss became NaN or infinite; the run keeps its last good epoch and saves no model.
        ResourceError: The folder is in use, is not empty, or cannot be written to.
        OfflineError: The weights have to be downloaded, and the network or the server does not answer.

    Examples:
        >>> from covid_fastai import TrainConfig, read_run
        >>> config = TrainConfig(weights=None, image_size=32, batch_size=8, frozen_epochs=0, unfrozen_epochs=1)
        >>> learn = train_classifier(data, config=config, audit=False, num_workers=0, out="run", quiet=True)
        >>> read_run(learn.path).metrics.unit
        'patient'
    """
    options = merge_options(config, choices, preset=preset, resume=resume)
    parts = {"callbacks": callbacks, "loss_func": loss_func, "metrics": metrics, "opt_func": opt_func}
    own = OwnParts.take(options, resuming=resume is not None, **parts)
    with join_processes(device_of(resume, options)):
        run = resolve_run(data, preset=preset, out=out, resume=resume, choices=options)
        config, folder = run.config, run.folder
        with run_context(run, quiet=quiet):
            with main_process_first():
                cohort = read_cohort(run.data, **config.options_of(read_cohort))
            if config.split == "official":
                cohort = split_officially(cohort)
            else:
                split = split_by_patient if config.split == "patient" else split_by_image
                cohort = split(cohort, valid_pct=config.valid_pct, seed=config.seed)
            cohort = write_cohort(cohort, run)
            learn = fit_cohort(cohort, config, folder, own=own, resuming=run.resuming)
            if not is_main_process():
                return learn
            write_crops(cohort, run)
            preds = predict(learn)
            result = evaluate(preds, positive=cohort.facts.positive)
            write_results(learn, run, preds, result)
            if config.audit:
                write_probes(learn, cohort, folder.path, positive=cohort.facts.positive, seed=config.seed)
                audit_run(folder.path)
            write_report(learn, result)
            write_documents(folder.path)
            finish_run(folder)
        if not quiet:
            show_closing(read_run(folder.path))
        return learn


def write_results(learn: Learner, run: RunPlan, preds: pd.DataFrame, result: Evaluation) -> None:
    """Write the model, predictions and metrics into the run; with `evaluate_test` also those of the official TEST.

    Raises:
        UsageError: `evaluate_test` is set, and the data have no official TEST.
    """
    folder, evaluations = run.folder, {"valid": result}
    if run.config.evaluate_test:
        test_preds = _predict_test(learn, folder)
        evaluations["test"] = evaluate(test_preds, positive=result.positive)
        preds = pd.concat([preds, test_preds], ignore_index=True)
    write_csv(folder.predictions, preds)
    save_model(learn, folder.model, training_manifest=folder.training_manifest)
    write_json(folder.metrics, {split: evaluation.to_dict() for split, evaluation in evaluations.items()})


def finish_run(folder: RunFolder) -> None:
    """Record that a run is finished, and only then remove what it could be resumed from.

    A run whose audit or report fails, or is killed, can thus be resumed: it trains nothing again.
    """
    folder.log(FINISHED)  # guard: finished_last
    clear_checkpoints(folder.checkpoints)


def _predict_test(learn: Learner, folder: RunFolder) -> pd.DataFrame:
    """Predict the official TEST, and record that it was evaluated."""
    cohort = learn.dls.facts.cohort
    rows = cohort[cohort["split"] == "test"]
    if rows.empty:
        raise UsageError(
            f"The task {cohort.facts.task!r} has no official TEST in these data.", hint="Leave out evaluate_test."
        )
    folder.log(TEST_EVALUATED, images=len(rows), patients=int(rows["patient"].nunique()))
    return predict(learn, split="test")
