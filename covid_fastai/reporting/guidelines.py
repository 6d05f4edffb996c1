"""The items that CLAIM 2024 and TRIPOD+AI ask a study to report, and what a run answers to each.

`ITEMS` is the whole table: an item is one entry, which names the function that answers it from the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from covid_fastai.audit.verdict import NOT_TESTED
from covid_fastai.data.tables import as_rows
from covid_fastai.evaluation.subgroups import Subgroups
from covid_fastai.model.bundle_config import CONFIG_FILE
from covid_fastai.reporting.caveats import limits
from covid_fastai.reporting.run_facts import KNOWN_COLUMNS, RunFacts, say_counts, say_figure
from covid_fastai.run_folder import RunFolder

__all__ = ["Answer", "CLAIM", "ITEMS", "Item", "SOURCES", "TRIPOD_AI"]

CLAIM, TRIPOD_AI = "CLAIM 2024", "TRIPOD+AI"
SOURCES = {
    CLAIM: "Tejani et al., Radiology: Artificial Intelligence 6(4), 2024, doi:10.1148/ryai.240300 (44 items)",
    TRIPOD_AI: "Collins et al., BMJ 385, 2024, doi:10.1136/bmj-2023-078378 (27 items, 52 with their parts)",
}
ONE_CLASS = "one class"  # as `validate` calls a source without the other classes
UNKNOWN = "unknown"  # the patients of whom a fact is not known are no subgroup
SHORTEST_SHA = 16  # hexadecimal digits that name a file well enough to be read


@dataclass(frozen=True)
class Answer:
    """What a run says to an item.

    Attributes:
        where: The file, or the file and its section.
        text: What was found.
        lacks: What the item asks beyond it; empty where nothing is missing.
    """

    where: str
    text: str
    lacks: str = ""


@dataclass(frozen=True)
class Item:
    """One thing that a guideline asks for.

    Attributes:
        guideline: `CLAIM` or `TRIPOD_AI`.
        number: As in the guideline, such as `"12a"`.
        asks: What it asks, in a few words of our own.
        answer: Returns what a run's folder says to it, None where it says nothing; None where no run can know it.
        missing: What there is to do where nothing answers it.
    """

    guideline: str
    number: str
    asks: str
    answer: Callable[[RunFacts], Answer | None] | None
    missing: str


# answers: the study


def title(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    text = f"Deep learning ({facts.model.arch}) that tells {' from '.join(facts.model.classes)} on chest radiographs."
    return Answer("model card", text, "the population that it is meant for")


def summary(facts: RunFacts) -> Answer | None:
    if facts.model is None or not facts.judged:
        return None
    lacks = "the conclusion: there was no audit" if facts.audit is None else ""
    return Answer("model card", f"Model, data, {say_figure(facts.result.row('auc'), name='AUC')}, verdict.", lacks)


def aims(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    return Answer(
        RunFolder.config, f"To tell {' from '.join(facts.result.classes)}.", "a hypothesis, stated beforehand"
    )


def retrospective(facts: RunFacts) -> Answer | None:
    if facts.used.empty:
        return None
    return Answer(
        RunFolder.datasheet, "Retrospective: the images were there first.", "how their collection was planned"
    )


def goal(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    outside = (
        f", and an evaluation on external data ({', '.join(facts.external)})"
        if facts.external
        else "; no external evaluation"
    )
    return Answer(RunFolder.metrics, f"Development of a model with internal evaluation{outside}.")


# the data


def sources(facts: RunFacts) -> Answer | None:
    if not facts.known("source"):
        return None
    counts = facts.used["source"].replace("", "unknown").value_counts()
    text = "; ".join(f"{name}: {n:,} images" for name, n in counts.items())
    return Answer(f"{RunFolder.datasheet}, Where the images come from", text, "dates, places, and whom they represent")


def centres(facts: RunFacts) -> Answer | None:
    if not facts.known("source"):
        return None
    names = sorted(set(facts.used["source"]) - {"", "unknown"})
    text = f"{len(names)} sources are named: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}."
    return Answer(RunFolder.cohort, text, "setting and place; a source may be a collection of many hospitals")


def eligibility(facts: RunFacts) -> Answer | None:
    if facts.used.empty:
        return None
    reasons = facts.excluded["note"].replace("", "no reason given").value_counts()
    out = "; ".join(f"{note} ({n:,})" for note, n in reasons.items()) or "none"
    text = f"{len(facts.used):,} images let in; {len(facts.excluded):,} are excluded: {out}."
    return Answer(
        f"{RunFolder.datasheet}, What is excluded", text, "by which rule the collections chose their patients"
    )


def subsets(facts: RunFacts) -> Answer | None:
    if not facts.fields:
        return None
    ratio = facts.fields.get("negatives_per_positive")
    text = "No subset was drawn: every row that the task lets in was used."
    if ratio:
        text = f"{ratio:g} images of the negative class were drawn for each positive one, seed {facts.fields['seed']}."
    return Answer(RunFolder.config, text)


def preprocessing(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    model = facts.model
    text = (
        f"One grey channel, {model.image_size} x {model.image_size} pixels ({model.resize}), mean {model.mean:g} and "
    )
    return Answer(f"model's {CONFIG_FILE}", text + f"deviation {model.std:g} of grey values from 0 to 1.")


def preparation(facts: RunFacts) -> Answer | None:
    if not facts.run.folder.problems.is_file():
        return None
    rows = facts.run.problems
    text = f"Every row and image was checked; {len(rows)} findings, {int((rows['severity'] == 'error').sum())} errors."
    return Answer(RunFolder.problems, text)


def missing_data(facts: RunFacts) -> Answer | None:
    if not facts.judged or facts.used.empty:
        return None
    known = [f"{name} known of {facts.known(column):,}" for column, name in KNOWN_COLUMNS.items()]
    text = f"Of {len(facts.used):,} images: {', '.join(known)}. {facts.result.n_failed} got no prediction and are "
    return Answer(RunFolder.datasheet, text + "counted nowhere. Nothing was imputed: the model sees pixels only.")


def acquisition(facts: RunFacts) -> Answer | None:
    if not facts.known("view"):
        return None
    counts = facts.used["view"].replace("", "unknown").value_counts()
    views = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    return Answer(RunFolder.datasheet, f"Projection: {views}.", "machine, exposure, who acquired them and how")


def partition(facts: RunFacts) -> Answer | None:
    if not facts.fields or facts.used.empty:
        return None
    how = f"{facts.folds} folds" if facts.folds else f"{facts.fields['valid_pct']:.0%} held out"
    parts = ". ".join(f"{name}: {say_counts(rows)}" for name, rows in facts.parts())
    text = f"At random by {facts.fields['split']}, stratified by class, seed {facts.fields['seed']}, {how}. {parts}."
    return Answer(RunFolder.cohort, text)


def disjoint(facts: RunFacts) -> Answer | None:
    if facts.used.empty or facts.used.get("fold", facts.used["split"]).nunique() < 2:
        return None
    text = f"Patients: {facts.both_sides} are on two sides (counted in {RunFolder.cohort})."
    lacks = "" if facts.patients_known else "not every image names its patient: each of those counts as one"
    return Answer(RunFolder.cohort, text, lacks)


def flow(facts: RunFacts) -> Answer | None:
    if facts.used.empty:
        return None
    everybody, taking_part = (rows["patient"].nunique() for rows in (facts.cohort, facts.used))
    text = f"{len(facts.cohort):,} images of {everybody:,} patients; {len(facts.excluded):,} images are excluded; "
    text += f"{len(facts.used):,} images of {taking_part:,} patients are used ({say_counts(facts.used)})."
    return Answer(RunFolder.datasheet, text)


def patients(facts: RunFacts) -> Answer | None:
    known = {name: facts.known(column) for column, name in KNOWN_COLUMNS.items() if facts.known(column)}
    if not known:
        return None
    text = "; ".join(f"{name} known of {n:,} of {len(facts.used):,} images" for name, n in known.items())
    return Answer(
        f"{RunFolder.datasheet}, Who the patients are", text, "clinical characteristics, and what is not known above"
    )


def counts(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    found = facts.result.confusion.sum(axis=1)
    judged = ", ".join(f"{n} {name}" for name, n in found.items())
    trained = facts.used[facts.used["split"] == "train"]
    return Answer(RunFolder.metrics, f"Trained on: {say_counts(trained)}. Judged, {facts.result.unit}s: {judged}.")


def differences(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    text = "Held-out patients are dealt from the same collections."
    if not facts.external:
        return Answer(RunFolder.cohort, text, "data of another setting")
    return Answer("external/", f"{text} External: {', '.join(facts.external)}.", "how the settings differ")


def batch_effect(facts: RunFacts) -> Answer | None:
    if facts.audit is None or facts.audit.batch_effect.empty:
        return None
    rows = facts.audit.batch_effect.rename(columns={"auc": "value"}).assign(unit="patient")
    said = "; ".join(say_figure(row, name=f"{row['class']}, thumbnail's AUC") for row in as_rows(rows))
    return Answer(f"{RunFolder.audit}, batch_effect", f"Official TEST told from training within a class: {said}.")


# the model


def predictors(facts: RunFacts) -> Answer | None:
    return facts.model and Answer("model card", "The pixels of one radiograph; nothing else of the patient.")


def no_reader(facts: RunFacts) -> Answer | None:
    return facts.model and Answer("model card", "None: the only input is pixels, which no reader judges first.")


def architecture(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    model = facts.model
    head = ", ".join(model.head)
    return Answer(
        f"model's {CONFIG_FILE}", f"{model.arch}, {model.n_in} channel; head: {head}; {len(model.classes)} classes."
    )


def software(facts: RunFacts) -> Answer | None:
    if not facts.run.folder.versions.is_file():
        return None
    found = facts.run.versions
    text = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    return Answer(RunFolder.versions, f"Python {found['python']}; {text}.")


def first_weights(facts: RunFacts) -> Answer | None:
    if not facts.weights:
        return None
    sha = facts.weights.get("sha256") or ""
    text = f"{facts.weights['name']}" + (f", sha256 {sha[:SHORTEST_SHA]}..." if sha else "")
    return Answer(f"model's {CONFIG_FILE}", f"First weights: {text}; the head at random.")


def training(facts: RunFacts) -> Answer | None:
    if not facts.fields or not facts.run.folder.history.is_file():
        return None
    get, models = facts.fields.get, facts.folds or 1
    text = f"One-cycle, {get('frozen_epochs')} epochs with the body frozen and {get('unfrozen_epochs')} unfrozen, peak "
    text += f"rate {get('learning_rate'):g}, batches of {get('batch_size')}, weight decay {get('weight_decay'):g}, "
    text += f"augmentation {get('augmentation')}, seed {get('seed')}; {models} model{'s' if models > 1 else ''}."
    return Answer(f"{RunFolder.config}, {RunFolder.history}", text)


def final_model(facts: RunFacts) -> Answer | None:
    if facts.model is None or not facts.run.folder.history.is_file():
        return None
    text = "The weights after the last epoch; no epoch was chosen on held-out patients."
    return Answer(RunFolder.history, text, "whether options were chosen after earlier runs on the same patients")


def ensemble(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    text = "None: one model."
    if facts.folds:
        text = f"None inside: each patient is judged by the one of {facts.folds} models that has not seen them."
        text += " On external data their mean." if facts.external else ""
    return Answer(RunFolder.predictions, text)


def imbalance(facts: RunFacts) -> Answer | None:
    if not facts.fields:
        return None
    way = {"none": "No correction", "loss": "Class weights in the loss", "sampler": "A weighted sampler"}
    return Answer(RunFolder.config, f"{way[facts.fields['balance']]}; trained on {say_counts(facts.used)}.")


def output(facts: RunFacts) -> Answer | None:
    if not facts.judged or facts.model is None:
        return None
    rule = "the most probable class is called"
    if facts.result.threshold is not None:
        rule = f"{facts.result.positive} is called from {facts.result.threshold:g} on, chosen on no data"
    return Answer(RunFolder.metrics, f"A probability of each class; {rule}.")


def predicting(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    text = "By the frozen model, once an image; a patient's score is the mean over their images."
    return Answer(RunFolder.predictions, text)


def updating(facts: RunFacts) -> Answer | None:
    if facts.model is None or facts.model.temperature == 1:
        return None
    text = f"Temperature scaling, {facts.model.temperature:.3g}."
    return Answer(f"model's {CONFIG_FILE}", text, "figures before and after: calibrate")


def model_files(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    names = ", ".join(folder.relative_to(facts.run.path).as_posix() for folder in facts.models)
    return Answer(names, f"Weights and config; sha256 {facts.model.sha256[:SHORTEST_SHA]}...")


def protocol(facts: RunFacts) -> Answer | None:
    if not facts.command:
        return None
    return Answer(RunFolder.config, f"Every option, and the call: `{facts.command}`", "a protocol written beforehand")


def code(facts: RunFacts) -> Answer | None:
    if not facts.run.folder.versions.is_file():
        return None
    number = facts.run.versions["packages"].get("covid_fastai", "of an unknown version")
    return Answer(RunFolder.versions, f"covid_fastai {number}.", "where it and the authors' own code can be had")


def availability(facts: RunFacts) -> Answer | None:
    if facts.model is None:
        return None
    return Answer("model card", "The model's files lie in this folder.", "where others can have them")


# what was found


def measures(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    names = ", ".join(dict.fromkeys(facts.result.summary()["metric"]))
    return Answer(f"{RunFolder.metrics}; plots in {RunFolder.report}", f"{names}.")


def uncertainty(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    ways = "; ".join(dict.fromkeys(facts.result.metrics["method"]))
    unit = facts.result.unit
    return Answer(f"{RunFolder.metrics}, method", f"95% intervals by {unit} ({ways}); no test of significance.")


def robustness(facts: RunFacts) -> Answer | None:
    if facts.audit is None:
        return None
    rows = facts.audit.altered.drop(columns=["low", "high"]).rename(
        columns={"auc": "value", "auc_low": "low", "auc_high": "high"}
    )
    rows = as_rows(rows.assign(unit="patient"))
    said = "; ".join(say_figure(row, name=f"{row['change']}, {row['when']}: AUC") for row in rows)
    flags = ", ".join(facts.audit.shortcuts.flags) or "none"
    text = f"Baselines that see no lung, flagged: {flags}. {said}".strip()
    return Answer(RunFolder.audit, text, "other seeds and options" + ("" if said else "; altered images"))


def explanations(facts: RunFacts) -> Answer | None:
    if facts.model is None or facts.model.onnx is None:
        return None
    text = "Class activation maps, which the linear head makes exact, are an output of model.onnx."
    return Answer("model.onnx", text, "their check: saliency_fraction and randomisation_check left nothing in this run")


def internal(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    names = {"valid": "held-out patients", "test": "official TEST"}
    found = facts.run.evaluations.items()
    said = "; ".join(f"{names.get(split, split)}: {say_figure(one.row('auc'))}" for split, one in found)
    return Answer(RunFolder.metrics, f"{said}.")


def external(facts: RunFacts) -> Answer | None:
    if not facts.external:
        return None
    said = []
    for name, found in facts.external.items():
        rows = [row for row in found["table"] if row["metric"] == "auc" or row["comparison"] == ONE_CLASS]
        figures = "; ".join(f"{row['images of']} ({row['comparison']}): {say_figure(row)}" for row in rows)
        said.append(f"{name}: {figures}; {found['overlap']} images that the model knew were taken out first")
    both = any(found["same_source"] for found in facts.external.values())
    lacks = "" if both else "a source with images of both classes: what is there cannot tell disease from hospital"
    return Answer("external/", f"{'. '.join(said)}.", lacks)


def figures(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    lacks = "" if "test" in facts.run.evaluations or facts.external else "a test part that was never looked at before"
    rows = [facts.result.row(name) for name in ("auc", "brier", "ece")]
    return Answer(RunFolder.metrics, f"{'; '.join(map(say_figure, rows))}; all others there.", lacks)


def accuracy(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    names = ("sensitivity", "specificity") if facts.result.positive else ("accuracy", "balanced_accuracy")
    return Answer(RunFolder.metrics, f"{'; '.join(say_figure(facts.result.row(name)) for name in names)}.")


def performance(facts: RunFacts) -> Answer | None:
    if facts.subgroups is None:
        return None
    judged = [text for by in dict.fromkeys(facts.subgroups.table["by"]) if (text := _by_group(facts.subgroups, by))]
    lacks = "" if judged[1:] else "subgroups: none is known, or none has ten patients and both classes"
    return Answer(f"{RunFolder.metrics}; model card", "; ".join(judged), lacks)


def clusters(facts: RunFacts) -> Answer | None:
    if facts.subgroups is None or len(_judged_groups(facts.subgroups, "source")) < 2:
        return None
    return Answer("model card, Subgroups", _by_group(facts.subgroups, "source"))


def failures(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    wrong = facts.result.confusion.to_numpy().sum() - facts.result.confusion.to_numpy().trace()
    text = (
        f"{int(wrong)} of {int(facts.result.confusion.to_numpy().sum())} {facts.result.unit}s are called wrongly; the "
    )
    return Answer(
        f"{RunFolder.report}, Where it was most wrong", text + "worst are shown.", "why: somebody has to look at them"
    )


def limitations(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    said = limits(facts.cohort, facts.result, external=bool(facts.external))
    return Answer("model card, Limits", f"{len(said)} are stated.")


def verdict(facts: RunFacts) -> Answer | None:
    if facts.audit is None:
        return None
    return Answer(f"{RunFolder.audit}, verdict", facts.audit.verdict.sentence, "earlier studies beside it; fairness")


def next_steps(facts: RunFacts) -> Answer | None:
    if facts.audit is None:
        return None
    untried = [one.text for one in facts.audit.verdict.conditions if one.outcome == NOT_TESTED]
    said = f"Not tried yet: {' '.join(untried)}" if untried else "Every condition of the verdict was tried."
    return Answer(f"{RunFolder.audit}, verdict", said, "what should follow from the result")


def poor_input(facts: RunFacts) -> Answer | None:
    if not facts.judged:
        return None
    seen = facts.result.n_images + facts.result.n_failed
    text = f"An image that cannot be read gets no answer: {facts.result.n_failed} of {seen}."
    return Answer(f"{RunFolder.predictions}, status", text, "what readable but poor images do to the answers")


def _judged_groups(subgroups: Subgroups, by: str) -> pd.DataFrame:
    table = subgroups.table
    return table[(table["by"] == by) & table["auc"].notna() & (table["group"] != UNKNOWN)]


def _by_group(subgroups: Subgroups, by: str) -> str:
    rows = _judged_groups(subgroups, by).rename(columns={"auc": "value", "auc_low": "low", "auc_high": "high"})
    heading = f"{by.replace('_', ' ')} " if by else ""
    said = (
        say_figure({**row, "n": row["patients"]}, name=f"{heading}{row['group']} ({row['class']}): AUC")
        for row in as_rows(rows)
    )
    return "; ".join(said)


# what there is to do where nothing answers an item

AUTHORS = "the authors have to write it; a run cannot know"
LABELLERS = "those who made the labels have to say; the data do not"
COLLECTORS = "those who collected the images have to say; the data do not"
TRAIN = "nothing in the run's folder says it"
AUDIT = "there was no audit: covid-fastai audit RUN"
PLACEBO = "there was no audit, or no class is both in an official TEST and in training"
EXTERNAL = "no external data were tried: covid-fastai validate RUN DATA"
GROUPS = "no two sources could be judged: give a column for the source, with ten patients of each or more"
UPDATED = "not done: the model was not recalibrated or updated after it was judged"

ITEMS = (
    Item(CLAIM, "1", "says in the title that it is AI, and of which kind", title, TRAIN),
    Item(CLAIM, "2", "summary of design, methods, results, conclusions", summary, TRAIN),
    Item(CLAIM, "3", "background; intended use and role", None, AUTHORS),
    Item(CLAIM, "4", "aims and hypotheses", aims, AUTHORS),
    Item(CLAIM, "5", "prospective or retrospective", retrospective, COLLECTORS),
    Item(CLAIM, "6", "goal of the study", goal, TRAIN),
    Item(CLAIM, "7", "where the data come from", sources, COLLECTORS),
    Item(CLAIM, "8", "who and what was let in and left out", eligibility, COLLECTORS),
    Item(CLAIM, "9", "preprocessing of the images", preprocessing, TRAIN),
    Item(CLAIM, "10", "how subsets of the data were chosen", subsets, COLLECTORS),
    Item(CLAIM, "11", "how patients' identities were removed", None, COLLECTORS),
    Item(CLAIM, "12", "how missing data were handled", missing_data, COLLECTORS),
    Item(CLAIM, "13", "how the images were acquired", acquisition, COLLECTORS),
    Item(CLAIM, "14", "what the reference standard is, how it was obtained", None, LABELLERS),
    Item(CLAIM, "15", "why that reference standard", None, LABELLERS),
    Item(CLAIM, "16", "who labelled, with which training", None, LABELLERS),
    Item(CLAIM, "17", "how the test set was labelled", None, LABELLERS),
    Item(CLAIM, "18", "how far readers agree with each other and themselves", None, LABELLERS),
    Item(CLAIM, "19", "how data were dealt into parts", partition, TRAIN),
    Item(CLAIM, "20", "at which level the parts are disjoint", disjoint, TRAIN),
    Item(CLAIM, "21", "sample size that was intended, and why", None, AUTHORS),
    Item(CLAIM, "22", "the model in detail", architecture, TRAIN),
    Item(CLAIM, "23", "software and its versions", software, TRAIN),
    Item(CLAIM, "24", "how the parameters began", first_weights, TRAIN),
    Item(CLAIM, "25", "how it was trained", training, TRAIN),
    Item(CLAIM, "26", "how the final model was chosen", final_model, TRAIN),
    Item(CLAIM, "27", "ensembles", ensemble, TRAIN),
    Item(CLAIM, "28", "which figures measure the model", measures, TRAIN),
    Item(CLAIM, "29", "statistical uncertainty and significance", uncertainty, TRAIN),
    Item(CLAIM, "30", "robustness and sensitivity analysis", robustness, AUDIT),
    Item(CLAIM, "31", "explanations, and whether they were checked", explanations, TRAIN),
    Item(CLAIM, "32", "judged on internal data", internal, TRAIN),
    Item(CLAIM, "33", "tested on external data", external, EXTERNAL),
    Item(CLAIM, "34", "registration of the trial", None, AUTHORS),
    Item(CLAIM, "35", "how many were let in and left out", flow, TRAIN),
    Item(CLAIM, "36", "who the patients are, by part", patients, COLLECTORS),
    Item(CLAIM, "37", "figures with their uncertainty, by part", figures, TRAIN),
    Item(CLAIM, "38", "diagnostic performance and its precision", accuracy, TRAIN),
    Item(CLAIM, "39", "analysis of failures", failures, TRAIN),
    Item(CLAIM, "40", "limitations", limitations, TRAIN),
    Item(CLAIM, "41", "what follows for practice; intended use", None, AUTHORS),
    Item(CLAIM, "42", "the full protocol, or further technical details", protocol, AUTHORS),
    Item(CLAIM, "43", "where software, model and data can be had", availability, AUTHORS),
    Item(CLAIM, "44", "funding, and the funders' role", None, AUTHORS),
    Item(TRIPOD_AI, "1", "title: a prediction model, its population and outcome", title, TRAIN),
    Item(TRIPOD_AI, "2", "structured abstract", summary, TRAIN),
    Item(TRIPOD_AI, "3a", "healthcare context, reasons, models that exist", None, AUTHORS),
    Item(TRIPOD_AI, "3b", "population, purpose and users that are meant", None, AUTHORS),
    Item(TRIPOD_AI, "3c", "known health inequalities", None, AUTHORS),
    Item(TRIPOD_AI, "4", "objectives: development, evaluation or both", goal, TRAIN),
    Item(TRIPOD_AI, "5a", "sources of the data, how far they represent the population", sources, COLLECTORS),
    Item(TRIPOD_AI, "5b", "dates of the data", None, COLLECTORS),
    Item(TRIPOD_AI, "6a", "setting, number and place of the centres", centres, COLLECTORS),
    Item(TRIPOD_AI, "6b", "eligibility of the participants", eligibility, COLLECTORS),
    Item(TRIPOD_AI, "6c", "treatments", None, COLLECTORS),
    Item(TRIPOD_AI, "7", "preparation of the data, checks of their quality", preparation, TRAIN),
    Item(TRIPOD_AI, "8a", "what the outcome is, when and how it was assessed", None, LABELLERS),
    Item(TRIPOD_AI, "8b", "who assessed a subjective outcome", None, LABELLERS),
    Item(TRIPOD_AI, "8c", "whether the assessment was blinded", None, LABELLERS),
    Item(TRIPOD_AI, "9a", "choice of the predictors", predictors, TRAIN),
    Item(TRIPOD_AI, "9b", "what the predictors are, how they were measured", preprocessing, TRAIN),
    Item(TRIPOD_AI, "9c", "who assessed subjective predictors", no_reader, TRAIN),
    Item(TRIPOD_AI, "10", "sample size and how it came about", None, AUTHORS),
    Item(TRIPOD_AI, "11", "missing data", missing_data, COLLECTORS),
    Item(TRIPOD_AI, "12a", "which data served which purpose", partition, TRAIN),
    Item(TRIPOD_AI, "12b", "how predictors were handled", preprocessing, TRAIN),
    Item(TRIPOD_AI, "12c", "kind of model, how it was built, internal validation", training, TRAIN),
    Item(TRIPOD_AI, "12d", "differences between centres", clusters, GROUPS),
    Item(TRIPOD_AI, "12e", "measures and plots of performance", measures, TRAIN),
    Item(TRIPOD_AI, "12f", "model updating: method", updating, UPDATED),
    Item(TRIPOD_AI, "12g", "how predictions were computed when judged", predicting, TRAIN),
    Item(TRIPOD_AI, "13", "imbalance of the classes", imbalance, TRAIN),
    Item(TRIPOD_AI, "14", "what was done for fairness, and why", None, AUTHORS),
    Item(TRIPOD_AI, "15", "what the model gives out; thresholds", output, TRAIN),
    Item(TRIPOD_AI, "16", "how training and evaluation data differ", differences, TRAIN),
    Item(TRIPOD_AI, "17", "ethics approval and consent", None, AUTHORS),
    Item(TRIPOD_AI, "18a", "funding", None, AUTHORS),
    Item(TRIPOD_AI, "18b", "conflicts of interest", None, AUTHORS),
    Item(TRIPOD_AI, "18c", "protocol", protocol, AUTHORS),
    Item(TRIPOD_AI, "18d", "registration", None, AUTHORS),
    Item(TRIPOD_AI, "18e", "whether the data are shared", None, AUTHORS),
    Item(TRIPOD_AI, "18f", "whether the code is shared", code, AUTHORS),
    Item(TRIPOD_AI, "19", "involvement of patients and the public", None, AUTHORS),
    Item(TRIPOD_AI, "20a", "flow of participants, with and without the outcome", flow, TRAIN),
    Item(TRIPOD_AI, "20b", "characteristics of the participants", patients, COLLECTORS),
    Item(TRIPOD_AI, "20c", "predictors' distribution: evaluation beside development", batch_effect, PLACEBO),
    Item(TRIPOD_AI, "21", "participants and outcomes in each analysis", counts, TRAIN),
    Item(TRIPOD_AI, "22", "the whole model, so that others can predict with it", model_files, TRAIN),
    Item(TRIPOD_AI, "23a", "performance with intervals, subgroups too", performance, TRAIN),
    Item(TRIPOD_AI, "23b", "performance by centre", clusters, GROUPS),
    Item(TRIPOD_AI, "24", "model updating: result", updating, UPDATED),
    Item(TRIPOD_AI, "25", "interpretation, fairness too", verdict, AUDIT),
    Item(TRIPOD_AI, "26", "limitations and what they do", limitations, TRAIN),
    Item(TRIPOD_AI, "27a", "what to do with poor or missing input", poor_input, TRAIN),
    Item(TRIPOD_AI, "27b", "what users have to do and to know", None, AUTHORS),
    Item(TRIPOD_AI, "27c", "next steps, with a view to other settings", next_steps, AUDIT),
)
