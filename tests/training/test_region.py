"""Runs whose model sees crops to the lungs: the count of whole images, the probes, and training against prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.torch_core import no_random
from PIL import Image

from covid_fastai import TrainConfig, load_model, predict, read_run, save_model, train_classifier, validate
from covid_fastai.app.overlays import write_explained
from covid_fastai.audit import probes
from covid_fastai.data.cached_regions import count_whole, name_whole, region_pixels
from covid_fastai.data.dataloaders import build_dataloaders
from covid_fastai.data.images import open_square
from covid_fastai.data.phantom import draw_phantom
from covid_fastai.data.splits import split_by_patient
from covid_fastai.errors import UsageError
from covid_fastai.model.learner import build_learner
from covid_fastai.model.predictor import Predictor
from covid_fastai.reporting.caveats import run_caveats
from covid_fastai.run_folder import CROPPED, RunFolder
from covid_fastai.saliency.methods import class_activation_map
from covid_fastai.training.run_context import RunPlan, _describe_run, write_crops
from covid_fastai.training.run_start import check_crops

QUICK = {"weights": None, "image_size": 64, "batch_size": 16, "frozen_epochs": 0, "unfrozen_epochs": 1}


def test_the_run_counts_images_that_are_seen_whole(phantom_cohort, tmp_path):
    cohort = split_by_patient(phantom_cohort, seed=0)
    plan = RunPlan(None, TrainConfig(region="lungs", **QUICK), RunFolder(tmp_path), resuming=False)
    write_crops(cohort, plan)
    crops = pd.read_csv(tmp_path / "crops.csv")
    used = cohort[cohort["split"].isin(["train", "valid"])]
    assert crops["path"].tolist() == used["path"].tolist() and crops["label"].tolist() == used["label"].tolist()
    whole = crops["region"] == "frame"
    assert 0 < whole.sum() < len(crops)  # the segmentation has never seen a synthetic radiograph
    assert crops.loc[whole, "reason"].notna().all() and (crops.loc[whole, "right"] == 1).all()
    (event,) = plan.folder.read_record()
    assert event["event"] == CROPPED and (event["images"], event["whole_images"]) == (len(crops), whole.sum())
    normal = crops["label"] == "Normal"
    assert event["by_class"]["Normal"] == [(whole & normal).sum(), normal.sum()]


def test_altered_copies_are_not_cropped_again(covid_cohort, tmp_path, monkeypatch):
    with no_random(0):
        dls = build_dataloaders(covid_cohort, image_size=64, region="lungs", num_workers=0, device="cpu", path=tmp_path)
        learn = build_learner(dls, weights=None, path=tmp_path)
    seen, predict = [], probes.predict

    def record(learn, rows, **options):
        seen.append(learn.dls.valid_ds.tls[0].tfms.fs[-1].region)
        return predict(learn, rows, **options)

    monkeypatch.setattr(probes, "predict", record)
    monkeypatch.setattr(probes, "find_cohort_spots", lambda cohort, seed: ((0, 3, 0, 3),))
    probes.predict_probes(learn, covid_cohort.groupby("split").head(6), positive="COVID-19")
    copies = len(probes.CHANGES) + 2  # the last ones with covered spots and edges
    assert seen[:copies] == ["frame"] * copies
    assert dls.valid_ds.tls[0].tfms.fs[-1].region == "lungs"


@pytest.mark.slow
def test_a_run_trains_predicts_and_explains_crops(phantom_root, tmp_path):
    learn = train_classifier(phantom_root, out=tmp_path / "run", region="lungs", quiet=True, num_workers=0, **QUICK)
    run = read_run(learn.path)
    assert any("lungs were not found" in caveat.title for caveat in run_caveats(run))
    predictor = Predictor(run.path, threads=1)
    table, held_out = predictor.predict(run.predictions["path"].tolist()), run.predictions
    for name in predictor.classes:
        np.testing.assert_allclose(table[f"p_{name}"], held_out[f"p_{name}"], atol=1e-5)
    explained = write_explained(predictor, held_out["path"].head(3).tolist(), tmp_path / "overlays")
    assert explained["overlay"].ne("").all() and "cropped to the lungs" in (run.path / "report.html").read_text()
    result = validate(run, write_other(tmp_path / "other"), n_resamples=100)
    assert result.whole_images["COVID-19"] == (6, 6) and result.whole_images["Normal"][0] < 6
    assert any("whole images where the lungs were not found: 6 of 6 of COVID-19, " in note for note in result.notes())
    assert result.to_dict()["whole_images"]["COVID-19"] == [6, 6]


def write_other(folder) -> Path:
    """Write the images of another hospital, in which those of one class are upside down."""
    folder.mkdir()
    rows = []
    for number in range(12):
        label = ("COVID-19", "Normal")[number % 2]
        image = Image.fromarray(draw_phantom(np.random.default_rng([5, number]), image_size=256).image)
        image = image.transpose(Image.Transpose.ROTATE_180) if label == "COVID-19" else image
        image.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": label, "patient": f"q{number}", "source": "elsewhere"})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def test_images_seen_whole_are_counted_by_class_without_those_that_cannot_be_read():
    crops = pd.DataFrame({"region": ["lungs", "frame", "frame", "unreadable"]})
    counts = count_whole(crops, ["ill", "ill", "well", "well"])
    assert counts == {"ill": (1, 2), "well": (1, 1)} and name_whole(counts) == "1 of 2 of ill, 1 of 1 of well"


def test_a_covered_copy_has_the_crop_of_the_image(tmp_path):
    """If the lungs were searched for again, a copy would differ from its image by more than what is covered."""
    image = draw_phantom(np.random.default_rng([9, 1]), image_size=512).image
    Image.fromarray(image).save(tmp_path / "scan.png")
    pixels, crop = region_pixels(tmp_path / "scan.png", 64, "lungs")
    assert not crop.is_whole and crop.left > 1 / 32
    rows = pd.DataFrame({"path": [str(tmp_path / "scan.png")]})
    outside, inside = (0, 1, 0, 1), (14, 18, 14, 18)  # rows and columns of 32 cells: a corner, and the middle
    options = {"image_size": 64, "region": "lungs"}
    copies = [
        open_square(probes.write_covered(rows, tmp_path / name, boxes=[box], **options)["path"].iloc[0], 64)
        for name, box in {"outside": outside, "inside": inside}.items()
    ]
    assert np.array_equal(np.asarray(copies[0]), pixels)
    changed = np.flatnonzero((np.asarray(copies[1]) != pixels).any(axis=0)) / 64 * (crop.right - crop.left) + crop.left
    assert len(changed) and changed.min() > 0.4 and changed.max() < 0.6


def test_a_run_of_another_segmentation_is_not_continued(tmp_path, monkeypatch):
    plan = RunPlan(None, TrainConfig(region="lungs", **QUICK), RunFolder(tmp_path), resuming=False)
    _describe_run(plan)
    saved = plan.folder.read_options()
    check_crops(saved, plan.folder)
    monkeypatch.setattr("covid_fastai.training.run_start.region_version", lambda region: "lungs-0-ff")
    with pytest.raises(UsageError, match=r"crops of the lung segmentation lungs-\d+-\w+, and this .* has lungs-0-ff"):
        check_crops(saved, plan.folder)
    _describe_run(RunPlan(None, TrainConfig(**QUICK), RunFolder(tmp_path), resuming=False))
    check_crops(plan.folder.read_options(), plan.folder)


def test_a_loaded_model_sees_the_region_that_it_was_trained_on(covid_cohort, tmp_path):
    options = {"image_size": 32, "num_workers": 0, "device": "cpu", "path": tmp_path}
    with no_random(0):
        made = build_learner(build_dataloaders(covid_cohort, region="lungs", **options), weights=None, path=tmp_path)
    learn = load_model(save_model(made, tmp_path / "model", onnx=False), device="cpu")
    assert predict(learn, covid_cohort.head(2))["status"].tolist() == ["ok"] * 2
    learn.dls = build_dataloaders(covid_cohort, **options)
    calls = [lambda: predict(learn), lambda: save_model(learn, tmp_path / "other", onnx=False)]
    calls.append(lambda: class_activation_map(learn, covid_cohort.head(1)))
    for call in calls:
        with pytest.raises(UsageError, match="trained with region='lungs', and its loaders have 'frame'"):
            call()
    learn.facts.history = pd.DataFrame({"epoch": [1]})  # as after further training
    assert len(predict(learn, covid_cohort.head(2))) == 2
