"""Tables as inputs of predict and batch: every format and option of training, and faulty rows before any work."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from covid_fastai.app import table_inputs
from covid_fastai.app.inputs import list_images
from covid_fastai.data import images
from covid_fastai.data.images import open_image
from covid_fastai.data.metadata import read_cohort
from covid_fastai.errors import DataError, ImageError, UsageError
from covid_fastai.model.predictor import Predictor


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("a.png", "b.png", "sub/c.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listed(folder: Path, table: Path, **options) -> list[str]:
    """Return the images of a table, relative to the folder."""
    return [str(Path(path).relative_to(folder)) for path in list_images(table, **options)]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.xlsx", "t.parquet", "t.feather", "t.tsv", "list.txt", "list"])
def test_every_format_is_an_input(folder, name):
    rows = pd.DataFrame({"Image Index": ["b.png", "a.png"], "label": ["N", "P"]})
    writers = {"xlsx": rows.to_excel, "parquet": rows.to_parquet, "feather": rows.to_feather}
    text = "b.png Normal\na.png COVID\n" if name.startswith("list") else rows.to_csv(index=False)
    if name == "t.csv.gz":
        (folder / name).write_bytes(gzip.compress(text.encode()))
    elif write := writers.get(name.partition(".")[2]):
        write(folder / name, **({"index": False} if name == "t.xlsx" else {}))
    else:
        (folder / name).write_text(text.replace(",", "\t") if name == "t.tsv" else text)
    assert listed(folder, folder / name) == ["b.png", "a.png"]


def test_the_options_of_training_apply(folder):
    (folder / "t.csv").write_text("image,scan,key\nx,a,1\ny,b,2\n", encoding="utf-16")
    (folder / "other.csv").write_text("key,stem\n1,b\n2,a\n")
    assert listed(folder, folder / "t.csv", path_column="scan") == ["a.png", "b.png"], "missing endings, as in training"
    options = {"join": folder / "other.csv", "on": "key", "path_template": "{stem}.png"}
    assert listed(folder, folder / "t.csv", encoding="utf-16", **options) == ["b.png", "a.png"]
    (folder / "t.csv").write_text("image\nc.dcm\n")
    assert listed(folder, folder / "t.csv", image_root=folder / "sub") == ["sub/c.dcm"]


def test_faulty_rows_are_an_error_before_the_first_image_or_are_left_out(folder, caplog):
    (folder / "t.csv").write_text("image,label\na.png,N\nb.png\n,P\n")
    with pytest.raises(DataError, match="2 faults: 1 ragged row, 1 empty name") as caught:
        next(list_images(folder / "t.csv"))
    assert [row["row"] for row in caught.value.details] == [3, 4]
    assert listed(folder, folder / "t.csv", on_problem="skip") == ["a.png"]
    assert "2 rows are left out: 1 ragged row, 1 empty name" in caplog.text


def test_a_large_table_is_read_in_parts_in_the_same_order(folder, monkeypatch):
    monkeypatch.setattr(table_inputs, "PART", 2)
    monkeypatch.setattr(table_inputs, "SEARCHED", 3)
    names = ["a.png", "b.png", "missing.png", "a.png", "s3://bucket/x.png"]
    (folder / "t.csv").write_text("\n".join(["path", *names]))
    expected = [name if "://" in name else str(folder / name) for name in names]
    assert list(list_images(folder / "t.csv", allow_protocol=["s3"])) == expected


def test_files_that_are_no_tables_are_images_and_other_tables_are_named(folder):
    (folder / "scan").write_bytes(bytes(128) + b"DICM")
    assert list(list_images(folder / "scan")) == [str(folder / "scan")]
    (folder / "page.png").write_text("path\na.png\n")
    assert list(list_images(folder / "page.png")) == [str(folder / "page.png")]
    (folder / "t.json").write_text('[{"path": "a.png"}]')
    with pytest.raises(DataError, match="is JSON"):
        list(list_images(folder / "t.json"))
    for name in ("gone.csv", "gone.xlsx"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            list(list_images(folder / name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_column": "x"}, "path_column applies to tables, and no input is a table"),
        ({"on_problem": "ignore"}, "on_problem='ignore' is not one of"),
    ],
)
def test_options_without_a_table_and_wrong_values_are_refused(folder, options, message):
    with pytest.raises(UsageError, match=message):
        list(list_images(folder, **options))


def test_a_missing_column_names_those_that_exist(folder):
    (folder / "t.csv").write_text("scan,label\na.png,N\n")
    with pytest.raises(DataError, match="no column 'file'") as caught:
        list(list_images(folder / "t.csv", path_column="file"))
    assert "Its columns: 'scan', 'label'" in caught.value.hint
    with pytest.raises(DataError, match="is not a folder"):
        list(list_images(folder / "t.csv", image_root=folder / "gone"))


@pytest.mark.skipif(os.name == "nt", reason="system: named pipes are of POSIX")
@pytest.mark.parametrize("name", ["rows.csv", "rows.xlsx", "rows.csv.gz", "images.png", "folder.csv"])
def test_what_never_ends_is_refused_and_not_waited_for(folder, small_model, name):
    (folder / name).mkdir() if name == "folder.csv" else os.mkfifo(folder / name)
    (folder / "t.csv").write_text(f"path,key\na.png,1\n{name},2\n")
    for options in ({}, {"join": folder / name, "on": "key"}):
        images = list_images(folder / ("t.csv" if options or name == "images.png" else name), **options)
        if name == "images.png" and not options:
            assert "pipe" in Predictor(small_model).predict(list(images))["reason"][1]
        else:
            with pytest.raises(
                DataError, match="is a pipe, socket or device|is a folder, not a table|is empty|contains no image"
            ):
                list(images)


def test_a_file_without_a_size_is_not_read(tmp_path, monkeypatch):
    """Such as `/proc/kmsg`, which is a regular file, has no size and waits for the next message of the kernel."""
    (tmp_path / "a.png").touch()
    monkeypatch.setattr(images, "_read_bytes", lambda *_: pytest.fail("read"))
    with pytest.raises(ImageError, match="empty"):
        open_image(tmp_path / "a.png")


@pytest.fixture
def deep_folder(tmp_path):
    """A folder with more folders in one another than are listed."""
    if os.name == "nt":
        pytest.skip("system: paths of Windows are shorter")
    levels = [tmp_path / "deep"]
    for number in range(250):
        levels.append(Path(f"{levels[number]}/d"))
        os.mkdir(levels[number])
    (levels[190] / "x.png").touch()
    yield levels[0]
    subprocess.run(["rm", "-rf", levels[0]], check=True)


def test_deep_folders_end_in_an_error_that_names_the_limit(deep_folder):
    with pytest.raises(DataError, match="nested more than 200 deep"):
        list(list_images(deep_folder))
    with pytest.raises(DataError, match="nested more than 200 deep"):
        list(list_images(f"{deep_folder}/**/*.png"))
    with pytest.raises(DataError, match="neither CoronaHack"):
        read_cohort(deep_folder.parent)
    (deep_folder / "Normal").symlink_to(deep_folder / "d")
    with pytest.raises(DataError, match="nested more than 200 deep"):
        read_cohort(deep_folder)
    (deep_folder / "Normal").unlink()


@pytest.mark.skipif(os.name == "nt", reason="system: symbolic links need a privilege on Windows")
def test_loops_of_links_end_and_repeat_no_image(folder, caplog):
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "other").symlink_to(folder / "sub")
    (folder / "self.png").symlink_to("self.png")
    (folder / "self").symlink_to("self")
    images = [str(folder / name) for name in ("a.png", "b.png", "sub/c.dcm")]
    assert list(list_images(folder)) == [*images[:2], str(folder / "self.png"), images[2]]
    assert list(list_images(f"{folder}/**/*.png")) == images[:2]
    assert list(list_images(f"{folder}/**/*.dcm")) == images[2:]
    with pytest.raises(DataError, match="is neither CoronaHack"):
        read_cohort(folder)
