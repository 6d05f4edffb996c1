"""Read runs from their folders and list them."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from covid_fastai import list_runs, read_audit, read_run
from covid_fastai.audit.runs import warn_of_selection
from covid_fastai.errors import DataError, UsageError
from covid_fastai.evaluation.runs import collect_versions, count_test_evaluations
from covid_fastai.reporting.caveats import run_caveats
from covid_fastai.reporting.report import render_report
from covid_fastai.run_folder import TEST_EVALUATED, RunFolder


def test_a_run_can_be_read(run_folder):
    run = read_run(run_folder)
    assert run.status == "finished"
    assert run.config["config"]["image_size"] == 32
    assert run.history["phase"].tolist() == ["frozen", "unfrozen"]
    assert len(run.steps) > 2 and run.problems.empty
    assert set(run.cohort["split"]) >= {"train", "valid"}
    assert len(run.metrics.predictions) == len(run.predictions) == (run.cohort["split"] == "valid").sum()
    assert run.versions["packages"]["torch"] and run.report.exists()
    assert "<table" in run._repr_html_() and "finished" in repr(run)


def test_a_run_has_its_audit_and_verdict_and_shows_them_first(run_folder, tmp_path):
    run = read_run(run_folder)
    assert run.verdict == run.audit.verdict == read_audit(run_folder).verdict
    assert run.is_synthetic and run.plain_verdict.headline == "This shows nothing about COVID-19 in patients."
    assert repr(run).endswith("finished, verdict: synthetic)")
    page = run._repr_html_()
    assert page.count("drawings made by this package") == 1
    assert page.startswith("<p>This shows nothing about COVID-19 in patients.")
    assert page.index("Verdict: Disease signal not shown") < page.index("<table")
    (path,) = list_runs(run_folder.parent)["run"]
    assert list_runs(run_folder.parent)["verdict"].tolist() == ["synthetic"] and path == str(run_folder)
    shutil.copytree(run_folder, tmp_path / "runs" / "run")
    (tmp_path / "runs" / "run" / "audit.json").unlink()
    without = read_run(tmp_path / "runs" / "run")
    assert without.audit is without.verdict is None and "not audited" in without._repr_html_()
    assert list_runs(tmp_path / "runs")["verdict"].tolist() == [""]


def test_the_record_lists_the_events(run_folder):
    record = read_run(run_folder).record
    assert [event["event"] for event in record] == ["started", "data read", "model built", "finished"]
    assert record[2]["weights"]["name"] == "random" and record[2]["device"] == "cpu"


def test_runs_are_sorted_and_unfinished_ones_are_last(run_folder, tmp_path):
    for name in ("good", "bad", "unfinished"):
        shutil.copytree(run_folder, tmp_path / name)
    path = tmp_path / "bad" / "metrics.json"
    metrics = json.loads(path.read_text())
    for row in metrics["valid"]["metrics"]:
        row["value"] = {"auc": -1.0, "log_loss": 99.0}.get(row["metric"], row["value"])
    path.write_text(json.dumps(metrics))
    (tmp_path / "unfinished" / "metrics.json").unlink()
    names = [name.rsplit("/", 1)[-1] for name in list_runs(tmp_path)["run"]]
    assert names == ["good", "bad", "unfinished"]
    assert list_runs(tmp_path, metric="log_loss")["value"].iloc[1] == 99  # lower is better
    with pytest.raises(UsageError, match="log_loss"):
        list_runs(tmp_path, metric="aucc")


def test_a_folder_that_is_not_a_run_raises(tmp_path):
    with pytest.raises(DataError, match="not the folder of a run"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        list_runs(tmp_path / "gone")
    assert list_runs(tmp_path).empty


def test_the_missing_file_of_an_unfinished_run_is_named(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "predictions.csv").unlink()
    with pytest.raises(DataError, match=r"has no predictions\.csv"):
        _ = read_run(tmp_path / "run").predictions


def test_versions_include_the_packages_that_results_depend_on():
    assert {"torch", "fastai", "pandas", "covid_fastai"} <= set(collect_versions()["packages"])


def test_a_run_reads_its_cohort_back_with_its_types_and_facts(run_folder, tmp_path):
    cohort = read_run(run_folder).cohort
    assert cohort["in_pretraining"].dtype == cohort["patient_known"].dtype == bool
    assert cohort.facts.classes == ("Normal", "COVID-19") and cohort.facts.positive == "COVID-19"
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "cohort.json").unlink()
    with pytest.raises(DataError, match=r"run/cohort\.json cannot be read as a cohort.*Restore"):
        _ = read_run(tmp_path / "run").cohort


def test_evaluations_of_the_test_set_are_counted_over_all_runs_on_the_same_data(run_folder, tmp_path):
    for name, times in (("first", 1), ("second", 2), ("elsewhere", 4)):
        folder = RunFolder(shutil.copytree(run_folder, tmp_path / name))
        for _ in range(times):
            folder.log(TEST_EVALUATED, images=10, patients=5)
    config = tmp_path / "elsewhere" / RunFolder.config
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data": "/other/data"}))
    run = read_run(tmp_path / "first")
    assert count_test_evaluations(run) == {"first": 1, "second": 2}
    titles = [caveat.title for caveat in run_caveats(run)]
    assert "The official test set was evaluated 3 times by 2 runs on the same data (first, second)." in titles


def test_the_best_of_several_runs_is_said_to_be_optimistic():
    table = pd.DataFrame({"value": [0.9, 0.8, np.nan]})
    assert "best of 2 runs is optimistic" in warn_of_selection(table)
    assert warn_of_selection(table.head(1)) == ""


def test_the_history_of_a_csv_logger_is_read(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    text = "epoch,train_loss,valid_loss,accuracy,time\n0,1.5,0.5,0.75,00:03\n"
    (tmp_path / "run" / "history.csv").write_text(text, encoding="utf-8")
    (row,) = read_run(tmp_path / "run").history.to_dict("records")
    assert math.isnan(row.pop("seconds"))
    assert row == {"epoch": 1, "train_loss": 1.5, "valid_loss": 0.5, "accuracy": 0.75, "phase": "unfrozen"}
    assert render_report(tmp_path / "run").exists()


def test_a_mistyped_run_is_named(run_folder):
    with pytest.raises(DataError, match="There is no folder") as caught:
        read_run(run_folder.parent / run_folder.name[:-1])
    assert caught.value.hint == f"Did you mean {run_folder}?"
