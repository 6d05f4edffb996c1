"""Tables as CSV: read back equal, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import string
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import covid_fastai.app.server
from covid_fastai.data.cohort import Cohort, CohortInfo, load_cohort, save_cohort
from covid_fastai.data.problems import ProblemLog
from covid_fastai.data.tables import read_table
from covid_fastai.files import dump_csv, escape_cell, read_csv, unescape_cell, write_csv
from tests.examples import examples

FORMULAS = ["=1+1", '=HYPERLINK("http://x","y")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]
FORMULAS += [
    " =1+1",
    "\u00a0=1",
    "＝1+1",
    "＋1",
    "－1+1",
    "＠SUM(1)",
    "=\n1",
    "-cmd",
    "@a.png",
    "\t",
    "'=1+1",
    "''=1+1",
]
PLAIN = [
    "",
    "a",
    "-5",
    "+4.5e-3",
    "-.5",
    "-",
    "=",
    "@",
    "+",
    "'a'",
    "a=1",
    "x-1",
    "/data/=1.png",
    "1-2",
    "'",
    "'-5",
    "''",
]


INNER = [
    "a;=1+1",
    "a; =1+1;b",
    'a;"=1+1',
    "a\t=1",
    "a\n=1+1",
    "a\r@SUM(1)",
    "a;+1+1",
    "a;\u200b=1",
    "a;'=1",
    "x;;=1;-2+3",
]
SKIPPED = ["\ufeff=1+1", "\u200b=1+1", "\x0b=1", "\u202e=1+1", "\xad=1"]


def runs_in_a_spreadsheet(text: str) -> bool:
    """Return whether a cell begins like a formula of OWASP's list, and is no number."""
    try:
        number = float(text.strip()) is not None and text.strip() == text and "_" not in text
    except ValueError:
        number = False
    start = text.lstrip()[:1]
    return (text[:1] in "\t\r\n" or start in "=+-@＝＋－＠") and not number and len(text.strip()) > 1


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_text_in_every_cell_and_header(tmp_path, text):
    path = write_csv(tmp_path / "a.csv", pd.DataFrame({"path": [text, "a"], f"{text}x": ["b", text]}))
    with open(path, encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(map(runs_in_a_spreadsheet, cells)) and all(cell[0] not in "=+-@\t\r\n" for cell in cells)
    table = read_csv(path)
    assert table["path"].tolist() == [text, "a"] and table.columns.tolist() == ["path", f"{text}x"]
    assert read_csv(path, dtype=str, keep_default_na=False)[f"{text}x"].tolist() == ["b", text]


@pytest.mark.parametrize("text", INNER + SKIPPED)
def test_no_separator_of_another_country_begins_a_formula(tmp_path, text):
    """Where the comma is the decimal sign, a spreadsheet divides lines at ; and knows no quotation within a cell."""
    table = pd.DataFrame({"path": ["x", text], f"{text} name": [text, "y"]}, dtype=object)
    path = write_csv(tmp_path / "a.csv", table)
    with open(path, encoding="utf-8", newline="") as file:
        fields = [field for row in csv.reader(file) for field in row]
    for field in fields:
        for cell in re.split(r"[;\t\r\n]", field):
            assert not re.match(r'["\s\x00-\x1f\xad\ufeff\u200b\u202e]*[=+@-]', cell), field
    pd.testing.assert_frame_equal(read_csv(path, dtype=object), table)
    assert read_table(path, problems=ProblemLog()).iloc[:, 0].tolist() == ["x", text]


def test_numbers_between_separators_stay_as_they_are():
    assert escape_cell("\0=1") == "'\0=1"  # no table has a NUL, and not every reader reads one
    for text in ("a;-5", "1;2;+3", "a; b", "x;y=1", "size 3;width 5"):
        assert escape_cell(text) == text


def test_the_page_saves_cells_by_the_same_rules():
    """The table of the page is written by a script of the browser."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    script = Path(covid_fastai.app.server.__file__).parent / "static" / "table.js"
    code = (
        script.read_text(encoding="utf-8").partition("// The rules of escape_cell")[2].partition("for (const button")[0]
    )
    assert "function csvCell" in code
    texts = [text for text in FORMULAS + PLAIN + INNER + SKIPPED if text] + ['say "a";-1+1']
    code = f"// {code}\nconsole.log(JSON.stringify({json.dumps(texts)}.map(csvCell)));"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    for text, field in zip(texts, json.loads(done.stdout), strict=True):
        (row,) = csv.reader(io.StringIO(field, newline=""))
        assert row == [escape_cell(text)], text


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_stays_as_it_is(text):
    assert escape_cell(text) == text == unescape_cell(text)


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
@example(FORMULAS + PLAIN)
@examples(100)
def test_any_text_is_read_back_equal(texts):
    for text in texts:
        assert unescape_cell(escape_cell(text)) == text
    file = io.StringIO(newline="")
    dump_csv(file, pd.DataFrame({"a": texts, "b": "x"}, dtype=object))
    table = read_csv(io.StringIO(file.getvalue(), newline=""), dtype=str, keep_default_na=False)
    assert table["a"].tolist() == texts


@pytest.mark.parametrize("start", sorted(set(string.printable) - set(string.ascii_letters + string.digits)))
def test_every_start_of_a_cell_is_read_back_by_every_reader(tmp_path, start):
    texts = [f"{start}x.png", f"{start}1+1", f"{start}{start}A1", "plain"]
    path = write_csv(tmp_path / "a.csv", pd.DataFrame({"path": texts, "label": "A"}))
    assert read_table(path, problems=ProblemLog())["path"].tolist() == texts
    facts = CohortInfo(classes=("A", "B"), positive="B", task="t", data="d", root="", problems=())
    rows = {"path": texts, "label": "A", "patient": texts, "split": "train", "finding": texts, "-note": texts}
    save_cohort(Cohort(pd.DataFrame(rows), facts=facts), tmp_path)
    cohort = load_cohort(tmp_path)
    assert cohort["finding"].tolist() == texts == cohort["-note"].tolist()


def test_numbers_stay_numbers(tmp_path):
    table = pd.DataFrame({"p": [-0.5, np.nan], "n": [-1, 2], "s": ["-7", "x"], "flag": [True, False]})
    path = write_csv(tmp_path / "a.csv", table)
    assert path.read_text().splitlines()[1] == "-0.5,-1,-7,True"
    pd.testing.assert_frame_equal(read_csv(path), table)


def test_a_name_of_other_bytes_is_written_as_an_escape(tmp_path):
    file = write_csv(tmp_path / "a.csv", pd.DataFrame({"a": pd.Series(["caf\udce9", "=\udce9"], dtype=object)}))
    assert file.read_text().splitlines() == ["a", r"caf\udce9", r"'=\udce9"]
