"""The server under load for some seconds; `python -m benchmarks.soak` runs for minutes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra web is not installed")

from benchmarks.hostile import ATTACKS
from benchmarks.soak import plot_soak, soak_batch, soak_page
from covid_fastai.data.phantom import draw_phantom
from tests.app.server.test_app import png


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="system: reads /proc, and needs several loopback addresses")
@pytest.mark.nightly
def test_honest_clients_beside_hostile_ones(small_model, tmp_path):
    phantoms = [np.asarray(draw_phantom(np.random.default_rng(seed), image_size=128).image) for seed in range(2)]
    result = soak_page(small_model, [*map(png, phantoms), b"<!doctype html>", bytes(1_000_000)], seconds=24)
    summary = result.summary()
    assert result.missed() == [], (summary, result.wrong[:3])
    assert summary["answers"] > 50 and set(result.statuses) == {200, 422}, summary
    assert set(result.attacks) == set(result.ready) == set(ATTACKS) and summary["slowest_health_s"] < 1, summary
    result.batch = soak_batch(small_model, [png(phantoms[0]), b"<!doctype html>"], images=600)
    assert max(size for _, size in result.batch) > 50e6 and "batch_growth_mb" in result.summary()
    plot_soak(result, tmp_path / "soak.png")
    assert Image.open(tmp_path / "soak.png").size[0] > 1000
