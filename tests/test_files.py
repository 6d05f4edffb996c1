"""Atomic writes and owned folders."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from covid_fastai.errors import ResourceError
from covid_fastai.files import (
    atomic_write,
    claim_folder,
    make_folder,
    make_unfinished_folder,
    new_run_folder,
    utc_now,
    write_json,
)


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
    command = [sys.executable, "-c", CLAIM, str(tmp_path), "200"]  # seconds: until the others have given up
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(4)]
    deadline = time.monotonic() + 120
    while sum(racer.poll() is not None for racer in racers) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    outputs = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.kill()
        racer.communicate()
    assert sorted(outputs) == ["", "", "", "mine"]


def test_a_folder_that_cannot_be_claimed_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file cannot be written: "), claim_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(os.name == "nt", reason="system: flock is of POSIX")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_with_a_way_out(tmp_path, monkeypatch, number):
    import fcntl

    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match="file system of .* has no locks") as caught, claim_folder(tmp_path):
        pass
    assert "another disk" in caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="system: Windows has no umask")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_new_files_have_the_permissions_of_the_umask_and_old_ones_keep_theirs(tmp_path, umask):
    old = os.umask(umask)
    try:
        write_json(tmp_path / "new.json", {})
        folder = make_unfinished_folder(tmp_path / "model")
        (tmp_path / "private.json").touch(mode=0o600)
        (tmp_path / "private.json").chmod(0o600)
        write_json(tmp_path / "private.json", {})
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new.json", tmp_path / "private.json")}
    assert modes == {"new.json": 0o666 & ~umask, "private.json": 0o600}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_only_unfinished_files_of_this_package_are_swept(tmp_path):
    (tmp_path / ".a.csv.01234abf.part").write_text("rest")
    (tmp_path / ".notes.part").write_text("mine")
    (tmp_path / ".folder.abcdefgh.part").mkdir()
    with claim_folder(tmp_path):
        left = {path.name for path in tmp_path.iterdir()} - {".lock", ".owner"}
    assert left == {".notes.part", ".folder.abcdefgh.part"}


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


@pytest.mark.skipif(os.name == "nt", reason="system: symbolic links need a privilege on Windows")
def test_the_name_of_the_owner_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = make_folder(tmp_path / "run")
    (folder / ".owner").symlink_to(victim)
    with claim_folder(folder):
        assert f"process {os.getpid()}" in (folder / ".owner").read_text()
    assert victim.read_text() == "mine" and os.listdir(folder) == [".lock"]


@pytest.mark.skipif(os.name == "nt", reason="system: Windows has no umask")
def test_what_is_private_is_never_readable_for_others_not_even_while_it_is_written(tmp_path):
    private = tmp_path / "private.csv"
    private.touch(mode=0o600)
    with atomic_write(private):
        (part,) = tmp_path.glob(".*.part")
        assert part.stat().st_mode & 0o777 == 0o600


def test_a_new_file_replaces_nothing_that_was_written_meanwhile(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(ResourceError, match="another program"), atomic_write(path, new=True) as file:
        file.write("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["table.csv"]


def test_a_full_disk_is_named_where_a_folder_is_claimed(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"), claim_folder(tmp_path):
        pass
    assert not (tmp_path / ".owner").exists()
