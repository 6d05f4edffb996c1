"""Benchmark: what 8-bit integers gain and cost in prediction from files."""

from __future__ import annotations

import numpy as np

from benchmarks.measuring import Measurement, compare, note
from benchmarks.predicting import benchmark_files, saved_model
from benchmarks.stock import SIZE


def measure_int8(*, repeats: int, quick: bool) -> list[Measurement]:
    """Compare prediction in 8-bit integers (`export --quantize int8`) with 32 bits."""
    from covid_fastai.app.quantized import CALIBRATION_IMAGES
    from covid_fastai.data.images import open_square
    from covid_fastai.model.bundle_config import ONNX_FILE
    from covid_fastai.model.predictor import Predictor
    from covid_fastai.model.quantization import quantize_onnx
    from covid_fastai.model.session import ModelSession, check_graph

    files = benchmark_files()[: 24 if quick else 160]
    path = saved_model() / ONNX_FILE
    calibration = files[: 8 if quick else CALIBRATION_IMAGES]
    images = np.stack([np.asarray(open_square(file, SIZE)) for file in calibration])[:, None]
    full, short = Predictor(saved_model()), Predictor(saved_model())
    content = quantize_onnx(path.read_bytes(), images)
    graph = check_graph(content, short.config, path)
    short._session = ModelSession(content, graph, short.config, verified=False)
    gap = (full.predict(files)["p_COVID-19"] - short.predict(files)["p_COVID-19"]).abs()
    remark = f"ResNet-18 with random weights; a probability changes by at most {gap.max():.3f} {note()}".strip()
    ways = (lambda: short.predict(files)), (lambda: full.predict(files))
    return [compare(f"predict {len(files)} files in int8", *ways, peer="fp32", repeats=repeats, remark=remark)]
