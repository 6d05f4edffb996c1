"""The fixtures as a downstream project gets them, and what they cost one that does not use them."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.slow
def test_the_fixtures_work_in_a_project_that_only_installed_the_package(pytester):
    pytester.makepyfile(
        """
        def test_dataset(covid_dataset):
            assert (covid_dataset / "Chest_xray_Corona_Metadata.csv").exists()

        def test_cohort(covid_cohort):
            used = covid_cohort[covid_cohort["split"].isin(["train", "valid"])]
            assert set(used["label"]) == {"Normal", "COVID-19"}
            assert used.groupby("patient")["split"].nunique().max() == 1

        def test_dls(covid_dls):
            x, y = covid_dls.one_batch()
            assert tuple(x.shape) == (8, 1, 64, 64)

        def test_learner(covid_learner, covid_cohort):
            probabilities, _ = covid_learner.get_preds(dl=covid_learner.dls.valid)
            assert probabilities.shape == ((covid_cohort["split"] == "valid").sum(), 2)
        """
    )
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=4)


@pytest.mark.slow
def test_the_fixtures_are_documented(pytester):
    result = pytester.runpytest_subprocess("--fixtures")
    for name in ("covid_dataset", "covid_cohort", "covid_dls", "covid_learner"):
        result.stdout.fnmatch_lines([f"{name} *session scope*"])


@pytest.mark.slow
def test_a_run_without_them_imports_nothing_heavy(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            assert not {"torch", "fastai", "pandas", "numpy", "matplotlib"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=1)


def test_the_plugin_is_found_by_its_entry_point():
    found = {point.name: point.value for point in entry_points(group="pytest11")}
    assert found["covid_fastai"] == "covid_fastai.pytest_plugin"
