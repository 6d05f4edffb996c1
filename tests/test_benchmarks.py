"""The benchmarks: alternating pairs, medians, the table and the plots."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import norm

from benchmarks import adversary, copies, coverage, gpu, gpu_checks
from benchmarks.machine import NEITHER, instructions
from benchmarks.measuring import compare, data_folder, fresh_cache
from benchmarks.recording import as_markdown, write_results
from covid_fastai.data.phantom import draw_phantom

HERE = {"machine": "this one, 2 cores", "instructions": "AMX", "format": "bf16"}


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
    write_results(tmp_path, "a", [row], machine=HERE)
    write_results(tmp_path, "b", [alone], machine=HERE)
    table = write_results(tmp_path, "a", [{**row, "name": "again"}], machine=HERE)
    assert table["name"].tolist() == ["start", "again"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), table, check_dtype=False)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert (
        "| again | bf16 | 1.00 ± 0.00 | peer | 4.00 ± 0.00 | **4.00** (4.00 to 4.00) | 3 | 2 |" in text
        and "0.3 s" in text
    )
    with Image.open(tmp_path / "results.png") as figure:
        assert figure.size[0] > 900
    assert text == as_markdown(table)
    assert not (tmp_path / "growth.png").exists()


def test_each_kind_of_processor_keeps_its_rows_and_has_its_section(tmp_path):
    row = compare("work", lambda: 1.0, lambda: 3.0, peer="peer", repeats=1).to_dict()
    other = {"machine": "an older one", "instructions": NEITHER, "format": "fp32"}
    write_results(tmp_path, "a", [row], machine=HERE)
    write_results(tmp_path, "a", [row], machine=other)
    table = write_results(tmp_path, "a", [row], machine={**HERE, "machine": "a newer one"})
    assert table["machine"].tolist() == ["an older one", "a newer one"]
    first, second = (tmp_path / "results.md").read_text(encoding="utf-8").split("## ")[1:]
    assert first.startswith(f"{NEITHER}\n\nOn an older one.") and "| work | fp32 |" in first
    assert second.startswith("AMX\n\nOn a newer one.") and "| work | bf16 |" in second


@pytest.mark.parametrize(
    ("flags", "limit", "kind"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "", "AMX"),
        ({"amx_bf16": True, "avx512_bf16": True}, "AVX512_CORE_BF16", "AVX512-BF16"),
        ({"amx_bf16": True, "avx512_bf16": True}, "avx512_core_amx", "AMX"),
        ({"amx_bf16": True, "avx512_bf16": True}, "AVX512_CORE", NEITHER),
        ({"amx_bf16": False, "avx512_bf16": True}, "", "AVX512-BF16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "AVX2", NEITHER),
        ({}, "", NEITHER),
    ],
)
def test_the_instructions_are_those_that_onednn_may_use(flags, limit, kind, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: flags, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert instructions() == kind


def test_without_a_gpu_nothing_is_checked(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(quick=False, out=tmp_path) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("No GPU: torch") and not list(tmp_path.iterdir())


def test_a_check_that_fails_does_not_stop_the_others(monkeypatch, capsys, tmp_path):
    def breaks(bench):
        raise ValueError("on this GPU")

    def wrong(bench):
        return {"ok": False, "found": 1}

    def right(bench):
        return {"ok": True, "device": bench.device}

    monkeypatch.setattr(gpu, "CHECKS", [(breaks, ""), (wrong, ""), (right, "two GPUs"), (right, "")])
    monkeypatch.setattr(gpu, "SPEEDS", [])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert gpu.main(quick=True, out=tmp_path) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["ok"] for line in lines] == [False, False, None, True, False]
    assert lines[0]["error"] == "ValueError: on this GPU" and lines[2]["skipped"].startswith("needs two GPUs")
    assert lines[3]["device"] == "cpu" and lines[4]["failed"] == ["breaks", "wrong"]


def test_the_options_of_the_checks_of_a_gpu_are_those_of_the_package(tmp_path):
    """The checks run at night only; an option that was renamed in the package would fail all of them."""
    bench = gpu_checks.Bench("cpu", quick=True, work=tmp_path)
    assert gpu_checks.model_is_on_the_device(bench)["ok"] and gpu_checks.a_model_saves_without_onnx(bench)["ok"]


@pytest.mark.nightly
@pytest.mark.slow
def test_the_checks_of_a_gpu_run_small_on_a_cpu(capsys, tmp_path):
    assert gpu.main(quick=True, out=tmp_path) == 0, capsys.readouterr().out


def test_times_of_several_sizes_are_plotted(tmp_path):
    rows = [compare(f"{n} rows", lambda n=n: n / 1000.0, repeats=1, size=n).to_dict() for n in (10, 100, 1000)]
    table = write_results(tmp_path, "rows", rows, machine=HERE)
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


def test_the_results_show_the_measurements():
    root = Path(__file__).parents[1]
    table = pd.read_csv(root / "benchmarks" / "results.csv")
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


def test_copies_are_counted_by_kind(tmp_path):
    images = []
    for patient in range(4):
        pixels = draw_phantom(np.random.default_rng([9, patient]), image_size=160).image
        Image.fromarray(pixels).save(tmp_path / f"{patient}.png")
        images.append({"path": str(tmp_path / f"{patient}.png"), "patient": f"p{patient}", "altered": patient < 2})
    kinds = {name: copies.KINDS[name] for name in ("mirrored", "cropped by 20% on one side")}
    counts = copies.measure(pd.DataFrame(images), tmp_path, kinds=kinds).set_index("kind")
    assert counts.loc["mirrored", ["copies", "found", "recognised"]].tolist() == [2, 2, 2]
    assert counts.loc["cropped by 20% on one side", ["copies", "found", "recognised"]].tolist() == [2, 2, 0]
    assert counts.loc["images of different patients", ["copies", "found", "recognised"]].tolist() == [1, 0, 0]
    copies.write_counts(counts.reset_index().assign(images="drawings"), tmp_path)
    copies.write_counts(counts.reset_index().assign(images="radiographs"), tmp_path)
    text = (tmp_path / "copies.md").read_text()
    found, missed = "100% (34% to 100%)", "**0%** (0% to 66%)"
    assert f"| cropped by 20% on one side | {found} | {missed} | {found} | {missed} |" in text
    assert "| radiographs | images of different patients | 1 | 0 | 0.00 | 0 |" in text


@pytest.mark.parametrize("kind", adversary.PLANTED)
def test_a_planted_shortcut_changes_the_image_and_nothing_of_its_form(kind):
    about = adversary.PLANTED[kind]
    pixels = draw_phantom(np.random.default_rng([9, 1]), image_size=96).image
    changed = [plant(pixels, np.random.default_rng(3)) for plant in (about.plant, about.other) if plant is not None]
    assert all(image.shape == pixels.shape and image.dtype == np.uint8 for image in changed)
    assert (changed[0] != pixels).any() or about.file != "png" or about.view
    if about.other is not None:
        assert (changed[0] != changed[1]).any()


def test_every_kind_of_shortcut_is_planned_and_reported(tmp_path):
    cells = pd.DataFrame(adversary.plan(4), columns=["seed", "kind", "strength"])
    seeds = cells[cells["kind"].isin(adversary.PLANTED)].groupby("kind")["seed"].nunique()
    assert set(seeds[seeds == 4].index) == set(adversary.KINDS) and set(seeds[seeds == 3].index) == set(
        adversary.INVENTED
    )
    assert not cells.duplicated().any()
    rows = cells.assign(found="frame", strongest="frame", auc=1.0, level="failed", clause="A shortcut")
    page = adversary.as_markdown(rows)
    assert all(f"| {kind} | " in page for kind in adversary.PLANTED) and "invented later" in page
