"""What a page says of an evaluation: figures, curves, and the images that it was most wrong about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from covid_fastai.data.exploration import shorten
from covid_fastai.evidence.interpretation import open_picture, plot_confusion_matrix, top_losses
from covid_fastai.evidence.metrics import Evaluation
from covid_fastai.evidence.page import draw_chart, embed_picture
from covid_fastai.evidence.plots import plot_precision_recall, plot_probabilities, plot_roc

__all__ = ["describe_result"]

CASES = 12


def describe_result(result: Evaluation, *, how: str) -> dict[str, Any]:
    """Return what `result.html` and `worst.html` show of an evaluation.

    Args:
        result: The evaluation, with its predictions.
        how: A sentence on what the model had seen of these patients.

    Returns:
        Texts, tiles, figures and cases by name.
    """
    counts = result.confusion.sum(axis=1)
    who = ", ".join(f"{counts[name]} {name}" for name in result.classes)
    unit = "patients" if result.unit == "patient" else "images"
    mean = " A patient's score is the mean over their images." if result.unit == "patient" else ""
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
    return f"{result.n_failed} images got no prediction and are counted nowhere; the column status says which."


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


def _result_figures(result: Evaluation) -> list[dict[str, Any]]:
    shown = [
        draw_chart(plot_confusion_matrix(result), "Confusion matrix: true class by row, predicted class by column"),
        draw_chart(plot_roc(result), "ROC curve with its 95% band"),
        draw_chart(plot_precision_recall(result), "Precision-recall curve with its 95% band"),
        draw_chart(plot_probabilities(result), "Probabilities given to each class's patients"),
    ]
    shown[1]["caption"] = shown[2]["caption"] = "Bands: the middle 95% of 500 bootstrap draws of patients."
    return shown
