"""The section of a report on the held-out patients: metrics, and charts of one size."""

from __future__ import annotations

from typing import Any

import pandas as pd

from covid_fastai.evaluation.calibration import plot_reliability
from covid_fastai.evaluation.decision_curve import decision_curve, plot_decision_curve
from covid_fastai.evaluation.formatting import format_interval, format_metric
from covid_fastai.evaluation.interpretation import plot_confusion_matrix
from covid_fastai.evaluation.metrics import Evaluation, summarise_repeats
from covid_fastai.evaluation.plots import plot_precision_recall, plot_probabilities, plot_roc
from covid_fastai.reporting.html import draw_chart

__all__ = ["describe_result"]

BANDS = "Band: the middle 95% of 500 bootstrap resamples of patients."


def describe_result(result: Evaluation, *, how: str, repeats: pd.DataFrame | None = None) -> dict[str, Any]:
    """Return the variables of `result.html`.

    Args:
        result: The evaluation, with its predictions.
        how: A sentence on whether the model was trained on these patients.
        repeats: `Run.repeats`; None or empty without.

    Returns:
        Texts, metrics and charts by name.
    """
    counts = result.confusion.sum(axis=1)
    who = ", ".join(f"{counts[name]} {name}" for name in result.classes)
    unit = "patients" if result.unit == "patient" else "images"
    mean = " The score of a patient is the mean over the patient's images." if result.unit == "patient" else ""
    return {
        "lead": f"{int(counts.sum())} held-out {unit} ({who}), {result.n_images} images. {how}{mean}",
        "main_metrics": _main_metrics(result),
        "repeats": summarise_repeats(repeats) if repeats is not None and len(repeats) else None,
        "failed": _failed(result),
        "result_figures": _result_figures(result),
    }


def _main_metrics(result: Evaluation) -> list[dict[str, str]]:
    named = {"auc": "AUC", "sensitivity": "Sensitivity", "specificity": "Specificity", "accuracy": "Accuracy"}
    if result.positive is None:
        named = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auc": "AUC, mean of classes"}
    metrics = []
    for metric, title in named.items():
        row = result.row(metric)
        interval = f"95% interval {format_interval(row['low'], row['high'])}"
        about = f" for {row['class']}" if metric == "sensitivity" else ""
        n = f"n = {row['n']} {row['unit']}s"
        metrics.append({"title": title + about, "value": format_metric(row["value"]), "interval": interval, "n": n})
    return metrics


def _failed(result: Evaluation) -> str:
    if not result.n_failed:
        return ""
    return f"{result.n_failed} images without a prediction are not counted; the column status marks them."


def _result_figures(result: Evaluation) -> list[dict[str, Any]]:
    charts = [
        draw_chart(plot_confusion_matrix(result), "Confusion matrix: true class by row, predicted class by column"),
        draw_chart(plot_probabilities(result), "Predicted probabilities by true class"),
        draw_chart(plot_roc(result), "ROC curve with its 95% band", caption=BANDS),
        draw_chart(plot_precision_recall(result), "Precision-recall curve with its 95% band", caption=BANDS),
        draw_chart(
            plot_reliability(result),
            "Reliability: observed frequency by predicted probability",
            caption="On the dotted line, the probabilities are as frequent as they say.",
        ),
    ]
    has_both = result.positive is not None and (result.confusion.sum(axis=1) > 0).all()
    if has_both:
        curve = decision_curve(result.predictions, positive=result.positive)
        text = "Useful only where the model lies above both other lines, if the prevalence is that of these data."
        charts.append(draw_chart(plot_decision_curve(curve), "Decision curve: net benefit by threshold", caption=text))
    return charts
