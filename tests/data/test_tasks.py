"""Tasks: the class of each finding in every spelling, and contradictions within a task."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from covid_fastai.data.tasks import SPELLINGS, TASKS, Task, canonical_finding, fold_label, get_task
from covid_fastai.errors import UsageError

CLASSES = ("Normal", "COVID-19")


# spellings


@pytest.mark.parametrize("text", ["COVID-19", "covid 19", "Covid_19", " COVID19 ", "covid", "SARS-CoV-2", "covid-19\t"])
def test_all_spellings_of_covid_are_one_finding(text):
    assert canonical_finding(text) == "COVID-19"
    assert TASKS["covid"].class_of(text) == "COVID-19"


def test_corona_hacks_own_spellings():
    assert canonical_finding("Pnemonia") == "pneumonia"
    assert canonical_finding("No Finding") == "Normal"
    assert canonical_finding("Virus") == "virus" and canonical_finding("bacteria") == "bacteria"


def test_an_unknown_finding_is_only_stripped():
    assert canonical_finding("  Cardiac Mass ") == "Cardiac Mass"


def test_no_spelling_belongs_to_two_findings():
    folded = [fold_label(text) for name, others in SPELLINGS.items() for text in (name, *others)]
    assert len(folded) == len(set(folded))


# the tasks that come with the package


@pytest.mark.parametrize(
    ("task", "finding", "label"),
    [
        ("covid", "Normal", "Normal"),
        ("covid", "virus", None),
        ("covid", "Tuberculosis", None),
        ("pneumonia", "Pnemonia", "Pneumonia"),
        ("pneumonia", "viral pneumonia", "Pneumonia"),
        ("pneumonia", "bacterial", "Pneumonia"),
        ("pneumonia", "covid", None),
        ("etiology", "bacteria", "Bacterial"),
        ("etiology", "Viral", "Viral"),
        ("etiology", "pneumonia", None),
    ],
)
def test_class_of(task, finding, label):
    assert TASKS[task].class_of(finding) == label


@pytest.mark.parametrize("name", TASKS)
def test_every_finding_of_coronahack_is_known(name):
    task = TASKS[name]
    for finding in ("Normal", "bacteria", "virus", "COVID-19", "Streptococcus", "SARS", "ARDS"):
        assert bool(task.class_of(finding)) != bool(task.reason_excluded(finding)), finding
    assert task.name == name and task.title
    assert task.reason_excluded("Tuberculosis") is None and "Tuberculosis" not in task.known_findings()


@pytest.mark.parametrize(("name", "positive"), [("covid", "COVID-19"), ("pneumonia", "Pneumonia"), ("etiology", None)])
def test_normal_comes_first_and_the_positive_class_is_named(name, positive):
    assert TASKS[name].classes[0] == "Normal" and TASKS[name].positive == positive


def test_only_covid_excludes_the_official_test():
    assert {name: task.official_test for name, task in TASKS.items()} == {
        "covid": False,
        "pneumonia": True,
        "etiology": True,
    }


def test_cohens_images_are_excluded_where_class_and_source_are_confounded():
    assert [name for name, task in TASKS.items() if "cohen" in task.excluded_sources] == ["pneumonia", "etiology"]


# custom tasks


def test_a_class_is_a_finding_of_its_own():
    task = Task(name="tb", classes=["No TB", "TB"], positive="TB")
    assert task.class_of("tb") == "TB" and task.class_of("no_tb") == "No TB"
    assert task.classes == ("No TB", "TB") and task.title == "No TB or TB"
    assert task.known_findings() == ["No TB", "TB"]


def test_labels_and_exclusions_are_found_in_any_spelling():
    task = Task(
        name="t", classes=CLASSES, labels={"negative": "Normal"}, excluded={"viral pneumonia": "not asked about"}
    )
    assert task.class_of("NEGATIVE") == "Normal"
    assert task.reason_excluded("Virus") == "not asked about" and task.class_of("Virus") is None


@pytest.mark.parametrize("name", TASKS)
def test_a_task_survives_json(name):
    task = TASKS[name]
    assert Task(**json.loads(json.dumps(task.to_dict()))) == task


def test_a_task_does_not_share_its_dictionaries():
    labels = {"negative": "Normal"}
    task = Task(name="t", classes=CLASSES, labels=labels)
    labels["odd"] = "Normal"
    task.to_dict()["labels"]["odd"] = "Normal"
    assert task.class_of("odd") is None
    with pytest.raises(FrozenInstanceError):
        task.name = "other"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": "Normal"}, "is a string"),
        ({"classes": ()}, "two or more"),
        ({"classes": ("Normal",)}, "two or more"),
        ({"classes": ("Normal", "Normal")}, "different"),
        ({"classes": ("Normal", "")}, "two or more"),
        ({"classes": ("covid", "COVID-19")}, "'covid' and 'COVID-19'"),
        ({"name": "a/b"}, "folder names"),
        ({"name": ""}, "folder names"),
        ({"name": ".hidden"}, "folder names"),
        ({"positive": "covid"}, "positive='covid' is not a class"),
        ({"labels": {"virus": "Viral"}}, "'virus' has the class 'Viral'"),
        ({"labels": {"COVID-19": "Normal"}}, "'COVID-19' has the classes 'COVID-19' and 'Normal'"),
        ({"labels": {"SARS": "Normal", "sars ": "COVID-19"}}, "'sars ' has the classes"),
        ({"labels": {"virus": "Normal", "viral": "COVID-19"}}, "'viral' has the classes"),
        ({"labels": {"SARS": "Normal"}, "excluded": {"sars": "no"}}, "'sars' has a class and is excluded"),
        ({"labels": {"virus": "Normal"}, "excluded": {"viral pneumonia": "no"}}, "'viral pneumonia' has a class"),
        ({"excluded": {"normal": "no"}}, "'normal' has a class and is excluded"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UsageError, match=message) as error:
        Task(**{"name": "t", "classes": CLASSES, **fields})
    assert error.value.hint


# get_task


def test_get_task_takes_a_name_a_task_or_its_fields():
    own = Task(name="own", classes=CLASSES, labels={"fibrosis": CLASSES[1]}, frontal_only=False)
    assert get_task(own) is own and get_task("covid") is TASKS["covid"]
    assert get_task(json.loads(json.dumps(own.to_dict()))) == own


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"classes": CLASSES}, "has no name"), ({"name": "own", "classes": CLASSES, "sex": "F"}, "has no field 'sex'")],
)
def test_get_task_refuses_invalid_fields(fields, message):
    with pytest.raises(UsageError, match=message):
        get_task(fields)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("COVID", "Did you mean 'covid'?"),
        ("pnemonia", "Did you mean 'pneumonia'?"),
        ("aetiology", "Did you mean 'etiology'?"),
        ("zzz", "Tasks: covid, pneumonia, etiology"),
        (None, "Tasks: covid"),
        (["covid"], "Did you mean 'covid'?"),
    ],
)
def test_get_task_suggests_a_task(text, hint):
    with pytest.raises(UsageError, match="There is no task") as error:
        get_task(text)
    assert error.value.hint.startswith(hint)


def test_more_classes_than_a_report_can_show_are_refused_at_once():
    names = tuple(f"finding {number}" for number in range(1000))
    with pytest.raises(UsageError, match="has 1,000 classes, more than 100"):
        Task("many", classes=names)
    assert len(Task("many", classes=names[:100]).classes) == 100
