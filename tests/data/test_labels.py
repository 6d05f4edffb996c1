"""Labels of other collections: mapped, in lists and paths, one column per finding, several readers of one image."""

from __future__ import annotations

import json
import logging
import shlex

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai import read_cohort, summarise_cohort
from covid_fastai.app.cli.wording import as_options
from covid_fastai.config import TrainConfig
from covid_fastai.data.custom_tasks import make_task
from covid_fastai.data.labels import read_labels, suggest_labels
from covid_fastai.data.recipe_tables import task_of_config
from covid_fastai.data.tasks import TASKS, Task, fold_label
from covid_fastai.errors import DataError, UsageError

NIH = ["No Finding", "Cardiomegaly|Effusion", "Pneumonia", "Effusion|Pneumonia", "Effusion", "Hernia"]


def write_rows(folder, **columns) -> pd.DataFrame:
    """Write one image per row, and return the table with `path` and the columns; a column `name` gives the files."""
    table = pd.DataFrame(columns)
    names = table.pop("name") if "name" in table else [f"{number}.png" for number in range(len(table))]
    for number, name in enumerate(dict.fromkeys(names)):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return table.assign(path=[str(folder / name) for name in names])


def read(folder, columns, **options) -> pd.DataFrame:
    return read_cohort(write_rows(folder, **columns), check_images=False, **options)


def meanings(task: Task, *texts: str) -> list[str]:
    """Return the class of each text, else its reason in brackets, else its unknown labels after a question mark."""
    found = read_labels(task, texts)
    return [m.label or (f"({m.note})" if m.note else f"?{'|'.join(m.unknown)}") for m in found.values()]


# tasks made from options


@pytest.mark.parametrize(
    ("options", "name", "classes", "positive"),
    [
        ({}, "covid", ("Normal", "COVID-19"), "COVID-19"),
        ({"labels": {"Lung_Opacity": "COVID-19"}}, "covid", ("Normal", "COVID-19"), "COVID-19"),
        ({"labels": {"Lung_Opacity": ""}}, "covid", ("Normal", "COVID-19"), "COVID-19"),
        ({"task": "pneumonia", "labels": {"1": "Pneumonia"}}, "pneumonia", ("Normal", "Pneumonia"), "Pneumonia"),
        ({"classes": "TB,Normal", "positive": "TB"}, "normal-vs-tb", ("Normal", "TB"), "TB"),
        ({"classes": ["Normal", "TB"]}, "normal-vs-tb", ("Normal", "TB"), "TB"),
        ({"classes": 'Normal,"TB, active",TB'}, "normal-vs-tb-active-vs-tb", ("Normal", "TB, active", "TB"), None),
        ({"labels": {1: "Pneumonia", 0: "Normal"}}, "normal-vs-pneumonia", ("Normal", "Pneumonia"), "Pneumonia"),
        ({"labels": {"a": "TB", "b": "Non-TB"}}, "non-tb-vs-tb", ("Non-TB", "TB"), "TB"),
        ({"labels": {"a": "Mass", "b": "TB"}, "positive": "Mass"}, "tb-vs-mass", ("TB", "Mass"), "Mass"),
        ({"positive": "Pneumonia"}, "no-pneumonia-vs-pneumonia", ("No Pneumonia", "Pneumonia"), "Pneumonia"),
        ({"label_columns": ["Mass"]}, "no-mass-vs-mass", ("No Mass", "Mass"), "Mass"),
        ({"label_columns": ["Mass", "No Finding"]}, "no-finding-vs-mass", ("No Finding", "Mass"), "Mass"),
        ({"label_columns": ["No Finding", "COVID"]}, "covid", ("Normal", "COVID-19"), "COVID-19"),
        (  # a column that the default task excludes is asked for all the same
            {"label_columns": ["No Finding", "Pneumonia"]},
            "no-finding-vs-pneumonia",
            ("No Finding", "Pneumonia"),
            "Pneumonia",
        ),
        ({"task": "pneumonia", "positive": "Normal"}, "pneumonia", ("Pneumonia", "Normal"), "Normal"),
    ],
)
def test_a_task_is_made_from_options(options, name, classes, positive):
    task = make_task(**options)
    assert (task.name, task.classes, task.positive) == (name, classes, positive)
    assert Task(**json.loads(json.dumps(task.to_dict()))) == task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "pneumonia", "classes": "A,B"}, "mutually exclusive"),
        ({"task": "pneumonia", "labels": {"x": "COVID-19"}}, "'x' has the class 'COVID-19', which is not a class"),
        ({"task": "etiology", "positive": "Viral"}, "positive='Viral' applies to two classes; these are 3"),
        ({"classes": "A,B,C", "positive": "A"}, "applies to two classes; these are 3"),
        ({"classes": "A,B", "positive": "C"}, "positive='C' is not a class"),
        ({"classes": "A,B", "labels": {"x": "C"}}, "'x' has the class 'C'"),
        ({"classes": "A,B", "labels": {"A": ""}}, "'A' has a class and is excluded"),
        ({"labels": {"x": "Opacity"}}, "name only the class 'Opacity'"),
        ({"labels": {"x": "Mass", "y": "Nodule"}}, "which is positive is not stated"),
        ({"label_columns": "Mass,Nodule"}, "which is positive is not stated"),
        ({"classes": "A"}, "two or more different names"),
        ({"classes": "A,A"}, "two or more different names"),
        ({"classes": ("A", "x" * 101)}, "class name"),
        ({"classes": ("A", "$b$")}, "class name"),
        ({"positive": "a\nb"}, "class name"),
        ({"labels": ["Lung_Opacity"]}, "labels="),
        ({"labels": ["a=X", "a=Y"]}, "labels="),
        ({"labels": {"a": "X=Y"}}, "labels="),
        ({"labels": {}}, "labels="),
        ({"classes": ""}, "classes="),
    ],
)
def test_options_that_make_no_task_are_refused_before_anything_is_read(options, message):
    with pytest.raises(UsageError, match="^") as error:
        read_cohort("no such folder", **options)
    assert message in error.value.message and error.value.hint


def test_a_remedy_of_two_classes_works():
    with pytest.raises(UsageError) as error:
        make_task(labels={"x": "Mass", "y": "Nodule"})
    assert "positive='Nodule'" in error.value.hint
    assert make_task(labels={"x": "Mass", "y": "Nodule"}, positive="Nodule").classes == ("Mass", "Nodule")


# patterns


def test_a_label_itself_beats_a_pattern_and_a_pattern_beats_the_rest():
    task = make_task(
        classes="Normal,Viral,COVID-19", labels={"viral*": "Viral", "Viral COVID": "COVID-19", "b?": "", "*": "Normal"}
    )
    assert meanings(task, "Viral_flu", "viral covid", "b1", "anything") == [
        "Viral",
        "COVID-19",
        "(excluded by the option labels (b?))",
        "Normal",
    ]
    assert meanings(task, "") == ["?"], "no pattern stands for an empty label"


def test_two_patterns_with_different_classes_are_an_error_that_names_them(tmp_path):
    labels = {"Lung*": "Opacity", "*pacity": "Normal"}
    with pytest.raises(UsageError, match=r"'Lung_Opacity' matches the patterns 'Lung\*' \(Opacity\) and '\*pacity'"):
        read(tmp_path, {"label": ["Lung_Opacity", "Normal"]}, classes="Normal,Opacity", labels=labels)
    labels["Lung_Opacity"] = "Opacity"  # the remedy
    cohort = read(tmp_path, {"label": ["Lung_Opacity", "Normal"]}, classes="Normal,Opacity", labels=labels)
    assert cohort["label"].tolist() == ["Opacity", "Normal"]


def test_bracketed_wildcards_are_the_characters():
    task = make_task(labels={"TB[?]": "", "[*]": "Normal", "TB?": "COVID-19"})
    assert meanings(task, "TB?", "*", "TBx", "TB") == ["(excluded by the option labels)", "Normal", "COVID-19", "?TB"]


@pytest.mark.parametrize("texts", [("1", "1.0", "True", "1.00", "TRUE"), ("0", "0.0", "False"), ("-1", "-1.0")])
def test_the_spellings_of_a_number_are_one_label(texts):
    assert len({fold_label(text) for text in texts}) == 1


def test_numbers_that_differ_are_other_labels():
    assert len({fold_label(text) for text in ("1", "-1", "1.5", "01", "+1", "11", "1.01", "0", "-0")}) == 9


@pytest.mark.parametrize(
    "values",
    [
        [True, False, True],
        np.array([1.0, 0.0, 1.0]),
        [1, 0, 1],
        ["1", "0", "1.0"],
        pd.Categorical([1, 0, 1]),
        pd.Categorical(["1.0", "0.0", "1.0"]),
        pd.array([True, False, True], dtype="boolean"),
    ],
)
def test_numbers_and_booleans_are_labels_if_the_options_say_what_they_mean(tmp_path, values):
    for options in ({"labels": {"1": "Pneumonia", "0": "Normal"}}, {"positive": "Pneumonia"}):
        cohort = read(tmp_path, {"label": values}, **options)
        assert cohort["label"].tolist() == ["Pneumonia", cohort.facts.classes[0], "Pneumonia"]
    with pytest.raises(DataError, match="does not know the label") as error:
        read(tmp_path, {"label": values})
    assert "labels={'0': 'Normal', '1': 'COVID-19'}" in str(error.value)


def test_minus_one_is_never_positive(tmp_path):
    with pytest.raises(DataError, match="'-1'") as error:
        read(tmp_path, {"label": [-1, 0, 1]}, labels={"1": "Pneumonia", "0": "Normal"})
    assert "Did you mean" not in str(error.value), "1 is no other spelling of -1"
    cohort = read(tmp_path, {"label": [-1, 0, 1]}, positive="Pneumonia")
    assert cohort["label"].tolist() == ["", "No Pneumonia", "Pneumonia"]
    assert cohort["note"].tolist() == ["uncertain (-1): Pneumonia", "", ""]


def test_grades_are_not_a_column_of_zero_and_one(tmp_path):
    with pytest.raises(DataError, match="does not know the label '2'"):
        read(tmp_path, {"label": [0, 1, 2, 3]}, positive="Severe")


# lists and paths


def test_a_list_has_the_class_that_it_contains_and_other_findings_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "covid_fastai")
    cohort = read(tmp_path, {"Finding Labels": NIH}, positive="Pneumonia")
    assert cohort["label"].tolist() == ["No Pneumonia", "", "Pneumonia", "Pneumonia", "", ""]
    assert set(cohort.loc[cohort["label"] == "", "note"]) == {"another finding than Pneumonia"}
    (note,) = [row for row in cohort.facts.problems if row["kind"] == "other_finding"]
    assert note["severity"] == "note" and "3 rows" in note["reason"] and "'Hernia' 1" in note["reason"]
    assert "labels={'*': 'No Pneumonia'}" in note["remedy"] and note["reason"] in caplog.text
    cohort = read(tmp_path, {"Finding Labels": NIH}, positive="Pneumonia", labels=["*=No Pneumonia"])
    assert cohort["label"].value_counts().to_dict() == {"No Pneumonia": 4, "Pneumonia": 2}


@pytest.mark.parametrize("separator", ["|", ";", " | ", "; "])
def test_lists_of_any_separator(separator):
    texts = [text.replace("|", separator) for text in NIH]
    task = make_task(classes="No Finding,Pneumonia,Hernia", labels={"*": ""})
    excluded = "(excluded by the option labels (*))"
    assert meanings(task, *texts) == ["No Finding", excluded, "Pneumonia", "Pneumonia", excluded, "Hernia"]


def test_a_list_of_two_classes_is_excluded():
    task = make_task(classes="Normal,Effusion,Mass")
    assert meanings(task, "Effusion|Mass", "Mass|Nodule", "Effusion") == [
        "(two classes: Effusion and Mass)",
        "Mass",
        "Effusion",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("['Pneumonia']", "Pneumonia"),
        ("['No Finding']", "No Pneumonia"),
        ("['Effusion', 'Pneumonia']", "Pneumonia"),
        ('["Effusion", "Pneumonia"]', "Pneumonia"),
        ("['Effusion' 'Pneumonia']", "Pneumonia"),  # as NumPy writes it; Python joins the two
        ("{'Pneumonia'}", "Pneumonia"),
        ("('Effusion', 'Pneumonia')", "Pneumonia"),
        ("[Effusion, Pneumonia]", "Pneumonia"),
        ('["Crohn\'s disease"]', "(another finding than Pneumonia)"),
        ("[]", "?"),
        ("(suspected) Pneumonia", "(another finding than Pneumonia)"),
    ],
)
def test_lists_as_python_json_and_numpy_write_them(text, expected):
    assert meanings(make_task(positive="Pneumonia"), text) == [expected]


def test_real_lists_in_a_table(tmp_path):
    cohort = read(
        tmp_path, {"label": [["Pneumonia", "Mass"], ["No Finding"], np.array(["Mass"])]}, positive="Pneumonia"
    )
    assert cohort["label"].tolist() == ["Pneumonia", "No Pneumonia", ""]


def test_a_separator_counts_only_where_its_parts_are_labels():
    task = make_task(classes="Normal,Mass", labels={"right": "", "A|B": "Mass"})
    assert meanings(task, "left|low", "x;y", "A|B", "N/A") == ["?left|low", "?x;y", "Mass", "?N/A"]
    assert meanings(task, "Mass, left lobe", "Mass", "Normal, Mass", "Mass,right") == [
        "?Mass, left lobe",
        "Mass",
        "(two classes: Normal and Mass)",
        "Mass",
    ]


def test_the_last_known_part_of_a_path_counts():
    texts = (
        "Pneumonia/Viral/COVID-19",
        "Pneumonia/Bacterial/Klebsiella",
        "Pneumonia/Viral/SARS",
        "Pneumonia",
        "todo/x",
    )
    assert meanings(make_task(), *texts) == [
        "COVID-19",
        "(not of this task: bacteria)",
        "(not of this task: SARS)",
        "(not of this task: pneumonia)",
        "?todo/x",
    ]
    assert meanings(make_task("pneumonia"), *texts)[1] == "Pneumonia"
    labels = {"Pneumonia/Viral": "Viral", "COVID-19": "COVID-19", "Pneumonia*": ""}
    task = make_task(classes="Normal,Viral,COVID-19", labels=labels)
    assert meanings(task, *texts[:4]) == [
        "COVID-19",
        "(excluded by the option labels (Pneumonia*))",
        "Viral",
        "(excluded by the option labels (Pneumonia*))",
    ]


def test_slashes_between_labels_that_occur_by_themselves_make_lists():
    task = make_task(classes="Normal,Mass,Nodule")
    assert meanings(task, "Mass/Nodule", "Mass", "Nodule", "Normal") == [
        "(two classes: Mass and Nodule)",
        "Mass",
        "Nodule",
        "Normal",
    ]
    assert meanings(task, "Chest/Mass", "Mass", "Nodule") == ["Mass", "Mass", "Nodule"]


# one column per finding

CHEXPERT = {
    "No Finding": [1.0, None, None, None, 1.0, None],
    "Pneumonia": [None, 1.0, -1.0, 0.0, 1.0, None],
    "Edema": [0.0, 1.0, 1.0, 1.0, 0.0, None],
}


@pytest.mark.parametrize(
    ("uncertain", "labels", "notes"),
    [
        ("exclude", ["-", "+", "", "-", "", ""], {2: "uncertain (-1)", 4: "two classes", 5: "not stated (blank)"}),
        ("positive", ["-", "+", "+", "-", "", "-"], {4: "two classes"}),
        ("negative", ["-", "+", "-", "-", "", "-"], {4: "two classes"}),
    ],
)
def test_the_meaning_of_minus_one_and_blank_is_stated(tmp_path, uncertain, labels, notes):
    options = {"label_columns": "No Finding,Pneumonia", "positive": "Pneumonia", "uncertain": uncertain}
    cohort = read(tmp_path, CHEXPERT, **options)
    names = {"-": "No Pneumonia", "+": "Pneumonia", "": ""}
    assert cohort["label"].tolist() == [names[label] for label in labels]
    assert {row: note.split(":")[0] for row, note in cohort["note"].items() if note} == notes
    assert (cohort["split"] == "excluded").equals(cohort["label"] == "")
    stated = [row["reason"] for row in cohort.facts.problems if row["kind"] == "uncertain"]
    assert bool(stated) == (uncertain != "exclude")


def test_another_finding_excludes_unless_the_task_names_it(tmp_path):
    cohort = read(tmp_path, CHEXPERT, label_columns=list(CHEXPERT), positive="Pneumonia")
    assert cohort["label"].tolist() == ["No Pneumonia", "Pneumonia", "", "", "", ""]
    assert cohort["note"].tolist()[2:4] == ["uncertain (-1): Pneumonia", "another finding than Pneumonia"]


@pytest.mark.parametrize(
    "values", [["1", "0"], ["1.0", "0.0"], [True, False], ["yes", "No"], ["TRUE", "FALSE"], [1.0, 0.0], ["y", "n"]]
)
def test_the_values_of_a_column_of_one_finding(tmp_path, values):
    cohort = read(tmp_path, {"TB": values}, label_columns="TB")
    assert cohort["label"].tolist() == ["TB", "No TB"]
    cohort = read(tmp_path, {"Target": values}, label_columns="Target", classes="Normal,TB")
    assert cohort["label"].tolist() == ["TB", "Normal"]


def test_exclusive_columns(tmp_path):
    columns = {"Negative for Pneumonia": [1, 0, 0, 0, 0], "Typical": [0, 1, 0, 1, 0], "Atypical": [0, 0, 0, 1, 1]}
    cohort = read(tmp_path, columns, label_columns=list(columns))
    assert cohort.facts.classes == tuple(columns)
    assert cohort["label"].tolist() == ["Negative for Pneumonia", "Typical", "", "", "Atypical"]
    assert cohort["note"].tolist()[2:4] == ["no label column is 1", "two classes: Typical and Atypical"]
    labels = ["Negative*=Normal", "Typical=COVID-19", "Atypical="]
    cohort = read(tmp_path, columns, label_columns=list(columns), labels=labels)
    assert cohort.facts.task == "covid"
    assert cohort["label"].tolist() == ["Normal", "COVID-19", "", "COVID-19", ""]


def test_zero_is_the_negative_class_only_where_no_column_names_it(tmp_path):
    columns = {"Viral": [1, 0, 0, 0], "Bacterial": [0, 1, 0, None]}
    cohort = read(tmp_path, columns, label_columns=list(columns), classes="Normal,Viral,Bacterial")
    assert cohort["label"].tolist() == ["Viral", "Bacterial", "Normal", ""]
    assert cohort["note"].tolist()[3] == "not stated (blank): Bacterial"


def test_an_unknown_value_names_its_row_and_column(tmp_path):
    table = {"Pneumonia": ["1", "maybe", "0"], "Mass": ["0", "0", "2"]}
    with pytest.raises(DataError) as error:
        read(tmp_path, table, label_columns="Pneumonia,Mass", positive="Pneumonia")
    assert [fault["row"] for fault in error.value.details] == [3, 4]
    assert "the column 'Pneumonia' holds 'maybe'" in str(error.value) and "the column 'Mass' holds '2'" in str(
        error.value
    )
    options = {"label_columns": "Pneumonia,Mass", "positive": "Pneumonia", "on_problem": "skip"}
    assert read(tmp_path, table, **options)["label"].tolist() == ["Pneumonia"]


def test_a_label_column_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="no column 'pneumonia ' |no column 'pneumonia'") as error:
        read(tmp_path, {"Pneumonia": [1, 0]}, label_columns="pneumonia")
    assert "Did you mean 'Pneumonia'?" in error.value.hint
    with pytest.raises(UsageError, match="mutually exclusive"):
        read(tmp_path, {"Pneumonia": [1, 0]}, label_columns="Pneumonia", label_column="Pneumonia")


def test_columns_of_a_csv(tmp_path):
    write_rows(tmp_path, TB=["1", "", "-1", "0"]).to_csv(tmp_path / "rows.csv", index=False)
    cohort = read_cohort(tmp_path / "rows.csv", label_columns="TB", check_images=False)
    assert cohort["label"].tolist() == ["TB", "", "", "No TB"] and cohort["TB"].tolist() == ["1", "", "-1", "0"]


# unknown labels


def test_each_remedy_for_an_unknown_label_works_as_it_stands(tmp_path):
    columns = {"label": ["Normal", "COVID-19", "Lung Opacity?", "Lung Opacity?", "todo"]}
    with pytest.raises(DataError) as error:
        read(tmp_path, columns)
    reasons = {fault["reason"] for fault in error.value.details}
    assert "the task 'covid' does not know the label 'Lung Opacity?' (2 rows)" in reasons
    exclusions = error.value.hint.split("To exclude them: ")[1]
    words = shlex.split(as_options(exclusions, {"labels": "--label"}))
    labels = [word for word in words if word != "--label"]
    assert read(tmp_path, columns, labels=labels)["note"].tolist()[2:] == ["excluded by the option labels"] * 3
    remedy = next(fault["remedy"] for fault in error.value.details if "Lung" in fault["reason"])
    label = shlex.split(as_options(remedy, {"labels": "--label"}).split("with ", 1)[1])[1]
    assert label == "Lung Opacity[?]=Normal"
    cohort = read(tmp_path, columns, labels=[label, "todo="])
    assert cohort["label"].tolist() == ["Normal", "COVID-19", "Normal", "Normal", ""]


def test_many_unknown_labels_have_one_remedy(tmp_path):
    columns = {"label": ["Normal", "COVID-19", *(f"finding {letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]}
    with pytest.raises(DataError, match="and others") as error:
        read(tmp_path, columns)
    assert "labels={'*': ''} excludes all of them" in error.value.hint
    assert (read(tmp_path, columns, labels=["*="])["split"] == "excluded").sum() == 26


def test_a_row_without_a_label_is_excluded_only_by_name(tmp_path):
    for labels in (None, {"*": "COVID-19"}):
        with pytest.raises(DataError, match="empty label") as error:
            read(tmp_path, {"label": ["Normal", "", "COVID-19"]}, labels=labels)
        assert "labels={'': ''}" in error.value.details[0]["remedy"]
    assert read(tmp_path, {"label": ["Normal", "", "COVID-19"]}, labels=["="])["note"].tolist()[1]


def test_a_misspelt_label_is_suggested_with_its_class():
    assert "Did you mean 'COVID-19'? Then correct it or add labels={'Covid-91': 'COVID-19'}." in suggest_labels(
        make_task(), "Covid-91"
    )


def test_a_class_without_rows_is_said(tmp_path, caplog):
    read(tmp_path, {"label": ["Pnuemonia", "No Finding"]}, positive="Pneumonia")
    assert "No row has the class 'Pneumonia'. The labels: 'Pnuemonia' 1" in caplog.text


def test_lists_of_labels_do_not_fill_the_table_of_counts(tmp_path):
    texts = [*NIH, *(f"Mass|a{number}" for number in range(30)), "Mass"]
    counts = summarise_cohort(read(tmp_path, {"label": texts}, positive="Pneumonia"))
    assert len(counts) == 2 + 21 and counts["images"].sum() == len(texts)


# several readers

READINGS = {
    "name": ["a.png", "a.png", "a.png", "b.png", "b.png", "c.png", "c.png", "d.png"],
    "label": ["Normal", "COVID-19", "COVID-19", "Normal", "COVID-19", "Normal", "no finding", "COVID-19"],
}


def test_readers_who_differ_are_an_error_by_default(tmp_path):
    with pytest.raises(DataError, match="conflicting label") as error:
        read(tmp_path, READINGS)
    assert len(error.value.details) == 5
    assert "3 rows name this file, with label 'Normal' and 'COVID-19'" in str(error.value)
    assert "readers=" in error.value.details[0]["remedy"]


def test_agreement_excludes_images_on_which_readers_differ(tmp_path):
    cohort = read(tmp_path, READINGS, readers="agreement")
    assert cohort["label"].tolist() == ["", "", "Normal", "COVID-19"]
    assert cohort["note"].tolist() == ["readers disagree: COVID-19 and Normal"] * 2 + ["", ""]
    assert cohort["split"].tolist() == ["excluded", "excluded", "train", "train"]


def test_the_majority_decides_and_a_tie_excludes(tmp_path):
    cohort = read(tmp_path, READINGS, readers="majority")
    assert cohort["label"].tolist() == ["COVID-19", "", "Normal", "COVID-19"]
    assert cohort["note"].tolist() == ["", "readers disagree: COVID-19 and Normal", "", ""]
    assert cohort["finding"].tolist()[0] == "COVID-19"


def test_rows_of_one_image_with_one_label_are_one_row(tmp_path, caplog):
    caplog.set_level(logging.INFO, "covid_fastai")
    columns = {"name": ["a.png", "a.png", "b.png", "b.png"], "Target": [1, 1, 0, 0], "x": [3, 70, None, None]}
    cohort = read(tmp_path, columns, positive="Pneumonia")
    assert cohort["label"].tolist() == ["Pneumonia", "No Pneumonia"] and cohort["x"].tolist()[0] == 3
    assert "2 rows repeat the image and label of an earlier row" in caplog.text


def test_readings_without_a_class_count_too(tmp_path):
    columns = {"name": ["a.png"] * 3 + ["b.png"] * 2, "label": ["virus", "SARS", "virus", "Normal", "virus"]}
    cohort = read(tmp_path, columns, task="covid", readers="majority")
    assert cohort["note"].tolist() == ["not of this task: virus", "readers disagree: Normal and virus"]


# the options of a training


def test_a_config_keeps_the_options_of_labels():
    options = {
        "labels": {"Lung Opacity?": "Viral, other", "todo": ""},
        "classes": ("Normal", "Viral, other"),
        "label_columns": ("a", "b c"),
        "uncertain": "negative",
        "readers": "majority",
    }
    config = TrainConfig(**options)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config == TrainConfig(
        **{**options, "labels": ["Lung Opacity?=Viral, other", "todo="], "classes": 'Normal,"Viral, other"'}
    )
    assert eval(config.to_python("rows"), {"train_classifier": lambda data, **fields: fields}) == config.changed()


def test_the_command_of_a_config_makes_the_same_config(monkeypatch):
    from typer.testing import CliRunner

    from covid_fastai.app.cli import main

    config = TrainConfig(
        labels={"Lung Opacity": "COVID-19", "a=b": "", "-1": "Normal"},
        label_columns=("x, y", "z"),
        readers="agreement",
        positive="COVID-19",
    )
    given = {}
    monkeypatch.setattr(main, "set_up_logging", lambda **options: None)  # it would change the logging of all tests
    monkeypatch.setattr(main, "_train", lambda *arguments, choices, **options: given.update(choices))
    done = CliRunner().invoke(main.app, shlex.split(config.to_command("data"))[1:])
    assert done.exit_code == 0, done.output
    assert TrainConfig(**given) == config


def test_the_task_of_a_config_has_the_labels_of_its_recipe():
    task = task_of_config(TrainConfig(recipe="rsna-pneumonia"))
    assert task.classes == ("No pneumonia", "Pneumonia") and task.class_of("1.0") == "Pneumonia"
    assert task_of_config(TrainConfig(recipe="nih-chestxray14", positive="Mass")).name == "no-mass-vs-mass"
    assert task_of_config(TrainConfig()) == TASKS["covid"]
