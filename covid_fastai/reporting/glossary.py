"""The words of a report, explained; a page lists those that it uses."""

from __future__ import annotations

import html
import re

__all__ = ["WORDS", "words_used"]

WORDS = {  # word -> (how it occurs in a text, as a regular expression; its explanation)
    "95% interval": (
        r"95%|\binterval",
        "The range of values that fits the data. With other patients of the same kind the value would vary about as "
        "much. In simulations with ten patients or more of each class, 91% of the intervals or more include the true "
        "value, but only 86% of those of the calibration error if the model is too certain.",
    ),
    "Accuracy": (r"\baccuracy\b", "The fraction of patients with the right class. It depends on how frequent each is."),
    "AUC": (
        r"\bAUC\b",
        "Area under the ROC curve: the fraction of pairs, one patient with and one without the finding, in which the "
        "model gives the higher probability to the right one. 0.5 is chance, 1 is perfect.",
    ),
    "Baseline": (r"\bbaselines?\b", "A simple program to compare with, here one that sees little or no lung."),
    "Batch-effect check": (
        r"\bbatch-effect\b",
        "A test whether images of one class differ by how they were made, such as by machine or year.",
    ),
    "Bootstrap": (r"\bbootstrap\b", "Drawing patients again and again at random to see how much a value varies."),
    "Brier score": (r"\bBrier\b", "The mean squared error of the probabilities; 0 is perfect."),
    "Calibration, reliability": (
        r"\bcalibrat|\breliability\b",
        "Whether 8 of 10 patients with a probability of 0.8 have the finding. ECE is the mean difference.",
    ),
    "Class activation map": (
        r"\bclass activation map|\bheat map",
        "A picture of the regions that raised the model's output for a class. It does not show where a disease is.",
    ),
    "Confounded": (
        r"\bconfounded\b",
        "Two things go together, here class and hospital, so that their effects cannot be separated.",
    ),
    "Confusion matrix": (r"\bconfusion matrix\b", "How many patients of each class got each answer."),
    "Decision curve, net benefit": (
        r"\bdecision curve\b|\bnet benefit\b",
        "Whether acting on the model's answers would help more than acting on everybody or nobody, by how much harm an "
        "unnecessary action does.",
    ),
    "Epoch": (r"\bepochs?\b", "One pass of the training over all training images."),
    "External validation": (
        r"\bexternal\b",
        "An evaluation on patients of other hospitals than those of the training.",
    ),
    "Fold": (r"\bfolds?\b", "A part of the patients that one of several models was not trained on."),
    "Held-out patients": (r"\bheld-out\b", "Patients of the same image sources whom the model was not trained on."),
    "Image source": (
        r"\bimage sources?\b",
        "The hospital or collection that an image comes from, by the name that it has in the data.",
    ),
    "Negative control": (
        r"\bnegative controls?\b",
        "An image that must not get the positive class, such as one of another disease from the same hospital.",
    ),
    "Permutation test": (r"\bpermut", "A test with the labels shuffled, which shows what chance alone would give."),
    "Precision": (
        r"\bprecision\b",
        "Of the patients who were given the class, the fraction that has it (positive predictive value). It depends on "
        "how frequent the class is.",
    ),
    "Prevalence": (r"\bprevalence\b", "The fraction of patients with the finding."),
    "ROC curve": (r"\bROC\b", "Sensitivity against 1 minus specificity, at every threshold."),
    "Saliency": (r"\bsaliency\b", "How much each region of an image contributes to the model's output."),
    "Sensitivity": (r"\bsensitivity\b|\brecall\b", "Of the patients with the finding, the fraction that is found."),
    "Shortcut": (
        r"\bshortcuts?\b",
        "A difference between the classes that is not the disease, such as a hospital's marker or the age of the "
        "patients, which a model can learn instead.",
    ),
    "Specificity": (r"\bspecificity\b", "Of the patients without the finding, the fraction with the right answer."),
    "Synthetic": (r"\bsynthetic\b|\bdrawings?\b", "Drawn by a program. No patient was imaged."),
    "Threshold": (r"\bthreshold\b", "The probability at which the positive class is predicted."),
    "Thumbnail": (r"\bthumbnail\b", "The image at 16 × 16 pixels, too coarse to show a finding."),
}


def words_used(content: str) -> list[tuple[str, str]]:
    """Return the words that occur in a page, with their explanations.

    Args:
        content: The HTML of the page.

    Returns:
        Word and explanation, in alphabetical order.
    """
    text = html.unescape(re.sub(r"<[^<>]*>", " ", content))
    return [(word, meaning) for word, (form, meaning) in WORDS.items() if re.search(form, text, re.IGNORECASE)]
