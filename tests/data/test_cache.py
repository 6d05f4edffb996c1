"""The cache: correct results for changed, damaged and unwritable files."""

from __future__ import annotations

import os
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
from covid_fastai.data.cache import Cache, cache_folder, cached_square, default_cache
from covid_fastai.data.images import open_square
from covid_fastai.errors import ImageError

SIZE = 48


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def draw(path: Path, seed: int = 0, size=(160, 120)) -> Path:
    grey = np.random.default_rng(seed).integers(0, 255, (size[1] // 10, size[0] // 10), dtype=np.uint8)
    Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def entries(folder: Path) -> list[Path]:
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
    assert all(same(image, path) for image in images) and len(opened) == 1 and len(entries(folder)) == 1
    cached_square(path, SIZE + 1)
    assert len(opened) == 2, "another size is another entry"


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
def test_a_damaged_entry_is_replaced(damage, folder, tmp_path):
    path = draw(tmp_path / "a.png")
    cached_square(path, SIZE)
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert same(cached_square(path, SIZE), path) and entry.read_bytes() == whole


def test_entries_contain_no_names_and_only_the_owner_can_read_them(folder, tmp_path):
    cached_square(draw(tmp_path / "DOE-JOHN.png"), SIZE)
    (entry,) = entries(folder)
    assert "DOE" not in str(entry.relative_to(folder)) and b"DOE" not in entry.read_bytes()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_IMODE(entry.stat().st_mode) == 0o600


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
    assert entries(folder) == []


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
    assert caplog.text.count("are not cached") == 1 and "COVID_FASTAI_CACHE" in caplog.text


def test_the_least_recently_used_entries_are_removed_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SWEEP_EVERY", 1000)
    cache = Cache(tmp_path / "cache", limit=5000)
    for number in range(4):
        cache.write("grey-1-8", f"{number:064x}", bytes(996))
        os.utime(cache._entry_path("grey-1-8", f"{number:064x}"), (number, number))
    fresh = Cache(tmp_path / "cache", limit=5000)
    assert fresh.read("grey-1-8", f"{0:064x}") is not None, "used now"
    fresh.write("grey-1-8", "f" * 64, bytes(996))
    fresh.write("grey-1-8", "e" * 64, bytes(996))
    names = {path.parent.name + path.name for path in entries(tmp_path / "cache")}
    assert f"{0:064x}" in names and f"{1:064x}" not in names and "e" * 64 in names
    assert sum(path.stat().st_size for path in entries(tmp_path / "cache")) <= 5000


def test_contents_and_clear(tmp_path):
    cache = Cache(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a user's file").write_text("stays")
    cache.write("grey-1-8", "a" * 64, bytes(10))
    cache.write("prints-1", "b" * 64, bytes(20))
    assert cache.contents() == {"grey-1-8": (1, 14), "prints-1": (1, 24)}
    cache.clear()
    assert cache.contents() == {} and [path.name for path in entries(tmp_path / "cache")] == ["a user's file"]
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
    assert len(entries(folder)) == len(paths)
