"""The page under load, for some seconds; `python -m benchmarks.soak` goes on for minutes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra web is not installed")

from benchmarks.soak import plot_soak, soak_batch, soak_page
from covid_fastai.data.phantom import draw_phantom
from tests.app.server.test_app import png


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="system: memory is read from /proc")
def test_many_clients_together_with_slow_ones(small_model, tmp_path):
    drawn = [np.asarray(draw_phantom(np.random.default_rng(seed), image_size=128).image) for seed in range(2)]
    found = soak_page(small_model, [*map(png, drawn), b"<!doctype html>", bytes(1_000_000)], seconds=12)
    summary = found.summary()
    assert found.wrong == 0 and found.left == 0, summary
    assert summary["answers"] > 50 and {200, 422} <= set(found.statuses) <= {200, 422, 429, 503}, summary
    assert summary["slowest_health_s"] < 1 and summary["growth_mb"] < 50, summary
    found.batch = soak_batch(small_model, [png(drawn[0]), b"<!doctype html>"], images=600)
    assert max(size for _, size in found.batch) > 50e6 and "batch_growth_mb" in found.summary()
    plot_soak(found, tmp_path / "soak.png")
    assert Image.open(tmp_path / "soak.png").size[0] > 1000
