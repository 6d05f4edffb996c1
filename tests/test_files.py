"""Atomic writes and owned folders."""

from __future__ import annotations

import json
import os
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
    with pytest.raises(ResourceError, match="file/inside cannot be created: Not a directory") as caught:
        make_folder(tmp_path / "file" / "inside", hint="Take another.")
    assert caught.value.hint == "Take another."


def test_a_run_folder_is_new_and_named_by_time_and_task(tmp_path):
    first, second = (new_run_folder(None, task="covid", root=tmp_path) for _ in range(2))
    assert first != second
    assert "-covid-" in first.name
    (first / "x").write_text("x")
    with pytest.raises(ResourceError, match="exists and is not empty"):
        new_run_folder(first, task="covid")


CLAIM = """
import sys, time
from covid_fastai.files import claim_folder
with claim_folder(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_claimed_folder_is_refused_to_another_process(tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path), "0"]
    with claim_folder(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        assert f"{tmp_path} is in use by process {os.getpid()} on " in done.stderr
        with pytest.raises(ResourceError, match="in use by process"), claim_folder(tmp_path):  # nor twice in this one
            pass
    assert [path.name for path in tmp_path.iterdir()] in ([".lock"], [])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "mine"


def test_a_killed_owner_leaves_no_claim_behind(tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path), "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline().strip() == "mine"
        with pytest.raises(ResourceError, match=f"in use by process {owner.pid} on "), claim_folder(tmp_path):
            pass
        owner.kill()
    with claim_folder(tmp_path):  # what the killed process wrote down names nobody any more
        done = subprocess.run([sys.executable, "-c", CLAIM, str(tmp_path), "0"], capture_output=True, text=True)
        assert f"in use by process {os.getpid()} on " in done.stderr


def test_of_many_processes_one_owns_the_folder_at_a_time(tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path), "5"]  # seconds: longer than it takes the others to start
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(4)]
    outputs = [racer.communicate()[0].strip() for racer in racers]
    assert sorted(outputs) == ["", "", "", "mine"]


def test_a_folder_that_cannot_be_claimed_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file cannot be written: "), claim_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(os.name == "nt", reason="system: symbolic links need a privilege on Windows")
def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = make_folder(tmp_path / "run")
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(ResourceError, match="run cannot be written"), claim_folder(folder):
        pass
    assert victim.read_text() == "kept"


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="system: the time zone cannot be changed on this system")
def test_utc_now_is_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        found = datetime.strptime(utc_now(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert abs((datetime.now(UTC) - found).total_seconds()) < 60
