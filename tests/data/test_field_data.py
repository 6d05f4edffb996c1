"""Data as other users have them: cases that once gave wrong results without an error."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai import read_cohort
from covid_fastai.data.path_suggestions import NearbyFiles
from covid_fastai.data.tasks import Task, fold_label
from covid_fastai.errors import DataError, UsageError

SIGNS = Task(name="signs", classes=("Normal", "COVID-19"), positive="COVID-19", labels={"-": "Normal", "+": "COVID-19"})


def write_rows(folder, start: int = 0, **columns) -> pd.DataFrame:
    """Write one image per row, noise from the seeds `start` on, and return the table with `path` and the columns."""
    table = pd.DataFrame(columns)
    names = table.pop("name") if "name" in table else [f"{number}.png" for number in range(len(table))]
    for number, name in enumerate(names, start):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)).save(file)
    return table.assign(path=[str(folder / name) for name in names])


# labels: signs and numbers count


@pytest.mark.parametrize(
    ("one", "other"),
    [("-1", "1"), ("COVID-", "COVID"), ("COVID19-", "COVID19"), ("+", "-"), ("1.5", "-1.5"), ("1-5", "15"), ("", "-")]
    + [("1_0", "10"), ("T-", "T"), ("grade -2", "grade 2"), ("2 1", "21"), ("_", ""), ("-0", "0")],
)
def test_labels_that_differ_in_a_sign_or_a_number_are_two(one, other):
    assert fold_label(one) != fold_label(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("COVID-19", "covid 19"), ("No Finding", "no_finding"), ("SARS-CoV-2", "sars cov2"), ("Viral  One", "viral-one")]
    + [(" Normal", "NORMAL"), ("COVID‑19", "COVID19"), ("Übergang", "U\u0308bergang"), ("B3 lines", "b3-lines")],
)
def test_labels_that_differ_in_spelling_alone_are_one(one, other):
    assert fold_label(one) == fold_label(other)


@pytest.mark.parametrize("label", ["-1", "COVID-", "COVID19-", "covid+", "-", "1"])
def test_a_label_with_a_sign_is_unknown_and_no_class(tmp_path, label):
    rows = write_rows(tmp_path, label=["Normal", "COVID-19", label])
    with pytest.raises(DataError, match="unknown label") as caught:
        read_cohort(rows)
    assert [fault["kind"] for fault in caught.value.details] == ["unknown_label"]
    assert repr(label) in caught.value.details[0]["reason"]


def test_plus_and_minus_are_two_classes_and_an_empty_label_is_neither(tmp_path):
    rows = write_rows(tmp_path, label=["+", "-", "", "+"])
    cohort = read_cohort(rows, task=SIGNS, on_problem="skip")
    assert cohort["label"].tolist() == ["COVID-19", "Normal", "COVID-19"]
    assert [row["kind"] for row in cohort.facts.problems if row["severity"] == "error"] == ["empty_label"]


@pytest.mark.parametrize("name", ["x" * 101, "Normal\nlung", "a\tb", "$\\alpha$", " Normal", "Normal\u200b"])
def test_a_class_name_that_fits_no_plot_or_file_is_refused_before_anything_is_read(name):
    with pytest.raises(UsageError, match="class name"):
        Task(name="t", classes=(name, "COVID-19"))


# projection and modality


def test_a_stated_view_or_modality_that_is_not_frontal_is_excluded_with_its_reason(tmp_path):
    views = ["PA", "AP Supine", "", "Axial", "XTABLE LATERAL", "L", "PA", "N/A"]
    modalities = ["X-ray", "DX", "", "X-ray", "X-ray", "X-ray", "CT", "xray"]
    rows = write_rows(tmp_path, label=["Normal", "COVID-19"] * 4, view=views, modality=modalities)
    cohort = read_cohort(rows)
    excluded = cohort[cohort["split"] == "excluded"]
    assert excluded["note"].tolist() == [
        "view 'Axial' is not known to be frontal",
        "view 'XTABLE LATERAL' is not known to be frontal",
        "lateral view",
        "modality 'CT' is not a radiograph",
    ]
    assert cohort["view"].tolist()[:3] == ["PA", "AP supine", ""] and cohort["modality"].tolist() == modalities


def test_a_task_of_any_view_takes_them_all(tmp_path):
    rows = write_rows(tmp_path, label=["Normal", "COVID-19"], view=["Axial", "L"])
    task = Task(name="any", classes=("Normal", "COVID-19"), frontal_only=False)
    assert (read_cohort(rows, task=task)["split"] == "train").all()


# patients and sources


@pytest.mark.parametrize("placeholder", ["unknown", "nan", "NA", "-", "none", "N/A", "Anonymous", "?", "  "])
def test_a_placeholder_identifies_no_patient(tmp_path, placeholder):
    rows = write_rows(tmp_path, label=["Normal", "COVID-19", "Normal"], patient=[placeholder, placeholder, "7"])
    cohort = read_cohort(rows)
    assert cohort["patient"].nunique() == 3 and cohort["patient_known"].tolist() == [False, False, True]
    assert not cohort.patients_known


def test_one_number_in_two_sources_is_two_patients(tmp_path):
    sources = ["Lyon", "Lyon", "Turin", "Turin", ""]
    labels = ["Normal", "COVID-19", "Normal", "COVID-19", "COVID-19"]
    rows = write_rows(tmp_path, label=labels, patient=["1", "2", "1", "3", "3"], source=sources)
    cohort = read_cohort(rows)
    assert cohort["patient"].tolist() == ["Lyon/1", "2", "Turin/1", "3", "3"], (
        "a source that is not stated joins nobody"
    )
    assert cohort["group"].nunique() == 4


def test_names_that_osirix_exports_are_not_kermanys_patients(tmp_path):
    names = ["a/IM-0001-0001.jpg", "b/IM-0001-0001.jpg", "c/IM-0002-0001.jpg", "c/NORMAL2-IM-0003-0001.jpg"]
    rows = write_rows(tmp_path, name=names, label=["Normal", "COVID-19", "Normal", "COVID-19"])
    cohort = read_cohort(rows)
    assert cohort["patient"].nunique() == 4 and not cohort["patient_known"].any()
    assert (cohort["source"] == "unknown").all()


def test_among_kermanys_own_names_they_are(tmp_path):
    names = ["IM-0001-0001.jpg", "IM-0001-0002.jpg", "person3_virus_16.jpg"]
    task = Task(name="p", classes=("Normal", "Pneumonia"), labels={"virus": "Pneumonia"})
    cohort = read_cohort(write_rows(tmp_path, name=names, label=["Normal", "Normal", "virus"]), task=task)
    assert cohort["patient"].tolist() == ["IM-0001", "IM-0001", "virus-3"] and cohort["patient_known"].all()


def test_the_name_of_a_folder_is_no_source(tmp_path):
    for start, label in enumerate(("Normal", "COVID-19")):
        write_rows(tmp_path, 10 * start, name=[f"{label}/{number}-{label}.png" for number in range(3)])
    assert (read_cohort(tmp_path)["source"] == "unknown").all()


# missing files


@pytest.mark.parametrize("asked", ["00000002_000.png", "person1_virus_7.png", "scan_b.png", "twice.png"])
def test_the_file_of_another_patient_is_never_suggested(tmp_path, asked):
    for name in ("00000022_000.png", "person1_virus_6.png", "scan_a.png", "one/twice.png", "two/twice.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert NearbyFiles(tmp_path).find(str(tmp_path / "images" / asked)) == ""


@pytest.mark.parametrize(
    "asked", ["SCAN.PNG", "scan.jpg", "x/scan.png", "x\\scan.png", "D:\\data\\scan.png", "E\u0301.png"]
)
def test_the_same_name_in_another_spelling_is_suggested(tmp_path, asked):
    for name in ("deep/scan.png", "deep/\u00e9.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    right = {str(tmp_path / "deep" / name) for name in ("scan.png", "\u00e9.png")}
    assert NearbyFiles(tmp_path).find(str(tmp_path / asked)) in right
