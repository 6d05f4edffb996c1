"""Which files of a folder are images, for training and for prediction alike."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covid_fastai import Task, find_leaks, read_cohort, write_phantom
from covid_fastai.app.inputs import list_images
from covid_fastai.data.archives import check_not_archive, unpack_command
from covid_fastai.data.image_files import IMAGE_SUFFIXES, FolderReader, is_masks_folder
from covid_fastai.errors import DataError, UsageError
from covid_fastai.run_folder import RunFolder

FORMATS = {".dib": "BMP", ".jpe": "JPEG", ".jfif": "JPEG", ".tif": "TIFF", ".webp": "WEBP"}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8))


def write(root: Path, *names: str, start: int = 0) -> None:
    """Write an image of noise under each name, in the format of its suffix, PNG without one."""
    for number, name in enumerate(names, start):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(
            path, format=FORMATS.get(path.suffix.lower(), None if path.suffix[1:].isalpha() else "PNG")
        )


def listed(root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in FolderReader().images(root)]


def trained(root: Path, **options) -> list[tuple[str, str]]:
    """Return the relative path and the class of the rows that `read_cohort` reads."""
    cohort = read_cohort(root, check_images=False, **options)
    paths = [os.path.relpath(path, root) for path in cohort["path"]]
    return sorted(zip(paths, cohort["label"], strict=True))


def notes(cohort) -> dict[str, str]:
    return {row["kind"]: row["reason"] for row in cohort.facts.problems}


# one list for all


SUFFIXES = ["JPG", "jpeg", "jpe", "jfif", "png", "bmp", "DIB", "tif", "tiff", "WebP"]


def test_training_prediction_and_audit_list_the_same_files(tmp_path):
    write(
        tmp_path, *(f"Normal/deep/{number}.{suffix}" for number, suffix in enumerate(SUFFIXES)), "COVID/x", "COVID/1.2"
    )
    write(
        tmp_path,
        "COVID/masks/x.png",
        "COVID/.hidden/1.png",
        "COVID/._1.png",
        "__MACOSX/Normal/1.png",
        "COVID/a_mask.png",
    )
    write(tmp_path, "COVID/a.jpg")
    (tmp_path / "Normal" / "scan.DCM").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "Normal" / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "Normal" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    for name in ("Thumbs.db", "notes.txt", "README", "weights.1"):
        (tmp_path / "COVID" / name).write_text("x")
    expected = sorted([f"Normal/deep/{number}.{suffix}" for number, suffix in enumerate(SUFFIXES)])
    expected = ["COVID/1.2", "COVID/a.jpg", "COVID/x", "Normal/IM0001", *expected, "Normal/scan.DCM"]
    assert listed(tmp_path) == expected
    assert [os.path.relpath(path, tmp_path) for path in list_images(tmp_path)] == expected
    assert [name for name, _ in trained(tmp_path)] == expected
    assert find_leaks(read_cohort(tmp_path, check_images=False), against=[tmp_path]).images == {
        "cohort": len(expected),
        tmp_path.name: len(expected),
    }


def test_a_gif_is_listed_and_refused_with_its_reason(tmp_path):
    write(tmp_path, "Normal/a.png", "COVID/b.png")
    picture(3).save(tmp_path / "COVID/c.gif")
    with pytest.raises(DataError, match="GIF"):
        read_cohort(tmp_path)
    assert ".gif" in IMAGE_SUFFIXES and str(tmp_path / "COVID/c.gif") in list(list_images(tmp_path))


@pytest.mark.parametrize(
    "name", ["masks", "Mask", "lung masks", "infection_masks", "leftMask", "ManualMask", "mask_png"]
)
def test_folders_of_masks(name):
    assert is_masks_folder(name)


@pytest.mark.parametrize("name", ["images", "unmasked", "Maskell", "damask", "masked"])
def test_other_folders(name):
    assert not is_masks_folder(name)


def test_masks_are_counted_and_neither_trained_nor_predicted_on(tmp_path, caplog):
    for number, name in enumerate(("COVID", "Normal")):
        write(tmp_path, f"{name}/images/1.png", f"{name}/images/2.png", start=10 * number)
        write(tmp_path, f"{name}/masks/1.png", f"{name}/masks/2.png", start=10 * number + 5)
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        cohort = read_cohort(tmp_path)
    assert len(cohort) == 4 and "4 masks were left out: COVID/masks/1.png" in notes(cohort)["masks"]
    assert "4 masks were left out" in caplog.text
    caplog.clear()
    assert len(list(list_images(tmp_path))) == 4 and "4 masks were left out" in caplog.text
    caplog.clear()
    assert len(list(list_images(f"{tmp_path}/**/*.png"))) == 4 and "4 masks were left out" in caplog.text
    assert len(list(list_images(tmp_path / "COVID/masks"))) == 2, "a folder that is named is listed"


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    write(tmp_path, "Normal/a.png", "COVID/b.png", "COVID/locked/c.png")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="locked cannot be listed: Permission denied"):
        read_cohort(tmp_path)


# layouts of folders


@pytest.mark.parametrize("inner", ["", "chest_xray", "download/chest_xray"])
@pytest.mark.parametrize("case", [str.upper, str.title])
def test_kermanys_folders_as_unpacked(tmp_path, inner, case):
    root = tmp_path / inner
    kinds = {"normal": "IM-{}-0001.jpeg", "pneumonia": "person{}_{agent}_7.jpeg"}
    number = 0
    for split in ("train", "test", "val"):
        for kind, name in kinds.items():
            for agent in ("virus", "bacteria"):
                number += 1
                write(root, f"{split}/{case(kind)}/{name.format(number, agent=agent)}", start=number)
                write(tmp_path, f"__MACOSX/chest_xray/{split}/{kind}/._{number}.jpeg")
    write(tmp_path, "empty/.DS_Store.png")
    assert [label for _, label in trained(tmp_path, task="pneumonia")].count("Pneumonia") == 6
    labels = dict(trained(tmp_path, task="etiology"))
    assert len(labels) == 12 and all(("virus" in name) == (label == "Viral") for name, label in labels.items())
    assert sum(label == "Bacterial" for label in labels.values()) == 3
    cohort = read_cohort(tmp_path, task="pneumonia", exclude_pretraining_overlap=False)
    assert cohort["split"].value_counts().to_dict() == {"train": 4, "test": 4, "valid": 4}


def test_only_kermanys_own_names_tell_the_etiology(tmp_path):
    write(tmp_path, "NORMAL/a.png", "PNEUMONIA/person1_virus_2.jpeg", "PNEUMONIA/my_bacteria_1.png", start=3)
    write(tmp_path, "PNEUMONIA/person1_virus_2 copy.jpeg", "PNEUMONIA/xperson1_virus_2.jpeg", start=9)
    labels = dict(trained(tmp_path, task="etiology"))
    assert labels.pop("NORMAL/a.png") == "Normal" and labels.pop("PNEUMONIA/person1_virus_2.jpeg") == "Viral"
    assert set(labels.values()) == {""}


def test_kaggles_second_copy_of_a_data_set_is_left_out_and_counted(tmp_path):
    for place in ("", "chest_xray"):
        write(tmp_path / place, "train/NORMAL/a.png", "train/PNEUMONIA/b.png", "test/NORMAL/c.png")
    cohort = read_cohort(tmp_path, task="pneumonia")
    assert len(cohort) == 3 and notes(cohort)["copy"].startswith("3 images of folders that repeat others")
    write(tmp_path, "chest_xray/train/NORMAL/new.png", start=7)
    assert notes(read_cohort(tmp_path, task="pneumonia"))["no_class"].startswith("4 images outside")


@pytest.mark.parametrize("place", ["{c}/p1/{n}.png", "{c}/p{n}/study1/series/{n}.png", "{c}/images/2020/{n}.png"])
def test_all_images_below_a_class_folder_are_read(tmp_path, place):
    for number in range(1, 7):
        write(tmp_path, place.format(c=("Normal", "COVID")[number % 2], n=number), start=number)
    rows = trained(tmp_path)
    assert len(rows) == 6 and [label for _, label in rows].count("COVID-19") == 3
    cohort = read_cohort(tmp_path)
    assert cohort["patient"].nunique() == 6 and not cohort["patient_known"].any(), "a folder is no patient"


def test_a_finer_folder_is_the_class_and_contradicting_folders_are_an_error(tmp_path):
    write(tmp_path, "NORMAL/a.png", "Pneumonia/Viral/b.png", "Pneumonia/bacterial/x/c.png", "Pneumonia/COVID-19/d.png")
    labels = dict(trained(tmp_path, task="etiology"))
    assert labels["Pneumonia/Viral/b.png"] == "Viral" and labels["Pneumonia/bacterial/x/c.png"] == "Bacterial"
    assert dict(trained(tmp_path))["Pneumonia/COVID-19/d.png"] == "COVID-19"
    write(tmp_path, "NORMAL/covid/e.png", start=9)
    with pytest.raises(DataError, match="its folders name 'NORMAL' and 'covid'"):
        read_cohort(tmp_path)


@pytest.mark.parametrize(
    ("split", "expected"), [("{s}/{c}/1.png", 4), ("{c}/{s}/1.png", 4), ("set/{s}/{s}/{c}/images/1.png", 4)]
)
def test_folders_of_a_split_in_any_order(tmp_path, split, expected):
    number = 0
    for name in ("train", "test"):
        for kind in ("Normal", "COVID"):
            number += 1
            write(tmp_path, split.format(s=name, c=kind), start=number)
    cohort = read_cohort(tmp_path)
    assert len(cohort) == expected and cohort["split"].value_counts().to_dict() == {"train": 2, "test": 2}


def test_images_beside_the_folders_of_a_split_are_counted(tmp_path, caplog):
    write(
        tmp_path, "train/Normal/1.png", "train/COVID/2.png", "single_prediction/3.png", "train/stray.png", "masks/4.png"
    )
    (tmp_path / "Normal").mkdir()
    (tmp_path / "train/Other").mkdir()
    (tmp_path / "Normal").rmdir()
    cohort = read_cohort(tmp_path)
    found = notes(cohort)
    assert len(cohort) == 2 and found["no_class"].startswith("2 images outside the class folders were left out")
    assert found["masks"].startswith("1 mask was left out") and "train/Other" in found["empty_folder"]
    assert "2 images outside the class folders" in caplog.text


def test_a_folder_with_two_data_sets_names_both(tmp_path):
    write(tmp_path, "Lung Data/Train/COVID-19/images/1.png", "Infection Data/Train/COVID-19/images/2.png")
    with pytest.raises(DataError, match=r"Give one of its folders .*Infection Data, .*Lung Data"):
        read_cohort(tmp_path)


@pytest.mark.parametrize("inner", ["d", "d/e", "d/images"])
def test_the_only_table_of_a_lone_inner_folder_is_read(inner, tmp_path):
    write(tmp_path / inner, "x/a.png", "x/b.png")
    (tmp_path / inner / "rows.csv").write_text("image,label\nx/a.png,Normal\nx/b.png,covid\n")
    (tmp_path / "__MACOSX").mkdir()
    assert len(read_cohort(tmp_path)) == 2
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="neither CoronaHack"):
        read_cohort(tmp_path)


def test_the_only_table_of_a_folder_without_class_folders_is_read(tmp_path, caplog):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "rows.csv").write_text("image,what\na.png,Normal\nb.png,covid\n")
    with caplog.at_level(logging.INFO, logger="covid_fastai"):
        assert len(read_cohort(tmp_path, label_column="what")) == 2
    assert "its only table is read: rows.csv" in caplog.text
    (tmp_path / "more.csv").write_text("image,what\n")
    with pytest.raises(DataError, match=r"neither CoronaHack .* Give the path of .*more\.csv or .*rows\.csv"):
        read_cohort(tmp_path)
    write(tmp_path, "Normal/c.png", "COVID/d.png")
    with pytest.raises(UsageError, match="label_column does not apply"):
        read_cohort(tmp_path, label_column="what")


# links


def test_a_snapshot_of_the_hugging_face_cache(tmp_path):
    repository = tmp_path / "datasets--me--cxr"
    snapshot = repository / "snapshots" / "0123abc"
    for number, name in enumerate(["Normal/a.png", "Normal/b.png", "COVID/c.jpg"]):
        blob = repository / "blobs" / f"{number:064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(blob, format="PNG")
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123abc")
    for root in (snapshot, repository):
        cohort = read_cohort(root)
        assert sorted(os.path.basename(path) for path in cohort["path"]) == ["a.png", "b.png", "c.jpg"]
        assert sorted(cohort["label"]) == ["COVID-19", "Normal", "Normal"]
    assert len(list(list_images(snapshot))) == 3
    (snapshot / "rows.csv").write_text("file,label\nNormal/a.png,Normal\nCOVID/c.jpg,covid\n")
    assert len(read_cohort(snapshot / "rows.csv")) == 2


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    write(tmp_path / "disk", "normal/a.png", "covid/b.png", "covid/more/c.png")
    data = tmp_path / "data"
    data.mkdir()
    (data / "Normal").symlink_to(tmp_path / "disk/normal")
    (data / "COVID").symlink_to("../disk/covid")
    (data / "all").symlink_to(".")
    (tmp_path / "disk/covid/up").symlink_to("..")
    (tmp_path / "disk/covid/again").symlink_to("more")
    (tmp_path / "disk/covid/twice.png").symlink_to("b.png")
    assert trained(data) == [("COVID/b.png", "COVID-19"), ("COVID/more/c.png", "COVID-19"), ("Normal/a.png", "Normal")]
    found = notes(read_cohort(data))
    assert found["loop"].startswith("2 links to a folder") and found["repeated"].startswith("2 links to images")
    assert len(listed(data)) == 3


def test_a_file_that_two_classes_link_to_is_a_conflict(tmp_path):
    write(tmp_path, "data/Normal/a.png", "data/COVID/b.png", "blobs/c.png")
    for name in ("Normal", "COVID"):
        (tmp_path / "data" / name / "c.png").symlink_to(tmp_path / "blobs/c.png")
    with pytest.raises(DataError, match="2 conflicting label"):
        read_cohort(tmp_path / "data", check_images=False)
    (tmp_path / "data/Normal/c.png").unlink()
    (tmp_path / "data/Normal/c.png").symlink_to("../COVID/b.png")
    with pytest.raises(DataError, match="2 conflicting label"):
        read_cohort(tmp_path / "data", check_images=False)


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("../.git/annex/objects/x/y.png", "datalad get"),
        ("/mnt/cache/dvc/files/md5/ab/cdef", "dvc pull"),
        ("../../blobs/0123", "Hugging Face"),
        ("gone.png", "Restore"),
    ],
)
def test_a_link_to_nothing_is_named(tmp_path, target, remedy):
    write(tmp_path, "Normal/a.png", "COVID/b.png")
    (tmp_path / "COVID/c.png").symlink_to(target)
    with pytest.raises(DataError, match="1 missing file") as caught:
        read_cohort(tmp_path)
    (fault,) = caught.value.details
    assert fault["path"].endswith("COVID/c.png") and target in fault["reason"] and remedy in fault["remedy"]


def test_a_linked_class_folder_that_is_gone_is_named(tmp_path):
    write(tmp_path, "Normal/a.png", "COVID/b.png")
    (tmp_path / "Bacteria").symlink_to(tmp_path / "nowhere")
    (row,) = [row for row in read_cohort(tmp_path).facts.problems if row["kind"] == "broken_link"]
    assert row["severity"] == "warning" and "Bacteria" in str(row["reason"])


# archives


def _archive(path: Path, files: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(files.rglob("*.png")):
                archive.write(file, file.relative_to(files))
        return
    compress = {".tar": lambda content: content, ".bz2": bz2.compress}.get(path.suffix, gzip.compress)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add(files, arcname=".")
    path.write_bytes(compress(content.getvalue()))


@pytest.mark.parametrize("name", ["my data.zip", "x.tar", "x.tgz", "x.tar.gz", "x.tar.bz2", "x.part"])
def test_an_archive_is_named_with_the_command_that_unpacks_it(tmp_path, name):
    write(tmp_path / "files", "Normal/a.png", "COVID/b.png")
    archive = tmp_path / name
    _archive(archive, tmp_path / "files")
    for read in (read_cohort, lambda path: list(list_images(path))):
        with pytest.raises(DataError, match="archive, not a folder or a table") as caught:
            read(archive)
    command = caught.value.hint.partition(": ")[2].replace("python -m", f"{sys.executable} -m")
    subprocess.run(command, shell=True, check=True, capture_output=True)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "files"]
    assert len(read_cohort(folder)) == 2


@pytest.mark.parametrize(("head", "kind"), [(b"7z\xbc\xaf\x27\x1c", "a 7z"), (b"Rar!\x1a\x07\x01\0", "a RAR")])
def test_archives_of_other_programs(tmp_path, head, kind):
    (tmp_path / "data.bin").write_bytes(head + bytes(100))
    with pytest.raises(DataError, match=f"is {kind} archive") as caught:
        read_cohort(tmp_path / "data.bin")
    assert f"7z x {tmp_path}/data.bin -o" in caught.value.hint


def test_a_compressed_table_and_a_workbook_are_no_archives(tmp_path):
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"image,label\na.png,Normal\n"))
    with zipfile.ZipFile(tmp_path / "rows.xlsx", "w") as book:
        book.writestr("[Content_Types].xml", "<x/>")
    for name in ("rows.csv.gz", "rows.xlsx"):
        check_not_archive(tmp_path / name)


def test_archives_that_were_not_unpacked_are_named(tmp_path, caplog):
    write(tmp_path, "Normal/a.png", "COVID/b.png")
    (tmp_path / "COVID/images_002.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    found = notes(read_cohort(tmp_path))["archive"]
    assert "images_002.zip" in found and unpack_command(tmp_path / "COVID/images_002.zip") in found
    assert "images_002.zip" in caplog.text
    empty = tmp_path / "empty"
    empty.mkdir()
    with tarfile.open(empty / "images_01.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(DataError, match="tar -xf"):
        read_cohort(empty)
    with pytest.raises(DataError, match="contains no image: 1 archive that is not unpacked"):
        list(list_images(empty))


def test_a_task_of_ones_own_names_the_folders(tmp_path):
    task = Task(name="own", classes=("clear", "opacity"), labels={"Lung_Opacity": "opacity", "Healthy": "clear"})
    write(tmp_path, "data/Lung_Opacity/images/1.png", "data/healthy/images/2.png", "data/healthy/masks/2.png")
    assert [label for _, label in trained(tmp_path, task=task)] == ["opacity", "clear"]


def test_any_other_label_is_no_name_of_a_class_folder(tmp_path):
    write(tmp_path, "train/Mass/images/1.png", "train/healthy/2.png", "test/Hernia/3.png", "test/Mass/4.png")
    options = {"labels": {"Mass": "Mass", "*": "No Mass"}, "positive": "Mass"}
    assert sorted(label for _, label in trained(tmp_path, **options)) == ["Mass", "Mass", "No Mass", "No Mass"]
    assert sorted(label for _, label in trained(tmp_path, positive="Mass")) == ["", "Mass", "Mass", "No Mass"]


def test_a_run_is_no_data(tmp_path):
    run = tmp_path / "runs" / "first"
    (run / "model").mkdir(parents=True)
    for name in (RunFolder.config, RunFolder.record, RunFolder.cohort):
        (run / name).write_text("path,label\n", encoding="utf-8")
    with pytest.raises(DataError, match="is the folder of a run, not data"):
        read_cohort(run)
    with pytest.raises(DataError, match="is the model of the run .*first, not data"):
        read_cohort(run / "model")
    with pytest.raises(DataError, match="holds the folders of runs") as caught:
        read_cohort(tmp_path / "runs")
    assert str(run) in caught.value.hint
    # the drawings of `demo` lie beside its run, in the layout of CoronaHack
    write_phantom(tmp_path / "runs" / "phantoms-0", patients=4, image_size=32)
    with pytest.raises(DataError, match="holds the folders of runs") as caught:
        read_cohort(tmp_path / "runs")
    assert "recipe" not in caught.value.hint
    assert len(read_cohort(tmp_path / "runs" / "phantoms-0")) > 0
