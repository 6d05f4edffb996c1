"""What has to be said beside a figure: where a model may be right for a wrong reason, and what is not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from covid_fastai.data.cohort import Cohort, as_cohort
from covid_fastai.data.metadata import SEEN
from covid_fastai.evaluation.metrics import Evaluation
from covid_fastai.evaluation.runs import Run
from covid_fastai.run_folder import BATCH_HALVED, TEST_EVALUATED

__all__ = ["FEW", "Remark", "cohort_remarks", "limits", "result_remarks", "run_remarks", "source_table"]

FEW = 30  # held-out patients of a class; below it Wilson's interval around 0.9 is wider than 0.2
OWN_SHARE = 0.95  # of a class's images from collections that the other classes hardly have: as good as confounded


@dataclass(frozen=True)
class Remark:
    """A box in a report.

    Attributes:
        level: `"alarm"` for what can make the figures worthless, `"care"` for what limits them.
        title: A sentence.
        text: What follows from it.
    """

    level: str
    title: str
    text: str


NO_PATIENTS = Remark(
    "alarm",
    "Not every image's patient is known.",
    "An image without one counts as a patient of its own. That the same patient is trained on and held out cannot be "
    "excluded.",
)


def cohort_remarks(cohort: pd.DataFrame) -> list[Remark]:
    """Return what has to be said of the data before anything is learnt from them.

    Args:
        cohort: With `label`, `patient`, `split`, `source` and, where it is known, `patient_known`.

    Returns:
        The remarks, the gravest first.
    """
    return sorted(_of_cohort(as_cohort(cohort)), key=lambda r: r.level)


def run_remarks(run: Run) -> list[Remark]:
    """Return what has to be said beside a run's figures.

    Args:
        run: A run that was judged.

    Returns:
        The remarks, the gravest first.
    """
    return sorted([*_of_run(run), *_of_cohort(run.cohort)], key=lambda r: r.level)


def result_remarks(result: Evaluation, *, missing: int = 0) -> list[Remark]:
    """Return what has to be said beside figures of which only the predictions are known.

    Args:
        result: The evaluation.
        missing: How many of the images are not at hand.

    Returns:
        The remarks, the gravest first.
    """
    said = list(_of_few(result))
    if not result.patients_known:
        said.append(NO_PATIENTS)
    if missing:
        said.append(
            Remark(
                "care",
                "Shortcuts were not looked for.",
                f"{missing} of the images are not at the paths that the table names. Whether the classes can be told "
                "apart without a look at a lung is not known.",
            )
        )
    return sorted(said, key=lambda remark: remark.level)


def source_table(cohort: pd.DataFrame) -> pd.DataFrame | None:
    """Count the images that take part by collection and class; None where no collection is known."""
    cohort = as_cohort(cohort)
    rows = cohort[cohort["split"].isin(["train", "valid", "test"])]
    if rows["source"].replace("unknown", "").eq("").all():
        return None
    counts = pd.crosstab(rows["source"].replace("", "unknown"), rows["label"])
    order = [name for name in cohort.facts.classes if name in counts] or list(counts)
    return counts[order].reset_index().rename(columns={"source": "collection or hospital"}).rename_axis(columns=None)


def limits(cohort: pd.DataFrame, result: Evaluation, *, external: bool = False) -> list[str]:
    """Return what the figures do not say, in sentences.

    Args:
        cohort: The run's cohort.
        result: The evaluation of its held-out patients.
        external: Whether the model was also judged on data that it has no part of.

    Returns:
        The sentences.
    """
    elsewhere = "stands with the external data." if external else "is not measured here."
    said = [
        "The held-out patients come from the same collections as the training patients. How well the model does at a "
        f"hospital that it has never seen {elsewhere}",
        "The share of each class here is that of the collections, not of any clinic; precision and accuracy change "
        "with it.",
        "The intervals hold for other patients of these collections. They know nothing of other training runs, other "
        "seeds, wrong labels, or choices that were made after looking at the held-out patients.",
        "The labels were taken as the data have them; nobody has read the images anew.",
    ]
    sources = {str(text).casefold() for text in cohort["source"].unique()}
    if {"kermany", "cohen"} & sources:
        said.append(
            "CoronaHack's COVID-19 images are of adults, from publications; nearly all of its other images are of "
            "children of one hospital in Guangzhou."
        )
    if result.positive is not None:
        said.append(
            f"Sensitivity and specificity belong to the threshold {result.threshold:g} on the mean probability; it was "
            "not chosen on any data."
        )
    return said


def _of_run(run: Run) -> Iterator[Remark]:
    weights = run.built.get("weights", {})
    yield from _of_seen(run, weights)
    if weights.get("name") == "random":
        yield Remark(
            "care",
            "The model began with random weights.",
            "Nothing was transferred to it; it has learnt all that it knows from these images. Pretrained weights "
            "usually need fewer images: weights='auto'.",
        )
    cohort = run.cohort
    used = cohort[cohort["split"].isin(["train", "valid"])]
    both = used.groupby("patient")["split"].nunique() > 1
    if both.any():  # guard: two_sides
        held_out = used.loc[used["split"] == "valid", "patient"].nunique()
        yield Remark(
            "alarm",
            f"{int(both.sum())} of {held_out} held-out patients were trained on too.",
            "The split was made by image. The figures are too good by an unknown amount.",
        )
    yield from _of_few(run.metrics)
    halved = [event for event in run.record if event["event"] == BATCH_HALVED]
    if halved:
        yield Remark(
            "care",
            f"The memory did not do for {halved[0]['asked']} images in a step; {halved[-1]['batch_size']} were taken.",
            "The learning rates are those of the larger batches.",
        )
    touches = sum(event["event"] == TEST_EVALUATED for event in run.record)
    if touches > 1:  # guard: touches
        yield Remark(
            "alarm",
            f"The official test set was touched {touches} times.",
            "Each look at it makes its figures a little less those of unseen patients.",
        )


def _of_few(result: Evaluation) -> Iterator[Remark]:
    counts = result.confusion.sum(axis=1)
    few = counts[counts < FEW]
    if len(few):
        listed = " and ".join(f"{n} of {name}" for name, n in few.items())
        yield Remark(
            "care",
            f"There are few held-out {result.unit}s: {listed}.",
            "The intervals are wide; a difference between two runs on so few is mostly chance. "
            "cross_validate predicts every patient once.",
        )


def _of_seen(run: Run, weights: Mapping[str, Any]) -> Iterator[Remark]:
    """What the package's weights know of the patients: who was kept out of evaluation for it, or was not."""
    cohort = run.cohort
    origin = str(weights.get("origin", "")).replace("\\", "/").rsplit("/", 1)[-1]
    ours = weights.get("name") == "cxr" or origin.startswith("cxr-")  # the package's file, named by its path
    fields = run.config.get("config") or {}  # none where the story was told by hand
    if ours and ("in_pretraining" not in cohort or not fields.get("exclude_pretraining_overlap", True)):
        yield Remark(
            "alarm",
            "The weights may have seen the held-out patients.",
            "The model began from this package's weights, which were pretrained on a part of CoronaHack's "
            "training patients and on the COVID-19 Radiography Database, and those were not kept out of evaluation "
            "(exclude_pretraining_overlap=False). The figures are too good by an unknown amount.",
        )
        return
    if "in_pretraining" not in cohort:
        return
    seen = cohort["in_pretraining"]
    judged = cohort["split"].isin(["valid", "test"])
    if "fold" in cohort:
        judged |= cohort["fold"] >= 0
    if ours and (seen & judged).any():
        yield Remark(
            "alarm",
            f"The weights have seen {int((seen & judged).sum())} held-out images, or others of their patients.",
            "The split was not made by this package, or was changed. The figures are too good by an unknown amount.",
        )
    kept_out = int((seen & ((cohort["split"] == "train") | (cohort["note"] == SEEN))).sum())
    unknown = (
        "The COVID-19 Radiography Database, on which the weights were pretrained too, names no patients: whether some "
        "of its patients are in other collections that come from the NIH's is not known."
    )
    if ours or kept_out:
        others = "They are kept out whatever weights are chosen, so that all are judged on the same patients."
        yield Remark(
            "care",
            f"{kept_out:,} images were kept out of evaluation: this package's weights have seen them, or another image "
            "of their patient.",
            unknown if ours else others,
        )


def _of_cohort(cohort: Cohort) -> Iterator[Remark]:
    if not cohort.patients_known:
        yield NO_PATIENTS
    rows = cohort[cohort["split"].isin(["train", "valid", "test"]) & ~cohort["source"].isin(["", "unknown"])]
    counts = pd.crosstab(rows["label"], rows["source"])
    if len(counts) < 2:
        return
    shares = counts.div(counts.sum(axis=1), axis=0)
    for name, own in shares.iterrows():
        others = shares.drop(index=name).max()
        apart = own[others < 1 - OWN_SHARE].sum()
        if apart >= OWN_SHARE:  # guard: own_source
            places = ", ".join(own[(others < 1 - OWN_SHARE) & (own > 0)].index[:3])
            yield Remark(
                "alarm",
                f"Class and source are one: {name}.",
                f"{100 * apart:.0f}% of its images come from {places}, where the other classes have next to none. "
                "Whatever differs between the collections (age, machine, position, file format) tells the class "
                "without a look at a lung. A high figure here shows that two collections can be told apart.",
            )
            return
