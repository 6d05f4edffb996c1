"""Predictions of any model: which tables are accepted, and which rows are refused with a remedy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.calibration import calibrate
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import (
    choose_positive,
    class_columns,
    has_label_and_prediction,
    read_predictions,
)
from covid_fastai.evaluation.selective import risk_coverage
from covid_fastai.evaluation.subgroups import evaluate_subgroups
from covid_fastai.evaluation.thresholds import choose_threshold


def test_labels_and_probabilities_are_enough():
    table = read_predictions(pd.DataFrame({"label": ["b", "a"], "p_a": [0.3, 0.9], "p_b": [0.7, 0.1]}))
    assert class_columns(table) == ["a", "b"]
    assert table["prediction"].tolist() == ["b", "a"]
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["patient"].is_unique and table["patient_known"].tolist() == [False, False]


KNOWN = pd.DataFrame({"label": ["b", "a", "a"], "p_a": 0.5, "p_b": 0.5, "patient": ["007", "x", ""]})


@pytest.mark.parametrize("known", [[True, True, False], ["True", "true", "False"], np.array([1, 1, 0], dtype=bool)])
def test_a_row_may_have_an_unknown_patient(known, tmp_path):
    expected = KNOWN.assign(patient_known=known)
    expected.to_csv(tmp_path / "p.csv", index=False)
    for source in (expected, tmp_path / "p.csv"):
        table = read_predictions(source)
        assert table["patient_known"].tolist() == [True, True, False] and table["patient_known"].dtype == bool
        assert table["patient"].tolist() == ["007", "x", "row 3"]
        assert not evaluate(table).patients_known and evaluate(table[:2]).patients_known
        pd.testing.assert_frame_equal(read_predictions(table), table)
    assert read_predictions(KNOWN[:2])["patient_known"].all()
    assert not read_predictions(KNOWN.assign(patient_known=True).drop(columns="patient"))["patient_known"].any()


@pytest.mark.parametrize("invalid", ["maybe", "", None, 2])
def test_an_invalid_flag_is_reported(invalid):
    with pytest.raises(DataError, match="row 2: patient_known is") as caught:
        read_predictions(KNOWN.assign(patient_known=[True, invalid, False]))
    assert caught.value.details[0]["remedy"] == "Give True or False."


def test_a_row_without_a_label_or_a_prediction_is_not_evaluated():
    table = pd.DataFrame({"label": ["b", "", "a"], "status": ["ok", "ok", "failed"], "p_a": 0.5, "p_b": 0.5})
    assert has_label_and_prediction(read_predictions(table)).tolist() == [True, False, False]


def test_the_positive_class_is_the_given_one_or_the_last_of_two():
    assert choose_positive(["a", "b"], None) == "b" and choose_positive(["a", "b"], "a") == "a"
    assert choose_positive(["a", "b", "c"], None) is None and choose_positive(["a", "b", "c"], "b") is None
    assert choose_positive(["a", "b", "c"], "b", one_vs_rest=True) == "b"
    assert choose_positive(["a", "b", "c"], None, one_vs_rest=True) is None
    for classes in (["a", "b"], ["a", "b", "c"]):
        with pytest.raises(UsageError, match="positive='d' is not a class"):
            choose_positive(classes, "d")


def test_a_csv_reads_as_the_table_that_it_was_written_from(predictions, tmp_path):
    predictions["patient"] = [f"00{number}" for number in range(len(predictions))]  # text that looks like a number
    path = tmp_path / "p.csv"
    predictions.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_predictions(path), read_predictions(predictions))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"p_Normal": 1.4}, "between 0 and 1"),
        ({"p_Normal": 0.2, "p_COVID-19": 0.2}, "sum to 0.4"),
        ({"p_Normal": np.nan}, "missing or not a number"),
        ({"label": "covid"}, "has no column p_<class>"),
        ({"status": "fine"}, "unknown"),
        ({"patient": ""}, "patient is empty"),
    ],
)
def test_each_faulty_row_is_listed(predictions, change, reason):
    predictions["status"] = "ok"
    for name, value in change.items():
        predictions.loc[[2, 4], name] = value
    with pytest.raises(DataError, match="2 faulty rows") as caught:
        read_predictions(predictions)
    assert [row["row"] for row in caught.value.details] == [3, 5]
    assert all(reason in row["reason"] and row["remedy"] for row in caught.value.details)


def test_a_failed_row_needs_no_probability_and_has_no_predicted_class(predictions):
    predictions["status"] = "ok"
    predictions.loc[0, ["status", "p_Normal"]] = ["failed", np.nan]
    table = read_predictions(predictions)
    assert table.loc[0, "prediction"] == "" and np.isnan(table.loc[0, "p_COVID-19"])


@pytest.mark.parametrize("columns", [["p_Normal", "p_COVID-19"], ["label", "p_Normal"], []])
def test_missing_columns_raise(predictions, columns):
    with pytest.raises(DataError, match="has no"):
        read_predictions(predictions[columns])


def test_an_empty_table_and_a_missing_file_raise(predictions, tmp_path):
    with pytest.raises(DataError, match="no row"):
        read_predictions(predictions.head(0))
    with pytest.raises(DataError, match="gone.csv"):
        read_predictions(tmp_path / "gone.csv")


SEVERAL = pd.DataFrame({"label": ["a", "b"] * 3, "p_a": [0.9, 0.2, 0.8, 0.4, 0.6, 0.7]})
SEVERAL = SEVERAL.assign(p_b=1 - SEVERAL["p_a"], split=["train", "train", "valid", "valid", "test", "test"])


@pytest.mark.parametrize("evaluation", [evaluate, calibrate, choose_threshold, evaluate_subgroups, risk_coverage])
def test_rows_of_several_splits_are_not_evaluated_together(evaluation):
    with pytest.raises(DataError, match=r"several splits: train 2, valid 2, test 2\.") as caught:
        evaluation(SEVERAL)
    assert "split='test'" in caught.value.hint


def test_a_split_is_chosen_by_name():
    assert evaluate(SEVERAL, split="valid").n_images == 2
    unlabelled = SEVERAL.assign(label=SEVERAL["label"].where(SEVERAL["split"] == "test", ""))
    assert evaluate(unlabelled).n_images == 2, "rows without a label may have any split"
    with pytest.raises(UsageError, match="no row of the split 'val'") as caught:
        evaluate(SEVERAL, split="val")
    assert "train 2, valid 2, test 2" in caught.value.hint
    assert len(read_predictions(SEVERAL, every_split=True)) == 6


@pytest.mark.parametrize("name", ["patient_id", "Patient ID", "PatientID", "subject_id", "Subject-ID"])
def test_a_patient_column_is_known_by_its_usual_names(name):
    table = SEVERAL.drop(columns="split").assign(**{name: list("xxyyzz"), "Image": list("123456")})
    table = read_predictions(table)
    assert table["patient"].tolist() == list("xxyyzz") and table["path"].tolist() == list("123456")
    assert name in table and evaluate(table).row("accuracy")["n"] == 3


def test_a_standard_column_name_precedes_another_usual_name():
    table = SEVERAL.drop(columns="split").assign(patient=list("xxyyzz"), subject=list("aabbcc"))
    table = read_predictions(table)
    assert table["patient"].tolist() == list("xxyyzz") and table["subject"].tolist() == list("aabbcc")
