"""The lungs in a cohort: columns that are made only on request, counts by class and source, and the framing."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from covid_fastai.app.cli.main import app
from covid_fastai.data import lungs as lungs_module
from covid_fastai.data.cohort import load_cohort, save_cohort
from covid_fastai.data.lung_plots import lung_facts
from covid_fastai.data.lung_tables import (
    STORED,
    add_lungs,
    compare_framing,
    count_lungs,
    framing_of_lungs,
    sample_lungs,
)
from covid_fastai.data.lungs import measure_lungs
from covid_fastai.data.metadata import read_cohort


@pytest.fixture(scope="module")
def cohort(phantom_root):
    return read_cohort(phantom_root, task="covid", check_lungs=True)


def drawn(values: dict[str, list[float]]) -> pd.DataFrame:
    """Return a table whose lungs have the given left edges by class; all are 0.5 wide and 0.6 high."""
    rows = [
        {"path": f"{name}{number}", "label": name, "source": "one", "split": "train", "lung_quality": "fine",
         "lung_area": 0.2, "lung_left": left, "lung_top": 0.2, "lung_right": left + 0.5, "lung_bottom": 0.8}
        for name, lefts in values.items() for number, left in enumerate(lefts)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_columns_are_those_of_measure_lungs(cohort):
    used = cohort[cohort["split"] != "excluded"]
    assert len(used) < len(cohort) and cohort.loc[cohort["split"] == "excluded", "lung_quality"].eq("").all()
    expected = measure_lungs(used["path"])
    for name in STORED:
        pd.testing.assert_series_equal(used[name].reset_index(drop=True), expected[name], check_dtype=False)


def test_without_the_option_no_image_is_segmented(phantom_root, monkeypatch):
    monkeypatch.setattr(lungs_module, "cached_lungs", lambda path: pytest.fail("an image was segmented"))
    assert not set(STORED) & set(read_cohort(phantom_root, task="covid"))


def test_the_columns_are_saved_and_read_with_their_types(cohort, tmp_path):
    save_cohort(cohort, tmp_path)
    pd.testing.assert_frame_equal(pd.DataFrame(load_cohort(tmp_path)), pd.DataFrame(cohort))
    again = read_cohort(tmp_path / "cohort.csv", task="covid", check_lungs=True, image_root="/")
    assert "lung_quality_given" in again and again["lung_area"].dtype == float


def test_files_that_cannot_be_read_have_a_quality_of_their_own(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    table = pd.DataFrame({"path": [str(tmp_path / "a.png")] * 2, "split": ["train", "excluded"]}, index=[7, 3])
    added = add_lungs(table)
    assert added["lung_quality"].tolist() == ["unreadable", ""] and added["lung_area"].isna().all()


def test_qualities_are_counted_by_class_and_source(cohort):
    counts = count_lungs(cohort)
    used = cohort[cohort["split"] != "excluded"]
    assert counts["images"].sum() == len(used)
    for row in counts.to_dict("records"):
        rows = used[(used["label"] == row["label"]) & (used["source"] == row["source"])]
        assert row["images"] == len(rows)
        for quality, number in rows["lung_quality"].value_counts().items():
            assert row[quality] == number
        fine = rows[rows["lung_quality"].isin(["fine", "cut off"])]
        assert row["area"] == round(100 * fine["lung_area"].mean())


def test_the_framing_is_that_of_the_box():
    framing = framing_of_lungs(drawn({"a": [0.1]}).assign(lung_top=0.3)).iloc[0]
    assert framing.to_dict() == pytest.approx({"area": 20, "width": 50, "height": 50, "x": 35, "y": 55})
    assert framing_of_lungs(drawn({"a": [0.1]}).assign(lung_quality="one lung")).isna().all(axis=None)


def test_a_framing_that_differs_by_class_is_named():
    rng = np.random.default_rng(0)
    lefts = {"Normal": rng.uniform(0.1, 0.3, 40), "COVID-19": rng.uniform(0.2, 0.4, 30)}
    table = drawn({name: list(values) for name, values in lefts.items()})
    text = compare_framing(table, ["Normal", "COVID-19"])
    auc = roc_auc_score(np.repeat([0, 1], [40, 30]), np.concatenate(list(lefts.values())))
    assert "the centre of the box from the left" in text and f"AUC {auc:.2f}" in text
    assert "too few images" in compare_framing(table.iloc[:45], ["Normal", "COVID-19"])


def test_a_cohort_with_lungs_is_not_sampled(cohort, monkeypatch):
    used = cohort[cohort["split"] != "excluded"]
    assert len(sample_lungs(used.drop(columns=STORED), most=3)) == 3 * used["label"].nunique()
    monkeypatch.setattr(lungs_module, "cached_lungs", lambda path: pytest.fail("an image was segmented again"))
    assert len(lung_facts(cohort, most=3)) == len(used)


@pytest.mark.slow
def test_check_shows_lungs_on_request(phantom_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["check", str(phantom_root), "--check-lungs"])
    assert "lungs by class and source" in result.output and "AUC" in result.output.replace("\n", " ")
    shown = json.loads(CliRunner().invoke(app, ["check", str(phantom_root), "--check-lungs", "--json"]).output)
    assert sum(row["images"] for row in shown["lungs"]) > 0 and "0.5 is chance" in shown["framing"]
    assert "lungs" not in json.loads(CliRunner().invoke(app, ["check", str(phantom_root), "--json"]).output)
