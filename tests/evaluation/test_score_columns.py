"""Predictions of other systems: one score, other prefixes, and what is said where the meaning is not known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.comparison import compare
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.prediction_table import class_columns, read_predictions

SCORES = [0.9, 0.2, 0.7, 0.4, 0.1]


def read(labels: list, **options) -> pd.DataFrame:
    return read_predictions(pd.DataFrame({"label": labels, "score": SCORES[: len(labels)]}), **options)


@pytest.mark.parametrize(
    ("labels", "options", "classes"),
    [
        (["1", "0", "1"], {}, ["0", "1"]),
        ([1, 0, 1], {}, ["0", "1"]),
        ([1.0, 0.0, 1.0], {}, ["0", "1"]),
        ([True, False, True], {}, ["False", "True"]),
        (["yes", "no", "yes"], {}, ["no", "yes"]),
        (["Positive", "Negative", "Positive"], {}, ["Negative", "Positive"]),
        (["COVID-19", "Normal", "COVID-19"], {}, ["Normal", "COVID-19"]),
        (["Pneumonia", "No Finding", "Pneumonia"], {}, ["No Finding", "Pneumonia"]),
        (["B", "A", "B"], {"positive": "B"}, ["A", "B"]),
        (["1", "0", "1"], {"positive": "Pneumonia"}, ["not Pneumonia", "Pneumonia"]),
        (["TB", "Normal", "TB", "Mass"], {"positive": "TB"}, ["not TB", "TB"]),
        (["0", "1", "0"], {"positive": "0"}, ["1", "0"]),
    ],
)
def test_one_score_is_the_probability_of_the_positive_class(labels, options, classes):
    table = read(labels, **options)
    assert class_columns(table) == classes
    assert table[f"p_{classes[1]}"].tolist() == SCORES[: len(labels)]
    first = table["label"].iloc[0]
    assert first == classes[1] and evaluate(table).positive == classes[1]


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (["A", "B", "A"], {}, DataError, "which label the score is the probability of is not known"),
        (["TB", "Normal", "Mass"], {}, DataError, "the labels are 'TB', 'Normal', 'Mass'"),
        (["A", "B", "A"], {"positive": "C"}, UsageError, "positive='C' is no label"),
        (["2", "1", "2"], {}, DataError, "which label"),
    ],
)
def test_a_score_of_unknown_meaning_is_refused_with_the_labels(labels, options, error, message):
    with pytest.raises(error, match=message) as caught:
        read(labels, **options)
    assert "`positive`" in caught.value.hint or "labels" in caught.value.hint


def test_columns_and_decimal_commas_of_a_file(tmp_path):
    lines = ["Patient ID;truth;label;AI score", "007;1;x;0,9", "007;0;y;0,2", "unknown;1;x;0,75", "unknown;0;x;1"]
    (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-16")
    table = read_predictions(tmp_path / "t.csv", score_column="AI score", label_column="truth")
    assert table["p_1"].tolist() == [0.9, 0.2, 0.75, 1.0] and table["label"].tolist() == ["1", "0", "1", "0"]
    assert table["patient"].tolist() == ["007", "007", "row 3", "row 4"], "unknown is no patient"
    assert table["patient_known"].tolist() == [True, True, False, False]
    assert table["label_given"].tolist() == ["x", "y", "x", "x"]


@pytest.mark.parametrize("prefix", ["prob_", "score_", "probability_", "Prob "])
def test_other_prefixes_are_renamed_with_the_negative_class_first(prefix):
    table = pd.DataFrame({"label": ["COVID", "Normal"], f"{prefix}COVID": [0.9, 0.2], f"{prefix}Normal": [0.1, 0.8]})
    read_table = read_predictions(table)
    assert class_columns(read_table) == ["Normal", "COVID"] and evaluate(table).positive == "COVID"
    assert read_table["p_COVID"].tolist() == [0.9, 0.2]


def test_prefixes_whose_positive_class_is_not_known_need_it():
    table = pd.DataFrame({"label": ["A", "B"], "prob_A": [0.9, 0.2], "prob_B": [0.1, 0.8]})
    with pytest.raises(DataError, match="which of 'A' and 'B' is the positive class is not known"):
        read_predictions(table)
    assert class_columns(read_predictions(table, positive="A")) == ["B", "A"]
    table = table.assign(prob_C=0.0)
    assert class_columns(read_predictions(table)) == ["A", "B", "C"]


def test_one_column_with_a_prefix_names_its_class():
    table = pd.DataFrame({"label": [1, 0], "prob_COVID": [0.9, 0.2]})
    assert class_columns(read_predictions(table)) == ["not COVID", "COVID"]
    with pytest.raises(DataError, match="'prob_normal' is the probability of the negative class"):
        read_predictions(pd.DataFrame({"label": [1, 0], "prob_normal": [0.9, 0.2]}))


def test_several_scores_and_missing_columns_are_named():
    table = pd.DataFrame({"label": [1, 0], "score": [0.9, 0.2], "probability": [0.9, 0.2]})
    with pytest.raises(DataError, match="several columns that may be the score: 'score', 'probability'"):
        read_predictions(table)
    assert class_columns(read_predictions(table, score_column="score")) == ["0", "1"]
    with pytest.raises(DataError, match="no column 'Scores'") as caught:
        read_predictions(table, score_column="Scores")
    assert "Its columns: 'label', 'score', 'probability'" in caught.value.hint


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet", "t.csv.gz"])
def test_a_file_of_one_score_gives_the_auc_of_scikit_learn(tmp_path, name):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 200)
    table = pd.DataFrame({"Image Index": [f"{n}.png" for n in range(200)], "target": truth})
    table["model"] = np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1)
    write = {".xlsx": table.to_excel, ".parquet": table.to_parquet}.get(name[1:], table.to_csv)
    write(tmp_path / name, index=False)
    result = evaluate(tmp_path / name, score_column="model", n_resamples=100)
    assert result.value("auc") == pytest.approx(roc_auc_score(truth, table["model"]), abs=1e-12)
    other = table.assign(model=0.5)
    comparison = compare(tmp_path / name, other, score_column="model", label_column="target", n_resamples=100)
    difference = comparison.table.set_index("metric").loc["auc", "difference"]
    assert difference == pytest.approx(0.5 - result.value("auc"), abs=1e-12)


def test_labels_of_another_table_are_joined(tmp_path):
    (tmp_path / "labels.csv").write_text("id,truth,age\n1,1,40\n2,0,50\n3,1,60\n")
    (tmp_path / "scores.csv").write_text("image_id,score\n1,0.9\n2,0.1\n3,0.3\n")
    options = {"join": tmp_path / "labels.csv", "on": "image_id=id", "label_column": "truth"}
    table = read_predictions(tmp_path / "scores.csv", **options)
    assert table["label"].tolist() == ["1", "0", "1"] and table["path"].tolist() == ["1", "2", "3"]
    assert table["p_1"].tolist() == [0.9, 0.1, 0.3]
    frame = pd.read_csv(tmp_path / "scores.csv")
    assert read_predictions(frame, **options)["p_1"].tolist() == [0.9, 0.1, 0.3]


def test_faulty_rows_of_a_file_are_named_by_their_line_or_left_out(tmp_path, caplog):
    lines = ["label,score", "1,0.9", "", "0,1.5", "1,0.8,x", "0,0.1", "0,"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 5 has 3 values"):
        read_predictions(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("\n".join(lines[:4] + lines[5:]))
    with pytest.raises(
        DataError, match="line 4: a probability is not between 0 and 1; line 6: a probability is missing"
    ):
        read_predictions(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert read_predictions(tmp_path / "t.csv", on_problem="skip")["p_1"].tolist() == [0.9, 0.1]
    assert "1 rows are left out: 1 ragged row" in caplog.text and "2 faulty rows are left out" in caplog.text
