"""The files that the rows of a table name, where the table was made for another place or program."""

from __future__ import annotations

import logging
import os
import time
import unicodedata

import pandas as pd
import pytest

from covid_fastai import read_cohort
from covid_fastai.data.file_locations import locate_files, split_path
from covid_fastai.errors import DataError

E_NFD = unicodedata.normalize("NFD", "é")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def located(root, *names, search=True):
    """Return the path of each name relative to the root, "" for one that was not found."""
    paths = locate_files(names, root, search=search).paths
    return [os.path.relpath(path, root) if os.path.exists(path) else "" for path in paths]


NIH = [f"images_{number:03d}/images/{number:08d}_000.png" for number in range(1, 13)]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        pytest.param(NIH, [os.path.basename(name) for name in NIH], id="twelve folders"),
        pytest.param(["0/1_2.png", "54/3_4.png"], ["1_2.png", "3_4.png"], id="numbered folders"),
        pytest.param(["train/p/v.jpg", "valid/p/v.jpg"], ["S1/train/p/v.jpg", "S1/valid/p/v.jpg"], id="no folder"),
        pytest.param(["p1/a.png", "p2/a.png"], ["cxr/train/p1/a.png", "cxr/train/p2/a.png"], id="two missing folders"),
        pytest.param(["set/set/p1/a.png", "set/set/p2/a.png"], ["set/p1/a.png", "set/p2/a.png"], id="repeated folder"),
        pytest.param(["1.dcm", "2.DCM", "3.dicom"], ["1", "2", "3"], id="missing endings"),
        pytest.param(["train/1.2.3.dcm", "train/1.2.4.dcm"], ["1.2.3", "1.2.4"], id="UIDs without ending"),
        pytest.param(["x.png", "y.png"], [r"D:\data\new\x.png", r"D:\data\new\y.png"], id="drive"),
        pytest.param(["Normal/x.png", "COVID/y.png"], [r"e:\Normal\x.png", r"e:\COVID\y.png"], id="drive, folders"),
        pytest.param(["a/x.png", "b/x.png"], [r"\\server\share\a\x.png", r"\\server\share\b\x.png"], id="share"),
        pytest.param(["images/x.png", "images/y.png"], ["/mnt/old/set/x.png", "/mnt/old/set/y.png"], id="machine"),
        pytest.param(["p/x.png", "q/y.png"], [r"p\x.png", r"q\y.png"], id="backslashes"),
        pytest.param(["P/X.PNG", "q/y.png"], ["p/x.png", "Q/Y.png"], id="case"),
        pytest.param([f"{E_NFD}/{E_NFD}.png", "é2.png"], ["é/é.png", f"{E_NFD}2.png"], id="Unicode form"),
        pytest.param(["files/p10/s1/a.jpg", "files/p11/s2/a.jpg"], ["p10/s1/a", "p11/s2/a"], id="deep, without ending"),
        pytest.param(["x.png", "sub/y.png"], ["./x.png", "sub/../sub/y.png"], id="as stated"),
    ],
)  # fmt: skip
def test_all_rows_are_found_by_one_rule(tmp_path, files, names):
    touch(tmp_path, *files, "readme.txt", "__MACOSX/._x.png", "masks/x.png")
    assert located(tmp_path, *names) == files


@pytest.mark.parametrize(
    ("files", "names", "found"),
    [
        pytest.param(["00000022_000.png"], ["00000002_000.png"], [""], id="another number"),
        pytest.param(["a/1.png", "b/1.png"], ["1.png"], [""], id="two of a name"),
        pytest.param(["x.dcm", "x.png"], ["x"], [""], id="two endings"),
        pytest.param(["x.png"], ["x.jpg"], [""], id="another ending"),
        pytest.param(["Normal/1.png", "Normal/2.png"], ["COVID/1.png", "COVID/2.png"], ["", ""], id="another class"),
        pytest.param(["Edema/1.png"], ["Mass/1.png"], [""], id="another class, unknown to all"),
        pytest.param(["patient2/1.png"], ["patient1/1.png"], [""], id="another patient"),
        pytest.param(["patient2/1.png"], ["/old/patient1/1.png"], [""], id="another patient on another machine"),
        pytest.param(["test/1.png"], ["train/1.png"], [""], id="another split"),
        pytest.param(["a.png", "old/b.png", "old/a.png"], ["a.png", "b.png"], ["a.png", ""], id="only some elsewhere"),
        pytest.param(["a.png", "b.png"], ["a.png", "p2/b.png"], ["a.png", ""], id="a folder of some rows only"),
        pytest.param(["masks/a.png", ".cache/b.png"], ["a.png", "b.png"], ["", ""], id="masks and hidden files"),
        pytest.param(["x.png"], ["x", "x.png"], ["", "x.png"], id="two names of a file"),
        pytest.param(["A.png"], ["a.png", "a.PNG"], ["", ""], id="two spellings of a file"),
        pytest.param(["A.png", "a.PNG"], ["a.png"], [""], id="two files of a spelling"),
        pytest.param(["n/1.png", "n/2.png"], ["u/n/1.png", "v/n/2.png"], ["", ""], id="two folders are missing"),
        pytest.param(["x.png.png"], ["x.png"], [""], id="double ending"),
        pytest.param(["a.png"], ["", "b\0.png", "a.png"], ["", "", "a.png"], id="no name"),
    ],
)
def test_the_file_of_another_name_is_never_taken(tmp_path, files, names, found):
    touch(tmp_path, *files)
    assert located(tmp_path, *names) == found


def test_the_folder_of_another_patient_does_not_stand_for_a_folder(tmp_path):
    touch(tmp_path, "patient2/1.png", "valid/2.png", "normal/3.png", "scans/4.png")
    for root, name in (("patient2", "patient1/1.png"), ("valid", "train/2.png"), ("normal", "COVID-19/3.png")):
        assert located(tmp_path / root, name) == [""], name
    assert located(tmp_path / "scans", "pictures/4.png") == ["4.png"]


def test_without_a_root_only_the_stated_folder_is_looked_at(tmp_path):
    touch(tmp_path, "deep/x.png", "y.dcm")
    assert located(tmp_path, "x.png", "y", search=False) == ["", "y.dcm"]


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (r"C:\a\b.png", ["a", "b.png"]),
        (r"\\host\share\a.png", ["share", "a.png"]),
        ("/a//b/../c.png", ["a", "c.png"]),
        ("../x.png", ["x.png"]),
        ("c:x.png", ["c:x.png"]),
    ],
)
def test_paths_of_any_system(path, parts):
    assert split_path(path) == parts


def write_table(folder, names, **columns):
    labels = [("Normal", "COVID-19")[number % 2] for number in range(len(names))]
    path = folder / "rows.csv"
    pd.DataFrame({"path": names, "label": labels, **columns}).to_csv(path, index=False)
    return path


def test_the_rule_is_said_with_its_number_and_an_example(tmp_path, caplog):
    touch(tmp_path, *NIH)
    table = write_table(tmp_path, [os.path.basename(name) for name in NIH])
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        cohort = read_cohort(table, check_images=False)
    said = "12 of 12 files were found in other folders: '00000001_000.png' is images_001/images/00000001_000.png"
    (note,) = [row["reason"] for row in cohort.facts.problems if row["kind"] == "found_by_rule"]
    assert note == said and said in caplog.text


def test_rows_that_the_rule_does_not_find_are_errors(tmp_path):
    touch(tmp_path, *NIH[:8], "images_009/images/twice.png", "images_010/images/twice.png")
    table = write_table(tmp_path, [*map(os.path.basename, NIH), "twice.png"])
    with pytest.raises(DataError, match="4 missing file, 1 ambiguous file") as caught:
        read_cohort(table, check_images=False)
    (twice,) = [row for row in caught.value.details if row["kind"] == "ambiguous_file"]
    assert all(f"images_0{number}/images/twice.png" in twice["reason"] for number in ("09", "10"))
    assert "image_root" in twice["remedy"]


def test_images_in_two_folders_beside_the_table(tmp_path):
    touch(tmp_path, *(f"one/{number}.png" for number in range(30)), *(f"two/{number}.png" for number in range(30, 50)))
    cohort = read_cohort(write_table(tmp_path, [f"{number}.png" for number in range(50)]), check_images=False)
    assert len(cohort) == 50 and cohort.facts.root == str(tmp_path)


def test_masks_of_the_same_names_are_not_in_the_way(tmp_path):
    touch(tmp_path, *(f"{place}/{number}.png" for place in ("images", "masks") for number in range(4)))
    cohort = read_cohort(write_table(tmp_path, [f"{number}.png" for number in range(4)]), check_images=False)
    assert all(os.path.dirname(path) == str(tmp_path / "images") for path in cohort["path"])


def test_masks_do_not_stand_for_images_that_are_missing(tmp_path):
    touch(tmp_path, *(f"lung masks/{number}.png" for number in range(4)))
    with pytest.raises(DataError, match="4 missing file"):
        read_cohort(write_table(tmp_path, [f"{number}.png" for number in range(4)]), check_images=False)


def test_a_data_frame_without_a_root(tmp_path):
    touch(tmp_path, "a.dcm", "B.png", "deep/c.png")
    rows = pd.DataFrame({"path": [str(tmp_path / name) for name in ("a", "b.png", "c.png")], "label": "Normal"})
    with pytest.raises(DataError, match="1 missing file"):
        read_cohort(rows, check_images=False)
    cohort = read_cohort(rows[:2], check_images=False)
    assert [os.path.basename(path) for path in cohort["path"]] == ["a.dcm", "B.png"]
    assert len(read_cohort(rows, image_root=tmp_path, check_images=False, on_problem="skip")) == 2


@pytest.mark.parametrize("folders", ["Normal", "Normal/images", "data/healthy"])
def test_a_file_that_is_found_in_the_folder_of_another_class_is_a_conflict(tmp_path, folders):
    touch(tmp_path, *(f"{folders}/{number}.png" for number in range(4)))
    rows = pd.DataFrame({"path": [f"{number}.png" for number in range(4)], "label": ["covid"] * 3 + ["No Finding"]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="3 conflicting label") as caught:
        read_cohort(tmp_path / "rows.csv", check_images=False)
    assert "its label is 'covid', and the only file of its name is in the folder" in caught.value.details[0]["reason"]


def test_a_file_that_is_found_in_the_folder_of_another_split_is_a_conflict(tmp_path):
    touch(tmp_path, "test/a.png", "train/b.png", "train/virus/c.png")
    table = write_table(tmp_path, ["a.png", "b.png", "c.png"], split="train")
    with pytest.raises(DataError, match="its split is 'train', and the only file of its name is in the folder 'test'"):
        read_cohort(table, check_images=False)
    rows = pd.read_csv(table).assign(label=["Normal", "covid", "pneumonia"], split=["test", "train", "train"])
    rows.to_csv(table, index=False)
    assert len(read_cohort(table, check_images=False)) == 3, "virus is a finer form of pneumonia"


def test_the_remedy_for_folders_of_another_name_works(tmp_path):
    touch(tmp_path, "Bilder/Normal 1.PNG", "Bilder/normal 2.png")
    table = write_table(tmp_path, [r"D:\Studie\Röntgen\normal 1.png", r"D:\Studie\Röntgen\normal 2.png"])
    with pytest.raises(DataError) as caught:
        read_cohort(table, check_images=False)
    for fault in caught.value.details:
        assert "Did you mean" in fault["remedy"] and f"image_root={tmp_path / 'Bilder'}" in fault["remedy"]
    assert len(read_cohort(table, image_root=tmp_path / "Bilder", check_images=False)) == 2


def test_an_archive_that_may_hold_the_missing_files_is_named(tmp_path):
    touch(tmp_path, "images_001/a.png", "images_002.tar.gz")
    with pytest.raises(DataError, match=r"If it is in images_002\.tar\.gz, unpack that: mkdir"):
        read_cohort(write_table(tmp_path, ["a.png", "b.png"]), check_images=False)


@pytest.mark.slow
def test_a_hundred_thousand_files_are_found_quickly(tmp_path):
    names = [f"{number:08d}.png" for number in range(100_000)]
    for number in range(12):
        (tmp_path / f"images_{number:03d}").mkdir()
    for number, name in enumerate(names):
        (tmp_path / f"images_{number % 12:03d}" / name).touch()
    start = time.process_time()
    paths = locate_files(names, tmp_path, search=True).paths
    assert time.process_time() - start < 20  # about 1 s
    assert all(map(os.path.exists, paths))
