"""Confusion matrix and top losses, of a `Learner` or of a predictions table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from covid_fastai.data.exploration import SHOWN, plot_pictures, shorten
from covid_fastai.data.images import open_square
from covid_fastai.data.tables import as_rows
from covid_fastai.errors import ImageError, UsageError
from covid_fastai.evaluation.formatting import PERCENT, format_metric
from covid_fastai.evaluation.metrics import SMALLEST_P, Evaluation
from covid_fastai.evaluation.prediction_table import (
    PROBABILITY,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.figures import Figure
from covid_fastai.options import TopK, checked
from covid_fastai.plotting import COLOURS

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = ["confusion_matrix", "open_for_display", "plot_confusion_matrix", "plot_top_losses", "top_losses"]

DARKEST_CELL = 0.6  # opacity of a cell with all patients of its class, on which text is legible
LOSSES = ["path", "patient", "label", "predicted", "probability", "loss"]


def confusion_matrix(source: Learner | Evaluation | pd.DataFrame | str | Path) -> pd.DataFrame:
    """Count images by true and predicted class; for an evaluation, count its units.

    Args:
        source: A learner, whose validation images are predicted with fastai's `ClassificationInterpretation`; an
            evaluation; or predictions, as a table or CSV that `read_predictions` accepts.

    Returns:
        Counts, true class by row, predicted class by column.
    """
    if isinstance(source, Evaluation):
        return source.confusion
    if isinstance(source, (pd.DataFrame, str, Path)):
        table = read_predictions(source)
        classes = class_columns(table)
        table = table[has_label_and_prediction(table)]
        counts = pd.crosstab(table["label"], table["prediction"]).reindex(classes, fill_value=0)
        counts = counts.reindex(columns=classes, fill_value=0)
    else:
        counts = pd.DataFrame(_interpret(source).confusion_matrix(), index=list(source.dls.vocab))
        counts.columns = list(source.dls.vocab)
    return counts.rename_axis(index="true", columns="predicted").astype(int)


@checked
def top_losses(source: Learner | Evaluation | pd.DataFrame | str | Path, *, k: TopK = 9) -> pd.DataFrame:
    """Return the images with the largest losses, the largest first.

    Args:
        source: As in `confusion_matrix`.
        k: Number of images; all if there are fewer.

    Returns:
        `path`, `patient`, `label` (true), `predicted`, `probability` (of the true class, 0 to 1) and `loss`
        (cross-entropy, minus its natural logarithm).
    """
    if isinstance(source, (pd.DataFrame, str, Path)):
        table = read_predictions(source)
    elif isinstance(source, Evaluation):
        table = source.predictions
    else:
        return _learner_losses(source, k)
    table = table[has_label_and_prediction(table)] if len(table) else table
    if table.empty:
        raise UsageError("There is no labelled prediction to rank.", hint="Give a table with labels.")
    classes = class_columns(table)
    p = table[[PROBABILITY + name for name in classes]].to_numpy()
    truth = pd.Categorical(table["label"], categories=classes).codes
    probability = p[np.arange(len(table)), truth]
    losses = table[["path", "patient", "label"]].assign(
        predicted=table["prediction"], probability=probability, loss=-np.log(np.clip(probability, SMALLEST_P, 1))
    )
    return losses.sort_values("loss", ascending=False, kind="stable").head(k).reset_index(drop=True)[LOSSES]


def plot_confusion_matrix(source: Learner | Evaluation | pd.DataFrame | str | Path) -> Figure:
    """Plot the confusion matrix, with counts and fractions of each true class.

    Args:
        source: As in `confusion_matrix`.

    Returns:
        The figure.

    Examples:
        >>> figure = plot_confusion_matrix(predictions)
        >>> figure.axes[0].get_title()
        'Confusion matrix (images)'
    """
    counts = confusion_matrix(source)
    sums = counts.sum(axis=1)
    fractions = counts.div(sums.where(sums > 0), axis=0)  # NaN for a class without images
    side = 2.2 + 0.9 * len(counts)
    figure = Figure(figsize=(side, side - 0.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.5, len(counts) - 0.5), ylim=(len(counts) - 0.5, -0.5), aspect="equal")
    for (row, column), fraction in np.ndenumerate(fractions.to_numpy(dtype=float)):
        opacity = 0 if np.isnan(fraction) else DARKEST_CELL * fraction
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=COLOURS[0], alpha=opacity, lw=0))
        count = "n = 0" if np.isnan(fraction) else str(counts.iat[row, column])
        axes.text(column, row, f"{count}\n{format_metric(fraction, spec=PERCENT)}", ha="center", va="center")
    row_labels = [f"{name}\nn = {sums[name]}" for name in counts.index]
    axes.set(xticks=range(len(counts)), xticklabels=counts.columns, yticks=range(len(counts)), yticklabels=row_labels)
    unit = f" ({source.unit}s)" if isinstance(source, Evaluation) else " (images)"
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix{unit}")
    return figure


@checked
def plot_top_losses(source: Learner | Evaluation | pd.DataFrame | str | Path, *, k: TopK = 9) -> Figure:
    """Plot the images with the largest losses, each with its true and predicted class, probability and file.

    Args:
        source: As in `confusion_matrix`.
        k: Highest number of images.

    Returns:
        The figure.

    Examples:
        >>> figure = plot_top_losses(learn, k=4)
        >>> sum(bool(axes.images) for axes in figure.axes)
        4
    """
    rows = as_rows(top_losses(source, k=k))
    return plot_pictures([open_for_display(row["path"]) for row in rows], [_caption(row) for row in rows], columns=3)


def open_for_display(path: str | Path) -> np.ndarray | None:
    """Return an image resized to a square as for the model, uint8 `(256, 256)`; None if it cannot be read."""
    try:
        return np.asarray(open_square(path, SHOWN))
    except ImageError:
        return None  # a table may be evaluated on a machine without the images


def _caption(row: dict[str, Any]) -> str:
    classes = row["label"] if row["label"] == row["predicted"] else f"{row['label']}, predicted {row['predicted']}"
    return f"{classes}\np(true) = {format_metric(row['probability'])}\n{shorten(Path(row['path']).name, 26)}"


def _interpret(learn: Learner):
    from fastai.interpret import ClassificationInterpretation  # imported here: tables are evaluated without fastai

    with learn.no_bar(), learn.no_logging():
        return ClassificationInterpretation.from_learner(learn)


def _learner_losses(learn: Learner, k: int) -> pd.DataFrame:
    """Return `top_losses` of a learner's validation images."""
    interpretation = _interpret(learn)
    with learn.no_bar(), learn.no_logging():
        losses, indices = interpretation.top_losses(min(k, len(learn.dls.valid_ds)))
    cohort = learn.dls.facts.cohort
    rows = cohort[cohort["split"] == "valid"].reset_index(drop=True).iloc[indices.tolist()]
    probability = np.exp(-np.asarray(losses, dtype=float))  # the loss is minus the log of this probability
    with learn.no_bar(), learn.no_logging():
        predicted = learn.get_preds(dl=learn.dls.valid)[0].argmax(dim=1)[indices]
    rows = rows.assign(predicted=[learn.dls.vocab[int(number)] for number in predicted])
    rows = rows.assign(probability=probability, loss=np.asarray(losses, dtype=float))
    return rows.reset_index(drop=True)[LOSSES]
