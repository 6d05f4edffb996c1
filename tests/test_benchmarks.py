"""The benchmarks: alternating pairs, medians, the table and the plots."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from scipy.stats import norm

from benchmarks import coverage
from benchmarks.measuring import compare, data_folder, fresh_cache
from benchmarks.recording import as_brief, as_markdown, write_results


def test_pairs_alternate_and_the_warm_up_does_not_count():
    order = []
    seconds = {"ours": iter([9.0, 1.0, 2.0, 3.0]), "theirs": iter([9.0, 2.0, 8.0, 6.0])}

    def way(name):
        def run() -> float:
            order.append(name)
            return next(seconds[name])

        return run

    result = compare("x", way("ours"), way("theirs"), peer="y", target=3, repeats=3, remark=lambda: "a remark")
    assert order == ["ours", "theirs"] * 4
    assert (result.ours, result.theirs, result.ratio, result.low, result.high) == (2.0, 6.0, 2.0, 2.0, 4.0)
    assert (result.ours_half_iqr, result.remark, result.repeats) == (0.5, "a remark", 3)


def test_work_that_returns_no_seconds_is_timed_as_a_whole():
    result = compare("x", lambda: "a table", repeats=2)
    assert result.ours >= 0 and result.ratio is None and result.peer == ""


def test_results_of_a_benchmark_replace_its_earlier_ones(tmp_path):
    row = compare("work | of one", lambda: 1.0, lambda: 4.0, peer="peer", target=3, repeats=2).to_dict()
    alone = compare("start", lambda: 0.2, target=0.3, repeats=2).to_dict()
    write_results(tmp_path, "a", [row], machine="this one")
    write_results(tmp_path, "b", [alone], machine="this one")
    table = write_results(tmp_path, "a", [{**row, "name": "again"}], machine="this one")
    assert table["name"].tolist() == ["start", "again"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), table, check_dtype=False)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| again | 1.00 ± 0.00 | peer | 4.00 ± 0.00 | **4.00** (4.00 to 4.00) | 3 |" in text and "0.3 s" in text
    with Image.open(tmp_path / "results.png") as figure:
        assert figure.size[0] > 900
    assert text == as_markdown(table)
    assert not (tmp_path / "growth.png").exists()


def test_times_of_several_sizes_are_plotted(tmp_path):
    rows = [compare(f"{n} rows", lambda n=n: n / 1000.0, repeats=1, size=n).to_dict() for n in (10, 100, 1000)]
    table = write_results(tmp_path, "rows", rows, machine="this one")
    assert table["size"].tolist() == [10, 100, 1000] and table["ours"].tolist() == [0.01, 0.1, 1.0]
    with Image.open(tmp_path / "growth.png") as figure:
        assert figure.size[0] > 400


def test_without_real_data_the_images_are_synthetic(tmp_path, monkeypatch):
    monkeypatch.delenv("COVID_FASTAI_DATA", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    drawn = []
    monkeypatch.setattr("covid_fastai.data.phantom.write_phantom", lambda folder, **options: drawn.append(folder))
    assert data_folder() == drawn[0]


def test_a_fresh_cache_is_removed_afterwards(monkeypatch):
    monkeypatch.setenv("COVID_FASTAI_CACHE", "mine")
    with pytest.raises(ValueError, match="stop"), fresh_cache() as folder:
        raise ValueError("stop")
    import os

    assert os.environ["COVID_FASTAI_CACHE"] == "mine" and not folder.exists()


def test_the_readme_and_results_show_the_measurements():
    root = Path(__file__).parents[1]
    table = pd.read_csv(root / "benchmarks" / "results.csv")
    assert as_brief(table) in (root / "README.md").read_text(encoding="utf-8")
    assert as_markdown(table) == (root / "benchmarks" / "results.md").read_text(encoding="utf-8")


def test_coverage_is_simulated_in_blocks_and_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "BLOCK", 5)
    monkeypatch.setattr(coverage, "LARGE", 20_000)
    cells = [(40, 0.5, 0.9, 1.0)]
    first = coverage.run(tmp_path / "coverage.csv", draws=5, cells=cells)
    assert set(first["block"]) == {0} and (first["covered"] + first["too_low"] + first["too_high"] == 5).all()
    both = coverage.run(tmp_path / "coverage.csv", draws=10, cells=cells)
    pd.testing.assert_frame_equal(both[both["block"] == 0].reset_index(drop=True), first)
    table = coverage.summarise(both).set_index("metric")
    assert (table["draws"] == 10).all() and {"auc", "difference of brier", "net benefit, gain"} <= set(table.index)
    text = coverage.as_markdown(table.reset_index())
    assert "| balanced accuracy |" in text and "## Cells outside of the target" in text


def test_the_true_values_of_the_coverage_are_those_of_two_normal_distributions():
    truth = coverage.true_values(0.5, 0.9, 1.0)
    assert truth["auc"] == pytest.approx(0.9, abs=0.003)
    # the threshold 0.5 lies in the middle of two distributions sqrt(2) Phi^-1(0.9) apart
    assert truth["sensitivity"] == pytest.approx(norm.cdf(norm.ppf(0.9) / math.sqrt(2)), abs=0.004)
