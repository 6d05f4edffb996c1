"""The catalogue is complete: every row has a fault, every test exists, and every guard is marked in the source."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.attacks.faults import PAGE, SECTIONS, as_markdown, read_faults
from tests.attacks.guards import WITHOUT, Guard, changes_nothing, find_guards

ROOT = Path(__file__).parents[2]
FAULTS = read_faults()


@cache
def guards() -> dict[str, Guard]:
    return find_guards(ROOT)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# The rows of the catalogue of faults, by their first words.
ROWS = {
    "4a": "Truncated JPEG;Zero byte;Corrupt middle;Wrong extension;16-bit, int32, float;L, LA, P;EXIF orientation;"
    "Decompression bomb;PNG text bomb;Animated GIF;EPS, SVG, PDF;1x1, 5000x1;Photo, lateral;Directory, FIFO;"
    "Missing file;Non-UTF8, emoji;Random mutations",
    "4b": "MONOCHROME1;Multi-frame;No decoder;Truncated, zero byte;Rows/Columns;RLE / deflate bomb;Nested sequences;"
    "Missing window;DICOMDIR;Lateral ViewPosition",
    "4c": 'UTF-8 BOM;`;` or tab separator;UTF-16, latin-1;Labels "None";Ragged row;Numeric names;Missing column;'
    "NaN label;Unknown labels;Duplicate rows;Same image under two names;`../../x`;Address in a row;"
    "Class with 1 image;Empty valid;Class missing from valid;One class only;Formula cells;Long text",
    "4d": "kill -9 while saving;kill -9 mid-training;SIGTERM / Ctrl-C;Disk full;Read-only folder;NaN / inf loss;"
    "NaN or inf prediction;Stale or planted model.pth;Two runs, one folder;CUDA / MPS OOM;Worker killed;"
    "/dev/shm tiny;export fails half-way;Clock jumps;File permissions;"
    "Another device;Several processes;Traced by strace",
    "4e": "Graph of a stranger;Model exchanged;Card of a stranger;"
    "Hostile `.pkl`;Zero, text, LFS;Bit flip;safetensors;config.json;Bundle from a newer format;Lost Normalize;"
    "No network;Corrupt cached weights;Slow or captive-portal;tar/zip slip;ONNX sidecar lost;Wrong Pillow/torch;"
    "Release",
    "4f": "200 MB upload;Pixel bomb;Path in file name;Request flooding;XSS;CSRF / DNS rebinding;`share=True`;"
    "Uploads left behind;Stack trace;Two users;Memory growth;Batch: 1 bad;"
    "Others' files;Endless input;Control characters",
    "4g": "PHI in DICOM tags;Burned-in text;`export.pkl` holds;Accuracy without n;Score read as diagnosis;"
    "Names in a run",
    "4h": "Option not given;Label with a sign;Class name;View or modality;Placeholder patient;Same number, two sources;"
    "Others' file names;Source not stated;Did you mean;Several splits in a table;Recipe;"
    "Two columns of one role;Other systems' scores;Path template;Join;Other format of a table;Excel's values;"
    "No header;Verdict;"
    "Patient in the path;"
    "Official split;"
    "No main guard;Console encoding;Masks beside images;Linked files;Nested folders;System files;"
    "Archive as data;Unknown label;List of labels;One column per finding;Several readers;Files elsewhere;"
    "Image in memory;Sample kind;DICOM window;DICOM header;Moved data;"
    "Parts of the user;"
    "Lungs not found;Lungs cut off;Islands among lungs;Model of the package;Crop to the lungs;Copies",
}


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def rows_of(section: str) -> set[str]:
    text = ROWS[section].replace("`;`", "`\0`")  # the only row whose name contains the separator
    return {row.replace("\0", ";") for row in text.split(";")}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_has_a_fault(section):
    assert {fault.row for fault in FAULTS if fault.section == section} == rows_of(section)


def test_there_are_many_faults_and_all_differ():
    assert len(FAULTS) >= 200 and len({fault.fault for fault in FAULTS}) == len(FAULTS)
    assert {fault.severity for fault in FAULTS} == {"S1", "S2", "S3"}
    assert all(fault.section in SECTIONS and fault.expected for fault in FAULTS)


def test_every_test_exists():
    tests = {tuple(fault.test.split("::")) for fault in FAULTS}
    assert len(tests) > 200
    assert [f"{file}::{name}" for file, name in sorted(tests) if name not in functions_of(file)] == []


@pytest.mark.slow
def test_every_guard_can_be_removed():
    assert len(guards()) > 200
    for name, guard in guards().items():
        assert not changes_nothing(tree_of(guard.path), guard), f"{name}: nothing changes without it"


def test_every_named_guard_is_marked():
    assert {fault.guard for fault in FAULTS if fault.guard} == set(guards()) and set(WITHOUT) <= set(guards())


def test_the_page_is_written_from_the_catalogue():
    assert PAGE.read_text(encoding="utf-8") == as_markdown(FAULTS), "run python -m tests.attacks"
