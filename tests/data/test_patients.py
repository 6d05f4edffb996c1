"""Patients: ambiguities of CoronaHack's file names, and the facts of Cohen's images."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pandas as pd
import pytest

from covid_fastai.data.patients import cohen_facts, image_facts, patient_key, source_of_patient

COHEN = "SARS-10.1148rg.242035193-g04mr34g09a-Fig9a-day17.jpeg"  # dots in the stem


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("person1_bacteria_2.jpeg", "bacteria-1"),
        ("person1_virus_6.jpeg", "virus-1"),
        ("person447_virus_921_1.jpeg", "virus-447"),
        ("PERSON01_Virus_6.JPG", "virus-1"),
        ("IM-0128-0001.jpeg", "IM-0128"),
        ("IM-0128-0001-0002.jpeg", "IM-0128"),
        ("NORMAL2-IM-0128-0001.jpeg", "NORMAL2-0128"),
        ("NORMAL2-IM-1019-0001-0002.jpeg", "NORMAL2-1019"),
        ("NORMAL2-IM-0095-0001.jpeg", "NORMAL2-0095"),
        ("NORMAL2-IM-0096-0001.jpeg", "NORMAL2-0095"),  # the same picture
        ("IM-0096-0001.jpeg", "IM-0096"),
        ("train/person1_virus_6.png", "virus-1"),
        (r"train\person1_virus_6.png", "virus-1"),
        (" person1_virus_6.jpeg ", "virus-1"),
        ("person1_virus_6", "virus-1"),
        (COHEN, "cohen-10"),
        (COHEN.replace(".jpeg", ".PNG").upper(), "cohen-10"),
        (COHEN.removesuffix(".jpeg"), "cohen-10"),
        ("person1_fungus_6.jpeg", None),
        ("xperson1_virus_6.jpeg", None),
        ("person1_virus_6_copy.jpeg", None),
        ("person_virus_6.jpeg", None),
        ("IM-0128.jpeg", None),
        ("radiograph.jpeg", None),
        ("", None),
        ("folder/", None),
    ],
)
def test_patient_key(name, key):
    assert patient_key(name) == key


def test_a_number_alone_is_not_a_patient():
    names = ["person12_bacteria_1.jpeg", "person12_virus_1.jpeg", "IM-0012-0001.jpeg", "NORMAL2-IM-0012-0001.jpeg"]
    assert len({patient_key(name) for name in names}) == 4


@pytest.mark.parametrize(
    ("name", "source"),
    [("person1_virus_6.jpeg", "kermany"), ("IM-0128-0001.jpeg", "kermany"), (COHEN, "cohen"), ("a.png", "unknown")],
)
def test_the_source_follows_from_the_patient(name, source):
    assert source_of_patient(patient_key(name) or "") == source


def test_the_facts_and_their_licence_ship_with_the_package():
    folder = files("covid_fastai.data")
    assert (folder / "cohen-metadata.csv").is_file()
    assert "CC BY-NC-SA 4.0" in (folder / "cohen-metadata.LICENSE.md").read_text(encoding="utf-8")


def test_what_is_known_of_cohens_images():
    facts = cohen_facts()
    assert facts.index.name == "filename" and facts.index.is_unique and len(facts) == 70
    counts = {"COVID-19": 58, "Streptococcus": 5, "SARS": 4, "ARDS": 2, "No Finding": 1}
    assert facts["finding"].value_counts().to_dict() == counts
    covid = facts[facts["finding"] == "COVID-19"]
    assert covid["patient"].nunique() == 39
    assert covid["view"].value_counts().to_dict() == {"PA": 39, "AP": 9, "AP Supine": 6, "L": 4}
    assert covid["sex"].value_counts().to_dict() == {"M": 31, "F": 20, "": 7}
    assert (covid["age"].min(), covid["age"].median(), covid["age"].max()) == (25, 56, 87)
    assert covid["age"].isna().sum() == 9
    assert facts["patient"].str.fullmatch(r"cohen-\d+").all() and facts["url"].str.startswith("http").all()


def test_all_but_the_covid_patients_are_seven():
    facts = cohen_facts()
    covid = facts["finding"] == "COVID-19"
    assert facts.loc[~covid, "patient"].nunique() == 7
    assert not set(facts.loc[covid, "patient"]) & set(facts.loc[~covid, "patient"])


def test_the_key_of_each_of_cohens_names_is_its_patient():
    facts = cohen_facts()
    assert [patient_key(name) for name in facts.index] == facts["patient"].tolist()


def test_facts_cannot_be_changed_for_the_next_reader():
    facts = cohen_facts()
    facts.loc[:, "patient"] = "nobody"
    assert (cohen_facts()["patient"] != "nobody").all()


def test_image_facts_keeps_the_rows_and_their_index():
    names = pd.Series([COHEN, "person1_virus_6.jpeg", "", COHEN.replace(".jpeg", ".png"), COHEN], index=[7, 3, 1, 9, 0])
    facts = image_facts(names)
    assert facts.index.tolist() == names.index.tolist()
    assert facts["patient"].tolist() == ["cohen-10", "", "", "cohen-10", "cohen-10"]
    assert facts["sex"].tolist() == ["F", "", "", "F", "F"]
    np.testing.assert_array_equal(facts["age"], [73, np.nan, np.nan, 73, 73])
    np.testing.assert_array_equal(facts["day"], [17, np.nan, np.nan, 17, 17])


def test_image_facts_of_no_names():
    assert image_facts(pd.Series([], dtype=str)).empty
