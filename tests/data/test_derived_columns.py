"""Paths from templates and columns of another table: what is made, and which mistakes are refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.data.derived_columns import DerivedColumns
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.path_templates import fill_template
from covid_fastai.data.problems import ProblemLog
from covid_fastai.errors import DataError, UsageError

MIMIC = "files/p{subject_id:.2}/p{subject_id}/s{study_id}/{dicom_id}.jpg"


def table(**columns: list[str]) -> pd.DataFrame:
    rows = pd.DataFrame(columns, dtype=str)
    return rows.set_axis(pd.RangeIndex(2, len(rows) + 2))


# templates


def test_the_path_of_mimic_cxr():
    rows = table(subject_id=["10000032", "10000764"], study_id=["50414267", ""], dicom_id=["02aa804e", "x"])
    assert fill_template(MIMIC, rows, where="t.csv") == ["files/p10/p10000032/s50414267/02aa804e.jpg", ""]


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("{Patient ID}_{n:0>3}.png", "p1_007.png"),
        ("{n:>3}.png", "  7.png"),
        ("{{{n}}}.png", "{7}.png"),
        ("{a.b}/{c[0]}.png", "x/y.png"),
        ("{n}", "7"),
    ],
)
def test_a_field_is_the_name_of_a_column(template, path):
    rows = table(**{"Patient ID": ["p1"], "n": [" 7 "], "a.b": ["x"], "c[0]": ["y"]})
    assert fill_template(template, rows, where="t.csv") == [path]


@pytest.mark.parametrize(
    ("template", "message", "hint"),
    [
        ("{n.__class__}", "no column 'n.__class__'", "Its columns: 'n', 'id'"),
        ("{n[0]}", r"no column 'n\[0\]'", "Its columns"),
        ("{N}.png", "no column 'N'", "Did you mean 'n'?"),
        ("{}.png", "the field {} is not allowed", "Name a column"),
        ("{n!r}.png", "the field {n!r} is not allowed", "Name a column"),
        ("{n:{id}}", "the format '{id}' is not allowed", ":.2}"),
        ("{n:999999999}", "the format '999999999' is not allowed", ":.2}"),
        ("{n:08}", "the format '08' is not allowed", "Write {n:0>8}"),
        ("{n:08d}", "the format '08d' is not allowed", "Write {n:0>8}"),
        ("{n", "cannot be read", "columns in braces"),
        ("n}", "cannot be read", "columns in braces"),
        ("a.png", "no column in braces", "subject_id"),
    ],
)
def test_a_template_with_anything_else_is_refused_with_a_remedy(template, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        fill_template(template, table(n=["7"], id=["x"]), where="t.csv")
    assert hint in caught.value.hint and repr(template) in caught.value.message


# joins


def joined(tmp_path, rows: pd.DataFrame, other: str, on: str) -> tuple[pd.DataFrame, list[dict]]:
    (tmp_path / "other.csv").write_text(other)
    columns, problems = DerivedColumns(join=tmp_path / "other.csv", on=on), ProblemLog()
    table = columns.add(rows, where="t.csv")
    columns.finish(problems, where="t.csv")
    return table, problems.rows


@pytest.mark.parametrize("on", ["study", "study=study"])
def test_many_rows_have_one_partner(tmp_path, on):
    rows = table(image=["a", "b", "c"], study=["1", "01", " 1"])
    result, problems = joined(tmp_path, rows, "study,label\n01,N\n1,P\n2,N\n", on)
    assert result.to_dict("list") == {"image": ["a", "b", "c"], "study": ["1", "01", " 1"], "label": ["P", "N", "P"]}
    assert result.index.tolist() == [2, 3, 4] and not problems


def test_keys_of_other_names_and_of_several_columns(tmp_path):
    rows = table(image=["a", "b"], subject=["1", "1"], visit=["x", "y"])
    result, _ = joined(tmp_path, rows, "id,v,label\n1,x,N\n1,y,P\n", "subject=id,visit=v")
    assert result["label"].tolist() == ["N", "P"] and result["id"].tolist() == ["1", "1"]


def test_rows_without_a_partner_are_counted_and_have_empty_columns(tmp_path, caplog):
    rows = table(image=["a", "b", "c"], study=["1", "9", ""])
    result, problems = joined(tmp_path, rows, "study,label\n1,P\n,Q\n", "study")
    assert result["label"].tolist() == ["P", "", ""]
    assert [(row["kind"], row["severity"]) for row in problems] == [("no_partner", "warning")]
    assert "2 of 3 rows have no partner" in problems[0]["reason"] and "study '9' (line 3)" in problems[0]["reason"]
    assert "2 of 3 rows have no partner" in caplog.text


def test_a_join_in_which_nothing_fits_is_an_error_that_shows_both_keys(tmp_path):
    with pytest.raises(DataError, match=r"study is for example 's1' \(line 2\), id in the other table '1'") as caught:
        joined(tmp_path, table(study=["s1", "s2"]), "id,label\n1,P\n2,N\n", "study=id")
    assert "LEFT=RIGHT" in caught.value.hint


def test_a_key_with_different_partners_is_an_error_only_if_it_is_used(tmp_path):
    other = "study,label\n1,P\n2,N\n2,P\n1,P\n"
    result, _ = joined(tmp_path, table(study=["1"]), other, "study")
    assert result["label"].tolist() == ["P"], "the same row twice is one partner"
    with pytest.raises(DataError, match=r"2 different rows for study '2', such as lines 3 and 4 \(label 'N' and 'P'\)"):
        joined(tmp_path, table(study=["1", "2"]), other, "study")


def test_a_column_of_both_tables_keeps_the_value_of_the_data(tmp_path, caplog):
    rows = table(study=["1", "2"], label=["N", "P"], view=["PA", "PA"])
    result, _ = joined(tmp_path, rows, "study,label,view\n1,P,PA\n2,P,PA\n", "study")
    assert result["label"].tolist() == ["N", "P"] and result["label_joined"].tolist() == ["P", "P"]
    assert "both have 'label', with different values" in caplog.text and "'view'" not in caplog.text


@pytest.mark.parametrize("on", ["gone", "study=gone", "gone=study", "study,gone"])
def test_a_key_that_does_not_exist_is_named(tmp_path, on):
    with pytest.raises(DataError, match="no column 'gone' to join on") as caught:
        joined(tmp_path, table(study=["1"], image=["a"]), "study,label\n1,P\n", on)
    assert "Its columns: 'study'" in caught.value.hint


def test_a_faulty_row_of_the_other_table_is_an_error(tmp_path):
    with pytest.raises(DataError, match="line 3 has 1 values"):
        joined(tmp_path, table(study=["1", "2"]), "study,label\n1,P\n2\n", "study")


def test_a_template_uses_joined_columns_and_keeps_a_path_of_the_data(tmp_path):
    (tmp_path / "other.csv").write_text("study,file\n1,a\n")
    columns = DerivedColumns(path_template="{study}/{file}.png", join=tmp_path / "other.csv", on="study")
    result = columns.add(table(study=["1"], path=["old"]), where="t.csv")
    assert columns.path_column == "path"
    assert result.to_dict("list") == {"study": ["1"], "path_given": ["old"], "file": ["a"], "path": ["1/a.png"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"join": "a.csv"}, "join='a.csv' is only one of two options"),
        ({"on": "id"}, "on='id' is only one of two options"),
        ({"path_column": "x", "path_template": "{x}"}, "mutually exclusive"),
    ],
)
def test_options_that_need_or_exclude_each_other(options, message):
    with pytest.raises(UsageError, match=message):
        DerivedColumns(**options)


# in a cohort


def test_a_cohort_whose_labels_and_paths_come_from_two_tables(tmp_path):
    for number in range(4):
        name = tmp_path / f"files/p1{number % 2}/s{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(noise).save(name)
    rows = table(subject_id=["10", "11", "10", "11", "12"], study_id=["0", "1", "2", "3", "4"])
    (tmp_path / "labels.csv").write_text("study,label\n0,Normal\n1,COVID-19\n2,COVID-19\n3,Normal\n")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    options = {"path_template": "files/p{subject_id}/s{study_id}.png", "join": tmp_path / "labels.csv"}
    options |= {"on": "study_id=study", "on_problem": "skip"}
    cohort = read_cohort(tmp_path / "rows.csv", **options)
    assert cohort["label"].tolist() == ["Normal", "COVID-19", "COVID-19", "Normal"]
    assert cohort["patient"].tolist() == ["10", "11", "10", "11"] and cohort["patient_known"].all()
    kinds = {row["kind"] for row in cohort.facts.problems if row["severity"] != "note"}
    assert kinds == {"no_partner", "missing_file", "empty_label"}
    again = read_cohort(rows, image_root=tmp_path, **options)
    assert again["path"].tolist() == cohort["path"].tolist() and again["study"].tolist() == ["0", "1", "2", "3"]
    with pytest.raises(UsageError, match="path_template, join does not apply"):
        (tmp_path / "c" / "Normal").mkdir(parents=True)
        Image.new("L", (40, 40)).save(tmp_path / "c" / "Normal" / "a.png")
        read_cohort(tmp_path / "c", **options)
