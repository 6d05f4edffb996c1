"""Plot training curves, ROC and precision-recall curves with 95% bands, and predicted probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from covid_fastai.errors import UsageError
from covid_fastai.evaluation.bootstrap import (
    LARGEST_DRAWN,
    precision_at,
    resample_by_score,
    resample_patients,
    sensitivity_at,
)
from covid_fastai.evaluation.formatting import format_estimate
from covid_fastai.evaluation.metrics import Evaluation, as_evaluation, score_units
from covid_fastai.evaluation.prediction_table import PROBABILITY
from covid_fastai.figures import Figure
from covid_fastai.options import Seed, checked
from covid_fastai.plotting import COLOURS, GREY, class_colours, draw_band

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = [
    "plot_history",
    "plot_learning_rate",
    "plot_precision_recall",
    "plot_probabilities",
    "plot_roc",
]

TRAIN, VALID = COLOURS[:2]
BAND_RESAMPLES = 500  # enough for the two percentiles of a plotted band
GRID = np.linspace(0, 1, 201)
MOST_DOTS = 2000  # of a class; more would cover each other, and a page with all of them would be megabytes larger


def plot_history(history: pd.DataFrame | Learner) -> Figure:
    """Plot loss and metrics by epoch; the frozen phase is shaded.

    Args:
        history: One row per epoch, as in `learn.facts.history` or the `history.csv` of a run. With the column `fold`,
            one line per fold is plotted. Or a learner that `fit` has trained.

    Returns:
        The figure, with a panel for the losses and one for each metric.

    Raises:
        UsageError: The learner has no history.

    Examples:
        >>> figure = plot_history(learn)
        >>> [axes.get_title() for axes in figure.axes]
        ['Loss', 'Validation accuracy']
    """
    if not isinstance(history, pd.DataFrame):
        history = _history_of(history)
    metrics = [
        name for name in history if name not in ("phase", "epoch", "train_loss", "valid_loss", "seconds", "fold")
    ]
    figure = Figure(figsize=(4 * (1 + len(metrics)), 3.2), layout="constrained")
    panels = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
    folds = [rows for _, rows in history.groupby("fold")] if "fold" in history else [history]
    for number, rows in enumerate(folds):
        for name, colour, text in (("train_loss", TRAIN, "training"), ("valid_loss", VALID, "validation")):
            label = text if number == 0 else None
            panels[0].plot(rows["epoch"], rows[name], color=colour, marker="o", markersize=3, label=label)
        for axes, name in zip(panels[1:], metrics, strict=True):
            axes.plot(rows["epoch"], rows[name], color=VALID, marker="o", markersize=3)
    panels[0].set(ylabel="cross-entropy", title="Loss")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    for axes, name in zip(panels[1:], metrics, strict=True):
        axes.set(title=f"Validation {name}")
        if history[name].between(0, 1).all():  # a metric of the user's may have other values
            axes.set_ylim(0, 1.03)
    frozen = int((folds[0]["phase"] == "frozen").sum())
    for axes in panels:
        _label_axes(axes, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if 0 < frozen < len(folds[0]):
            axes.axvspan(0.5, frozen + 0.5, color="#888888", alpha=0.12, lw=0)
            axes.text(0.55, 0.98, " body frozen", transform=axes.get_xaxis_transform(), fontsize=7, va="top")
        axes.set_xlim(0.5, history["epoch"].max() + 0.5)
    return figure


def plot_learning_rate(steps: pd.DataFrame) -> Figure:
    """Plot the head's learning rate and the smoothed training loss by step.

    Args:
        steps: One row per step, as in `learn.facts.steps` or the `steps.csv` of a run.

    Returns:
        The figure, with two panels.
    """
    figure = Figure(figsize=(8, 3), layout="constrained")
    rate, loss = figure.subplots(1, 2)
    rate.plot(steps["step"], steps["learning_rate"], color=TRAIN)
    rate.set(title="Learning rate of the head (one-cycle)")
    loss.plot(steps["step"], steps["train_loss"], color=TRAIN)
    loss.set(title="Training loss, smoothed", ylabel="cross-entropy")
    loss.set_ylim(bottom=0)
    frozen = int((steps["phase"] == "frozen").sum())
    for axes in (rate, loss):
        _label_axes(axes, xlabel="step")
        if 0 < frozen < len(steps):
            axes.axvspan(0, frozen, color="#888888", alpha=0.12, lw=0)
    return figure


@checked
def plot_roc(evaluation: Evaluation | pd.DataFrame | str | Path, *, seed: Seed = 0) -> Figure:
    """Plot the ROC curve with its 95% band; with more than two classes, one curve per class.

    At each false positive rate the band includes the middle 95% of 500 bootstrap resamples of patients.

    Args:
        evaluation: What `evaluate` returned, or predictions.
        seed: Seed of the bootstrap.

    Returns:
        The figure.

    Raises:
        UsageError: The evaluation has no predictions.

    Examples:
        >>> figure = plot_roc(predictions)
        >>> figure.axes[0].get_title()
        'ROC, n = 60 patients'
    """
    evaluation = as_evaluation(evaluation)
    figure, axes = _square_axes()
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    # the curve shows all folds together, and so does its area
    area = "auc_pooled" if evaluation.metrics["metric"].eq("auc_pooled").any() else "auc"
    for name, colour, curve, low, high in _curves(evaluation, sensitivity_at, seed=seed):
        label = f"{name}: AUC {_format_row(evaluation.row(area, name))}"
        draw_band(axes, GRID, curve, low, high, colour=colour, label=label)
    _label_axes(axes, xlabel="1 - specificity", ylabel="sensitivity", title=f"ROC, n = {_format_count(evaluation)}")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return figure


@checked
def plot_precision_recall(evaluation: Evaluation, *, seed: Seed = 0) -> Figure:
    """Plot the precision-recall curve with its 95% band; with more than two classes, one curve per class.

    Precision depends on the prevalence of the class in these data (the dotted line), which differs from that in a
    hospital.

    Args:
        evaluation: What `evaluate` returned.
        seed: Seed of the bootstrap.

    Returns:
        The figure.

    Raises:
        UsageError: The evaluation has no predictions.
    """
    figure, axes = _square_axes()
    labels = score_units(evaluation.predictions, unit=evaluation.unit).table["label"]
    for name, colour, curve, low, high in _curves(evaluation, precision_at, seed=seed):
        label = f"{name}: AP {_format_row(evaluation.row('average_precision', name))}"
        axes.axhline((labels == name).mean(), color=colour, lw=0.8, ls=":")
        draw_band(axes, GRID, curve, low, high, colour=colour, label=label)
    title = f"Precision and recall, n = {_format_count(evaluation)}"
    _label_axes(axes, xlabel="recall (sensitivity)", ylabel="precision", title=title)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    return figure


def plot_probabilities(evaluation: Evaluation) -> Figure:
    """Plot the predicted probabilities by true class, one dot per patient, with the threshold.

    Of a class with more than 2,000 patients, 2,000 are drawn at random, which the figure states.

    Args:
        evaluation: What `evaluate` returned.

    Returns:
        The figure, with the probability of the positive class; with more than two classes, that of the true class.

    Raises:
        UsageError: The evaluation has no predictions.
    """
    units = _units(evaluation)
    classes, colours = evaluation.classes, class_colours(evaluation.classes)
    figure = Figure(figsize=(6, 1.1 + 0.7 * len(classes)), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)  # random heights keep dots from overlapping
    for height, name in enumerate(classes):
        p = units.loc[units["label"] == name, PROBABILITY + (evaluation.positive or name)].to_numpy()
        if len(p) > MOST_DOTS:
            p = rng.choice(p, MOST_DOTS, replace=False)
        axes.scatter(p, height + rng.uniform(-0.3, 0.3, len(p)), s=10, color=colours[name], alpha=0.55, lw=0)
    if evaluation.threshold is not None:
        axes.axvline(evaluation.threshold, color="#555555", lw=0.8, ls="--")
    counts = units["label"].value_counts().reindex(classes, fill_value=0)
    ticks = [f"{name}\nn = {counts[name]}" for name in classes]
    title = f"One dot per {evaluation.unit}"
    if counts.max() > MOST_DOTS:
        title += f",\n{MOST_DOTS} of a class at most, drawn at random"
    axes.set(yticks=range(len(classes)), yticklabels=ticks, xlim=(-0.02, 1.02))
    axes.invert_yaxis()
    label = f"probability of {evaluation.positive or 'the true class'}"
    _label_axes(axes, xlabel=label, title=title)
    return figure


def _curves(evaluation: Evaluation, compute, *, seed: int):
    """Yield class, colour, curve, and lower and upper bound of the band, each `(len(GRID),)`.

    Yields those of the positive class, or with more than two classes those of each class in the data.
    """
    units = _units(evaluation)
    colours = class_colours(evaluation.classes)
    equal_weights = np.ones((1, len(units)))  # the data themselves: each unit once
    for name in [evaluation.positive] if evaluation.positive else evaluation.classes:
        of_class = (units["label"] == name).to_numpy()
        if of_class.all() or not of_class.any():
            continue
        scores = units[PROBABILITY + name].to_numpy()
        resampled = compute(GRID, *_resample(scores, of_class, units, seed=seed))
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        yield name, colours[name], compute(GRID, scores, of_class, equal_weights)[0], low, high


def _resample(
    scores: np.ndarray, of_class: np.ndarray, units: pd.DataFrame, *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, classes and weights of resamples; of many units those of groups of units."""
    options = {"n_resamples": BAND_RESAMPLES, "seed": seed}
    if len(units) > LARGEST_DRAWN:
        return resample_by_score(scores, of_class, units["patient"], units["label"], **options)
    return scores, of_class, resample_patients(units["patient"], units["label"], **options).astype(float)


def _history_of(learn: Learner) -> pd.DataFrame:
    """Return the history of a trained learner."""
    history = getattr(getattr(learn, "facts", None), "history", None)
    if history is None or history.empty:
        raise UsageError("The learner has no history.", hint="Train it with fit, or give the table of a run.")
    return history


def _units(evaluation: Evaluation) -> pd.DataFrame:
    evaluation = as_evaluation(evaluation)
    return score_units(evaluation.predictions, positive=evaluation.positive, unit=evaluation.unit).table


def _format_row(row: Mapping[str, Any]) -> str:
    """Return a row of `Evaluation.metrics` as value and interval."""
    return format_estimate(row["value"], row["low"], row["high"])


def _format_count(evaluation: Evaluation) -> str:
    """Return the number of evaluated units, such as `60 patients`."""
    return f"{int(evaluation.confusion.to_numpy().sum())} {evaluation.unit}s"


def _square_axes() -> tuple[Figure, Axes]:
    """Return a figure with axes from 0 to 1 in both directions."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    return figure, axes


def _label_axes(axes: Axes, **labels: str) -> None:
    """Set labels and title, and hide the upper and right border."""
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
