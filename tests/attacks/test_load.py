"""The server under load for some seconds; `python -m benchmarks.soak` runs for minutes."""

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
    phantoms = [np.asarray(draw_phantom(np.random.default_rng(seed), image_size=128).image) for seed in range(2)]
    result = soak_page(small_model, [*map(png, phantoms), b"<!doctype html>", bytes(1_000_000)], seconds=12)
    summary = result.summary()
    assert result.wrong == 0 and result.left == 0, summary
    assert summary["answers"] > 50 and {200, 422} <= set(result.statuses) <= {200, 422, 429, 503}, summary
    assert summary["slowest_health_s"] < 1 and summary["growth_mb"] < 50, summary
    result.batch = soak_batch(small_model, [png(phantoms[0]), b"<!doctype html>"], images=600)
    assert max(size for _, size in result.batch) > 50e6 and "batch_growth_mb" in result.summary()
    plot_soak(result, tmp_path / "soak.png")
    assert Image.open(tmp_path / "soak.png").size[0] > 1000
