"""The metrics of a group equal those of evaluate on the group; small groups are counted only."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.metrics import evaluate
from covid_fastai.evaluation.subgroups import evaluate_subgroups, plot_subgroups


@pytest.fixture
def table(make_predictions):
    """Return predictions with sex and age by patient and projection by image; 5 patients are children."""
    table = make_predictions(patients=150, skill=1.5)
    number = table["patient"].str[1:].astype(int)
    table["sex"] = np.where(number % 3 == 0, "F", "M")
    table.loc[number % 10 == 1, "sex"] = ""
    table["age"] = np.where(number < 5, 3 + number, 20 + number % 60)
    table["view"] = np.where(np.arange(len(table)) % 4 == 0, "AP", "PA")
    return table


def row_of(result, by, group, name="COVID-19"):
    rows = result.table
    return rows[(rows["by"] == by) & (rows["group"] == group) & (rows["class"] == name)].iloc[0]


def test_the_metrics_of_a_group_equal_those_of_evaluate_on_the_group(table):
    result = evaluate_subgroups(table)
    groups = [
        ("", "all", table),
        ("sex", "F", table[table["sex"] == "F"]),
        ("view", "AP", table[table["view"] == "AP"]),
    ]
    for by, group, rows in groups:
        alone, row = evaluate(rows.reset_index(drop=True), n_resamples=100), row_of(result, by, group)
        for metric in ("auc", "sensitivity", "specificity"):
            expected = alone.row(metric)
            assert row[metric] == pytest.approx(expected["value"])
            assert (row[f"{metric}_low"], row[f"{metric}_high"]) == pytest.approx((expected["low"], expected["high"]))
        assert row["images"] == len(rows) and row["patients"] == rows["patient"].nunique()
        assert row["positives"] == rows.loc[rows["label"] == "COVID-19", "patient"].nunique()


def test_groups_are_sorted_and_unknown_is_last(table):
    result = evaluate_subgroups(table).table
    assert list(result["by"].unique()) == ["", "view", "sex", "age_band"]
    assert result.loc[result["by"] == "sex", "group"].tolist() == ["F", "M", "unknown"]
    assert result.loc[result["by"] == "age_band", "group"].tolist() == ["0-17", "18-39", "40-59", "60-79"]
    assert result.loc[result["by"] == "sex", "patients"].sum() == 150


def test_small_groups_are_counted_and_not_evaluated(table):
    row = row_of(evaluate_subgroups(table), "age_band", "0-17")
    assert row["patients"] == 5 and row["note"] == "fewer than 10 patients: counted, not evaluated"
    assert row[["auc", "sensitivity", "specificity", "auc_low", "specificity_high"]].isna().all()


def test_twenty_images_of_one_patient_are_a_small_group(table):
    many = pd.concat([table.iloc[:1].assign(path=f"{n}.png", site="A") for n in range(20)] + [table.assign(site="B")])
    row = row_of(evaluate_subgroups(many, by=["site"]), "site", "A")
    assert row["images"] == 20 and row["patients"] == 1 and math.isnan(row["sensitivity"])


def test_a_group_of_one_class_has_sensitivity_or_specificity_only(table):
    table["site"] = np.where(table["label"] == "COVID-19", "A", "B")
    result = evaluate_subgroups(table, by=["site"])
    ill, well = row_of(result, "site", "A"), row_of(result, "site", "B")
    assert math.isfinite(ill["sensitivity"]) and math.isnan(ill["specificity"]) and math.isnan(ill["auc"])
    assert (
        math.isfinite(well["specificity"])
        and math.isnan(well["sensitivity"])
        and well["note"] == "no patient of COVID-19"
    )
    assert ill["note"] == "no patient but COVID-19"


def test_ages_fall_into_their_bands(make_predictions):
    ages = [0, 17.9, 18, 39, 40, 60, 79, 80, 130, "", None, "77", "085Y", -1]
    table = make_predictions(patients=60).drop_duplicates("patient").iloc[: len(ages)].assign(age=ages)
    result = evaluate_subgroups(table, by=["age_band"])
    counts = result.table.set_index("group")["patients"].drop("all").to_dict()
    assert counts == {"0-17": 2, "18-39": 2, "40-59": 1, "60-79": 3, "80 and older": 2, "unknown": 4}
    assert "2 ages are not a number of years, such as '085Y', and count as unknown." in result.notes


def test_the_cohort_is_joined_by_path_file_name_or_patient(table):
    plain = table.drop(columns=["sex", "age", "view"])
    expected = evaluate_subgroups(table).table
    cohort = table[["path", "patient", "sex", "age", "view"]].sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(evaluate_subgroups(plain, cohort).table, expected)
    moved = cohort.assign(path=cohort["path"].str.replace("/data", "/elsewhere"))
    pd.testing.assert_frame_equal(evaluate_subgroups(plain, moved).table, expected)
    result = evaluate_subgroups(plain, cohort.drop(columns="path"))
    not_view = expected["by"] != "view"
    pd.testing.assert_frame_equal(result.table, expected[not_view].reset_index(drop=True))
    assert any(note.startswith("view differs") for note in result.notes)


def test_empty_values_of_the_cohort_do_not_replace_those_of_the_predictions(table):
    cohort = table[["path"]].assign(view="")
    result = evaluate_subgroups(table, cohort, by=["view"]).table
    pd.testing.assert_frame_equal(result, evaluate_subgroups(table, by=["view"]).table)


def test_predictions_without_a_row_in_the_cohort_are_noted(table):
    cohort = table[["path", "sex"]].iloc[5:]
    result = evaluate_subgroups(table.drop(columns="sex"), cohort, by=["sex"])
    assert f"5 of {len(table)} predictions have no row in the cohort." in result.notes
    with pytest.raises(DataError, match="no row"):
        evaluate_subgroups(table, cohort.assign(path=cohort["path"] + ".dcm"))
    with pytest.raises(DataError, match="several"):
        evaluate_subgroups(table, pd.concat([cohort, cohort]))


def test_missing_default_columns_are_noted_and_missing_requested_ones_raise(predictions):
    result = evaluate_subgroups(predictions)
    assert result.notes == ["Unknown for these images: view, sex, age_band, source."] and len(result.table) == 1
    with pytest.raises(UsageError, match="'country'"):
        evaluate_subgroups(predictions, by=["country"])
    with pytest.raises(UsageError, match="'X'"):
        evaluate_subgroups(predictions, positive="X")
    with pytest.raises(UsageError, match="threshold=2"):
        evaluate_subgroups(predictions, threshold=2)


def test_three_classes_have_a_row_each(three_classes):
    three_classes["site"] = np.where(three_classes["patient"].str[1:].astype(int) < 45, "A", "B")
    result = evaluate_subgroups(three_classes, by=["site"])
    assert len(result.table) == 9
    half = three_classes[three_classes["site"] == "A"]
    assert row_of(result, "site", "A", "Viral")["auc"] == pytest.approx(
        evaluate(half, n_resamples=100).value("auc", "Viral")
    )
    assert len(plot_subgroups(result).axes[0].get_legend().get_texts()) == 3


def test_failed_and_unlabelled_rows_form_no_group(table):
    table["status"] = "ok"
    table.loc[0, ["status", "sex"]] = "failed", "X"
    table.loc[1, ["label", "sex"]] = "", "Y"
    assert set(evaluate_subgroups(table, by=["sex"]).table["group"]) == {"all", "F", "M", "unknown"}


def test_results_can_be_displayed_written_and_plotted(table):
    result = evaluate_subgroups(table)
    json.dumps(result.to_dict())
    assert (
        "medical device" in repr(result)
        and "counted, not evaluated" in repr(result)
        and "<table" in result._repr_html_()
    )
    axes = plot_subgroups(result, metric="sensitivity").axes[0]
    plotted = np.asarray(axes.lines[0].get_xdata(), dtype=float)
    np.testing.assert_allclose(plotted, result.table["sensitivity"].astype(float))
    assert any("0-17" in text.get_text() and "(5, " in text.get_text() for text in axes.get_yticklabels())
    with pytest.raises(UsageError, match="'f1'"):
        plot_subgroups(result, metric="f1")


def test_the_cohort_of_the_synthetic_radiographs(covid_dataset):
    from covid_fastai.data.metadata import read_cohort

    cohort = read_cohort(covid_dataset, task="covid")
    cohort = cohort[cohort["label"] != ""].reset_index(drop=True)
    classes = cohort.facts.classes
    p = np.random.default_rng(0).random(len(cohort))
    table = cohort[["path", "label", "patient"]].assign(**{f"p_{classes[0]}": p, f"p_{classes[1]}": 1 - p})
    result = evaluate_subgroups(table, cohort)
    assert {"view", "sex"} <= set(result.table["by"]) and result.table["patients"].max() == cohort["patient"].nunique()
