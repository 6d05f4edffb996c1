"""Runs whose images were moved after the training."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covid_fastai import read_run
from covid_fastai.audit.audit import audit_run
from covid_fastai.data.cohort import save_cohort
from covid_fastai.errors import DataError
from covid_fastai.evaluation.moved_images import move_images
from covid_fastai.reporting.report import render_report


@pytest.fixture
def moved(run_folder, tmp_path):
    """A run and the new place of its images, which are no longer where the run read them."""
    root = read_run(run_folder).cohort.facts.root
    shutil.copytree(root, tmp_path / "old/images")
    shutil.copytree(run_folder, tmp_path / "run")
    run = move_images(tmp_path / "run", tmp_path / "old/images")
    (tmp_path / "old/images").rename(tmp_path / "new place")
    return run.path, tmp_path / "new place"


def test_a_run_without_its_images_says_how_to_give_their_new_place(moved):
    run, _ = moved
    n = int((read_run(run).cohort["split"] != "excluded").sum())
    with pytest.raises(DataError, match=f"{n} of {n} images of the run .* are missing") as caught:
        audit_run(run)
    assert "old/images" in caught.value.message and f"covid-fastai audit {run} --data FOLDER" in caught.value.hint
    assert f"audit_run({str(run)!r}, data=FOLDER)" in caught.value.hint


def test_images_outside_of_the_new_folder_are_refused(moved, tmp_path):
    run, place = moved
    cohort = read_run(run).cohort
    elsewhere = tmp_path / "elsewhere.png"
    shutil.copy(next(path for path in place.rglob("*") if path.is_file()), elsewhere)
    used = cohort.index[cohort["split"] != "excluded"][0]
    save_cohort(cohort.assign(path=cohort["path"].where(cohort.index != used, str(elsewhere))), run)
    with pytest.raises(DataError, match=f"1 of .* lie outside of {place}, such as {elsewhere}"):
        move_images(run, place)


@pytest.mark.slow
def test_a_run_is_audited_and_reported_with_the_new_place_of_its_images(moved, run_folder):
    run, place = moved
    before = read_run(run_folder)
    verdict = audit_run(run, data=place).verdict
    after = read_run(run)
    assert all(path.startswith(f"{place}{os.sep}") and os.path.isfile(path) for path in after.cohort["path"])
    assert after.cohort.facts.root == str(place)
    assert [os.path.relpath(path, place) for path in after.cohort["path"]] == [
        os.path.relpath(path, before.cohort.facts.root) for path in before.cohort["path"]
    ]
    columns = before.predictions.columns.drop("path")
    pd.testing.assert_frame_equal(after.predictions[columns], before.predictions[columns])
    assert set(after.predictions["path"]) <= set(after.cohort["path"])
    probes = pd.read_csv(after.folder.probes, dtype=str)
    assert set(probes["path"]) <= set(after.cohort["path"])
    assert audit_run(run).verdict == verdict, "the new paths are in the run"
    assert [event["event"] for event in after.record][-1] == "images moved"
    assert render_report(run).is_file()


@pytest.mark.slow
def test_a_report_without_the_images_is_written_and_says_so(moved, caplog):
    run, place = moved
    assert render_report(run).is_file()
    assert "The report shows no missing images" in caplog.text and "--data FOLDER" in caplog.text
    caplog.clear()
    assert render_report(run, data=place.parent).is_file(), "the folder above is searched"
    assert "missing" not in caplog.text


def test_other_images_of_the_same_names_are_refused(moved):
    run, place = moved
    for number, path in enumerate(path for path in place.rglob("*.*") if path.suffix in (".jpeg", ".png")):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    before = read_run(run).predictions
    with pytest.raises(DataError, match="are not those that .* was trained on"):
        audit_run(run, data=place)
    pd.testing.assert_frame_equal(read_run(run).predictions, before)


def test_a_folder_without_all_images_is_refused(moved, tmp_path):
    run, place = moved
    gone = read_run(run).cohort["path"].iloc[0]
    next(place.rglob(os.path.basename(gone))).unlink()
    with pytest.raises(DataError, match=f"1 of .* are not in .*{os.path.basename(gone)}") as caught:
        move_images(run, place)
    assert "old/images" in caught.value.hint
    with pytest.raises(DataError, match="does not exist"):
        move_images(run, tmp_path / "nowhere")


def test_the_paths_of_folds_and_retrained_networks_are_replaced(moved):
    run, place = moved
    result = read_run(run)
    fold, network = result.folder.fold(0), result.folder.retrained_network("lungs removed")
    for folder in (fold, network):
        folder.path.mkdir(parents=True)
        result.predictions.to_csv(folder.predictions, index=False)
    save_cohort(result.cohort, fold.path)
    move_images(run, place)
    for folder in (fold, network):
        assert pd.read_csv(folder.predictions)["path"].str.startswith(str(place)).all()
    assert pd.read_csv(fold.cohort)["path"].str.startswith(str(place)).all()
