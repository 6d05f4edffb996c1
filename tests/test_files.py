"""Atomic writes and owned folders."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from covid_fastai.errors import ResourceError
from covid_fastai.files import atomic_write, claim_folder, make_folder, new_run_folder, utc_now, write_json


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_killed_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, sys; from covid_fastai.files import atomic_write\n"
        f"with atomic_write({str(path)!r}) as file: file.write('new'); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert path.read_text() == "old"
    assert list(tmp_path.glob(".*.part"))
    with claim_folder(tmp_path):  # the next owner sweeps up
        assert not list(tmp_path.glob(".*.part"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ResourceError, match="nowhere"), atomic_write(tmp_path / "nowhere" / "a.txt"):
        pass


def test_json_turns_nan_into_null_and_paths_into_text(tmp_path):
    path = write_json(tmp_path / "a.json", {"value": float("nan"), "path": tmp_path, "many": (1, 2)})
    assert json.loads(path.read_text()) == {"value": None, "path": str(tmp_path), "many": [1, 2]}


def test_a_folder_is_made_once_and_an_error_names_it(tmp_path):
    assert make_folder(str(tmp_path / "a" / "b")) == make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file/inside cannot be made: Not a directory") as caught:
        make_folder(tmp_path / "file" / "inside", hint="Take another.")
    assert caught.value.hint == "Take another."


def test_a_run_folder_is_new_and_named_by_time_and_task(tmp_path):
    first, second = (new_run_folder(None, task="covid", root=tmp_path) for _ in range(2))
    assert first != second
    assert "-covid-" in first.name
    (first / "x").write_text("x")
    with pytest.raises(ResourceError, match="already holds"):
        new_run_folder(first, task="covid")


def test_a_claimed_folder_is_refused_to_another_process(tmp_path):
    code = f"from covid_fastai.files import claim_folder\nwith claim_folder({str(tmp_path)!r}): print('mine')"
    with claim_folder(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode != 0
        assert "in use by process" in done.stderr
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "mine"


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be changed on this system")
def test_utc_now_is_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = datetime.strptime(utc_now(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert abs((datetime.now(UTC) - found).total_seconds()) < 60
