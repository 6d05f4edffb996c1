"""The items that CLAIM 2024 and TRIPOD+AI ask a study to report, and the answers of a run.

`ITEMS` holds all items. Each names the function that answers it from the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from covid_fastai.audit.verdict import NOT_TESTED
from covid_fastai.data.tables import as_rows
from covid_fastai.evaluation.formatting import format_estimate
from covid_fastai.evaluation.pooling import pool_aucs
from covid_fastai.evaluation.subgroups import Subgroups
from covid_fastai.model.bundle_config import CONFIG_FILE
from covid_fastai.reporting.caveats import limits
from covid_fastai.reporting.run_facts import KNOWN_COLUMNS, RunFacts, describe_counts, describe_metric
from covid_fastai.run_folder import RunFolder

__all__ = ["Answer", "CLAIM", "ITEMS", "Item", "SOURCES", "TRIPOD_AI"]

CLAIM, TRIPOD_AI = "CLAIM 2024", "TRIPOD+AI"
SOURCES = {
    CLAIM: "Tejani et al., Radiology: Artificial Intelligence 6(4), 2024, doi:10.1148/ryai.240300 (44 items)",
    TRIPOD_AI: "Collins et al., BMJ 385, 2024, doi:10.1136/bmj-2023-078378 (27 items, 52 with their parts)",
}
ONE_CLASS = "one class"  # the comparison of `validate` for a source without the other classes
UNKNOWN = "unknown"  # patients with an unknown characteristic are no subgroup
SHA_DIGITS = 16  # hexadecimal digits that are shown of a checksum


@dataclass(frozen=True)
class Answer:
    """The answer of a run to an item.

    Attributes:
        where: The file, or the file and its section.
        text: The reported facts.
        missing: Facts of the item that the run does not hold; empty if the answer is complete.
    """

    where: str
    text: str
    missing: str = ""


@dataclass(frozen=True)
class Item:
    """An item of a reporting guideline.

    Attributes:
        guideline: `CLAIM` or `TRIPOD_AI`.
        number: The number in the guideline, such as `"12a"`.
        asks: The content of the item, paraphrased.
        answer: The function that returns the answer of a run, or None if the run's folder does not hold it; None if no
            run can answer the item.
        reason: Why there is no answer, and who can give one.
    """

    guideline: str
    number: str
    asks: str
    answer: Callable[[RunFacts], Answer | None] | None
    reason: str


# answers: the study


def title(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    text = f"Deep learning ({facts.model.arch}) to separate {' from '.join(facts.model.classes)} on chest radiographs."
    return Answer("model card", text, "the target population")


def summary(facts: RunFacts) -> Answer | None:
    if facts.model is None or not facts.evaluated:
        return None
    missing = "the conclusion, since the run was not audited" if facts.audit is None else ""
    auc = describe_metric(facts.result.row("auc"), name="AUC")
    return Answer("model card", f"Model, data, verdict and results: {auc}.", missing)


def aims(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    text = f"To separate {' from '.join(facts.result.classes)}."
    return Answer(RunFolder.config, text, "a hypothesis stated in advance")


def retrospective(facts: RunFacts) -> Answer | None:
    if facts.used.empty:
        return None
    text = "Retrospective: the images had been collected before."
    return Answer(RunFolder.datasheet, text, "how their collection was planned")


def goal(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    external = "; no external evaluation"
    if facts.external:
        external = f" and evaluation on external data ({', '.join(facts.external)})"
    return Answer(RunFolder.metrics, f"Development of a model with internal evaluation{external}.")


# the data


def sources(facts: RunFacts) -> Answer | None:
    if not facts.count_known("source"):
        return None
    counts = facts.used["source"].replace("", "unknown").value_counts()
    text = "; ".join(f"{name}: {n:,} images" for name, n in counts.items())
    return Answer(f"{RunFolder.datasheet}, Sources", text, "dates, places and the represented population")


def centres(facts: RunFacts) -> Answer | None:
    if not facts.count_known("source"):
        return None
    names = sorted(set(facts.used["source"]) - {"", "unknown"})
    text = f"{len(names)} named sources: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}."
    missing = "setting and place, and the hospitals of a source that is a collection"
    return Answer(RunFolder.cohort, text, missing)


def eligibility(facts: RunFacts) -> Answer | None:
    if facts.used.empty:
        return None
    counts = facts.excluded["note"].replace("", "no reason given").value_counts()
    reasons = "; ".join(f"{note} ({n:,})" for note, n in counts.items()) or "none"
    text = f"{len(facts.used):,} images included, {len(facts.excluded):,} excluded: {reasons}."
    missing = "the eligibility criteria of the collections"
    return Answer(f"{RunFolder.datasheet}, Excluded rows", text, missing)


def subsets(facts: RunFacts) -> Answer | None:
    if not facts.fields:
        return None
    ratio = facts.fields.get("negatives_per_positive")
    text = "No subset was sampled: all rows of the task were used."
    if ratio:
        seed = facts.fields["seed"]
        text = f"{ratio:g} images of the negative class were sampled per positive image (seed {seed})."
    return Answer(RunFolder.config, text)


def preprocessing(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    model = facts.model
    cropped = f" of the box around the lungs with a margin (segmentation {model.segmentation})"
    text = (
        f"One greyscale channel, {model.image_size} x {model.image_size} pixels{cropped * (model.region == 'lungs')} "
        f"({model.resize}), intensities from 0 "
    )
    text += f"to 1 normalised with mean {model.mean:g} and standard deviation {model.std:g}."
    return Answer(f"model's {CONFIG_FILE}", text)


def preparation(facts: RunFacts) -> Answer | None:
    if not facts.run.folder.problems.is_file():
        return None
    rows = facts.run.problems
    errors = int((rows["severity"] == "error").sum())
    return Answer(
        RunFolder.problems, f"All rows and images were checked: {len(rows)} problems, {errors} of them errors."
    )


def missing_data(facts: RunFacts) -> Answer | None:
    if not facts.evaluated or facts.used.empty:
        return None
    known = ", ".join(f"{name} known for {facts.count_known(column):,}" for column, name in KNOWN_COLUMNS.items())
    text = f"Of {len(facts.used):,} images: {known}. {facts.result.n_failed} images have no prediction and are not "
    text += "counted. Nothing was imputed; the only input of the model is pixels."
    return Answer(RunFolder.datasheet, text)


def acquisition(facts: RunFacts) -> Answer | None:
    if not facts.count_known("view"):
        return None
    counts = facts.used["view"].replace("", "unknown").value_counts()
    views = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    return Answer(RunFolder.datasheet, f"Projection: {views}.", "machine, exposure and operator")


def partition(facts: RunFacts) -> Answer | None:
    if not facts.fields or facts.used.empty:
        return None
    how = f"{facts.folds} folds" if facts.folds else f"{facts.fields['valid_pct']:.0%} held out"
    splits = " ".join(f"{name}: {describe_counts(rows)}." for name, rows in facts.parts())
    made = f"Random by {facts.fields['split']}, stratified by class, {how}, seed {facts.fields['seed']}."
    official = "As the data state it (official split)."
    text = f"{official if facts.fields['split'] == 'official' else made} {splits}"
    return Answer(RunFolder.cohort, text)


def disjoint(facts: RunFacts) -> Answer | None:
    if facts.used.empty or facts.used.get("fold", facts.used["split"]).nunique() < 2:
        return None
    text = f"Patients: {facts.shared_patients} patients are in more than one part."
    missing = "" if facts.patients_known else "the patients of some images, each of which counts as a separate patient"
    return Answer(RunFolder.cohort, text, missing)


def flow(facts: RunFacts) -> Answer | None:
    if facts.used.empty:
        return None
    n_all, n_used = (rows["patient"].nunique() for rows in (facts.cohort, facts.used))
    text = (
        f"{len(facts.cohort):,} images of {n_all:,} patients were read, {len(facts.excluded):,} images were excluded, "
    )
    text += f"and {len(facts.used):,} images of {n_used:,} patients are used: {describe_counts(facts.used)}."
    return Answer(RunFolder.datasheet, text)


def patients(facts: RunFacts) -> Answer | None:
    known = {name: facts.count_known(column) for column, name in KNOWN_COLUMNS.items() if facts.count_known(column)}
    if not known:
        return None
    text = "; ".join(f"{name} known for {n:,} of {len(facts.used):,} images" for name, n in known.items())
    return Answer(f"{RunFolder.datasheet}, Patients", text, "clinical characteristics, and values that are unknown")


def counts(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    per_class = facts.result.confusion.sum(axis=1)
    evaluated = ", ".join(f"{n} {name}" for name, n in per_class.items())
    trained = facts.used[facts.used["split"] == "train"]
    text = f"Training: {describe_counts(trained)}. Evaluated {facts.result.unit}s: {evaluated}."
    return Answer(RunFolder.metrics, text)


def differences(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    text = "Held-out patients are a random sample of the same image sources."
    if not facts.external:
        return Answer(RunFolder.cohort, text, "data of another setting")
    return Answer("external/", f"{text} External data: {', '.join(facts.external)}.", "how the settings differ")


def batch_effect(facts: RunFacts) -> Answer | None:
    if facts.audit is None or facts.audit.batch_effect.empty:
        return None
    rows = facts.audit.batch_effect.rename(columns={"auc": "value"}).assign(unit="patient")
    aucs = "; ".join(describe_metric(row, name=f"{row['class']}: thumbnail AUC") for row in as_rows(rows))
    return Answer(f"{RunFolder.audit}, batch_effect", f"Official TEST against training within a class: {aucs}.")


# the model


def predictors(facts: RunFacts) -> Answer | None:
    return facts.model and Answer("model card", "The pixels of one radiograph and no other data of the patient.")


def no_reader(facts: RunFacts) -> Answer | None:
    return facts.model and Answer("model card", "None: the only input is pixels, which no reader assesses.")


def architecture(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    model = facts.model
    text = f"{model.arch}, {model.n_in} channel; head: {', '.join(model.head)}; {len(model.classes)} classes."
    return Answer(f"model's {CONFIG_FILE}", text)


def software(facts: RunFacts) -> Answer | None:
    if not facts.run.folder.versions.is_file():
        return None
    versions = facts.run.versions
    packages = ", ".join(f"{name} {number}" for name, number in versions["packages"].items())
    return Answer(RunFolder.versions, f"Python {versions['python']}; {packages}.")


def initial_weights(facts: RunFacts) -> Answer | None:
    if not facts.weights:
        return None
    sha = facts.weights.get("sha256") or ""
    text = f"{facts.weights['name']}" + (f", sha256 {sha[:SHA_DIGITS]}..." if sha else "")
    return Answer(f"model's {CONFIG_FILE}", f"Initial weights: {text}; the head was initialised at random.")


def training(facts: RunFacts) -> Answer | None:
    if not facts.fields or not facts.run.folder.history.is_file():
        return None
    get, models = facts.fields.get, facts.folds or 1
    text = (
        f"One-cycle schedule, {get('frozen_epochs')} epochs with the body frozen and {get('unfrozen_epochs')} epochs "
    )
    text += f"unfrozen, maximum learning rate {get('learning_rate'):g}, batch size {get('batch_size')}, weight decay "
    text += f"{get('weight_decay'):g}, augmentation {get('augmentation')}, seed {get('seed')}; {models} "
    text += f"model{'s' if models > 1 else ''}."
    return Answer(f"{RunFolder.config}, {RunFolder.history}", text)


def final_model(facts: RunFacts) -> Answer | None:
    if facts.model is None or not facts.run.folder.history.is_file():
        return None
    text = "The weights after the last epoch; no epoch was selected on held-out patients."
    return Answer(RunFolder.history, text, "whether options were selected in earlier runs on the same patients")


def ensemble(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    text = "None: a single model."
    if facts.folds:
        text = (
            f"None for internal data: one of {facts.folds} models predicts each patient, the one not trained on them."
        )
        text += " The mean of the models for external data." if facts.external else ""
    return Answer(RunFolder.predictions, text)


def imbalance(facts: RunFacts) -> Answer | None:
    if not facts.fields:
        return None
    methods = {"none": "No correction", "loss": "Class weights in the loss", "sampler": "A weighted sampler"}
    text = f"{methods[facts.fields['balance']]}. Used images: {describe_counts(facts.used)}."
    return Answer(RunFolder.config, text)


def output(facts: RunFacts) -> Answer | None:
    if not facts.evaluated or facts.model is None:
        return None
    rule = "the predicted class is the most probable one"
    if facts.result.threshold is not None:
        rule = (
            f"{facts.result.positive} is predicted from {facts.result.threshold:g}, a threshold not chosen on any data"
        )
    return Answer(RunFolder.metrics, f"A probability of each class; {rule}.")


def predicting(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    text = "The final model predicts each image once; the score of a patient is the mean over the patient's images."
    return Answer(RunFolder.predictions, text)


def updating(facts: RunFacts) -> Answer | None:
    if facts.model is None or facts.model.temperature == 1:
        return None
    text = f"Temperature scaling, {facts.model.temperature:.3g}."
    return Answer(f"model's {CONFIG_FILE}", text, "metrics before and after it (covid-fastai calibrate)")


def model_files(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    names = ", ".join(folder.relative_to(facts.run.path).as_posix() for folder in facts.models)
    return Answer(names, f"Weights and config; sha256 {facts.model.sha256[:SHA_DIGITS]}...")


def protocol(facts: RunFacts) -> Answer | None:
    if not facts.command:
        return None
    return Answer(RunFolder.config, f"All options, and the command: `{facts.command}`", "a protocol written in advance")


def code(facts: RunFacts) -> Answer | None:
    if not facts.run.folder.versions.is_file():
        return None
    number = facts.run.versions["packages"].get("covid_fastai", "of unknown version")
    return Answer(RunFolder.versions, f"covid_fastai {number}.", "where it and the authors' code are available")


def availability(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    return Answer("model card", "The files of the model are in the run's folder.", "where they are published")


# the results


def performance_metrics(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    names = ", ".join(dict.fromkeys(facts.result.summary()["metric"]))
    return Answer(f"{RunFolder.metrics}; plots in {RunFolder.report}", f"{names}.")


def uncertainty(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    methods = "; ".join(dict.fromkeys(facts.result.metrics["method"]))
    text = f"95% intervals by {facts.result.unit} ({methods})"
    missing = "variation between training sets and seeds: the intervals are of patients, for the models as trained"
    if facts.audit is None:
        return Answer(f"{RunFolder.metrics}, method", f"{text}; no significance test.", missing)
    tested = int(facts.audit.shortcuts.table["p_holm"].notna().sum())
    text += (
        f"; permutation tests of {tested} lung-free baselines with Holm's correction, and paired 95% intervals of the "
        "differences to them."
    )
    return Answer(f"{RunFolder.metrics}, method; {RunFolder.audit}", text, missing)


def robustness(facts: RunFacts) -> Answer | None:
    if facts.audit is None:
        return None
    rows = facts.audit.altered.drop(columns=["low", "high"]).rename(
        columns={"auc": "value", "auc_low": "low", "auc_high": "high"}
    )
    rows = as_rows(rows.assign(unit="patient"))
    altered = "; ".join(describe_metric(row, name=f"{row['change']} {row['when']}: AUC") for row in rows)
    flags = ", ".join(facts.audit.shortcuts.flags) or "none"
    text = f"Flagged lung-free baselines: {flags}." + (f" Altered images, {altered}." if altered else "")
    return Answer(RunFolder.audit, text, "other seeds and options" + ("" if altered else "; altered images"))


def explanations(facts: RunFacts) -> Answer | None:
    if facts.model is None or facts.model.onnx is None:
        return None
    text = "model.onnx returns class activation maps, which are exact because the head is linear."
    return Answer("model.onnx", text, "their evaluation, by saliency_fraction and randomisation_check")


def internal(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    names = {"valid": "held-out patients", "test": "official TEST"}
    evaluations = facts.run.evaluations.items()
    text = "; ".join(
        f"{names.get(split, split)}: {describe_metric(result.row('auc'))}" for split, result in evaluations
    )
    return Answer(RunFolder.metrics, f"{text}.")


def external(facts: RunFacts) -> Answer | None:
    if not facts.external:
        return None
    texts = []
    for name, result in facts.external.items():
        rows = [row for row in result["table"] if row["metric"] == "auc" or row["comparison"] == ONE_CLASS]
        metrics = "; ".join(f"{row['images of']} ({row['comparison']}): {describe_metric(row)}" for row in rows)
        texts.append(f"{name}: {metrics}; {result['overlap']} images in the training data were excluded first.")
    both = any(result["same_source"] for result in facts.external.values())
    missing = "" if both else "a source with both classes, without which disease and hospital cannot be separated"
    return Answer("external/", " ".join(texts), missing)


def main_metrics(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    missing = "" if "test" in facts.run.evaluations or facts.external else "a test set that was not used before"
    rows = [facts.result.row(name) for name in ("auc", "brier", "ece")]
    text = f"{'; '.join(map(describe_metric, rows))}. The file holds all metrics."
    return Answer(RunFolder.metrics, text, missing)


def accuracy(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    names = ("sensitivity", "specificity") if facts.result.positive else ("accuracy", "balanced_accuracy")
    return Answer(RunFolder.metrics, f"{'; '.join(describe_metric(facts.result.row(name)) for name in names)}.")


def subgroup_performance(facts: RunFacts) -> Answer | None:
    if facts.subgroups is None:
        return None
    texts = [text for by in dict.fromkeys(facts.subgroups.table["by"]) if (text := _by_group(facts.subgroups, by))]
    missing = "" if texts[1:] else "subgroups: none is known, or none has ten patients and both classes"
    return Answer(f"{RunFolder.metrics}; model card", "; ".join(texts), missing)


def clusters(facts: RunFacts) -> Answer | None:
    internal = pd.DataFrame() if facts.subgroups is None else _evaluated_groups(facts.subgroups, "source")
    elsewhere = [source for result in facts.external.values() for source in result["same_source"]]
    if len(internal) + len(elsewhere) < 2:
        return None
    texts = [_by_group(facts.subgroups, "source")] if facts.subgroups is not None and len(internal) else []
    texts += [describe_metric({**row, "unit": "patient"}, name=f"external, {row['source']}: AUC") for row in elsewhere]
    where = ["model card, Subgroups"] if len(internal) else []
    where += ["external/"] if elsewhere else []
    missing = "the heterogeneity as a number: the sources were not pooled"
    if len(elsewhere) > 1:
        pooled = pool_aucs(*([row[name] for row in elsewhere] for name in ("value", "low", "high")))
        texts.append(
            f"external sources pooled by random effects: AUC {format_estimate(pooled.value, pooled.low, pooled.high)}, "
            f"standard deviation between sources {pooled.tau:.2f} on the scale of log odds"
        )
        missing = ""
    return Answer("; ".join(where), "; ".join(texts), missing)


def failures(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    confusion = facts.result.confusion.to_numpy()
    total, wrong = int(confusion.sum()), int(confusion.sum() - confusion.trace())
    text = f"{wrong} of {total} {facts.result.unit}s are misclassified; the worst cases are shown."
    return Answer(f"{RunFolder.report}, Worst cases", text, "the reasons, for which the images have to be read")


def limitations(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    sentences = limits(facts.cohort, facts.result, external=bool(facts.external))
    return Answer("model card, Limits", f"{len(sentences)} limits are stated.")


def verdict(facts: RunFacts) -> Answer | None:
    if facts.audit is None:
        return None
    return Answer(
        f"{RunFolder.audit}, verdict", facts.audit.verdict.sentence, "a comparison with earlier studies; fairness"
    )


def next_steps(facts: RunFacts) -> Answer | None:
    if facts.audit is None:
        return None
    untested = [condition.text for condition in facts.audit.verdict.conditions if condition.outcome == NOT_TESTED]
    text = " ".join(untested) or "All conditions of the verdict were tested."
    return Answer(f"{RunFolder.audit}, verdict", text, "the steps that should follow from the result")


def poor_input(facts: RunFacts) -> Answer | None:
    if not facts.evaluated:
        return None
    total = facts.result.n_images + facts.result.n_failed
    text = f"An image that cannot be read gets no prediction: {facts.result.n_failed} of {total}."
    return Answer(f"{RunFolder.predictions}, status", text, "the effect of readable images of poor quality")


def _evaluated_groups(subgroups: Subgroups, by: str) -> pd.DataFrame:
    table = subgroups.table
    return table[(table["by"] == by) & table["auc"].notna() & (table["group"] != UNKNOWN)]


def _by_group(subgroups: Subgroups, by: str) -> str:
    rows = _evaluated_groups(subgroups, by).rename(columns={"auc": "value", "auc_low": "low", "auc_high": "high"})
    heading = f"{by.replace('_', ' ')} " if by else ""
    texts = (
        describe_metric({**row, "n": row["patients"]}, name=f"{heading}{row['group']} ({row['class']}): AUC")
        for row in as_rows(rows)
    )
    return "; ".join(texts)


# why an item has no answer

AUTHORS = "To be written by the authors; a run cannot know it."
LABELLERS = "To be provided by the annotators; the data do not state it."
COLLECTORS = "To be provided by the collectors of the images; the data do not state it."
NOT_IN_RUN = "The run's folder does not hold it."
NO_AUDIT = "The run was not audited (covid-fastai audit RUN)."
NO_BATCH_EFFECT = "The run was not audited, or no class occurs both in an official TEST and in training."
NO_EXTERNAL = "No external data were evaluated (covid-fastai validate RUN DATA)."
ONE_SOURCE = "Fewer than two sources could be evaluated: the data need a source column and ten patients per source."
NOT_UPDATED = "The model was not recalibrated or updated after its evaluation."

ITEMS = (
    Item(CLAIM, "1", "title: identification as AI, with its category", title, NOT_IN_RUN),
    Item(CLAIM, "2", "summary of design, methods, results and conclusions", summary, NOT_IN_RUN),
    Item(CLAIM, "3", "background, intended use and clinical role", None, AUTHORS),
    Item(CLAIM, "4", "aims and hypotheses", aims, AUTHORS),
    Item(CLAIM, "5", "prospective or retrospective study", retrospective, COLLECTORS),
    Item(CLAIM, "6", "goal of the study", goal, NOT_IN_RUN),
    Item(CLAIM, "7", "sources of the data", sources, COLLECTORS),
    Item(CLAIM, "8", "inclusion and exclusion criteria", eligibility, COLLECTORS),
    Item(CLAIM, "9", "preprocessing of the images", preprocessing, NOT_IN_RUN),
    Item(CLAIM, "10", "selection of subsets of the data", subsets, COLLECTORS),
    Item(CLAIM, "11", "de-identification", None, COLLECTORS),
    Item(CLAIM, "12", "handling of missing data", missing_data, COLLECTORS),
    Item(CLAIM, "13", "image acquisition", acquisition, COLLECTORS),
    Item(CLAIM, "14", "definition of the reference standard", None, LABELLERS),
    Item(CLAIM, "15", "rationale for the reference standard", None, LABELLERS),
    Item(CLAIM, "16", "annotators and their qualifications", None, LABELLERS),
    Item(CLAIM, "17", "annotation of the test set", None, LABELLERS),
    Item(CLAIM, "18", "agreement between and within readers", None, LABELLERS),
    Item(CLAIM, "19", "assignment of data to partitions", partition, NOT_IN_RUN),
    Item(CLAIM, "20", "level at which the partitions are disjoint", disjoint, NOT_IN_RUN),
    Item(CLAIM, "21", "intended sample size", None, AUTHORS),
    Item(CLAIM, "22", "description of the model", architecture, NOT_IN_RUN),
    Item(CLAIM, "23", "software and versions", software, NOT_IN_RUN),
    Item(CLAIM, "24", "initialisation of the parameters", initial_weights, NOT_IN_RUN),
    Item(CLAIM, "25", "training", training, NOT_IN_RUN),
    Item(CLAIM, "26", "selection of the final model", final_model, NOT_IN_RUN),
    Item(CLAIM, "27", "ensembles", ensemble, NOT_IN_RUN),
    Item(CLAIM, "28", "metrics of performance", performance_metrics, NOT_IN_RUN),
    Item(CLAIM, "29", "statistical uncertainty and significance", uncertainty, NOT_IN_RUN),
    Item(CLAIM, "30", "robustness and sensitivity analysis", robustness, NO_AUDIT),
    Item(CLAIM, "31", "explainability methods and their evaluation", explanations, NOT_IN_RUN),
    Item(CLAIM, "32", "evaluation on internal data", internal, NOT_IN_RUN),
    Item(CLAIM, "33", "evaluation on external data", external, NO_EXTERNAL),
    Item(CLAIM, "34", "registration of the trial", None, AUTHORS),
    Item(CLAIM, "35", "numbers of included and excluded patients", flow, NOT_IN_RUN),
    Item(CLAIM, "36", "characteristics of the patients, by partition", patients, COLLECTORS),
    Item(CLAIM, "37", "performance with its uncertainty, by partition", main_metrics, NOT_IN_RUN),
    Item(CLAIM, "38", "diagnostic performance and its precision", accuracy, NOT_IN_RUN),
    Item(CLAIM, "39", "failure analysis", failures, NOT_IN_RUN),
    Item(CLAIM, "40", "limitations", limitations, NOT_IN_RUN),
    Item(CLAIM, "41", "implications for practice, intended use", None, AUTHORS),
    Item(CLAIM, "42", "full protocol or further technical details", protocol, AUTHORS),
    Item(CLAIM, "43", "availability of software, model and data", availability, AUTHORS),
    Item(CLAIM, "44", "funding and role of the funders", None, AUTHORS),
    Item(TRIPOD_AI, "1", "title: prediction model, population and outcome", title, NOT_IN_RUN),
    Item(TRIPOD_AI, "2", "structured abstract", summary, NOT_IN_RUN),
    Item(TRIPOD_AI, "3a", "healthcare context, rationale and existing models", None, AUTHORS),
    Item(TRIPOD_AI, "3b", "target population, purpose and intended users", None, AUTHORS),
    Item(TRIPOD_AI, "3c", "known health inequalities", None, AUTHORS),
    Item(TRIPOD_AI, "4", "objectives: development, evaluation or both", goal, NOT_IN_RUN),
    Item(TRIPOD_AI, "5a", "sources of the data and their representativeness", sources, COLLECTORS),
    Item(TRIPOD_AI, "5b", "dates of the data", None, COLLECTORS),
    Item(TRIPOD_AI, "6a", "setting, number and location of the centres", centres, COLLECTORS),
    Item(TRIPOD_AI, "6b", "eligibility criteria", eligibility, COLLECTORS),
    Item(TRIPOD_AI, "6c", "treatments", None, COLLECTORS),
    Item(TRIPOD_AI, "7", "data preparation and quality checks", preparation, NOT_IN_RUN),
    Item(TRIPOD_AI, "8a", "definition of the outcome, time and method of its assessment", None, LABELLERS),
    Item(TRIPOD_AI, "8b", "assessors of a subjective outcome", None, LABELLERS),
    Item(TRIPOD_AI, "8c", "blinding of the outcome assessment", None, LABELLERS),
    Item(TRIPOD_AI, "9a", "choice of the predictors", predictors, NOT_IN_RUN),
    Item(TRIPOD_AI, "9b", "definition and measurement of the predictors", preprocessing, NOT_IN_RUN),
    Item(TRIPOD_AI, "9c", "assessors of subjective predictors", no_reader, NOT_IN_RUN),
    Item(TRIPOD_AI, "10", "sample size and its rationale", None, AUTHORS),
    Item(TRIPOD_AI, "11", "missing data", missing_data, COLLECTORS),
    Item(TRIPOD_AI, "12a", "data used for each purpose", partition, NOT_IN_RUN),
    Item(TRIPOD_AI, "12b", "handling of the predictors", preprocessing, NOT_IN_RUN),
    Item(TRIPOD_AI, "12c", "type of model, model building, internal validation", training, NOT_IN_RUN),
    Item(TRIPOD_AI, "12d", "heterogeneity between centres", clusters, ONE_SOURCE),
    Item(TRIPOD_AI, "12e", "measures and plots of performance", performance_metrics, NOT_IN_RUN),
    Item(TRIPOD_AI, "12f", "model updating: method", updating, NOT_UPDATED),
    Item(TRIPOD_AI, "12g", "computation of predictions in the evaluation", predicting, NOT_IN_RUN),
    Item(TRIPOD_AI, "13", "class imbalance", imbalance, NOT_IN_RUN),
    Item(TRIPOD_AI, "14", "approaches to fairness and their rationale", None, AUTHORS),
    Item(TRIPOD_AI, "15", "output of the model, thresholds", output, NOT_IN_RUN),
    Item(TRIPOD_AI, "16", "differences between training and evaluation data", differences, NOT_IN_RUN),
    Item(TRIPOD_AI, "17", "ethics approval and consent", None, AUTHORS),
    Item(TRIPOD_AI, "18a", "funding", None, AUTHORS),
    Item(TRIPOD_AI, "18b", "conflicts of interest", None, AUTHORS),
    Item(TRIPOD_AI, "18c", "protocol", protocol, AUTHORS),
    Item(TRIPOD_AI, "18d", "registration", None, AUTHORS),
    Item(TRIPOD_AI, "18e", "data sharing", None, AUTHORS),
    Item(TRIPOD_AI, "18f", "code sharing", code, AUTHORS),
    Item(TRIPOD_AI, "19", "involvement of patients and the public", None, AUTHORS),
    Item(TRIPOD_AI, "20a", "flow of participants, with and without the outcome", flow, NOT_IN_RUN),
    Item(TRIPOD_AI, "20b", "characteristics of the participants", patients, COLLECTORS),
    Item(TRIPOD_AI, "20c", "predictor distributions in development and evaluation", batch_effect, NO_BATCH_EFFECT),
    Item(TRIPOD_AI, "21", "participants and outcomes in each analysis", counts, NOT_IN_RUN),
    Item(TRIPOD_AI, "22", "full model specification", model_files, NOT_IN_RUN),
    Item(TRIPOD_AI, "23a", "performance with intervals, also in subgroups", subgroup_performance, NOT_IN_RUN),
    Item(TRIPOD_AI, "23b", "performance by centre", clusters, ONE_SOURCE),
    Item(TRIPOD_AI, "24", "model updating: results", updating, NOT_UPDATED),
    Item(TRIPOD_AI, "25", "interpretation, including fairness", verdict, NO_AUDIT),
    Item(TRIPOD_AI, "26", "limitations and their effects", limitations, NOT_IN_RUN),
    Item(TRIPOD_AI, "27a", "handling of poor or missing input", poor_input, NOT_IN_RUN),
    Item(TRIPOD_AI, "27b", "required user interaction and expertise", None, AUTHORS),
    Item(TRIPOD_AI, "27c", "next steps, applicability to other settings", next_steps, NO_AUDIT),
)
