"""Tables as inputs of predict and batch: every format and option of training, and faulty rows before any work."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from covid_fastai.app import table_inputs
from covid_fastai.app.inputs import list_images
from covid_fastai.errors import DataError, UsageError


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
    assert list(list_images(folder / "t.csv")) == expected


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
