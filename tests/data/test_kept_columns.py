"""A run keeps the columns that it needs, and says which option keeps one that is missing."""

from __future__ import annotations

import pandas as pd
import pytest

from covid_fastai.data.cohort import Cohort, CohortInfo, load_cohort, save_cohort
from covid_fastai.data.kept_columns import keep_columns
from covid_fastai.data.metadata import read_cohort
from covid_fastai.errors import CovidFastaiError, UsageError
from covid_fastai.evaluation.subgroups import evaluate_subgroups


@pytest.fixture
def cohort() -> Cohort:
    rows = {"path": ["a.png", "b.png"], "label": ["Normal", "COVID-19"], "patient": ["p1", "p2"], "split": "train"}
    rows |= {"age": [40, 50], "PatientName": ["ROE^JANE", "DOE^JOHN"], "ward": ["3", "4"]}
    return Cohort(rows, facts=CohortInfo(classes=("Normal", "COVID-19")))


def test_columns_of_the_data_are_left_out_unless_they_are_needed_or_named(cohort):
    kept = keep_columns(cohort)
    assert list(kept) == ["path", "label", "patient", "split", "age"]
    assert kept.facts.left_out == ("PatientName", "ward")
    assert list(keep_columns(cohort, ["ward"])) == ["path", "label", "patient", "split", "age", "ward"]
    assert keep_columns(kept).facts.left_out == ("PatientName", "ward"), "a second time"


def test_a_column_that_the_data_do_not_have_is_refused(cohort):
    with pytest.raises(UsageError, match="'scanner'") as caught:
        keep_columns(cohort, ["scanner"])
    assert "'ward'" in caught.value.hint


def refusal(call) -> CovidFastaiError:
    with pytest.raises(CovidFastaiError) as caught:
        call()
    return caught.value


def test_who_asks_for_a_column_that_was_left_out_is_told_the_option(cohort, tmp_path):
    save_cohort(keep_columns(cohort), tmp_path)
    kept = load_cohort(tmp_path)
    table = pd.DataFrame(kept[["path", "label", "patient"]]).assign(
        **{"p_Normal": [0.7, 0.2], "p_COVID-19": [0.3, 0.8]}
    )
    error = refusal(lambda: evaluate_subgroups(table, kept, by=["ward"]))
    assert isinstance(error, UsageError) and "keep_columns=['ward']" in error.hint
    for options in ({"label_column": "ward"}, {"path_template": "{ward}.png"}):
        error = refusal(lambda options=options: read_cohort(tmp_path / "cohort.csv", **options))
        assert "keep_columns=['ward']" in error.hint
    error = refusal(lambda: read_cohort(tmp_path / "cohort.csv", label_column="Ward 7"))
    assert "keep_columns" not in error.hint
    kept_too = keep_columns(cohort, ["ward"])  # the remedy
    assert "ward" in evaluate_subgroups(table, kept_too, by=["ward"]).table["by"].tolist()
