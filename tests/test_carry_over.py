"""The protocol for carrying over: clusters, what is held out, and results that are written once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import carry_over
from benchmarks.carry_over import Training, add_row, cluster_patients, hold_out, is_done, limit, summarise

TRAINING = Training("clusters", "1", "lungs", "strong", 128, 0, 0)


@pytest.fixture
def cohort():
    """Twenty patients with two images each; the first four are in the pretraining data."""
    patients = np.repeat([f"p{number}" for number in range(20)], 2)
    rows = pd.DataFrame({"path": [f"{number}.png" for number in range(40)], "patient": patients, "group": patients})
    rows["label"] = np.where(np.arange(40) % 4 < 2, "Normal", "Pneumonia")
    rows["cluster"] = np.where(np.arange(40) < 20, 0, 1)
    rows["in_pretraining"] = rows["group"].isin(["p0", "p1", "p10", "p11"])
    return rows.assign(split=["test"] * 2 + ["train"] * 38)


def test_clusters_are_of_patients_and_numbered_by_size():
    rng = np.random.default_rng(0)
    group = pd.Series(np.repeat(np.arange(100), 2).astype(str))
    centre = np.repeat(np.where(np.arange(100) < 70, 0.0, 9.0), 2)[:, None]
    traits = pd.DataFrame(centre + rng.normal(0, 0.1, (200, 3)))
    cluster = cluster_patients(traits, group)
    assert cluster.groupby(group).nunique().max() == 1
    sizes = cluster.value_counts()
    assert sorted(sizes, reverse=True) == sizes.sort_index().tolist()
    assert not set(cluster[:140]) & set(cluster[140:])  # no cluster has patients of both kinds


def test_a_whole_cluster_is_held_out_and_seen_patients_are_not_judged(cohort):
    split = hold_out(cohort, TRAINING)
    assert not (split.loc[split["cluster"] == 1, "split"] == "train").any()
    judged = split[split["split"] == "valid"]
    assert len(judged) == 16 and not judged["in_pretraining"].any() and set(judged["cluster"]) == {1}
    assert (split["split"][:2] == "test").all() and (cohort["split"][2:] == "train").all()


def test_patients_framed_as_the_other_class_are_held_out(cohort):
    cohort["cluster"] = np.where(np.arange(40) < 32, 0, 1)
    cohort.loc[:31, "label"] = np.where(np.arange(32) < 24, "Pneumonia", "Normal")  # three quarters
    split = hold_out(cohort, Training("crossed", "framed as the other class", "frame", "strong", 128, 0, 0))
    judged = split[split["split"] == "valid"]
    assert judged.index.tolist() == list(range(24, 32)) and (judged["label"] == "Normal").all()
    assert (split.loc[32:, "split"] == "train").all()  # half of each class: no usual one


def test_a_limit_leaves_whole_patients_and_the_judged_images(cohort):
    split = hold_out(cohort, TRAINING)
    limited = limit(split, 7)
    train = limited[limited["split"] == "train"]
    assert len(train) == 6 and (train["patient"].value_counts() == 2).all()
    assert limited.loc[split["split"] == "valid", "split"].eq("valid").all() and limit(split, 0) is split


def test_a_finished_row_is_not_computed_again(tmp_path, cohort, monkeypatch, capsys):
    results = tmp_path / "results.csv"
    row = {**vars(TRAINING), "part": "valid", "accuracy_image": 0.9, "minutes": 1.234, "cpu_minutes": 1.0}
    assert not is_done(results, TRAINING, "valid")
    add_row(results, row)
    assert is_done(results, TRAINING, "valid") and not is_done(results, TRAINING, "test")
    other = Training("clusters", "1", "lungs", "strong", 128, 1, 0)
    assert not is_done(results, other, "valid")
    monkeypatch.setattr(carry_over, "hold_out", None)  # not reached
    carry_over.run(TRAINING, cohort, parts=["valid"], out=tmp_path, results=results)
    assert "done before" in capsys.readouterr().out
    add_row(results, row | {"seed": 1, "accuracy_image": 0.8})
    (mean,) = summarise(pd.read_csv(results)).to_dict("records")
    assert mean["accuracy_image"] == pytest.approx(0.85) and mean["seeds"] == 2
    assert (mean["lowest"], mean["highest"]) == (0.8, 0.9)
    add_row(results, row | {"held_out": "another cluster"})
    assert summarise(pd.read_csv(results))["seeds"].tolist() == [2, 1], "what is held out is not mixed"
