"""Confusion matrix and top losses: from a `Learner` by fastai's interpretation, or from a predictions table alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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
from covid_fastai.options import TopK, checked

if TYPE_CHECKING:
    from fastai.learner import Learner

__all__ = ["confusion_matrix", "open_picture", "plot_confusion_matrix", "plot_top_losses", "top_losses"]

LOSSES = ["path", "patient", "label", "predicted", "probability", "loss"]


def confusion_matrix(source: Learner | Evaluation | pd.DataFrame | str | Path) -> pd.DataFrame:
    """Count images (of an evaluation: its units) by true and predicted class.

    Args:
        source: A learner, whose validation images are predicted anew through fastai's `ClassificationInterpretation`;
            or an evaluation, or predictions: a table or CSV that `read_predictions` accepts.

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
    """Return the images whose true class got the smallest probability, the worst first.

    Args:
        source: As in `confusion_matrix`.
        k: How many; all where there are fewer.

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
    values = table[[PROBABILITY + name for name in classes]].to_numpy()
    truth = pd.Categorical(table["label"], categories=classes).codes
    probability = values[np.arange(len(table)), truth]
    losses = table[["path", "patient", "label"]].assign(
        predicted=table["prediction"], probability=probability, loss=-np.log(np.clip(probability, SMALLEST_P, 1))
    )
    return losses.sort_values("loss", ascending=False, kind="stable").head(k).reset_index(drop=True)[LOSSES]


def plot_confusion_matrix(source: Learner | Evaluation | pd.DataFrame | str | Path) -> Figure:
    """Plot the confusion matrix: counts, and the share of each true class.

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
    shares = counts.div(sums.where(sums > 0), axis=0)
    side = 2.2 + 0.9 * len(counts)
    figure = Figure(figsize=(side, side - 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares.fillna(0), cmap="Blues", vmin=0, vmax=1)
    for row, of_row in enumerate(shares.to_numpy(dtype=float)):
        for column, share in enumerate(of_row):
            count = "n = 0" if np.isnan(share) else str(counts.iat[row, column])
            text = f"{count}\n{format_metric(share, spec=PERCENT)}"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    rows = [f"{name}\nn = {sums[name]}" for name in counts.index]
    axes.set(xticks=range(len(counts)), xticklabels=counts.columns, yticks=range(len(counts)), yticklabels=rows)
    unit = f" ({source.unit}s)" if isinstance(source, Evaluation) else " (images)"
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion matrix{unit}")
    return figure


@checked
def plot_top_losses(source: Learner | Evaluation | pd.DataFrame | str | Path, *, k: TopK = 9) -> Figure:
    """Plot the images with the largest losses, each with its true and predicted class, probability and file.

    Args:
        source: As in `confusion_matrix`.
        k: How many, at most.

    Returns:
        The figure.

    Examples:
        >>> figure = plot_top_losses(learn, k=4)
        >>> sum(bool(axes.images) for axes in figure.axes)
        4
    """
    rows = as_rows(top_losses(source, k=k))
    return plot_pictures([open_picture(row["path"]) for row in rows], [_caption(row) for row in rows], columns=3)


def open_picture(path: str | Path) -> np.ndarray | None:
    """Return an image as the model sees it, squashed to a square `(256, 256)` uint8; None where its file is gone."""
    try:
        return np.asarray(open_square(path, SHOWN))
    except ImageError:
        return None  # the table may be judged on another machine than the one that holds the images


def _caption(row: dict[str, Any]) -> str:
    said = f"{row['label']} called {row['predicted']}" if row["label"] != row["predicted"] else row["label"]
    return f"{said}\np(true) = {format_metric(row['probability'])}\n{shorten(Path(row['path']).name, 26)}"


def _interpret(learn: Learner):
    from fastai.interpret import ClassificationInterpretation  # here, so that a table can be judged without fastai

    with learn.no_bar(), learn.no_logging():
        return ClassificationInterpretation.from_learner(learn)


def _learner_losses(learn: Learner, k: int) -> pd.DataFrame:
    found = _interpret(learn)
    with learn.no_bar(), learn.no_logging():
        losses, indices = found.top_losses(min(k, len(learn.dls.valid_ds)))
    cohort = learn.dls.facts.cohort
    rows = cohort[cohort["split"] == "valid"].reset_index(drop=True).iloc[indices.tolist()]
    probability = np.exp(-np.asarray(losses, dtype=float))
    with learn.no_bar(), learn.no_logging():
        predicted = learn.get_preds(dl=learn.dls.valid)[0].argmax(dim=1)[indices]
    rows = rows.assign(predicted=[learn.dls.vocab[int(number)] for number in predicted])
    rows = rows.assign(probability=probability, loss=np.asarray(losses, dtype=float))
    return rows.reset_index(drop=True)[LOSSES]
