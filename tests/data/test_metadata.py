"""The cohort: what is read from each layout, what is excluded and why, and which faults are found in one pass."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai.data import checks, fingerprints, pretraining_overlap
from covid_fastai.data.cohort import COHORT_COLUMNS, Cohort, CohortInfo
from covid_fastai.data.images import open_image
from covid_fastai.data.layouts import CORONAHACK_CSV, CORONAHACK_IMAGES
from covid_fastai.data.metadata import IN_PRETRAINING, read_cohort, summarise_cohort
from covid_fastai.data.path_suggestions import NearbyFiles
from covid_fastai.data.pretraining_overlap import write_manifest
from covid_fastai.data.problems import PROBLEM_COLUMNS, ProblemLog, count_kinds
from covid_fastai.data.splits import leaked_patients, split_by_patient
from covid_fastai.data.tables import read_table
from covid_fastai.data.tasks import Task
from covid_fastai.errors import DataError, UsageError

SIDE = 48
COHEN = {  # finding: a file name of Cohen's collection
    "SARS": "SARS-10.1148rg.242035193-g04mr34g09a-Fig9a-day17.jpeg",
    "Normal": "F051E018-DAD1-4506-AD43-BE4CA29E960B.jpeg",
}


def picture(number: int, *, side: int = SIDE) -> Image.Image:
    """An image that differs from those of all other numbers."""
    rng = np.random.default_rng([7, number])
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def write_images(folder: Path, *names: str, start: int = 0) -> None:
    for number, name in enumerate(names, start):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)


def write_csv(folder: Path, *lines: str, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_coronahack(root: Path, rows: list[tuple[str, str, str, str]], *, nested: bool = True) -> Path:
    """Write CoronaHack's layout from (name, label, split, category), without the second category of Stress-Smoking."""
    images = root / CORONAHACK_IMAGES / CORONAHACK_IMAGES if nested else root
    lines = [",X_ray_image_name,Label,Dataset_type,Label_2_Virus_category,Label_1_Virus_category"]
    for number, (name, label, split, category) in enumerate(rows):
        write_images(images, f"{split.lower()}/{name}", start=number)
        first, second = ("Virus", category) if category in ("COVID-19", "SARS") else (category, "")
        lines.append(f"{number},{name},{label},{split},{second},{first}")
    return write_csv(root, *lines, name=CORONAHACK_CSV)


CORONAHACK = [
    ("IM-0128-0001.jpeg", "Normal", "TRAIN", ""),
    ("NORMAL2-IM-0128-0001.jpeg", "Normal", "TRAIN", ""),
    ("person12_bacteria_1.jpeg", "Pnemonia", "TRAIN", "bacteria"),
    ("person12_virus_1.jpeg", "Pnemonia", "TRAIN", "Virus"),
    (COHEN["SARS"], "Pnemonia", "TRAIN", "SARS"),
    (COHEN["Normal"], "Normal", "TRAIN", ""),
    ("covid-a.jpeg", "Pnemonia", "TRAIN", "COVID-19"),
    ("IM-0001-0001.jpeg", "Normal", "TEST", ""),
    ("person1_virus_6.jpeg", "Pnemonia", "TEST", "Virus"),
]


@pytest.fixture(scope="module")
def coronahack(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coronahack")
    write_coronahack(root, CORONAHACK)
    return root


@pytest.fixture
def simple(tmp_path) -> Path:
    """Four images of two classes next to data.csv."""
    write_images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    return write_csv(tmp_path, "image,label", "a.png,Normal", "b.png,Normal", "c.png,covid", "d.png,COVID-19")


def kinds(cohort_or_error) -> dict[str, int]:
    rows = getattr(cohort_or_error, "details", None)
    rows = cohort_or_error.facts.problems if rows is None else rows
    return pd.Series([row["kind"] for row in rows], dtype=object).value_counts().to_dict()


def names(cohort) -> list[str]:
    return [os.path.basename(path) for path in cohort["path"]]


def faults(data, **options) -> DataError:
    with pytest.raises(DataError) as error:
        read_cohort(data, **options)
    return error.value


# CoronaHack


def test_coronahack_by_its_root_and_by_its_csv(coronahack):
    cohort = read_cohort(coronahack)
    pd.testing.assert_frame_equal(cohort, read_cohort(coronahack / CORONAHACK_CSV))
    pd.testing.assert_frame_equal(cohort, read_cohort(str(coronahack)))
    assert list(cohort.columns[: len(COHORT_COLUMNS)]) == COHORT_COLUMNS and len(cohort) == len(CORONAHACK)
    assert all(map(os.path.isfile, cohort["path"])) and all(map(os.path.isabs, cohort["path"]))
    assert {"sex", "age", "day", "X_ray_image_name", "Dataset_type", "Unnamed: 0"} < set(cohort.columns)


def test_patients_sources_and_findings_of_coronahack(coronahack):
    rows = read_cohort(coronahack, check_images=False).set_index("X_ray_image_name")
    assert rows["patient"].tolist()[:5] == ["IM-0128", "NORMAL2-0128", "bacteria-12", "virus-12", "cohen-10"]
    assert rows.loc["covid-a.jpeg", "patient"] == "covid-a.jpeg" and rows.loc["covid-a.jpeg", "source"] == "unknown"
    assert rows["source"].value_counts().to_dict() == {"kermany": 6, "cohen": 2, "unknown": 1}
    assert rows["finding"].tolist()[2:7] == ["bacteria", "virus", "SARS", "Normal", "COVID-19"]
    sars = rows.loc[COHEN["SARS"]]
    assert (sars["sex"], sars["age"], sars["day"], sars["view"]) == ("F", 73, 17, "PA")
    assert np.isnan(rows.loc["IM-0128-0001.jpeg", "age"]) and rows.loc["IM-0128-0001.jpeg", "sex"] == ""


@pytest.mark.parametrize(
    ("task", "train", "test"),
    [
        ("covid", {"Normal": 2, "COVID-19": 1}, {}),
        ("pneumonia", {"Normal": 2, "Pneumonia": 2}, {"Normal": 1, "Pneumonia": 1}),
        ("etiology", {"Normal": 2, "Bacterial": 1, "Viral": 1}, {"Normal": 1, "Viral": 1}),
    ],
)
def test_each_task_uses_its_rows(coronahack, task, train, test):
    cohort = read_cohort(coronahack, task=task, check_images=False)
    for split, counts in (("train", train), ("test", test)):
        assert cohort[cohort["split"] == split]["label"].value_counts().to_dict() == counts
    excluded = cohort["split"] == "excluded"
    assert ((cohort["note"] != "") == excluded).all() and len(cohort) == len(CORONAHACK)
    negative_control = cohort[cohort["note"].str.startswith("negative control: Cohen's collection, not COVID-19")]
    assert set(negative_control["X_ray_image_name"]) == set(COHEN.values())
    assert cohort.facts.task == task and set(train) == set(cohort.facts.classes)


def test_an_official_test_without_a_class_is_excluded_in_covid_only(coronahack):
    notes = read_cohort(coronahack, check_images=False).query("Dataset_type == 'TEST'")["note"]
    assert notes.tolist() == ["official TEST: holds no COVID-19", "not of this task: virus"]


def test_images_of_a_flat_copy_are_found(tmp_path):
    write_coronahack(tmp_path, CORONAHACK, nested=False)
    assert len(read_cohort(tmp_path)) == len(CORONAHACK)


def test_an_archive_unpacked_into_its_own_name(tmp_path):
    (tmp_path / "archive").mkdir()
    write_coronahack(tmp_path / "archive", CORONAHACK)
    assert len(read_cohort(tmp_path)) == len(CORONAHACK)


def test_images_can_be_in_another_folder(coronahack, tmp_path):
    elsewhere = tmp_path / "labels.csv"
    elsewhere.write_bytes((coronahack / CORONAHACK_CSV).read_bytes())
    cohort = read_cohort(elsewhere, image_root=coronahack)
    assert cohort["path"].tolist() == read_cohort(coronahack)["path"].tolist()


def test_a_label_that_contradicts_its_category(tmp_path):
    write_coronahack(tmp_path, [*CORONAHACK, ("IM-0200-0001.jpeg", "Normal", "TRAIN", "bacteria")])
    error = faults(tmp_path, check_images=False)
    (row,) = error.details
    assert row["kind"] == "conflicting_label" and row["row"] == 11 and "'bacteria'" in row["reason"]


@pytest.mark.parametrize("task", ["covid", "pneumonia"])
def test_laterals_are_excluded_where_the_task_is_frontal(tmp_path, task):
    write_images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    lines = ("a.png,Normal,PA", "b.png,Normal,Lateral", "c.png,pneumonia,l", "d.png,Normal,AP")
    cohort = read_cohort(write_csv(tmp_path, "image,label,view", *lines), task=task)
    assert cohort["view"].tolist() == ["PA", "L", "L", "AP"]
    assert cohort["note"].tolist()[1] == "lateral view" and cohort["split"].tolist()[::3] == ["train", "train"]


# other layouts


def test_a_csv_with_usual_names(simple):
    cohort = read_cohort(simple)
    assert cohort["label"].tolist() == ["Normal", "Normal", "COVID-19", "COVID-19"]
    assert cohort["split"].tolist() == ["train"] * 4 and cohort["patient"].tolist() == names(cohort)
    assert cohort["image"].tolist() == names(cohort)  # what the data came with stays
    assert cohort.facts.root == str(simple.parent) and cohort.facts.data == str(simple)


def test_a_cohort_has_its_columns_types_and_facts(simple):
    cohort = read_cohort(simple)
    assert isinstance(cohort, Cohort) and list(cohort)[: len(COHORT_COLUMNS)] == COHORT_COLUMNS and not cohort.attrs
    assert cohort.select_dtypes(bool).columns.tolist() == ["patient_known", "in_pretraining"]
    assert CohortInfo.from_json(cohort.facts.to_json()) == cohort.facts
    assert (cohort.facts.task, cohort.facts.classes, cohort.facts.positive) == (
        "covid",
        ("Normal", "COVID-19"),
        "COVID-19",
    )


def test_images_without_a_split_are_counted_as_images(simple, coronahack, caplog):
    """They may be those of another hospital, which nothing is trained on."""
    with caplog.at_level(logging.INFO, "covid_fastai"):
        read_cohort(simple)
        assert "Images: " in caplog.text and "Train: " not in caplog.text
        read_cohort(coronahack, task="pneumonia")
    assert "Train: " in caplog.text and "Test: " in caplog.text


def test_a_warning_states_that_patients_are_not_known(simple, caplog):
    with caplog.at_level(logging.WARNING, "covid_fastai"):
        assert not read_cohort(simple)["patient_known"].any()
    assert "patient_column" in caplog.text


def test_named_columns(tmp_path):
    write_images(tmp_path / "pictures", "a.png", "b.png")
    lines = ["bild;befund;wer;teil;wo;richtung", "a.png;normal;7;training;X;PA", "b.png;covid;8;TEST;;PA"]
    columns = {"path": "bild", "label": "befund", "patient": "wer", "split": "teil", "source": "wo", "view": "richtung"}
    options = {f"{role}_column": column for role, column in columns.items()}
    task = Task(name="t", classes=("Normal", "COVID-19"))
    cohort = read_cohort(write_csv(tmp_path, *lines), task=task, image_root=tmp_path / "pictures", **options)
    assert cohort["patient"].tolist() == ["7", "8"] and cohort["source"].tolist() == ["X", "unknown"]
    assert cohort["split"].tolist() == ["train", "test"] and cohort["label"].tolist() == ["Normal", "COVID-19"]
    assert cohort["patient_known"].all() and cohort["befund"].tolist() == ["normal", "covid"]


def test_images_in_the_only_folder_that_has_them(tmp_path):
    write_images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "empty").mkdir()
    cohort = read_cohort(write_csv(tmp_path, "image,label", "a.png,Normal", "b.png,covid"))
    assert cohort.facts.root == str(tmp_path / "images")


@pytest.mark.parametrize("inner", ["", "images"])
def test_a_folder_per_class(tmp_path, inner):
    for number, name in enumerate(["COVID", "Normal"]):
        write_images(tmp_path / name / inner, "1.png", "2.png", start=2 * number)
    (tmp_path / "Normal" / inner / "readme.txt").write_text("x")
    (tmp_path / ".hidden").mkdir()
    cohort = read_cohort(tmp_path)
    assert cohort["label"].tolist() == ["COVID-19"] * 2 + ["Normal"] * 2
    assert cohort["patient"].nunique() == 4, "COVID/1.png and Normal/1.png are two patients"
    assert cohort["source"].unique().tolist() == ["unknown"] and not cohort.patients_known
    assert kinds(cohort) == {"not_an_image": 1}


def test_folders_of_train_and_test(tmp_path):
    for number, place in enumerate(["train/normal", "train/covid", "test/normal", "test/covid", "val/covid"]):
        write_images(tmp_path / place, "1.png", start=number)
    cohort = read_cohort(tmp_path)
    assert sorted(zip(cohort["split"], cohort["label"], strict=True)) == [
        ("test", "COVID-19"),
        ("test", "Normal"),
        ("train", "COVID-19"),
        ("train", "Normal"),
        ("valid", "COVID-19"),
    ]
    assert kinds(cohort) == {}


def test_images_outside_the_class_folders_are_listed(tmp_path):
    write_images(tmp_path, "Normal/1.png", "COVID/2.png", "stray.png")
    (note,) = read_cohort(tmp_path).facts.problems
    assert note["kind"] == "no_class" and "stray.png" in note["reason"]


def test_a_data_frame(simple):
    frame = pd.read_csv(simple).assign(
        image=lambda rows: str(simple.parent) + os.sep + rows["image"], score=[1, 2, 3, 4]
    )
    cohort = read_cohort(frame)
    assert cohort["label"].tolist() == read_cohort(simple)["label"].tolist()
    assert cohort["score"].tolist() == [1, 2, 3, 4] and cohort["score"].dtype == frame["score"].dtype
    relative = read_cohort(pd.read_csv(simple), image_root=simple.parent)
    assert relative["path"].tolist() == cohort["path"].tolist()


def test_a_data_frame_with_any_names_and_index(simple):
    frame = pd.read_csv(simple).set_axis([5, 5, 3, 1]).assign(**{"x": 1.5}).rename(columns={"x": 0})
    cohort = read_cohort(frame, image_root=simple.parent)
    assert cohort["0"].tolist() == [1.5] * 4 and cohort.index.tolist() == [0, 1, 2, 3]
    missing = faults(frame.assign(image="gone.png"), image_root=simple.parent, check_images=False)
    assert {row["row"] for row in missing.details} == {2, 3, 4, 5}


def test_a_cohort_can_be_written_and_read_again(coronahack, tmp_path):
    cohort = read_cohort(coronahack)
    for _ in range(2):
        cohort.to_csv(tmp_path / "cohort.csv", index=False)
        again = read_cohort(tmp_path / "cohort.csv", image_root=coronahack)
        for name in ("path", "patient", "patient_known", "group", "split", "source", "view"):
            assert again[name].tolist() == cohort[name].tolist(), name
        assert again.columns.is_unique
        cohort = again


def test_a_cohort_in_memory_can_be_read_again(simple):
    cohort = read_cohort(simple)
    again = read_cohort(read_cohort(cohort))
    assert again["path"].tolist() == cohort["path"].tolist() and again["label"].tolist() == cohort["label"].tolist()
    assert again.columns.is_unique and "note_given" in again


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (None, {}, UsageError, "No data were given"),
        (5, {}, UsageError, "data is a int"),
        ("dta.csv", {}, DataError, r"Did you mean .*data\.csv\?"),
        ("nothing/at/all", {}, DataError, "no file or folder of a similar name"),
        (
            "data.csv",
            {"label_column": "lable"},
            DataError,
            r"no column 'lable' \(label_column\)\. Did you mean 'label'",
        ),
        ("data.csv", {"path_column": "IMAGE"}, DataError, r"Did you mean 'image'\?"),
        ("data.csv", {"patient_column": "zzz"}, DataError, "Its columns: 'image', 'label'"),
        ("data.csv", {"image_root": "nowhere"}, DataError, "image_root=nowhere is not a folder"),
        ("data.csv", {"encoding": "utf-99"}, UsageError, "encoding='utf-99' is not known"),
        ("data.csv", {"on_problem": "ignore"}, UsageError, "on_problem='ignore' is not one of 'error', 'skip'"),
        ("data.csv", {"seed": -1}, UsageError, "seed=-1"),
        ("data.csv", {"seed": "1"}, UsageError, "seed='1'"),
        ("data.csv", {"task": "covd"}, UsageError, "Did you mean 'covid'"),
        ("data.csv", {"negatives_per_positive": 0}, UsageError, "above 0"),
        ("data.csv", {"negatives_per_positive": float("nan")}, UsageError, "above 0"),
        ("data.csv", {"negatives_per_positive": "1"}, UsageError, "above 0"),
        ("data.csv", {"negatives_per_positive": 1, "task": "etiology"}, UsageError, "two classes"),
        (pd.DataFrame(), {}, DataError, "no rows"),
        (pd.DataFrame({"image": ["a.png"], "x": [1]}), {}, DataError, "has no column that is known to hold the labels"),
        (pd.DataFrame([["a", "b", "c"]], columns=["image", "label", "label"]), {}, DataError, "column 'label' twice"),
    ],
)
def test_unreadable_data_raise_an_error_with_a_remedy(simple, monkeypatch, data, options, error, message):
    monkeypatch.chdir(simple.parent)
    with pytest.raises(error, match=message) as caught:
        read_cohort(data, **options)
    assert caught.value.hint


def test_folders_without_images(tmp_path):
    (tmp_path / "Normal").mkdir()
    assert "have no images" in str(faults(tmp_path))


# CSV files


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        ("image,label\na.png,Normal\n".encode("utf-8-sig"), None),
        ("image,label\na.png,Normal\n".encode("utf-8-sig"), "utf-8"),
        ("image,label\na.png,Normal\n".encode("utf-16"), None),
        ("\ufeffimage,label\na.png,Normal\n".encode("utf-16-le"), "utf-16-le"),
        ("image,label\na.png,Normal\n".encode("utf-16-be"), "utf-16-be"),
        ("image,label\na.png,Normal\n".encode("utf-32"), None),
        (b"image;label\na.png;Normal\n", None),
        (b"image\tlabel\na.png\tNormal\n", None),
        (b"image|label\na.png|Normal\n", None),
        (b"\n\nimage,label\r\n\r\na.png,Normal\r\n", None),
        (b"image,label\ra.png,Normal\r", None),
        (b'"image","label"\n"a.png","Normal"', None),
        (b" image , label \na.png,Normal,,\n", None),
    ],
)
def test_encodings_separators_and_line_ends(tmp_path, raw, encoding):
    (tmp_path / "t.csv").write_bytes(raw)
    table = read_table(tmp_path / "t.csv", encoding=encoding, problems=ProblemLog())
    assert list(table.columns) == ["image", "label"] and table.to_numpy().tolist() == [["a.png", "Normal"]]


def test_excels_own_separator_line(tmp_path):
    table = read_table(write_csv(tmp_path, "sep=;", "image;label", "a,b.png;Normal"), problems=ProblemLog())
    assert table.to_dict("index") == {3: {"image": "a,b.png", "label": "Normal"}}


def test_values_stay_text(tmp_path):
    path = write_csv(tmp_path, "image,label,patient", "001,NA,None", '"x\ny",null,"1,5"', "nan,,1e5")
    table = read_table(path, problems=ProblemLog())
    assert table.to_numpy().tolist() == [["001", "NA", "None"], ["x\ny", "null", "1,5"], ["nan", "", "1e5"]]
    assert table.index.tolist() == [2, 3, 5], "the lines that an editor shows"


def test_a_ragged_line_is_named_and_shifts_nothing(simple):
    simple.write_text(simple.read_text() + "e.png,Normal,extra\nf.png\n")
    error = faults(simple)
    assert [(row["kind"], row["row"], row["path"]) for row in error.details] == [
        ("ragged_row", 6, "e.png"),
        ("ragged_row", 7, "f.png"),
    ]
    assert len(read_cohort(simple, on_problem="skip")) == 4


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\n \n\n", "is empty"),
        (b"image,label\n", "a header and no rows"),
        (b"image,image\na,b\n", "column 'image' twice"),
        (b"image,label\nM\xfcller.png,Normal\n", "line 2: not utf-8 text.*cp1252"),
        (b"image,label\na\0.png,Normal\n", "NUL bytes"),
        (b'image,label\n"a.png,Normal\nb.png,Normal\n', "quotation mark"),
        (b"PK\x03\x04rest", "a damaged Excel workbook or ZIP"),
        (b"  <!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"\xff\xd8\xff\xe0", "is an image"),
    ],
)
def test_files_that_are_not_tables(tmp_path, raw, message):
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as error:
        read_cohort(path)
    assert error.value.hint and str(path) in error.value.message


def test_an_encoding_that_is_named_is_used(tmp_path):
    write_images(tmp_path, "Müller.png", "b.png")
    (tmp_path / "t.csv").write_bytes("image,label\nMüller.png,Normal\nb.png,covid\n".encode("cp1252"))
    assert names(read_cohort(tmp_path / "t.csv", encoding="cp1252"))[0] == "Müller.png"


def test_a_table_of_ragged_lines_only(tmp_path):
    path = write_csv(tmp_path, "image,label", "a,b,c")
    assert "no row is left" in str(faults(path, on_problem="skip"))


# faulty rows


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    """One truncated JPEG, one web page, one missing file, one unknown label, a 16-bit PNG and four good images."""
    root = tmp_path_factory.mktemp("faulty")
    write_images(root, "a.png", "b.png", "c.png", "d.png", "label.png")
    picture(20).save(root / "whole.jpg")
    (root / "cut.jpg").write_bytes((root / "whole.jpg").read_bytes()[:-300])
    (root / "whole.jpg").unlink()
    (root / "page.jpg").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    deep = np.asarray(picture(21), dtype=np.uint16) * 257
    Image.fromarray(deep).save(root / "deep.png")
    lines = ["a.png,Normal", "cut.jpg,Normal", "page.jpg,COVID-19", "d.jpg,Normal", "label.png,Normall"]
    lines += ["deep.png,COVID-19", "b.png,COVID-19", "c.png,Normal"]
    return write_csv(root, "image,label", *lines)


def test_all_faults_are_in_one_error(faulty):
    error = faults(faulty)
    found = {os.path.basename(row["path"]): row for row in error.details}
    assert set(found) == {"cut.jpg", "page.jpg", "d.jpg", "label.png"}
    assert {name: row["row"] for name, row in found.items()} == {
        "cut.jpg": 3,
        "page.jpg": 4,
        "d.jpg": 5,
        "label.png": 6,
    }
    assert {name: row["kind"] for name, row in found.items()} == {
        "cut.jpg": "unreadable",
        "page.jpg": "unreadable",
        "d.jpg": "missing_file",
        "label.png": "unknown_label",
    }
    assert all(set(row) == set(PROBLEM_COLUMNS) and row["severity"] == "error" for row in error.details)
    assert all(row["reason"] and row["remedy"] for row in error.details)
    assert "HTML" in found["page.jpg"]["reason"]
    assert found["d.jpg"]["remedy"] == f"Did you mean {faulty.parent / 'd.png'}?"
    assert "'Normall'" in found["label.png"]["reason"] and "'Normal'?" in found["label.png"]["remedy"]
    assert [row["row"] for row in error.details] == [3, 4, 5, 6]
    assert "4 faults" in error.message and all(f"line {row['row']}, " in error.message for row in error.details)
    assert 'on_problem="skip"' in error.hint and error.exit_code == 3


def test_faulty_rows_can_be_left_out_and_are_listed(faulty):
    cohort = read_cohort(faulty, on_problem="skip")
    assert names(cohort) == ["a.png", "deep.png", "b.png", "c.png"]
    listed = [os.path.basename(row["path"]) for row in cohort.facts.problems if row["severity"] == "error"]
    assert sorted(listed) == ["cut.jpg", "d.jpg", "label.png", "page.jpg"]


def test_the_16_bit_image_opens_right(faulty):
    opened = np.asarray(open_image(faulty.parent / "deep.png"), dtype=float).ravel()
    assert np.corrcoef(opened, np.asarray(picture(21), dtype=float).ravel())[0, 1] > 0.99


def test_without_opening_images_only_labels_and_files_are_checked(faulty):
    assert kinds(faults(faulty, check_images=False)) == {"missing_file": 1, "unknown_label": 1}
    cohort = read_cohort(faulty, check_images=False, on_problem="skip")
    assert kinds(cohort)["not_opened"] == 1 and len(cohort) == 6


def test_no_image_can_be_opened(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    path = write_csv(tmp_path, "image,label", "a.png,Normal", "b.png,covid")
    error = faults(path, on_problem="skip")
    assert "no row is left" in error.message and kinds(error) == {"unreadable": 2}
    assert "line 2, a.png" in error.message and error.hint == "Fix the rows."  # a terminal shows no details


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("../outside.png,Normal", "outside_root"),
        ("{outside},Normal", "outside_root"),
        ("sub/../../outside.png,Normal", "outside_root"),
        ("sub,Normal", "not_a_file"),
        ("pipe.png,Normal", "not_a_file"),
        (",Normal", "empty_name"),
        ("b.png,", "empty_label"),
        ("b.png,Tuberculosis", "unknown_label"),
        ("a.png/b.png,Normal", "missing_file"),
        ("x" * 300 + ".png,Normal", "missing_file"),
    ],
)
def test_a_faulty_row_is_refused(tmp_path, line, kind):
    root = tmp_path / "root"
    write_images(tmp_path, "outside.png", "root/a.png", "root/b.png", "root/sub/c.png")
    os.mkfifo(root / "pipe.png")
    path = write_csv(root, "image,label", "a.png,covid", line.format(outside=tmp_path / "outside.png"))
    error = faults(path)
    assert kinds(error) == {kind: 1} and error.details[0]["row"] == 3
    assert len(read_cohort(path, on_problem="skip")) == 1


def test_the_remedy_for_files_elsewhere_names_their_folder(tmp_path):
    write_images(tmp_path, "images/a/1.png", "images/b/2.png")
    (tmp_path / "tables").mkdir()
    lines = [f"{tmp_path}/images/a/1.png,Normal", f"{tmp_path}/images/b/2.png,covid"]
    path = write_csv(tmp_path / "tables", "image,label", *lines)
    error = faults(path)
    assert kinds(error) == {"outside_root": 2}
    assert f"give image_root={str(tmp_path / 'images')!r}" in error.details[0]["remedy"]
    assert len(read_cohort(path, image_root=tmp_path / "images")) == 2


def test_a_name_that_is_not_text(simple):
    names = pd.Series(["a.png", "b\0.png", "caf\udce9.png"], dtype=object)  # pyarrow refuses the last
    frame = pd.DataFrame({"image": names, "label": "Normal"})
    error = faults(frame, image_root=simple.parent)
    assert kinds(error) == {"bad_name": 2}
    json.dumps(error.details).encode()  # can be written


def test_a_link_within_the_root_is_fine(simple):
    (simple.parent / "link.png").symlink_to("a.png")
    simple.write_text("image,label\nlink.png,Normal\nc.png,covid\n")
    assert len(read_cohort(simple)) == 2


def test_faults_of_excluded_rows_are_ignored(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    path = write_csv(tmp_path, "image,label", "a.png,Normal", "b.png,covid", "gone.png,virus", "cut.png,virus")
    cohort = read_cohort(path)
    assert len(cohort) == 4 and kinds(cohort) == {"missing_file": 1, "unreadable": 1}
    assert {row["severity"] for row in cohort.facts.problems} == {"warning"}


def test_an_unknown_split_is_a_fault(simple):
    simple.write_text("image,label,split\na.png,Normal,train\nb.png,Normal,exam\nc.png,covid,\n")
    error = faults(simple)
    assert kinds(error) == {"unknown_split": 1} and "'exam'" in error.details[0]["reason"]
    assert names(read_cohort(simple, on_problem="skip")) == ["a.png", "c.png"]


def test_a_long_list_of_faults_is_counted(tmp_path):
    lines = [f"{number}.png,Normal" for number in range(30)] + [f"{number}.png,odd{number}" for number in range(30, 60)]
    error = faults(write_csv(tmp_path, "image,label", *lines))
    assert len(error.details) == 90 and len(error.message.splitlines()) < 15
    assert "60 missing file, 30 unknown label" in error.message and "line 2, 0.png and 59 more" in error.message


# duplicate rows and images


@pytest.mark.parametrize("other", ["a.png", "./a.png", "sub/../a.png"])
def test_a_repeated_row_counts_once(simple, other):
    (simple.parent / "sub").mkdir()
    simple.write_text(f"image,label\na.png,Normal\nc.png,covid\n{other},normal\n")
    cohort = read_cohort(simple, check_images=False)
    assert names(cohort) == ["a.png", "c.png"]
    (row,) = (row for row in cohort.facts.problems if row["kind"] == "duplicate_row")
    assert row["row"] == 4 and "row 2" in row["reason"] and row["severity"] == "note"


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("label", ("Normal", "covid"), "conflicting_label"),
        ("split", ("train", "test"), "conflicting_split"),
        ("patient", ("p", "q"), "conflicting_patient"),
    ],
)
def test_rows_that_contradict_each_other_on_a_file(simple, column, values, kind):
    images, labels = ["a.png", "a.png", "c.png", "d.png"], ["Normal", "Normal", "covid", "covid"]
    frame = pd.DataFrame({"image": images, "label": labels}).assign(**{column: [*values, *values]})
    error = faults(frame, image_root=simple.parent, check_images=False)
    assert kinds(error) == {kind: 2} and [row["row"] for row in error.details] == [2, 3]
    assert all(repr(text) in error.message.replace("COVID-19", "covid") for text in values)
    assert names(read_cohort(frame, image_root=simple.parent, on_problem="skip")) == ["c.png", "d.png"]


@pytest.mark.parametrize("copy", ["copy.png", "copy.jpg", "half.png"])
def test_duplicate_images_join_their_patients(tmp_path, copy):
    write_images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    small = picture(0).resize((40, 40), Image.Resampling.BILINEAR) if copy == "half.png" else picture(0)
    small.save(tmp_path / copy)
    lines = ["a.png,Normal,p1", "b.png,Normal,p2", f"{copy},Normal,p3", "c.png,covid,p4", "d.png,covid,p5"]
    cohort = read_cohort(write_csv(tmp_path, "image,label,patient", *lines))
    assert cohort["group"].tolist() == ["p1", "p2", "p1", "p4", "p5"]
    assert cohort["patient"].tolist() == ["p1", "p2", "p3", "p4", "p5"]
    (note,) = cohort.facts.problems
    assert note["kind"] == "same_picture" and note["severity"] == "note" and "a.png" in note["reason"]
    for seed in range(10):
        assert leaked_patients(split_by_patient(cohort, seed=seed)) == []


def test_duplicate_images_with_two_labels_are_a_fault(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    picture(0).save(tmp_path / "copy.png")
    path = write_csv(tmp_path, "image,label", "a.png,Normal", "b.png,covid", "copy.png,covid")
    error = faults(path)
    assert kinds(error) == {"conflicting_picture": 2} and "'Normal' and 'COVID-19'" in error.message
    assert "copy.png" in error.details[0]["reason"] and "a.png" in error.details[1]["reason"]
    assert names(read_cohort(path, on_problem="skip")) == ["b.png"]


@pytest.mark.parametrize("same", ["patient", "picture"])
def test_training_images_of_test_patients_are_excluded(tmp_path, same):
    write_images(tmp_path, "a.png", "b.png", "c.png", "d.png", "e.png")
    if same == "picture":
        picture(0).save(tmp_path / "d.png")
    patients = ["p1", "p2", "p3", "p1" if same == "patient" else "p4", "p5"]
    labels, splits = ["Normal", "covid", "Normal", "Normal", "covid"], ["train", "train", "train", "test", "test"]
    frame = pd.DataFrame({"image": ["a.png", "b.png", "c.png", "d.png", "e.png"], "label": labels})
    cohort = read_cohort(frame.assign(patient=patients, split=splits), image_root=tmp_path)
    assert cohort["split"].tolist() == ["excluded", "train", "train", "test", "test"]
    assert cohort.loc[0, "note"] == "its patient is in the test set" and kinds(cohort)["train_and_test"] == 1
    assert leaked_patients(cohort) == []


# negatives_per_positive


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("many")
    names = [f"{number:02d}.png" for number in range(30)]
    write_images(root, *names)
    paths = [str(root / name) for name in names]
    return pd.DataFrame({"path": paths, "label": ["covid"] * 6 + ["Normal"] * 24})


@pytest.mark.parametrize(("ratio", "drawn"), [(1, 6), (2.5, 15), (0.01, 1), (4, 24), (100, 24)])
def test_negatives_are_sampled_for_each_positive(many, ratio, drawn):
    cohort = read_cohort(many, negatives_per_positive=ratio, check_images=False)
    counts = cohort[cohort["split"] == "train"]["label"].value_counts().to_dict()
    assert counts == {"Normal": drawn, "COVID-19": 6} and len(cohort) == 30
    assert (cohort["note"] == "not drawn").sum() == 24 - drawn


def test_the_sample_depends_on_the_seed_and_not_on_the_order(many):
    def drawn(frame, seed):
        cohort = read_cohort(frame, negatives_per_positive=1, seed=seed, check_images=False)
        return set(cohort.loc[cohort["split"] == "train", "path"])

    assert drawn(many, 1) == drawn(many.sample(frac=1, random_state=0), 1)
    assert len({frozenset(drawn(many, seed)) for seed in range(5)}) > 1


def test_negatives_without_positives_raise_an_error(many):
    assert "no 'COVID-19' image" in str(faults(many[6:], negatives_per_positive=1, check_images=False))


# the pretraining data of the package's weights; more in test_pretraining_overlap.py


@pytest.fixture
def guarded(coronahack, tmp_path, monkeypatch) -> set[str]:
    """The pretraining data of the package's weights have one image of a training and one of a test patient."""
    names = ["IM-0128-0001.jpeg", "person1_virus_6.jpeg"]
    cohort = read_cohort(coronahack, task="pneumonia", check_images=False)
    write_manifest(cohort[cohort["X_ray_image_name"].isin(names)], tmp_path / "cxr.manifest.safetensors")
    monkeypatch.setattr(pretraining_overlap, "MANIFEST_FOLDER", tmp_path)
    return set(names)


@pytest.mark.parametrize("check_images", [True, False])
def test_a_cohort_marks_pretraining_images(coronahack, guarded, check_images, caplog):
    with caplog.at_level(logging.INFO, "covid_fastai"):
        cohort = read_cohort(coronahack, task="pneumonia", check_images=check_images)
    assert (
        cohort["in_pretraining"].dtype == bool
        and set(cohort.loc[cohort["in_pretraining"], "X_ray_image_name"]) == guarded
    )
    assert "In the pretraining data of the package's weights" in caplog.text
    rows = cohort.set_index("X_ray_image_name")
    assert rows.loc["IM-0128-0001.jpeg", "split"] == "train"
    assert rows.loc["person1_virus_6.jpeg", ["split", "note"]].tolist() == ["excluded", IN_PRETRAINING]
    assert rows.loc["IM-0001-0001.jpeg", "split"] == "test"
    assert kinds(cohort)["in_pretraining"] == 1


def test_a_cohort_that_is_saved_and_read_again_is_marked_again(coronahack, guarded, tmp_path):
    cohort = read_cohort(coronahack, task="pneumonia")
    cohort[cohort["split"] != "excluded"].to_csv(tmp_path / "cohort.csv", index=False)
    again = read_cohort(tmp_path / "cohort.csv", task="pneumonia", image_root=coronahack)
    assert (
        again["in_pretraining"].sum() == 1
        and again["in_pretraining_given"].astype(str).tolist() == again["in_pretraining"].astype(str).tolist()
    )


def test_each_image_is_opened_once(coronahack, guarded, monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE", "off")
    opened = []
    read = fingerprints.read_image
    monkeypatch.setattr(fingerprints, "read_image", lambda path: opened.append(path) or read(path))
    read_cohort(coronahack)
    assert len(opened) == len(set(opened)) == len(CORONAHACK)


# the functions


def test_summarise_cohort_counts_every_row(coronahack):
    counts = summarise_cohort(read_cohort(coronahack, task="pneumonia", check_images=False))
    assert list(counts.columns) == ["split", "label", "note", "images", "patients"]
    assert counts["images"].sum() == len(CORONAHACK)
    used = counts[counts["split"] != "excluded"]
    assert used[["split", "label"]].to_numpy().tolist() == [
        ["train", "Normal"],
        ["train", "Pneumonia"],
        ["test", "Normal"],
        ["test", "Pneumonia"],
    ]
    assert counts["split"].tolist()[len(used) :] == ["excluded"] * (len(counts) - len(used))


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("train/A.png", "train/a.png"),
        ("train/a.jpeg", "train/a.png"),
        ("test/a.png", "train/a.png"),
        ("elsewhere/deep.png", "train/more/deep.png"),
        ("train\\a.png", "train/a.png"),
        ("train/person1_viruss_6.png", ""),
        ("train/nothing-like-it.png", ""),
    ],
)
def test_nearby_files(tmp_path, asked, meant):
    write_images(tmp_path, "train/a.png", "train/more/deep.png", "train/person1_virus_6.png")
    found = NearbyFiles(tmp_path).find(f"{tmp_path}/{asked}")
    assert found == (str(tmp_path / meant) if meant else "")


@pytest.mark.parametrize("root", [None, "train/more"])
def test_a_file_of_the_other_split_is_found_without_a_search(tmp_path, root):
    write_images(tmp_path, "train/a.png", "train/more/b.png")
    found = NearbyFiles(root and tmp_path / root).find(str(tmp_path / "test/A.jpg"))
    assert found == str(tmp_path / "train/a.png")


@pytest.mark.parametrize(("number", "cut"), [(8, False), (9, True)])
def test_a_message_shows_eight_kinds_of_fault(number, cut):
    log = ProblemLog()
    for i in range(number):
        log.add("odd", reason=f"reason {i}", remedy="Look.", row=i + 2)
    with pytest.raises(DataError) as error:
        log.raise_errors("data")
    assert (error.value.message.splitlines()[-1] == "  ...") == cut and "reason 7" in error.value.message
    assert len(error.value.details) == number and ("reason 8" in error.value.message) is False


def test_a_problem_log_raises_errors_only():
    log = ProblemLog()
    log.add("odd", reason="it is odd", remedy="Look.", severity="warning", path="caf\udce9.png", row=np.int64(3))
    log.raise_errors("data")
    assert log.rows[0]["path"] == "caf\\udce9.png" and type(log.rows[0]["row"]) is int
    log.add("empty_label", reason="r", remedy="m", row=9)
    log.add("empty_label", reason="r", remedy="m", row=4)
    assert [row["row"] for row in log.errors()] == [4, 9] and count_kinds(log.rows) == "2 empty label, 1 odd"
    with pytest.raises(DataError, match="data has 2 faults: 2 empty label"):
        log.raise_errors("data")


# real images


@pytest.fixture(scope="module")
def real(real_data):
    read = {
        task: read_cohort(real_data / "coronahack-224", task=task, check_images=False)
        for task in ("covid", "pneumonia", "etiology")
    }
    return read


@pytest.mark.realdata
def test_coronahacks_patients(real):
    for cohort in real.values():
        assert len(cohort) == 5910 and cohort["path"].is_unique and cohort.patients_known
        by_part = {part: set(rows["patient"]) for part, rows in cohort.groupby("Dataset_type")}
        assert {part: len(patients) for part, patients in by_part.items()} == {"TRAIN": 3700, "TEST": 427}
        assert not by_part["TRAIN"] & by_part["TEST"]


@pytest.mark.realdata
def test_coronahacks_covid_images(real):
    cohort = real["covid"]
    covid = cohort[(cohort["label"] == "COVID-19") & (cohort["split"] == "train")]
    assert len(covid) == 54 and covid["patient"].nunique() == 39 and not (covid["view"] == "L").any()
    laterals = cohort[cohort["note"] == "lateral view"]
    assert len(laterals) == 4 and (laterals["view"] == "L").all() and (laterals["split"] == "excluded").all()
    assert set(covid["source"]) == {"cohen"} and (cohort["split"] != "test").all()
    normal = cohort[(cohort["label"] == "Normal") & (cohort["split"] == "train")]
    assert (len(normal), normal["patient"].nunique()) == (1341, 1211)


@pytest.mark.realdata
@pytest.mark.parametrize("task", ["covid", "pneumonia", "etiology"])
def test_cohens_other_images_are_a_negative_control(real, task):
    negative_control = real[task][real[task]["note"].str.startswith("negative control")]
    assert (
        len(negative_control) == 12
        and (negative_control["split"] == "excluded").all()
        and (negative_control["source"] == "cohen").all()
    )
    assert negative_control["finding"].value_counts().to_dict() == {
        "Streptococcus": 5,
        "SARS": 4,
        "ARDS": 2,
        "Normal": 1,
    }


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "test"),
    [("pneumonia", {"Pneumonia": 390, "Normal": 234}), ("etiology", {"Bacterial": 242, "Normal": 234, "Viral": 148})],
)
def test_the_official_test_is_the_test(real, task, test):
    cohort = real[task]
    rows = cohort[cohort["Dataset_type"] == "TEST"]
    assert set(rows["split"]) == {"test"} and rows["label"].value_counts().to_dict() == test
    assert (cohort["split"] == "test").sum() == len(rows) == 624


@pytest.mark.realdata
def test_a_folder_per_class_of_real_images(real_data):
    cohort = read_cohort(real_data / "radiography-224", check_images=False)
    counts = cohort["label"].value_counts().to_dict()
    assert counts == {"Normal": 6628, "COVID-19": 1937} and not cohort.patients_known


@pytest.mark.realdata
def test_an_external_set_by_its_csv(real_data):
    task = Task(name="external", classes=("Normal", "COVID-19"), labels={"negative": "Normal", "positive": "COVID-19"})
    cohort = read_cohort(real_data / "external-actualmed/labels.csv", task=task, check_images=False)
    assert cohort["label"].value_counts().to_dict() == {"COVID-19": 26, "Normal": 18}
    assert cohort.patients_known and set(cohort["source"]) == {"actualmed"}


def write_part(data: Path, folder: Path, *, part: int) -> Path:
    """Write a data set with all of Cohen's patients and one in `part` of Kermany's, with the images of `data`."""
    rows = read_cohort(data, task="covid", exclude_pretraining_overlap=False, check_images=False)
    patients = rows.loc[rows["source"] == "kermany", "patient"].unique()[::part]
    kept = rows["patient"].isin(patients) | (rows["source"] == "cohen")
    table = pd.read_csv(data / CORONAHACK_CSV)
    table[table["X_ray_image_name"].isin(rows.loc[kept, "path"].map(os.path.basename))].to_csv(
        folder / CORONAHACK_CSV, index=False
    )
    (folder / CORONAHACK_IMAGES).symlink_to(data / CORONAHACK_IMAGES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("part", [4, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.realdata
def test_every_image_of_coronahack(part, real_data, tmp_path):
    """All images open; the duplicates are found, and join no other patients: of a quarter of the patients by day."""
    data = real_data / "coronahack-224"
    if part > 1:
        data = write_part(data, tmp_path, part=part)
    rows = read_cohort(data, task="covid", exclude_pretraining_overlap=False, check_images=False)
    pixels = [open_image(path).tobytes() for path in rows["path"]]
    cohort = read_cohort(data, task="covid", exclude_pretraining_overlap=False)
    # Exact copies, and 2 near ones of Cohen's patient 51. Numbers 2884 and 2885 of Kermany's patient 1669 are alike,
    # but two exposures: the diaphragm and the hand moved.
    copies = len(pixels) - len(set(pixels))
    assert copies == 32 if part == 1 else copies > 4
    assert kinds(cohort) == {"same_picture": copies + 2}
    assert (cohort["group"] == cohort["patient"]).all(), "each copy is of the same patient"
    expected = read_cohort(data, task="covid", exclude_pretraining_overlap=False, check_images=False)
    expected = expected.drop(columns="group")
    pd.testing.assert_frame_equal(cohort.drop(columns="group"), expected, check_like=True)


def test_a_sample_of_the_images_is_opened_and_noted(coronahack, monkeypatch):
    opened = []
    monkeypatch.setattr(checks, "fingerprint_images", lambda paths, **_: opened.extend(paths) or real(paths))
    real = fingerprints.fingerprint_images
    first, again = (
        read_cohort(coronahack, check_images=3, seed=5, exclude_pretraining_overlap=False) for _ in range(2)
    )
    assert len(opened) == 6 and opened[:3] == opened[3:] and len(first) == len(again) == len(CORONAHACK)
    (noted,) = [row for row in first.facts.problems if row["kind"] == "not_opened"]
    assert noted["reason"].startswith(f"3 of {len(CORONAHACK)} images were opened")
    every = read_cohort(coronahack, check_images=10_000, exclude_pretraining_overlap=False)
    assert "not_opened" not in {row["kind"] for row in every.facts.problems}
    with pytest.raises(UsageError, match="check_images=-1"):
        read_cohort(coronahack, check_images=-1)


def test_the_work_is_linear_in_the_rows(tmp_path, monkeypatch):
    """For 400 rows in four folders, each path is checked once, and no row is compared with all others."""
    names = [f"{number % 4}/{number:04d}.png" for number in range(400)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    labels = ["Normal", "COVID-19"] * 200
    pd.DataFrame({"image": names, "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    asked, walked = [], []
    stat, realpath = os.stat, os.path.realpath
    monkeypatch.setattr(checks.os, "stat", lambda path, *a, **k: asked.append(str(path)) or stat(path, *a, **k))
    monkeypatch.setattr(
        checks.os.path, "realpath", lambda path, *a, **k: walked.append(path) or realpath(path, *a, **k)
    )
    cohort = read_cohort(tmp_path / "rows.csv", image_root=tmp_path, check_images=False)
    monkeypatch.undo()
    images = [path for path in asked if path.endswith(".png")]
    assert len(cohort) == 400 and len(images) == len(set(images)) and len(walked) < 20
