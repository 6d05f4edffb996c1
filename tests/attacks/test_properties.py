"""Properties for any options, tables and intervals (Hypothesis). Those of splits are in tests/data/test_splits.py."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from covid_fastai.config import TrainConfig
from covid_fastai.errors import UsageError
from covid_fastai.evaluation.intervals import wilson
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import read_predictions
from covid_fastai.files import write_csv
from tests.examples import examples

QUICK = examples(40)
ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.lists(st.integers(), max_size=2)
)


@QUICK
@given(name=st.sampled_from(sorted(TrainConfig.model_fields)), value=ANYTHING)
def test_any_option_is_refused_or_survives_a_round_trip(name, value):
    try:
        config = TrainConfig.build(**{name: value})
    except UsageError as error:
        assert name in error.message
        return
    if isinstance(config.task, str):
        again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert config.to_python("data").startswith("train_classifier(") and config.to_command("data")


@QUICK
@given(k=st.integers(0, 500), n=st.integers(1, 500))
def test_wilsons_interval_contains_the_fraction(k, n):
    k = min(k, n)
    low, high = wilson(k / n, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high


@examples(25)
@given(data=st.data(), n=st.integers(2, 40))
def test_metrics_and_intervals_of_any_table(data, n):
    p = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    labels = data.draw(st.lists(st.sampled_from(["Normal", "COVID-19"]), min_size=n, max_size=n))
    patients = data.draw(st.lists(st.integers(0, 15), min_size=n, max_size=n))
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], "label": labels, "status": "ok"})
    table["patient"] = [f"{label}-{patient}" for label, patient in zip(labels, patients, strict=True)]
    table["p_Normal"], table["p_COVID-19"] = 1 - np.array(p), p
    result = evaluate(table, positive="COVID-19", n_resamples=100)
    for row in result.to_dict()["metrics"]:
        value, low, high = row["value"], row["low"], row["high"]
        if not math.isfinite(value):
            assert not math.isfinite(low) and not math.isfinite(high), (
                "a metric that cannot be computed has no interval"
            )
            continue
        assert row["metric"] == "log_loss" or -1e-9 <= value <= 1 + 1e-9, row
        if math.isfinite(low):
            assert -1e-9 <= low - 1e-9 <= value <= high + 1e-9, row


@QUICK
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15).filter(str.strip),
        min_size=1,
        max_size=6,
        unique_by=str.strip,
    )
)
def test_predictions_survive_a_csv(names, tmp_path_factory):
    file = tmp_path_factory.mktemp("csv") / "predictions.csv"
    paths = [f"{name.strip()}.png" for name in names]
    table = pd.DataFrame({"path": paths, "patient": paths, "label": "Normal", "p_Normal": 0.75, "p_COVID-19": 0.25})
    write_csv(file, table)
    read = read_predictions(file)
    assert read["path"].tolist() == paths
    assert np.allclose(read["p_COVID-19"], 0.25)
