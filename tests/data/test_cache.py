"""The cache: correct results for changed, damaged and unwritable files."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covid_fastai.data import cache as module
from covid_fastai.data import packed_records
from covid_fastai.data.cache import Cache, cache_folder, cached_square, default_cache
from covid_fastai.data.images import open_square
from covid_fastai.errors import ImageError, UsageError

SIZE = 48


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def draw(path: Path, seed: int = 0, size=(160, 120)) -> Path:
    grey = np.random.default_rng(seed).integers(0, 255, (size[1] // 10, size[0] // 10), dtype=np.uint8)
    Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def records_of(folder: Path) -> int:
    return sum(number for number, _ in Cache(folder).contents().values())


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(image, path) -> bool:
    return image.tobytes() == open_square(path, SIZE).tobytes()


def count_opened(monkeypatch) -> list:
    opened = []

    def opening(source, image_size):
        opened.append(source)
        return open_square(source, image_size)

    monkeypatch.setattr(module, "open_square", opening)
    return opened


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_a_file_is_decoded_once_under_any_name(ending, folder, tmp_path, monkeypatch):
    path = draw(tmp_path / f"a{ending}")
    opened = count_opened(monkeypatch)
    (tmp_path / f"b{ending}").write_bytes(path.read_bytes())
    images = [cached_square(name, SIZE) for name in (path, path, tmp_path / f"b{ending}")]
    assert all(same(image, path) for image in images) and len(opened) == 1 and records_of(folder) == 1
    cached_square(path, SIZE + 1)
    assert len(opened) == 2, "another size is another result"


def test_a_changed_file_is_decoded_again(folder, tmp_path):
    path = draw(tmp_path / "a.png")
    before = cached_square(path, SIZE).tobytes()
    draw(path, seed=1)
    assert cached_square(path, SIZE).tobytes() != before and same(cached_square(path, SIZE), path)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:], lambda b: b"", lambda b: b[:2]],
    ids=["short", "one bit", "empty", "two bytes"],
)
def test_a_damaged_result_is_replaced(damage, folder, tmp_path):
    path = draw(tmp_path / "a.png")
    whole = cached_square(path, SIZE).tobytes()
    (file,) = folder.rglob("*.records")
    assert file.read_bytes() == whole
    file.write_bytes(damage(whole))
    assert same(cached_square(path, SIZE), path) and whole in file.read_bytes()
    assert Cache(folder).read(f"grey-{module.OPENER}-{SIZE}", hashlib.sha256(path.read_bytes()).hexdigest()) == whole


def test_results_contain_no_names_and_only_the_owner_can_read_them(folder, tmp_path):
    umask = os.umask(0)
    try:
        cached_square(draw(tmp_path / "DOE-JOHN.png"), SIZE)
    finally:
        os.umask(umask)
    files = files_in(folder)
    assert len(files) == 3, "contents, index and lock"
    assert not any("DOE" in str(file.relative_to(folder)) or b"DOE" in file.read_bytes() for file in files)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert {stat.S_IMODE(child.stat().st_mode) for child in (folder, files[0].parent)} == {0o700}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="system: no owners of files")
@pytest.mark.parametrize("foreign", ["owner", "mode"])
def test_a_folder_that_others_can_change_is_not_used(foreign, folder, tmp_path, monkeypatch, caplog):
    path = draw(tmp_path / "a.png")
    cached_square(path, SIZE)
    module._caches.clear()
    if foreign == "owner":
        owner = os.geteuid() + 1
        monkeypatch.setattr(module.os, "geteuid", lambda: owner)
        if folder.stat().st_uid == 0:
            os.chown(folder, owner + 1, -1)
    else:
        folder.chmod(0o777)
    opened = count_opened(monkeypatch)
    assert all(same(cached_square(path, SIZE), path) for _ in range(2)) and len(opened) == 2
    assert caplog.text.count("another user") == 1 and "COVID_FASTAI_CACHE" in caplog.text


def test_an_unreadable_file_raises_with_its_name_each_time(folder, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(draw(tmp_path / "a.png").read_bytes()[:100])
    for _ in range(2):
        with pytest.raises(ImageError, match="broken.png"):
            cached_square(path, SIZE)
    with pytest.raises(ImageError, match="missing.png is missing"):
        cached_square(tmp_path / "missing.png", SIZE)
    with pytest.raises(ImageError, match="is a folder"):
        cached_square(tmp_path, SIZE)
    assert files_in(folder) == []


def test_the_cache_can_be_turned_off(tmp_path, monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE", "off")
    path = draw(tmp_path / "a.png")
    assert default_cache() is None and same(cached_square(path, SIZE), path)


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/covid_fastai"),
        ("linux", {"HOME": "/home/me"}, "/home/me/.cache/covid_fastai"),
        ("darwin", {"HOME": "/home/me"}, "/home/me/Library/Caches/covid_fastai"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/covid_fastai"),
    ],
)
def test_the_default_folder_of_each_platform(platform, variables, expected, monkeypatch):
    for name in ("COVID_FASTAI_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.sys, "platform", platform)
    assert cache_folder() == Path(expected)


def test_an_unwritable_folder_is_logged_once_and_raises_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COVID_FASTAI_CACHE", str(tmp_path / "file" / "cache"))
    paths = [draw(tmp_path / f"{seed}.png", seed) for seed in range(3)]
    assert all(same(cached_square(path, SIZE), path) for path in paths)
    assert caplog.text.count("no longer added to the cache") == 1 and "COVID_FASTAI_CACHE" in caplog.text


@pytest.fixture
def small_units(monkeypatch):
    """Segments of one result of 1,000 bytes, and room checked before each."""
    monkeypatch.setattr(module, "SWEEP_EVERY", 1000)
    monkeypatch.setattr(packed_records, "SEGMENT_BYTES", 1000)


def name(number: int) -> str:
    return f"{number:064x}"


def test_the_least_recently_used_results_are_removed_first(tmp_path, small_units):
    for number in range(4):
        writer = Cache(tmp_path / "cache", limit=9000)
        writer.write("grey-1-8", name(number), bytes(1000))
        records = writer._of_kind("grey-1-8")
        records.close()
        (index,) = records.segments_in_use()
        os.utime(index, (number, number))
    fresh = Cache(tmp_path / "cache", limit=5300)
    assert fresh.read("grey-1-8", name(0)) is not None, "used now"
    fresh.write("grey-1-8", name(14), bytes(1000))
    fresh.write("grey-1-8", name(15), bytes(1000))
    present = [number for number in (0, 1, 2, 3, 14, 15) if Cache(tmp_path / "cache").read("grey-1-8", name(number))]
    assert present == [0, 2, 3, 14, 15] and Cache(tmp_path / "cache")._size() <= 5300


def test_a_cache_that_is_full_of_results_in_use_keeps_them_and_says_so(tmp_path, small_units, caplog):
    cache = Cache(tmp_path / "cache", limit=3500)
    for number in range(8):
        cache.write("grey-1-8", name(number), bytes(1000))
    kept = [number for number in range(8) if cache.read("grey-1-8", name(number)) is not None]
    assert kept == [0, 1, 2], "an epoch that reads in the same order finds them again"
    assert caplog.text.count("decoded again in each epoch") == 1 and "COVID_FASTAI_CACHE_GB" in caplog.text


def test_the_limit_is_half_of_the_free_space_or_what_is_given(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 40, 60))
    assert Cache(tmp_path / "none" / "cache").size_limit() == 30
    monkeypatch.setenv("COVID_FASTAI_CACHE_GB", "1.5")
    assert default_cache().size_limit() == 1_500_000_000


@pytest.mark.parametrize("text", ["0", "-1", "many", "nan", "inf"])
def test_a_limit_that_is_no_size_raises(text, folder, monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE_GB", text)
    with pytest.raises(UsageError, match="COVID_FASTAI_CACHE_GB"):
        default_cache()


def test_contents_and_clear(tmp_path):
    cache = Cache(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a user's file").write_text("stays")
    cache.write("grey-1-8", "a" * 64, bytes(10))
    cache.write("prints-1", "b" * 64, bytes(20))
    assert {kind: number for kind, (number, _) in cache.contents().items()} == {"grey-1-8": 1, "prints-1": 1}
    cache.clear()
    assert cache.contents() == {} and [path.name for path in files_in(tmp_path / "cache")] == ["a user's file"]
    assert cache.read("grey-1-8", "a" * 64) is None
    cache.write("grey-1-8", "a" * 64, bytes(10))
    assert cache.read("grey-1-8", "a" * 64) == bytes(10)


def test_processes_and_threads_can_use_one_cache(folder, tmp_path):
    paths = [draw(tmp_path / f"{seed}.png", seed) for seed in range(12)]
    code = textwrap.dedent(
        f"""
        import sys
        from covid_fastai.data.cache import cached_square
        for path in sys.argv[1:] * 3:
            cached_square(path, {SIZE})
        """
    )
    others = [subprocess.Popen([sys.executable, "-c", code, *map(str, paths)]) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda path: cached_square(path, SIZE), paths * 3))
    assert [process.wait(60) for process in others] == [0, 0]
    assert all(same(image, path) for image, path in zip(images, paths * 3, strict=True))
    read = Cache(folder)
    kind = f"grey-{module.OPENER}-{SIZE}"
    keys = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert all(read.read(kind, key) == open_square(path, SIZE).tobytes() for key, path in zip(keys, paths, strict=True))
