"""Which files the rows of a table may name: below one folder, and addresses of allowed protocols only."""

from __future__ import annotations

import ntpath
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covid_fastai.app import table_inputs
from covid_fastai.app.batch.run import predict_batch
from covid_fastai.app.inputs import RemoteFile, list_images
from covid_fastai.data import file_locations, row_files
from covid_fastai.data import reach as reach_module
from covid_fastai.data.metadata import read_cohort
from covid_fastai.data.reach import Reach, check_protocols, is_share
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation import interpretation
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.reporting.report import write_evaluation

OUTSIDE = ["../secret.png", "sub/../../secret.png", "{outside}/secret.png", "//{outside}/secret.png", "{outside}"]
OUTSIDE += ["../inside-not/secret.png", "~root/../../secret.png"]
ADDRESSES = ["file://{outside}/secret.png", "local://{outside}/secret.png", "FILE://{outside}/secret.png"]
ADDRESSES += ["ftp://host/a.png", "webhdfs://host/a.png", "http://127.0.0.1:1/a.png", "https://host/a.png"]
ADDRESSES += ["s3://bucket/a.png", "smb://host/share/a.png", "sftp://host/a.png", "github://a:b@c/a.png", "x://a.png"]
ADDRESSES += ["simplecache::https://host/a.png", "filecache::file://{outside}/secret.png", "s3://b/a::file:///etc/x"]
ADDRESSES += ["zip://a.png::https://host/x.zip", "reference://::file://{outside}/r.json", "reference://a.png"]
ADDRESSES += ["dir://a.png::file:///", "generic://a.png", "git://{outside}:x.png", "memory://a.png", "a::b://c.png"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with one image, beside files that its tables must not reach."""
    (tmp_path / "inside" / "sub").mkdir(parents=True)
    (tmp_path / "inside-not").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))
    for name in ("inside/a.png", "inside/b.png", "secret.png", "inside-not/secret.png"):
        image.save(tmp_path / name)
    return tmp_path / "inside"


@pytest.fixture
def no_store(monkeypatch):
    """No store is opened and no connection attempted, whatever a table names."""
    fsspec = pytest.importorskip("fsspec")

    def refuse(*arguments, **options):
        raise AssertionError(f"reached {arguments}")

    for name in ("open", "open_files", "url_to_fs", "filesystem", "get_filesystem_class"):
        monkeypatch.setattr(fsspec, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_rows(folder: Path, *names: str) -> Path:
    lines = [name.format(outside=folder.parent) for name in names]
    (folder / "rows.csv").write_text("\n".join(["path,label", *(f'"{line}",COVID-19' for line in lines), ""]))
    return folder / "rows.csv"


@pytest.mark.parametrize("name", OUTSIDE)
def test_rows_of_predict_and_batch_name_no_file_outside_of_the_folder(folder, no_store, name):
    rows = write_rows(folder, "a.png", name)
    with pytest.raises(DataError, match="1 outside root") as caught:
        next(list_images(rows))
    assert caught.value.details[0]["row"] == 3 and "image_root" in caught.value.details[0]["remedy"]
    assert list(list_images(rows, on_problem="skip")) == [str(folder / "a.png")]


@pytest.mark.parametrize("name", ADDRESSES)
def test_rows_of_predict_and_batch_reach_no_address(folder, no_store, small_model, name):
    rows = write_rows(folder, "a.png", name)
    with pytest.raises(DataError, match="1 address") as caught:
        predict_batch(small_model, rows, folder / "out.csv")
    assert caught.value.details[0]["row"] == 3 and not (folder / "out.csv").exists()
    assert list(list_images(rows, on_problem="skip")) == [str(folder / "a.png")]


@pytest.mark.parametrize("name", [*OUTSIDE[:5], *ADDRESSES[:9], *ADDRESSES[12:]])
def test_rows_of_training_reach_nothing_outside(folder, no_store, name):
    rows = write_rows(folder, "a.png", name)
    with pytest.raises(DataError) as caught:
        read_cohort(rows)
    assert {row["row"] for row in caught.value.details} == {3}
    cohort = read_cohort(rows, on_problem="skip")
    assert cohort["path"].tolist() == [str(folder / "a.png")]


def test_a_large_table_is_checked_before_its_first_image(folder, no_store, monkeypatch):
    monkeypatch.setattr(table_inputs, "PART", 2)
    monkeypatch.setattr(table_inputs, "SEARCHED", 3)
    rows = write_rows(folder, "a.png", "b.png", "a.png", "../secret.png", "ftp://host/a.png", "b.png", "/etc/x.png")
    with pytest.raises(DataError, match="2 outside root, 1 address") as caught:
        next(list_images(rows))
    assert [row["row"] for row in caught.value.details] == [5, 6, 8]
    expected = [str(folder / name) for name in ("a.png", "b.png", "a.png", "b.png")]
    assert list(list_images(rows, on_problem="skip")) == expected


def test_the_remedies_work_as_they_are_written(folder):
    rows = write_rows(folder, "{outside}/secret.png", "{outside}/inside/a.png")
    with pytest.raises(DataError) as caught:
        next(list_images(rows))
    assert f"image_root={str(folder.parent)!r}" in caught.value.details[0]["remedy"]
    paths = [str(folder.parent / "secret.png"), str(folder / "a.png")]
    assert list(list_images(rows, image_root=folder.parent)) == paths
    rows = write_rows(folder, "memory://scans/a.png")
    with pytest.raises(DataError, match=r"set allow_protocol='memory'"):
        next(list_images(rows))
    assert list(list_images(rows, allow_protocol=["memory"])) == ["memory://scans/a.png"]
    with pytest.raises(DataError, match="1 address"):
        next(list_images(write_rows(folder, "memory://a.png::https://host/x"), allow_protocol=["memory", "https"]))


@pytest.mark.parametrize("name", ["file", "local", "LOCAL", "reference", "simplecache", "zip", "dir", "generic", "git"])
def test_protocols_that_lead_to_local_files_cannot_be_allowed(folder, name):
    with pytest.raises(UsageError, match="any local file, or any other address"):
        next(list_images(write_rows(folder, "a.png"), allow_protocol=[name]))


@pytest.mark.parametrize("name", ["", "*", "s3://bucket", "s3:", " s3", "ś3", "a::b"])
def test_what_is_no_protocol_is_refused(name):
    with pytest.raises(UsageError, match="is not the name of a protocol"):
        check_protocols([name])
    assert check_protocols(["S3", "http"]) == {"s3", "http"} and check_protocols(None) == set()


def test_a_name_in_a_store_does_not_lead_to_a_second_address(folder, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    name = f"/scans/a::file://{folder.parent}/secret.png"
    store.pipe(name, b"not an image")
    try:
        with pytest.raises(OSError, match="contains ::"):
            RemoteFile(f"memory:/{name}").read()
        with pytest.raises(UsageError, match="several addresses"):
            next(list_images(f"simplecache::file://{folder.parent}/secret.png"))
    finally:
        store.rm("/scans", recursive=True)


def test_a_link_below_the_folder_may_lead_out_and_a_real_path_may_lead_in(folder):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder.parent / "way-in").symlink_to(folder)
    reach = Reach(folder)
    assert reach.path_fault(str(folder / "link.png")) is None
    assert reach.path_fault(str(folder.parent / "way-in" / "a.png")) is None
    assert Reach(folder.parent / "way-in").path_fault(str(folder / "a.png")) is None
    assert Reach(None).path_fault("/etc/passwd") is None
    assert all(reach.path_fault(f"{folder.parent}/{name}") for name in ("x\0.png", "\ud800.png", "insid", "inside"))


def test_paths_of_predictions_lie_below_a_stated_folder(folder):
    lines = ["path,label,p_Normal,p_COVID-19", "a.png,Normal,0.7,0.3", "../secret.png,COVID-19,0.2,0.8"]
    (folder / "predictions.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="1 outside root"):
        read_predictions(folder / "predictions.csv", image_root=folder)
    table = read_predictions(folder / "predictions.csv", image_root=folder, on_problem="skip")
    assert table["path"].tolist() == [str(folder / "a.png")]
    assert len(read_predictions(folder / "predictions.csv")) == 2, "without a folder no image is meant to be opened"


SHARE, DRIVE = r"\\server\share\a.png", r"D:\data"


@pytest.mark.parametrize("path", [SHARE, SHARE.replace("\\", "/"), r"\\?\UNC\server\share\a.png", r"\\.\pipe\a.png"])
def test_a_share_of_another_machine_is_recognised_by_its_name(path):
    assert is_share(path, DRIVE, flavour=ntpath)
    assert not is_share(r"D:\data\a.png", DRIVE, flavour=ntpath) and not is_share(r"C:\a.png", DRIVE, flavour=ntpath)
    assert not is_share(r"\\SERVER\share\data\a.png", r"\\server\share\data", flavour=ntpath)
    assert is_share(r"\\server\other\a.png", r"\\server\share\data", flavour=ntpath)


def test_no_share_that_a_row_names_is_looked_at(folder, monkeypatch):
    """Windows would send the user's hashed password there; simulated by a folder that counts as a share."""
    share = folder.parent / "share"
    share.mkdir()
    (folder / "a.png").rename(share / "a.png")
    looked = []

    def watched(function):
        def watch(path=".", *arguments, **options):
            looked.append(os.fspath(path) if not isinstance(path, int) else "")
            return function(path, *arguments, **options)

        return watch

    for module in (reach_module, file_locations, row_files):
        monkeypatch.setattr(module, "is_share", lambda path, base: os.fspath(path).startswith(str(share)))
    for name in ("listdir", "scandir", "stat", "lstat"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    for name in ("exists", "isfile", "isdir", "islink", "realpath"):
        monkeypatch.setattr(os.path, name, watched(getattr(os.path, name)))
    rows = write_rows(folder, "b.png", f"{share}/a.png")
    with pytest.raises(DataError, match="1 outside root"):
        next(list_images(rows))
    with pytest.raises(DataError, match="1 outside root"):
        read_cohort(rows)
    assert looked and not [path for path in looked if path.startswith(str(share))]


@pytest.mark.slow
def test_a_page_of_predictions_opens_no_image_outside_of_the_folder_of_the_table(folder, monkeypatch, caplog):
    rng = np.random.default_rng(0)
    lines = ["path,label,patient,p_Normal,p_COVID-19"]
    for number in range(6):
        label = ("Normal", "COVID-19")[number % 2]
        Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{folder}/{number}.png,{label},p{number},0.9,0.1")
    lines.append(f"{folder.parent}/secret.png,COVID-19,q,0.9,0.1")
    (folder / "table.csv").write_text("\n".join(lines))
    opened, open_square = [], interpretation.open_square
    monkeypatch.setattr(
        interpretation, "open_square", lambda path, size: opened.append(path) or open_square(path, size)
    )
    page = write_evaluation(folder / "table.csv", folder / "page.html", n_resamples=100)
    assert sorted(opened) == [f"{folder}/{number}.png" for number in (1, 3, 5)]
    assert "not tested for shortcuts" in page.read_text() and "1 images lie outside of" in caplog.text
    assert f"image_root={str(folder.parent)!r}" in caplog.text
    opened.clear()  # the remedy
    write_evaluation(folder / "table.csv", folder / "page.html", image_root=folder.parent, n_resamples=100)
    assert str(folder.parent / "secret.png") in opened
