"""What the benchmarks make of measurements: pairs in turns, medians, a table and a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from benchmarks.measuring import compare, data_folder, fresh_cache
from benchmarks.recording import as_brief, as_markdown, write_results


def test_pairs_are_taken_in_turns_and_the_first_does_not_count():
    turns = []
    seconds = {"ours": iter([9.0, 1.0, 2.0, 3.0]), "theirs": iter([9.0, 2.0, 8.0, 6.0])}

    def way(name):
        def run() -> float:
            turns.append(name)
            return next(seconds[name])

        return run

    found = compare("x", way("ours"), way("theirs"), peer="y", target=3, repeats=3, remark=lambda: "said")
    assert turns == ["ours", "theirs"] * 4
    assert (found.ours, found.theirs, found.ratio, found.low, found.high) == (2.0, 6.0, 2.0, 2.0, 4.0)
    assert (found.ours_spread, found.remark, found.repeats) == (0.5, "said", 3)


def test_what_returns_no_seconds_is_timed_as_a_whole():
    found = compare("x", lambda: "a table", repeats=2)
    assert found.ours >= 0 and found.ratio is None and found.peer == ""


def test_results_are_kept_by_name(tmp_path):
    row = compare("work | of one", lambda: 1.0, lambda: 4.0, peer="peer", target=3, repeats=2).to_dict()
    alone = compare("start", lambda: 0.2, target=0.3, repeats=2).to_dict()
    write_results(tmp_path, "a", [row], machine="this one")
    write_results(tmp_path, "b", [alone], machine="this one")
    table = write_results(tmp_path, "a", [{**row, "name": "anew"}], machine="this one")
    assert table["name"].tolist() == ["start", "anew"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), table, check_dtype=False)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| anew | 1.00 ± 0.00 | peer | 4.00 ± 0.00 | **4.00** (4.00 to 4.00) | 3 |" in text and "0.3 s" in text
    assert Image.open(tmp_path / "results.png").size[0] > 900
    assert text == as_markdown(table)
    assert not (tmp_path / "growth.png").exists()


def test_what_grows_is_plotted_over_its_size(tmp_path):
    rows = [compare(f"{n} rows", lambda n=n: n / 1000.0, repeats=1, size=n).to_dict() for n in (10, 100, 1000)]
    table = write_results(tmp_path, "rows", rows, machine="this one")
    assert table["size"].tolist() == [10, 100, 1000] and table["ours"].tolist() == [0.01, 0.1, 1.0]
    assert Image.open(tmp_path / "growth.png").size[0] > 400


def test_without_data_there_are_drawings(tmp_path, monkeypatch):
    monkeypatch.delenv("COVID_FASTAI_DATA", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    drawn = []
    monkeypatch.setattr("covid_fastai.data.phantom.write_phantom", lambda folder, **options: drawn.append(folder))
    assert data_folder() == drawn[0]


def test_a_fresh_cache_is_gone_afterwards(monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE", "mine")
    with pytest.raises(ValueError, match="stop"), fresh_cache() as folder:
        raise ValueError("stop")
    import os

    assert os.environ["COVID_FASTAI_CACHE"] == "mine" and not folder.exists()


def test_the_readme_shows_what_was_measured():
    root = Path(__file__).parents[1]
    table = pd.read_csv(root / "benchmarks" / "results.csv")
    assert as_brief(table) in (root / "README.md").read_text(encoding="utf-8")
    assert as_markdown(table) == (root / "benchmarks" / "results.md").read_text(encoding="utf-8")
