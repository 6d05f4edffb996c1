"""The official split of a data set, from columns, truth values, lists and folders; its validation part; its folds."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from covid_fastai import read_cohort, split_by_patient
from covid_fastai.data.metadata import IN_PRETRAINING
from covid_fastai.data.official_splits import IN_NO_LIST
from covid_fastai.data.split_lists import find_split_lists, is_listed
from covid_fastai.data.splits import fold_by_patient, fold_officially, leaked_patients, split_officially
from covid_fastai.data.tasks import Task
from covid_fastai.errors import DataError, UsageError
from tests.data.test_field_data import write_rows

LABELS = ["Normal", "COVID-19"]
TASK_OF_VIRUS = Task(name="v", classes=("Normal", "virus"))
TASK = Task(name="any", classes=("Normal", "COVID-19"))  # whose test set need not have both classes


def read(folder, count=4, names=None, check_images=False, task="pneumonia", **columns):
    """Read rows of two classes with further columns."""
    rows = write_rows(
        folder, **({"name": names} if names else {}), label=(["Normal", "virus"] * count)[:count], **columns
    )
    return read_cohort(rows, task=task, check_images=check_images)


def splits(cohort) -> list[str]:
    return cohort["split"].tolist()


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ["Train", "VALIDATE", "test", ""]),
        ("dataset_type", ["TRAINING", "val", "Testing", "train"]),
        ("subset", ["train", "dev", "holdout", "trn"]),
        ("partition", ["train", "tuning", "hold-out", "training set"]),
        ("set", ["train", "validation", "test", "train"]),
        ("Fold", ["train", "val", "test", "train"]),
        ("data_split", ["train", "valid", "tst", "trainval"]),
    ],
)
def test_a_column_of_any_usual_name_and_value(tmp_path, column, values):
    assert splits(read(tmp_path, **{column: values})) == ["train", "valid", "test", "train"]


@pytest.mark.parametrize("values", [[True, False], ["True", "False"], [1, 0], ["yes", "no"], ["T", "f"], [1.0, 0.0]])
def test_truth_values_in_any_spelling(tmp_path, values):
    true, false = values
    cohort = read(tmp_path, is_valid=[false, true, false, false], is_test=[false, false, true, false])
    assert splits(cohort) == ["train", "valid", "test", "train"]
    assert splits(read(tmp_path, is_train=[true, false, true, false])) == ["train", "test", "train", "test"]


def test_a_text_that_is_no_truth_value_is_a_fault(tmp_path):
    rows = write_rows(tmp_path, label=LABELS * 2, is_valid=["True", "False", "maybe", "False"])
    with pytest.raises(DataError, match="unknown split") as caught:
        read_cohort(rows)
    assert "the column 'is_valid'" in caught.value.details[0]["reason"] and caught.value.details[0]["row"] == 4


@pytest.mark.parametrize(
    "columns",
    [
        {"split": ["train", "train", "test", "train"], "is_test": [0, 0, 0, 1]},
        {"is_valid": [0, 1, 0, 0], "is_test": [0, 1, 0, 0]},
        {"split": ["train"] * 4, "subset_": [""] * 4, "set": ["train", "train", "test", "train"]},
    ],
)
def test_sources_that_disagree_are_an_error_that_names_both(tmp_path, columns):
    rows = write_rows(tmp_path, label=LABELS * 2, **columns)
    with pytest.raises(DataError, match="conflicting split sources") as caught:
        read_cohort(rows, task=TASK)
    assert all("the column" in row["reason"] and "split_column" in row["remedy"] for row in caught.value.details)
    name = next(iter(columns))
    cohort = read_cohort(rows, task=TASK, split_column=name)  # the remedy
    assert (cohort["split"] != "excluded").all()


def test_a_column_of_another_use_is_no_split(tmp_path):
    cohort = read(tmp_path, set=["A", "B", "A", "B"], mode=["AP", "train", "PA", "test"])
    assert splits(cohort) == ["train"] * 4


def nih(folder, lists: dict[str, list[str]], names=("1.png", "2.png", "3.png", "4.png")):
    """Write a table with lists of its images beside it."""
    rows = write_rows(folder / "images", name=list(names), label=["Normal", "virus"] * 2)
    rows.assign(path=[f"images/{name}" for name in names]).to_csv(folder / "data.csv", index=False)
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder / "data.csv"


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train_val_list.txt": ["1.png", "2.png", "3.png"], "test_list.txt": ["4.png"]}, ["train"] * 3 + ["test"]),
        (
            {"train.txt": ["1.png"], "val.txt": ["2.png"], "test.txt": ["3.png", "4.png"]},
            ["train", "valid", "test", "test"],
        ),
        ({"test.txt": ["images/3.png 0", "images/4.png 1"]}, ["train", "train", "test", "test"]),
        (
            {"train_val_list.txt": ["1", "2", "3"], "val_list.txt": ["3"], "test_list.txt": ["4"]},
            ["train", "train", "valid", "test"],
        ),
        ({"train_list.txt": ["a.png"]}, ["train"] * 4),  # a list of other images
        (
            {"train.csv": ["image,label", "1.png,0", '"2.png",1'], "test.csv": ["name", "3.png", "4.png"]},
            ["train"] * 2 + ["test"] * 2,
        ),
    ],
)
def test_lists_of_images_beside_the_table(tmp_path, lists, expected):
    assert splits(read_cohort(nih(tmp_path, lists), task="pneumonia", check_images=False)) == expected


def test_an_image_that_no_list_has_is_excluded(tmp_path):
    data = nih(tmp_path, {"train_list.txt": ["1.png", "2.png"], "test_list.txt": ["3.png"]})
    cohort = read_cohort(data, task="pneumonia", check_images=False)
    assert cohort.loc[3, ["split", "note"]].tolist() == ["excluded", IN_NO_LIST]


def test_an_image_in_two_lists_is_an_error(tmp_path):
    data = nih(tmp_path, {"train_list.txt": ["1.png", "2.png", "3.png", "4.png"], "test_list.txt": ["3.png"]})
    with pytest.raises(DataError, match=r"'images/3.png' is in two lists .*test_list.txt"):
        read_cohort(data, task="pneumonia")


def test_lists_do_not_decide_between_files_of_one_name(tmp_path):
    data = nih(tmp_path, {"test_list.txt": ["1.png"]}, names=("a/1.png", "b/1.png", "a/2.png", "b/3.png"))
    with pytest.raises(DataError, match=r"lists '1', a name that several images have") as caught:
        read_cohort(data, task="pneumonia")
    assert "split_column" in caught.value.hint
    pd.read_csv(data).assign(part="train").to_csv(data, index=False)
    assert splits(read_cohort(data, task="pneumonia", split_column="part")) == ["train"] * 4  # the remedy


def test_lists_with_folders_are_compared_by_them(tmp_path):
    names = ("train/p1/view1.png", "train/p2/view1.png", "valid/p3/view1.png", "x/view2.png")
    data = nih(tmp_path, {"test.txt": ["p1/view1.png", "other/x/view2.png", "valid/p9/view1.png"]}, names=names)
    assert is_listed([f"images/{name}" for name in names], tmp_path / "test.txt").tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert is_listed(["view2.png", "x/view2.PNG"], tmp_path / "test.txt").tolist() == [True, True]
    assert find_split_lists(data) == {tmp_path / "test.txt": "test"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["Chex/train/1.png", "Chex/valid/2.png", "Chex/test/3.png", "Chex/train/4.png"],
            ["train", "valid", "test", "train"],
        ),
        (["Normal/train/1.png", "Virus/Test/2.png", "x/3.png", "x/4.png"], ["train", "test", "train", "train"]),
        (["contest/1.png", "latest/2.png", "retrain/3.png", "x/4.png"], ["train"] * 4),
        (["train/val/1.png", "train/train/2.png", "x/3.png", "x/4.png"], ["train"] * 4),  # ambiguous
    ],
)
def test_folders_of_the_paths(tmp_path, names, expected):
    write_rows(tmp_path, name=names, label=["Normal", "virus"] * 2).assign(path=names).to_csv(tmp_path / "d.csv")
    assert splits(read_cohort(tmp_path / "d.csv", task="pneumonia", check_images=False)) == expected


def test_a_folder_above_all_images_is_no_split(tmp_path):
    assert splits(read(tmp_path / "test", names=["1.png", "2.png", "a/3.png", "4.png"])) == ["train"] * 4
    cohort = read(tmp_path / "test", names=["train/1.png", "train/2.png", "valid/3.png", "valid/4.png"])
    assert splits(cohort) == ["train", "train", "valid", "valid"]


def test_one_folder_of_all_images_divides_nothing(tmp_path):
    names = [f"validation/{number}.png" for number in range(4)]
    rows = write_rows(tmp_path, name=names, label=["Normal", "virus"] * 2).assign(path=names)
    for columns, expected in (({}, ["valid"] * 4), ({"split": ["train", "test"] * 2}, ["train", "test"] * 2)):
        rows.assign(**columns).to_csv(tmp_path / "d.csv")
        assert splits(read_cohort(tmp_path / "d.csv", task=TASK_OF_VIRUS, check_images=False)) == expected


def test_an_image_in_train_may_be_of_the_validation_part(tmp_path):
    names = ["train/1.png", "train/2.png", "test/3.png", "train/4.png"]
    assert splits(read(tmp_path, names=names, is_valid=[0, 1, 0, 0])) == ["train", "valid", "test", "train"]


# the validation part of the data


def make(folder, rows, **columns):
    """Return a cohort from (label, patient, split) rows."""
    labels, patients, parts = zip(*rows, strict=True)
    table = write_rows(folder, label=list(labels), patient=list(patients), split=list(parts), **columns)
    return read_cohort(table, task="pneumonia", check_images=False)


OFFICIAL = [("Normal", "a", "train"), ("virus", "b", "train"), ("Normal", "c", "valid"), ("virus", "d", "valid")]


def test_the_official_validation_part_is_kept(tmp_path, caplog):
    cohort = make(tmp_path, [*OFFICIAL, ("Normal", "c", "train"), ("virus", "e", "test"), ("Normal", "f", "test")])
    split = split_officially(cohort)
    assert splits(split) == ["train", "train", "valid", "valid", "excluded", "test", "test"]
    assert split["note"][4] == "its patient is in the validation part" and "1 training images" in caplog.text
    assert leaked_patients(split[split["split"] != "test"]) == [] and splits(cohort)[4] == "train"


def test_images_of_the_pretraining_data_leave_the_official_validation_part(tmp_path):
    cohort = make(tmp_path, [*OFFICIAL, ("virus", "g", "valid")])
    cohort["in_pretraining"] = cohort["patient"] == "g"
    split = split_officially(cohort)
    assert split.loc[4, ["split", "note"]].tolist() == ["excluded", IN_PRETRAINING] and splits(split)[3] == "valid"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (OFFICIAL[:2], "no validation part"),
        (OFFICIAL[:3], "valid part .* has not all classes .*'Pneumonia' 0"),
        (OFFICIAL[1:], "train part .* has not all classes .*'Normal' 0"),
    ],
)
def test_an_official_part_that_is_missing_is_an_error(tmp_path, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        split_officially(make(tmp_path, rows))
    assert "split='patient'" in caught.value.hint


def test_a_split_by_patient_says_that_it_divides_the_validation_part_anew(tmp_path, caplog):
    cohort = make(tmp_path, OFFICIAL)
    with caplog.at_level(logging.WARNING, "covid_fastai"):
        split_by_patient(cohort)
        assert "2 images of the validation part are divided anew" in caplog.text and "split='official'" in caplog.text
        caplog.clear()
        fold_by_patient(cohort, folds=2)
        assert "divided anew" in caplog.text
        caplog.clear()
        split_by_patient(make(tmp_path, [(*row[:2], "train") for row in OFFICIAL]))
    assert "divided anew" not in caplog.text


# folds of the data


@pytest.mark.parametrize(("column", "start"), [("fold", 0), ("kfold", 1), ("Fold ID", 0)])
def test_fold_numbers_are_no_split_and_can_be_kept(tmp_path, column, start):
    numbers = [start, start, start + 1, start + 1]
    cohort = make(tmp_path, [(*row[:2], "train") for row in OFFICIAL], **{column: numbers})
    assert splits(cohort) == ["train"] * 4
    assert [row["kind"] for row in cohort.facts.problems if row["kind"] != "not_opened"] == ["folds_not_used"]
    assert fold_officially(cohort, folds=2)["fold"].tolist() == [0, 0, 1, 1]
    with pytest.raises(UsageError, match="holds 2 folds"):
        fold_officially(cohort, folds=5)


def test_fold_numbers_named_as_the_split_are_refused_with_the_remedy(tmp_path):
    rows = write_rows(tmp_path, label=LABELS * 2, kfold=[0, 1, 2, 0])
    with pytest.raises(UsageError, match="3 folds") as caught:
        read_cohort(rows, split_column="kfold")
    assert "split='official' and folds=3" in caught.value.hint


def test_the_test_rows_need_no_fold(tmp_path):
    rows = [*[(*row[:2], "train") for row in OFFICIAL], ("virus", "t", "test"), ("Normal", "u", "test")]
    cohort = make(tmp_path, rows, fold=[0, 0, 1, 1, "", -1])
    assert fold_officially(cohort, folds=2)["fold"].tolist() == [0, 0, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("numbers", "patients", "message"),
    [
        ([0, 0, 1, ""], "abcd", "has no fold number"),
        ([0, 0, 1, 1], "abad", "1 patients are in several folds"),
        ([0, 1, 0, 1], "abcd", "has not all classes"),
        ([3, 5, 3, 5], "abcd", "no column of fold numbers"),
    ],
)
def test_folds_that_cannot_be_kept_are_an_error(tmp_path, numbers, patients, message):
    rows = [(label, patient, "train") for (label, *_), patient in zip(OFFICIAL, patients, strict=True)]
    with pytest.raises(DataError, match=message) as caught:
        fold_officially(make(tmp_path, rows, fold=numbers), folds=2)
    assert "split='patient'" in caught.value.hint


def test_a_saved_cohort_keeps_its_later_split(tmp_path):
    cohort = read(tmp_path, 8, is_valid=[0, 1] * 4)
    again = cohort.assign(split=["valid", "train"] * 4)
    assert splits(read_cohort(again, task="pneumonia", check_images=False)) == ["valid", "train"] * 4
