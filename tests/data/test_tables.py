"""Tables of any format: what is read as text, what is said about the rest, and which rows are named."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
import pickle
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
from openpyxl.utils import get_column_letter
from pyarrow import feather, parquet

from covid_fastai.data import delimited, table_formats, workbooks
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.table_formats import looks_like_table
from covid_fastai.data.tables import iterate_table, read_table
from covid_fastai.errors import DataError, UnavailableError

ROWS = "image,label\na.png,Normal\n007.png,NA\n"
VALUES = [["a.png", "Normal"], ["007.png", "NA"]]


def read(path: Path, content: bytes | str | None = None, **options) -> pd.DataFrame:
    """Read a table, after writing its content if there is any; no row may have a problem."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    problems = ProblemLog()
    table = read_table(path, problems=problems, **options)
    assert not problems.rows
    return table


def write_workbook(path: Path, *rows: list, title: str = "Sheet1", **formats: str) -> Path:
    """Write rows to a workbook; `formats` are number formats by cell, such as A2."""
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = title
    for row in rows:
        sheet.append(row)
    for cell, text in formats.items():
        sheet[cell].number_format = text
    workbook.save(path)
    return path


# formats


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lzma.compress, lambda raw: gzip.compress(lzma.compress(raw))]
)
@pytest.mark.parametrize("name", ["t.csv", "t", "t.csv.gz", "t.png"])
def test_compression_is_recognised_by_the_content(tmp_path, compress, name):
    table = read(tmp_path / name, compress(ROWS.encode()))
    assert table.to_numpy().tolist() == VALUES and table.index.tolist() == [2, 3]


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_other_compressions_are_read_with_pyarrow(tmp_path, codec):
    with pa.CompressedOutputStream(str(tmp_path / "t.csv"), codec) as file:
        file.write(ROWS.encode())
    assert read(tmp_path / "t.csv").to_numpy().tolist() == VALUES


def test_the_same_rows_in_every_format(tmp_path):
    table = pd.DataFrame(VALUES, columns=["image", "label"])
    table.to_parquet(tmp_path / "t.parquet")
    feather.write_feather(table, tmp_path / "t.feather")
    table.to_excel(tmp_path / "t.xlsx", index=False)
    (tmp_path / "t.tsv").write_text(ROWS.replace(",", "\t"))
    (tmp_path / "t.txt").write_text(ROWS.replace(",", "  "))
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "t.xlsx").read_bytes()))
    (tmp_path / "packed.parquet.bz2").write_bytes(bz2.compress((tmp_path / "t.parquet").read_bytes()))
    for path in sorted(tmp_path.iterdir()):
        read_rows = read(path)
        assert list(read_rows.columns) == ["image", "label"] and read_rows.to_numpy().tolist() == VALUES, path
        assert looks_like_table(str(path)), path
        first = 1 if {"parquet", "feather"} & set(path.name.split(".")) else 2
        assert read_rows.index.tolist() == [first, first + 1], "the row that a spreadsheet program shows"


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        ("name;p\na.png;0,5\n", None),
        ("name\tp\na.png\t0,5\n", None),
        ("\ufeffname;p\r\na.png;0,5\r\n", "utf-8-sig"),
        ("name;p\na.png;0,5\n", "utf-16"),
        ("name;p\na.png;0,5\n", "latin-1"),
    ],
)
def test_decimal_commas_and_encodings_leave_values_as_they_are(tmp_path, raw, encoding):
    table = read(tmp_path / "t.csv", raw.encode(encoding or "utf-8"), encoding=encoding)
    assert table.to_numpy().tolist() == [["a.png", "0,5"]] and list(table.columns) == ["name", "p"]


def test_a_separator_that_divides_the_lines_alike_is_chosen(tmp_path):
    lines = ["a.png,Cardiomegaly|Emphysema|Edema", "b.png,Edema", "c.png,Mass|Edema"]
    assert read(tmp_path / "t.csv", "\n".join(lines)).shape == (3, 2)
    lines = ["image;label, as read;x|y|z|w", "a.png;Normal;1", "b.png;COVID, certain;2"]
    assert read(tmp_path / "t.csv", "\n".join(lines)).shape == (2, 3)


def test_an_encoding_error_names_its_line_far_below_and_in_compressed_text(tmp_path):
    lines = b"image,label\n" + b"a.png,Normal\n" * 50_000 + b"M\xfcller.png,Normal\n" + b"a.png,Normal\n" * 50
    for raw in (lines, gzip.compress(lines)):
        with pytest.raises(DataError, match="line 50002: not utf-8 text"):
            read(tmp_path / "t.csv", raw)
    with pytest.raises(DataError, match="line 2: not utf-16-le text"):
        read(tmp_path / "t.csv", "image,label\nab".encode("utf-16-le") + b"\x00", encoding="utf-16-le")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_ends_early_is_an_error(tmp_path, compress):
    raw = compress(b"image,label\n" + b"".join(b"%d.png,Normal\n" % number for number in range(50_000)))
    with pytest.raises(DataError, match="damaged or was not copied completely"):
        read(tmp_path / "t.csv", raw[: len(raw) // 2])


# values of typed formats


def test_parquet_values_become_exact_text(tmp_path):
    table = pa.table(
        {
            "path": ["001.png", "b.png", None],
            "patient": pa.array([1, None, 3]),
            "label": [1.0, 0.0, None],
            "big": pa.array([2**60 + 1, 2, 3]),
            "fraction": [0.1, float("nan"), 1e300],
            "single": pa.array([0.1, 2.0, None], pa.float32()),
            "known": [True, False, None],
            "date": [datetime.date(2020, 3, 1), None, None],
            "time": pa.array(
                [datetime.datetime(2020, 3, 1), datetime.datetime(2020, 3, 1, 12, 30), None], pa.timestamp("ns")
            ),
            "view": pa.array(["PA", "AP", "PA"]).dictionary_encode(),
            "bytes": pa.array([b"x", b"y", None]),
            "findings": [["a", "b"], [], None],
            "price": [Decimal("1.50"), None, None],
        }
    )
    for name, write in {"t.parquet": parquet.write_table, "t.arrow": feather.write_feather}.items():
        write(table, tmp_path / name)
        assert read(tmp_path / name).to_dict("list") == {
            "path": ["001.png", "b.png", ""],
            "patient": ["1", "", "3"],
            "label": ["1", "0", ""],
            "big": ["1152921504606846977", "2", "3"],
            "fraction": ["0.1", "", "1e+300"],
            "single": ["0.1", "2", ""],
            "known": ["True", "False", ""],
            "date": ["2020-03-01", "", ""],
            "time": ["2020-03-01", "2020-03-01 12:30:00", ""],
            "view": ["PA", "AP", "PA"],
            "bytes": ["x", "y", ""],
            "findings": ["['a', 'b']", "[]", ""],
            "price": ["1.50", "", ""],
        }


def test_embedded_images_are_not_read_and_said(tmp_path, caplog):
    images = pa.array([{"bytes": b"\x89PNG", "path": "a.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    parquet.write_table(pa.table({"image": images, "label": [0]}), tmp_path / "t.parquet")
    assert list(read(tmp_path / "t.parquet").columns) == ["label"] and "'image' holds files" in caplog.text
    parquet.write_table(pa.table({"image": [b"\x89PNG\xff"], "label": [0]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'image' holds bytes that are not text"):
        read(tmp_path / "t.parquet")


def test_excel_values_become_the_text_that_is_shown(tmp_path):
    row = [
        "001",
        1,
        2.0,
        0.5,
        True,
        datetime.date(2020, 3, 1),
        datetime.datetime(2020, 3, 1, 12, 30),
        None,
        "#N/A",
        7,
        1e-7,
    ]
    header = [f"c{number}" for number in range(len(row))]
    path = write_workbook(tmp_path / "t.xlsx", header, row, J2="000")
    expected = ["001", "1", "2", "0.5", "True", "2020-03-01", "2020-03-01 12:30:00", "", "#N/A", "007", "1e-07"]
    assert read(path).to_numpy().tolist() == [expected]


def test_excel_rows_keep_their_numbers_below_titles_and_empty_rows(tmp_path, caplog):
    rows = [
        ["Chest radiographs of 2020"],
        [],
        ["image", "label"],
        ["a.png", "Normal"],
        [],
        ["b.png", None],
        [None, "x"],
    ]
    path = write_workbook(tmp_path / "t.xlsx", *rows)
    workbook = openpyxl.load_workbook(path)
    workbook.active.merge_cells("A1:B1")
    workbook.save(path)
    table = read(path)
    assert table.to_dict("index") == {
        4: {"image": "a.png", "label": "Normal"},
        6: {"image": "b.png", "label": ""},
        7: {"image": "", "label": "x"},
    }
    assert "the header in line 3 were skipped: Chest radiographs of 2020" in caplog.text


def test_cells_merged_over_rows_have_their_value_in_each(tmp_path):
    rows = [["patient", "image", "label"], ["7", "a.png", "N"], ["", "b.png", "P"], ["8", "c.png", ""]]
    path = write_workbook(tmp_path / "t.xlsx", *rows)
    workbook = openpyxl.load_workbook(path)
    workbook.active.merge_cells("A2:A3")
    workbook.active.merge_cells("C3:C4")
    workbook.save(path)
    assert read(path).to_numpy().tolist() == [["7", "a.png", "N"], ["7", "b.png", "P"], ["8", "c.png", "P"]]


def test_several_sheets_are_named_and_hidden_or_empty_ones_do_not_count(tmp_path):
    path = write_workbook(tmp_path / "t.xlsx", ["image", "label"], ["a.png", "N"], title="COVID")
    workbook = openpyxl.load_workbook(path)
    workbook.create_sheet("empty")
    workbook.create_sheet("notes").append(["x"])
    workbook["notes"].sheet_state = "hidden"
    workbook.save(path)
    assert read(path).shape == (1, 2)
    workbook["notes"].sheet_state = "visible"
    workbook.save(path)
    with pytest.raises(DataError, match="2 sheets with content: 'COVID', 'notes'"):
        read(path)


def test_a_formula_without_a_stored_value_is_an_error_and_no_empty_cell(tmp_path):
    path = write_workbook(tmp_path / "t.xlsx", ["image", "label"], ["a.png", '=IF(1,"N","P")'])
    with pytest.raises(DataError, match="the formula in B2 has no stored value") as caught:
        read(path)
    assert "Open the workbook in a spreadsheet program and save it" in caught.value.hint
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    for empty in (b"<v></v>", b"<v />", b"<v/>"):
        parts[sheet] = parts[sheet].replace(empty + b"</c>", b"<v>N</v></c>")
    parts[sheet] = parts[sheet].replace(b'<c r="B2">', b'<c r="B2" t="str">')
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert read(path).to_numpy().tolist() == [["a.png", "N"]], "as a spreadsheet program saves it"


def test_numbers_that_excel_has_rounded_are_a_warning(tmp_path):
    path = write_workbook(tmp_path / "t.xlsx", ["patient", "image"], [12345678901234567, "a.png"], [2, "b.png"])
    problems = ProblemLog()
    read_table(path, problems=problems)
    assert [(row["kind"], row["row"], row["severity"]) for row in problems.rows] == [("rounded_number", 2, "warning")]
    assert "A2 of t.xlsx" in problems.rows[0]["reason"]


def test_a_cell_beside_the_table_is_a_ragged_row(tmp_path):
    problems = ProblemLog()
    path = write_workbook(tmp_path / "t.xlsx", ["image", "label"], ["a.png", "N"], ["b.png", "N", "note"])
    assert len(read_table(path, problems=problems)) == 1
    assert [(row["kind"], row["row"], row["path"]) for row in problems.rows] == [("ragged_row", 3, "b.png")]


# headers and lists without one


@pytest.mark.parametrize(
    ("text", "columns", "rows"),
    [
        ("1 a.png P cohen\n1 b.png N rsna\n9 c.png N x", ["patientid", "filename", "class", "source"], 3),
        ("p1 a.jpg pneumonia\np2 b.jpeg normal", ["patientid", "filename", "class"], 2),
        ("1 a.png N train\n2 b.png P test\n3 c.png N val", ["column 1", "filename", "class", "split"], 3),
        ("a.png 0\nb.png 1", ["path", "label"], 2),
        ("a.png,Normal\nb.png,COVID", ["path", "label"], 2),
        ("Normal\ta.png\nCOVID\tb.png", ["label", "path"], 2),
        ("p1/study1/v1.jpg 1 0 0\np2/study1/v1.jpg 0 1 0", ["path", "column 2", "column 3", "column 4"], 2),
        ("a.png;Normal;x\nb.png;COVID;y", ["path", "column 2", "column 3"], 2),
        ("a.png,a-mask.png,N\nb.png,b-mask.png,P", ["column 1", "column 2", "column 3"], 2),
        ("a.png\nb.png\nc.dcm", ["path"], 3),
        ("scan 1.png\nscan 2.png", ["path"], 2),
        ("001,Normal\n002,COVID\n003,Normal", ["column 1", "column 2"], 3),
        ("s1 Normal\ns2 COVID\ns3 Normal", ["column 1", "column 2"], 3),
        ("a.png,N", ["path", "label"], 1),
    ],
)  # fmt: skip
def test_a_list_without_a_header_loses_no_row_and_the_log_says_its_columns(tmp_path, caplog, text, columns, rows):
    table = read(tmp_path / "list.txt", text + "\n")
    assert list(table.columns) == columns and len(table) == rows and table.index[0] == 1
    assert "has no header line" in caplog.text and f"{columns[0]} = 1" in caplog.text


@pytest.mark.parametrize(
    ("text", "columns", "options"),
    [
        ("image,label\na.png,Normal", ["image", "label"], {}),
        ("Image Index\nscan 1.png\nscan 2.png", ["Image Index"], {}),
        ("image label\na.png Normal\nb.png COVID", ["image", "label"], {}),
        ("label path\nN a.png\nP b.png", ["label", "path"], {}),
        ("scan,opacity\na.png,1\nb.png,0", ["scan", "opacity"], {}),
        ("fn,0,1\na.png,1,0\nb.png,0,1", ["fn", "0", "1"], {}),
        ("x,y\n5,3\n4,3", ["x", "y"], {}),
        ("1,2\n5,3\n4,3", ["1", "2"], {"known": ["2"]}),
        ("case,result\nA,yes\nB,no", ["case", "result"], {}),
        ("image,label", ["image", "label"], {}),
        ("Exported 2020-01-01\n\nimage,label\na.png,Normal\nb.png,Normal", ["image", "label"], {}),
        ("Data set,,\nimage,label,\na.png,Normal,\nb.png,COVID,", ["image", "label", "Unnamed: 2"], {}),
        ("path\nx,y.png\nz,w.png", ["path"], {}),
    ],
)
def test_a_header_is_recognised(tmp_path, text, columns, options):
    path = tmp_path / "t.csv"
    path.write_text(text + "\n")
    assert list(read_table(path, problems=ProblemLog(), **options).columns) == columns


def test_a_blank_before_an_image_separates_only_if_the_image_exists(tmp_path):
    (tmp_path / "1.png").touch()
    assert list(read(tmp_path / "t.txt", "scan 1.png\nscan 2.png\n").columns) == ["label", "path"]


def test_quotation_marks_keep_blanks_in_values_that_blanks_separate(tmp_path):
    table = read(tmp_path / "t.txt", 'image label\n"a b.png"  Normal\nc.png\t"no finding" \n')
    assert table.to_numpy().tolist() == [["a b.png", "Normal"], ["c.png", "no finding"]]


def test_a_ragged_line_of_a_list_is_a_problem(tmp_path):
    problems = ProblemLog()
    lines = [f"{number // 2} {number}.png N cohen" for number in range(20)]
    lines[7] = "3 a b.png N cohen"
    (tmp_path / "t.txt").write_text("\n".join(lines))
    assert len(read_table(tmp_path / "t.txt", problems=problems)) == 19
    assert [(row["kind"], row["row"]) for row in problems.rows] == [("ragged_row", 8)]
    assert "Quote values that contain blanks" in problems.rows[0]["remedy"]


# parts


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet", "t.feather"])
def test_a_table_is_read_in_parts(tmp_path, name):
    table = pd.DataFrame({"image": [f"{number}.png" for number in range(7)], "label": "N"})
    writers = {"csv": table.to_csv, "xlsx": table.to_excel, "parquet": table.to_parquet}
    if name in ("t.csv", "t.xlsx"):
        writers[name[2:]](tmp_path / name, index=False)
    else:
        (table.to_parquet if name == "t.parquet" else table.to_feather)(tmp_path / name)
    parts = list(iterate_table(tmp_path / name, problems=ProblemLog(), rows=3))
    assert [len(part) for part in parts] == [3, 3, 1]
    pd.testing.assert_frame_equal(pd.concat(parts), read_table(tmp_path / name, problems=ProblemLog()))


# formats that are not read


def others(folder: Path) -> dict[str, Path]:
    """Write a table in formats that are not read, by what the message must contain."""
    table = pd.DataFrame({"image": ["001.png", "b.png"], "label": ["N", "P"]})
    files = {
        "JSON": folder / "t.json",
        "JSON Lines": folder / "t.jsonl",
        "a Python pickle": folder / "t.pkl",
        "a Stata file": folder / "t.dta",
        "a NumPy array": folder / "t.npy",
        "an ORC file": folder / "t.orc",
        "a ZIP archive; it holds t.csv": folder / "zipped.zip",
        "a tar archive, compressed with gzip": folder / "packed.tar.gz",
        "a tar archive.": folder / "plain.tar",
        "an SQLite database": folder / "t.sqlite",
    }
    table.to_json(folder / "t.json", orient="records")
    table.to_json(folder / "t.jsonl", orient="records", lines=True)
    table.to_pickle(folder / "t.pkl")
    table.to_stata(folder / "t.dta", write_index=False)
    np.save(folder / "t.npy", np.array([["001.png", "N"]]))
    table.to_orc(folder / "t.orc")
    table.to_csv(folder / "t.csv", index=False)
    with zipfile.ZipFile(folder / "zipped.zip", "w") as archive:
        archive.write(folder / "t.csv", "t.csv")
    for name, mode in (("packed.tar.gz", "w:gz"), ("plain.tar", "w")):
        with tarfile.open(folder / name, mode) as archive:
            archive.add(folder / "t.csv", "t.csv")
    with sqlite3.connect(folder / "t.sqlite") as connection:
        connection.execute('CREATE TABLE "NAME" (image TEXT, label TEXT)')
        connection.executemany('INSERT INTO "NAME" VALUES (?, ?)', [("001.png", "N"), ("b.png", "P")])
    (folder / "t.csv").unlink()
    return files


@pytest.mark.slow
def test_other_formats_are_named_with_a_command_that_converts_them(tmp_path):
    shell = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    files = others(tmp_path)
    for message, path in files.items():
        with pytest.raises(DataError) as caught:
            read(path)
        assert f"{path} is {message}" in caught.value.message, path
        command = caught.value.hint.rpartition(": ")[2]
        if not shutil.which(shlex.split(command)[0], path=shell["PATH"]):
            assert message == "an SQLite database"  # the only program that does not come with Python
            continue
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=shell, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        (target,) = tmp_path.rglob("*.csv")
        assert read(target).iloc[0, [0, -1]].tolist() == ["001.png", "N"], path
        target.unlink()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old format (.xls) or encrypted"),
        (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c\x00", "a 7z archive"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"$FL2@(#)", "an SPSS file"),
        (b"RDX3\nX\n", "an R data file"),
        (gzip.compress(b"X\n\0\0\0\x03", mtime=0), "an R data file, compressed with gzip"),
        (b"HEADER RECORD*******LIBRARY HEADER RECORD!!!!!!!", "a SAS transport file"),
        (bytes(12) + b"\xc2\xea\x81\x60\xb3\x14", "a SAS data set"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a MATLAB file"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"<?xml version='1.0'?><Workbook/>", "an XML file"),
        (b" \n<table><tr>", "an HTML table"),
        (b"%PDF-1.4", "a PDF"),
        (pickle.dumps({"a": 1}, protocol=2), "a Python pickle"),
        (json.dumps({"image": ["a"]}).encode(), "JSON"),
        (json.dumps({"image": {"0": "a"}, "label": {"0": "b"}}).encode(), "JSON"),
        (json.dumps({"image": "a", "label": "b"}).encode(), "JSON Lines"),
        (b"{\\rtf1", "a text document"),
    ],
)
def test_a_format_that_is_not_read_is_named(tmp_path, raw, message):
    path = tmp_path / "a b.csv"
    with pytest.raises(DataError) as caught:
        read(path, raw)
    assert message in caught.value.message and caught.value.hint
    assert not looks_like_table(str(path))


def test_documents_of_office_programs_are_named(tmp_path):
    for name, message in {
        "content.xml": "OpenDocument",
        "xl/workbook.bin": "binary Excel",
        "a.npy": "NumPy arrays",
    }.items():
        with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(DataError, match=message):
            read(tmp_path / "t.xlsx")


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    path = write_workbook(tmp_path / "t.xlsx", ["image", "label"], ["a.png", "N"])
    pd.DataFrame(VALUES, columns=["image", "label"]).to_parquet(tmp_path / "t.parquet")
    for package, file in {"openpyxl": path, "pyarrow": tmp_path / "t.parquet"}.items():
        with monkeypatch.context() as context:
            context.setitem(sys.modules, package, None)
            with pytest.raises(UnavailableError, match=package) as caught:
                read(file)
        assert "covid_fastai[tables]" in caught.value.hint


@pytest.mark.parametrize(
    "raw",
    [b"\x00\x01\x02binary", b"\x89PNG\r\n\x1a\n", b"BM\x36\x00\x00", gzip.compress(b"\x5c\x01\x00\x00n+1\0", mtime=0)],
)
def test_images_and_other_binary_files_are_no_tables(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    assert not looks_like_table(str(tmp_path / "x")) and not looks_like_table(str(tmp_path / "missing"))


def change_sheet(path, old: bytes, new: bytes):
    """Rewrite the only sheet of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    assert old in parts[name]
    parts[name] = parts[name].replace(old, new, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


MERGED = b'</sheetData><mergeCells count="1"><mergeCell ref="%s"/></mergeCells>'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'<row r="2"', b'<row r="99999999999"', "beyond row 1,048,576"),
        (b"</sheetData>", MERGED % b"A1:A99999999999", "outside of a sheet"),
        (b"</sheetData>", MERGED % b"ZZZZZZZ1:ZZZZZZZ2", "outside of a sheet"),
        (b'<c r="A2"', b'<c r="ZZZZZZZ2"', "cannot be read as an Excel workbook"),
        (b"</sheetData>", b"<", "cannot be read as an Excel workbook"),
    ],
)
@pytest.mark.timeout(60)
def test_a_workbook_of_few_bytes_that_asks_for_endless_cells_is_refused(tmp_path, old, new, message):
    path = write_workbook(tmp_path / "t.xlsx", ["image", "label"], ["a.png", "N"])
    with pytest.raises(DataError, match=message):
        read_table(change_sheet(path, old, new), problems=ProblemLog())


@pytest.mark.timeout(60)
def test_ranges_that_are_merged_down_to_the_last_row_take_no_memory(tmp_path):
    path = write_workbook(tmp_path / "t.xlsx", ["image", "label"], ["a.png", "N"], ["b.png", None])
    ranges = [f"{get_column_letter(column)}2:{get_column_letter(column)}1048576" for column in range(2, 2000)]
    merged = "".join(f'<mergeCell ref="{name}"/>' for name in ranges).encode()
    change_sheet(path, b"</sheetData>", b"</sheetData><mergeCells>" + merged + b"</mergeCells>")
    assert read_table(path, problems=ProblemLog())["label"].tolist() == ["N", "N"]


def test_what_unpacks_to_more_than_a_table_is_refused(tmp_path, monkeypatch):
    path = write_workbook(tmp_path / "t.xlsx", ["image", "label"], ["a.png", "N"])
    (tmp_path / "t.xlsx.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"image,label\n" + b"a" * 5000 + b",N\n"))
    monkeypatch.setattr(workbooks, "LARGEST", 1000)
    monkeypatch.setattr(table_formats, "LARGEST", 1000)
    monkeypatch.setattr(delimited, "LONGEST_LINE", 1000)
    messages = {"t.xlsx": "unpacks to", "t.xlsx.gz": "more than 1,000", "t.csv.gz": "line 2: it has 1,000"}
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            read_table(tmp_path / name, problems=ProblemLog())


@pytest.mark.parametrize("rows", [b"a,N\n", b"\n", b"a,N,1\n"], ids=["short", "empty", "ragged"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_table_of_endless_short_rows_is_refused(tmp_path, monkeypatch, rows, compress):
    monkeypatch.setattr(table_formats, "UNCHECKED", 1000)
    (tmp_path / "t.csv").write_bytes(compress(b"image,label\n" + rows * 50_000))
    with pytest.raises(DataError, match="more than 100 times its size") as caught:
        read_table(tmp_path / "t.csv", problems=ProblemLog())
    assert "decompress it" in caught.value.hint
    names = "".join(f"images/{number:05}.png,{'NP'[number % 3 == 0]}\n" for number in range(5000))
    (tmp_path / "t.csv").write_bytes(compress(f"image,label\n{names}".encode()))
    assert len(read_table(tmp_path / "t.csv", problems=ProblemLog())) == 5000


def test_a_quotation_mark_that_is_never_closed_is_named(tmp_path):
    """Without a separator in its first line, the file has one row; found by fuzzing."""
    (tmp_path / "t.csv").write_text('"n\n,\n,$,label\n,O,1\n')
    with pytest.raises(DataError, match="line 4: unexpected end") as caught:
        read(tmp_path / "t.csv")
    assert "quotation mark" in caught.value.hint
