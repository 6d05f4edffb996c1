"""Caveats of a result: reasons why it may be too good or rest on a shortcut, and what it does not measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from covid_fastai.data.cached_regions import name_whole
from covid_fastai.data.cohort import Cohort, as_cohort
from covid_fastai.data.metadata import IN_PRETRAINING
from covid_fastai.data.phantom import is_synthetic
from covid_fastai.evaluation.formatting import list_sources
from covid_fastai.evaluation.metrics import Evaluation
from covid_fastai.evaluation.runs import Run, count_test_evaluations
from covid_fastai.run_folder import BATCH_HALVED, CROPPED, RunFolder

__all__ = ["Caveat", "FEW", "cohort_caveats", "limits", "result_caveats", "run_caveats", "source_table"]

FEW = 30  # held-out patients of a class; below it, Wilson's interval for a proportion of 0.9 is wider than 0.2
MANY_WHOLE = 0.01  # of the images; on radiographs of children and adults, the lungs are not found in 0.5 to 2%
NAMED = 5  # patients that a caveat names
OWN_FRACTION = 0.95  # of a class's images from sources with hardly any images of the other classes
TOO_GOOD = "The results are too good by an unknown amount."


@dataclass(frozen=True)
class Caveat:
    """A box in a report.

    Attributes:
        level: `"alarm"` if it may invalidate the results, `"caution"` if it limits them.
        title: The finding, one sentence.
        text: The consequence.
    """

    level: str
    title: str
    text: str


NO_PATIENTS = Caveat(
    "alarm",
    "The patients of some images are unknown.",
    "An image of an unknown patient counts as a separate patient. The same patient may be in training and held out.",
)


def cohort_caveats(cohort: pd.DataFrame) -> list[Caveat]:
    """Return the caveats of a cohort.

    Args:
        cohort: With `label`, `patient`, `split`, `source` and, optionally, `patient_known`.

    Returns:
        The caveats, alarms first.
    """
    return _alarms_first(_of_cohort(as_cohort(cohort)))


def run_caveats(run: Run) -> list[Caveat]:
    """Return the caveats of an evaluated run.

    Args:
        run: The run.

    Returns:
        The caveats, alarms first.
    """
    return _alarms_first([*_of_run(run), *_of_cohort(run.cohort)])


def result_caveats(result: Evaluation, *, missing: int = 0) -> list[Caveat]:
    """Return the caveats of an evaluation for which only the predictions are known.

    Args:
        result: The evaluation.
        missing: Number of images that do not exist at their paths, or may not be opened.

    Returns:
        The caveats, alarms first.
    """
    caveats = [*_of_few_patients(result), *_of_two_labels(result)]
    if not result.patients_known:
        caveats.append(NO_PATIENTS)
    if missing:
        caveats.append(
            Caveat(
                "caution",
                "The predictions were not tested for shortcuts.",
                f"{missing} images do not exist at the paths in the table, or lie outside of its folder. It is unknown "
                "whether the classes can be separated without the lungs.",
            )
        )
    return _alarms_first(caveats)


def _alarms_first(caveats: Iterable[Caveat]) -> list[Caveat]:
    return sorted(caveats, key=lambda caveat: caveat.level)  # "alarm" precedes "caution"


def source_table(cohort: pd.DataFrame) -> pd.DataFrame | None:
    """Count the images of the task by source and class; None if no source is known."""
    cohort = as_cohort(cohort)
    rows = cohort[cohort["split"].isin(["train", "valid", "test"])]
    if rows["source"].replace("unknown", "").eq("").all():
        return None
    counts = pd.crosstab(rows["source"].replace("", "unknown"), rows["label"])
    order = [name for name in cohort.facts.classes if name in counts] or list(counts)
    return counts[order].reset_index().rename(columns={"source": "image source"}).rename_axis(columns=None)


def limits(cohort: pd.DataFrame, result: Evaluation, *, external: bool = False) -> list[str]:
    """Return the limits of a result, in sentences.

    Args:
        cohort: The run's cohort.
        result: The evaluation of its held-out patients.
        external: Whether the model was also evaluated on external data.

    Returns:
        The sentences.
    """
    elsewhere = "is reported under external data" if external else "was not measured"
    sentences = [
        "The held-out patients come from the same image sources as the training patients. The performance at other "
        f"hospitals {elsewhere}.",
        "The prevalence of each class is that of these data, not that of a clinic. Precision and accuracy depend "
        "on it.",
        "The intervals describe the variation between patients of these sources. They do not include the variation "
        "between training runs and seeds, wrong labels, or choices made after the held-out results were known.",
        "The labels are those of the data. The images were not read again.",
    ]
    sources = {str(text).casefold() for text in cohort["source"].unique()}
    if {"kermany", "cohen"} & sources:
        sentences.append(
            "CoronaHack's COVID-19 images show adults and come from publications. Nearly all of its other images show "
            "children from one hospital in Guangzhou."
        )
    if result.positive is not None:
        sentences.append(
            f"Sensitivity and specificity are given at a threshold of {result.threshold:g} on the mean probability, "
            "which was not chosen on any data."
        )
    return sentences


def _of_run(run: Run) -> Iterator[Caveat]:
    weights = run.built.get("weights", {})
    yield from _of_pretraining(run, weights)
    if weights.get("name") == "random":
        yield Caveat(
            "caution",
            "The model was trained from random weights.",
            "It has learnt from these images only. Pretrained weights usually need fewer images (weights='auto').",
        )
    cohort = run.cohort
    used = cohort[cohort["split"].isin(["train", "valid"])]
    in_both = used.groupby("patient")["split"].nunique() > 1
    if in_both.any():  # guard: two_sides
        held_out = used.loc[used["split"] == "valid", "patient"].nunique()
        yield Caveat(
            "alarm",
            f"{int(in_both.sum())} of {held_out} held-out patients are also in training.",
            f"The data were not split by patient. {TOO_GOOD}",
        )
    yield from _of_few_patients(run.metrics)
    yield from _of_two_labels(run.metrics)
    halved = [event for event in run.record if event["event"] == BATCH_HALVED]
    if halved:
        yield Caveat(
            "caution",
            f"Out of memory: the batch size was reduced from {halved[0]['asked']} to {halved[-1]['batch_size']}.",
            "The learning rates are those of the larger batches.",
        )
    for event in [event for event in run.record if event["event"] == CROPPED][-1:]:
        if event["whole_images"] >= MANY_WHOLE * event["images"]:
            yield Caveat(
                "caution",
                f"On {event['whole_images']} of {event['images']} images the lungs were not found.",
                "The model was given these images whole, the others cropped to the lungs: "
                + name_whole(event.get("by_class", {}))
                + f" ({RunFolder.crops} lists them). If this is more frequent in one class, it is a shortcut.",
            )
    counts = count_test_evaluations(run)
    evaluations, others = sum(counts.values()), [name for name in counts if name != run.path.resolve().name]
    if evaluations > 1:  # guard: touches
        by = f" by {len(counts)} runs on the same data ({', '.join(counts)})" if others else ""
        yield Caveat(
            "alarm",
            f"The official test set was evaluated {evaluations} times{by}.",
            "Choices made between the evaluations may have adapted the model to the test set.",
        )


def _of_two_labels(result: Evaluation) -> Iterator[Caveat]:
    if result.two_labels:
        listed = ", ".join(result.two_labels[:NAMED]) + (" ..." if len(result.two_labels) > NAMED else "")
        yield Caveat(
            "caution",
            f"{len(result.two_labels)} patients have images of two classes or more: {listed}.",
            "Each of them counts once, with the images of the last of these classes.",
        )


def _of_few_patients(result: Evaluation) -> Iterator[Caveat]:
    counts = result.confusion.sum(axis=1)
    few = counts[counts < FEW]
    if len(few):
        listed = " and ".join(f"{n} of {name}" for name, n in few.items())
        yield Caveat(
            "caution",
            f"There are few held-out {result.unit}s: {listed}.",
            "The intervals are wide. A difference between two runs on so few is mostly chance. cross_validate predicts "
            "every patient once.",
        )


def _of_pretraining(run: Run, weights: Mapping[str, Any]) -> Iterator[Caveat]:
    """Yield the caveats of an overlap between the pretraining data of the package's weights and the held-out images."""
    cohort = run.cohort
    origin = str(weights.get("origin", "")).replace("\\", "/").rsplit("/", 1)[-1]
    package_weights = weights.get("name") == "cxr" or origin.startswith("cxr-")  # by name, or by the path of the file
    fields = run.config.get("config") or {}  # empty if the steps were called one by one
    excluding = "in_pretraining" in cohort and fields.get("exclude_pretraining_overlap", True)
    if package_weights and not excluding:
        yield Caveat(
            "alarm",
            "Held-out patients may be in the pretraining data of the weights.",
            "This package's weights were pretrained on some of CoronaHack's training patients and on the COVID-19 "
            "Radiography Database. Their images were not excluded from evaluation (exclude_pretraining_overlap=False). "
            f"{TOO_GOOD}",
        )
        return
    if "in_pretraining" not in cohort:
        return
    pretrained = cohort["in_pretraining"]
    evaluated = cohort["split"].isin(["valid", "test"])
    if "fold" in cohort:
        evaluated |= cohort["fold"] >= 0
    if package_weights and (pretrained & evaluated).any():
        yield Caveat(
            "alarm",
            f"{int((pretrained & evaluated).sum())} held-out images, or other images of their patients, are in the "
            "pretraining data of the weights.",
            f"The split was not made by this package, or was changed. {TOO_GOOD}",
        )
    not_evaluated = int((pretrained & ((cohort["split"] == "train") | (cohort["note"] == IN_PRETRAINING))).sum())
    if package_weights or not_evaluated:
        unknown_overlap = (
            "The weights were also pretrained on the COVID-19 Radiography Database, which does not name its patients. "
            "It is unknown whether some of them are in other collections that contain images of the NIH."
        )
        same_patients = "They are excluded for any choice of weights, so that all models have the same patients."
        title = "No image is known to be in the pretraining data of this package's weights."
        if not_evaluated:
            title = (
                f"{not_evaluated:,} images were excluded from evaluation: they, or other images of their patients, are "
                "in the pretraining data of this package's weights."
            )
        yield Caveat("caution", title, unknown_overlap if package_weights else same_patients)


def _of_cohort(cohort: Cohort) -> Iterator[Caveat]:
    synthetic = int(cohort["path"].map(is_synthetic).sum())
    if synthetic:
        yield Caveat(
            "caution",
            f"{'All' if synthetic == len(cohort) else f'{synthetic:,} of {len(cohort):,}'} images are synthetic.",
            "They were generated by this package. The results show how it works, and nothing about real lungs.",
        )
    if not cohort.patients_known:
        yield NO_PATIENTS
    rows = cohort[cohort["split"].isin(["train", "valid", "test"]) & ~cohort["source"].isin(["", "unknown"])]
    counts = pd.crosstab(rows["label"], rows["source"])
    if len(counts) < 2:
        return
    fractions = counts.div(counts.sum(axis=1), axis=0)  # of each class, by source
    for name, by_source in fractions.iterrows():
        rare_in_others = fractions.drop(index=name).max() < 1 - OWN_FRACTION
        from_own = by_source[rare_in_others].sum()
        if from_own >= OWN_FRACTION:  # guard: own_source
            own_sources = list_sources(by_source[rare_in_others & (by_source > 0)].index[:3])
            yield Caveat(
                "alarm",
                f"Class and image source go together: {name}.",
                f"{100 * from_own:.0f}% of its images come from the image {own_sources}, where the other classes have "
                "hardly any images. Any difference between the sources (age, machine, projection, file format) "
                "separates the classes without the lungs. A high AUC shows only that the sources can be separated.",
            )
            return
