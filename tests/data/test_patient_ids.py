"""Patients from paths: a pattern of the user, and the forms of published data sets where every path has one."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from covid_fastai import read_cohort
from covid_fastai.config import TrainConfig
from covid_fastai.data.patient_ids import join_patients, patients_from_paths, patients_of_pattern
from covid_fastai.data.problems import ProblemLog
from covid_fastai.errors import DataError, UsageError
from tests.data.test_field_data import write_rows


@pytest.mark.parametrize(
    ("pattern", "patients"),
    [
        (r"patient(\d+)", ["7", "8", ""]),
        (r"(?P<who>patient\d+)", ["patient7", "patient8", ""]),
        (r"(\w+)/patient(\d+)", ["a/7", "b/8", ""]),
        (r"([ab])?/?patient(\d+)|other_(\d)", ["a/7/", "b/8/", "//3"]),
    ],
)
def test_the_groups_of_a_pattern_are_the_patient(pattern, patients):
    names = pd.Series(["a/patient7/x.png", "b/patient8/x.png", "other_3.png"])
    problems = ProblemLog()
    assert patients_of_pattern(names, pattern, problems).tolist() == patients
    counted = [row["reason"] for row in problems.rows]
    assert len(counted) == ("" in patients) and all("1 of 3 paths" in text and "other_3" in text for text in counted)


def test_a_pattern_that_matches_nothing_is_an_error_with_an_example():
    with pytest.raises(DataError, match=r"none of the 2 paths, such as 'a/x.png'"):
        patients_of_pattern(pd.Series(["a/x.png", "b/y.png"]), r"patient(\d+)", ProblemLog())


@pytest.mark.parametrize(
    ("pattern", "reason"), [("patient(", "position"), (r"patient\d+", "no group"), ("", "no group")]
)
def test_an_invalid_pattern_is_refused_with_its_reason_before_anything_is_read(pattern, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        TrainConfig(patient_pattern=pattern)
    assert "patient_pattern" in caught.value.message and r"(\d+)" in caught.value.hint
    with pytest.raises(UsageError, match=reason):
        read_cohort("no such folder", patient_pattern=pattern)


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (
            ["CheXpert-v1.0/train/patient00001/study1/view1.jpg", "CheXpert-v1.0/valid/patient00002/study3/view1.jpg"],
            [1, 2],
        ),
        ([r"D:\chex\patient00001\study2\a.jpg", r"D:\chex\patient00001\study1\a.jpg"], [1, 1]),
        (["sub-S01/ses-E1/mod-rx/a.png", "sub-S02/ses-E1/mod-rx/a.png", "sub-S01/ses-E2/mod-rx/b.png"], [1, 2, 1]),
        (["files/p10/p10000032/s50414267/a.jpg", "files/p11/p11000033/s50414268/a.jpg"], [1, 2]),
        (["train/patient1/study1/a.png", "test/patient1/study1/a.png"], [1, 1]),  # one collection, divided
    ],
)
def test_published_forms_of_paths_name_the_patient(names, patients, caplog):
    with caplog.at_level(logging.INFO, "covid_fastai"):
        found = patients_from_paths(pd.Series(names))
    assert (found != "").all() and found.groupby(found).ngroup().add(1).tolist() == patients
    assert "have the form" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["patient1/study1/a.png", "other/a.png"],  # not every path
        ["patient1/a.png", "patient2/a.png"],  # no study
        ["sub-1/a.png", "sub-2/a.png"],
        ["00000001_000.png", "20200101_001.png"],  # a date looks like a number
        ["substudy-1/ses-1/a.png", "substudy-2/ses-1/a.png"],
    ],
)
def test_other_paths_name_no_patient(names):
    assert (patients_from_paths(pd.Series(names)) == "").all()


def test_one_number_below_two_folders_is_not_taken_for_one_person(caplog):
    names = pd.Series(["lyon/sub-1/ses-1/a.png", "turin/sub-1/ses-1/a.png"])
    assert (patients_from_paths(names) == "").all()
    assert "'lyon/'" in caplog.text and "`patient_pattern`" in caplog.text
    assert patients_of_pattern(names, r"(\w+)/sub-(\d+)", ProblemLog()).tolist() == ["lyon/1", "turin/1"]


def test_the_column_counts_and_a_contradiction_is_counted():
    problems = ProblemLog()
    stated, named = pd.Series(["a", "a", "b", ""]), pd.Series(["1", "2", "3", "4"])
    assert join_patients(stated, named, problems).tolist() == ["a", "a", "b", "4"]
    assert [row["kind"] for row in problems.rows] == ["patients_differ"] and "2 images" in problems.rows[0]["reason"]
    problems = ProblemLog()
    join_patients(pd.Series(["p1", "p1", "p2"]), pd.Series(["1", "1", "2"]), problems)
    assert problems.rows == [], "other names of the same groups are no contradiction"


def test_read_cohort_takes_the_pattern_and_keys_it_with_the_source(tmp_path):
    names = ["x/p1_a.png", "x/p1_b.png", "y/p1_c.png", "y/p2_d.png", "y/scan.png"]
    labels, sources = ["Normal", "COVID-19", "Normal", "COVID-19", "Normal"], ["x", "x", "y", "y", "y"]
    rows = write_rows(tmp_path, name=names, label=labels, source=sources)
    cohort = read_cohort(rows, patient_pattern=r"p(\d)_")
    assert cohort["patient"].tolist()[:4] == ["x/1", "x/1", "y/1", "2"]
    assert cohort["patient_known"].tolist() == [True, True, True, True, False]
    assert [row["kind"] for row in cohort.facts.problems] == ["patient_not_matched"]


def test_a_placeholder_in_the_column_leaves_the_patient_to_the_path(tmp_path):
    names = [f"patient{number}/study1/a.png" for number in (1, 2, 2)]
    rows = write_rows(tmp_path, name=names, label=["Normal", "COVID-19", "Normal"], patient=["17", "unknown", ""])
    cohort = read_cohort(rows.drop_duplicates("path"))
    assert cohort["patient"].tolist() == ["17", "patient2"] and cohort["patient_known"].all()
