"""Prediction: row order, unreadable files, NaN outputs, test-time augmentation."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from covid_fastai import evaluate, predict
from covid_fastai.data import square_images
from covid_fastai.errors import DataError, ImageError, UsageError


def test_probabilities_equal_those_of_the_learner_in_row_order(covid_learner, covid_cohort):
    table = predict(covid_learner)
    valid = covid_cohort[covid_cohort["split"] == "valid"]
    assert table["path"].tolist() == valid["path"].tolist()
    assert table["patient"].tolist() == valid["patient"].tolist()
    with covid_learner.no_bar(), covid_learner.no_logging():
        expected, _ = covid_learner.get_preds(dl=covid_learner.dls.valid)
    np.testing.assert_allclose(table[["p_Normal", "p_COVID-19"]], expected, atol=1e-6)
    np.testing.assert_allclose(table[["p_Normal", "p_COVID-19"]].sum(axis=1), 1, atol=1e-6)
    assert set(table["status"]) == {"ok"} and set(table["split"]) == {"valid"}


def test_new_files_without_labels(covid_learner, covid_cohort):
    paths = covid_cohort["path"].head(3).tolist()
    table = predict(covid_learner, paths)
    assert table["path"].tolist() == paths and table["label"].tolist() == [""] * 3
    assert table["patient"].tolist() == paths and not table["patient_known"].any()
    assert set(table["prediction"]) <= {"Normal", "COVID-19"}


def test_unknown_patients_are_carried_over(covid_learner, covid_cohort):
    rows = covid_cohort[covid_cohort["split"] == "valid"].head(4)
    assert predict(covid_learner, rows)["patient_known"].tolist() == [True] * 4
    known = [True, False, True, False]
    table = predict(covid_learner, rows.assign(patient_known=known))
    assert table["patient_known"].tolist() == known and table["patient"].tolist() == rows["patient"].tolist()
    assert not evaluate(table).patients_known
    bare = rows.drop(columns="patient_known").assign(patient=["a", "", None, "b"])
    table = predict(covid_learner, bare)
    assert table["patient_known"].tolist() == [True, False, False, True] and table["patient_known"].dtype == bool
    assert table["patient"].tolist() == ["a", *rows["path"][1:3], "b"] and type(table) is pd.DataFrame


def test_an_unreadable_image_keeps_its_row(covid_learner, covid_cohort, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"<html>not found</html>")
    good = covid_cohort["path"].head(2).tolist()
    table = predict(covid_learner, [good[0], broken, good[1]])
    assert table["status"].tolist() == ["ok", "unreadable", "ok"]
    assert table.loc[1, "prediction"] == "" and table.loc[1, ["p_Normal", "p_COVID-19"]].isna().all()
    alone = predict(covid_learner, good)
    np.testing.assert_allclose(table.loc[[0, 2], "p_Normal"], alone["p_Normal"], atol=1e-6)


def test_no_class_is_predicted_from_nan(covid_learner, covid_cohort):
    with torch.no_grad():
        bias = covid_learner.model[1][-1].bias
        original = bias.clone()
        bias[0] = torch.nan
        try:
            table = predict(covid_learner, covid_cohort.head(2))
        finally:
            bias.copy_(original)
    assert table["status"].tolist() == ["failed", "failed"]
    assert table["prediction"].tolist() == ["", ""]


def test_test_time_augmentation_changes_the_result_and_is_reproducible(covid_learner):
    plain, first, second = predict(covid_learner), predict(covid_learner, tta=True), predict(covid_learner, tta=True)
    np.testing.assert_array_equal(first["p_Normal"], second["p_Normal"])
    assert not np.allclose(first["p_Normal"], plain["p_Normal"], atol=1e-6)
    np.testing.assert_allclose(first[["p_Normal", "p_COVID-19"]].sum(axis=1), 1, atol=1e-5)


def test_a_missing_split_raises(covid_learner):
    with pytest.raises(UsageError, match="'tset'"):
        predict(covid_learner, split="tset")


def test_a_label_that_is_not_a_class_of_the_model_raises(covid_learner, covid_cohort):
    with pytest.raises(DataError, match="'virus'"):
        predict(covid_learner, covid_cohort.head(2).assign(label="virus"))


def test_an_unreadable_image_does_not_make_the_others_be_opened_again(
    covid_learner, covid_cohort, tmp_path, monkeypatch, caplog
):
    broken, opened = tmp_path / "broken.png", []
    broken.write_bytes(b"<html>not found</html>")

    def opens(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, *size: opened.append(str(path)) or real(path, *size))

    opens(square_images, "region_pixels")
    opens(sys.modules["covid_fastai.evaluation.predict"], "open_image")  # once more, for the reason
    table = predict(covid_learner, [*covid_cohort["path"].head(9), broken])
    assert table["status"].tolist() == ["ok"] * 9 + ["unreadable"] and "broken.png" in caplog.text
    assert sorted(opened) == sorted([*covid_cohort["path"].head(9), str(broken), str(broken)])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.slow
def test_loaders_mark_unreadable_images_also_from_worker_processes(num_workers, covid_learner, covid_cohort, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"<html>not found</html>")
    paths = [*covid_cohort["path"].head(5), str(broken), *covid_cohort["path"].tail(3)]
    rows = pd.DataFrame({"path": paths})
    loader = covid_learner.dls.test_dl(rows, with_labels=False, num_workers=num_workers, bs=2)
    with pytest.raises(ImageError, match="broken.png"):
        list(loader)
    marks = loader.mark_unreadable()
    assert sum(len(batch[0]) for batch in loader) == 9
    assert marks.tolist() == [False] * 5 + [True] + [False] * 3
