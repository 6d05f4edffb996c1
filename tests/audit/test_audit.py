"""The audit of predictions and of a run: pairing, probes, negative controls, and reading it back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.spatial import Delaunay
from sklearn.metrics import roc_auc_score

from covid_fastai.audit import lung_region
from covid_fastai.audit.audit import (
    COVERED,
    MARKS,
    _count_boxes,
    audit_predictions,
    audit_run,
    negative_control_rows,
    read_audit,
)
from covid_fastai.audit.fixed_spots import format_boxes
from covid_fastai.audit.lung_region import thorax_region
from covid_fastai.audit.probes import CHANGES, write_altered
from covid_fastai.audit.runs import read_run
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.errors import DataError
from covid_fastai.run_folder import RunFolder
from covid_fastai.saliency.region_fraction import BOX_NAME, LungRegion


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(run_folder, tmp_path / "run")


def simulate_predictions(cohort: pd.DataFrame, *, skill: float, seed: int = 0) -> pd.DataFrame:
    """Return predictions of the held-out rows; the classes differ by `skill` standard deviations of the log odds."""
    rows = cohort[cohort["split"] == "valid"].reset_index(drop=True)
    noise = np.random.default_rng(seed).normal(size=len(rows))
    p = 1 / (1 + np.exp(-(noise + skill * (rows["label"] == "COVID-19"))))
    return rows[["path", "label", "patient", "split", "source", "view"]].assign(**{"p_Normal": 1 - p, "p_COVID-19": p})


@pytest.mark.slow
def test_network_and_baselines_are_compared_on_the_same_patients(phantom_cohort):
    predictions = simulate_predictions(phantom_cohort, skill=1.0)
    audit = audit_predictions(predictions, phantom_cohort)
    baseline = audit.shortcuts.predictions["thumbnail"]
    paired = predictions.merge(baseline, on="path", suffixes=("", "_b"))
    units = paired.groupby(["patient", "label"])[["p_COVID-19", "p_COVID-19_b"]].mean().reset_index()
    truth = units["label"] == "COVID-19"
    expected = roc_auc_score(truth, units["p_COVID-19"]) - roc_auc_score(truth, units["p_COVID-19_b"])
    row = audit.versus.set_index("baseline").loc["thumbnail"]
    assert row["difference"] == pytest.approx(expected) and row["n"] == len(units)
    assert row["low"] <= expected <= row["high"]
    assert audit.network["value"] == pytest.approx(roc_auc_score(truth, units["p_COVID-19"]))
    assert "network minus baseline" in audit.summary() and "<table" in audit._repr_html_()


@pytest.mark.slow
def test_predictions_of_another_system_are_audited_without_a_cohort(phantom_cohort, tmp_path):
    simulate_predictions(phantom_cohort.assign(split="valid"), skill=2.0).to_csv(
        tmp_path / "predictions.csv", index=False
    )
    audit = audit_predictions(tmp_path / "predictions.csv")
    assert audit.verdict.level in ("not shown", "failed")
    assert audit.network["n"] == audit.shortcuts.row("thumbnail")["n"]


@pytest.mark.slow
def test_a_run_is_audited_by_default_and_its_audit_can_be_read(run_folder, run):
    audit = read_audit(run_folder)
    assert RunFolder(run_folder).audit.is_file() and RunFolder(run_folder).probes.is_file()
    changes = {"lungs removed", "noise for lungs", "lungs only"}
    assert set(audit.altered["change"]) == {*CHANGES, COVERED, MARKS} == {*changes, COVERED, MARKS}
    probes = pd.read_csv(RunFolder(run_folder).probes)
    boxes = probes[probes["probe"] == "lungs only"]["lung_region"].str.startswith(BOX_NAME).sum()
    row = audit.altered.set_index("change").loc["lungs only"]
    assert row["boxes"] == boxes and row["images"] == (probes["probe"] == "lungs only").sum()
    covered = probes[probes["probe"] == COVERED]
    assert covered["spots"].unique().tolist() == [format_boxes(audit.shortcuts.spots)]  # those of the audit itself
    assert "where the most telling cells are covered" in audit.verdict.conditions[5].text
    assert "where the sharpest edges in the lungs are covered" in audit.verdict.conditions[6].text
    again = audit_run(run)
    assert again.verdict == audit.verdict
    pd.testing.assert_frame_equal(again.versus, audit.versus, check_dtype=False)


@pytest.mark.slow
def test_retrained_networks_and_external_validations_enter_the_audit(run):
    predictions = read_run(run).metrics.predictions
    for change in ("lungs-removed", "permuted-labels", "frozen-backbone"):
        (run / "retrained" / change).mkdir(parents=True)
        table = predictions.copy()
        if change == "permuted-labels":
            table["label"] = table["label"].map({"Normal": "COVID-19", "COVID-19": "Normal"})
        table.to_csv(run / "retrained" / change / "predictions.csv", index=False)
    (run / "external").mkdir()
    result = {"source": "there", "value": 0.9, "low": 0.8, "high": 0.95, "n": 50, "thumbnail": 0.6}
    result |= {"difference": 0.3, "difference_low": 0.2, "difference_high": 0.4}
    (run / "external" / "other.json").write_text(json.dumps({"same_source": [result], "not_stated": []}))
    audit = audit_run(run)
    rows = audit.altered.set_index(["change", "when"])
    removed = rows.loc[("lungs removed", "in training and evaluation")]
    assert removed["difference"] == 0 and np.isnan(removed["boxes"])  # the table does not name what was removed
    assert rows.loc[("frozen backbone", "frozen, linear head only"), "images"] == 0
    assert np.isnan(rows.loc[("permuted labels", "in training and evaluation"), "difference"])
    assert ("frozen backbone", "frozen, linear head only") in rows.index
    outcomes = {condition.name: condition.outcome for condition in audit.verdict.conditions}
    assert outcomes["Generalises to another hospital, within one source"] == "met"
    assert outcomes["Close to chance, and worse, when trained without the lungs"] in ("failed", "inconclusive")


def test_images_with_a_box_can_give_no_more_than_the_pairs_that_they_are_in():
    table = pd.DataFrame({"label": ["ill"] * 4 + ["well"] * 4, "patient": list("abcdefgh")})
    regions = [f"{BOX_NAME}, none found"] + ["lungs"] * 7
    counts = _count_boxes("lungs removed", table.assign(lung_region=regions))
    # the one with a box is in 4 of 16 pairs, which are in order, as are 6 of the other 12
    assert counts == {"images": 8, "boxes": 1, "boxes_auc": pytest.approx(10 / 16)}
    assert _count_boxes("lungs removed", table.assign(lung_region="lungs"))["boxes_auc"] == 0.5
    assert _count_boxes("lungs removed", table.assign(lung_region=BOX_NAME))["boxes_auc"] == 1


def test_a_damaged_audit_is_refused(run):
    RunFolder(run).audit.write_text('{"network": 1}')
    with pytest.raises(DataError, match="is damaged"):
        read_audit(run)
    RunFolder(run).audit.unlink()
    assert read_audit(run) is None


def test_negative_controls_are_unused_negatives_from_the_source_of_the_positive_class():
    rows = [("Normal", "train", "children", "PA"), ("COVID-19", "train", "adults", "PA")]
    rows += [
        ("SARS", "excluded", "adults", "PA"),
        ("SARS", "excluded", "adults", "L"),
        ("virus", "excluded", "children", "PA"),
    ]
    rows += [("COVID-19", "excluded", "adults", "PA")]
    cohort = pd.DataFrame(rows, columns=["label", "split", "source", "view"])
    assert negative_control_rows(cohort, positive="COVID-19").index.tolist() == [2]
    shared = cohort.assign(source="everyone")
    assert negative_control_rows(shared, positive="COVID-19").empty


@pytest.mark.slow
def test_negative_controls_are_classified_by_the_mean_over_folds(phantom_cohort):
    probes = pd.DataFrame({"path": ["a", "a", "b", "b", "c"], "status": ["ok"] * 4 + ["unreadable"], "patient": "p"})
    probes["p_COVID-19"] = [0.9, 0.4, 0.2, 0.6, np.nan]
    probes = probes.assign(probe="negative control", label="SARS", **{"p_Normal": 1 - probes["p_COVID-19"]})
    audit = audit_predictions(simulate_predictions(phantom_cohort, skill=1.0), phantom_cohort, probes=probes)
    assert (audit.negative_controls["images"], audit.negative_controls["called"]) == (2, 1)


def test_only_the_region_of_the_lungs_is_altered(tmp_path):
    """The region holds both lungs of the synthetic radiograph, and leaves most of what is outside of them."""
    phantoms = [draw_phantom(np.random.default_rng([9, number]), image_size=256) for number in range(3)]
    for number, phantom in enumerate(phantoms):
        Image.fromarray(phantom.image).save(tmp_path / f"{number}.png")
    rows = pd.DataFrame({"path": [str(tmp_path / f"{number}.png") for number in range(3)]})
    regions = []
    for change in CHANGES:
        copies = write_altered(rows, tmp_path / change, change=change, image_size=256)
        assert copies["original"].tolist() == rows["path"].tolist()
        assert copies["lung_region"].eq("segmented lungs").all()
        for phantom, copy in zip(phantoms, copies["path"], strict=True):
            before, after = phantom.image.astype(int), np.asarray(Image.open(copy), dtype=int)
            if change == "lungs removed":
                region = thorax_region(copies["original"].iloc[len(regions)], 256)[0]
                regions.append(region)
                assert (region & phantom.lungs).sum() > 0.95 * phantom.lungs.sum()
                assert 0.1 < region.mean() < 0.7
            region = regions[[id(other) for other in phantoms].index(id(phantom))]
            inside, outside = (region, ~region) if change != "lungs only" else (~region, region)
            assert (before[outside] == after[outside]).all()
            if change == "noise for lungs":
                assert abs(after[inside].mean() - before[inside].mean()) < 5
                assert abs(np.corrcoef(before[inside], after[inside])[0, 1]) < 0.1
            else:
                assert (after[inside] == 0).all()


def test_where_no_lungs_are_found_the_central_box_is_altered(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8) + 100, (64, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    rows = pd.DataFrame({"path": [str(tmp_path / "a.png"), str(tmp_path / "broken.png")]})
    copies = write_altered(rows, tmp_path / "copies", change="lungs removed", image_size=64)
    assert len(copies) == 1 and copies["lung_region"].iloc[0].startswith(BOX_NAME)
    assert "instead of the lungs" in copies["lung_region"].iloc[0]
    box = np.zeros((64, 64), dtype=bool)
    box[12:52, 12:52] = True
    assert (np.asarray(Image.open(copies["path"].iloc[0])) == np.where(box, 0, ramp)).all()


@pytest.mark.parametrize("image_size", [64, 256, 320])
def test_the_region_is_the_convex_hull_with_a_margin(image_size, tmp_path, monkeypatch):
    """Oracle: scipy's triangulation of the lungs' pixels contains a point of the hull."""
    mask = np.zeros((256, 256), dtype=bool)
    mask[60:180, 60:100] = mask[80:200, 150:190] = True
    monkeypatch.setattr(lung_region, "find_lung_region", lambda path: LungRegion(mask, "segmented lungs"))
    region, name = thorax_region("a.png", image_size)
    assert name == "segmented lungs" and region.shape == (image_size, image_size)
    points = (np.argwhere(np.ones_like(region)) + 0.5) * 256 / image_size - 0.5
    in_hull = (Delaunay(np.argwhere(mask)).find_simplex(points) >= 0).reshape(region.shape)
    assert region[in_hull].all()
    distance = distance_transform_edt(~in_hull) / image_size
    assert region[distance < 0.03].all() and not region[distance > 0.07].any()
