"""The folder of a batch's parts: nothing of somebody else's is used, changed or removed, and no row is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from covid_fastai.app.batch import parts as parts_module
from covid_fastai.app.batch.parts import PART_NAME, PLAN_FILE, join_parts, owned_parts, write_part
from covid_fastai.app.batch.run import _digest
from covid_fastai.data.problems import printable
from covid_fastai.errors import ResourceError, UsageError
from covid_fastai.files import write_json

PLAN = {"model": "a" * 64}
PART = "part-0000000-0123456789abcdef.csv"
# one row each, whatever they contain; \udce9 is how Python holds a byte that is not UTF-8
NAMES = [
    "a.png",
    "b\n.png",
    "c\r.png",
    "d\r\n.png",
    "caf\udce9.png",
    "=1+1.png",
    "-2+3.png",
    "'=x.png",
    '"q",.png',
    "\t.png",
]


def rows(*paths: str) -> pd.DataFrame:
    p = [0.25 + 0.01 * number for number in range(len(paths))]
    paths = tuple(map(printable, paths))  # as Predictor writes them
    return pd.DataFrame({"path": paths, "p_A": p, "prediction": "A", "status": "ok", "reason": "", "remark": ""})


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Return all that lies below a folder, links as their targets."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        link = os.readlink(path) if path.is_symlink() else None
        found[str(path.relative_to(folder))] = link or (path.read_bytes() if path.is_file() else None)
    return found


@pytest.mark.parametrize("kind", ["notes", "plan of another program", "a list", "linked plan", "a file", "parts only"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_somebody_else_is_neither_used_nor_changed(tmp_path, kind, resume):
    parts = tmp_path / "table.csv.parts"
    if kind == "a file":
        parts.write_text("mine")
    else:
        parts.mkdir()
        (parts / "thesis.txt").write_text("mine")
        (parts / ".notes.part").write_text("mine")
    if kind in ("plan of another program", "a list"):
        write_json(parts / PLAN_FILE, {"format": 1, "model": "x"} if kind != "a list" else [1])
    elif kind == "linked plan":
        write_json(tmp_path / "plan", {**PLAN, "made_by": "covid_fastai batch"})
        (parts / PLAN_FILE).symlink_to(tmp_path / "plan")
    elif kind == "parts only":
        (parts / PART).write_text("path\n")
    before = contents(tmp_path)
    with pytest.raises(ResourceError, match="no batch has made it"), owned_parts(tmp_path / "table.csv") as folder:
        folder.check_plan(PLAN, resume=resume)
    assert contents(tmp_path) == before


def test_a_link_is_not_followed(tmp_path):
    with owned_parts(tmp_path / "old.csv") as folder:
        folder.check_plan(PLAN, resume=True)
        write_part(folder.path / PART, rows("a.png"))
    (tmp_path / "table.csv.parts").symlink_to(tmp_path / "old.csv.parts")
    before = contents(tmp_path)
    with pytest.raises(ResourceError, match="is a link"), owned_parts(tmp_path / "table.csv"):
        pass
    assert contents(tmp_path) == before
    (tmp_path / "taken.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ResourceError, match=r"taken.csv already exists"), owned_parts(tmp_path / "taken.csv"):
        pass


def test_starting_again_and_finishing_remove_only_what_a_batch_wrote(tmp_path, caplog):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    names = ["part-0000001-0123456789abcdef.csv", "part-notes.csv", "my.csv", "part-0000000-0123456789abcdef.csv.bak"]
    with owned_parts(tmp_path / "table.csv") as folder:
        folder.check_plan(PLAN, resume=True)
        write_part(folder.path / PART, rows("a.png"))
        (folder.path / names[0]).symlink_to(victim)
        for name in names[1:]:
            (folder.path / name).write_text("mine")
        (folder.path / "part-0000002-0123456789abcdef.csv").mkdir()
    with owned_parts(tmp_path / "table.csv") as folder:
        folder.check_plan({"model": "another"}, resume=False)
        assert not (folder.path / PART).exists()
        folder.remove()
    left = {*names, "part-0000002-0123456789abcdef.csv"}
    assert set(os.listdir(tmp_path / "table.csv.parts")) == left and victim.read_text() == "mine"
    assert "is kept, since it contains files that the batch did not write" in caplog.text


def test_a_batch_that_fails_before_its_first_part_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), owned_parts(tmp_path / "table.csv") as folder:
        folder.check_plan(PLAN, resume=True)
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with pytest.raises(ZeroDivisionError), owned_parts(tmp_path / "table.csv") as folder:
        folder.check_plan(PLAN, resume=True)
        write_part(folder.path / PART, rows("a.png"))
        raise ZeroDivisionError
    with owned_parts(tmp_path / "table.csv") as folder:
        with pytest.raises(UsageError, match="another model"):
            folder.check_plan({"model": "another"}, resume=True)
        folder.check_plan(PLAN, resume=True)
        assert folder.is_complete(PART, ["a.png"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other images", "a row less", "text"])
def test_a_part_that_is_not_whole_is_done_again(tmp_path, caplog, suffix, damage):
    name = PART.replace(".csv", suffix)
    with owned_parts(tmp_path / f"table{suffix}") as folder:
        path = folder.path / name
        paths = ["a.png", "b.png"]
        write_part(path, rows(*paths))
        assert folder.is_complete(name, paths) and not caplog.text
        whole = path.read_bytes()
        if damage in ("other images", "a row less"):
            write_part(path, rows(*(["a.png", "c.png"] if damage == "other images" else paths[:1])))
        else:
            path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello\n" * 3}[damage])
        assert not folder.is_complete(name, paths) and "is incomplete or damaged" in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_every_name_is_one_row(tmp_path, suffix):
    parts = [tmp_path / f"part-{number}{suffix}" for number in range(len(NAMES))]
    for path, name in zip(parts, NAMES, strict=True):
        write_part(path, rows(name))
    with open(tmp_path / f"table{suffix}", "wb") as file:
        counts = join_parts(parts, file)
    assert (counts["rows"], counts["ok"]) == (len(NAMES), len(NAMES))
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    table = read(tmp_path / f"table{suffix}")
    assert len(table) == len(NAMES) and table["path"].is_unique
    assert table["path"][4] == r"caf\udce9.png"
    with owned_parts(tmp_path / f"other{suffix}") as folder:
        name = PART.replace(".csv", suffix)
        write_part(folder.path / name, rows(*NAMES))
        assert folder.is_complete(name, NAMES) and PART_NAME.fullmatch(name)


def test_an_image_that_was_replaced_is_another_one_whatever_its_time_says(tmp_path):
    image, other = tmp_path / "a.png", tmp_path / "b.png"
    image.write_bytes(b"old")
    status, before = image.stat(), _digest([str(image)])
    assert _digest([str(image)]) == before
    image.write_bytes(b"new")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = _digest([str(image)])
    other.write_bytes(b"new")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, image)
    assert image.stat().st_mtime_ns == status.st_mtime_ns and len({before, changed, _digest([str(image)])}) == 3


def test_a_table_that_appears_while_a_batch_waits_or_runs_is_not_replaced(tmp_path, monkeypatch):
    """Another batch has just written it, or its user: the second check is within the claim."""
    out, claimed = tmp_path / "table.csv", parts_module.claim_folder

    def claim_late(folder):
        out.write_text("theirs")
        return claimed(folder)

    monkeypatch.setattr(parts_module, "claim_folder", claim_late)
    with pytest.raises(ResourceError, match="already exists"), owned_parts(out):
        raise AssertionError("the folder was used")
    assert out.read_text() == "theirs" and os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("name", [".lock", ".owner"])
def test_a_file_of_somebody_else_is_no_claim_whatever_its_name(tmp_path, name):
    folder = tmp_path / "table.csv.parts"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ResourceError, match="no batch has made it"), owned_parts(tmp_path / "table.csv"):
        pass
    assert (folder / name).read_text() == "mine"


def test_what_a_killed_start_leaves_is_taken_over(tmp_path):
    folder = tmp_path / "table.csv.parts"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".owner").write_text("process 12 on here")
    (folder / ".plan.json.0123abcd.part").write_text("{")
    with owned_parts(tmp_path / "table.csv") as parts:
        parts.check_plan(PLAN, resume=True)
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_too_long_for_its_parts_is_refused_with_a_length_that_works(tmp_path):
    with pytest.raises(ResourceError, match="too long") as caught, owned_parts(tmp_path / f"{'a' * 246}.csv"):
        pass
    most = int("".join(filter(str.isdigit, caught.value.hint)))
    with owned_parts(tmp_path / f"{'a' * (most - 4)}.csv"):
        pass
