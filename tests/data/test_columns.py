"""The usual names of columns: which column is used, and what is said where several could be."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from covid_fastai.data.columns import ROLES, choose_columns, is_usual_name, usual_columns
from covid_fastai.errors import DataError
from covid_fastai.evaluation.prediction_table import read_predictions


def choose(given=None, *, required=("path", "label"), rows=2, **columns) -> dict[str, str | None]:
    """Return the chosen columns that exist, for a table of text whose first line is 2."""
    names = {name.replace("__", " "): values for name, values in columns.items()}
    table = pd.DataFrame({"image": [f"{n}.png" for n in range(rows)], **names}, dtype=str)
    if "label" in required and not usual_columns(table, "label"):
        table["label"] = "Normal"
    table.index = pd.RangeIndex(2, rows + 2)
    chosen = choose_columns(table, given or {}, where="t.csv", required=required)
    return {role: name for role, name in chosen.items() if name is not None}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["Image Index", "Finding Labels", "Patient ID", "View Position"], ["path", "label", "patient", "view"]),
        (["Path", "Label"], ["path", "label"]),
        (["patientid", "filename", "class", "source"], ["patient", "path", "label", "source"]),
        (["ImageID", "Labels", "PatientID", "Projection"], ["path", "label", "patient", "view"]),
        (["dicom_id", "subject_id", "ViewPosition", "Diagnosis"], ["path", "patient", "view", "label"]),
        (["IMG-Name", "class name", "MRN", "data_split"], ["path", "label", "patient", "split"]),
    ],
)
def test_the_names_of_public_sets_are_known(columns, expected):
    table = pd.DataFrame([["a"] * len(columns)], columns=columns)
    chosen = choose_columns(table, {}, where="t.csv")
    assert {role: name for role, name in chosen.items() if name} == dict(zip(expected, columns, strict=True))


def test_every_usual_name_belongs_to_one_role():
    names = [name.replace("_", "") for names in ROLES.values() for name in names]
    assert len(names) == len(set(names))
    assert is_usual_name("Finding Labels") and is_usual_name("patientId") and not is_usual_name("a.png")


def test_an_identifier_stands_for_the_path_with_a_warning_and_not_for_the_patient_too(caplog):
    table = pd.DataFrame({"patientId": ["a", "b"], "Target": ["0", "1"]})
    chosen = choose_columns(table, {}, where="t.csv")
    assert (chosen["path"], chosen["patient"]) == ("patientId", None)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "path_column" in caplog.text
    predictions = pd.DataFrame({"patientId": ["a", "b"], "label": ["N", "P"], "p_N": [0.9, 0.1], "p_P": [0.1, 0.9]})
    assert read_predictions(predictions)["patient"].tolist() == ["a", "b"], "no path is required here"


def test_two_columns_of_a_role_that_agree_are_named_in_a_warning(caplog):
    chosen = choose(label=["0", "1"], diagnosis=["Normal", "COVID-19"])
    assert chosen["label"] == "label"
    assert "'label' is used for the label; 'diagnosis' has such a name too" in caplog.text
    assert "label_column" in caplog.text


@pytest.mark.parametrize(
    ("role", "columns"),
    [
        ("label", {"label": ["Normal", "Normal", "COVID"], "diagnosis": ["Normal", "COVID", "COVID"]}),
        ("label", {"Class": ["0", "1", "1", "0"], "Finding": ["No", "Yes", "No", "No"]}),
        ("patient", {"patient_id": ["a", "b", "c"], "subject_id": ["1", "1", "2"]}),
        ("patient", {"patientId": ["1", "1", "2"], "Patient__ID": ["x", "y", "z"]}),
        ("split", {"split": ["train", "test", "train"], "subset": ["test", "test", "train"]}),
        ("view", {"view": ["PA", "L", "L"], "ViewPosition": ["PA", "PA", "LL"]}),
    ],
)
def test_two_columns_of_a_role_that_contradict_each_other_are_an_error(role, columns):
    with pytest.raises(DataError, match=f"two columns for the {role} that contradict each other.*line ") as caught:
        choose(rows=len(next(iter(columns.values()))), **columns)
    names = [name.replace("__", " ") for name in columns]
    assert f"`{role}_column`" in caught.value.hint and all(repr(name) in caught.value.hint for name in names)
    for name in names:  # the remedy
        assert choose({role: name}, rows=len(next(iter(columns.values()))), **columns)[role] == name


@pytest.mark.parametrize(
    "columns",
    [
        {"label": ["Normal", "virus", "bacteria"], "class": ["0", "1", "1"]},
        {"label": ["Normal", "COVID", ""], "finding": ["Normal", "", "COVID"]},
        {"label": ["Normal", "COVID", "unknown"], "finding": ["Normal", "COVID", "COVID"]},
    ],
)
def test_a_finer_description_and_blanks_contradict_nothing(columns):
    assert choose(rows=3, **columns)["label"] == "label"


def test_a_saved_cohort_has_a_label_and_its_finding():
    marks = {"patient_known": ["True"] * 3, "in_pretraining": ["False"] * 3, "note": [""] * 3}
    chosen = choose(rows=3, label=["A", "A", "B"], finding=["x", "y", "y"], **marks)
    assert chosen["label"] == "label"


def test_a_missing_column_is_named_with_the_option(caplog):
    with pytest.raises(DataError, match="known to hold the labels") as caught:
        choose_columns(pd.DataFrame({"image": ["a"], "x": ["b"]}), {}, where="t.csv")
    assert caught.value.hint == "Name it with `label_column`. Its columns: 'image', 'x'."
    with pytest.raises(DataError, match="no column 'labels'") as caught:
        choose({"label": "labels"}, Label=["a", "b"])
    assert "Did you mean 'Label'?" in caught.value.hint
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        choose(label=["a", "b"])
    assert "Columns of t.csv, found by their names: path = 'image', label = 'label'." in caplog.text


def test_of_several_columns_for_the_path_the_one_that_names_images_is_used(caplog):
    table = pd.DataFrame({"image": ["Xray Chest PA and Lateral"] * 2, "filename": ["1_IM-1.dcm.png", ""]})
    assert choose_columns(table, {}, where="t.csv", roles=["path"], required=["path"]) == {"path": "filename"}
    table["image"] = ["a.png", "b.png"]
    with caplog.at_level("WARNING"):
        assert choose_columns(table, {}, where="t.csv", roles=["path"], required=["path"]) == {"path": "image"}
    assert "'filename' has such a name too" in caplog.text


def test_a_first_line_of_values_is_suspected_where_no_name_is_usual():
    with pytest.raises(DataError, match="known to hold the image files") as caught:
        choose_columns(pd.DataFrame({"a1": ["b2"], "yes": ["no"]}), {}, where="t.csv")
    assert "If these are values, write a first line with the names of the columns." in caught.value.hint


def test_columns_of_findings_are_named_where_no_column_has_the_labels():
    columns = {"path": ["a.png", "b.png"], "age": ["1", "57"], "No Finding": ["1.0", ""], "Pneumonia": ["", "-1.0"]}
    with pytest.raises(DataError, match="no column that is known to hold the labels") as caught:
        choose_columns(pd.DataFrame({**columns, "Edema": ["0", "True"]}), {}, where="t.csv")
    hint = "'No Finding', 'Edema'. If they are findings, name those of the task with `label_columns`."
    assert hint in caught.value.hint
    with pytest.raises(DataError) as caught:
        choose_columns(pd.DataFrame({"path": ["a.png"], "age": ["57"]}), {}, where="t.csv")
    assert "label_columns" not in caught.value.hint
