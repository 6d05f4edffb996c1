"""Tables of one split each in a folder are read as one table with their official split."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from covid_fastai import read_cohort
from covid_fastai.data.split_tables import find_split_tables
from covid_fastai.data.tasks import Task
from covid_fastai.errors import DataError
from tests.data.public_layouts import write_images

TASK = Task(name="v", classes=("Normal", "virus"))


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["train.csv", "valid.csv"], ["train", "valid"]),
        (["Training_Set.tsv", "Testing_Set.tsv"], ["train", "test"]),
        (["labels-train.csv", "labels-val.csv", "labels-test.csv"], ["train", "valid", "test"]),
        (["train.csv.gz", "test.csv.gz"], ["train", "test"]),
        (["train.csv", "labels.csv"], []),  # another table
        (["train.csv"], []),
        (["valid.csv", "test.csv"], []),
        (["annotations_train.csv", "labels_test.csv"], []),
        (["train.csv", "train.tsv", "test.csv"], []),
        (["train_test.csv", "valid.csv"], []),
    ],
)
def test_names_that_differ_in_the_word_of_a_split_alone(names, parts):
    assert list(find_split_tables([Path(name) for name in names]).values()) == parts


def write_tables(folder: Path, **columns) -> None:
    """Write a table of four rows for each part, with an image each."""
    for start, part in enumerate(("train", "val", "test")):
        names = [f"images/{part}{number}.png" for number in range(4)]
        write_images(folder, names, 10 * start)
        table = pd.DataFrame({"image": names, "label": ["Normal", "virus"] * 2})
        table.assign(**columns.get(part, {})).to_csv(folder / f"{part}.csv", index=False)


def test_the_tables_of_a_folder_are_read_as_one(tmp_path):
    write_tables(tmp_path)
    cohort = read_cohort(tmp_path, task=TASK)
    assert cohort["split"].value_counts().to_dict() == {"train": 4, "valid": 4, "test": 4}
    assert not cohort.facts.problems and cohort["path"].map(lambda path: Path(path).is_file()).all()


def test_tables_with_other_columns_are_not_read_as_one(tmp_path):
    write_tables(tmp_path, test={"age": 3})
    with pytest.raises(DataError, match="folder") as caught:
        read_cohort(tmp_path, task=TASK)
    assert "train.csv" in caught.value.hint
