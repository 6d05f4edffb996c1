"""The files of a run: each name has one owner, and the record survives a crash."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import covid_fastai
from covid_fastai.errors import ResourceError
from covid_fastai.run_folder import RunFolder, _Entry

PACKAGE = Path(covid_fastai.__file__).parent
ENTRIES = {attribute: entry.name for attribute, entry in vars(RunFolder).items() if isinstance(entry, _Entry)}
# A saved model has a config.json of its own, and `covid-fastai check` may write a list of problems anywhere.
OTHERS = {("config.json", "model/bundle_config.py"), ("problems.csv", "app/cli/main.py")}


@cache
def strings_of(path: Path) -> str:
    """Return the string literals of a module that are no docstrings, a line each."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners)]
    statements = [statement for body in bodies for statement in body]
    alone = {id(one.value) for one in statements if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone)
    return "\n".join(node.value for node in constants if isinstance(node.value, str))


@pytest.mark.parametrize("name", sorted(name for name in ENTRIES.values() if "." in name))
def test_each_file_name_is_written_in_one_module(name):
    holders = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if name in strings_of(path)}
    assert holders - {module for other, module in OTHERS if other == name} == {"run_folder.py"}


def test_an_entry_is_a_name_on_the_class_and_a_path_on_a_folder(tmp_path):
    folder = RunFolder(tmp_path)
    assert all(getattr(folder, attribute) == tmp_path / name for attribute, name in ENTRIES.items())
    assert all(getattr(RunFolder, attribute) == name for attribute, name in ENTRIES.items())
    assert len(set(ENTRIES.values())) == len(ENTRIES)


def test_folds_come_in_the_order_of_their_numbers(tmp_path):
    folder = RunFolder(tmp_path)
    for number in (10, 0, 2):
        folder.fold(number).path.mkdir()
    assert folder.folds() == [folder.fold(0), folder.fold(2), folder.fold(10)]
    assert folder.retrained_network("lungs removed").path == tmp_path / "retrained" / "lungs-removed"


def test_a_torn_line_costs_that_line_only(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log("started", seed=1)
    with open(folder.record, "a", encoding="utf-8") as file:
        file.write('{"time": "2026')
    folder.log("finished")
    events = folder.read_record()
    assert [event["event"] for event in events] == ["started", "unreadable", "finished"]
    assert events[0]["seed"] == 1 and folder.is_finished()


def test_a_folder_without_a_record_is_no_run(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_record() == [] and not folder.is_run() and not folder.is_finished() and folder.folds() == []


def test_a_record_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ResourceError, match=r"record\.jsonl cannot be written"):
        RunFolder(tmp_path / "gone").log("started")


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\x1cb", "caf\udce9", "a\nb\r", "\x1b[2J"])
def test_an_event_with_any_name_is_one_line(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.log("data read", data=text)
    folder.log("finished")
    assert [event["event"] for event in folder.read_record()] == ["data read", "finished"] and folder.is_finished()
    assert folder.read_record()[0]["data"] == text
