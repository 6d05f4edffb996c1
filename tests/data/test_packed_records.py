"""Packed records: what was written is read back, whatever happens to the processes, the disk and the files."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from covid_fastai.data import packed_records as module
from covid_fastai.data.packed_records import ENTRY, PackedRecords, list_segments

SIZE = 2000  # bytes of a record


def content_of(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def wrong(records: PackedRecords, numbers) -> list[int]:
    """Return the numbers whose record is there and differs from what was written."""
    return [n for n in numbers if records.read(key_of(n)) not in (None, content_of(n))]


def count(records: PackedRecords, numbers) -> int:
    return sum(records.read(key_of(n)) is not None for n in numbers)


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from covid_fastai.data.packed_records import PackedRecords
    from tests.data.test_packed_records import content_of, key_of
    records = PackedRecords(Path(sys.argv[1]))
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        records.write(key_of(number), content_of(number))
        if number == int(sys.argv[2]):
            print("begun", flush=True)
    """
)


def start_writer(folder, start: int, stop: int) -> subprocess.Popen:
    arguments = [sys.executable, "-c", WRITER, str(folder), str(start), str(stop)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_records_are_read_back_by_this_and_another_object(tmp_path):
    records = PackedRecords(tmp_path / "kind")
    for number in range(50):
        records.write(key_of(number), content_of(number))
    for reader in (records, PackedRecords(tmp_path / "kind")):
        assert count(reader, range(50)) == 50 and not wrong(reader, range(50))
        assert reader.read(key_of(50)) is None
    assert len(list_segments(tmp_path / "kind")) == 1 and list_segments(tmp_path / "kind")[0].records == 50


def test_a_reader_sees_what_is_written_later(tmp_path):
    reader, writer = PackedRecords(tmp_path), PackedRecords(tmp_path)
    assert reader.read(key_of(0)) is None
    writer.write(key_of(0), content_of(0))
    assert reader.read(key_of(0)) == content_of(0)
    writer.write(key_of(1), content_of(1))
    assert reader.read(key_of(1)) == content_of(1)


def test_two_writers_have_a_segment_each_and_read_each_other(tmp_path):
    both = [PackedRecords(tmp_path), PackedRecords(tmp_path)]
    for number in range(20):
        both[number % 2].write(key_of(number), content_of(number))
    assert len(list_segments(tmp_path)) == 2
    assert all(count(records, range(20)) == 20 and not wrong(records, range(20)) for records in both)


def test_a_later_process_appends_to_the_last_segment(tmp_path):
    for number in range(3):
        with start_writer(tmp_path, 10 * number, 10 * number + 10) as writer:
            assert writer.wait(60) == 0
    assert len(list_segments(tmp_path)) == 1 and count(PackedRecords(tmp_path), range(30)) == 30


def test_a_full_segment_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_BYTES", 5 * SIZE)
    records = PackedRecords(tmp_path)
    for number in range(20):
        records.write(key_of(number), content_of(number))
    assert len(list_segments(tmp_path)) == 4 and count(PackedRecords(tmp_path), range(20)) == 20


@pytest.mark.nightly
@pytest.mark.slow
def test_no_kill_leaves_a_wrong_record(tmp_path):
    """Twenty writers are killed at random moments, two at a time; what remains is right, and a later writer goes on."""
    moments = np.random.default_rng(0).uniform(0, 0.4, 10)
    for turn, moment in enumerate(moments):
        writers = [start_writer(tmp_path, 10_000 * turn, 10_000 * turn + 10_000) for _ in range(2)]
        for writer in writers:
            assert writer.stdout.readline() == "begun\n"
        time.sleep(moment)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait(30)
            writer.stdout.close()
        records = PackedRecords(tmp_path)
        numbers = range(10_000 * turn, 10_000 * turn + 400)
        assert not wrong(records, numbers) and count(records, numbers) > 0
        records.write(key_of(-turn - 1), content_of(turn))
        assert PackedRecords(tmp_path).read(key_of(-turn - 1)) == content_of(turn)
        records.close()
    assert len(list_segments(tmp_path)) == 2, "the segments of killed processes are continued"


@pytest.mark.parametrize("cut", [1, 30, ENTRY.itemsize - 1])
def test_an_incomplete_entry_is_not_read_and_the_next_record_is(tmp_path, cut):
    records = PackedRecords(tmp_path)
    for number in range(3):
        records.write(key_of(number), content_of(number))
    records.close()
    (segment,) = list_segments(tmp_path)
    os.truncate(segment.index, 3 * ENTRY.itemsize - cut)
    later = PackedRecords(tmp_path)
    assert count(later, range(3)) == 2
    later.write(key_of(3), content_of(3))
    fresh = PackedRecords(tmp_path)
    assert [fresh.read(key_of(n)) == content_of(n) for n in range(4)] == [True, True, False, True]


@pytest.mark.parametrize("kept", [0, 1, 2 * SIZE + 1, 3 * SIZE - 1])
def test_missing_content_is_no_record(tmp_path, kept):
    """The disk can lose the content and keep the entry when the machine stops."""
    records = PackedRecords(tmp_path)
    for number in range(3):
        records.write(key_of(number), content_of(number))
    os.truncate(list_segments(tmp_path)[0].index.with_suffix(".records"), kept)
    for reader in (records, PackedRecords(tmp_path)):
        assert not wrong(reader, range(3)) and count(reader, range(3)) == kept // SIZE


def test_no_changed_byte_is_read(tmp_path):
    records = PackedRecords(tmp_path)
    for number in range(4):
        records.write(key_of(number), content_of(number))
    (segment,) = list_segments(tmp_path)
    random = np.random.default_rng(0)
    for file in (segment.index, segment.index.with_suffix(".records")):
        whole = file.read_bytes()
        for position in random.integers(0, len(whole), 60):
            changed = bytearray(whole)
            changed[position] ^= 1 << random.integers(8)
            file.write_bytes(bytes(changed))
            fresh = PackedRecords(tmp_path)
            assert not wrong(fresh, range(4)) and count(fresh, range(4)) == 3
        file.write_bytes(whole)
    assert count(PackedRecords(tmp_path), range(4)) == 4


@pytest.mark.skipif(os.name == "nt", reason="system: no limits of file sizes")
@pytest.mark.parametrize("room", [0, 1, SIZE - 1, SIZE + 1])
def test_a_full_disk_costs_the_record_and_nothing_else(tmp_path, room):
    import resource

    records = PackedRecords(tmp_path)
    records.write(key_of(0), content_of(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE + room, limits[1]))
        with pytest.raises(OSError):  # EFBIG here, ENOSPC on a full disk
            for number in (1, 2):
                records.write(key_of(number), content_of(number))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for reader in (records, PackedRecords(tmp_path)):
        assert reader.read(key_of(0)) == content_of(0) and not wrong(reader, range(3))
    records.write(key_of(3), content_of(3))
    assert PackedRecords(tmp_path).read(key_of(3)) == content_of(3)


def test_threads_can_write_and_read(tmp_path):
    records = PackedRecords(tmp_path)

    def write_and_read(number: int) -> bool:
        records.write(key_of(number), content_of(number))
        return records.read(key_of(number)) == content_of(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(200)))
    assert count(PackedRecords(tmp_path), range(200)) == 200 and len(list_segments(tmp_path)) == 1


def _write_in_child(records: PackedRecords, number: int) -> None:
    for offset in range(10):
        records.write(key_of(number + offset), content_of(number + offset))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="system: no fork")
def test_a_forked_process_writes_to_a_segment_of_its_own(tmp_path):
    records = PackedRecords(tmp_path)
    records.write(key_of(0), content_of(0))
    children = [
        multiprocessing.get_context("fork").Process(target=_write_in_child, args=(records, 100 * child))
        for child in (1, 2)
    ]
    for child in children:
        child.start()
    for number in range(1, 10):
        records.write(key_of(number), content_of(number))
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    other = PackedRecords(tmp_path)
    other.write(key_of(50), content_of(50))  # the parent's segment is still its own
    records.write(key_of(51), content_of(51))
    numbers = [*range(10), 50, 51, *range(100, 110), *range(200, 210)]
    assert count(PackedRecords(tmp_path), numbers) == len(numbers) and not wrong(PackedRecords(tmp_path), numbers)


def test_a_segment_in_use_is_not_removed(tmp_path):
    records = PackedRecords(tmp_path)
    records.write(key_of(0), content_of(0))
    assert not list_segments(tmp_path)[0].remove(), "it is being written"
    records.close()
    (segment,) = list_segments(tmp_path)
    assert segment.remove() and list(tmp_path.iterdir()) == []
    assert records.read(key_of(0)) in (None, content_of(0))
    records.write(key_of(1), content_of(1))
    assert PackedRecords(tmp_path).read(key_of(1)) == content_of(1)
